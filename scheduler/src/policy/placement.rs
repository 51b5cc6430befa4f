//! What decides where a connected user belongs, as one number: when it changes, gateways ask about their connections again.

use std::fmt::Write;

use ring::digest::{SHA256, digest};

use super::{GrayRule, Home, Matcher};

/// Of homes and of gray rules with what they take now, in their order; what only spreads load, and a rule's name, change nothing.
pub(super) fn placement(homes: &[Home], gray: &[GrayRule]) -> u64 {
    let mut said = String::new();
    for Home { region, users, buckets, when_down } in homes {
        say(&mut said, &format!("home {region:?} {buckets:?} {when_down:?}"), sorted(users));
    }
    for GrayRule { pool, users, takes, salt, matcher, .. } in gray {
        let Matcher { platforms, app_version, regions, cidrs, devices } = matcher;
        let version = app_version.as_ref().map(ToString::to_string);
        let rule = format!("gray {pool:?} {takes} {salt:?} {platforms:?} {version:?} {regions:?} {cidrs:?}");
        say(&mut said, &rule, sorted(users));
        say(&mut said, "devices", sorted(devices));
    }
    head(&said)
}

/// The first eight bytes of a text's SHA-256.
pub(crate) fn head(text: &str) -> u64 {
    let digest = digest(&SHA256, text.as_bytes());
    let (head, _) = digest.as_ref().split_first_chunk().expect("a SHA-256 has 32 bytes");
    u64::from_be_bytes(*head)
}

fn say(said: &mut String, what: &str, names: Vec<&String>) {
    let _ = writeln!(said, "{what} {names:?}");
}

/// Sets have no order of their own, and replicas must agree.
fn sorted<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<&'a String> {
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use crate::policy::parse;

    fn placement(text: &str) -> u64 {
        parse(text).expect("a policy").placement
    }

    #[test]
    fn it_changes_with_homes_and_rules_and_with_nothing_else() {
        let base = "[[home]]\nregion = \"eu\"\nusers = [\"a\", \"b\", \"c\"]\n[[gray]]\nid = \"x\"\npool = \"canary\"\npercent = 5\nsalt = \"s\"\n";
        let one = placement(&format!("version = 1\n{base}"));
        for same in [
            format!("version = 2\n{base}"),
            format!("version = 1\n{}", base.replace("[\"a\", \"b\", \"c\"]", "[\"c\", \"a\", \"b\"]")),
            format!("version = 1\n{}", base.replace("id = \"x\"", "id = \"y\"")),
            format!(
                "version = 1\n{base}\n[load]\nbound = 0.5\n[move]\nper_second = 7\nhandshake_p99_ms = 7\nconnect_failures = 0.7\nmin_handshakes = 7\nlost = 0.7\n"
            ),
        ] {
            assert_eq!(placement(&same), one, "{same}");
        }
        for (from, to) in [
            ("percent = 5", "percent = 6"),
            ("\"canary\"", "\"other\""),
            ("salt = \"s\"", "salt = \"t\""),
            ("region = \"eu\"", "region = \"us\""),
            ("\"c\"]", "\"d\"]"),
            ("percent = 5", "percent = 5\nmatch = { devices = [\"d\"] }"),
            ("region = \"eu\"", "region = \"eu\"\nwhen_down = \"wait\""),
        ] {
            assert_ne!(placement(&format!("version = 1\n{}", base.replace(from, to))), one, "{to}");
        }
    }
}
