//! Reports in, snapshots out: states, groups, slow start, pending assignments and who is forgotten when.

use berth_proto::{
    client::Endpoint,
    wire::{GatewayLoad, GatewayReport, SchedulerSeen},
};

use super::*;

const SLOW_START_MS: i64 = 30_000;

fn report(id: &str, pool: &str, region: &str, zone: &str) -> GatewayReport {
    GatewayReport {
        gateway_id: id.to_owned(),
        boot: 1,
        region: region.to_owned(),
        zone: zone.to_owned(),
        pool: pool.to_owned(),
        endpoints: vec![Endpoint {
            transport: "ws".to_owned(),
            url: format!("ws://{id}/v1/ws"),
            ..Endpoint::default()
        }],
        ready: true,
        capacity: 100,
        uptime_ms: 60_000,
        ..GatewayReport::default()
    }
}

fn table(reports: &[GatewayReport]) -> Table {
    let mut table = Table::default();
    for report in reports {
        table.take(1, report, 0).expect("a valid report");
    }
    table
}

fn state_of(fleet: &Fleet, id: &str) -> Option<State> {
    fleet.find(id).map(|index| fleet.gateway(index).state)
}

#[test]
fn groups_are_found_by_name() {
    let reports = [
        report("g5", "stable", "us", "a"),
        report("g1", "stable", "eu", "b"),
        report("g2", "stable", "eu", "a"),
        report("g3", "canary", "eu", "a"),
        report("g4", "stable", "eu", "a"),
    ];
    let fleet = table(&reports).snapshot(0, SLOW_START_MS);
    let pool = fleet.pool("stable").expect("reported");
    assert_eq!((pool.len(), pool.children.len()), (4, 2));
    let eu = fleet.region(pool, "eu").expect("reported");
    assert_eq!(eu.len(), 3);
    let zone = fleet.zone(eu, "a").expect("reported");
    let ids: Vec<_> = fleet.candidates[zone.candidates.start as usize..zone.candidates.end as usize]
        .iter()
        .map(|index| &*fleet.gateway(*index).profile.id)
        .collect();
    assert_eq!(ids, ["g2", "g4"]);
    assert_eq!((pool.sums().capacity, eu.sums().capacity, zone.sums().capacity), (400, 300, 200));
    assert!(
        fleet.pool("beta").is_none() && fleet.region(pool, "ap").is_none() && fleet.zone(eu, "c").is_none()
    );
    for (index, gateway) in (0..).zip(&fleet.gateways) {
        assert_eq!(fleet.find(&gateway.profile.id), Some(index));
        let [own_pool, own_region, own_zone] = fleet.groups_of(gateway);
        assert_eq!(fleet.labels(own_pool).pool, gateway.profile.pool);
        assert_eq!(fleet.labels(own_region).region, gateway.profile.region);
        assert_eq!(fleet.labels(own_zone).zone, gateway.profile.zone);
    }
}

#[test]
fn every_state() {
    let mut reports: Vec<_> = (0..9).map(|n| report(&format!("ok{n}"), "stable", "", "")).collect();
    let mut table = table(&[
        GatewayReport { draining: true, ..report("draining", "stable", "", "") },
        GatewayReport { ready: false, ..report("not-ready", "stable", "", "") },
        GatewayReport { endpoints: vec![], ..report("no-endpoint", "stable", "", "") },
        GatewayReport { connections: 100, ..report("full", "stable", "", "") },
        GatewayReport { capacity: 0, ..report("no-capacity", "stable", "", "") },
    ]);
    let old = |id: &str| report(id, "stable", "", "");
    table.take(1, &old("dead"), -DEAD_AFTER_MS - 1).expect("valid");
    table.take(1, &old("stale"), -STALE_AFTER_MS - 1).expect("valid");
    table.take(1, &old("late"), -STALE_AFTER_MS).expect("valid");
    for report in &mut reports {
        table.take(1, report, 0).expect("valid");
    }
    let fleet = table.snapshot(0, SLOW_START_MS);
    let expected = [
        ("draining", State::Draining),
        ("not-ready", State::NotReady),
        ("no-endpoint", State::NotReady),
        ("full", State::Full),
        ("no-capacity", State::Full),
        ("dead", State::Dead),
        ("stale", State::Stale),
        ("late", State::Assignable),
        ("ok0", State::Assignable),
    ];
    for (id, state) in expected {
        assert_eq!(state_of(&fleet, id), Some(state), "{id}");
    }
    assert_eq!(fleet.candidates.len(), 10);
    assert_eq!(fleet.counts(), [10, 2, 2, 1, 1, 1]);
    assert!(!fleet.distrusted);
}

