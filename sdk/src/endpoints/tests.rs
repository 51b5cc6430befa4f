//! Walks along lists, by hand and at random.

use berth_proto::{client, schedule::ReconnectParameters};
use proptest::prelude::*;

use super::*;

mod busy;

fn endpoint(gateway: usize, transport: &str) -> ScheduleEndpoint {
    ScheduleEndpoint {
        gateway_id: format!("gw-{gateway}"),
        transport: transport.into(),
        url: format!("{transport}://gw-{gateway}:1"),
        ..Default::default()
    }
}

fn answer(gateways: usize, expires_at_ms: i64) -> ScheduleAnswer {
    ScheduleAnswer {
        endpoints: (0..gateways).flat_map(|g| [endpoint(g, "ws"), endpoint(g, "tcp")]).collect(),
        ticket: "t".into(),
        server_time_ms: 500_000,
        ticket_expires_at_ms: 500_000 + expires_at_ms,
        reconnect: ReconnectParameters { reschedule_after_failures: 3, ..Default::default() },
        ..Default::default()
    }
}

fn only(transport: Transport) -> Endpoints {
    Endpoints::new(vec![transport])
}

fn gateway(endpoints: &mut Endpoints, now_ms: i64) -> Option<String> {
    endpoints.next(now_ms).map(|attempt| attempt.endpoint.gateway_id)
}

fn redirect(ticket: &str) -> Disconnect {
    Disconnect {
        code: 4002,
        redirect: vec![client::Endpoint::from(endpoint(9, "tcp"))],
        ticket: ticket.into(),
        ticket_expires_at_ms: 800_000,
        ..Default::default()
    }
}

#[test]
fn the_list_is_walked_until_it_failed_too_often() {
    let mut endpoints = only(Transport::Tcp);
    assert_eq!(gateway(&mut endpoints, 0), None);
    assert!(endpoints.scheduled(&answer(2, 300_000), 0));
    for expected in ["gw-0", "gw-1", "gw-0"] {
        assert_eq!(gateway(&mut endpoints, 1).as_deref(), Some(expected));
        endpoints.failed();
    }
    assert_eq!(gateway(&mut endpoints, 1), None);
    assert_eq!(endpoints.failed_gateways(), ["gw-0", "gw-1"]);
    assert_eq!(endpoints.asked(), 1);
}

#[test]
fn a_dead_host_is_passed_with_all_its_transports() {
    let both = || {
        let mut endpoints = Endpoints::new(vec![Transport::WebSocket, Transport::Tcp]);
        assert!(endpoints.scheduled(&answer(2, 300_000), 0));
        endpoints
    };
    let url = |endpoints: &mut Endpoints| endpoints.next(1).map(|attempt| attempt.endpoint.url);
    let mut endpoints = both();
    for expected in ["ws://gw-0:1", "ws://gw-1:1", "ws://gw-0:1"] {
        assert_eq!(url(&mut endpoints).as_deref(), Some(expected));
        endpoints.failed_altogether();
    }
    assert_eq!(url(&mut endpoints), None, "each counted once");

    let mut endpoints = both();
    endpoints.failed();
    assert_eq!(url(&mut endpoints).as_deref(), Some("tcp://gw-0:1"), "only the WebSocket was refused");

    let mut endpoints = Endpoints::new(vec![Transport::WebSocket, Transport::Tcp]);
    assert!(endpoints.scheduled(&answer(1, 300_000), 0));
    endpoints.failed_altogether();
    assert_eq!(url(&mut endpoints).as_deref(), Some("tcp://gw-0:1"), "there is no other host");
}

#[test]
fn the_ticket_is_used_until_its_end_in_the_clients_time() {
    let mut endpoints = only(Transport::WebSocket);
    endpoints.scheduled(&answer(1, 300_000), 10);
    assert!(gateway(&mut endpoints, 299_009).is_some());
    assert!(gateway(&mut endpoints, 299_010).is_none());
    endpoints.scheduled(&answer(1, 1), 10);
    assert!(gateway(&mut endpoints, 20).is_some(), "a fresh ticket is used, however short its life");
    assert!(gateway(&mut endpoints, 20).is_none());
}

