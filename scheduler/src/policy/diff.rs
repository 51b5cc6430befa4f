//! What a policy does that another does not: rule by rule, and whom it moves where.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use berth_proto::bucket::BUCKETS;
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use ring::digest::{SHA256, digest};
use serde::Serialize;

use super::{GrayRule, Matcher, Policy, STABLE, Takes, placement::placement};

/// Kinds of clients that are looked at: each is one walk through all buckets.
const MAX_KINDS: usize = 32;

/// Between two policies.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    /// Rules that are new, gone or other, in the order of the new policy.
    pub rules: Vec<RuleChange>,
    /// What else is another: `home`, `load`, `move`, `proximity`, the order of the rules.
    pub also: Vec<&'static str>,
    /// Who goes from where to where; without those that rules name.
    pub moves: Vec<Move>,
}

/// A rule that is not as it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleChange {
    /// Its id.
    pub rule_id: String,
    /// `added`, `removed` or `changed`.
    pub change: &'static str,
    /// The keys that are another.
    pub keys: Vec<&'static str>,
    /// What it takes now by the old policy; none: it is stopped or not there.
    pub percent_before: Option<f64>,
    /// What it takes now by the new one.
    pub percent_after: Option<f64>,
}

/// A share of some clients that goes to another pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Move {
    /// Of which clients: what they match, or nothing.
    pub of: String,
    /// The pool.
    pub from: String,
    /// The pool.
    pub to: String,
    /// Of these clients.
    pub percent: f64,
}

impl Diff {
    /// What `new` does that `old` does not, each as it is at its time.
    #[must_use]
    pub fn between(old: &Policy, new: &Policy) -> Self {
        Self { rules: rules(old, new), also: also(old, new), moves: moves(old, new) }
    }

    /// A line for each part but the moves, which take a while to be found: for a history.
    #[must_use]
    pub fn lines(old: &Policy, new: &Policy) -> Vec<String> {
        let rules = rules(old, new);
        let also = also(old, new).into_iter().map(|part| format!("{part} changed"));
        rules.iter().map(RuleChange::line).chain(also).collect()
    }
}

fn rules(old: &Policy, new: &Policy) -> Vec<RuleChange> {
    let find = |policy: &'_ Policy, id: &str| policy.gray.iter().position(|rule| rule.id == id);
    let mut rules = Vec::new();
    for rule in &new.gray {
        match find(old, &rule.id).map(|place| &old.gray[place]) {
            None => rules.push(RuleChange::of(None, Some(rule))),
            Some(before) if before.hash != rule.hash || before.takes != rule.takes => {
                rules.push(RuleChange::of(Some(before), Some(rule)));
            }
            Some(_) => {}
        }
    }
    let gone = old.gray.iter().filter(|rule| find(new, &rule.id).is_none());
    rules.extend(gone.map(|rule| RuleChange::of(Some(rule), None)));
    rules
}

impl RuleChange {
    fn of(before: Option<&GrayRule>, after: Option<&GrayRule>) -> Self {
        let percent = |rule: Option<&GrayRule>| match rule?.takes {
            Takes::Percent { percent, .. } => Some(percent),
            Takes::Nobody(_) => None,
        };
        let (change, keys) = match (before, after) {
            (Some(before), Some(after)) => ("changed", keys(before, after)),
            (None, _) => ("added", Vec::new()),
            (_, None) => ("removed", Vec::new()),
        };
        let rule_id = before.or(after).map_or_else(String::new, |rule| rule.id.clone());
        let (percent_before, percent_after) = (percent(before), percent(after));
        Self { rule_id, change, keys, percent_before, percent_after }
    }

    /// For reading.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { rule_id, change, keys, percent_before, percent_after } = self;
        let share =
            |percent: &Option<f64>| percent.map_or("nobody".to_owned(), |percent| format!("{percent}%"));
        let keys = if keys.is_empty() { String::new() } else { format!(" ({})", keys.join(", ")) };
        format!(
            "rule {rule_id} {change}{keys}: takes {} now, {} before",
            share(percent_after),
            share(percent_before)
        )
    }
}

