//! Builds a snapshot from the table: one pass over gateways that are already in the order of their groups.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, atomic::AtomicU64},
};

use super::{
    Fleet, Gateway, Group, Profile, State, Sums,
    health::{DEAD_AFTER_MS, Distrust},
    load::aged,
    table::{Entry, Load},
};
use crate::transport::Transports;

/// A gateway that has just started counts for a tenth of its capacity: enough to be tried, too little to be flooded.
const SLOW_START_FLOOR: f64 = 0.1;

/// How the gateways fall into groups: what snapshots share until a gateway comes, goes or changes its labels.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub by_id: HashMap<Arc<str>, u32>,
    pools: Vec<Shape>,
    regions: Vec<Shape>,
    zones: Vec<Shape>,
    last: Option<Arc<Profile>>,
}

/// A group's first gateway and its children.
#[derive(Debug)]
struct Shape {
    first: u32,
    children: Range<u32>,
}

impl Layout {
    /// Adds the next gateway in the order of groups, and says which pool, region and zone it is in.
    pub fn add(&mut self, index: u32, profile: &Arc<Profile>) -> [u32; 3] {
        let last = self.last.replace(Arc::clone(profile));
        let [pool, region, zone, _] = profile.place();
        let [last_pool, last_region, last_zone] = match &last {
            Some(last) => {
                let [pool, region, zone, _] = last.place();
                [Some(pool), Some(region), Some(zone)]
            }
            None => [None; 3],
        };
        let same_pool = last_pool == Some(pool);
        let same_region = same_pool && last_region == Some(region);
        let same_zone = same_region && last_zone == Some(zone);
        let (regions, zones) = (self.regions.len() as u32, self.zones.len() as u32);
        if !same_pool {
            self.pools.push(Shape { first: index, children: regions..regions });
        }
        if !same_region {
            self.regions.push(Shape { first: index, children: zones..zones });
            self.pools.last_mut().expect("a pool is open").children.end += 1;
        }
        if !same_zone {
            self.zones.push(Shape { first: index, children: 0..0 });
            self.regions.last_mut().expect("a region is open").children.end += 1;
        }
        self.by_id.insert(Arc::clone(&profile.id), index);
        [self.pools.len() as u32 - 1, self.regions.len() as u32 - 1, self.zones.len() as u32 - 1]
    }
}

/// Builds the snapshot of entries that are in the order of their layout.
pub(super) fn build(
    layout: &Arc<Layout>,
    entries: &[Entry],
    now_ms: i64,
    slow_start_ms: i64,
    distrust: Option<Distrust>,
) -> Fleet {
    let empty = |shapes: &[Shape]| shapes.iter().map(empty_group).collect();
    let mut fleet = Fleet {
        built_at_ms: now_ms,
        gateways: Vec::with_capacity(entries.len()),
        candidates: Vec::with_capacity(entries.len()),
        pools: empty(&layout.pools),
        regions: empty(&layout.regions),
        zones: empty(&layout.zones),
        usages: Vec::with_capacity(entries.len()),
        strains: Vec::with_capacity(entries.len()),
        distrusted: distrust.is_some(),
        layout: Arc::clone(layout),
    };
    let believed = |load: &Load| {
        !load.silent(now_ms) || !distrust.is_some_and(|distrust| distrust.covers(load.reported_at_ms))
    };
    let known = known(layout.pools.len(), entries, now_ms, &believed);
    let strains = strains(layout.pools.len(), entries, now_ms);
    for (index, Entry { profile, groups, load }) in (0..).zip(entries) {
        let disbelieved = !believed(load);
        let connections = load.usage.connections();
        let counts = match &strains {
            Some(strains) if !load.tells_strain => load.as_strained(strains[groups[0] as usize].mean()),
            _ => load.load,
        };
        let gateway = Gateway {
            profile: Arc::clone(profile),
            state: state(profile, load, now_ms, disbelieved),
            old_load: disbelieved,
            capacity: connections.capacity,
            connections: connections.used,
            load: match &known {
                None => counts,
                Some(known) => {
                    let mean = known[groups[0] as usize].mean(connections.capacity);
                    aged(counts, mean, load.freshness(now_ms))
                }
            },
            weight: connections.capacity.max(1) as f64 * ramp(load, now_ms, slow_start_ms),
            handshakes_per_second: load.handshakes_per_second,
            admit_per_second: load.admit_per_second,
            reported_at_ms: load.reported_at_ms,
            groups: *groups,
        };
        add_to_groups(&mut fleet, index, &gateway, load.usage.used());
        fleet.gateways.push(gateway);
        fleet.usages.push(load.usage);
        fleet.strains.push(load.strain);
    }
    fleet
}