#[test]
fn three_redirects_in_a_row_are_followed() {
    let mut endpoints = only(Transport::Tcp);
    endpoints.scheduled(&answer(1, 300_000), 0);
    for _ in 0..3 {
        assert!(endpoints.redirected(&redirect("t2")));
        let attempt = endpoints.next(0).expect("the redirect's");
        assert_eq!((attempt.endpoint.gateway_id.as_str(), attempt.ticket.as_str()), ("gw-9", "t2"));
    }
    assert!(!endpoints.redirected(&redirect("t2")));
    endpoints.forget();
    assert_eq!(endpoints.next(0), None);

    endpoints.scheduled(&answer(1, 300_000), 0);
    for _ in 0..3 {
        assert!(endpoints.redirected(&redirect("t2")), "a schedule ends the row");
    }
    assert!(!endpoints.redirected(&redirect("t2")));
    endpoints.stable();
    assert!(endpoints.redirected(&redirect("t2")), "a stable session ends the row");
    assert!(!endpoints.redirected(&redirect("")), "no ticket, no redirect");
}

#[test]
fn endpoints_of_other_transports_are_passed_over() {
    let mut endpoints = only(Transport::WebSocket);
    let mut later = answer(1, 300_000);
    later.endpoints = vec![endpoint(1, "quic"), endpoint(2, "tcp")];
    assert!(!endpoints.scheduled(&later, 0));
    assert_eq!(endpoints.next(0), None);
    assert!(!endpoints.redirected(&redirect("t2")));
}

#[test]
fn a_stable_session_forgives() {
    let mut endpoints = only(Transport::Tcp);
    endpoints.scheduled(&answer(1, 300_000), 0);
    endpoints.failed();
    endpoints.suspect();
    endpoints.stable();
    endpoints.suspect();
    assert!(gateway(&mut endpoints, 0).is_some());
    assert_eq!(endpoints.failed_gateways(), ["gw-0"]);
    assert_eq!(endpoints.asked(), 0);
}

/// A schedule of an earlier run, over two gateways.
fn stored(expires_at_ms: i64) -> StoredSchedule {
    let mut before = only(Transport::Tcp);
    before.scheduled(&answer(2, expires_at_ms), 0);
    let reconnect = ReconnectParameters { reschedule_after_failures: 2, ..Default::default() };
    before.stored("alice", "d", reconnect, Default::default()).expect("there is a ticket")
}

#[test]
fn a_stored_schedule_goes_on_as_it_was() {
    let mut endpoints = only(Transport::Tcp);
    assert!(endpoints.restored(&stored(300_000), 298_999));
    assert!(endpoints.doubtful());
    assert_eq!(gateway(&mut endpoints, 298_999).as_deref(), Some("gw-0"));
    assert_eq!(gateway(&mut endpoints, 299_000), None, "its end is told in this client's time");
    assert!(!only(Transport::Tcp).restored(&stored(300_000), 299_000));

    let mut endpoints = only(Transport::Tcp);
    assert!(endpoints.restored(&stored(300_000), 1));
    endpoints.failed();
    endpoints.failed();
    assert_eq!(gateway(&mut endpoints, 1), None, "its own number of failures counts");
    let StoredSchedule { endpoints: list, ticket, ticket_expires_at_ms, offset_ms, .. } = stored(300_000);
    let again = endpoints.stored("alice", "d", Default::default(), Default::default()).expect("a ticket");
    assert_eq!(
        (again.endpoints, again.ticket, again.ticket_expires_at_ms, again.offset_ms),
        (list, ticket, ticket_expires_at_ms, offset_ms),
        "what is stored does not depend on how far the list was walked"
    );
    assert!(endpoints.scheduled(&answer(1, 300_000), 1) && !endpoints.doubtful());
}