#[test]
fn who_could_not_be_heard_was_not_silent() {
    let mut table = table(&[report("g1", "stable", "", ""), report("g2", "stable", "", "")]);
    // Away from 300 to 60,300; of the second a report was read first thing after.
    table.take(1, &report("g2", "stable", "", ""), 60_310).expect("valid");
    table.forgive(60_000, 60_320);
    let fleet = table.snapshot(60_320, SLOW_START_MS);
    assert_eq!(fleet.candidates.len(), 2);
    let fleet = table.snapshot(60_320 + STALE_AFTER_MS, SLOW_START_MS);
    assert_eq!(state_of(&fleet, "g1"), Some(State::Stale), "from then on silence is silence");
    assert_eq!(state_of(&fleet, "g2"), Some(State::Assignable), "and no report is from the future");
}

#[test]
fn a_fleet_that_falls_silent_at_once_is_still_believed_to_serve() {
    let reports: Vec<_> = (0..10).map(|n| report(&format!("g{n}"), "stable", "", "")).collect();
    let mut table = table(&reports);
    table.take(1, &reports[0], 10_000).expect("valid");
    let fleet = table.snapshot(10_000, SLOW_START_MS);
    assert!(fleet.distrusted);
    assert_eq!(fleet.candidates.len(), 10);
    assert_eq!(fleet.gateways.iter().filter(|gateway| gateway.old_load).count(), 9);
    for report in &reports[1..6] {
        table.take(1, report, 10_100).expect("valid");
    }
    let fleet = table.snapshot(10_100, SLOW_START_MS);
    assert!(!fleet.distrusted, "only 4 of 10 are silent now");
    assert_eq!(fleet.candidates.len(), 6);
}

#[test]
fn a_sole_gateway_that_is_killed_is_not_assigned() {
    let mut table = table(&[report("g1", "stable", "", "")]);
    assert_eq!(table.snapshot(STALE_AFTER_MS, SLOW_START_MS).candidates.len(), 1);
    let fleet = table.snapshot(STALE_AFTER_MS + 1, SLOW_START_MS);
    assert_eq!((fleet.candidates.len(), state_of(&fleet, "g1")), (0, Some(State::Stale)));
    let fleet = table.snapshot(DEAD_AFTER_MS + 1, SLOW_START_MS);
    assert_eq!((fleet.distrusted, state_of(&fleet, "g1")), (false, Some(State::Dead)));
}

#[test]
fn draining_gateways_that_report_prove_that_we_hear() {
    let reports: Vec<_> = (0..8).map(|n| report(&format!("g{n}"), "stable", "", "")).collect();
    let mut table = table(&reports);
    for leaving in &reports[4..] {
        let leaving = GatewayReport { draining: true, ..leaving.clone() };
        table.take(1, &leaving, 10_000).expect("valid");
    }
    let fleet = table.snapshot(10_000, SLOW_START_MS);
    assert!(!fleet.distrusted, "four are heard, so the four that are not are dead");
    assert!(fleet.candidates.is_empty());
}

#[test]
fn a_silent_fleet_is_given_up_in_the_end() {
    let reports: Vec<_> = (0..10).map(|n| report(&format!("g{n}"), "stable", "", "")).collect();
    let mut table = table(&reports);
    let fleet = table.snapshot(FORGET_AFTER_MS, SLOW_START_MS);
    assert_eq!((fleet.distrusted, fleet.candidates.len()), (true, 10));
    let fleet = table.snapshot(FORGET_AFTER_MS + 1, SLOW_START_MS);
    assert_eq!((fleet.distrusted, fleet.candidates.len(), table.len()), (false, 0, 0));
}

