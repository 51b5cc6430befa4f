//! The direction of the arrows: `proto <- {link, scheduler, gateway, logic, sdk} <- berth <- tests`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{members, metadata, root};

/// Which of our crates each of our crates may use, in its code. Another crate of ours needs a line here, with care.
const MAY_USE: [(&str, &[&str]); 9] = [
    ("berth-proto", &[]),
    ("berth-link", &["berth-proto"]),
    ("berth-scheduler", &["berth-proto"]),
    ("berth-gateway", &["berth-proto"]),
    ("berth-logic", &["berth-proto"]),
    ("berth-client", &["berth-proto"]),
    (
        "berth",
        &["berth-proto", "berth-link", "berth-scheduler", "berth-gateway", "berth-logic", "berth-client"],
    ),
    ("berth-tests", &["berth-proto", "berth-client", "berth"]),
    ("berth-limit", &["berth-proto"]),
];

/// Crates that no build of a member may contain, at any depth, and why.
const NEVER: [(&str, &[&str], &str); 3] = [
    (
        "berth-proto",
        &["tokio", "mio", "axum", "hyper", "socket2", "rand", "tracing"],
        "proto is pure: no runtime, no sockets, no randomness",
    ),
    (
        "berth-gateway",
        &["tokio", "hyper", "axum"],
        "the gateway's threads own their sockets: mio, no async runtime",
    ),
    ("berth-scheduler", &["fjall", "redis"], "the scheduler depends on nothing that can be away"),
];

fn ours(name: &str) -> bool {
    name == "berth" || name.starts_with("berth-")
}

#[test]
fn manifests_keep_the_arrows() {
    let rules: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    for member in members() {
        let text = std::fs::read_to_string(root().join(&member).join("Cargo.toml")).expect("has a manifest");
        let manifest: toml::Table = text.parse().expect("cargo reads it too");
        let name = manifest["package"]["name"].as_str().expect("a name");
        let allowed = rules.get(name).unwrap_or_else(|| panic!("{name} has no line in MAY_USE"));
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let Some(used) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
            for other in used.keys().filter(|other| ours(other)) {
                assert!(allowed.contains(&other.as_str()), "{name} must not depend on {other} ({section})");
            }
        }
    }
}

/// By package id: the ids of what it links, at any depth, without what only its tests or build scripts use.
fn linked(of: &str) -> BTreeSet<String> {
    let nodes = metadata()["resolve"]["nodes"].as_array().expect("a list");
    let by_id: BTreeMap<&str, &Value> = nodes.iter().map(|n| (n["id"].as_str().expect("an id"), n)).collect();
    let mut found = BTreeSet::new();
    let mut open = vec![of.to_owned()];
    while let Some(id) = open.pop() {
        for dependency in by_id[id.as_str()]["deps"].as_array().expect("a list") {
            let kinds = dependency["dep_kinds"].as_array().expect("a list");
            let other = dependency["pkg"].as_str().expect("an id").to_owned();
            if kinds.iter().any(|kind| kind["kind"].is_null()) && found.insert(other.clone()) {
                open.push(other);
            }
        }
    }
    found
}

fn package<'a>(key: &str, value: &str) -> &'a Value {
    let packages = metadata()["packages"].as_array().expect("a list");
    packages.iter().find(|package| package[key] == value).unwrap_or_else(|| panic!("no package {value}"))
}

fn names_linked(of: &str) -> BTreeSet<String> {
    let id = package("name", of)["id"].as_str().expect("an id");
    let name = |id: &String| package("id", id)["name"].as_str().expect("a name").to_owned();
    linked(id).iter().map(name).collect()
}

#[test]
fn what_is_linked_keeps_the_arrows_too() {
    for (name, allowed) in MAY_USE {
        if !metadata()["packages"].as_array().expect("a list").iter().any(|p| p["name"] == name) {
            continue;
        }
        for other in names_linked(name).iter().filter(|other| ours(other)) {
            let reachable = |allowed: &[&str]| allowed.contains(&other.as_str());
            assert!(reachable(allowed), "{name} links {other} through another crate");
        }
    }
}

#[test]
fn what_must_stay_out_stays_out() {
    for (name, banned, why) in NEVER {
        let linked = names_linked(name);
        for other in banned {
            assert!(!linked.contains(*other), "{name} links {other}: {why}");
        }
    }
}
