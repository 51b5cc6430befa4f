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

/// A gateway with the records of a store: what it holds after it was told, and whether it was.
fn told(carrier: &Carrier, gateway: &mut Store, told: &mut Told) -> Option<Carried> {
    let telling = carrier.tell(told, &gateway.digests(), 0);
    let carried = telling.carried.clone();
    *told = telling.done();
    let carried = carried?;
    gateway.merge(carried.records.clone(), 0);
    if carried.whole != 0 {
        carrier.merge(gateway.missing(&carried), 0);
    }
    Some(carried)
}

#[test]
fn a_new_scheduler_and_a_gateway_tell_each_other_everything_once() {
    let carrier = carrier("ours");
    let (mut gateway, mut state) = (Store::default(), Told::default());
    gateway.merge(vec![drain("theirs", 1)], 0);
    assert!(told(&carrier, &mut gateway, &mut state).is_some());
    assert_eq!(carrier.read(|store| store.count(kind::DRAIN)), 2);
    assert!(told(&carrier, &mut gateway, &mut state).is_none(), "they agree");
}

#[test]
fn news_are_told_by_themselves_and_what_is_lost_at_the_second_difference() {
    let carrier = carrier("old");
    let (mut gateway, mut state) = (Store::default(), Told::default());
    told(&carrier, &mut gateway, &mut state);
    told(&carrier, &mut gateway, &mut state);
    carrier.merge(vec![drain("new", 1)], 0);
    let news = told(&carrier, &mut gateway, &mut state).expect("news");
    assert_eq!((news.records.len(), news.whole), (1, 0), "not what it has already");
    assert!(told(&carrier, &mut gateway, &mut state).is_none());

    carrier.merge(vec![drain("lost", 1)], 0);
    state = carrier.tell(&state, &gateway.digests(), 0).done();
    let again = told(&carrier, &mut gateway, &mut state).expect("everything of the kind");
    assert_eq!((again.records.len(), again.whole), (3, 1 << kind::DRAIN));
    assert!(told(&carrier, &mut gateway, &mut state).is_none());
}

#[test]
fn a_gateway_that_keeps_nothing_is_told_everything_now_and_then() {
    let carrier = carrier("gw-1");
    let mut state = Told::default();
    let mut times = 0;
    for _ in 0..200 {
        let telling = carrier.tell(&state, &[], 0);
        times += usize::from(telling.carried.is_some());
        state = telling.done();
    }
    assert_eq!(times, 1 + 200 / REPORTS_BETWEEN as usize);
}

#[test]
fn who_is_far_behind_is_told_everything() {
    let carrier = carrier("old");
    let (mut gateway, mut state) = (Store::default(), Told::default());
    told(&carrier, &mut gateway, &mut state);
    told(&carrier, &mut gateway, &mut state);
    let many = (0..=NEWS).map(|n| drain(&format!("gw-{n}"), 1)).collect();
    carrier.merge(many, 0);
    assert_eq!(told(&carrier, &mut gateway, &mut state).map(|carried| carried.whole), Some(1 << kind::DRAIN));
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
    let soon = core.clock.wall_ms() + 50;
    core.carry_durably(vec![drain("gw-1", 7), revoked.carried(1, soon)]).await;
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