#[test]
fn the_dead_and_the_departed_are_forgotten() {
    let reports: Vec<_> = (0..4).map(|n| report(&format!("g{n}"), "stable", "", "")).collect();
    let mut table = table(&reports);
    let leaving = GatewayReport { draining: true, ..reports[0].clone() };
    table.take(1, &leaving, 100).expect("valid");
    let alive = |table: &mut Table, now| {
        for report in &reports[2..] {
            table.take(1, report, now).expect("valid");
        }
    };
    alive(&mut table, 4_000);
    let fleet = table.snapshot(4_000, SLOW_START_MS);
    assert_eq!((state_of(&fleet, "g0"), state_of(&fleet, "g1")), (None, Some(State::Dead)));
    alive(&mut table, FORGET_AFTER_MS + 1);
    let fleet = table.snapshot(FORGET_AFTER_MS + 1, SLOW_START_MS);
    assert_eq!((fleet.gateways.len(), table.len()), (2, 2));
    assert_eq!(table.take(1, &reports[1], FORGET_AFTER_MS + 2), Ok(true), "it may come back");
}

#[test]
fn labels_may_change_and_a_new_boot_starts_with_nothing_pending() {
    let mut table = table(&[report("g1", "stable", "eu", "a")]);
    let mut pending = Pending::default();
    let fleet = table.snapshot(0, SLOW_START_MS);
    pending.assign(&fleet, Place::at_once(0, "alice", 7), 0);
    assert_eq!(table.take(1, &report("g1", "canary", "eu", "a"), 10), Ok(true));
    let fleet = table.snapshot(10, SLOW_START_MS);
    assert_eq!(fleet.gateways.len(), 1);
    assert!(fleet.pool("stable").is_none() && fleet.pool("canary").is_some());
    pending.assign(&fleet, Place::at_once(0, "alice", 8), 10);
    let reborn = GatewayReport { boot: 2, ..report("g1", "canary", "eu", "a") };
    table.take(2, &reborn, 20).expect("valid");
    let fleet = table.snapshot(20, SLOW_START_MS);
    assert_eq!(fleet.gateway(0).pending(), 0);
    assert_eq!(table.take(1, &report("g1", "stable", "eu", "a"), 30), Err(ReportError::Superseded));
    pending.expire(20_000);
    assert_eq!(fleet.gateway(0).pending(), 0, "the old boot's assignment does not count against the new one");
}

#[test]
fn an_older_link_speaks_again_when_the_newer_falls_silent() {
    let report = report("g1", "stable", "", "");
    let mut table = Table::default();
    table.take(1, &report, 0).expect("the first");
    table.take(2, &report, 100).expect("the newer");
    assert_eq!(table.take(1, &report, 100 + STALE_AFTER_MS), Err(ReportError::Superseded));
    assert_eq!(table.take(1, &report, 101 + STALE_AFTER_MS), Ok(true), "it was silent");
    assert_eq!(table.take(1, &report, 600 + STALE_AFTER_MS), Ok(false));
    assert_eq!(table.take(2, &report, 700 + STALE_AFTER_MS), Ok(false), "the newer is believed at once");
    assert_eq!(table.take(1, &report, 800 + STALE_AFTER_MS), Err(ReportError::Superseded));
}

#[test]
fn only_what_matters_is_urgent() {
    let base = report("g1", "stable", "", "");
    let mut table = table(std::slice::from_ref(&base));
    assert_eq!(table.take(1, &GatewayReport { connections: 5, ..base.clone() }, 500), Ok(false));
    assert_eq!(table.take(1, &GatewayReport { ready: false, ..base.clone() }, 1_000), Ok(true));
    assert_eq!(table.take(1, &GatewayReport { draining: true, ..base.clone() }, 1_500), Ok(true));
    assert_eq!(
        table.take(1, &GatewayReport { draining: true, ..base.clone() }, 9_000),
        Ok(true),
        "it was silent"
    );
}