fn keys(before: &GrayRule, after: &GrayRule) -> Vec<&'static str> {
    let differs = [
        ("pool", before.pool != after.pool),
        ("users", before.users != after.users),
        ("percent", before.percent.to_bits() != after.percent.to_bits()),
        ("ramp", before.ramp != after.ramp),
        ("salt", before.salt != after.salt),
        ("match", before.matcher.to_string() != after.matcher.to_string()),
        ("guard", before.guard != after.guard),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

fn also(old: &Policy, new: &Policy) -> Vec<&'static str> {
    let order = |policy: &Policy, other: &Policy| -> Vec<String> {
        let both = policy.gray.iter().filter(|rule| other.gray.iter().any(|o| o.id == rule.id));
        both.map(|rule| rule.id.clone()).collect()
    };
    let load = |policy: &Policy| (policy.bound.to_bits(), policy.slow_start_ms);
    let moving = |policy: &Policy| (policy.moves_per_second, policy.move_limits);
    let near = |policy: &Policy| (policy.spill_at.to_bits(), format!("{:?}", policy.proximity));
    let differs = [
        ("home", placement(&old.homes, &[]) != placement(&new.homes, &[])),
        ("order of rules", order(old, new) != order(new, old)),
        ("load", load(old) != load(new)),
        ("move", moving(old) != moving(new)),
        ("proximity", near(old) != near(new)),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(part, _)| part).collect()
}

/// Walks through all buckets once for each kind of client, with the rules that such a client matches. A rule's share is exact; of two
/// rules with different salts the common part is that of a random order, as it is for real users.
fn moves(old: &Policy, new: &Policy) -> Vec<Move> {
    let all = || old.gray.iter().chain(&new.gray);
    let asked: BTreeSet<String> =
        all().map(|rule| rule.matcher.to_string()).filter(|asked| !asked.is_empty()).collect();
    let salts: HashMap<&str, Vec<u16>> =
        all().map(|rule| (rule.salt.as_str(), shuffled(&rule.salt))).collect();
    let mut moves = Vec::new();
    for kind in std::iter::once(String::new()).chain(asked).take(MAX_KINDS) {
        let rules = |policy: &'_ Policy| -> Vec<(GrayRule, bool)> {
            let fits = |rule: &GrayRule| {
                let asks = rule.matcher.to_string();
                asks.is_empty() || asks == kind
            };
            policy.gray.iter().map(|rule| (rule.clone(), fits(rule))).collect()
        };
        let (before, after) = (rules(old), rules(new));
        let mut counts: BTreeMap<(String, String), u32> = BTreeMap::new();
        for place in 0..usize::from(BUCKETS) {
            let bucket = |salt: &str| salts.get(salt).map_or(0, |buckets| buckets[place]);
            let (from, to) = (pool(&before, bucket), pool(&after, bucket));
            if from != to {
                *counts.entry((from.to_owned(), to.to_owned())).or_default() += 1;
            }
        }
        let of = if kind.is_empty() {
            "clients that no match fits".to_owned()
        } else {
            format!("clients with {kind}")
        };
        moves.extend(counts.into_iter().map(|((from, to), count)| Move {
            of: of.clone(),
            from,
            to,
            percent: f64::from(count) * 100.0 / f64::from(BUCKETS),
        }));
    }
    moves
}

fn pool(rules: &[(GrayRule, bool)], bucket: impl Fn(&str) -> u16) -> &str {
    let takes = |rule: &GrayRule| match rule.takes {
        Takes::Percent { buckets, .. } => bucket(&rule.salt) < buckets,
        Takes::Nobody(_) => false,
    };
    let first = rules.iter().find(|(rule, fits)| *fits && takes(rule));
    first.map_or(STABLE, |(rule, _)| &rule.pool)
}

/// Every bucket once, in an order of the salt's own.
fn shuffled(salt: &str) -> Vec<u16> {
    let digest = digest(&SHA256, salt.as_bytes());
    let seed = digest.as_ref().first_chunk().map_or(0, |head| u64::from_be_bytes(*head));
    let mut buckets: Vec<u16> = (0..BUCKETS).collect();
    buckets.shuffle(&mut SmallRng::seed_from_u64(seed));
    buckets
}

