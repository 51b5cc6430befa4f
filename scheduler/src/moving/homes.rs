//! Which home regions can take connections: when one comes back, those served elsewhere go home. Pure.

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    fleet::Fleet,
    policy::{Policy, head},
};

/// A region is there, or gone, only after it has been so for this long, in milliseconds: its users are not sent to and fro.
const STEADY_MS: i64 = 5_000;

/// What is known of the regions that are somebody's home.
#[derive(Debug, Default)]
pub(super) struct Homes {
    regions: BTreeMap<String, Region>,
}

#[derive(Debug, Clone, Copy)]
struct Region {
    /// As it is taken for now.
    there: bool,
    /// Since when it is otherwise.
    otherwise_since_ms: Option<i64>,
}

impl Homes {
    /// Looks at a snapshot; returns a number that stands for the regions that are there.
    pub(super) fn look(&mut self, fleet: &Fleet, policy: &Policy, now_ms: i64) -> u64 {
        self.regions.retain(|name, _| policy.homes.iter().any(|home| home.region == *name));
        for home in &policy.homes {
            let there = can_take(fleet, &home.region);
            self.seen(&home.region, there, now_ms);
        }
        let mut names = String::new();
        for (name, _) in self.regions.iter().filter(|(_, region)| region.there) {
            let _ = writeln!(names, "{name:?}");
        }
        head(&names)
    }

    fn seen(&mut self, name: &str, there: bool, now_ms: i64) {
        let Some(region) = self.regions.get_mut(name) else {
            self.regions.insert(name.to_owned(), Region { there, otherwise_since_ms: None });
            return;
        };
        if region.there == there {
            region.otherwise_since_ms = None;
        } else if now_ms - *region.otherwise_since_ms.get_or_insert(now_ms) >= STEADY_MS {
            *region = Region { there, otherwise_since_ms: None };
        }
    }
}

fn can_take(fleet: &Fleet, region: &str) -> bool {
    let groups = fleet.pools.iter().filter_map(|pool| fleet.region(pool, region));
    let mut gateways = groups.flat_map(|group| group.candidates.clone());
    gateways.any(|place| fleet.gateway(fleet.candidates[place as usize]).has_room())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_there_or_gone_only_after_a_while() {
        let mut homes = Homes::default();
        let there = |homes: &Homes| homes.regions["eu"].there;
        homes.seen("eu", true, 0);
        assert!(there(&homes), "as it is found at first");
        for (now_ms, seen, expected) in [
            (1_000, false, true),
            (5_999, false, true),
            (6_000, false, false),
            (7_000, true, false),
            (8_000, false, false),
            (9_000, true, false),
            (13_999, true, false),
            (14_000, true, true),
        ] {
            homes.seen("eu", seen, now_ms);
            assert_eq!(there(&homes), expected, "at {now_ms}");
        }
    }
}
