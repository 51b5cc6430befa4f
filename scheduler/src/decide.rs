//! The decision: a pure function from the fleet, the policy and a request to a ranked list of gateways.
//!
//! ```text
//! home -> gray rule (pool) -> proximity tier -> load (two choices, bounded) -> ranked list
//! ```
//!
//! Whether the client is let in now is asked afterwards, of the pool decided on (`admission`).
//!
//! Time and randomness are arguments (the policy comes as it is at the time: [`Policy::at`]), nothing is allocated, and no lock is taken. The stages tell an [`Observer`] what
//! they do; for a plain decision that is [`Silent`] and costs nothing, for `:explain` it records. Home and pool follow
//! from policy and request, the tier from reported load and distances, so they are the same on every replica that has the same
//! distances ([`crate::locate`]); only the choice within a tier is random. A replica's own pending assignments move a decision only off gateways that they have filled.

mod gray;
mod load;
mod observe;
mod rank;
mod tiers;

pub mod explain;

#[cfg(test)]
mod tests;

use berth_proto::{limits::ENDPOINT_GATEWAYS, schedule::Reason};
use rand::Rng;
use thiserror::Error;

pub(crate) use self::gray::may_take;
pub use self::{
    gray::Verdict,
    load::{Dropped, MAX_FAILED},
    observe::{Observer, Silent, TierVerdict},
    rank::Domain,
    tiers::{Tier, TierKind},
};
use self::{load::Chooser, tiers::tiers};
use crate::{
    fleet::{Fleet, Group, STALE_AFTER_MS},
    locate::{Located, Near},
    policy::{Client, GrayRule, Policy, STABLE, WhenDown},
    transport::Transports,
};

/// Who asks.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The authenticated user.
    pub user_id: &'a str,
    /// What rules can match on.
    pub client: Client<'a>,
    /// The transports that would do.
    pub transports: Transports,
    /// Gateways the client could not reach; the first [`MAX_FAILED`] that are known count.
    pub failed: &'a [String],
    /// The regions around the client, nearest first, each once.
    pub near: &'a [Near<'a>],
    /// The pool, decided by an operator; none: by the policy.
    pub pool: Option<&'a str>,
}

impl<'a> Request<'a> {
    /// With what was found out about where the client is.
    #[must_use]
    pub fn located(self, located: &'a Located<'a>) -> Self {
        Self {
            client: Client { region: located.region, origin: located.origin, ..self.client },
            near: located.near.as_slice(),
            ..self
        }
    }
}

/// The gateways decided on, best first: indexes into the fleet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ranked {
    gateways: [u32; ENDPOINT_GATEWAYS],
    len: u8,
}

impl Ranked {
    /// As a slice, best first.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        &self.gateways[..usize::from(self.len)]
    }

    pub(crate) fn is_full(&self) -> bool {
        usize::from(self.len) == ENDPOINT_GATEWAYS
    }

    pub(crate) fn push(&mut self, gateway: u32) {
        self.gateways[usize::from(self.len)] = gateway;
        self.len += 1;
    }
}

/// Where a user should connect, and why.
#[derive(Debug, Clone)]
pub struct Decision<'a> {
    /// The policy decided on.
    pub policy_version: u64,
    /// The region the user belongs to; empty: none.
    pub home: &'a str,
    /// The gray rule that applied.
    pub rule: Option<&'a GrayRule>,
    /// Why this pool, or what was wrong with it.
    pub reason: Reason,
    /// The pool decided on.
    pub pool: &'a str,
    /// The home cannot take the user now: the first gateway is of another region.
    pub elsewhere: bool,
    /// The tier of the first gateway.
    pub tier: TierKind,
    /// Where to connect, best first; at least one.
    pub ranked: Ranked,
}

/// No gateway can take the user now.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "no gateway of pool {pool:?}{} can take a connection now: {assignable} of {known} known gateways are assignable",
    in_home(home)
)]
pub struct NoGateway {
    /// The pool the user belongs to.
    pub pool: String,
    /// The home that the user is to wait for; empty: any region would do.
    pub home: String,
    /// Gateways known in all pools.
    pub known: usize,
    /// Those that are ready, alive and not full.
    pub assignable: usize,
}

fn in_home(home: &str) -> String {
    match home {
        "" => String::new(),
        home => format!(" in the user's home region {home:?}, for which he is to wait,"),
    }
}

