//! What a scheduler holds beyond its own life: told to gateways, learnt from them, kept on disk.

use berth_proto::{
    carry::kind,
    wire::{Drain, Revocation},
};

use super::*;
use crate::testing::{Fixture, config, eventually, report};

fn drain(gateway: &str, version: u64) -> CarriedRecord {
    Record::Drain(Drain { gateway_id: gateway.to_owned(), active: true, ..Default::default() })
        .carried(version, 0)
}

/// One that holds the drain of that gateway.
fn carrier(gateway: &str) -> Carrier {
    let carrier = Carrier::new();
    carrier.merge(vec![drain(gateway, 1)], 0);
    carrier
}

/// Some time, on both clocks.
fn at(ms: i64) -> Now {
    Now { monotonic_ms: ms, wall_ms: ms }
}

/// A gateway with the records of a store: what it was told with its report at that time, which it holds then.
fn told(carrier: &Carrier, gateway: &mut Store, told: &mut Told, ms: i64) -> Vec<Carried> {
    let telling = carrier.tell(told, &gateway.digests(), at(ms));
    let carried = telling.carried.clone();
    *told = telling.done();
    for carried in carried.clone() {
        let said = carry::Said::of(&carried);
        gateway.merge(carried.records, 0);
        said.into_iter().for_each(|said| drop(carrier.merge(gateway.missing(&said), 0)));
    }
    carried
}

/// How many records were told, and whether as all of their kind.
fn counts(told: &[Carried]) -> Vec<(usize, bool)> {
    told.iter().map(|carried| (carried.records.len(), carried.whole != 0)).collect()
}

#[test]
fn a_new_scheduler_and_a_gateway_tell_each_other_everything_once() {
    let carrier = carrier("ours");
    let (mut gateway, mut state) = (Store::default(), Told::default());
    gateway.merge(vec![drain("theirs", 1)], 0);
    assert_eq!(counts(&told(&carrier, &mut gateway, &mut state, 0)), [(1, true)]);
    assert_eq!(carrier.read(|store| store.count(kind::DRAIN)), 2);
    assert!(told(&carrier, &mut gateway, &mut state, 500).is_empty(), "they agree");
}

#[test]
fn one_that_holds_nothing_asks_a_few_and_the_others_when_they_still_differ() {
    let carrier = Carrier::new();
    let mut gateway = Store::default();
    gateway.merge(vec![drain("theirs", 1)], 0);
    let mut states = vec![Told::default(); 10];
    let mut asked = |ms: i64| {
        let telling = states.iter_mut().map(|state| {
            let telling = carrier.tell(state, &gateway.digests(), at(ms));
            let asks = !telling.carried.is_empty();
            *state = telling.done();
            asks
        });
        telling.filter(|asks| *asks).count()
    };
    assert_eq!((asked(0), asked(500), asked(4_500)), (3, 0, 0));
    assert_eq!(asked(5_500), 7, "none of them answered");
    carrier.merge(vec![drain("ours", 1)], 0);
    let mut new = Told::default();
    assert_eq!(counts(&told(&carrier, &mut gateway, &mut new, 6_000)), [(1, true)], "one that differs");
}

#[test]
fn news_are_told_by_themselves_and_what_is_lost_after_some_seconds() {
    let carrier = carrier("old");
    let (mut gateway, mut state) = (Store::default(), Told::default());
    told(&carrier, &mut gateway, &mut state, 0);
    told(&carrier, &mut gateway, &mut state, 500);
    carrier.merge(vec![drain("new", 1)], 0);
    assert_eq!(counts(&told(&carrier, &mut gateway, &mut state, 1_000)), [(1, false)], "not what it has");
    assert!(told(&carrier, &mut gateway, &mut state, 1_500).is_empty());

    carrier.merge(vec![drain("lost", 1)], 0);
    state = carrier.tell(&state, &gateway.digests(), at(2_000)).done();
    // The next news make it one that this scheduler never was.
    carrier.merge(vec![drain("newer", 1)], 0);
    assert_eq!(counts(&told(&carrier, &mut gateway, &mut state, 2_500)), [(1, false)]);
    for ms in (3_000..7_500).step_by(500) {
        assert!(told(&carrier, &mut gateway, &mut state, ms).is_empty(), "it may be on its way: {ms}");
    }
    assert_eq!(counts(&told(&carrier, &mut gateway, &mut state, 7_500)), [(4, true)]);
    assert!(told(&carrier, &mut gateway, &mut state, 8_000).is_empty());
}

#[test]
fn what_is_lost_before_a_long_silence_is_told_again() {
    let carrier = carrier("old");
    let (mut gateway, mut state) = (Store::default(), Told::default());
    told(&carrier, &mut gateway, &mut state, 0);
    told(&carrier, &mut gateway, &mut state, 500);
    carrier.merge(vec![drain("lost", 1)], 0);
    state = carrier.tell(&state, &gateway.digests(), at(1_000)).done();
    for ms in (1_500..6_500).step_by(500) {
        assert!(told(&carrier, &mut gateway, &mut state, ms).is_empty(), "{ms}");
    }
    assert_eq!(counts(&told(&carrier, &mut gateway, &mut state, 6_500)), [(2, true)]);
}

#[test]
fn news_that_come_all_the_time_are_no_loss() {
    let carrier = carrier("old");
    let (mut gateway, mut state) = (Store::default(), Told::default());
    told(&carrier, &mut gateway, &mut state, 0);
    // Each report was sent before the telling that it crosses was heard.
    let mut on_its_way = Vec::new();
    for n in 0..200 {
        carrier.merge(vec![drain(&format!("gw-{n}"), 1)], 0);
        let telling = carrier.tell(&state, &gateway.digests(), at(n * 500));
        assert_eq!(counts(&telling.carried), [(1, false)], "{n}");
        let records = telling.carried.iter().flat_map(|carried| carried.records.clone()).collect();
        state = telling.done();
        gateway.merge(std::mem::replace(&mut on_its_way, records), 0);
    }
}