#[test]
fn reports_with_impossible_labels_are_refused() {
    let base = report("g1", "stable", "", "");
    let long = "x".repeat(65);
    let cases = [
        GatewayReport { gateway_id: String::new(), ..base.clone() },
        GatewayReport { gateway_id: "a b".to_owned(), ..base.clone() },
        GatewayReport { pool: String::new(), ..base.clone() },
        GatewayReport { region: long.clone(), ..base.clone() },
        GatewayReport { zone: long.clone(), ..base.clone() },
        GatewayReport { version: long, ..base.clone() },
        GatewayReport { endpoints: vec![Endpoint::default(); 9], ..base.clone() },
    ];
    for case in cases {
        let mut table = Table::default();
        assert!(matches!(table.take(1, &case, 0), Err(ReportError::Label { .. })), "{case:?}");
        assert!(table.is_empty());
    }
    let absurd = GatewayReport { capacity: u64::MAX, connections: u64::MAX, uptime_ms: u64::MAX, ..base };
    let fleet =
        table(&[absurd.clone(), GatewayReport { gateway_id: "g2".to_owned(), ..absurd }]).snapshot(0, 1);
    assert_eq!(fleet.counts()[State::Full as usize], 2);
}

#[test]
fn a_new_gateway_counts_for_little_at_first() {
    let weight = |uptime_ms, since_report, slow_start_ms| {
        let mut table = table(&[GatewayReport { uptime_ms, ..report("g1", "stable", "", "") }]);
        table.snapshot(since_report, slow_start_ms).gateway(0).weight
    };
    assert_eq!(weight(0, 0, SLOW_START_MS), 10.0);
    assert_eq!(weight(15_000, 0, SLOW_START_MS), 50.0);
    assert_eq!(weight(14_000, 1_000, SLOW_START_MS), 50.0, "time since the report counts");
    assert_eq!(weight(40_000, 0, SLOW_START_MS), 100.0);
    assert_eq!(weight(0, 0, 0), 100.0);
}

/// A report that says how much of its CPU is used, in percent.
fn busy(id: &str, connections: u64, cpu: u64) -> GatewayReport {
    let load = GatewayLoad {
        cpu_millis_per_second: cpu,
        cpu_millis_per_second_capacity: 100,
        ..GatewayLoad::default()
    };
    GatewayReport { connections, load: Some(load), ..report(id, "stable", "", "") }
}

#[test]
fn a_gateway_that_degrades_loses_its_share_in_steps_and_gets_it_back_slowly() {
    let mut table = table(&[busy("g1", 10, 10)]);
    let mut at = |now, connections, cpu| {
        table.take(1, &busy("g1", connections, cpu), now).expect("valid");
        let fleet = table.snapshot(now, SLOW_START_MS);
        (fleet.gateway(0).load, fleet.pool("stable").expect("reported").sums().used)
    };
    // 95% of its CPU: 90% of what is above a half.
    assert_eq!(at(500, 10, 95), (10, 90), "a tenth a report: as much as its connections");
    assert_eq!(at(1_000, 10, 95).0, 19, "10, and 7/8 of what 20 is above them");
    for n in 3..9 {
        at(n * 500, 10, 95);
    }
    assert_eq!(at(4_500, 10, 95).0, 80, "10, and 7/8 of what 90 is above them");
    assert_eq!(at(5_000, 70, 95), (88, 90), "connections count at once");
    assert_eq!(at(8_000, 10, 10).0, 71, "a tenth less after three seconds");
    assert_eq!(at(40_000, 10, 10).0, 10);
    let reborn = GatewayReport { boot: 2, ..busy("g1", 0, 75) };
    table.take(2, &reborn, 40_500).expect("valid");
    assert_eq!(table.snapshot(40_500, SLOW_START_MS).gateway(0).load, 44, "a new start has no past");
}

#[test]
fn a_gateway_that_says_only_its_connections_is_taken_to_be_as_strained_as_its_pool() {
    let silent = |id: &str, pool: &str| GatewayReport { connections: 10, ..report(id, pool, "", "") };
    let mut table =
        table(&[busy("g1", 10, 95), busy("g2", 10, 75), silent("g3", "stable"), silent("g4", "canary")]);
    let fleet = table.snapshot(500, SLOW_START_MS);
    let load = |id: &str| fleet.gateway(fleet.find(id).expect("reported")).load;
    assert_eq!((load("g1"), load("g2")), (80, 45));
    assert_eq!(load("g3"), 63, "10, and 7/8 of what 70 is above them");
    assert_eq!(load("g4"), 10, "nobody of its pool says more");
}

