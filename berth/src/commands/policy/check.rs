//! `berth policy check FILE`: what a scheduler would say to this file.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use berth_scheduler::policy::{Policy, parse};

use crate::{exit::Failure, output};

/// Arguments of `berth policy check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The policy file.
    file: PathBuf,
}

/// Reads and checks.
pub fn run(args: &Args) -> Result<(), Failure> {
    let policy = read(&args.file).map_err(Failure::Configuration)?;
    let (homes, rules) = (policy.homes.len(), policy.gray.len());
    output::written(output::print(format_args!("{policy} is valid: {homes} homes, {rules} gray rules")))
}

/// The policy in a file, or where it is wrong.
pub fn read(path: &Path) -> anyhow::Result<Policy> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the policy file {} cannot be read", path.display()))?;
    parse(&text).map_err(|error| anyhow!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_policy_is_told_by_file_line_key_and_reason() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("policy.toml");
        std::fs::write(&path, "version = 3\n[load]\nbound = -1.0\n").expect("written");
        let error = format!("{:#}", read(&path).expect_err("broken"));
        assert!(error.ends_with("policy.toml: line 3, load.bound: -1 is not between 0 and 100"), "{error}");
        let refused = run(&Args { file: directory.path().join("none.toml") }).expect_err("no such file");
        assert!(matches!(refused, Failure::Configuration(_)), "exit code 1");
        std::fs::write(&path, "version = 3\n").expect("written");
        assert_eq!(read(&path).expect("valid").version, 3);
    }
}