/// The pool that the policy sends a client to, if it has room.
pub(crate) fn pool<'a>(policy: &'a Policy, request: &Request<'_>) -> &'a str {
    gray::rule(policy, request, &mut Silent).map_or(STABLE, |(rule, _)| &rule.pool)
}

/// Decides where a user should connect. `now_ms` is of the clock that the fleet's times are of.
///
/// # Errors
/// When no gateway of the user's pool, nor of `stable`, can take a connection.
pub fn decide<'a>(
    fleet: &'a Fleet,
    policy: &'a Policy,
    request: &Request<'_>,
    now_ms: i64,
    rng: &mut impl Rng,
) -> Result<Decision<'a>, NoGateway> {
    decide_observed(fleet, policy, request, now_ms, rng, &mut Silent)
}

/// [`decide`], telling `observer` what each stage does.
///
/// # Errors
/// As [`decide`].
pub fn decide_observed<'a>(
    fleet: &'a Fleet,
    policy: &'a Policy,
    request: &Request<'_>,
    now_ms: i64,
    rng: &mut impl Rng,
    observer: &mut impl Observer,
) -> Result<Decision<'a>, NoGateway> {
    observer.admission(fleet.gateways.len(), fleet.candidates.len());
    let home = gray::home(policy, request.user_id);
    let waits = home.is_some_and(|home| home.when_down == WhenDown::Wait);
    let home = home.map_or("", |home| &home.region);
    observer.home(home);
    let applied = if request.pool.is_none() { gray::rule(policy, request, observer) } else { None };
    let (wanted, reason) = applied.map_or((STABLE, Reason::Default), |(rule, reason)| (&rule.pool, reason));
    let wanted = request.pool.unwrap_or(wanted);
    let found = choose(fleet, policy, request, Home { region: home, waits }, wanted, rng, observer);
    let Some(Found { pool, tier, ranked }) = found else {
        return Err(NoGateway {
            pool: wanted.to_owned(),
            home: if waits { home.to_owned() } else { String::new() },
            known: fleet.gateways.len(),
            assignable: fleet.candidates.len(),
        });
    };
    let first = fleet.gateway(ranked.as_slice()[0]);
    let old_load = first.old_load || now_ms - fleet.built_at_ms > STALE_AFTER_MS;
    let reason = match () {
        () if pool != wanted => Reason::Fallback,
        () if old_load => Reason::Stale,
        () => reason,
    };
    let rule = applied.map(|(rule, _)| rule);
    let elsewhere = !home.is_empty() && first.profile.region != home;
    Ok(Decision { policy_version: policy.version, home, rule, reason, pool, elsewhere, tier, ranked })
}

struct Found<'a> {
    pool: &'a str,
    tier: TierKind,
    ranked: Ranked,
}

/// Where the user belongs.
#[derive(Clone, Copy)]
struct Home<'a> {
    /// Empty: anywhere.
    region: &'a str,
    /// Nowhere else will do.
    waits: bool,
}

/// The wanted pool, then `stable`; gateways that the client could not reach only when nothing else is left of either.
fn choose<'a>(
    fleet: &'a Fleet,
    policy: &Policy,
    request: &Request<'_>,
    home: Home<'_>,
    wanted: &str,
    rng: &mut impl Rng,
    observer: &mut impl Observer,
) -> Option<Found<'a>> {
    let mut chooser = Chooser::new(fleet, request);
    let pools = [Some(wanted), (wanted != STABLE).then_some(STABLE)];
    let passes: &[bool] = if chooser.any_failed() { &[false, true] } else { &[false] };
    for allow_failed in passes {
        chooser.allow_failed = *allow_failed;
        for name in pools.into_iter().flatten() {
            let pool = fleet.pool(name);
            observer.pool(name, pool.map_or(0, Group::len), *allow_failed);
            let Some(pool) = pool else { continue };
            let tiers = tiers(fleet, pool, home.region, request);
            let tiers = if home.waits { tiers.of_home() } else { tiers.as_slice() };
            if let Some((first, tier)) = load::primary(&mut chooser, policy, tiers, rng, observer) {
                let home = fleet.region(pool, home.region).filter(|_| home.waits);
                let ranked = rank::rank(&mut chooser, home.unwrap_or(pool), tiers, first, rng, observer);
                return Some(Found { pool: &fleet.labels(pool).pool, tier, ranked });
            }
        }
    }
    None
}
