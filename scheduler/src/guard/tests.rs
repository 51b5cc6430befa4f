//! Guards over made-up reports: what is counted, who is stopped, and who is not.

use berth_proto::{health::HANDSHAKE_BUCKETS, wire::GatewayHealth};
use proptest::prelude::*;

use super::*;
use crate::policy::parse;

const START: i64 = 1_000_000;

pub(super) fn policy(guard: &str) -> Policy {
    parse(&format!(
        "version = 1\n[[gray]]\nid = \"new\"\npool = \"canary\"\npercent = 5\n[gray.guard]\n{guard}\n\
         window_seconds = 10\nmin_handshakes = 50"
    ))
    .expect("the tests' own")
}

/// A gateway that counts.
#[derive(Debug, Clone)]
pub(super) struct Counting {
    pub report: GatewayReport,
}

impl Counting {
    pub fn new(id: &str, pool: &str) -> Self {
        let health =
            Some(GatewayHealth { handshake_ms: vec![0; HANDSHAKE_BUCKETS], ..GatewayHealth::default() });
        let report = GatewayReport {
            gateway_id: id.to_owned(),
            boot: 1,
            pool: pool.to_owned(),
            uptime_ms: 3_600_000,
            health,
            ..GatewayReport::default()
        };
        Self { report }
    }

    fn count(&mut self) -> &mut GatewayHealth {
        self.report.health.as_mut().expect("it counts")
    }

    /// So many attempts, of which some fail, and the others take 2^`bucket` ms.
    pub fn connects(&mut self, failed: u64, welcomed: u64, bucket: usize) {
        let health = self.count();
        health.connects_failed += failed;
        health.welcomed += welcomed;
        health.handshake_ms[bucket] += welcomed;
    }
}

/// Two gateways of each pool that report each half second.
pub(super) struct Site {
    pub guards: Guards,
    pub policy: Policy,
    pub gateways: Vec<Counting>,
    pub now_ms: i64,
}

impl Site {
    pub fn new(guard: &str) -> Self {
        let gateways = [("s1", STABLE), ("s2", STABLE), ("c1", "canary"), ("c2", "canary")];
        let gateways = gateways.map(|(id, pool)| Counting::new(id, pool)).to_vec();
        let mut site = Self { guards: Guards::default(), policy: policy(guard), gateways, now_ms: START };
        assert_eq!(site.pass(2, |_| {}), [], "nothing happened yet");
        site
    }

    /// So many seconds, at whose beginning something happens.
    pub fn pass(&mut self, seconds: u32, mut happens: impl FnMut(&mut Vec<Counting>)) -> Vec<Breach> {
        let mut breaches = Vec::new();
        for _ in 0..seconds {
            happens(&mut self.gateways);
            for _ in 0..2 {
                self.gateways.iter().for_each(|gateway| self.guards.take(&gateway.report, self.now_ms));
                self.now_ms += 500;
            }
            breaches.extend(self.guards.judge(&self.policy, self.now_ms, false));
        }
        breaches
    }
}

/// Everybody connects well, and of the canaries' so many in ten do not.
pub(super) fn failing(in_ten: u64) -> impl FnMut(&mut Vec<Counting>) {
    move |gateways| {
        for gateway in gateways {
            let failed = if gateway.report.pool == STABLE { 0 } else { in_ten };
            gateway.connects(failed, 10 - failed, 3);
        }
    }
}

#[test]
fn a_pool_in_which_a_fifth_fails_is_stopped_with_its_figures() {
    let mut site = Site::new("connect_failures = 0.02");
    assert_eq!(site.pass(20, failing(0)), []);
    let breaches = site.pass(6, failing(2));
    assert_eq!(breaches[0].limit, Limit::ConnectFailures);
    // Nine whole seconds, and the one that has just begun.
    let figures = "connect failures: 8.89% (16 of 180) against 0.00% (0 of 180) in stable; 2.00 points above it are allowed, and 5.22 \
                   for chance, over 10 s";
    assert!(breaches[0].reason.starts_with(figures), "{breaches:?}");
    assert_eq!((breaches[0].rule_id.as_str(), &breaches[0].rule_hash), ("new", &site.policy.gray[0].hash));
}