#[test]
fn what_is_old_never_attracts() {
    let mut reports: Vec<_> = (0..10).map(|n| report(&format!("g{n}"), "stable", "", "")).collect();
    for (n, connections) in (0..).zip([0, 20, 40, 60, 80]) {
        reports[n].connections = connections;
    }
    let mut table = table(&reports);
    let loads = |table: &mut Table, now| -> Vec<u64> {
        table.snapshot(now, SLOW_START_MS).gateways.iter().map(|gateway| gateway.load).collect()
    };
    assert_eq!(
        loads(&mut table, 500)[..5],
        [0, 20, 40, 60, 80],
        "between two reports they are as good as new"
    );
    // The other five are heard of again, with 50 each: what is known of the pool's mean comes to be theirs.
    let heard: Vec<_> =
        reports[5..].iter().map(|report| GatewayReport { connections: 50, ..report.clone() }).collect();
    let mut before = vec![0; 5];
    for now in [60_000, 120_000] {
        for report in &heard[..4] {
            table.take(1, report, now).expect("valid");
        }
        let fleet = table.snapshot(now, SLOW_START_MS);
        assert!(fleet.distrusted, "six of ten are silent");
        let now = loads(&mut table, now);
        assert!(now[..5].iter().zip(&before).all(|(now, before)| now >= before), "{now:?}");
        assert_eq!(now[3..5], [60, 80], "who was above the mean stays there");
        before = now;
    }
    assert_eq!(before[..3], [50; 3], "who was below is taken for the mean");
}

#[test]
fn each_dimension_is_counted() {
    let mut table = table(&[busy("g1", 10, 90), busy("g2", 50, 20), report("g3", "stable", "", "")]);
    table.take(1, &GatewayReport { draining: true, ..busy("g4", 10, 400) }, 0).expect("valid");
    let counts = table.snapshot(0, SLOW_START_MS).dimensions();
    let of = |dimension: Dimension| counts[dimension as usize];
    assert_eq!(of(Dimension::Connections), DimensionCounts { decides: 2, most: 0.5 });
    assert_eq!(
        of(Dimension::Cpu),
        DimensionCounts { decides: 1, most: 0.9 },
        "the one that leaves is left out"
    );
    assert_eq!(of(Dimension::Memory), DimensionCounts::default());
}

#[test]
fn pending_counts_until_used_or_ten_seconds() {
    let mut table = table(&[report("g1", "stable", "eu", "a"), report("g2", "stable", "eu", "a")]);
    let fleet = table.snapshot(0, SLOW_START_MS);
    let mut pending = Pending::default();
    for id in 0..6 {
        pending.assign(
            &fleet,
            Place::at_once(0, &format!("u{id}"), id),
            i64::try_from(id).expect("small") * 1_000,
        );
    }
    assert_eq!((fleet.gateway(0).pending(), fleet.gateway(1).pending()), (6, 0));
    assert_eq!(fleet.pool("stable").expect("reported").sums().pending, 6);
    pending.used(&[1, 2, 99, 1]);
    assert_eq!(fleet.gateway(0).pending(), 6, "their connections are in no snapshot yet");
    pending.settle();
    assert_eq!((pending.len(), fleet.gateway(0).pending()), (4, 4));
    pending.expire(9_999);
    assert_eq!(pending.len(), 4);
    pending.expire(12_000);
    assert_eq!((pending.len(), fleet.gateway(0).pending()), (3, 3), "the first is ten seconds old");
    pending.expire(60_000);
    assert_eq!((pending.len(), fleet.gateway(0).pending()), (0, 0));
    assert_eq!(pending.counts(), PendingCounts { used: 2, expired: 4, ..PendingCounts::default() });
    assert_eq!(table.snapshot(100, SLOW_START_MS).pool("stable").expect("reported").sums().pending, 0);
}

#[test]
fn the_ledger_is_bounded() {
    let fleet = table(&[report("g1", "stable", "", "")]).snapshot(0, SLOW_START_MS);
    let mut pending = Pending::default();
    for id in 0..300_000 {
        pending.assign(&fleet, Place::at_once(0, &format!("u{id}"), id), 0);
    }
    assert_eq!((pending.len(), fleet.gateway(0).pending()), (262_144, 262_144));
    assert_eq!(pending.counts().evicted, 300_000 - 262_144);
}

