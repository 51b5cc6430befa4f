//! What chance does to guards: pools that fare alike, looked at again and again.

use std::collections::VecDeque;

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{bound::margin, tests::policy, *};

/// The probability, at place k, that exactly k of `n` fail, each by itself with probability `p`.
fn binomial(n: u64, p: f64) -> Vec<f64> {
    let mut of = vec![0.0; n as usize + 1];
    of[0] = 1.0;
    for all in 1..=n as usize {
        for k in (0..=all).rev() {
            of[k] = of[k] * (1.0 - p) + if k > 0 { of[k - 1] * p } else { 0.0 };
        }
    }
    of
}

/// Whether a canary of so many of whom so many failed is stopped, by the guard that docs/gray-release.md shows.
fn stops((failed, all): (u64, u64), (stables_failed, stables): (u64, u64)) -> bool {
    let policy = policy("connect_failures = 0.02");
    let (rule, guard) = (&policy.gray[0], policy.gray[0].guard.expect("given"));
    let counts = |failed, all| Counts { failed, welcomed: all - failed, ..Counts::default() };
    let (pool, stable) = (counts(failed, all), counts(stables_failed, stables));
    Breach::of(rule, &guard, &Figures { pool, stable, seconds: 60, ..Figures::default() }).is_some()
}

/// The probability that a canary is stopped in one look though it fares as `stable` does.
fn by_chance(all: u64, stables: u64, p: f64) -> f64 {
    let (ours, theirs) = (binomial(all, p), binomial(stables, p));
    let mut sum = 0.0;
    for (stables_failed, q) in (0..).zip(&theirs).filter(|(_, q)| **q > 1e-14) {
        // The more fail, the sooner it is stopped.
        let first = (0..=all).find(|failed| stops((*failed, all), (stables_failed, stables)));
        sum += q * first.map_or(0.0, |first| ours.iter().skip(first as usize).sum());
    }
    sum
}

/// docs/gray-release.md has the figures.
#[test]
fn a_week_of_looks_stops_hardly_anybody_by_chance() {
    // Windows overlap, so that most of these looks see what the one before saw: taken as if each were another, they are a bound.
    let looks = f64::from(7 * 24 * 3_600);
    // A thousand clients a minute, of whom the rule takes so many.
    for (ours, p, at_most) in [(50, 0.01, 0.1), (250, 0.01, 0.001), (500, 0.01, 0.001)] {
        let chance = by_chance(ours, 1_000 - ours, p) * looks;
        println!(
            "{ours} of 1,000 a minute, {p} fail: stopped within a week with probability {chance:.6} at most"
        );
        assert!(chance < at_most, "{ours} of 1,000 a minute: {chance}");
    }
    assert!(stops((10, 50), (0, 950)) && stops((10, 50), (19, 950)), "a fifth of the fewest that are judged");
    assert!(stops((50, 250), (7, 750)) && !stops((9, 250), (7, 750)));
}

/// The bound above, for the small canary, as it is: windows that overlap.
#[test]
fn of_weeks_with_a_small_canary_hardly_one_ends_with_a_stop() {
    const WEEKS: u32 = 2_000;
    let mut random = SmallRng::seed_from_u64(2);
    let failed_of_950 = |random: &mut SmallRng| (0..950).filter(|_| random.random_bool(0.01)).count() as u64;
    let mut stopped = 0;
    for _ in 0..WEEKS {
        let (mut at, mut lately) = (0.0, VecDeque::new());
        // 50 a minute, of whom one in a hundred fails: one every two minutes. Only a failure raises the share.
        while at < 7.0 * 24.0 * 60.0 {
            at -= 2.0 * (1.0 - random.random::<f64>()).ln();
            lately.push_back(at);
            while lately.front().is_some_and(|first| *first < at - 1.0) {
                lately.pop_front();
            }
            let failed = lately.len() as u64;
            if failed > 4 && stops((failed, 50), (failed_of_950(&mut random), 950)) {
                stopped += 1;
                break;
            }
        }
    }
    println!("{stopped} of {WEEKS} weeks with 50 clients a minute end with a stop");
    assert!(stopped * 50 < WEEKS, "{stopped} of {WEEKS} weeks");
}