#[test]
fn what_fails_everywhere_is_not_the_pools_fault() {
    let mut site = Site::new("connect_failures = 0.02\nabnormal_closes = 0.02\nhandshake_p99 = 2.0");
    let everywhere = |gateways: &mut Vec<Counting>| {
        for gateway in gateways {
            gateway.connects(5, 5, 12);
            gateway.count().sessions_ended += 3;
            gateway.count().ended_lost += 3;
        }
    };
    assert_eq!(site.pass(30, everywhere), []);
}

#[test]
fn few_say_nothing() {
    let mut site = Site::new("connect_failures = 0.02");
    let few = |gateways: &mut Vec<Counting>| gateways[2].connects(1, 1, 3);
    assert_eq!(site.pass(30, few), [], "20 attempts in a window");
}

#[test]
fn sessions_that_end_badly_and_slow_handshakes_stop_a_rule() {
    let mut site = Site::new("abnormal_closes = 0.02");
    site.pass(10, failing(0));
    let breaches = site.pass(2, |gateways| {
        gateways[2].count().sessions_ended += 10;
        gateways[2].count().ended_internal += 10;
    });
    assert_eq!(breaches[0].limit, Limit::AbnormalCloses, "20 of 200 sessions");
    assert!(breaches[0].reason.contains("abnormal closes: 10.00% (20 of 200)"), "{breaches:?}");

    let mut site = Site::new("handshake_p99 = 2.0");
    let slow = |canary: usize, stable: u64| {
        move |gateways: &mut Vec<Counting>| {
            gateways[0].connects(0, stable, 3);
            gateways[2].connects(0, 10, canary);
        }
    };
    assert_eq!(site.pass(20, slow(6, 10)), [], "64 ms are not twice the floor of 50");
    assert_eq!(site.pass(10, slow(3, 1)), [], "stable runs empty");
    let breaches = site.pass(10, slow(9, 10));
    assert_eq!(breaches[0].limit, Limit::HandshakeP99);

    let mut site = Site::new("handshake_p99 = 2.0");
    let never = "stable never had enough to have a p99, and a multiple of nothing says nothing";
    assert_eq!(site.pass(30, slow(9, 1)), [], "{never}");
}

#[test]
fn a_gateway_that_crashes_takes_its_sessions_down_and_one_that_drains_does_not() {
    for (draining, stopped) in [(false, true), (true, false)] {
        let mut site = Site::new("abnormal_closes = 0.02");
        site.pass(10, failing(0));
        site.gateways[2].report.draining = draining;
        site.pass(1, |_| {});
        let mut again = Counting::new("c1", "canary");
        again.report.boot = 2;
        site.gateways[2] = again;
        assert_eq!(!site.pass(2, |_| {}).is_empty(), stopped, "its next boot; draining: {draining}");
    }
    let mut site = Site::new("abnormal_closes = 0.02");
    site.pass(10, failing(0));
    let silent = site.gateways.remove(2);
    assert_eq!(site.pass(9, |_| {}), [], "less than a window");
    assert_ne!(site.pass(4, |_| {}), [], "it does not come back");
    site.gateways.push(silent);
    assert_eq!(site.pass(5, |_| {}), [], "it was only silent");
}

#[test]
fn a_path_that_is_silent_for_a_moment_stops_nothing() {
    for silent in 1..=2 {
        let mut site = Site::new("abnormal_closes = 0.02");
        site.pass(10, failing(0));
        let canaries = site.gateways.split_off(4 - silent);
        assert_eq!(site.pass(4, |_| {}), [], "{silent} canaries are not heard");
        site.gateways.extend(canaries);
        assert_eq!(site.pass(15, |_| {}), [], "and are heard again");
    }
}