#[test]
fn each_bootstrap_gateway_is_tried_once_whatever_the_ticket() {
    let order = [endpoint(7, "tcp"), endpoint(8, "tcp")];
    let mut endpoints = only(Transport::Tcp);
    assert!(!endpoints.bootstrap(&order), "there is no ticket");
    for expires_at_ms in [1, 300_000] {
        endpoints.scheduled(&answer(1, expires_at_ms), 0);
        assert!(!endpoints.bootstrap(&[]), "there is no gateway");
        for expected in ["gw-7", "gw-8", "gw-7"] {
            assert!(endpoints.bootstrap(&order));
            assert_eq!(gateway(&mut endpoints, 1_000).as_deref(), Some(expected));
            endpoints.failed_altogether();
            assert_eq!(gateway(&mut endpoints, 1_000), None, "a scheduler's turn");
        }
    }
    assert_eq!(endpoints.told().len(), 1, "what a server told last stays known");
    assert!(endpoints.bootstrap(&order) && endpoints.redirected(&redirect("t2")));
    assert!(!endpoints.doubtful(), "a scheduler stands behind it");
    for _ in 0..3 {
        assert_eq!(gateway(&mut endpoints, 1).as_deref(), Some("gw-9"), "and it is walked like any list");
        endpoints.failed();
    }
    endpoints.forget_ticket();
    assert!(!endpoints.bootstrap(&order));
    assert_eq!(endpoints.stored("alice", "d", Default::default(), Default::default()), None);
}

#[test]
fn each_bootstrap_gateway_may_send_on() {
    let order = [endpoint(7, "tcp"), endpoint(8, "tcp")];
    let mut endpoints = only(Transport::Tcp);
    endpoints.scheduled(&answer(1, 1), 0);
    for round in 0..4 {
        assert!(endpoints.bootstrap(&order));
        for _ in 0..3 {
            assert!(endpoints.redirected(&redirect("t2")), "round {round}");
        }
        assert!(!endpoints.redirected(&redirect("t2")), "round {round}: no circle at full speed");
        endpoints.forget();
        assert_eq!(gateway(&mut endpoints, 1), None);
    }
}

#[test]
fn a_ticket_is_given_up_once_all_bootstrap_gateways_in_a_row_refuse_it() {
    let order = [endpoint(6, "tcp"), endpoint(7, "tcp"), endpoint(8, "tcp")];
    let mut endpoints = only(Transport::Tcp);
    endpoints.scheduled(&answer(1, 1), 0);
    // What each says: the ticket is refused, or not.
    for (refuses, of_use) in
        [(true, true), (true, true), (false, true), (true, true), (true, true), (true, false)]
    {
        assert!(endpoints.bootstrap(&order) && endpoints.doubtful());
        assert!(endpoints.next(1_000).is_some());
        if refuses {
            assert_eq!(endpoints.refused(), of_use);
        } else {
            endpoints.failed_altogether();
        }
        assert_eq!(endpoints.next(1_000), None, "a scheduler's turn");
    }
    let mut kept = only(Transport::Tcp);
    assert!(kept.restored(&stored(300_000), 1));
    assert!(!kept.refused(), "gateways that the ticket is for know");
}

#[test]
fn a_line_longer_than_the_ticket_is_not_stood_in() {
    let mut endpoints = only(Transport::Tcp);
    endpoints.scheduled(&answer(1, 300_000), 0);
    assert!(endpoints.ticket_until(298_999) && !endpoints.ticket_until(299_000));
    assert!(endpoints.renewed(&answer(1, 600_000), 0));
    assert!(endpoints.ticket_until(598_999) && !endpoints.ticket_until(599_000));
    assert!(endpoints.bootstrap(&[endpoint(7, "tcp")]));
    assert!(endpoints.ticket_until(900_000), "where the ticket's time does not count");
}

