//! The supervisor with the time made up and no worker running.

use std::{sync::mpsc, thread};

use berth_proto::link::{Link, Refused};

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
    site.shared.rounds[0].store(ENDED, Relaxed);
    for second in 60..120 {
        supervisor.watch(start + second * 1_000);
    }
    assert_eq!(stalls(), 1);
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