#[test]
fn a_standstill_of_the_scheduler_is_nobodys_silence() {
    for (forgiven, stopped) in [(true, false), (false, true)] {
        let mut site = Site::new("abnormal_closes = 0.02");
        site.pass(10, failing(0));
        site.now_ms += 240_000;
        if forgiven {
            site.guards.forgive(240_000, site.now_ms);
        }
        let canaries = site.gateways.split_off(2);
        let first = site.pass(1, |_| {});
        assert_eq!(!first.is_empty(), stopped, "only stable's links are dialled again; forgiven: {forgiven}");
        site.gateways.extend(canaries);
        assert_eq!(site.pass(15, |_| {}), [], "the others too");
    }
    let mut site = Site::new("connect_failures = 0.02");
    site.pass(10, failing(0));
    site.guards.forgive(5_000, site.now_ms);
    failing(5)(&mut site.gateways);
    site.gateways.iter().for_each(|gateway| site.guards.take(&gateway.report, site.now_ms));
    assert_eq!(site.guards.judge(&site.policy, site.now_ms, false), [], "not before everybody could report");
    assert_ne!(site.pass(2, failing(5)), [], "then as ever");
}

#[test]
fn shares_are_not_compared_with_what_nobody_measures() {
    let mut site = Site::new("connect_failures = 0.02\nhandshake_p99 = 2.0");
    let slow_and_failing = |gateways: &mut Vec<Counting>| {
        gateways.iter_mut().skip(2).for_each(|canary| canary.connects(5, 5, 12));
    };
    for stable in &mut site.gateways[..2] {
        // As whoever never told: not as somebody whose worker hangs.
        (stable.report.boot, stable.report.health) = (2, None);
    }
    assert_eq!(site.pass(20, slow_and_failing), [], "stable is of an older release");
    site.gateways[0] = Counting::new("s1", STABLE);
    assert_ne!(site.pass(3, slow_and_failing), [], "one of it is upgraded");
}

#[test]
fn broken_frames_are_the_clients_fault_and_sums_have_an_end() {
    let mut site = Site::new("abnormal_closes = 0.02");
    site.pass(10, failing(0));
    let broken = |gateways: &mut Vec<Counting>| {
        gateways[2].count().sessions_ended += 10;
        gateways[2].count().ended_bad_frame += 10;
    };
    assert_eq!(site.pass(2, broken), []);

    let most = u64::MAX;
    let counts = Counts {
        failed: most,
        welcomed: most,
        ended: most,
        abnormal: most,
        handshake_ms: [most; HANDSHAKE_BUCKETS],
    };
    let figures = Figures {
        pool: counts,
        pool_open: most,
        stable: counts,
        stable_open: most,
        seconds: 1,
        ..Figures::default()
    };
    let guard = site.policy.gray[0].guard.expect("given");
    assert_eq!(Breach::of(&site.policy.gray[0], &guard, &figures), None, "as in stable");
    assert!(counts.attempts() == most && counts.handshake_p99_ms().is_some());
}

#[test]
fn missing_data_is_a_failure_after_a_window_unless_nobody_is_heard() {
    let mut site = Site::new("connect_failures = 0.02");
    let canaries = site.gateways.split_off(2);
    assert_eq!(site.pass(9, |_| {}), [], "not yet");
    let breaches = site.pass(4, |_| {});
    assert_eq!(breaches[0].limit, Limit::NoData);
    assert!(breaches[0].reason.contains("no gateway of the pool reports, for 10 s"), "{breaches:?}");

    let mut site = Site::new("connect_failures = 0.02");
    site.gateways[2..].iter_mut().for_each(|canary| canary.report.health = None);
    let breaches = site.pass(13, |_| {});
    assert!(breaches[0].reason.contains("no gateway of the pool reports how clients fare"), "{breaches:?}");

    let mut site = Site::new("connect_failures = 0.02");
    site.gateways.clear();
    assert_eq!(site.pass(60, |_| {}), [], "this scheduler hears nobody at all");
    site.gateways = canaries;
    assert_eq!(site.pass(60, |_| {}), [], "and now only the canaries");
}

