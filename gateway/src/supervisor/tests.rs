//! The supervisor with the time made up and no worker running.

use std::{sync::mpsc, thread};

use berth_proto::{
    link::{Link, Refused},
    wire::Drain,
};

use super::*;

/// A link that hands on what it is given.
struct Tell<M>(mpsc::SyncSender<M>);

impl<M: Send> Link<M> for Tell<M> {
    fn send(&self, batch: Vec<M>) -> Result<(), Refused<M>> {
        batch.into_iter().for_each(|message| self.0.try_send(message).expect("room"));
        Ok(())
    }
}

#[test]
fn a_stuck_worker_is_counted_once_and_an_ended_one_never() {
    let site = crate::testing::Site::new(2);
    let mut supervisor = Supervisor::new(Arc::clone(&site.shared));
    let start = site.shared.clock.now().steady_ms;
    let stalls = || site.recorder.value("berth_gateway_worker_stalls_total");
    site.shared.rounds[0].store(7, Relaxed);
    site.shared.rounds[1].store(ENDED, Relaxed);
    for second in 0..60 {
        supervisor.watch(start + second * 1_000);
    }
    assert_eq!(stalls(), 1);
    assert_eq!(build_report(&site.shared).health, None, "its connections are counted nowhere");
    site.shared.rounds[0].store(ENDED, Relaxed);
    for second in 60..120 {
        supervisor.watch(start + second * 1_000);
    }
    assert_eq!(stalls(), 1);
    assert!(build_report(&site.shared).health.is_some());
}

#[test]
fn a_report_tells_the_load() {
    let site = crate::testing::Site::new(2);
    let (tell, told) = mpsc::sync_channel(100);
    site.shared.change(|rare| rare.schedulers = Arc::new(vec![Arc::new(Tell(tell)) as _]));
    let mut supervisor = Supervisor::new(Arc::clone(&site.shared));
    let start = site.shared.clock.now().steady_ms;
    let mut load_at = |seconds: i64, worker: u8, lag_ms: u64| {
        // Both come around, as they do each second.
        for round in &site.shared.rounds {
            round.fetch_add(1, Relaxed);
        }
        site.shared.late(worker, Duration::from_millis(lag_ms));
        site.shared.door.let_in.fetch_add(100, Relaxed);
        site.shared.metrics.traffic.bytes_out.increment(4_000);
        supervisor.watch(start + seconds * 1_000);
        supervisor.measure(start + seconds * 1_000);
        report(&site.shared);
        let told: Vec<_> = told.try_iter().collect();
        let Some(ToScheduler { message: Some(to_scheduler::Message::Report(report)) }) =
            told.into_iter().last()
        else {
            panic!("a report");
        };
        report.load.expect("measured")
    };
    for second in 1..40 {
        load_at(second, 0, 20);
    }
    let load = load_at(40, 1, 20);
    assert_eq!((load.handshakes_per_second, load.sent_bytes_per_second), (100, 4_000));
    assert!(load.loop_lag_us.abs_diff(20_000) < 10, "{load:?}");
    assert_eq!(load.sent_bytes_per_second_capacity, 0, "nobody said what the network takes");
    assert!(load.resident_bytes > 0 && load.resident_bytes < load.resident_bytes_capacity, "{load:?}");
    assert!(load.cpu_millis_per_second_capacity >= 1_000, "{load:?}");
    assert_eq!(
        site.recorder.value("berth_gateway_sent_bytes_total"),
        160_000,
        "and the metric counts as before"
    );
}

#[test]
fn a_worker_that_hangs_is_a_lag() {
    let site = crate::testing::Site::new(2);
    let mut supervisor = Supervisor::new(Arc::clone(&site.shared));
    // Its own first look: a later one would be a lag already.
    let start = supervisor.turned_ms;
    let mut lag_us = |ms: i64| {
        site.shared.rounds[0].fetch_add(1, Relaxed);
        supervisor.watch(start + ms);
        supervisor.measure(start + ms);
        lock(&site.shared.load).expect("measured").loop_lag_us
    };
    assert_eq!((1..=3).map(|halves| lag_us(halves * 500)).sum::<u64>(), 0, "the second one may be asleep");
    assert!(lag_us(4_000) > 500_000);
    site.shared.rounds[1].store(ENDED, Relaxed);
    let before = lag_us(4_500);
    assert!(lag_us(60_000) < before / 1_000, "who has ended is not late");
}

#[test]
fn a_supervisor_that_stood_still_blames_no_worker() {
    let site = crate::testing::Site::new(1);
    let mut supervisor = Supervisor::new(Arc::clone(&site.shared));
    let start = site.shared.clock.now().steady_ms;
    let mut at = |ms: i64| {
        supervisor.forgive(start + ms);
        supervisor.watch(start + ms);
    };
    (1..=4).for_each(|halves| at(halves * 500));
    at(62_000);
    assert_eq!(site.recorder.value("berth_gateway_worker_stalls_total"), 0);
    (1..=12).for_each(|halves| at(62_000 + halves * 500));
    assert_eq!(
        site.recorder.value("berth_gateway_worker_stalls_total"),
        1,
        "it does not come around now either"
    );
}

