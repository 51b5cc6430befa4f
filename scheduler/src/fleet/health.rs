//! When silence means death, and when so many are silent that it rather means that we are deaf.

/// A gateway reports this often, in milliseconds.
pub const REPORT_INTERVAL_MS: i64 = 500;

/// Silent for three reports: the load is too old to compare, so the gateway gets nothing.
pub const STALE_AFTER_MS: i64 = 3 * REPORT_INTERVAL_MS;

/// Silent for six reports (3 s): dead. A link that ends is no death by itself; it may be dialled again at once.
pub const DEAD_AFTER_MS: i64 = 6 * REPORT_INTERVAL_MS;

/// A dead gateway is listed for five minutes, for the operator's eye, then forgotten.
pub const FORGET_AFTER_MS: i64 = 5 * 60_000;

/// Gateways whose last reports lie within this window fell silent together: ten reports.
pub const TOGETHER_MS: i64 = 10 * REPORT_INTERVAL_MS;

/// Fewer than this falling silent together are just dead: of one or two, that they died is as likely as that we are deaf,
/// and a client that is sent to a dead gateway waits longer than one that is told to come again.
const MIN_TOGETHER: usize = 3;

/// The silence of gateways whose last report lies in this range is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Distrust {
    pub from_ms: i64,
    pub to_ms: i64,
}

impl Distrust {
    pub fn covers(self, reported_at_ms: i64) -> bool {
        (self.from_ms..=self.to_ms).contains(&reported_at_ms)
    }
}

/// Looks for a group of at least three silent gateways that fell silent together and were more than half of the fleet of
/// that time (themselves and those still live). More likely than all of them dying is that this scheduler cannot hear: it
/// goes on with the last load it knows. Those that died one after another are just dead.
///
/// `silent` holds the times of last reports and is sorted here. The distrust ends after [`FORGET_AFTER_MS`], whoever else
/// is live: by then a load tells nothing, and gateways that truly died would be assigned for ever.
pub(super) fn distrust(silent: &mut [i64], live: usize, now_ms: i64) -> Option<Distrust> {
    silent.sort_unstable();
    let mut largest = 0..0;
    let mut start = 0;
    for end in 0..silent.len() {
        while silent[end] - silent[start] > TOGETHER_MS {
            start += 1;
        }
        // At equal size the newer group: it tells more about now.
        if end + 1 - start >= largest.len() {
            largest = start..end + 1;
        }
    }
    let many = largest.len() >= MIN_TOGETHER && largest.len() > live;
    let group = silent.get(largest)?;
    let (from_ms, to_ms) = (*group.first()?, *group.last()?);
    let recent = now_ms - to_ms <= FORGET_AFTER_MS;
    (many && recent).then_some(Distrust { from_ms, to_ms })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_after_another_is_death() {
        assert_eq!(distrust(&mut [0], 2, 2_000), None);
        assert_eq!(distrust(&mut [0, 60_000], 1, 62_000), None);
        assert_eq!(distrust(&mut [], 5, 0), None);
        assert_eq!(distrust(&mut [], 0, 0), None);
    }

    #[test]
    fn most_at_once_is_deafness() {
        let together = Some(Distrust { from_ms: 60_000, to_ms: 60_400 });
        assert_eq!(distrust(&mut [60_400, 0, 60_000, 60_100], 2, 62_000), together);
        assert_eq!(distrust(&mut [60_400, 0, 60_000, 60_100], 3, 62_000), None, "half is not more than half");
    }

    #[test]
    fn one_or_two_are_dead() {
        assert_eq!(distrust(&mut [0], 0, 2_000), None, "the only gateway was killed");
        assert_eq!(distrust(&mut [0, 100], 0, 2_000), None);
        assert!(distrust(&mut [0, 100, 200], 0, 2_000).is_some());
    }

    proptest! {
        #[test]
        fn distrust_is_of_the_most_that_fell_silent_together(
            mut silent in prop::collection::vec(0..60_000i64, 0..12), live in 0..8usize, later in 0..400_000i64
        ) {
            let now = 60_000 + later;
            let found = distrust(&mut silent, live, now);
            let together = |from: i64| silent.iter().filter(|at| (from..=from + TOGETHER_MS).contains(*at)).count();
            let most = silent.iter().map(|at| together(*at)).max().unwrap_or(0);
            if let Some(found) = found {
                let covered = silent.iter().filter(|at| found.covers(**at)).count();
                prop_assert_eq!(covered, most);
                prop_assert!(covered >= MIN_TOGETHER && covered > live && found.to_ms - found.from_ms <= TOGETHER_MS);
                prop_assert!(now - found.to_ms <= FORGET_AFTER_MS);
            } else {
                let newest = silent.iter().copied().filter(|at| together(*at) == most).max().unwrap_or(0);
                let old = now - newest > FORGET_AFTER_MS;
                prop_assert!(most < MIN_TOGETHER || most <= live || old, "{most} of {silent:?} with {live} live");
            }
        }
    }

    #[test]
    fn distrust_ends() {
        let late = FORGET_AFTER_MS + 500;
        for live in [0, 1] {
            assert!(distrust(&mut [0, 100, 200], live, FORGET_AFTER_MS).is_some(), "{live}");
            assert_eq!(distrust(&mut [0, 100, 200], live, late), None, "{live}");
        }
    }
}