#[test]
fn a_gateway_that_keeps_nothing_is_told_everything_now_and_then() {
    let carrier = carrier("gw-1");
    let mut state = Told::default();
    let mut times = 0;
    for n in 0..200 {
        let telling = carrier.tell(&state, &[EMPTY; KINDS], at(n * 500));
        times += telling.carried.len();
        state = telling.done();
    }
    assert_eq!(times, 4, "at the first report, and each half minute");
    let old = carrier.tell(&Told::default(), &[], at(0));
    assert!(old.carried.is_empty(), "one that tells no digests does not know what records are");
}

#[test]
fn who_is_far_behind_is_told_everything() {
    let carrier = carrier("old");
    let (mut gateway, mut state) = (Store::default(), Told::default());
    told(&carrier, &mut gateway, &mut state, 0);
    told(&carrier, &mut gateway, &mut state, 500);
    let many = (0..=NEWS).map(|n| drain(&format!("gw-{n}"), 1)).collect();
    carrier.merge(many, 0);
    assert_eq!(counts(&told(&carrier, &mut gateway, &mut state, 1_000)), [(NEWS + 2, true)]);
    assert_eq!(gateway.count(kind::DRAIN), NEWS + 2);
}

#[tokio::test]
async fn records_outlive_a_scheduler_on_its_disk_and_expired_ones_do_not() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data_dir = Some(directory.path().join("scheduler"));
    let kept = crate::Config { data_dir: data_dir.clone(), ..config() };
    let fixture = Fixture::start(kept).await;
    let revoked = Record::Revocation(Revocation { user_id: "alice".into(), ..Default::default() });
    let core = &fixture.scheduler.core;
    let soon = core.clock.wall_ms() + 500;
    assert_eq!(core.carry_durably(vec![drain("gw-1", 7), revoked.carried(1, soon)]).await, Ok(true));
    let second = Fixture::try_start(crate::Config { data_dir: data_dir.clone(), ..config() }).await;
    let problem = second.err().map(|error| format!("{:#}", anyhow_chain(&error)));
    assert!(problem.is_some_and(|text| text.contains("another process uses it")));
    fixture.scheduler.stop().await;
    eventually("it has expired", || crate::clock::Clock::start().wall_ms() > soon).await;

    let again = Fixture::start(crate::Config { data_dir, ..config() }).await;
    again.scheduler.core.carried.read(|store| {
        assert_eq!(store.get(kind::DRAIN, "gw-1"), Some(&drain("gw-1", 7)));
        assert_eq!(store.count(kind::REVOCATION), 0);
    });
    again.scheduler.stop().await;
}

#[tokio::test]
async fn what_there_is_no_room_for_is_not_answered_as_in_force() {
    let fixture = Fixture::start(config()).await;
    let core = &fixture.scheduler.core;
    let revoked = |user: &str, version| {
        Record::Revocation(Revocation { user_id: user.into(), ..Default::default() }).carried(version, 0)
    };
    let full = (0..RECORDS_EACH).map(|n| revoked(&format!("user-{n}"), 9));
    assert_eq!(core.carry_durably(full.collect()).await, Ok(true));
    assert_eq!(core.carry_durably(vec![revoked("older", 8)]).await, Err(NoRoom));
    assert_eq!(fixture.metric(r#"berth_scheduler_carried_evicted_total{kind="revocation"}"#), 1.0);
    assert_eq!(core.carry_durably(vec![revoked("newer", 10)]).await, Ok(true));
}

#[tokio::test]
async fn a_disk_that_does_not_take_it_does_not_hold_the_answer_up() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data_dir = directory.path().join("scheduler");
    let fixture = Fixture::start(crate::Config { data_dir: Some(data_dir.clone()), ..config() }).await;
    // What would be written cannot be: a directory is in its place.
    std::fs::create_dir(data_dir.join("carried.new")).expect("made");
    let core = &fixture.scheduler.core;
    let ordered = tokio::time::timeout(5 * DISK, core.carry_durably(vec![drain("gw-1", 7)])).await;
    assert_eq!(ordered, Ok(Ok(false)), "in force, and not on disk");
    assert_eq!(core.carried.read(|store| store.count(kind::DRAIN)), 1);
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("carried"), b"\xff\xff\xff").expect("written");
    let config = crate::Config { data_dir: Some(directory.path().to_owned()), ..config() };
    let error = Fixture::try_start(config).await.err().expect("refused");
    assert!(anyhow_chain(&error).contains("remove it"), "{error}");
}

/// The error with its causes.
fn anyhow_chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(|error| format!("{error}: ")).collect()
}

#[tokio::test]
async fn a_gateway_hears_with_its_report_and_tells_what_it_has() {
    let fixture = Fixture::start(config()).await;
    let core = &fixture.scheduler.core;
    core.carry(vec![drain("gw-9", 1)]);
    let gateway = fixture.gateway(report("gw-1")).await;
    eventually("it heard", || gateway.carried().iter().any(|carried| carried.records == [drain("gw-9", 1)]))
        .await;
    gateway.carry(vec![drain("gw-8", 2)]);
    assert_eq!(core.carried.read(|store| store.get(kind::DRAIN, "gw-8").cloned()), Some(drain("gw-8", 2)));
}
