//! A token bucket: how many connections a worker may accept now.

/// Fills at a steady rate up to one second's worth.
#[derive(Debug, Clone)]
pub struct Budget {
    per_second: i64,
    /// Thousandths of a token, so that a few milliseconds add something at small rates.
    milli: i64,
    at_ms: i64,
}

impl Budget {
    /// A full bucket of `per_second` tokens, at least one.
    #[must_use]
    pub fn new(per_second: u32, now_ms: i64) -> Self {
        let per_second = i64::from(per_second.max(1));
        Self { per_second, milli: per_second * 1_000, at_ms: now_ms }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now_ms: i64) -> bool {
        let passed = now_ms.saturating_sub(self.at_ms).clamp(0, 1_000);
        self.at_ms = self.at_ms.max(now_ms);
        self.milli = (self.milli + passed * self.per_second).min(self.per_second * 1_000);
        let enough = self.milli >= 1_000;
        if enough {
            self.milli -= 1_000;
        }
        enough
    }

    /// Gives back a token that was not used.
    pub fn give_back(&mut self) {
        self.milli = (self.milli + 1_000).min(self.per_second * 1_000);
    }

    /// Milliseconds from the last [`Budget::take`] until there is a token.
    #[must_use]
    pub fn wait_ms(&self) -> i64 {
        let missing = (1_000 - self.milli).max(0);
        (missing + self.per_second - 1) / self.per_second
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_one_burst(rate in 1u32..5_000, gaps in proptest::collection::vec(0i64..300, 1..300)) {
            let (mut budget, mut now, mut taken) = (Budget::new(rate, 0), 0, 0);
            for gap in gaps {
                now += gap;
                while budget.take(now) {
                    taken += 1;
                }
                prop_assert!(taken * 1_000 <= i64::from(rate) * (now + 1_000));
                prop_assert!(budget.clone().take(now + budget.wait_ms()));
            }
        }
    }
}