/// Few who are all turned away are judged all the same, unless many are in `stable` as well.
#[test]
fn a_pool_that_takes_nobody_is_stopped_whatever_is_allowed() {
    let stops = |allowed: f64, few: u64, failed: u64, stables_failed: u64| {
        let mut policy = policy(&format!("connect_failures = {allowed}"));
        let guard = policy.gray[0].guard.as_mut().expect("given");
        guard.min_handshakes = few.try_into().expect("few");
        let guard = *guard;
        let pool = Counts { failed, welcomed: few - failed, ..Counts::default() };
        let stable = Counts { failed: stables_failed, welcomed: 1_000 - stables_failed, ..Counts::default() };
        let figures = Figures { pool, stable, seconds: 60, ..Figures::default() };
        let [above, _] = figures.stops_above(&guard);
        assert!(above.is_none_or(|above| above < 1.0), "{allowed}, {failed} of {few}: {above:?}");
        let stopped = Breach::of(&policy.gray[0], &guard, &figures).is_some();
        assert_eq!(stopped, above.is_some_and(|above| failed as f64 / few as f64 > above), "as status says");
        stopped
    };
    for few in [1, 2, 6, 20, 50, 250, 1_000] {
        for allowed in [0.0, 0.02, 0.2, 0.5, 0.9, 0.98] {
            assert!(stops(allowed, few, few, 0), "{few} of {few} fail with {allowed} allowed");
        }
        assert!(stops(0.2, few, few, 500), "half of stable's fail too");
        assert!(!stops(0.5, few, few, 500) && !stops(1.0, few, few, 0), "all are allowed to");
    }
    assert!(!stops(0.5, 20, 19, 0) && !stops(0.2, 6, 5, 0), "19 of 20 and 5 of 6 may be chance");
    assert!(!stops(0.02, 50, 50, 900), "where nine in ten fail all of 50 may do so");
    assert!(stops(0.02, 250, 250, 900), "but not all of 250");
}

/// Where less than five standard deviations is taken for more than chance, the binomial distribution itself says so.
#[test]
fn no_bound_is_below_what_five_standard_deviations_mean() {
    let mut lower = 0;
    for count in [2, 5, 20, 50, 68, 150, 400] {
        for expected in [0.01, 0.04, 0.2, 0.5, 0.6, 0.8, 0.9, 0.97] {
            let normal = 5.0 * (expected * (1.0 - expected) / count as f64).sqrt();
            let own = margin(expected, count);
            assert!(own <= normal);
            if own < normal {
                lower += 1;
                let first = ((expected + own) * count as f64) as usize + 1;
                let tail: f64 = binomial(count, expected).iter().skip(first).sum();
                assert!(first <= count as usize && tail < 2.87e-7, "{first} of {count}, {expected}: {tail}");
            }
        }
    }
    assert!(lower > 4, "{lower}");
}

#[test]
fn chance_stops_nobody_and_a_fifth_that_fails_is_seen() {
    let mut random = SmallRng::seed_from_u64(1);
    let mut failed_of_100 = |p: f64| (0..100).filter(|_| random.random_bool(p)).count() as u64;
    let mut seen = 0;
    for _ in 0..10_000 {
        let (ours, theirs, worse) = (failed_of_100(0.01), failed_of_100(0.01), failed_of_100(0.2));
        assert!(!stops((ours, 100), (theirs, 100)), "{ours} and {theirs} of 100");
        assert!(theirs > 5 || stops((20, 100), (theirs, 100)), "{theirs} of 100 in stable");
        seen += u32::from(stops((worse, 100), (theirs, 100)));
    }
    assert!(seen > 9_000, "in one window; the next second is another look: {seen}");
}
