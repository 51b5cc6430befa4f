//! What a broken link to logic costs: whoever waits is told at once, and when it is back, both sides agree again.

use berth_proto::client::{response, server_frame::Frame};

use crate::support::{
    Site,
    client::{ALL, Transport},
    eventually,
    logic::Manner,
};

#[test]
fn requests_in_flight_are_answered_when_the_link_breaks() {
    let site = Site::start();
    site.logic.state().requests = Manner::Silent;
    for transport in ALL {
        let mut waiting = site.login(transport, "alice", "d");
        let mut idle = site.login(transport, "bob", "d");
        waiting.pull(7);
        eventually("logic has it", || site.logic.state().waiting.len() == 1);
        site.logic.state().waiting.clear();
        site.logic.network(false);
        let (id, answer) = waiting.response();
        let response::Result::Error(error) = answer else { panic!("{answer:?}") };
        assert_eq!((id, error.code.as_str(), error.retryable), (7, "UNAVAILABLE", true));
        idle.heartbeat();
        assert!(matches!(idle.frame(), Frame::HeartbeatAck(_)), "nobody else notices");
        site.logic.network(true);
    }
}

#[test]
fn a_session_that_may_have_been_opened_is_closed_by_its_handle() {
    let site = Site::start();
    site.logic.state().opens = Manner::Silent;
    let mut client = site.connect(Transport::Tcp);
    client.hello(&site.scheduler.sign(&Site::ticket("alice", "d")), "d");
    eventually("logic has it", || site.logic.state().opened.len() == 1);
    let handle = site.logic.state().opened[0].handle;
    site.logic.network(false);
    assert_eq!(client.disconnected().code, 4009);
    eventually("logic is told", || site.logic.state().closed.len() == 1);
    let close = site.logic.state().closed[0].clone();
    assert_eq!((close.user_id.as_str(), close.session_epoch, close.handle), ("alice", 0, handle));
}

#[test]
fn when_the_link_is_back_the_lease_is_renewed_and_every_session_announced() {
    let site = Site::start();
    site.logic.state().lease_ms = 3_600_000;
    let mut client = site.login(Transport::Proto, "alice", "d");
    eventually("the length of the lease is known", || site.logic.state().renewals > 0);
    let renewals = site.logic.state().renewals;
    let epoch = site.logic.state().opened.len();
    // What happened while nobody could be told.
    site.logic.state().inbox_seq.insert("alice".to_owned(), 9);
    site.logic.network(true);
    eventually("the session is announced", || site.logic.state().opened.len() == epoch + 1);
    assert!(site.logic.state().opened[epoch].session_epoch > 0);
    eventually("the lease is renewed", || site.logic.state().renewals > renewals);
    let Frame::Notify(notify) = client.frame() else { panic!("a notify was lost; it comes now") };
    assert_eq!(notify.inbox_seq, 9);
}
