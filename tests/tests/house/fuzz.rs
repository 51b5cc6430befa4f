//! The fuzz targets: their workspace is readable, and each calls a body that its crate has. cargo-fuzz builds them, and
//! `tests/run --long` checks them.

use std::{fs, process::Command};

use serde_json::Value;

use crate::root;

#[test]
fn every_fuzz_target_is_listed_and_calls_a_body_of_its_crate() {
    let folder = root().join("tests/fuzz");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output = Command::new(cargo).args(arguments).current_dir(&folder).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let targets = metadata["packages"][0]["targets"].as_array().expect("targets");
    let files = fs::read_dir(folder.join("fuzz_targets")).expect("a folder").count();
    assert_eq!(targets.len(), files, "each file is a target");
    for target in targets {
        let path = target["src_path"].as_str().expect("a path");
        let text = fs::read_to_string(path).expect("a target's file");
        // `berth_gateway::fuzz::websocket(bytes)` is in gateway/src/fuzz.rs.
        let call = text.split("berth_").last().and_then(|rest| rest.split_once("(bytes)")).expect("a call").0;
        let (member, body) = call.split_once("::fuzz::").expect("a body");
        let bodies = fs::read_to_string(root().join(member).join("src/fuzz.rs")).expect("the crate's bodies");
        assert!(bodies.contains(&format!("pub fn {body}(bytes: &[u8])")), "{member} has no body {body}");
    }
}
