//! The keys: those `berth dev` makes for itself and keeps in its data directory, and those a role cannot start without.

use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, anyhow};
use rand::{Rng, distr::Alphanumeric};
use serde::{Deserialize, Serialize};

use crate::config::{Auth, syntax_error};

const FILE: &str = "keys.toml";

/// As many characters as a key has; 62^43 is above 2^256.
const CHARACTERS: usize = 43;

#[derive(Serialize, Deserialize)]
struct KeyFile {
    auth: Auth,
}

/// Fills the keys that the configuration leaves empty from the data directory's key file, so that tokens and tickets
/// outlive a restart. The file is made, or completed, first.
///
/// # Errors
/// When the file cannot be read, understood or written.
pub fn complete(configured: &Auth, data_dir: &Path) -> anyhow::Result<Auth> {
    let path = data_dir.join(FILE);
    let read = match fs::read_to_string(&path) {
        Ok(text) => {
            toml::from_str::<KeyFile>(&text)
                .map_err(|error| anyhow!("{} is damaged: {}", path.display(), syntax_error(&text, &error)))?
                .auth
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Auth::default(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let kept = fill(read.clone(), &new());
    if kept != read {
        write(&path, &kept).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(fill(configured.clone(), &kept))
}

/// A key that a role needs and was not given.
#[derive(Debug)]
pub struct MissingKey {
    role: &'static str,
    key: &'static str,
}

impl fmt::Display for MissingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, key } = self;
        let variable = format!("BERTH_{}", key.to_uppercase().replace('.', "__"));
        write!(f, "the {role} needs {key}: give at least 32 bytes in --config FILE or {variable}")
    }
}

impl std::error::Error for MissingKey {}

/// Refuses when a key that the role needs is empty; that one is good is known already.
///
/// # Errors
/// The first that is missing.
pub fn require(role: &'static str, keys: &[(&'static str, &str)]) -> Result<(), MissingKey> {
    match keys.iter().find(|(_, value)| value.is_empty()) {
        Some((key, _)) => Err(MissingKey { role, key }),
        None => Ok(()),
    }
}

/// `auth`, its empty keys from `from`.
fn fill(auth: Auth, from: &Auth) -> Auth {
    let or = |key: String, from: &String| if key.is_empty() { from.clone() } else { key };
    Auth {
        jwt_secret: or(auth.jwt_secret, &from.jwt_secret),
        ticket_key: or(auth.ticket_key, &from.ticket_key),
        cluster_key: or(auth.cluster_key, &from.cluster_key),
        service_key: or(auth.service_key, &from.service_key),
        admin_key: or(auth.admin_key, &from.admin_key),
        ..auth
    }
}

fn new() -> Auth {
    Auth {
        jwt_secret: random(),
        ticket_key: random(),
        cluster_key: random(),
        service_key: random(),
        admin_key: random(),
        ..Auth::default()
    }
}

/// Whole or not at all, readable by its owner only.
fn write(path: &Path, auth: &Auth) -> anyhow::Result<()> {
    let text = toml::to_string(&KeyFile { auth: auth.clone() })?;
    let unfinished = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    // The name must outlive a power cut like the content, or the next start would make other keys.
    if let Some(directory) = path.parent() {
        fs::File::open(directory)?.sync_all()?;
    }
    Ok(())
}

fn random() -> String {
    rand::rng().sample_iter(Alphanumeric).take(CHARACTERS).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_made_once_and_kept_and_the_configuration_wins() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = complete(&Auth::default(), dir.path()).expect("made");
        assert_eq!(complete(&Auth::default(), dir.path()).expect("kept"), first);
        assert!(first.jwt_secret.len() >= crate::config::KEY_BYTES);
        assert_ne!(first.jwt_secret, first.ticket_key);

        let configured = Auth { admin_key: "a".repeat(40), ..Auth::default() };
        let second = complete(&configured, dir.path()).expect("kept");
        assert_eq!((second.admin_key, second.jwt_secret), (configured.admin_key, first.jwt_secret));

        let mode = fs::metadata(dir.path().join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_older_file_that_lacks_a_key_gets_it_and_keeps_the_others() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let old = "[auth]\njwt_secret = \"0123456789abcdef0123456789abcdef\"\n";
        fs::write(dir.path().join(FILE), old).expect("written");
        let first = complete(&Auth::default(), dir.path()).expect("completed");
        assert_eq!(first.jwt_secret, "0123456789abcdef0123456789abcdef");
        assert!(first.cluster_key.len() >= crate::config::KEY_BYTES);
        assert_eq!(complete(&Auth::default(), dir.path()).expect("kept"), first);
    }

    #[test]
    fn a_missing_key_is_named_with_its_variable() {
        assert!(require("gateway", &[("auth.cluster_key", "k")]).is_ok());
        let keys = [("auth.ticket_key", "k"), ("auth.cluster_key", "")];
        let problem = require("scheduler", &keys).expect_err("missing").to_string();
        assert!(
            problem.contains("auth.cluster_key") && problem.contains("BERTH_AUTH__CLUSTER_KEY"),
            "{problem}"
        );
    }

    #[test]
    fn a_damaged_file_is_named_without_its_content() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join(FILE), "[auth]\njwt_secret = \"hunter2hunter2\n").expect("written");
        let error = format!("{:#}", complete(&Auth::default(), dir.path()).expect_err("damaged"));
        assert!(error.contains("keys.toml is damaged: line 2") && !error.contains("hunter2"), "{error}");
    }
}
