//! What holds of the repository itself, without a server: the arrows between the crates, the dependencies, the size of files.

mod arrows;
mod dependencies;
mod fuzz;
mod sizes;

use std::{fs, path::PathBuf, process::Command, sync::OnceLock};

use serde_json::Value;

/// The repository's root.
pub fn root() -> PathBuf {
    berth_tests::root()
}

/// The members of the workspace, as its manifest lists them.
pub fn members() -> Vec<String> {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let manifest: toml::Table = text.parse().expect("cargo reads it too");
    let members = manifest["workspace"]["members"].as_array().expect("a list");
    members.iter().map(|member| member.as_str().expect("a folder").to_owned()).collect()
}

/// `cargo metadata`: what is resolved, not what is written.
pub fn metadata() -> &'static Value {
    static METADATA: OnceLock<Value> = OnceLock::new();
    METADATA.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        // Of this platform: the others' packages are not downloaded.
        let rustc = Command::new("rustc").arg("-vV").output().expect("rustc runs");
        let told = String::from_utf8_lossy(&rustc.stdout).into_owned();
        let host = told.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc says its host");
        let arguments =
            ["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host];
        let output = Command::new(cargo).args(arguments).current_dir(root()).output().expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
    })
}

/// The README's first command: without a default, cargo asks which binary is meant.
#[test]
fn cargo_run_is_berth() {
    let packages = metadata()["packages"].as_array().expect("a list");
    let defaults: Vec<_> = packages
        .iter()
        .filter(|package| package["source"].is_null())
        .filter_map(|package| package["default_run"].as_str())
        .collect();
    assert_eq!(defaults, ["berth"]);
}
