//! The fleet as decisions see it: an immutable snapshot, indexed by pool, region and zone.
//!
//! [`Table`] takes reports in and builds a new [`Fleet`] every [`SNAPSHOT_INTERVAL_MS`]; decisions read the newest one
//! without a lock. Only the pending counts move within a snapshot: they are what this replica itself has assigned.

mod build;
mod health;
mod load;
mod pending;
mod table;

#[cfg(test)]
mod tests;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use berth_proto::client::Endpoint;

use self::build::Layout;
pub use self::{
    health::{DEAD_AFTER_MS, FORGET_AFTER_MS, REPORT_INTERVAL_MS, STALE_AFTER_MS, TOGETHER_MS},
    load::{Dimension, MAX_UTILISATION, Measure, Strain, Usage, pressure},
    pending::{Pending, PendingCounts, Place},
    table::{MAX_GATEWAYS, ReportError, Table},
};
use crate::transport::Transports;

/// Between two snapshots, in milliseconds: a fifth of a report interval, so that it adds little to a report's age.
pub const SNAPSHOT_INTERVAL_MS: u64 = 100;

/// What a gateway is, as it says itself: a new one with each new boot or label.
#[derive(Debug)]
pub struct Profile {
    /// The gateway's id.
    pub id: Arc<str>,
    /// New with each start of the gateway.
    pub boot: u64,
    /// Its region; may be empty.
    pub region: String,
    /// Its zone within the region; may be empty.
    pub zone: String,
    /// Its pool.
    pub pool: String,
    /// Its software version.
    pub version: String,
    /// How clients reach it, one per transport, with the labels above filled in.
    pub endpoints: Vec<Endpoint>,
    /// The transports of the endpoints.
    pub transports: Transports,
    /// What this replica has assigned to it and no gateway has reported as used: it moves while snapshots stay.
    pending: AtomicU32,
}

impl Profile {
    /// What fleets are sorted by: groups are runs of neighbours.
    fn place(&self) -> [&str; 4] {
        [&self.pool, &self.region, &self.zone, &self.id]
    }
}

/// Whether a gateway may be assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It may.
    Assignable,
    /// It reports as many connections as it can hold.
    Full,
    /// It says it cannot serve (no logic), or offers no endpoint.
    NotReady,
    /// It is about to leave.
    Draining,
    /// Silent for [`STALE_AFTER_MS`].
    Stale,
    /// Silent for [`DEAD_AFTER_MS`].
    Dead,
}

impl State {
    /// Every state, for metrics that exist from the start.
    pub const ALL: [Self; 6] =
        [Self::Assignable, Self::Full, Self::NotReady, Self::Draining, Self::Stale, Self::Dead];

    /// Whether its connections are heard of: assignable, or full.
    #[must_use]
    pub fn serves(self) -> bool {
        matches!(self, Self::Assignable | Self::Full)
    }

    /// Its name in metrics and explanations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Assignable => "assignable",
            Self::Full => "full",
            Self::NotReady => "not_ready",
            Self::Draining => "draining",
            Self::Stale => "stale",
            Self::Dead => "dead",
        }
    }
}

/// A gateway in a snapshot.
#[derive(Debug)]
pub struct Gateway {
    /// What it is.
    pub profile: Arc<Profile>,
    /// Whether it may be assigned.
    pub state: State,
    /// Its load is old, but so many fell silent together that the silence is not believed.
    pub old_load: bool,
    /// Connections it can hold.
    pub capacity: u64,
    /// Connections it reported.
    pub connections: u64,
    /// What it counts for, in connections: those it has, or more where another dimension is nearer to its end, or where
    /// its last report is old.
    pub load: u64,
    /// Its capacity as far as slow start lets it count; above 0.
    pub weight: f64,
    /// Handshakes a second that it takes.
    pub handshakes_per_second: u64,
    /// Of those, its lease to this scheduler: clients a second that may be sent to it.
    pub admit_per_second: u64,
    /// When its last report came, on the snapshot's clock.
    pub reported_at_ms: i64,
    /// Its places in [`Fleet::pools`], [`Fleet::regions`] and [`Fleet::zones`].
    groups: [u32; 3],
}