#[test]
fn a_renewal_does_not_hide_that_an_earlier_one_had_run_out() {
    let mailbox = Mailbox::default();
    mailbox.lease(0, &LeaseRenewed { lease_ms: 9_000, forgotten: true, said_ms: 0 });
    mailbox.lease(0, &LeaseRenewed { lease_ms: 6_000, forgotten: false, said_ms: 0 });
    mailbox.lease(1, &LeaseRenewed { lease_ms: 6_000, forgotten: false, said_ms: 0 });
    let mail = mailbox.take(0);
    assert_eq!(
        mail.leases,
        [
            (0, LeaseRenewed { lease_ms: 6_000, forgotten: true, said_ms: 0 }),
            (1, LeaseRenewed { lease_ms: 6_000, forgotten: false, said_ms: 0 })
        ]
    );
}

#[test]
fn once_a_worker_has_ended_by_itself_no_lease_is_renewed_and_readiness_says_why() {
    let site = crate::testing::Site::new(1);
    let (tell, told) = mpsc::sync_channel(100);
    site.shared.change(|rare| rare.logics = Arc::new(vec![Arc::new(Tell(tell)) as _]));
    let mut supervisor = Supervisor::new(Arc::clone(&site.shared));
    supervisor.renew(1_000_000);
    assert_eq!(told.try_iter().count(), 1);
    site.shared.fail(0, "it panicked: boom");
    site.shared.fail(0, "and again");
    supervisor.renew(2_000_000);
    assert_eq!(told.try_iter().count(), 0);
    assert!(supervisor.leases.is_empty(), "nothing is due in the past: the supervisor would spin");
    let reason = site.shared.ready().expect_err("not ready");
    assert!(reason.contains("worker 0") && reason.contains("boom"), "{reason}");
}

#[test]
fn a_drained_gateway_stays_done_while_somebody_only_looks_or_comes_with_an_old_ticket() {
    let site = crate::testing::Site::new(1);
    let mut supervisor = Supervisor::new(Arc::clone(&site.shared));
    let drain = |deadline_ms| Drain { active: true, rate_per_second: 1, deadline_ms, ..Drain::default() };
    let phase = |supervisor: &mut Supervisor, connections, sessions| {
        site.shared.connections.store(connections, Relaxed);
        site.shared.sessions.store(sessions, Relaxed);
        supervisor.move_on();
        let told = lock(&site.shared.moves)[0].clone();
        (told.phase, told.left)
    };
    supervisor.mover.drain(1, drain(0));
    assert_eq!(phase(&mut supervisor, 0, 0), ("done".to_owned(), 0));
    assert_eq!(phase(&mut supervisor, 1, 0), ("done".to_owned(), 0), "it is not welcomed");
    assert_eq!(phase(&mut supervisor, 1, 1), ("moving".to_owned(), 1));
    supervisor.mover.drain(2, drain(1));
    assert_eq!(phase(&mut supervisor, 1, 0), ("done".to_owned(), 0), "not overdue either");
}

/// A link on which a report that does not say draining takes long: it lets a later one overtake it, if that can come.
struct Slow {
    seen: Mutex<Vec<bool>>,
    entered: mpsc::SyncSender<()>,
    came: Condvar,
}

impl Link<ToScheduler> for Slow {
    fn send(&self, batch: Vec<ToScheduler>) -> Result<(), Refused<ToScheduler>> {
        for message in batch {
            let Some(to_scheduler::Message::Report(report)) = message.message else { continue };
            let mut seen = lock(&self.seen);
            if !report.draining {
                self.entered.send(()).expect("the test waits");
                let long = Duration::from_millis(300);
                seen = self.came.wait_timeout_while(seen, long, |seen| seen.is_empty()).expect("no panic").0;
            }
            seen.push(report.draining);
            self.came.notify_all();
        }
        Ok(())
    }
}

#[test]
fn the_last_report_is_the_newest() {
    let site = crate::testing::Site::new(1);
    let (entered, waits) = mpsc::sync_channel(1);
    let link = Arc::new(Slow { seen: Mutex::default(), entered, came: Condvar::new() });
    site.shared.change(|rare| rare.schedulers = Arc::new(vec![Arc::clone(&link) as _]));
    let shared = Arc::clone(&site.shared);
    let first = thread::spawn(move || report(&shared));
    waits.recv().expect("the first report is under way");
    site.shared.draining.store(true, Relaxed);
    report(&site.shared);
    first.join().expect("no panic");
    assert_eq!(*lock(&link.seen), [false, true]);
}
