//! The lock file: its size, its doubles, and versions with known holes.

use std::{collections::BTreeMap, fs};

use crate::root;

/// More packages than this are more than anybody can watch.
const MOST: usize = 450;

/// One version of each: two would mean two sets of types, or two TLS providers that panic at first use.
const ONCE: [&str; 4] = ["hyper", "prost", "rustls", "tower"];

/// Not at all, with the reason.
const NEVER: [(&str, &str); 7] = [
    ("aws-lc-rs", "a second TLS provider beside ring panics at first use"),
    ("aws-lc-sys", "needs cmake, and is that provider"),
    ("bincode", "unmaintained"),
    ("rustls-pemfile", "unmaintained"),
    ("backoff", "unmaintained"),
    ("sled", "loses data"),
    ("fred", "unmaintained"),
];

/// Below these are published holes.
const FLOORS: [(&str, &str); 7] = [
    ("h2", "0.4.16"),
    ("rustls", "0.23.45"),
    ("rustls-webpki", "0.103.13"),
    ("tonic", "0.12.3"),
    ("tokio", "1.44.2"),
    ("bytes", "1.11.1"),
    ("anyhow", "1.0.103"),
];

fn locked() -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(root().join("Cargo.lock")).expect("is in the repository");
    let lock: toml::Table = text.parse().expect("cargo wrote it");
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in lock["package"].as_array().expect("a list") {
        let text = |key: &str| package[key].as_str().expect("a text").to_owned();
        versions.entry(text("name")).or_default().push(text("version"));
    }
    versions
}

/// The numbers of a version, without pre-release and build.
fn numbers(version: &str) -> Vec<u64> {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    core.split('.').map(|part| part.parse().expect("a number")).collect()
}

#[test]
fn the_lock_file_is_small_enough_to_watch() {
    let locked = locked();
    let count: usize = locked.values().map(Vec::len).sum();
    let doubles: Vec<_> = locked.iter().filter(|(_, versions)| versions.len() > 1).collect();
    berth_tests::figure(&format!(
        "packages in the lock file: {count}, in more than one version: {}",
        doubles.len()
    ));
    println!("{doubles:?}");
    assert!(count < MOST, "{count} packages");
}

#[test]
fn some_crates_are_there_once() {
    let locked = locked();
    for name in ONCE {
        let versions = locked.get(name).cloned().unwrap_or_default();
        assert!(versions.len() <= 1, "{name}: {versions:?}");
    }
}

#[test]
fn some_crates_are_not_there_at_all() {
    let locked = locked();
    for (name, why) in NEVER {
        assert!(!locked.contains_key(name), "{name}: {why}");
    }
}

#[test]
fn nothing_is_below_its_advisory_floor() {
    let locked = locked();
    for (name, floor) in FLOORS {
        for version in locked.get(name).into_iter().flatten() {
            assert!(numbers(version) >= numbers(floor), "{name} {version} is below {floor}");
        }
    }
    assert!(numbers("0.4.9") < numbers("0.4.16") && numbers("1.45.0-rc1+x") >= numbers("1.44.2"));
}
