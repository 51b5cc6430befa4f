//! Where configuration comes from: defaults, then a file, then the environment, then flags. The later wins; an unknown key
//! is an error that names the nearest valid one.

use std::{collections::BTreeMap, ffi::OsString, fmt, path::Path};

use toml::{Table, Value};

use super::Config;

/// The environment variables that are configuration begin so; sections and keys are parted by two underscores.
pub const ENVIRONMENT_PREFIX: &str = "BERTH_";

/// What is wrong with the configuration: every fault found, not only the first.
#[derive(Debug)]
pub struct Problem(Vec<String>);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n       "))
    }
}

impl std::error::Error for Problem {}

/// The layers as they are laid on each other.
pub struct Layers {
    values: Table,
    origins: BTreeMap<String, String>,
    problems: Vec<String>,
}

/// The configuration in force, and where each value came from.
pub struct Effective {
    /// Typed and valid.
    pub config: Config,
    /// `section.key` -> `default`, the file, the variable or the flag.
    pub origins: BTreeMap<String, String>,
}

impl Layers {
    /// Every key at its default.
    pub fn defaults() -> Self {
        let values = Table::try_from(Config::default()).expect("the defaults have a TOML form");
        let origins = keys(&values).map(|key| (key, "default".to_owned())).collect();
        Self { values, origins, problems: Vec::new() }
    }

    /// Lays a TOML file over what is there.
    pub fn file(mut self, path: Option<&Path>) -> Self {
        let Some(path) = path else { return self };
        let origin = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.problems.push(format!("{origin}: {error}"));
                return self;
            }
        };
        match text.parse::<Table>() {
            Ok(table) => self.table(&table, &origin),
            Err(error) => self.problems.push(format!("{origin}: {}", syntax_error(&text, &error))),
        }
        self
    }

    fn table(&mut self, table: &Table, origin: &str) {
        for (section, value) in table {
            match value {
                Value::Table(keys) => {
                    keys.iter().for_each(|(key, value)| {
                        self.set(&format!("{section}.{key}"), value.clone(), origin)
                    });
                }
                _ => self.unknown(section, origin),
            }
        }
    }

    /// Lays environment variables (`BERTH_SECTION__KEY`) over what is there.
    pub fn environment(mut self, variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        for (name, value) in variables {
            let name = name.to_string_lossy();
            let Some(path) = name.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            if !path.contains("__") {
                self.one_underscore(&name, path);
                continue;
            }
            let key = path.to_ascii_lowercase().replacen("__", ".", 1);
            match value.to_str() {
                Some(text) => self.text(&key, text, &name),
                None => self.problems.push(format!("{name}: {key} is not UTF-8")),
            }
        }
        self
    }

    /// `BERTH_GATEWAY_ID` is a slip for `BERTH_GATEWAY__ID`; what begins with no section (`BERTH_BIN`) is somebody else's.
    fn one_underscore(&mut self, name: &str, path: &str) {
        let path = path.to_ascii_lowercase();
        let rest =
            |section: &String| path.strip_prefix(section.as_str())?.strip_prefix('_').map(str::to_owned);
        let Some((section, key)) =
            self.values.keys().find_map(|section| Some((section.clone(), rest(section)?)))
        else {
            return;
        };
        let meant = nearest(&self.values, &format!("{section}.{key}")).unwrap_or_default();
        let variable = meant.to_ascii_uppercase().replacen('.', "__", 1);
        self.problems.push(format!(
            "{name}: a section and its key are parted by two underscores; did you mean {ENVIRONMENT_PREFIX}{variable}?"
        ));
    }

    /// Lays one flag over what is there, if it was given.
    pub fn flag(mut self, name: &str, key: &str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            self.text(key, &value.to_string(), name);
        }
        self
    }

    /// Lays a flag that may be given several times over what is there, if it was given.
    pub fn flags(mut self, name: &str, key: &str, values: &[String]) -> Self {
        if !values.is_empty() {
            self.set(key, Value::Array(values.iter().cloned().map(Value::String).collect()), name);
        }
        self
    }

    /// The configuration in force.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn finish(mut self) -> Result<Effective, Problem> {
        match Value::Table(self.values).try_into::<Config>() {
            Ok(config) => {
                self.problems.extend(config.problems());
                if self.problems.is_empty() {
                    return Ok(Effective { config, origins: self.origins });
                }
            }
            Err(error) => self.problems.push(error.message().to_owned()),
        }
        Err(Problem(self.problems))
    }

    /// Sets a key from text, read as the type of its default.
    fn text(&mut self, key: &str, text: &str, origin: &str) {
        let value = match self.current(key) {
            None => return self.unknown(key, origin),
            Some(Value::Integer(_)) => text.parse().map(Value::Integer).map_err(|_| "a whole number"),
            Some(Value::Float(_)) => text.parse().map(Value::Float).map_err(|_| "a number"),
            Some(Value::Boolean(_)) => text.parse().map(Value::Boolean).map_err(|_| "true or false"),
            Some(Value::Array(_)) => Ok(list(text)),
            Some(_) => Ok(Value::String(text.to_owned())),
        };
        match value {
            Ok(value) => self.set(key, value, origin),
            Err(expected) => self.problems.push(format!("{origin}: {key} = {text:?} is not {expected}")),
        }
    }

    fn set(&mut self, key: &str, value: Value, origin: &str) {
        let Some(current) = self.current_mut(key) else { return self.unknown(key, origin) };
        if !current.same_type(&value) {
            let expected = current.type_str();
            self.problems.push(format!("{origin}: {key} is a {}; a {expected} is needed", value.type_str()));
            return;
        }
        if let Err(problem) = typed(key, &value) {
            self.problems.push(format!("{origin}: {key} = {value}: {problem}"));
            return;
        }
        if let Some(current) = self.current_mut(key) {
            *current = value;
        }
        self.origins.insert(key.to_owned(), origin.to_owned());
    }

    fn current(&self, key: &str) -> Option<&Value> {
        let (section, key) = key.split_once('.')?;
        self.values.get(section)?.get(key)
    }

    fn current_mut(&mut self, key: &str) -> Option<&mut Value> {
        let (section, key) = key.split_once('.')?;
        self.values.get_mut(section)?.get_mut(key)
    }

    fn unknown(&mut self, key: &str, origin: &str) {
        let hint =
            nearest(&self.values, key).map(|known| format!("; did you mean {known}?")).unwrap_or_default();
        self.problems.push(format!("{origin}: unknown key {key}{hint}"));
    }
}

