//! Credentials that are void: who is connected with them is closed, and who comes with them is not let in.

use berth_proto::{
    carry::Record,
    wire::{Carried, CloseConnection, Revocation, SessionOpened, Ticket, to_gateway},
};

use crate::support::{
    Site,
    client::{Client, Transport},
    eventually,
    logic::Manner,
    now_ms,
};

fn revoked(user: &str, device: &str, not_before_ms: i64, version: u64) -> to_gateway::Message {
    let record = Record::Revocation(Revocation {
        user_id: user.to_owned(),
        device_id: device.to_owned(),
        not_before_ms,
        reason: "lost phone".to_owned(),
    });
    to_gateway::Message::Revoked(Carried { records: vec![record.carried(version, 0)], ..Default::default() })
}

/// Connects with a ticket of a login at that time.
fn arrive(site: &Site, device: &str, auth_issued_at_ms: i64) -> Client {
    let ticket = Ticket { auth_issued_at_ms, ..Site::ticket("alice", device) };
    let mut client = site.connect(Transport::Tcp);
    client.hello(&site.scheduler.sign(&ticket), device);
    client
}

#[test]
fn who_is_connected_with_what_was_revoked_is_closed_and_nobody_else() {
    let site = Site::start();
    let login_ms = now_ms();
    let mut phone = site.login(Transport::Json, "alice", "phone");
    let mut laptop = site.login(Transport::Tcp, "alice", "laptop");
    let mut bob = site.login(Transport::Tcp, "bob", "phone");
    let mut later = arrive(&site, "tablet", login_ms + 60_000);
    later.welcome();
    site.logic.send(vec![revoked("alice", "phone", login_ms + 30_000, 1)]);
    let goodbye = phone.disconnected();
    assert_eq!(goodbye.code, 4500);
    assert!(goodbye.reason.contains("lost phone"), "{goodbye:?}");
    for other in [&mut laptop, &mut bob, &mut later] {
        other.pull(1);
        assert_eq!(other.response().0, 1, "served as before");
    }
    site.logic.send(vec![revoked("alice", "", login_ms + 30_000, 1)]);
    assert_eq!(laptop.disconnected().code, 4500);
    for other in [&mut bob, &mut later] {
        other.pull(2);
        assert_eq!(other.response().0, 2);
    }
    assert_eq!(site.metrics.counter("berth_gateway_sessions_revoked_total"), 2);
    eventually("logic hears of both", || site.logic.state().closed.len() >= 2);
}

#[test]
fn what_was_revoked_lets_nobody_in_and_a_later_login_does() {
    let site = Site::start();
    let login_ms = now_ms();
    site.logic.send(vec![revoked("alice", "", login_ms, 1)]);
    for issued_at_ms in [0, login_ms - 1] {
        assert_eq!(arrive(&site, "phone", issued_at_ms).disconnected().code, 4500);
    }
    assert!(site.logic.state().opened.is_empty(), "logic was not asked");
    arrive(&site, "phone", login_ms).welcome();
    site.logic.send(vec![revoked("alice", "", 0, 2)]);
    arrive(&site, "laptop", 0).welcome();
}

#[test]
fn a_revocation_that_comes_while_logic_opens_the_session_is_not_missed() {
    let site = Site::start();
    site.logic.state().opens = Manner::Silent;
    let mut client = arrive(&site, "phone", now_ms());
    eventually("logic is asked", || site.logic.state().opened.len() == 1);
    let handle = site.logic.state().opened[0].handle;
    let opened = SessionOpened { handle, session_epoch: 7, ..SessionOpened::default() };
    site.logic
        .send(vec![revoked("alice", "phone", now_ms() + 30_000, 1), to_gateway::Message::Opened(opened)]);
    assert_eq!(client.disconnected().code, 4500);
    eventually("logic is told to close what it opened", || {
        site.logic.state().closed.iter().any(|close| close.handle == handle)
    });
}

#[test]
fn a_thousand_revocations_at_once_cost_a_few_looks() {
    let site = Site::start();
    let mut clients: Vec<_> =
        (0..50).map(|n| site.login(Transport::Tcp, &format!("user-{n}"), "phone")).collect();
    let messages = (0..1_000).map(|n| revoked(&format!("user-{n}"), "", now_ms() + 30_000, 1)).collect();
    site.logic.send(messages);
    for client in &mut clients {
        assert_eq!(client.disconnected().code, 4500);
    }
    let mut stranger = site.login(Transport::Tcp, "stranger", "phone");
    stranger.pull(1);
    assert_eq!(stranger.response().0, 1);
}

#[test]
fn a_close_of_logic_and_the_revocation_behind_it_end_a_session_once() {
    let site = Site::start();
    let mut phone = site.login(Transport::Tcp, "alice", "phone");
    let handle = site.logic.state().opened[0].handle;
    let close = CloseConnection { handle, code: 4500, reason: "revoked".to_owned(), ..Default::default() };
    site.logic.send(vec![revoked("alice", "phone", now_ms() + 30_000, 1), to_gateway::Message::Close(close)]);
    assert_eq!(phone.disconnected().code, 4500);
    // Behind the look for whom the revocation is about.
    assert_eq!(arrive(&site, "phone", now_ms()).disconnected().code, 4500);
    site.login(Transport::Tcp, "bob", "phone").pull(1);
    assert_eq!(site.metrics.counter("berth_gateway_sessions_revoked_total"), 1);
}
