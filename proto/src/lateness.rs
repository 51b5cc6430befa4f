//! How late what somebody says arrives, from his own clock: pure.
//!
//! The two clocks have nothing in common but their speed, and that only nearly. The least difference between them that was
//! seen lately is the quickest way a message took; what comes later than that was held up, by a network, by a process that stood
//! still. So it says too little by as much as the quickest message took, never too much.

/// For how long a difference counts, in milliseconds: clocks that run apart by 100 parts in a million differ by 12 ms after two
/// such times.
const WINDOW_MS: i64 = 60_000;

/// Of those who speak by one clock.
#[derive(Debug, Clone, Copy)]
pub struct Lateness {
    /// The least difference of this window, and of the one before.
    least_ms: [i64; 2],
    since_ms: i64,
}

impl Lateness {
    /// Of those of whom nothing came yet.
    #[must_use]
    pub fn new(now_ms: i64) -> Self {
        Self { least_ms: [i64::MAX; 2], since_ms: now_ms }
    }

    /// By how many milliseconds what was said at `said_ms` of their clock is late at `now_ms` of ours.
    pub fn heard(&mut self, said_ms: i64, now_ms: i64) -> i64 {
        let difference = now_ms.saturating_sub(said_ms);
        if now_ms.saturating_sub(self.since_ms) >= WINDOW_MS {
            self.least_ms = [i64::MAX, self.least_ms[0]];
            self.since_ms = now_ms;
        }
        self.least_ms[0] = self.least_ms[0].min(difference);
        difference.saturating_sub(self.least_ms[0].min(self.least_ms[1]))
    }
}

impl Default for Lateness {
    fn default() -> Self {
        Self::new(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_up_is_late_by_as_much_as_that() {
        for apart in [-5_000_000, 0, 7_000_000] {
            let mut link = Lateness::new(0);
            assert_eq!(link.heard(apart, 10), 0, "the first message tells nothing");
            assert_eq!(link.heard(100 + apart, 105), 0, "and a quicker one is the measure");
            assert_eq!(link.heard(200 + apart, 1_205), 1_000);
            assert_eq!(link.heard(1_300 + apart, 1_308), 3);
        }
    }

    #[test]
    fn a_long_pause_of_ours_does_not_become_the_measure() {
        let mut link = Lateness::new(0);
        assert_eq!(link.heard(1_000, 1_000), 0);
        let thawed = 1_000 + 2 * WINDOW_MS;
        assert_eq!(link.heard(2_000, thawed), thawed - 2_000);
        assert_eq!(link.heard(thawed, thawed), 0);
    }

    #[test]
    fn clocks_that_run_apart_are_followed() {
        let mut link = Lateness::new(0);
        // Ours gains a millisecond each 10 s, and hears something each 5 s for a day.
        for n in 0..17_280 {
            let said = n * 5_000;
            assert!(link.heard(said, said + said / 10_000) <= 12);
        }
    }
}
