//! Gray rules: whom each sends to its pool, by which steps that changes, and what stops it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::{self, Write},
    sync::Arc,
};

use berth_proto::bucket::threshold;

use super::{Matcher, sha256_hex};

/// Sends some users to a pool.
#[derive(Debug, Clone)]
pub struct GrayRule {
    /// Its name in decisions.
    pub id: String,
    /// Where its users go.
    pub pool: String,
    /// Always in, whatever `matcher` says.
    pub users: HashSet<String>,
    /// Of those that match, 0 to 100; before the ramp's first step, where there is a ramp.
    pub percent: f64,
    /// By time.
    pub ramp: Vec<Step>,
    /// Of the buckets.
    pub salt: String,
    /// Whom the percentage is taken from.
    pub matcher: Matcher,
    /// What its pool must keep to.
    pub guard: Option<Guard>,
    /// SHA-256 of all of the above, in hex: a stop is of one definition of a rule.
    pub hash: String,
    /// What it takes at the time the policy was made for: see [`super::Policy::at`].
    pub takes: Takes,
}

/// From a time on, another percentage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// 0 to 100.
    pub percent: f64,
}

/// Limits on what a rule's pool measures. Shares are above those of `stable` in the same window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guard {
    /// Of connections that ended before their welcome, 0 to 1.
    pub connect_failures: Option<f64>,
    /// Of sessions that ended as none should, 0 to 1.
    pub abnormal_closes: Option<f64>,
    /// Of the time from accept to welcome, as a multiple of `stable`'s.
    pub handshake_p99: Option<f64>,
    /// How far back is looked, in seconds.
    pub window_seconds: u32,
    /// Below so many in the window nothing is said of a limit.
    pub min_handshakes: u32,
}

/// Whom a rule takes by now.
#[derive(Debug, Clone, PartialEq)]
pub enum Takes {
    /// Those it names, and of those that match this much.
    Percent {
        /// 0 to 100.
        percent: f64,
        /// The same in buckets: those of a lower number are in.
        buckets: u16,
    },
    /// Nobody, not even those it names.
    Nobody(Arc<Stop>),
}

impl Takes {
    /// Those that match, by percentage.
    #[must_use]
    pub fn percent(percent: f64) -> Self {
        Self::Percent { percent, buckets: threshold(percent) }
    }
}

impl fmt::Display for Takes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent { percent, .. } => write!(f, "{percent}%"),
            Self::Nobody(_) => f.write_str("nobody"),
        }
    }
}

/// Why a rule takes nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// What was measured.
    pub reason: String,
    /// Who stopped it: the guard, or a name.
    pub by: String,
    /// Since when, in milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// What was stopped, by the rule's definition: [`GrayRule::hash`], its id among it. A definition that comes again is still stopped.
pub type Stops = HashMap<String, Arc<Stop>>;

impl GrayRule {
    /// A rule that takes a percentage of everybody.
    #[must_use]
    pub fn splitting(id: &str, pool: &str, percent: f64) -> Self {
        let mut rule = Self {
            id: id.to_owned(),
            pool: pool.to_owned(),
            users: HashSet::new(),
            percent,
            ramp: Vec::new(),
            salt: id.to_owned(),
            matcher: Matcher::default(),
            guard: None,
            hash: String::new(),
            takes: Takes::percent(percent),
        };
        rule.hash = rule.definition_hash();
        rule
    }

    /// What it takes at a time, unless it was stopped as it is now.
    #[must_use]
    pub fn takes_at(&self, wall_ms: i64, stops: &Stops) -> Takes {
        match stops.get(&self.hash) {
            Some(stop) => Takes::Nobody(Arc::clone(stop)),
            None => Takes::percent(self.percent_at(wall_ms)),
        }
    }

    /// What its ramp says of a time.
    #[must_use]
    pub fn percent_at(&self, wall_ms: i64) -> f64 {
        let passed = self.ramp.partition_point(|step| step.at_ms <= wall_ms);
        passed.checked_sub(1).map_or(self.percent, |last| self.ramp[last].percent)
    }

    /// The ramp's next step after a time.
    #[must_use]
    pub fn next_step(&self, wall_ms: i64) -> Option<Step> {
        self.ramp.get(self.ramp.partition_point(|step| step.at_ms <= wall_ms)).copied()
    }

    /// Why it takes nobody, if it is stopped.
    #[must_use]
    pub fn stop(&self) -> Option<&Arc<Stop>> {
        match &self.takes {
            Takes::Nobody(stop) => Some(stop),
            Takes::Percent { .. } => None,
        }
    }

    /// Whether it sends anybody to its pool now.
    #[must_use]
    pub fn sends(&self) -> bool {
        match &self.takes {
            Takes::Percent { buckets, .. } => *buckets > 0 || !self.users.is_empty(),
            Takes::Nobody(_) => false,
        }
    }

    /// What [`GrayRule::hash`] is made of: every part in an order of its own, so that another order in the text, a comment or
    /// another release of a library makes no other rule of it.
    pub(super) fn definition_hash(&self) -> String {
        let Self { id, pool, users, percent, ramp, salt, matcher, guard, hash: _, takes: _ } = self;
        let Matcher { platforms, app_version, regions, cidrs, devices } = matcher;
        let mut text = format!("{id:?} {pool:?} {salt:?} {percent}");
        let mut list = |name: &str, parts: BTreeSet<String>| write!(text, " {name}{parts:?}");
        let written = [
            list("users", users.iter().cloned().collect()),
            list("platforms", platforms.iter().map(|platform| platform.name().to_owned()).collect()),
            list("version", app_version.iter().map(ToString::to_string).collect()),
            list("regions", regions.iter().cloned().collect()),
            list("cidrs", cidrs.iter().map(ToString::to_string).collect()),
            list("devices", devices.iter().cloned().collect()),
            list("ramp", ramp.iter().map(|step| format!("{:020} {}", step.at_ms, step.percent)).collect()),
        ];
        debug_assert!(written.iter().all(Result::is_ok), "a String grows");
        if let Some(guard) = guard {
            let limits = [guard.connect_failures, guard.abnormal_closes, guard.handshake_p99];
            for limit in limits.map(|limit| limit.unwrap_or(-1.0)) {
                text.push_str(&format!(" {limit}"));
            }
            text.push_str(&format!(" {} {}", guard.window_seconds, guard.min_handshakes));
        }
        sha256_hex(&text)
    }
}
