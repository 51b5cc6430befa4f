//! So many a second, one second's worth at once. Pure: the caller keeps one number for each thing that is limited.

/// A rate, kept by the generic cell rate algorithm (ITU-T I.371): eight bytes of state and no timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    /// Between two at the steady rate, in microseconds; 0: no limit.
    interval_us: i64,
}

/// What may come at once, in microseconds of the steady rate.
const BURST_US: i64 = 1_000_000;

impl Rate {
    /// So many a second; 0: no limit. A million is the most that is told from no limit.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let interval_us = if per_second == 0 { 0 } else { (BURST_US / i64::from(per_second)).max(1) };
        Self { interval_us }
    }

    /// Whether there is a limit.
    #[must_use]
    pub fn limits(self) -> bool {
        self.interval_us > 0
    }

    /// Between two at the steady rate, in microseconds; 0: no limit.
    #[must_use]
    pub fn interval_us(self) -> i64 {
        self.interval_us
    }

    /// Takes one at `now_ms`. `due_us` is what the last success returned (0 at first): when all taken so far would have
    /// been due at the steady rate, in microseconds.
    ///
    /// # Errors
    /// When the share is spent: after how many milliseconds there is one again.
    pub fn take(self, due_us: i64, now_ms: i64) -> Result<i64, u32> {
        self.take_units(1, due_us, now_ms)
    }

    /// The same of something that counts so many times; at most a second's worth, so that nothing is refused for ever.
    ///
    /// # Errors
    /// As [`Rate::take`].
    pub fn take_units(self, units: usize, due_us: i64, now_ms: i64) -> Result<i64, u32> {
        if !self.limits() {
            return Ok(due_us);
        }
        let now_us = now_ms.saturating_mul(1_000);
        let due_us = due_us.max(now_us);
        let cost_us = i64::try_from(units).unwrap_or(i64::MAX).saturating_mul(self.interval_us).min(BURST_US);
        let wait_us = due_us - now_us + cost_us - BURST_US;
        if wait_us <= 0 {
            Ok(due_us + cost_us)
        } else {
            Err(u32::try_from((wait_us + 999) / 1_000).unwrap_or(u32::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_one_burst_and_the_wait_is_enough(
            per_second in 1u32..5_000,
            gaps in proptest::collection::vec((0i64..400, 1usize..50), 1..200),
        ) {
            let rate = Rate::new(per_second);
            let (mut due, mut now, mut taken) = (0, 1_000_000i64, 0i64);
            let begun = now;
            for (gap, tries) in gaps {
                now += gap;
                for _ in 0..tries {
                    match rate.take(due, now) {
                        Ok(next) => (due, taken) = (next, taken + 1),
                        Err(wait_ms) => {
                            prop_assert!(wait_ms > 0);
                            prop_assert!(rate.take(due, now + i64::from(wait_ms)).is_ok(), "the wait told is enough");
                        }
                    }
                }
                // The interval is rounded down to whole microseconds: at 5,000 a second exact, below it 0.5% at most.
                prop_assert!(taken * 1_000 <= i64::from(per_second) * (now - begun + 1_000) * 1_005 / 1_000 + 1_000);
            }
        }

        #[test]
        fn who_stays_below_the_rate_is_never_refused(per_second in 1u32..1_000, steps in 1usize..500) {
            let rate = Rate::new(per_second);
            let (mut due, mut now) = (0, 0i64);
            for _ in 0..steps {
                due = rate.take(due, now).map_err(|wait| TestCaseError::fail(format!("refused for {wait} ms")))?;
                now += i64::from(1_000u32.div_ceil(per_second));
            }
        }
    }

    #[test]
    fn what_counts_several_times_takes_as_much_as_several_and_at_most_a_second() {
        let rate = Rate::new(100);
        let due = rate.take_units(90, 0, 5_000).expect("a second's worth at once");
        assert_eq!(rate.take_units(11, due, 5_000), Err(10));
        let due = rate.take_units(10, due, 5_000).expect("that is left");
        assert_eq!(rate.take_units(1_000_000, due, 5_999), Err(1));
        assert!(rate.take_units(1_000_000, due, 6_000).is_ok());
    }

    #[test]
    fn zero_is_no_limit() {
        let rate = Rate::new(0);
        assert!((0..1_000_000).all(|_| rate.take(0, 0) == Ok(0)) && !rate.limits());
    }
}
