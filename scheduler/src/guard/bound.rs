//! What a share is held against: `stable`'s, what is allowed above it, and what chance adds.

use super::verdict::{Past, Share};
use crate::policy::Guard;

/// A share is held against a pool when it lies so many standard deviations above what is allowed: what chance adds to a binomial
/// share of `n` is sqrt(p (1 - p) / n). One look of 740 exceeds three of them by chance; but each second is a look, and a small share of few
/// has a longer tail than the normal one. With five, a test computes what is left over a week: see
/// `a_week_of_looks_stops_hardly_anybody_by_chance`.
const MARGIN: f64 = 5.0;

/// -ln of the probability that a normal value lies above five standard deviations, 2.87e-7.
const UNLIKELY: f64 = 15.065;

/// A pool all of whose clients fail is stopped even where they are too few to rule out chance, while no more than this fail in `stable`.
const HALF: f64 = 0.5;

/// What a share is held against.
pub(super) struct Bound {
    /// What is known of `stable`.
    pub known: Option<Past<Share>>,
    pub base: f64,
    /// Beyond this it is a breach: never 1 or more.
    pub above: f64,
    expected: f64,
}

impl Bound {
    /// None: of too few nothing is said, or even all of them would be allowed.
    pub fn of(
        guard: &Guard,
        allowed: f64,
        (ours, stables): (Share, Share),
        before: Option<Past<Share>>,
    ) -> Option<Self> {
        let now = Some(Past { what: stables, age: 0 }).filter(|now| now.what.enough(guard));
        let known = now.or(before);
        let base = known.map_or(0.0, |known| known.what.of_all());
        let expected = base + allowed;
        if !ours.enough(guard) || expected >= 1.0 {
            return None;
        }
        let by_chance = expected + margin(expected, ours.whole);
        let above = if by_chance < 1.0 {
            by_chance
        } else if base <= HALF {
            all_but_one(ours.whole).max(expected)
        } else {
            return None;
        };
        Some(Self { known, base, above, expected })
    }

    /// What of it is chance.
    pub fn chance(&self) -> f64 {
        self.above - self.expected
    }
}

fn all_but_one(whole: u64) -> f64 {
    whole.saturating_sub(1) as f64 / whole.max(1) as f64
}

/// What chance alone may add to a share of so many that is `expected` otherwise: five standard deviations, or less where the binomial
/// distribution ends sooner than the normal one, as it does near 1. More than is left up to 1: all of so few may be chance.
pub(super) fn margin(expected: f64, whole: u64) -> f64 {
    let (expected, count) = (expected.clamp(0.0, 1.0), whole.max(1) as f64);
    let normal = MARGIN * (expected * (1.0 - expected) / count).sqrt();
    let (mut likely, mut unlikely) = (expected, (expected + normal).min(1.0));
    if count * divergence(unlikely, expected) <= UNLIKELY {
        return normal;
    }
    // Down to less than the floating point can tell.
    for _ in 0..50 {
        let middle = f64::midpoint(likely, unlikely);
        if count * divergence(middle, expected) > UNLIKELY {
            unlikely = middle;
        } else {
            likely = middle;
        }
    }
    unlikely - expected
}

/// What Chernoff bounds a binomial tail with: a share of `n` that is `expected` is `share` or more with probability exp(-n divergence) at
/// most, and with exactly that where `share` is 1.
fn divergence(share: f64, expected: f64) -> f64 {
    let term = |of: f64, to: f64| if of > 0.0 { of * (of / to).ln() } else { 0.0 };
    term(share, expected) + term(1.0 - share, 1.0 - expected)
}