impl Gateway {
    /// Assigned by this replica, and not yet seen by any gateway.
    #[must_use]
    pub fn pending(&self) -> u64 {
        u64::from(self.profile.pending.load(Ordering::Relaxed))
    }

    /// What its load adds to its tier's. One gateway, however overloaded, is not more of a tier than all it can hold: a hung
    /// worker would make the tier look full, and its mean hide who of the others is.
    #[must_use]
    pub fn tier_load(&self) -> u64 {
        self.load.min(self.capacity)
    }

    /// What is compared with the tier's mean, which is of the same loads.
    #[must_use]
    pub fn tier_score(&self) -> f64 {
        (self.tier_load() + self.pending()) as f64 / self.weight
    }

    /// What two gateways are compared on: (load + pending) / weight.
    #[must_use]
    pub fn score(&self) -> f64 {
        (self.load + self.pending()) as f64 / self.weight
    }

    /// Whether one more connection fits. Only connections run out: a gateway short of anything else is given less, not
    /// nothing.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.connections + self.pending() < self.capacity
    }
}

/// What gateways that serve (assignable or full) hold together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sums {
    /// Reported connections or CPU, the worse of each gateway in connections.
    pub used: u64,
    /// [`Gateway::tier_load`]: every dimension, slow to change, and no less with age.
    pub load: u64,
    /// Own pending assignments.
    pub pending: u64,
    /// Capacities.
    pub capacity: u64,
    /// Weights.
    pub weight: f64,
}

impl Sums {
    /// Without those of a part.
    #[must_use]
    pub fn minus(self, part: Self) -> Self {
        Self {
            used: self.used.saturating_sub(part.used),
            load: self.load.saturating_sub(part.load),
            pending: self.pending.saturating_sub(part.pending),
            capacity: self.capacity.saturating_sub(part.capacity),
            weight: (self.weight - part.weight).max(0.0),
        }
    }

    /// Reported load over capacity; the same on every replica that has the same reports, however long it has run. Without
    /// capacity: 1.
    #[must_use]
    pub fn utilisation(self) -> f64 {
        if self.capacity == 0 { 1.0 } else { self.used as f64 / self.capacity as f64 }
    }

    /// The mean of [`Gateway::tier_score`], weighted. Without weight: 0.
    #[must_use]
    pub fn mean_score(self) -> f64 {
        if self.weight > 0.0 { (self.load + self.pending) as f64 / self.weight } else { 0.0 }
    }
}

/// The gateways of a pool, of a region in it, or of a zone in that.
#[derive(Debug)]
pub struct Group {
    /// Its assignable gateways: a range of [`Fleet::candidates`].
    pub candidates: Range<u32>,
    /// Its regions or zones: a range of [`Fleet::regions`] or [`Fleet::zones`]; empty for a zone.
    pub children: Range<u32>,
    /// What any of its candidates offers.
    pub transports: Transports,
    /// Handshakes a second that its candidates take.
    pub handshakes_per_second: u64,
    /// What its candidates lease to this scheduler. A lease ends with the reports: who is silent is no candidate, unless so
    /// many are that it is not believed.
    pub admit_per_second: u64,
    first: u32,
    sums: Sums,
    pending: AtomicU64,
}

impl Group {
    /// How many candidates it has.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.candidates.end - self.candidates.start
    }

    /// Whether it has no candidate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    /// Any of its gateways, assignable or not: its labels are the group's.
    #[must_use]
    pub fn first_gateway(&self) -> u32 {
        self.first
    }

    /// Its sums, with what was assigned since the snapshot.
    #[must_use]
    pub fn sums(&self) -> Sums {
        Sums { pending: self.pending.load(Ordering::Relaxed), ..self.sums }
    }
}

/// A dimension over the gateways that serve.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DimensionCounts {
    /// It decides the load of so many gateways.
    pub decides: u64,
    /// The highest utilisation that any reports.
    pub most: f64,
}

