//! How many connections may be begun with now. Pure.

/// What was not used is kept for so long, in milliseconds, and what is less than one: a late wake-up costs no speed, and a pause
/// gives no burst.
const BURST_MS: u64 = 250;

/// Gives out a rate.
#[derive(Debug)]
pub(crate) struct Pacer {
    per_second: u64,
    at_ms: i64,
    /// In thousandths of a connection.
    credit: u64,
}

impl Pacer {
    /// So many a second, from now on.
    pub(crate) fn new(per_second: u32, now_ms: i64) -> Self {
        Self { per_second: per_second.into(), at_ms: now_ms, credit: 0 }
    }

    /// What may be begun with now, at most `most`. Over any time it is the rate, what [`BURST_MS`] saved, and one.
    pub(crate) fn take(&mut self, now_ms: i64, most: u64) -> u64 {
        let passed_ms = now_ms.saturating_sub(self.at_ms).max(0).unsigned_abs();
        self.at_ms = self.at_ms.max(now_ms);
        let earned = passed_ms.saturating_mul(self.per_second);
        self.credit = self.credit.saturating_add(earned).min(self.per_second * BURST_MS + 1_000);
        let taken = (self.credit / 1_000).min(most);
        self.credit -= taken * 1_000;
        taken
    }

    /// So many a second from the next look on.
    pub(crate) fn set(&mut self, per_second: u32) {
        self.per_second = per_second.into();
    }

    /// After a pause: nothing was saved.
    pub(crate) fn restart(&mut self, now_ms: i64) {
        (self.at_ms, self.credit) = (now_ms, 0);
    }
}

/// Parts of `count` for workers that have so many left each: in proportion, all of it as long as there are enough.
pub(crate) fn shares(count: u64, lefts: &[u64]) -> Vec<u64> {
    let total: u64 = lefts.iter().sum();
    let count = count.min(total);
    if count == 0 {
        return vec![0; lefts.len()];
    }
    let part = |left: u64| u64::try_from(u128::from(count) * u128::from(left) / u128::from(total));
    let mut shares: Vec<u64> = lefts.iter().map(|left| part(*left).unwrap_or(*left)).collect();
    let mut rest = count - shares.iter().sum::<u64>();
    for (share, left) in shares.iter_mut().zip(lefts) {
        let more = rest.min(left - *share);
        *share += more;
        rest -= more;
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_window_has_more_than_the_rate_and_a_burst(
            per_second in 1u32..5_000,
            steps in prop::collection::vec((0i64..2_000, 0u64..2_000), 1..80),
        ) {
            let mut pacer = Pacer::new(per_second, 0);
            let mut now_ms = 0;
            let mut given = vec![];
            for (pause_ms, most) in steps {
                now_ms += pause_ms;
                let taken = pacer.take(now_ms, most);
                prop_assert!(taken <= most);
                given.push((now_ms, taken));
            }
            for (from, (began, _)) in given.iter().enumerate() {
                for to in from..given.len() {
                    let sum: u64 = given[from..=to].iter().map(|(_, taken)| taken).sum();
                    let window_ms = (given[to].0 - began).unsigned_abs();
                    let most = (window_ms + BURST_MS) * u64::from(per_second) / 1_000 + 2;
                    prop_assert!(sum <= most, "{sum} in {window_ms} ms at {per_second} a second");
                }
            }
        }

        #[test]
        fn the_rate_is_reached(per_second in 1u32..5_000, tick_ms in 1i64..200) {
            let mut pacer = Pacer::new(per_second, 0);
            let mut taken = 0;
            let mut now_ms = 0;
            while now_ms < 20_000 {
                now_ms += tick_ms;
                taken += pacer.take(now_ms, u64::MAX);
            }
            let expected = now_ms.unsigned_abs() * u64::from(per_second) / 1_000;
            prop_assert!(taken + 1 >= expected && taken <= expected, "{taken} of {expected}");
        }

        #[test]
        fn shares_add_up_and_nobody_has_more_than_he_has_left(
            count in 0u64..10_000,
            lefts in prop::collection::vec(0u64..3_000, 1..9),
        ) {
            let shares = shares(count, &lefts);
            prop_assert_eq!(shares.iter().sum::<u64>(), count.min(lefts.iter().sum()));
            for (share, left) in shares.iter().zip(&lefts) {
                prop_assert!(share <= left);
            }
        }
    }
}
