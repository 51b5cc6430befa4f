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
