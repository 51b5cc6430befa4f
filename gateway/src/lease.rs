//! What of the handshake rate is spare, and which share of it each scheduler is leased. Pure.
//!
//! Clients who come back with a ticket that they have ask no scheduler. What they need is kept: an eighth of the rate, or what
//! they take at present, if that is more. The rest is leased to the schedulers, each by what it says it would send.

use std::cmp::Reverse;

/// This much of the rate is kept for those who come back, however few they are; and as much is leased, however many.
const KEPT: u64 = 8;

/// A rate is measured over so long at least, in milliseconds, half a report's interval: over less, a handful that come together look
/// like a flood.
const MEASURED_OVER_MS: i64 = 250;

/// How fast a measured rate of those who come back is forgotten, in milliseconds; it is followed upwards at once.
const FORGET_MS: f64 = 4_000.0;

/// Follows those who come back.
#[derive(Debug)]
pub(crate) struct Spare {
    per_second: u64,
    returning: f64,
    last: (i64, u64),
}

impl Spare {
    /// Of so many handshakes a second.
    pub(crate) fn new(per_second: u32, now_ms: i64) -> Self {
        Self { per_second: per_second.into(), returning: 0.0, last: (now_ms, 0) }
    }

    /// What is spare now, a second, when so many have come back since the start.
    pub(crate) fn measure(&mut self, returned: u64, now_ms: i64) -> u64 {
        let (last_ms, last_returned) = self.last;
        let passed_ms = now_ms - last_ms;
        if passed_ms >= MEASURED_OVER_MS {
            let passed_ms = passed_ms as f64;
            let rate = returned.saturating_sub(last_returned) as f64 * 1_000.0 / passed_ms;
            // The burst that may come at once is above the rate for a moment.
            let rate = rate.min(self.per_second as f64);
            self.returning = rate.max(self.returning * (-passed_ms / FORGET_MS).exp());
            self.last = (now_ms, returned);
        }
        let kept = (self.per_second / KEPT).max(self.returning.round() as u64);
        (self.per_second.saturating_sub(kept)).max(self.per_second / KEPT).max(1)
    }
}

/// Shares of `spare` for the schedulers, by what each wants; none: it is not there, and gets nothing. In proportion to what
/// they want, each taken to want an eighth of an equal share at least: who is idle may take a few at once, and among idle
/// ones all shares are equal, but for one. Where somebody is there, all of `spare` is shared: what rounding leaves goes to those
/// who want most, one each, to the first of those that want alike. Of a spare of 1, all that a gateway has in the tail of a storm,
/// everybody's part is less than a whole.
pub(crate) fn split(spare: u64, wanted: &[Option<u64>]) -> Vec<u64> {
    let there = wanted.iter().flatten().count() as u128;
    // In eighths of an equal share of the spare, so that all of it is whole numbers.
    let weight = |wanted: &Option<u64>| {
        wanted.map_or(0, |wanted| u128::from(wanted.min(spare)) * 8 * there + u128::from(spare))
    };
    let all = wanted.iter().map(weight).sum::<u128>().max(1);
    // Rounded down, each: the sum is what there is at the most, and less by fewer than there are schedulers.
    let share = |wanted| u64::try_from(u128::from(spare) * weight(wanted) / all).unwrap_or(spare);
    let mut shares: Vec<u64> = wanted.iter().map(share).collect();
    let mut eager: Vec<usize> = (0..wanted.len()).filter(|index| wanted[*index].is_some()).collect();
    eager.sort_by_key(|index| Reverse(wanted[*index]));
    let left = spare.saturating_sub(shares.iter().sum::<u64>());
    for (index, _) in eager.into_iter().zip(0..left) {
        shares[index] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_busy_scheduler_gets_nearly_all_and_idle_ones_share_alike() {
        assert_eq!(split(1_750, &[Some(0); 4]), [438, 438, 437, 437]);
        let shares = split(1_750, &[Some(0), Some(9_000), Some(0), Some(0)]);
        assert!(shares[1] > 1_600 && shares[0] >= 40, "{shares:?}");
        let shares = split(1_750, &[Some(0), Some(9_000), None, Some(9_000)]);
        assert_eq!((shares[2], shares[1]), (0, shares[3]));
        assert_eq!(split(1_750, &[Some(0)]), [1_750]);
        assert_eq!(split(1_750, &[None, None]), [0, 0]);
        assert!(split(1_750, &[]).is_empty());
    }

    #[test]
    fn the_last_of_it_goes_to_who_wants_most() {
        assert_eq!(split(1, &[Some(9), Some(0)]), [1, 0]);
        assert_eq!(split(1, &[Some(0), None, Some(9)]), [0, 0, 1]);
        assert_eq!(split(1, &[Some(0), Some(0)]), [1, 0], "to one of them, and at each gateway to the same");
        assert_eq!(split(2, &[Some(5), Some(9), Some(5)]), [1, 1, 0]);
    }

    #[test]
    fn what_comes_back_is_kept_and_an_eighth_is_leased_all_the_same() {
        let mut spare = Spare::new(800, 0);
        assert_eq!(spare.measure(0, 500), 700);
        assert_eq!(spare.measure(150, 1_000), 500, "300 a second came back");
        assert_eq!(spare.measure(2_000, 1_500), 100, "all that there is");
        let later = spare.measure(2_000, 5_500);
        assert!((100..700).contains(&later), "it is not forgotten at once: {later}");
        assert_eq!(spare.measure(2_000, 60_000), 700);
        assert_eq!(Spare::new(1, 0).measure(0, 0), 1);
    }

    #[test]
    fn a_handful_that_come_together_are_no_flood() {
        let mut spare = Spare::new(2_000, 0);
        assert_eq!(spare.measure(0, 500), 1_750);
        assert_eq!(spare.measure(64, 503), 1_750, "64 within 3 ms");
        assert_eq!(spare.measure(64, 1_000), 1_750, "are 128 within a second");
        assert_eq!(spare.measure(10_000, 1_500), 250);
        let forgotten = spare.measure(10_000, 1_500 + 4_000);
        assert!((1_200..1_300).contains(&forgotten), "from the rate downwards, not from 20,000: {forgotten}");
    }

    proptest! {
        #[test]
        fn the_shares_are_all_that_there_is(
            spare in 0u64..1_000_000, wanted in prop::collection::vec(prop::option::of(0u64..u64::MAX), 0..20)
        ) {
            let shares = split(spare, &wanted);
            let sum: u64 = shares.iter().sum();
            prop_assert_eq!(shares.len(), wanted.len());
            let there = wanted.iter().any(Option::is_some);
            prop_assert_eq!(sum, if there { spare } else { 0 }, "{:?}", shares);
            for (share, wanted) in shares.iter().zip(&wanted) {
                prop_assert!(wanted.is_some() || *share == 0);
            }
        }

        #[test]
        fn who_wants_more_gets_no_less(spare in 1u64..100_000, wanted in prop::collection::vec(0u64..200_000, 2..8)) {
            let shares = split(spare, &wanted.iter().copied().map(Some).collect::<Vec<_>>());
            for (a, b) in (0..wanted.len()).flat_map(|a| (0..wanted.len()).map(move |b| (a, b))) {
                prop_assert!(wanted[a] < wanted[b] || shares[a] + 1 >= shares[b], "{wanted:?}: {shares:?}");
            }
        }
    }
}
