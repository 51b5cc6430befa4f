//! The supervisor with the time made up and no worker running.

use super::*;

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
    mailbox.lease(0, &LeaseRenewed { lease_ms: 9_000, forgotten: true });
    mailbox.lease(0, &LeaseRenewed { lease_ms: 6_000, forgotten: false });
    mailbox.lease(1, &LeaseRenewed { lease_ms: 6_000, forgotten: false });
    let mail = mailbox.take(0);
    assert_eq!(
        mail.leases,
        [
            (0, LeaseRenewed { lease_ms: 6_000, forgotten: true }),
            (1, LeaseRenewed { lease_ms: 6_000, forgotten: false })
        ]
    );
}