#[test]
fn a_rule_that_goes_on_is_judged_anew() {
    let mut site = Site::new("connect_failures = 0.02");
    assert_ne!(site.pass(5, failing(5)), []);
    let going = site.policy.clone();
    let stop = crate::policy::Stop { reason: String::new(), by: String::new(), at_ms: 0 };
    let stops = [(going.gray[0].hash.clone(), std::sync::Arc::new(stop))].into();
    site.policy = going.at(0, &stops).expect("stopped");
    assert_eq!(site.pass(2, failing(5)), [], "a stopped rule is not judged");
    site.policy = going;
    assert_eq!(site.pass(8, failing(0)), [], "what was before it went on is forgotten");
    assert_ne!(site.pass(5, failing(5)), []);
}

#[test]
fn while_stable_has_too_few_its_last_share_counts_for_an_hour() {
    let mut site = Site::new("connect_failures = 0.02");
    let tenth_fails = |stable: usize| {
        move |gateways: &mut Vec<Counting>| {
            gateways[..stable].iter_mut().for_each(|gateway| gateway.connects(2, 18, 3));
            gateways[2..].iter_mut().for_each(|gateway| gateway.connects(2, 18, 3));
        }
    };
    assert_eq!(site.pass(20, tenth_fails(2)), [], "everywhere alike");
    assert_eq!(site.pass(3_590, tenth_fails(0)), [], "everybody is at the canaries by now");
    let breaches = site.pass(30, tenth_fails(0));
    assert!(breaches[0].reason.contains("0.00% in stable, which has too few"), "{breaches:?}");

    let mut site = Site::new("connect_failures = 0.02");
    site.pass(20, tenth_fails(2));
    site.pass(20, tenth_fails(0));
    let breaches = site.pass(3, |gateways| {
        gateways[2..].iter_mut().for_each(|gateway| gateway.connects(20, 0, 3));
    });
    let stables = "s ago) in stable, which has too few now";
    assert!(breaches.iter().any(|breach| breach.reason.contains(stables)), "{breaches:?}");
}

#[test]
fn old_counts_are_not_judged_as_of_now() {
    for (boot, uptime_ms, stopped) in [(2, 420_000, false), (1, 4_000_000, false), (2, 3_000, true)] {
        let mut site = Site::new("connect_failures = 0.02");
        site.pass(10, failing(0));
        let mut canary = site.gateways.remove(2);
        site.pass(480, |gateways| gateways.iter_mut().for_each(|gateway| gateway.connects(0, 10, 3)));
        canary.report.boot = boot;
        canary.report.uptime_ms = uptime_ms;
        canary.connects(200, 0, 3);
        site.gateways.insert(2, canary);
        assert_eq!(
            !site.pass(3, |_| {}).is_empty(),
            stopped,
            "silent for 8 minutes; boot {boot}, {uptime_ms} ms"
        );
    }
}

#[test]
fn what_a_gateway_does_while_it_does_not_tell_counts_when_it_tells_again() {
    for restarts in [false, true] {
        let mut site = Site::new("abnormal_closes = 0.02");
        site.pass(10, failing(0));
        let mut counts = site.gateways[2].report.health.take().expect("it counts");
        assert_eq!(site.pass(5, |_| {}), [], "a worker of it hangs");
        if restarts {
            site.gateways[2] = Counting::new("c1", "canary");
            site.gateways[2].report.boot = 2;
        } else {
            counts.sessions_ended += 50;
            counts.ended_silent += 50;
            site.gateways[2].report.health = Some(counts);
        }
        let breaches = site.pass(2, |_| {});
        assert!(breaches[0].reason.starts_with("abnormal closes"), "restarts: {restarts}, {breaches:?}");
    }
}

#[test]
fn p99_is_on_the_line_within_its_bucket() {
    let mut counts = Counts::default();
    assert_eq!(counts.handshake_p99_ms(), None);
    counts.handshake_ms[3] = 100;
    assert_eq!(counts.handshake_p99_ms(), Some(4.0 + 4.0 * 0.99));
    counts.handshake_ms[10] = 2;
    let p99 = counts.handshake_p99_ms().expect("some");
    assert!((512.0..=1_024.0).contains(&p99), "{p99}");
    let slow = Counts { handshake_ms: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5], ..Counts::default() };
    assert!(slow.handshake_p99_ms().is_some_and(|p99| p99 > 16_384.0));
}

