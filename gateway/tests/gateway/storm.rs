//! A crowd that comes at once: who is let in, when the others are told to come, and what is leased to schedulers meanwhile.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use berth_proto::{
    client::{Disconnect, server_frame::Frame},
    wire::Ticket,
};

use crate::support::{
    Site,
    client::{ALL, Client, Transport},
    eventually, now_ms,
    scheduler::FakeScheduler,
};

/// A client that has said hello, with a ticket of that age.
fn hello(site: &Site, transport: Transport, number: usize, age_ms: i64) -> Client {
    let mut client = site.connect(transport);
    let ticket = Ticket { issued_at_ms: now_ms() - age_ms, ..Site::ticket(&format!("u{number}"), "d") };
    client.hello(&site.scheduler.sign(&ticket), "d");
    client
}

/// Let in, or told to come again.
fn outcome(client: &mut Client) -> Result<(), Disconnect> {
    match client.frame() {
        Frame::Welcome(_) => Ok(()),
        Frame::Disconnect(disconnect) => Err(disconnect),
        other => panic!("expected a welcome or a disconnect, not {other:?}"),
    }
}

#[test]
fn who_says_hello_above_the_rate_is_told_when_to_come_and_is_let_in_then() {
    for transport in ALL {
        let site = Site::with(|config| config.handshakes_per_second = 40);
        let began = Instant::now();
        let mut crowd: Vec<_> = (0..100).map(|number| hello(&site, transport, number, 0)).collect();
        let outcomes: Vec<_> = crowd.iter_mut().map(outcome).collect();
        let let_in = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let most = 41 + 40 * began.elapsed().as_millis() as usize / 1_000;
        assert!((40..=most).contains(&let_in), "{transport:?}: {let_in} at once, of at most {most}");
        let told: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        assert!(told.iter().all(|told| told.code == 4009), "{transport:?}: {told:?}");
        // One behind the other at the rate, from when each said hello.
        let last = told.iter().map(|told| told.retry_after_ms).max().expect("a hundred are too many");
        let places = told.len() as u32 * 1_000 / 40;
        let passed = u32::try_from(began.elapsed().as_millis()).expect("short");
        assert!(
            last <= places + 25 && last + passed + 25 >= places,
            "{transport:?}: {last} of {places} after {passed}"
        );
        thread::sleep(Duration::from_millis(last.into()));
        assert_eq!(outcome(&mut hello(&site, transport, 100, 0)), Ok(()), "{transport:?}: as told");
    }
}

#[test]
fn a_crowd_beyond_what_is_accepted_at_once_hears_too() {
    let site = Site::with(|config| {
        config.handshakes_per_second = 50;
        config.workers = 1;
    });
    // Four times the rate is accepted; the others wait in the kernel, and their turn comes.
    let mut crowd: Vec<_> = (0..400).map(|number| hello(&site, Transport::Tcp, number, 0)).collect();
    let told = crowd.iter_mut().filter_map(|client| outcome(client).err()).count();
    assert!(told > 200, "{told} were told to come later");
    let limited = site.metrics.counter("berth_gateway_limited_total{limit=\"handshakes\"}");
    assert_eq!(limited, told as u64);
    assert_eq!(
        site.metrics.counter("berth_gateway_handshakes_total{result=\"welcomed\"}"),
        (crowd.len() - told) as u64
    );
}

#[test]
fn who_shows_no_good_ticket_makes_nobody_wait() {
    let site = Site::with(|config| {
        config.handshakes_per_second = 40;
        config.limits.handshakes_per_second_per_address = 0;
    });
    for number in 0..200 {
        let mut client = site.connect(Transport::Tcp);
        let (ticket, code) = if number % 2 == 0 {
            ("junk".to_owned(), 4500)
        } else {
            let expired = Ticket { expires_at_ms: now_ms() - 1_000, ..Site::ticket("u", "d") };
            (site.scheduler.sign(&expired), 4005)
        };
        client.hello(&ticket, "d");
        assert_eq!(outcome(&mut client).expect_err("refused").code, code);
    }
    let mut good: Vec<_> = (0..40).map(|number| hello(&site, Transport::Tcp, number, 0)).collect();
    assert!(good.iter_mut().all(|client| outcome(client).is_ok()), "all of a second's worth is left");
}