impl std::fmt::Display for Matcher {
    /// `platforms ios, app_version >=7.3.0`: what it asks; empty: nothing.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { platforms, app_version, regions, cidrs, devices } = self;
        let mut asks = Vec::new();
        let mut list = |key: &str, values: BTreeSet<String>| {
            if !values.is_empty() {
                asks.push(format!("{key} {}", values.into_iter().collect::<Vec<_>>().join("/")));
            }
        };
        list("platforms", platforms.iter().map(|platform| platform.name().to_owned()).collect());
        list("app_version", app_version.iter().map(ToString::to_string).collect());
        list("regions", regions.iter().cloned().collect());
        list("cidrs", cidrs.iter().map(ToString::to_string).collect());
        list("devices", devices.iter().cloned().collect());
        f.write_str(&asks.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse;

    fn policy(rules: &str) -> Policy {
        parse(&format!("version = 1\n{rules}")).expect("the tests' own")
    }

    fn rule(id: &str, pool: &str, rest: &str) -> String {
        format!("[[gray]]\nid = \"{id}\"\npool = \"{pool}\"\n{rest}\n")
    }

    fn moved(old: &str, new: &str) -> Vec<(String, String, String, f64)> {
        let diff = Diff::between(&policy(old), &policy(new));
        diff.moves.into_iter().map(|m| (m.of, m.from, m.to, m.percent)).collect()
    }

    #[test]
    fn a_share_is_exact_and_goes_where_it_is_told() {
        let nobody = "clients that no match fits".to_owned();
        let (stable, canary) = (STABLE.to_owned(), "canary".to_owned());
        let five = rule("c", "canary", "percent = 5");
        let more = rule("c", "canary", "percent = 25");
        assert_eq!(moved(&five, &more), [(nobody.clone(), stable.clone(), canary.clone(), 20.0)]);
        assert_eq!(moved(&more, &five), [(nobody.clone(), canary.clone(), stable.clone(), 20.0)]);
        assert_eq!(moved(&five, &five), []);
        let salted = rule("c", "canary", "percent = 5\nsalt = \"other\"");
        let there_and_back = moved(&five, &salted);
        assert_eq!(there_and_back.len(), 2, "another salt takes others: {there_and_back:?}");
        assert!((4.0..=5.0).contains(&there_and_back[0].3), "all but the few in both: {there_and_back:?}");
        let ios = rule("c", "canary", "percent = 5\nmatch.platforms = [\"ios\"]");
        assert_eq!(moved("", &ios), [("clients with platforms ios".to_owned(), stable, canary, 5.0)]);
    }

    #[test]
    fn every_part_that_is_another_is_named() {
        let old = rule("a", "canary", "percent = 5") + &rule("b", "next", "percent = 5");
        let new = rule("b", "next", "percent = 5\n[gray.guard]\nconnect_failures = 0.1")
            + &rule("n", "next", "users = [\"u\"]")
            + "[load]\nbound = 1\n[move]\nlost = 0.2\n[[home]]\nregion = \"eu\"\nusers = [\"x\"]";
        let diff = Diff::between(&policy(&old), &policy(&new));
        let told: Vec<_> = diff.rules.iter().map(|rule| (rule.rule_id.as_str(), rule.change)).collect();
        assert_eq!(told, [("b", "changed"), ("n", "added"), ("a", "removed")]);
        assert_eq!(
            (diff.rules[0].keys.as_slice(), diff.also.as_slice()),
            (&["guard"][..], &["home", "load", "move"][..])
        );
        assert_eq!(
            Diff::lines(&policy(&old), &policy(&new))[0],
            "rule b changed (guard): takes 5% now, 5% before"
        );
        let order = rule("b", "next", "percent = 5") + &rule("a", "canary", "percent = 5");
        assert_eq!(Diff::between(&policy(&old), &policy(&order)).also, ["order of rules"]);
    }
}