/// What is known of a pool's load: each report weighs less the older it is.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    load: f64,
    capacity: f64,
}

impl Known {
    /// The load of a gateway of this capacity that is as loaded as all.
    fn mean(self, capacity: u64) -> u64 {
        if self.capacity > 0.0 { (self.load / self.capacity * capacity as f64).round() as u64 } else { 0 }
    }
}

/// What is known of each pool. None while every report is fresh, as they nearly always are: then nobody needs to know.
fn known(
    pools: usize,
    entries: &[Entry],
    now_ms: i64,
    believed: &impl Fn(&Load) -> bool,
) -> Option<Vec<Known>> {
    if entries.iter().all(|Entry { load, .. }| load.freshness(now_ms) >= 1.0) {
        return None;
    }
    let mut known = vec![Known::default(); pools];
    for Entry { profile, groups, load } in entries {
        if state(profile, load, now_ms, !believed(load)).serves() {
            let (weight, known) = (load.freshness(now_ms), &mut known[groups[0] as usize]);
            known.load += weight * load.load as f64;
            known.capacity += weight * load.usage.connections().capacity as f64;
        }
    }
    Some(known)
}

/// How strained the gateways of a pool are that say so.
#[derive(Debug, Clone, Copy, Default)]
struct Strains {
    pressure: f64,
    gateways: f64,
}

impl Strains {
    fn mean(self) -> f64 {
        if self.gateways > 0.0 { self.pressure / self.gateways } else { 0.0 }
    }
}

/// The same of each pool, where some gateways say only their connections: they are taken to be as strained as the others,
/// or they would look better for saying less. None if all say it.
fn strains(pools: usize, entries: &[Entry], now_ms: i64) -> Option<Vec<Strains>> {
    if entries.iter().all(|Entry { load, .. }| load.tells_strain) {
        return None;
    }
    let mut strains = vec![Strains::default(); pools];
    for Entry { groups, load, .. } in entries {
        if load.tells_strain && !load.silent(now_ms) {
            let pool = &mut strains[groups[0] as usize];
            pool.pressure += load.strain.pressure;
            pool.gateways += 1.0;
        }
    }
    Some(strains)
}

fn state(profile: &Profile, load: &Load, now_ms: i64, disbelieved: bool) -> State {
    if load.draining {
        State::Draining
    } else if now_ms - load.reported_at_ms > DEAD_AFTER_MS && !disbelieved {
        State::Dead
    } else if load.silent(now_ms) && !disbelieved {
        State::Stale
    } else if !load.ready || profile.transports == Transports::NONE {
        State::NotReady
    } else if load.usage.connections().used >= load.usage.connections().capacity {
        State::Full
    } else {
        State::Assignable
    }
}

/// How much of its capacity a gateway counts for: grows with its uptime, in a straight line.
fn ramp(load: &Load, now_ms: i64, slow_start_ms: i64) -> f64 {
    if slow_start_ms <= 0 {
        return 1.0;
    }
    let since_report = (now_ms - load.reported_at_ms).max(0) as f64;
    let uptime_ms = load.uptime_ms as f64 + since_report;
    (uptime_ms / slow_start_ms as f64).clamp(SLOW_START_FLOOR, 1.0)
}

fn empty_group(shape: &Shape) -> Group {
    Group {
        candidates: 0..0,
        children: shape.children.clone(),
        transports: Transports::NONE,
        handshakes_per_second: 0,
        admit_per_second: 0,
        first: shape.first,
        sums: Sums::default(),
        pending: AtomicU64::new(0),
    }
}

fn add_to_groups(fleet: &mut Fleet, index: u32, gateway: &Gateway, used: u64) {
    let start = fleet.candidates.len() as u32;
    let assignable = gateway.state == State::Assignable;
    if assignable {
        fleet.candidates.push(index);
    }
    let end = fleet.candidates.len() as u32;
    let serves = gateway.state.serves();
    let pending = if serves { gateway.pending() } else { 0 };
    let [pool, region, zone] = gateway.groups.map(|group| group as usize);
    for group in [&mut fleet.pools[pool], &mut fleet.regions[region], &mut fleet.zones[zone]] {
        if group.first == index {
            group.candidates.start = start;
        }
        group.candidates.end = end;
        if assignable {
            group.transports = group.transports.with(gateway.profile.transports);
            group.handshakes_per_second += gateway.handshakes_per_second;
            group.admit_per_second += gateway.admit_per_second;
        }
        if serves {
            group.sums.used += used;
            group.sums.load += gateway.tier_load();
            group.sums.capacity += gateway.capacity;
            group.sums.weight += gateway.weight;
            *group.pending.get_mut() += pending;
        }
    }
}