#[test]
fn one_user_who_never_connects_fills_nobody() {
    let mut table = table(&[report("g1", "stable", "eu", "a"), report("g2", "stable", "eu", "a")]);
    let fleet = table.snapshot(0, SLOW_START_MS);
    let mut pending = Pending::default();
    pending.assign(&fleet, Place::at_once(1, "bob", 9_999), 0);
    for id in 0..1_000 {
        pending.assign(&fleet, Place::at_once(0, "mallory", id), 0);
    }
    assert_eq!(
        (fleet.gateway(0).pending(), fleet.gateway(1).pending()),
        (4, 1),
        "the newest four, and bob's"
    );
    assert_eq!(fleet.pool("stable").expect("reported").sums().pending, 5, "the mean is not raised either");
    assert_eq!(pending.counts().superseded, 996);
    pending.used(&[998]);
    pending.settle();
    pending.assign(&fleet, Place::at_once(1, "mallory", 1_000), 0);
    assert_eq!((fleet.gateway(0).pending(), fleet.gateway(1).pending()), (3, 2), "a used one makes room");
    pending.expire(60_000);
    assert!(pending.is_empty());
    assert_eq!((fleet.gateway(0).pending(), fleet.gateway(1).pending()), (0, 0));
}

#[test]
fn who_was_moved_and_asks_anew_is_not_lost() {
    let fleet = table(&[report("g1", "stable", "eu", "a"), report("g2", "stable", "eu", "a")])
        .snapshot(0, SLOW_START_MS);
    let mut pending = Pending::default();
    let place = |gateway, device_id, schedule_id, moved| Place {
        device_id,
        moved,
        ..Place::at_once(gateway, "alice", schedule_id)
    };
    pending.assign(&fleet, place(0, "phone", 1, true), 0);
    pending.assign(&fleet, place(0, "tablet", 2, true), 0);
    pending.assign(&fleet, place(1, "phone", 3, false), 1_000);
    assert_eq!((fleet.gateway(0).pending(), fleet.gateway(1).pending()), (1, 1), "the tablet's is kept");
    assert_eq!(fleet.pool("stable").expect("reported").sums().pending, 2);
    pending.used(&[3]);
    pending.settle();
    pending.expire(60_000);
    let counts = PendingCounts { used: 1, expired: 1, superseded: 1, lost: 1, ..PendingCounts::default() };
    assert_eq!(pending.counts(), counts, "the tablet alone");

    pending.assign(&fleet, place(0, "phone", 4, false), 0);
    pending.assign(&fleet, place(1, "phone", 5, false), 0);
    assert_eq!((fleet.gateway(0).pending(), fleet.gateway(1).pending()), (1, 1), "others may both come");
}

#[test]
fn who_was_moved_and_could_not_connect_there_is_lost() {
    let fleet = table(&[report("g1", "stable", "eu", "a"), report("g2", "stable", "eu", "a")])
        .snapshot(0, SLOW_START_MS);
    for (failed, lost) in [(&["g1"][..], 1), (&["g2", "g1"], 1), (&["g2"], 0), (&[], 0)] {
        let failed: Vec<String> = failed.iter().map(|id| (*id).to_owned()).collect();
        let mut pending = Pending::default();
        let moved = Place { device_id: "phone", moved: true, ..Place::at_once(0, "alice", 1) };
        pending.assign(&fleet, moved, 0);
        let anew = Place { device_id: "phone", failed: &failed, ..Place::at_once(1, "alice", 2) };
        pending.assign(&fleet, anew, 2_000);
        pending.expire(60_000);
        let counts = PendingCounts { superseded: 1, expired: 1, lost, ..PendingCounts::default() };
        assert_eq!(pending.counts(), counts, "{failed:?}");
    }
}

#[test]
fn an_older_gateway_s_rate_is_shared_by_the_schedulers_that_it_knows() {
    let admit = |schedulers: usize| {
        let seen = |n| SchedulerSeen { scheduler_id: format!("s{n}"), ..SchedulerSeen::default() };
        let report = GatewayReport {
            handshakes_per_second_capacity: 900,
            admit_per_second: None,
            schedulers: (0..schedulers).map(seen).collect(),
            ..report("g", "stable", "", "")
        };
        table(&[report]).snapshot(0, 0).gateway(0).admit_per_second
    };
    assert_eq!([0, 1, 3].map(admit), [900, 900, 300]);
}
