//! Metrics of where clients are.

use berth_proto::metric::Registry;
use metrics::{Counter, Gauge};

use crate::locate::{Cast, RegionBy};

/// What became of a file of the address database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GeoipLoad {
    /// In force now.
    Taken,
    /// No database, or a damaged one.
    Broken,
    /// The file cannot be read.
    Unreadable,
}

/// Every label, at its variant's number.
const LOADS: [&str; 3] = ["taken", "broken", "unreadable"];

/// What became of a client's measurement as a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Vote {
    /// It counts.
    Taken,
    /// There was no room for its network or region.
    Full,
    /// The user votes in as many networks as he may.
    Spent,
    /// The client's address says nothing about where it is.
    Unplaced,
}

/// Every label, at its variant's number.
const VOTES: [&str; 4] = ["taken", "full", "spent", "unplaced"];

impl From<Cast> for Vote {
    fn from(cast: Cast) -> Self {
        match cast {
            Cast::Taken => Self::Taken,
            Cast::Full => Self::Full,
            Cast::Spent => Self::Spent,
        }
    }
}

const LOCATED: [&str; 4] = ["hint", "place", "nothing", "gateway"];
const LOOKUPS: [&str; 2] = ["not_found", "found"];

/// Where clients are, and what tells it.
pub struct Proximity {
    /// `berth_scheduler_geoip_build_time_seconds`: 0 without a database.
    pub built_at: Gauge,
    /// `berth_scheduler_rtt_networks`: networks that have votes, or had.
    pub networks: Gauge,
    /// `berth_scheduler_geoip_file_refused`: 1 while the file is not what is in force.
    file_refused: Gauge,
    /// `berth_scheduler_geoip_loads_total{outcome}`.
    loads: [Counter; LOADS.len()],
    /// `berth_scheduler_geoip_lookups_total{outcome}`.
    lookups: [Counter; LOOKUPS.len()],
    /// `berth_scheduler_located_total{by}`.
    located: [Counter; LOCATED.len()],
    /// `berth_scheduler_rtt_votes_total{outcome}`.
    votes: [Counter; VOTES.len()],
}

impl Proximity {
    pub fn register(registry: Registry<'static>) -> Self {
        let gauge = |name, help| registry.gauge(name, help, &[]);
        Self {
            built_at: gauge(
                "berth_scheduler_geoip_build_time_seconds",
                "When the address database in force was built, since the Unix epoch; 0 without one.",
            ),
            networks: gauge("berth_scheduler_rtt_networks", "Networks whose clients measured round trips."),
            file_refused: gauge(
                "berth_scheduler_geoip_file_refused",
                "1 while the address database's file is not what is in force.",
            ),
            loads: LOADS.map(|outcome| {
                let help = "Files of the address database read again, by what became of them.";
                registry.counter("berth_scheduler_geoip_loads_total", help, &[("outcome", outcome)])
            }),
            lookups: LOOKUPS.map(|outcome| {
                let help = "Addresses looked up in the database.";
                registry.counter("berth_scheduler_geoip_lookups_total", help, &[("outcome", outcome)])
            }),
            located: LOCATED.map(|by| {
                let help = "Clients by what told their region.";
                registry.counter("berth_scheduler_located_total", help, &[("by", by)])
            }),
            votes: VOTES.map(|outcome| {
                let help = "Round trips that clients measured, by whether they count for their network.";
                registry.counter("berth_scheduler_rtt_votes_total", help, &[("outcome", outcome)])
            }),
        }
    }

    /// The file was read again.
    pub fn load(&self, outcome: GeoipLoad) {
        self.loads[outcome as usize].increment(1);
        self.file_refused.set(if outcome == GeoipLoad::Taken { 0.0 } else { 1.0 });
    }

    /// An address was looked up.
    pub fn lookup(&self, found: bool) {
        self.lookups[usize::from(found)].increment(1);
    }

    /// A client was located.
    pub fn located(&self, by: RegionBy) {
        let index = match by {
            RegionBy::Hint => 0,
            RegionBy::Place(_) => 1,
            RegionBy::Nothing => 2,
            RegionBy::Gateway => 3,
        };
        self.located[index].increment(1);
    }

    /// A client's measurement was taken as a vote, or not.
    pub fn vote(&self, outcome: Vote) {
        self.votes[outcome as usize].increment(1);
    }
}
