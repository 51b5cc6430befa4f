//! Where a client is, as far as that can be known, and how far each region is from there. Resolved before the decision, which
//! gets it with the request.
//!
//! The client's region is the first of these that there is:
//!
//! 1. the client's hint, if a gateway of that region is known: the client may know better than its address (a VPN, roaming), and a
//!    false hint sends nobody but himself to a far place;
//! 2. the first `[[proximity.place]]` of the policy that matches the address and what the address database says of it;
//! 3. the hint, though no gateway is there: distances from it may be known;
//! 4. the region of the gateway that it came to, which asks for it.
//!
//! Which gateways are known differs between replicas for a moment, so gray rules (`match.regions`) ask another one, which does not depend
//! on it ([`Located::origin`]): the hint, whatever it is, and without one the place.
//!
//! The distance to a region is the first of: what this client measured; what clients of its network measured ([`Votes`]), mixed with
//! geography by how many they are; geography alone ([`crate::policy::Proximity`]).

mod database;
mod locator;
mod network;
mod seen;
mod votes;
pub(crate) mod watch;

// Neither this crate nor that of the end-to-end tests may depend on the other: one file serves both.
#[cfg(test)]
#[path = "../../tests/src/mmdb.rs"]
pub(crate) mod mmdb;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    decide::Request,
    fleet::Fleet,
    policy::{Geography, Policy},
};

pub(crate) use self::locator::Locator;
pub use self::{
    database::{Database, DatabaseError, Locality, MAX_FILE},
    network::Network,
    seen::ClientSeen,
    votes::{Cast, LIFETIME_S, MAX_MS, MIN_MS, NETWORKS, Polled, Tally, VOTES, Votes},
    watch::LoadError,
};

/// Regions whose distance is told to the decision: a fleet has fewer, and the decision looks at the first few of them.
pub const MAX_NEAR: usize = 32;

/// Votes, all fresh, from which on they count at all: below, geography rules alone.
pub const QUORUM: u32 = 3;

/// Votes, all fresh, from which on they alone count.
pub const SETTLED: u32 = 12;

/// What a client says, and what is seen of it.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// Its `region` hint; may be empty.
    pub hint: &'a str,
    /// The region of the gateway that it came to, if it came to one; may be empty.
    pub came_to: &'a str,
    /// Its address.
    pub ip: Option<IpAddr>,
    /// Round trips it measured, by gateway id, in milliseconds.
    pub rtt_ms: &'a BTreeMap<String, u32>,
}

impl<'a> Claim<'a> {
    /// What a request says before it was located: its region is the hint.
    #[must_use]
    pub fn of(request: &Request<'a>, rtt_ms: &'a BTreeMap<String, u32>) -> Self {
        Self { hint: request.client.region, came_to: "", ip: request.client.ip, rtt_ms }
    }
}

/// What the client's region was told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegionBy {
    /// The client's hint.
    Hint,
    /// The policy's place of this index.
    Place(usize),
    /// The gateway that it came to.
    Gateway,
    /// Nothing: it is not known.
    Nothing,
}

/// What a distance was told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DistanceBy {
    /// This client's own measurement.
    Measured,
    /// Measurements of its network, with geography or without.
    Votes,
    /// A `[[proximity.distance]]` of the policy.
    Distance,
    /// The great circle between two `[[proximity.region]]` of the policy.
    Coordinates,
}

impl DistanceBy {
    /// Its name in explanations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Votes => "votes",
            Self::Distance => "distance",
            Self::Coordinates => "coordinates",
        }
    }
}

/// A region and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Near<'a> {
    /// Its name.
    pub region: &'a str,
    /// The round trip, in milliseconds.
    pub ms: u32,
    /// What told it.
    pub by: DistanceBy,
}

impl Near<'_> {
    /// At equal distances by name, so that replicas agree.
    fn order(&self) -> (u32, &str) {
        (self.ms, self.region)
    }
}

/// The regions whose distance is known, nearest first; at most [`MAX_NEAR`].
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    regions: [Near<'a>; MAX_NEAR],
    len: usize,
}

impl<'a> Surroundings<'a> {
    /// Knows nothing.
    #[must_use]
    pub fn unknown() -> Self {
        Self { regions: [Near { region: "", ms: 0, by: DistanceBy::Measured }; MAX_NEAR], len: 0 }
    }

    /// Nearest first.
    #[must_use]
    pub fn as_slice(&self) -> &[Near<'a>] {
        &self.regions[..self.len]
    }

    fn knows(&self, region: &str) -> bool {
        self.as_slice().iter().any(|near| near.region == region)
    }

    /// Puts a region in its place; when there are too many, the farthest falls off.
    fn insert(&mut self, new: Near<'a>) {
        let place = self.as_slice().partition_point(|near| near.order() < new.order());
        if place == MAX_NEAR {
            return;
        }
        self.len = (self.len + 1).min(MAX_NEAR);
        self.regions.copy_within(place..self.len - 1, place + 1);
        self.regions[place] = new;
    }