/// An immutable snapshot of the fleet.
#[derive(Debug, Default)]
pub struct Fleet {
    /// When it was built.
    pub built_at_ms: i64,
    /// Everybody known, by pool, region, zone and id.
    pub gateways: Vec<Gateway>,
    /// Indexes of the assignable gateways, in the same order.
    pub candidates: Vec<u32>,
    /// Pools by name.
    pub pools: Vec<Group>,
    /// Regions by pool and name.
    pub regions: Vec<Group>,
    /// Zones by pool, region and name.
    pub zones: Vec<Group>,
    /// What each of the gateways last said of every dimension. Beside them, since decisions read only the sum of it.
    pub usages: Vec<Usage>,
    /// How far anything but connections counts for each.
    pub strains: Vec<Strain>,
    /// So many gateways fell silent together that their silence is not believed.
    pub distrusted: bool,
    layout: Arc<Layout>,
}

impl Fleet {
    /// The gateway at this index.
    ///
    /// # Panics
    /// When the index is not of this snapshot.
    #[must_use]
    pub fn gateway(&self, index: u32) -> &Gateway {
        &self.gateways[index as usize]
    }

    /// The index of a gateway.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<u32> {
        self.layout.by_id.get(id).copied()
    }

    /// The pool of this name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&Group> {
        self.child(&self.pools, &(0..self.pools.len() as u32), name, |profile| &profile.pool)
    }

    /// The region of this name in a pool.
    #[must_use]
    pub fn region(&self, pool: &Group, name: &str) -> Option<&Group> {
        self.child(&self.regions, &pool.children, name, |profile| &profile.region)
    }

    /// The zone of this name in a region.
    #[must_use]
    pub fn zone(&self, region: &Group, name: &str) -> Option<&Group> {
        self.child(&self.zones, &region.children, name, |profile| &profile.zone)
    }

    /// The pool, region and zone of a gateway.
    #[must_use]
    pub fn groups_of(&self, gateway: &Gateway) -> [&Group; 3] {
        let [pool, region, zone] = gateway.groups;
        [&self.pools[pool as usize], &self.regions[region as usize], &self.zones[zone as usize]]
    }

    /// The labels that all gateways of a group have.
    #[must_use]
    pub fn labels(&self, group: &Group) -> &Profile {
        &self.gateway(group.first).profile
    }

    /// Gateways in each state, in the order of [`State::ALL`].
    #[must_use]
    pub fn counts(&self) -> [u64; State::ALL.len()] {
        let mut counts = [0; State::ALL.len()];
        for gateway in &self.gateways {
            counts[gateway.state as usize] += 1;
        }
        counts
    }

    /// The dimension that decides a gateway's load.
    #[must_use]
    pub fn decides(&self, index: u32) -> Dimension {
        self.strains[index as usize].decides(&self.usages[index as usize])
    }

    /// How much a gateway's last report still says, from 1 to 0.
    #[must_use]
    pub fn freshness(&self, gateway: &Gateway) -> f64 {
        load::freshness(self.built_at_ms - gateway.reported_at_ms)
    }

    /// Of each dimension, in the order of [`Dimension::ALL`].
    #[must_use]
    pub fn dimensions(&self) -> [DimensionCounts; Dimension::ALL.len()] {
        let mut counts = [DimensionCounts::default(); Dimension::ALL.len()];
        let serving = (0..).zip(&self.gateways).filter(|(_, gateway)| gateway.state.serves());
        for (index, _) in serving {
            counts[self.decides(index) as usize].decides += 1;
            for (dimension, measure) in self.usages[index as usize].measures() {
                let most = &mut counts[dimension as usize].most;
                *most = most.max(measure.utilisation().unwrap_or(0.0));
            }
        }
        counts
    }

    fn child<'a>(
        &self,
        groups: &'a [Group],
        range: &Range<u32>,
        name: &str,
        label: impl Fn(&Profile) -> &str,
    ) -> Option<&'a Group> {
        let part = &groups[range.start as usize..range.end as usize];
        let found = part.binary_search_by(|group| label(self.labels(group)).cmp(name)).ok()?;
        Some(&part[found])
    }
}
