//! `berth config check` and `berth config print`.

use std::path::PathBuf;

use clap::Subcommand;
use toml::{Table, Value};

use crate::{
    config::{Effective, Layers, SECRETS},
    exit::Failure,
    output,
};

/// Arguments of `berth config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// Configuration file; BERTH_SECTION__KEY variables are laid over it.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say whether the configuration is valid; exit code 1 if it is not.
    Check,
    /// Print every key with its value and where that came from; secrets are not shown.
    Print,
}

/// Reads the configuration as every role would.
pub fn run(args: Args) -> Result<(), Failure> {
    let effective = Layers::defaults()
        .file(args.config.as_deref())
        .environment(std::env::vars_os())
        .finish()
        .map_err(|problem| Failure::Configuration(problem.into()))?;
    let printed = match args.action {
        Action::Check => output::print(format_args!("the configuration is valid")),
        Action::Print => output::print(format_args!("{}", render(&effective).trim_end())),
    };
    output::written(printed)
}

/// A TOML file that gives the same configuration, each value's origin beside it.
fn render(effective: &Effective) -> String {
    let table = Table::try_from(&effective.config).expect("every value came from TOML or has a TOML form");
    let mut text = String::new();
    for (section, keys) in &table {
        text.push_str(&format!("[{section}]\n"));
        for (key, value) in keys.as_table().into_iter().flatten() {
            let name = format!("{section}.{key}");
            let origin = effective.origins.get(&name).map_or("default", String::as_str);
            text.push_str(&format!("{:<48} # {origin}\n", format!("{key} = {}", shown(&name, value))));
        }
        text.push('\n');
    }
    text
}

fn shown(name: &str, value: &Value) -> String {
    let set = value.as_str().is_none_or(|text| !text.is_empty());
    if SECRETS.contains(&name) && set { "\"(not shown)\"".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn print_shows_origins_and_hides_secrets() {
        let secret = "s".repeat(40);
        let variables = [("BERTH_AUTH__ADMIN_KEY".into(), secret.clone().into())];
        let effective = Layers::defaults().environment(variables.into_iter()).finish().expect("valid");
        let text = render(&effective);
        assert!(!text.contains(&secret));
        assert!(
            text.lines()
                .any(|line| line.starts_with("admin_key") && line.ends_with("# BERTH_AUTH__ADMIN_KEY"))
        );
        assert!(text.lines().any(|line| line.starts_with("id = \"gw-1\"") && line.ends_with("# default")));
        assert!(text.parse::<Table>().is_ok(), "{text}");
    }
}