#[test]
fn the_gateway_of_a_lost_session_is_tried_once_more_though_the_ticket_has_ended() {
    let lost = || {
        let mut endpoints = only(Transport::Tcp);
        endpoints.scheduled(&answer(2, 300_000), 0);
        endpoints.next(0);
        endpoints.failed_altogether();
        endpoints.stable();
        endpoints.suspect();
        endpoints
    };
    let mut early = lost();
    early.once_more(1);
    assert!(!early.doubtful(), "the ticket lives: nothing need be done");

    for end in [Endpoints::failed_altogether, Endpoints::forget, |e: &mut Endpoints| assert!(e.refused())] {
        let mut late = lost();
        assert_eq!((late.here(400_000), late.place()), (None, Some("tcp://gw-1:1")));
        late.once_more(400_000);
        assert!(late.doubtful() && late.here(400_000) == late.place());
        assert_eq!(gateway(&mut late, 400_000).as_deref(), Some("gw-1"));
        end(&mut late);
        assert_eq!(gateway(&mut late, 400_000), None, "once");
        assert_eq!(late.told().len(), 2, "the ticket stays for the bootstrap gateways");
    }

    let mut failing = lost();
    failing.suspect();
    failing.suspect();
    failing.once_more(400_000);
    assert_eq!(gateway(&mut failing, 400_000), None, "it failed too often");

    let mut renewed = lost();
    assert!(renewed.renewed(&ScheduleAnswer { ticket: "renewed".into(), ..answer(2, 900_000) }, 0));
    renewed.once_more(400_000);
    let attempt = renewed.next(400_000).expect("the renewed ticket lives");
    assert_eq!((attempt.endpoint.gateway_id.as_str(), attempt.ticket.as_str()), ("gw-1", "renewed"));
    assert!(!renewed.doubtful());

    let mut moved = lost();
    assert!(moved.renewed(&ScheduleAnswer { ticket: "renewed".into(), ..answer(1, 900_000) }, 0));
    moved.once_more(400_000);
    assert_eq!(moved.next(400_000).expect("the same").ticket, "t", "the new one is not for this gateway");
    moved.forget();
    assert_eq!(moved.next(400_000).expect("the new one").ticket, "renewed");
}

#[test]
fn a_renewed_ticket_takes_over_when_the_list_is_of_no_use() {
    let renewed = ScheduleAnswer { ticket: "renewed".into(), ..answer(2, 900_000) };
    let begin = |expires_at_ms| {
        let mut endpoints = only(Transport::Tcp);
        endpoints.scheduled(&answer(1, expires_at_ms), 0);
        endpoints.next(0);
        assert!(endpoints.renewed(&renewed, 0));
        endpoints
    };
    let ticket = |endpoints: &mut Endpoints, now_ms| endpoints.next(now_ms).map(|attempt| attempt.ticket);
    let mut endpoints = begin(300_000);
    let kept = endpoints.stored("alice", "d", Default::default(), Default::default()).expect("a ticket");
    assert_eq!((kept.ticket.as_str(), kept.endpoints.len()), ("renewed", 2), "for a later run");
    assert_eq!(ticket(&mut endpoints, 1).as_deref(), Some("t"), "the list is good as long as it was");
    for walk in ["renewed", ""] {
        for _ in 0..3 {
            endpoints.failed();
        }
        assert_eq!(ticket(&mut endpoints, 1).unwrap_or_default(), walk, "a scheduler is asked after both");
    }
    assert_eq!(ticket(&mut begin(300_000), 400_000).as_deref(), Some("renewed"));
    let mut both_over = begin(300_000);
    assert_eq!(ticket(&mut both_over, 900_000), None);
    assert!(both_over.bootstrap(&[endpoint(7, "tcp")]));
    assert_eq!(ticket(&mut both_over, 900_000).as_deref(), Some("renewed"), "the younger one has more grace");
    let mut moved = begin(300_000);
    assert!(moved.redirected(&redirect("t2")));
    assert_eq!(ticket(&mut moved, 1).as_deref(), Some("t2"), "a redirect stands in place of both");
    assert!(!moved.renewed(&answer(0, 900_000), 0), "an empty answer changes nothing");
    assert_eq!(ticket(&mut moved, 1).as_deref(), Some("t2"));
}

