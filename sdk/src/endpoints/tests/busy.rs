//! Gateways that have more to do than they take.

use super::*;

#[test]
fn a_gateway_that_is_busy_has_not_failed() {
    let mut endpoints = Endpoints::new(vec![Transport::WebSocket, Transport::Tcp]);
    endpoints.scheduled(&answer(2, 300_000), 0);
    for turn in 0..6 {
        assert_eq!(gateway(&mut endpoints, 1).as_deref(), Some(["gw-0", "gw-1"][turn % 2]));
        endpoints.busy();
    }
    assert!(endpoints.failed_gateways().is_empty());
    assert_eq!(gateway(&mut endpoints, 1), None, "three rounds: a scheduler may know of others");
    for stable in [true, false] {
        endpoints.scheduled(&answer(1, 300_000), 0);
        for _ in 0..2 {
            endpoints.busy();
            assert_eq!(gateway(&mut endpoints, 1).as_deref(), Some("gw-0"), "there is no other");
        }
        if stable {
            endpoints.stable();
        }
        endpoints.busy();
        assert_eq!(gateway(&mut endpoints, 1).is_some(), stable, "only a session that lived begins anew");
    }
    assert!(endpoints.bootstrap(&[endpoint(7, "tcp"), endpoint(8, "tcp")]));
    endpoints.busy();
    assert_eq!(gateway(&mut endpoints, 1), None, "a scheduler's turn");
}

/// Tickets for so many gateways, of which the first was lost and does not answer.
fn first_is_dead(gateways: usize) -> Endpoints {
    let mut endpoints = only(Transport::Tcp);
    endpoints.scheduled(&answer(gateways, 300_000), 0);
    endpoints.stable();
    endpoints.suspect();
    endpoints.failed_altogether();
    endpoints
}

#[test]
fn who_is_sent_on_by_a_busy_gateway_goes_to_a_dead_one_once_in_a_round_and_keeps_his_list() {
    let mut endpoints = first_is_dead(4);
    for _ in 0..2 {
        for expected in ["gw-1", "gw-2", "gw-3"] {
            assert_eq!(gateway(&mut endpoints, 1).as_deref(), Some(expected));
            endpoints.busy();
        }
        assert_eq!(gateway(&mut endpoints, 1).as_deref(), Some("gw-0"), "it may be back");
        endpoints.failed_altogether();
        assert_eq!(endpoints.failed_gateways(), ["gw-0"]);
    }
    for _ in 0..3 {
        assert!(gateway(&mut endpoints, 1).is_some());
        endpoints.busy();
    }
    assert_eq!(gateway(&mut endpoints, 1), None, "three rounds of those that live");
}

#[test]
fn a_gateway_that_died_and_is_back_is_found_again_by_those_in_line() {
    let mut endpoints = first_is_dead(2);
    for _ in 0..2 {
        assert_eq!(gateway(&mut endpoints, 1).as_deref(), Some("gw-1"));
        endpoints.busy();
        assert_eq!(gateway(&mut endpoints, 1).as_deref(), Some("gw-0"), "after one round");
        endpoints.failed();
    }
    // It failed twice before the line, and twice in it, which was expected.
    assert_eq!(gateway(&mut endpoints, 1).as_deref(), Some("gw-1"), "the list is kept");
    endpoints.failed();
    assert_eq!(gateway(&mut endpoints, 1), None, "any other failure counts");

    let mut back = first_is_dead(2);
    back.busy();
    assert_eq!(gateway(&mut back, 1).as_deref(), Some("gw-0"));
    back.busy();
    assert!(back.failed_gateways().is_empty(), "it is busy, so it lives");
    assert_eq!(gateway(&mut back, 1).as_deref(), Some("gw-1"), "one round is of both now");
    back.busy();
    assert_eq!(gateway(&mut back, 1).as_deref(), Some("gw-0"));

    let mut drops = first_is_dead(2);
    drops.busy();
    assert_eq!(gateway(&mut drops, 1).as_deref(), Some("gw-0"));
    drops.suspect();
    assert_eq!(gateway(&mut drops, 1), None, "who welcomes and drops at once is a third failure");
}

#[test]
fn of_several_dead_gateways_each_has_its_turn() {
    let mut endpoints = only(Transport::Tcp);
    endpoints.scheduled(&answer(4, 300_000), 0);
    endpoints.failed();
    endpoints.failed();
    for dead in ["gw-0", "gw-1"] {
        for _ in 0..2 {
            assert!(["gw-2", "gw-3"].map(str::to_owned).contains(&gateway(&mut endpoints, 1).expect("one")));
            endpoints.busy();
        }
        assert_eq!(gateway(&mut endpoints, 1).as_deref(), Some(dead));
        endpoints.failed_altogether();
    }
}

#[test]
fn a_list_of_busy_gateways_is_kept_while_no_scheduler_answers() {
    let mut endpoints = only(Transport::Tcp);
    endpoints.scheduled(&answer(2, 300_000), 0);
    assert!(!endpoints.resume(1), "it was not left");
    for _ in 0..6 {
        assert!(gateway(&mut endpoints, 1).is_some());
        endpoints.busy();
    }
    assert_eq!(gateway(&mut endpoints, 1), None, "a scheduler's turn");
    assert!(!endpoints.resume(299_000), "the ticket has ended");
    for round in 0..3 {
        assert!(endpoints.resume(1), "after question {round} that nobody answered");
        for turn in 0..6 {
            assert_eq!(gateway(&mut endpoints, 1).as_deref(), Some(["gw-0", "gw-1"][turn % 2]));
            endpoints.busy();
        }
        assert_eq!(gateway(&mut endpoints, 1), None, "a scheduler may be back");
    }
    assert!(endpoints.resume(1));
    assert!(!endpoints.resume(1), "it was not left");
    for _ in 0..3 {
        endpoints.failed();
    }
    assert_eq!(gateway(&mut endpoints, 1), None);
    assert!(!endpoints.resume(1), "it failed");

    let mut kept = only(Transport::Tcp);
    assert!(kept.restored(&stored(300_000), 1));
    (0..4).for_each(|_| kept.busy());
    assert!(gateway(&mut kept, 1).is_none() && kept.resume(1) && kept.doubtful(), "it is as old as it was");
}