/// What happens to a gateway between two reports.
#[derive(Debug, Clone, Copy)]
enum Event {
    Connects(u8, u8),
    Ends(u8),
    Restarts,
    Repeats,
}

fn arb_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..5u8, 0..9u8).prop_map(|(failed, welcomed)| Event::Connects(failed, welcomed)),
        3 => (0..9u8).prop_map(Event::Ends),
        1 => Just(Event::Restarts),
        2 => Just(Event::Repeats),
    ]
}

proptest! {
    #[test]
    fn a_window_holds_exactly_what_happened_in_it(events in prop::collection::vec((0..2usize, arb_event()), 0..200)) {
        let mut site = Site::new("connect_failures = 1");
        let mut expected = Counts::default();
        let from = site.now_ms / 1_000 - 1;
        for (which, event) in events {
            let gateway = &mut site.gateways[2 + which];
            match event {
                Event::Connects(failed, welcomed) => {
                    gateway.connects(failed.into(), welcomed.into(), 0);
                    expected.failed += u64::from(failed);
                    expected.welcomed += u64::from(welcomed);
                }
                Event::Ends(count) => {
                    let count = u64::from(count).min(Counts::of(gateway.count()).open());
                    gateway.count().sessions_ended += count;
                    expected.ended += count;
                }
                Event::Restarts => {
                    // What it did since its last report nobody will ever know.
                    site.guards.take(&gateway.report, site.now_ms);
                    let open = Counts::of(gateway.count()).open();
                    expected = expected.plus(&Counts::lost(open));
                    let boot = gateway.report.boot + 1;
                    *gateway = Counting::new(&gateway.report.gateway_id, "canary");
                    gateway.report.boot = boot;
                    gateway.report.uptime_ms = 500;
                }
                Event::Repeats => {}
            }
            site.guards.take(&gateway.report, site.now_ms);
            site.now_ms += 100;
        }
        let mut counted = site.guards.pools["canary"].counted.since(from);
        counted.handshake_ms = [0; HANDSHAKE_BUCKETS];
        prop_assert_eq!(counted, expected);
    }

    #[test]
    fn a_rule_is_stopped_exactly_when_its_pool_is_worse_by_more_than_allowed_and_chance(
        failed in 0..500u64, welcomed in 0..500u64, stables_failed in 0..500u64, stables in 0..500u64, allowed in 0.0..1.0f64
    ) {
        let policy = policy(&format!("connect_failures = {allowed:.4}"));
        let (rule, guard) = (&policy.gray[0], policy.gray[0].guard.expect("given"));
        let pool = Counts { failed, welcomed, ..Counts::default() };
        let stable = Counts { failed: stables_failed, welcomed: stables, ..Counts::default() };
        let figures = Figures { pool, stable, seconds: 10, ..Figures::default() };
        let base = if stables_failed + stables < 50 { 0.0 } else { stables_failed as f64 / (stables_failed + stables) as f64 };
        let (limit, all) = (guard.connect_failures.expect("given"), failed + welcomed);
        let expected = (base + limit).min(1.0);
        let chance = 5.0 * (expected * (1.0 - expected) / all.max(1) as f64).sqrt();
        let share = failed as f64 / all.max(1) as f64;
        let term = |of: f64, to: f64| if of > 0.0 { of * (of / to).ln() } else { 0.0 };
        let chernoff = (-(all as f64) * (term(share, expected) + term(1.0 - share, 1.0 - expected))).exp();
        let everybody = failed == all && base <= 0.5;
        let unlikely = share - base > limit + chance || chernoff < 2.866e-7 || everybody;
        let worse = all >= 50 && base + limit < 1.0 && share > expected && unlikely;
        prop_assert_eq!(Breach::of(rule, &guard, &figures).is_some(), worse);
        if let Some(breach) = Breach::of(rule, &guard, &figures) {
            prop_assert!(failed + welcomed >= 50 && breach.reason.contains("connect failures"));
        }
    }
}