#[test]
fn nobody_is_told_to_wait_for_longer_than_his_ticket_is_good() {
    let site = Site::with(|config| {
        config.handshakes_per_second = 4;
        config.limits.handshakes_per_second_per_address = 0;
    });
    let told = |number: usize, good_for_ms: i64| {
        let ticket =
            Ticket { expires_at_ms: now_ms() + good_for_ms, ..Site::ticket(&format!("u{number}"), "d") };
        let mut client = site.connect(Transport::Tcp);
        client.hello(&site.scheduler.sign(&ticket), "d");
        outcome(&mut client).err().map_or(0, |told| told.retry_after_ms)
    };
    // Sixteen a second are accepted, four of them let in: the queue would be longer and longer.
    let waits: Vec<u32> = (0..70).map(|number| told(number, 6_000)).collect();
    assert!(waits.iter().all(|wait| *wait <= 6_000), "{waits:?}");
    let last: Vec<_> = waits[50..].iter().filter(|wait| **wait > 0).collect();
    assert!(last.iter().all(|wait| **wait >= 2_500), "{waits:?}");
    assert!(last.iter().any(|wait| *wait != last[0]), "not all at one time: {waits:?}");
    let long = told(70, 300_000);
    assert!(long <= 6_500, "those without a place are before nobody: {long}");
}

#[test]
fn who_waits_for_his_turn_has_not_failed() {
    let site = Site::with(|config| {
        config.handshakes_per_second = 10;
        config.workers = 1;
        config.limits.handshakes_per_second_per_address = 0;
    });
    let mut crowd: Vec<_> = (0..200).map(|number| hello(&site, Transport::Tcp, number, 0)).collect();
    let told = crowd.iter_mut().filter_map(|client| outcome(client).err()).count();
    assert!(told > 100, "{told} were told to come later");
    assert_eq!(site.metrics.counter("berth_gateway_limited_total{limit=\"handshakes\"}"), told as u64);
    let welcomed = (crowd.len() - told) as u64;
    let health = || site.scheduler.last_report().and_then(|report| report.health).unwrap_or_default();
    eventually("the welcomed are reported", || health().welcomed == welcomed);
    assert_eq!(health().connects_failed, 0, "what guards of gray rules count");
}

/// What the newest reports lease to each.
fn leases(schedulers: &[&FakeScheduler]) -> Vec<u64> {
    let lease = |scheduler: &&FakeScheduler| scheduler.last_report()?.admit_per_second;
    schedulers.iter().map(|scheduler| lease(scheduler).unwrap_or(0)).collect()
}

#[test]
fn the_spare_rate_is_leased_by_demand() {
    let site = Site::with(|config| config.handshakes_per_second = 800);
    let other = Arc::new(FakeScheduler::default());
    site.gateway.attach_scheduler(Arc::clone(&other) as _);
    let both = || leases(&[&site.scheduler, &other]);
    eventually("an equal share for each", || both() == [350, 350]);
    other.demand(5_000);
    eventually("nearly all for the busy one", || both()[1] > 600);
    assert!(both().iter().sum::<u64>() <= 700, "{:?}", both());
    site.scheduler.demand(5_000);
    eventually("half of it again", || both() == [350, 350]);
}

#[test]
fn who_comes_back_with_an_old_ticket_takes_from_what_is_leased() {
    let site = Site::with(|config| config.handshakes_per_second = 400);
    let lease = || leases(&[&site.scheduler])[0];
    eventually("what is kept for them is an eighth", || lease() == 350);
    let fresh: Vec<_> = (0..100).map(|number| hello(&site, Transport::Tcp, number, 0)).collect();
    let reports = site.scheduler.reports();
    eventually("two more reports", || site.scheduler.reports() >= reports + 2);
    assert_eq!(lease(), 350, "those were leased for");
    let mut back = Vec::new();
    eventually("it is less", || {
        back.extend((0..50).map(|number| hello(&site, Transport::Tcp, 1_000 + number, 60_000)));
        lease() < 350
    });
    eventually("and all again when they are through", || lease() == 350);
    drop((fresh, back));
}