/// Several values in one variable, with commas between.
fn list(text: &str) -> Value {
    let values = text.split(',').map(str::trim).filter(|value| !value.is_empty());
    Value::Array(values.map(|value| Value::String(value.to_owned())).collect())
}

/// Line and reason. Not the line's text, which the parser's own message shows: it may be a key.
pub fn syntax_error(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    format!("line {}: {}", before.matches('\n').count() + 1, error.message())
}

/// Whether the key's own type takes the value: an address, a number in its range.
fn typed(key: &str, value: &Value) -> Result<(), String> {
    let (section, key) = key.split_once('.').unwrap_or((key, ""));
    let one = Table::from_iter([(
        section.to_owned(),
        Value::Table(Table::from_iter([(key.to_owned(), value.clone())])),
    )]);
    match Value::Table(one).try_into::<Config>() {
        Ok(_) => Ok(()),
        Err(error) => Err(error.message().to_owned()),
    }
}

fn nearest(values: &Table, key: &str) -> Option<String> {
    keys(values).min_by_key(|known| strsim::damerau_levenshtein(known, key))
}

fn keys(values: &Table) -> impl Iterator<Item = String> {
    values.iter().flat_map(|(section, keys)| {
        keys.as_table().into_iter().flatten().map(move |(key, _)| format!("{section}.{key}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Result<Effective, Problem> {
        let owned = variables.iter().map(|(name, text)| (name.into(), text.into()));
        Layers::defaults().environment(owned).finish()
    }

    fn file(text: &str) -> Result<Effective, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("berth.toml");
        std::fs::write(&path, text).expect("written");
        Layers::defaults().file(Some(&path)).finish().map_err(|problem| problem.to_string())
    }

    #[test]
    fn the_later_layer_wins_and_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("berth.toml");
        std::fs::write(&path, "[gateway]\nregion = \"eu\"\nzone = \"a\"\npool = \"canary\"\n")
            .expect("written");
        let variables = [("BERTH_GATEWAY__ZONE", "b"), ("BERTH_GATEWAY__POOL", "beta"), ("HOME", "/")];
        let effective = Layers::defaults()
            .file(Some(&path))
            .environment(variables.iter().map(|(n, t)| (n.into(), t.into())))
            .flag("--pool", "gateway.pool", Some("stable"))
            .flag("--region", "gateway.region", None::<&str>)
            .finish()
            .expect("valid");
        let gateway = &effective.config.gateway;
        assert_eq!((&*gateway.region, &*gateway.zone, &*gateway.pool), ("eu", "b", "stable"));
        assert_eq!(effective.origins["gateway.zone"], "BERTH_GATEWAY__ZONE");
        assert_eq!(effective.origins["gateway.pool"], "--pool");
        assert_eq!(effective.origins["gateway.id"], "default");
    }

    #[test]
    fn a_list_is_given_by_repeated_flags_or_with_commas() {
        let variables = [("BERTH_GATEWAY__SCHEDULERS", "a:1, b:2,")];
        let effective = environment(&variables).expect("valid");
        assert_eq!(effective.config.gateway.schedulers, ["a:1", "b:2"]);
        let effective = Layers::defaults()
            .flags("--scheduler", "gateway.schedulers", &["c:3".to_owned(), "d:4".to_owned()])
            .flags("--logic", "gateway.logics", &[])
            .finish()
            .expect("valid");
        assert_eq!(effective.config.gateway.schedulers, ["c:3", "d:4"]);
        assert_eq!(effective.config.gateway.logics, ["127.0.0.1:7721"]);
        assert_eq!(effective.origins["gateway.schedulers"], "--scheduler");
        let problem = file("[gateway]\nlogics = [1]").err().expect("no text");
        assert!(problem.contains("gateway.logics"), "{problem}");
    }

    #[test]
    fn every_fault_is_told_with_its_place_and_value() {
        for (text, expected) in [
            ("[gateway]\nregoin = \"eu\"", "unknown key gateway.regoin; did you mean gateway.region?"),
            ("gateway = 5", "unknown key gateway"),
            ("[gateway]\nworkers = \"two\"", "gateway.workers is a string; a integer is needed"),
            ("[gateway]\nworkers = 70000", "gateway.workers = 70000"),
            ("[gateway]\nlisten = \"here\"", "gateway.listen = \"here\": invalid socket address"),
            ("[logic]\nnode = 1024", "logic.node = 1024; 0 to 1023 are possible"),
            ("[auth]\nadmin_key = \"short\"", "auth.admin_key has 5 bytes; at least 32 are needed"),
            ("[gateway\n", "line 1"),
        ] {
            let problem = file(text).err().expect(text);
            assert!(problem.contains(expected), "{text:?} gave {problem:?}");
        }
        let problem = environment(&[("BERTH_GATEWAY__WORKERS", "two"), ("BERTH_GATWAY__ID", "x")]).err();
        let problem = problem.map(|p| p.to_string()).unwrap_or_default();
        assert!(
            problem.contains("BERTH_GATEWAY__WORKERS: gateway.workers = \"two\" is not a whole number"),
            "{problem}"
        );
        assert!(
            problem.contains("BERTH_GATWAY__ID: unknown key gatway.id; did you mean gateway.id?"),
            "{problem}"
        );
    }

    #[test]
    fn one_underscore_is_told_and_other_programs_variables_are_not() {
        let problem = environment(&[("BERTH_GATEWAY_HEARTBEAT_INTERVAL_MS", "5")]).err();
        let problem = problem.map(|p| p.to_string()).unwrap_or_default();
        assert!(problem.contains("BERTH_GATEWAY_HEARTBEAT_INTERVAL_MS: "), "{problem}");
        assert!(problem.contains("did you mean BERTH_GATEWAY__HEARTBEAT_INTERVAL_MS?"), "{problem}");
        assert!(environment(&[("BERTH_BIN", "x"), ("BERTH_TEST_FIGURES", "y")]).is_ok());
    }

    #[test]
    fn a_fault_beside_a_secret_does_not_show_it() {
        let problem =
            file("[auth]\njwt_secret = \"hunter2hunter2\nadmin_key = 5").err().expect("no closing quote");
        assert!(problem.contains("line 2") && !problem.contains("hunter2"), "{problem}");
    }

    #[test]
    fn a_variable_that_is_not_text_is_named_and_others_are_nobodys_business() {
        use std::os::unix::ffi::OsStringExt;
        let broken = || OsString::from_vec(vec![0xff]);
        let read =
            |name: &str| Layers::defaults().environment([(name.into(), broken())].into_iter()).finish();
        assert!(read("LS_COLORS").is_ok());
        let problem =
            read("BERTH_GATEWAY__ZONE").err().map(|problem| problem.to_string()).unwrap_or_default();
        assert!(problem.contains("BERTH_GATEWAY__ZONE: gateway.zone is not UTF-8"), "{problem}");
    }

    #[test]
    fn the_defaults_are_valid() {
        assert!(environment(&[]).is_ok());
    }
}
