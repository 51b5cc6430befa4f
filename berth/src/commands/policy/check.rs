//! `berth policy check FILE`: what a scheduler would say to this file.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use berth_scheduler::policy::{Policy, parse, rfc3339};

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
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    output::written(output::print(format_args!("{}", readable(&policy, now_ms).trim_end())))
}

/// What is in it, and what its rules take at a time.
fn readable(policy: &Policy, now_ms: i64) -> String {
    let (homes, rules) = (policy.homes.len(), policy.gray.len());
    let mut text = format!("{policy} is valid: {homes} homes, {rules} gray rules\n");
    for rule in &policy.gray {
        let (id, pool, percent) = (&rule.id, &rule.pool, rule.percent_at(now_ms));
        let _ = write!(text, "rule {id} -> {pool}: {percent}% now");
        if !rule.users.is_empty() {
            let _ = write!(text, ", and {} named users", rule.users.len());
        }
        for step in rule.ramp.iter().filter(|step| step.at_ms > now_ms) {
            let _ = write!(text, ", {}% from {}", step.percent, rfc3339(step.at_ms));
        }
        text.push_str(if rule.guard.is_some() { "; guarded\n" } else { "\n" });
    }
    text
}

/// What a file says.
pub fn text(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("the policy file {} cannot be read", path.display()))
}

/// The policy in a file, or where it is wrong.
pub fn read(path: &Path) -> anyhow::Result<Policy> {
    parse(&text(path)?).map_err(|error| anyhow!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_is_told_from_now_on() {
        let text = "version = 3\n[[gray]]\nid = \"a\"\npool = \"canary\"\nusers = [\"x\"]\nramp = [\
            { at = 1970-01-01T00:00:01Z, percent = 5 }, { at = \"1970-01-01T00:00:02Z\", percent = 25 }, \
            { at = \"1970-01-01T00:00:03Z\", percent = 1.5 }]\n[gray.guard]\nconnect_failures = 0.02";
        let told = readable(&parse(text).expect("valid"), 1_500);
        let rule = "rule a -> canary: 5% now, and 1 named users, 25% from 1970-01-01T00:00:02Z, \
            1.5% from 1970-01-01T00:00:03Z; guarded\n";
        assert!(told.ends_with(rule), "{told}");
    }

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
