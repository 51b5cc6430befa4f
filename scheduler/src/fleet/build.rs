//! Builds a snapshot from the table: one pass over gateways that are already in the order of their groups.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Fleet, Gateway, Group, Profile, State, Sums,
    health::{DEAD_AFTER_MS, Distrust},
    table::{Entry, Place},
};
use crate::transport::Transports;

/// A gateway that has just started counts for a tenth of its capacity: enough to be tried, too little to be flooded.
const SLOW_START_FLOOR: f64 = 0.1;

pub(super) fn build(
    entries: &BTreeMap<Place, Entry>,
    now_ms: i64,
    slow_start_ms: i64,
    distrust: Option<Distrust>,
) -> Fleet {
    let mut fleet = Fleet {
        built_at_ms: now_ms,
        gateways: Vec::with_capacity(entries.len()),
        by_id: HashMap::with_capacity(entries.len()),
        distrusted: distrust.is_some(),
        ..Fleet::default()
    };
    for (index, (Place(profile), entry)) in (0..).zip(entries) {
        let disbelieved =
            entry.silent(now_ms) && distrust.is_some_and(|distrust| distrust.covers(entry.reported_at_ms));
        let groups = open_groups(&mut fleet, index, profile);
        let gateway = Gateway {
            profile: Arc::clone(profile),
            state: state(profile, entry, now_ms, disbelieved),
            old_load: disbelieved,
            capacity: entry.capacity,
            connections: entry.connections,
            weight: entry.capacity.max(1) as f64 * ramp(entry, now_ms, slow_start_ms),
            reported_at_ms: entry.reported_at_ms,
            pending: Arc::clone(&entry.pending),
            groups,
        };
        add_to_groups(&mut fleet, index, &gateway);
        fleet.by_id.insert(Arc::clone(&profile.id), index);
        fleet.gateways.push(gateway);
    }
    fleet
}

fn state(profile: &Profile, entry: &Entry, now_ms: i64, disbelieved: bool) -> State {
    if entry.draining {
        State::Draining
    } else if now_ms - entry.reported_at_ms > DEAD_AFTER_MS && !disbelieved {
        State::Dead
    } else if entry.silent(now_ms) && !disbelieved {
        State::Stale
    } else if !entry.ready || profile.transports == Transports::NONE {
        State::NotReady
    } else if entry.connections >= entry.capacity {
        State::Full
    } else {
        State::Assignable
    }
}

/// How much of its capacity a gateway counts for: grows with its uptime, in a straight line.
fn ramp(entry: &Entry, now_ms: i64, slow_start_ms: i64) -> f64 {
    if slow_start_ms <= 0 {
        return 1.0;
    }
    let since_report = (now_ms - entry.reported_at_ms).max(0) as f64;
    let uptime_ms = entry.uptime_ms as f64 + since_report;
    (uptime_ms / slow_start_ms as f64).clamp(SLOW_START_FLOOR, 1.0)
}

/// The pool, region and zone of the next gateway: those of the one before, or new ones.
fn open_groups(fleet: &mut Fleet, index: u32, profile: &Profile) -> [u32; 3] {
    let last = fleet.gateways.last().map(|gateway| &gateway.profile);
    let same_pool = last.is_some_and(|last| last.pool == profile.pool);
    let same_region = same_pool && last.is_some_and(|last| last.region == profile.region);
    let same_zone = same_region && last.is_some_and(|last| last.zone == profile.zone);
    let start = fleet.candidates.len() as u32;
    if !same_pool {
        let children = fleet.regions.len() as u32;
        fleet.pools.push(empty_group(index, start, children));
    }
    if !same_region {
        let children = fleet.zones.len() as u32;
        fleet.regions.push(empty_group(index, start, children));
        fleet.pools.last_mut().expect("a pool is open").children.end = fleet.regions.len() as u32;
    }
    if !same_zone {
        fleet.zones.push(empty_group(index, start, 0));
        fleet.regions.last_mut().expect("a region is open").children.end = fleet.zones.len() as u32;
    }
    [fleet.pools.len() as u32 - 1, fleet.regions.len() as u32 - 1, fleet.zones.len() as u32 - 1]
}

fn empty_group(first: u32, candidates: u32, children: u32) -> Group {
    Group {
        candidates: candidates..candidates,
        children: children..children,
        transports: Transports::NONE,
        first,
        sums: Sums::default(),
        pending: AtomicU64::new(0),
    }
}

fn add_to_groups(fleet: &mut Fleet, index: u32, gateway: &Gateway) {
    let assignable = gateway.state == State::Assignable;
    if assignable {
        fleet.candidates.push(index);
    }
    let serves = assignable || gateway.state == State::Full;
    let end = fleet.candidates.len() as u32;
    let pool = fleet.pools.last_mut();
    let region = fleet.regions.last_mut();
    let zone = fleet.zones.last_mut();
    for group in [pool, region, zone].into_iter().flatten() {
        group.candidates.end = end;
        if assignable {
            group.transports = group.transports.with(gateway.profile.transports);
        }
        if serves {
            group.sums.connections += gateway.connections;
            group.sums.capacity += gateway.capacity;
            group.sums.weight += gateway.weight;
            *group.pending.get_mut() += u64::from(gateway.pending.load(Ordering::Relaxed));
        }
    }
}