#[test]
fn where_the_next_attempt_goes_is_known_while_the_ticket_lives() {
    let mut endpoints = only(Transport::Tcp);
    assert_eq!(endpoints.here(0), None);
    endpoints.scheduled(&answer(2, 300_000), 0);
    assert_eq!(endpoints.here(900_000), Some("tcp://gw-0:1"), "a fresh ticket is used in any case");
    endpoints.next(0);
    endpoints.suspect();
    assert_eq!(endpoints.here(1), Some("tcp://gw-0:1"));
    endpoints.failed();
    assert_eq!((endpoints.here(1), endpoints.here(299_000)), (Some("tcp://gw-1:1"), None));
    endpoints.failed();
    assert_eq!(endpoints.here(1), None, "a scheduler's turn");
}

#[derive(Debug, Clone)]
enum Step {
    Schedule(usize, i64),
    Next(i64),
    Failed,
    FailedAltogether,
    Suspect,
    Busy,
    Resume(i64),
    OnceMore(i64),
    Refused,
    Renew(usize, i64),
    Redirect,
    Restore(i64),
    Bootstrap(usize),
    Stable,
    Forget,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0usize..6, -10i64..400_000).prop_map(|(g, t)| Step::Schedule(g, t)),
        (0i64..400_000).prop_map(Step::Next),
        Just(Step::Failed),
        Just(Step::FailedAltogether),
        Just(Step::Suspect),
        Just(Step::Busy),
        (0i64..400_000).prop_map(Step::Resume),
        (0i64..400_000).prop_map(Step::OnceMore),
        Just(Step::Refused),
        (0usize..6, -10i64..400_000).prop_map(|(g, t)| Step::Renew(g, t)),
        Just(Step::Redirect),
        (0i64..400_000).prop_map(Step::Restore),
        (0usize..3).prop_map(Step::Bootstrap),
        Just(Step::Stable),
        Just(Step::Forget),
    ]
}

proptest! {
    /// Whatever happens: only usable transports, bounded reports, and every list comes to an end.
    #[test]
    fn the_walk_keeps_its_bounds(steps in proptest::collection::vec(step(), 0..200)) {
        let mut endpoints = only(Transport::Tcp);
        for step in steps {
            match step {
                Step::Schedule(g, t) => drop(endpoints.scheduled(&answer(g, t), 0)),
                Step::Next(now) => {
                    if let Some(attempt) = endpoints.next(now) {
                        prop_assert_eq!(attempt.endpoint.transport, "tcp");
                    }
                }
                Step::Failed => endpoints.failed(),
                Step::FailedAltogether => endpoints.failed_altogether(),
                Step::Suspect => endpoints.suspect(),
                Step::Busy => endpoints.busy(),
                Step::Resume(now) => drop(endpoints.resume(now)),
                Step::OnceMore(now) => endpoints.once_more(now),
                Step::Refused => drop(endpoints.refused()),
                Step::Renew(g, t) => drop(endpoints.renewed(&answer(g, t), 0)),
                Step::Redirect => drop(endpoints.redirected(&redirect("t2"))),
                Step::Restore(now) => drop(endpoints.restored(&stored(300_000), now)),
                Step::Bootstrap(count) => {
                    let order: Vec<_> = (0..count).map(|n| endpoint(n, "tcp")).collect();
                    endpoints.bootstrap(&order);
                }
                Step::Stable => endpoints.stable(),
                Step::Forget => endpoints.forget(),
            }
            prop_assert!(endpoints.failed_gateways().len() <= FAILED);
        }
        // The list, and one that was told while there was a connection. One failure that was expected does not count.
        let mut left = None;
        for _ in 0..2 {
            for _ in 0..4 {
                endpoints.failed();
            }
            left = endpoints.next(0);
        }
        prop_assert_eq!(left, None);
    }
}