    /// Takes a measurement of a region in, if it is the nearest of that region.
    fn measured(&mut self, region: &'a str, ms: u32) {
        if let Some(known) = self.as_slice().iter().position(|near| near.region == region) {
            if self.regions[known].ms <= ms {
                return;
            }
            self.regions.copy_within(known + 1..self.len, known);
            self.len -= 1;
        }
        self.insert(Near { region, ms, by: DistanceBy::Measured });
    }
}

/// Where a client is thought to be.
#[derive(Debug, Clone, Copy)]
pub struct Located<'a> {
    /// Its region; empty: not known.
    pub region: &'a str,
    /// What told it.
    pub by: RegionBy,
    /// What gray rules ask: the hint, or the policy's place of the address; empty: neither.
    pub origin: &'a str,
    /// What the address database says of its address; none: nothing, or there is no database or address.
    pub locality: Option<Locality>,
    /// Whose measurements it shares; none: its address says nothing about where it is.
    pub network: Option<Network>,
    /// The regions around it.
    pub near: Surroundings<'a>,
}

/// Locates a client. `now_s` is of the clock that the votes were cast by.
#[must_use]
pub fn locate<'a>(
    fleet: &'a Fleet,
    policy: &'a Policy,
    database: Option<&Database>,
    votes: &Votes,
    claim: &Claim<'a>,
    now_s: u32,
) -> Located<'a> {
    let locality = claim.ip.and_then(|ip| database?.find(ip));
    let network = claim.ip.and_then(|ip| Network::of(ip, locality));
    let (region, by, origin) = region(fleet, policy, claim, locality);
    let mut near = measured(fleet, claim.rtt_ms);
    let from = policy.proximity.from(region);
    let polled = network.as_ref().and_then(|network| votes.polled(network, now_s));
    if from.is_some() || polled.is_some() {
        for group in &fleet.regions {
            let name = fleet.labels(group).region.as_str();
            if name.is_empty() || near.knows(name) {
                continue;
            }
            let geography = from.and_then(|from| from.to(name));
            let tally = polled.as_ref().and_then(|polled| polled.tally(name));
            if let Some((ms, by)) = distance(geography, tally) {
                near.insert(Near { region: name, ms, by });
            }
        }
    }
    Located { region, by, origin, locality, network, near }
}

/// The region with what told it, and the origin.
fn region<'a>(
    fleet: &Fleet,
    policy: &'a Policy,
    claim: &Claim<'a>,
    locality: Option<Locality>,
) -> (&'a str, RegionBy, &'a str) {
    let exists = || fleet.pools.iter().any(|pool| fleet.region(pool, claim.hint).is_some());
    if !claim.hint.is_empty() && exists() {
        return (claim.hint, RegionBy::Hint, claim.hint);
    }
    match claim.ip.and_then(|ip| policy.proximity.place(ip, locality.unwrap_or_default())) {
        Some((index, place)) => {
            (place, RegionBy::Place(index), if claim.hint.is_empty() { place } else { claim.hint })
        }
        None if claim.hint.is_empty() && !claim.came_to.is_empty() => (claim.came_to, RegionBy::Gateway, ""),
        None if claim.hint.is_empty() => ("", RegionBy::Nothing, ""),
        None => (claim.hint, RegionBy::Hint, claim.hint),
    }
}

/// The lowest round trip to any gateway of each region that the client measured.
#[must_use]
pub fn measured<'a>(fleet: &'a Fleet, rtt_ms: &BTreeMap<String, u32>) -> Surroundings<'a> {
    let mut near = Surroundings::unknown();
    for (id, ms) in rtt_ms {
        let Some(index) = fleet.find(id) else { continue };
        let region = fleet.gateway(index).profile.region.as_str();
        if !region.is_empty() {
            near.measured(region, *ms);
        }
    }
    near
}

/// Geography below [`QUORUM`], the median from [`SETTLED`] on, and between them on the straight line from one to the other.
fn distance(geography: Option<Geography>, tally: Option<Tally>) -> Option<(u32, DistanceBy)> {
    let tally = tally.filter(|tally| tally.weight >= u64::from(QUORUM * LIFETIME_S));
    match (geography, tally) {
        (None, None) => None,
        (Some(Geography { ms, by }), None) => Some((ms, by)),
        (None, Some(tally)) => Some((tally.ms, DistanceBy::Votes)),
        (Some(geography), Some(tally)) => {
            let span = u64::from((SETTLED - QUORUM) * LIFETIME_S);
            let above = (tally.weight - u64::from(QUORUM * LIFETIME_S)).min(span);
            let mixed = u64::from(tally.ms) * above + u64::from(geography.ms) * (span - above);
            Some((u32::try_from(mixed / span).unwrap_or(u32::MAX), DistanceBy::Votes))
        }
    }
}
