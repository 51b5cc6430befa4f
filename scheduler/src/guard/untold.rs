//! Gateways that told how clients fare and do not now, and a `stable` that has none to compare with.

use super::{
    tests::{Counting, Site, failing},
    *,
};

#[test]
fn what_a_gateway_counted_in_a_long_stall_is_not_of_now() {
    let mut site = Site::new("connect_failures = 0.02\nabnormal_closes = 0.9");
    site.pass(10, failing(0));
    let counts = site.gateways[2].report.health.take();
    assert_eq!(site.pass(15, |_| {}), [], "a worker of it hangs");
    site.gateways[2].report.health = counts;
    site.gateways[2].connects(200, 0, 3);
    assert_eq!(site.pass(5, |_| {}), [], "who knows when they failed");
    assert_ne!(site.pass(5, failing(5)), [], "now they do");
}

#[test]
fn one_of_many_gateways_that_does_not_tell_takes_its_own_sessions_down_and_no_more() {
    for (sessions, stopped) in [(20, false), (500, true)] {
        let mut site = Site::new("connect_failures = 0.02\nabnormal_closes = 0.05");
        let more = (3..=10).map(|at| Counting::new(&format!("c{at}"), "canary"));
        site.gateways.extend(more);
        site.pass(2, |_| {});
        site.gateways[3..].iter_mut().for_each(|canary| canary.connects(0, 109, 3));
        site.gateways[2].connects(0, sessions, 3);
        assert_eq!(site.pass(2, |_| {}), []);
        let counts = site.gateways[2].report.health.take();
        assert_eq!(site.pass(9, |_| {}), [], "less than a window");
        let breaches = site.pass(11, |_| {});
        assert_eq!(!breaches.is_empty(), stopped, "{sessions} of {}: {breaches:?}", 981 + sessions);
        assert!(breaches.iter().all(|breach| breach.limit == Limit::AbnormalCloses), "{breaches:?}");
        assert_eq!(site.pass(20, |_| {}), [], "counted once");
        site.gateways[2].report.health = counts;
        assert_eq!(site.pass(5, |_| {}), [], "it was only a worker that came around late");
        let open = site.guards.figures(
            &site.policy.gray[0],
            &site.policy.gray[0].guard.expect("given"),
            site.now_ms,
        );
        assert_eq!(open.pool_open, 981 + sessions, "they are there again");
    }
}

#[test]
fn one_that_does_not_tell_any_more_stops_a_guard_that_looks_at_no_sessions() {
    let mut site = Site::new("connect_failures = 0.02");
    site.gateways.push(Counting::new("c3", "canary"));
    assert_eq!(site.pass(10, failing(0)), []);
    site.gateways[2].report.health = None;
    assert_eq!(site.pass(9, |_| {}), [], "less than a window");
    let breaches = site.pass(3, |_| {});
    assert!(breaches[0].limit == Limit::NoData, "{breaches:?}");
    assert!(breaches[0].reason.contains("no more"), "{breaches:?}");
}

#[test]
fn while_stable_does_not_tell_what_it_had_before_counts() {
    for (gone, limit, name) in [
        (false, "connect_failures = 0.02", "connect failures"),
        (true, "connect_failures = 0.02", "connect failures"),
        (false, "handshake_p99 = 2.0", "handshake p99"),
    ] {
        let mut site = Site::new(limit);
        assert_eq!(site.pass(60, failing(0)), []);
        if gone {
            site.gateways.drain(..2);
        } else {
            site.gateways[..2].iter_mut().for_each(|stable| stable.report.health = None);
        }
        let canaries = |failed: u64, bucket: usize| {
            move |gateways: &mut Vec<Counting>| {
                let canaries = gateways.iter_mut().filter(|gateway| gateway.report.pool != STABLE);
                canaries.for_each(|canary| canary.connects(failed, 10 - failed, bucket));
            }
        };
        assert_eq!(site.pass(70, canaries(0, 3)), [], "{limit}, gone: {gone}");
        let told = |site: &Site| {
            let rule = &site.policy.gray[0];
            site.guards.figures(rule, &rule.guard.expect("given"), site.now_ms).told
        };
        assert_eq!(told(&site), Told::Before);
        let breaches = site.pass(10, canaries(2, 13));
        assert!(breaches[0].reason.starts_with(name), "{limit}, gone: {gone}, {breaches:?}");
        assert!(breaches[0].reason.contains("s ago"), "{breaches:?}");
    }
}

#[test]
fn slow_handshakes_are_seen_when_stable_has_gone_quiet() {
    let mut site = Site::new("handshake_p99 = 2.0");
    assert_eq!(site.pass(20, |gateways| gateways.iter_mut().for_each(|each| each.connects(0, 10, 4))), []);
    let everybody_is_at_the_canaries = |bucket: usize| {
        move |gateways: &mut Vec<Counting>| {
            gateways[2..].iter_mut().for_each(|each| each.connects(0, 10, bucket))
        }
    };
    assert_eq!(site.pass(600, everybody_is_at_the_canaries(4)), []);
    let breaches = site.pass(10, everybody_is_at_the_canaries(13));
    assert_eq!(breaches[0].limit, Limit::HandshakeP99);
    assert!(breaches[0].reason.contains("50 ms in stable 59"), "{breaches:?}");
    let mut site = Site::new("handshake_p99 = 2.0");
    site.pass(20, |gateways| gateways.iter_mut().for_each(|each| each.connects(0, 10, 4)));
    site.pass(3_620, everybody_is_at_the_canaries(4));
    assert_eq!(site.pass(10, everybody_is_at_the_canaries(13)), [], "that was another time of the day");
}
