//! Whether clients that were told to go arrive where a place is kept for them. Pure.

use std::collections::VecDeque;

/// What is looked at, in milliseconds: longer than a place is kept.
const WINDOW_MS: i64 = 30_000;

/// Between two samples, in milliseconds.
const SAMPLE_MS: i64 = 1_000;

/// Clients that may be lost whatever the share: phones go out of reach at any time.
const MAY_BE_LOST: u64 = 5;

/// Counts over the last [`WINDOW_MS`].
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// When, and what had been counted by then: arrived, lost. Oldest first.
    samples: VecDeque<(i64, u64, u64)>,
    now: (u64, u64),
    /// Of those whose time is over, such a share may be lost.
    allowed: f64,
}

impl Arrivals {
    /// So many have arrived since the start, and so many were lost; of those whose time is over, such a share may be.
    pub(super) fn count(&mut self, arrived: u64, lost: u64, allowed: f64, now_ms: i64) {
        (self.now, self.allowed) = ((arrived, lost), allowed);
        if self.samples.back().is_none_or(|(at_ms, ..)| now_ms - at_ms >= SAMPLE_MS) {
            self.samples.push_back((now_ms, arrived, lost));
        }
        // One sample that old stays: what has happened since.
        while self.samples.get(1).is_some_and(|(at_ms, ..)| now_ms - at_ms >= WINDOW_MS) {
            self.samples.pop_front();
        }
    }

    /// Why nobody should be told to go now, if so.
    pub(super) fn hold(&self) -> Option<String> {
        let (_, arrived, lost) = self.samples.front().copied().unwrap_or_default();
        let (arrived, lost) = (self.now.0 - arrived, self.now.1 - lost);
        let over = arrived + lost;
        (lost > MAY_BE_LOST && lost as f64 > self.allowed * over as f64).then(|| {
            format!(
                "{lost} of the {over} clients that were last told to go elsewhere have not arrived there; [move] lost allows {}%",
                self.allowed * 100.0
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn too_many_lost_hold_until_the_window_has_passed() {
        let mut arrivals = Arrivals::default();
        arrivals.count(0, 0, 0.1, 0);
        arrivals.count(100, 5, 0.1, 1_000);
        assert_eq!(arrivals.hold(), None, "a few are always lost");
        arrivals.count(100, 12, 0.1, 2_000);
        let reason = arrivals.hold().expect("12 of 112");
        assert!(reason.contains("12 of the 112"), "{reason}");
        arrivals.count(100, 12, 0.1, 31_000);
        assert!(arrivals.hold().is_some(), "lost within the last 30 s");
        arrivals.count(100, 12, 0.1, 33_000);
        assert_eq!(arrivals.hold(), None, "resumes by itself");
        arrivals.count(100, 24, 0.25, 34_000);
        assert!(arrivals.hold().is_some(), "12 of 12");
        arrivals.count(136, 24, 0.25, 34_500);
        assert_eq!(arrivals.hold(), None, "12 of 48 may be lost");
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_it_always_ends(steps in prop::collection::vec((0i64..5_000, 0u64..50, 0u64..50), 1..200)) {
            let mut arrivals = Arrivals::default();
            let (mut now_ms, mut arrived, mut lost) = (0, 0, 0);
            for (pause_ms, more, fewer) in steps {
                (now_ms, arrived, lost) = (now_ms + pause_ms, arrived + more, lost + fewer);
                arrivals.count(arrived, lost, 0.1, now_ms);
                prop_assert!(arrivals.samples.len() <= (WINDOW_MS / SAMPLE_MS) as usize + 2);
            }
            arrivals.count(arrived, lost, 0.1, now_ms + SAMPLE_MS);
            arrivals.count(arrived, lost, 0.1, now_ms + SAMPLE_MS + WINDOW_MS);
            prop_assert_eq!(arrivals.hold(), None);
        }
    }
}
