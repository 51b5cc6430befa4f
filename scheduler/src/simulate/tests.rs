//! Whole runs: what the scheduler is meant to do, against what others do, over the same fleets and the same clients.

use super::*;
use crate::policy::Policy;

fn outcome(scenario: &Scenario, strategy: Strategy) -> Outcome {
    run(scenario, strategy, &Policy::default(), 1)
}

/// Ten gateways of some 900 connections each: as few as leave the figures above chance.
fn small(name: &str, delay_ms: u32) -> Scenario {
    let named = Scenario::named(name).expect("known");
    Scenario { gateways: 10, clients: 10_000, seconds: 150, report_delay_ms: delay_ms, ..named }
}

#[test]
fn a_run_follows_from_its_seed() {
    let scenario = Scenario { clients: 2_000, seconds: 70, ..small("lose", 500) };
    let of = |seed| run(&scenario, Strategy::Berth, &Policy::default(), seed);
    assert_eq!(of(7), of(7));
    assert_ne!(of(7).samples, of(8).samples);
}

#[test]
fn nobody_is_lost_and_nobody_is_counted_twice() {
    for name in Scenario::NAMES {
        let scenario = Scenario { clients: 2_000, seconds: 100, ..small(name, 2_000) };
        let outcome = outcome(&scenario, Strategy::Berth);
        assert_eq!(outcome.samples.len(), 100, "{name}");
        for sample in &outcome.samples {
            assert!(sample.connected + sample.waiting <= 2_000, "{name}: {sample:?}");
        }
        let last = outcome.samples.last().expect("100");
        assert!(f64::from(last.connected) > 0.97 * f64::from(scenario.online()), "{name}: {last:?}");
        assert_eq!(outcome.no_gateway, 0, "{name}");
    }
}

#[test]
fn with_fresh_reports_load_stays_even() {
    let berth = outcome(&small("steady", 500), Strategy::Berth);
    let least = outcome(&small("steady", 500), Strategy::LeastConnections);
    assert!(berth.imbalance_max <= 1.05, "{}", berth.imbalance_max);
    assert!(berth.imbalance_max < least.imbalance_max, "{} herds", least.imbalance_max);
}

#[test]
fn after_losing_one_of_ten_gateways_load_stays_even_though_reports_are_old() {
    let scenario = small("lose", 2_000);
    let berth = outcome(&scenario, Strategy::Berth);
    let least = outcome(&scenario, Strategy::LeastConnections);
    assert!(berth.imbalance_max <= 1.25, "{}", berth.imbalance_max);
    assert!(least.imbalance_max > berth.imbalance_max, "{} herds", least.imbalance_max);
    assert!(berth.recovery_seconds.is_some_and(|seconds| seconds <= 10), "{:?}", berth.recovery_seconds);
}

#[test]
fn however_old_reports_are_load_stays_bounded() {
    for name in ["steady", "lose", "stale", "storm"] {
        for delay_ms in [10_000, 60_000] {
            let berth = outcome(&small(name, delay_ms), Strategy::Berth);
            assert!(berth.imbalance_max <= 1.25, "{name}, {delay_ms} ms: {}", berth.imbalance_max);
            assert_eq!(berth.no_gateway, 0, "{name}, {delay_ms} ms");
        }
    }
}

#[test]
fn a_gray_rule_that_grows_and_shrinks_is_followed_as_clients_come_back() {
    // Short sessions: 360 s after a change nearly everybody has come back with a ticket (of 300 s) that is newer.
    let scenario =
        Scenario { session_seconds: 30.0, away_seconds: 3.0, seconds: 1_140, ..small("ramp", 500) };
    let outcome = outcome(&scenario, Strategy::Berth);
    let share_at = |second: usize| outcome.samples[second - 1].canary;
    assert_eq!(share_at(59), 0.0);
    for (second, share) in [(419, 0.05), (779, 0.25), (1_140, 0.05)] {
        let found = share_at(second);
        assert!((found - share).abs() < 0.2 * share + 0.01, "{found} at {second} s");
    }
    let lists = outcome.samples.windows(2).filter(|pair| (pair[0].canary - pair[1].canary).abs() > 0.02);
    assert_eq!(lists.count(), 0, "as they come back, not all at once");
}

/// The figures of docs/scheduling.md at their size.
#[test]
#[ignore = "long"]
fn a_million_clients_on_a_thousand_gateways_stay_even() {
    let large = |name: &str, report_delay_ms| Scenario {
        gateways: 1_000,
        clients: 1_000_000,
        report_delay_ms,
        ..Scenario::named(name).expect("known")
    };
    let steady = outcome(&large("steady", 500), Strategy::Berth);
    assert!(steady.imbalance_max <= 1.05, "{}", steady.imbalance_max);
    let lose = outcome(&large("lose", 2_000), Strategy::Berth);
    assert!(lose.imbalance_max <= 1.25, "{}", lose.imbalance_max);
}
