//! Home and gray rule: what follows from the policy, at its time, and the user alone.

use berth_proto::{bucket::bucket, schedule::Reason};

use super::{Observer, Request};
use crate::policy::{Client, GrayRule, HOME_SALT, Home, Policy, STABLE, Takes};

/// What a gray rule said of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// It names the user.
    Named,
    /// It takes all that match.
    All,
    /// It takes the user's bucket.
    In {
        /// The bucket.
        bucket: u16,
    },
    /// The client does not match.
    Mismatch {
        /// The key of `match` that does not hold.
        key: &'static str,
    },
    /// It takes nobody by percentage.
    Nobody,
    /// It was stopped: it takes nobody at all.
    Stopped,
    /// It does not take the user's bucket.
    Out {
        /// The bucket.
        bucket: u16,
    },
}

impl Verdict {
    /// The reason of a decision that the rule makes; none: the rule does not apply.
    #[must_use]
    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::Named | Self::All => Some(Reason::TargetingMatch),
            Self::In { .. } => Some(Reason::Split),
            Self::Mismatch { .. } | Self::Nobody | Self::Stopped | Self::Out { .. } => None,
        }
    }
}

/// The home of a user; none: he has no home.
pub(super) fn home<'a>(policy: &'a Policy, user_id: &str) -> Option<&'a Home> {
    let mut hashed = None;
    let mut holds = |buckets: &std::ops::Range<u16>| {
        !buckets.is_empty() && buckets.contains(hashed.get_or_insert_with(|| bucket(HOME_SALT, user_id)))
    };
    let mut homes = policy.homes.iter();
    homes.find(|home| home.users.contains(user_id) || holds(&home.buckets))
}

/// The first rule that applies, with its reason.
pub(super) fn rule<'a>(
    policy: &'a Policy,
    request: &Request<'_>,
    observer: &mut impl Observer,
) -> Option<(&'a GrayRule, Reason)> {
    policy.gray.iter().find_map(|rule| {
        let verdict = verdict(rule, request);
        observer.rule(rule, verdict);
        verdict.reason().map(|reason| (rule, reason))
    })
}

/// Whether the policy would send the user to that pool had he named one of the regions that its rules ask for: which one he named
/// himself is known only when he asks for a place.
pub(crate) fn may_take(policy: &Policy, request: &Request<'_>, pool: &str) -> bool {
    let own = policy.gray.iter().filter(|rule| rule.pool == pool);
    let mut named: Vec<&String> = own.flat_map(|rule| &rule.matcher.regions).collect();
    for rule in &policy.gray {
        if named.is_empty() {
            return false;
        }
        let asked = &rule.matcher.regions;
        // In any of its regions it says the same, so that one hash for each rule is enough.
        let origin = asked.first().map_or("", String::as_str);
        let client = Client { origin, ..request.client.clone() };
        let verdict = verdict(rule, &Request { client, ..*request });
        if verdict.reason().is_none() {
            continue;
        }
        let takes = |region: &String| asked.is_empty() || verdict == Verdict::Named || asked.contains(region);
        if rule.pool == pool && named.iter().any(|region| takes(region)) {
            return true;
        }
        named.retain(|region| !takes(region));
    }
    pool == STABLE && !named.is_empty()
}

/// The hash is the dear part (a SHA-256), so it comes last.
fn verdict(rule: &GrayRule, request: &Request<'_>) -> Verdict {
    let Takes::Percent { percent, buckets } = rule.takes else { return Verdict::Stopped };
    if rule.users.contains(request.user_id) {
        return Verdict::Named;
    }
    if let Some(key) = rule.matcher.mismatch(&request.client) {
        return Verdict::Mismatch { key };
    }
    if percent >= 100.0 {
        return Verdict::All;
    }
    if buckets == 0 {
        return Verdict::Nobody;
    }
    let bucket = bucket(&rule.salt, request.user_id);
    if bucket < buckets { Verdict::In { bucket } } else { Verdict::Out { bucket } }
}
