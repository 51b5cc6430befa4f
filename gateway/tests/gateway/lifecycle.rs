//! How sessions and the gateway end, and how they survive a forgetful logic.

use std::{sync::Arc, time::Duration};

use berth_gateway::Gateway;
use berth_proto::{
    client::{response, server_frame::Frame},
    code::{CloseCode, ErrorCode},
    wire::{CloseConnection, LeaseRenewed, SessionOpened, to_gateway},
};

use crate::support::{
    Site,
    client::{ALL, Received, Transport},
    eventually,
    logic::{FakeLogic, Manner},
    now_ms,
};

#[test]
fn the_same_device_again_replaces_the_older_connection() {
    let site = Site::start();
    for transport in ALL {
        let mut older = site.login(transport, "alice", "d");
        let mut newer = site.login(transport, "alice", "d");
        assert_eq!(older.disconnected().code, 4504);
        newer.heartbeat();
        assert!(matches!(newer.frame(), Frame::HeartbeatAck(_)));
    }
}

#[test]
fn a_close_for_an_older_session_touches_nobody() {
    let site = Site::start();
    let mut client = site.login(Transport::Json, "alice", "d");
    let handle = site.logic.handle("alice", "d");
    let close = |session_epoch| {
        to_gateway::Message::Close(CloseConnection {
            handle,
            session_epoch,
            code: CloseCode::Kicked.number().into(),
            reason: "spam".into(),
        })
    };
    site.logic.send(vec![close(9_999)]);
    client.heartbeat();
    assert!(matches!(client.frame(), Frame::HeartbeatAck(_)));
    site.logic.send(vec![close(0)]);
    let goodbye = client.disconnected();
    assert_eq!((goodbye.code, goodbye.reason.as_str()), (4503, "kicked: spam"));
}

#[test]
fn when_the_login_expires_the_connection_is_closed_with_4005() {
    let site = Site::start();
    for transport in ALL {
        let mut ticket = Site::ticket("alice", "d");
        ticket.auth_expires_at_ms = now_ms() + 300;
        let mut client = site.connect(transport);
        client.hello(&site.scheduler.sign(&ticket), "d");
        client.welcome();
        assert_eq!(client.disconnected().code, 4005);
    }
}

#[test]
fn a_client_that_closes_is_answered_and_forgotten() {
    let site = Site::start();
    let mut client = site.login(Transport::Proto, "alice", "d");
    client.close(1000);
    assert!(matches!(client.receive(), Received::Close(1000)));
    assert!(matches!(client.receive(), Received::End));
    let mut client = site.login(Transport::Tcp, "alice", "e");
    client.close(0);
    assert!(matches!(client.receive(), Received::End));
    eventually("logic learns of both", || site.logic.state().closed.len() == 2);
    assert_eq!(site.metrics.counter("berth_gateway_connections_closed_total{code=\"client\"}"), 2);
}

#[test]
fn requests_that_a_leaving_client_sent_last_still_reach_logic() {
    let site = Site::start();
    for _ in 0..20 {
        let mut client = site.login(Transport::Tcp, "alice", "d");
        client.pull(1);
        client.close(0);
    }
    eventually("all twenty", || site.logic.state().requested.len() == 20);
}

#[test]
fn a_session_whose_client_left_while_it_was_opened_is_closed_behind_the_opening() {
    let site = Site::start();
    site.logic.state().opens = Manner::Silent;
    let mut client = site.connect(Transport::Tcp);
    client.hello(&site.scheduler.sign(&Site::ticket("alice", "d")), "d");
    eventually("the open", || site.logic.state().opened.len() == 1);
    let handle = site.logic.state().opened[0].handle;
    // A reset, which is seen even while the session waits.
    socket2::SockRef::from(&*client.stream()).set_linger(Some(Duration::ZERO)).expect("settable");
    drop(client);
    eventually("it is gone", || site.metrics.gauge("berth_gateway_connections").abs() < f64::EPSILON);
    // However late logic comes to it: it has both, in that order, and no answer is waited for.
    eventually("the close", || site.logic.state().closed.len() == 1);
    let close = site.logic.state().closed[0].clone();
    assert_eq!((close.user_id.as_str(), close.device_id.as_str()), ("alice", "d"));
    assert_eq!((close.session_epoch, close.handle), (0, handle));
    site.logic.send(vec![to_gateway::Message::Opened(SessionOpened {
        handle,
        session_epoch: 12,
        ..SessionOpened::default()
    })]);
    site.logic.state().opens = Manner::Answers;
    drop(site.login(Transport::Tcp, "bob", "d"));
    eventually("the next close", || site.logic.state().closed.len() == 2);
    assert_eq!(site.logic.state().closed[1].user_id, "bob", "once is enough");
}

#[test]
fn leases_are_renewed_and_a_forgetful_logic_is_told_again() {
    let site = Site::start();
    site.logic.state().lease_ms = 150;
    let mut client = site.login(Transport::Json, "alice", "d");
    eventually("several renewals", || site.logic.state().renewals >= 4);
    let first = site.logic.state().opened[0].clone();
    site.logic.state().forgotten = true;
    eventually("the session is announced again", || site.logic.state().opened.len() == 2);
    let again = site.logic.state().opened[1].clone();
    assert_eq!(first.session_epoch, 0);
    assert!(again.session_epoch > 0);
    assert_eq!(
        (again.handle, &again.user_id, &again.app_version),
        (first.handle, &first.user_id, &first.app_version)
    );
    client.pull(1);
    assert_eq!(client.response().0, 1);
    let epoch = site.logic.state().requested[0].session_epoch;
    assert!(epoch >= again.session_epoch);
}

#[test]
fn a_session_that_logic_cannot_take_up_again_yet_is_kept_and_announced_later() {
    let site = Site::start();
    let mut client = site.login(Transport::Json, "alice", "d");
    site.logic.state().lease_ms = 150;
    for (code, close) in
        [(ErrorCode::Internal, CloseCode::Internal), (ErrorCode::Unavailable, CloseCode::Overloaded)]
    {
        site.logic.state().refuse_opens = Some((code, close));
        site.logic.state().opened.clear();
        site.logic.state().forgotten = true;
        eventually("it is announced, and again", || site.logic.state().opened.len() == 2);
        client.pull(1);
        assert_eq!(client.response().0, 1, "the client noticed nothing");
    }
    // What is wrong with the session itself ends it.
    site.logic.state().refuse_opens = Some((ErrorCode::FailedPrecondition, CloseCode::SessionReplaced));
    assert_eq!(client.disconnected().code, 4504);
}

#[test]
fn those_who_gave_a_sign_of_life_last_are_announced_first() {
    let site = Site::with(|config| config.workers = 1);
    let mut clients = ["one", "two"].map(|user| site.login(Transport::Tcp, user, "d"));
    for active in [1, 0] {
        // By the clock's milliseconds.
        std::thread::sleep(Duration::from_millis(10));
        clients[active].heartbeat();
        assert!(matches!(clients[active].frame(), Frame::HeartbeatAck(_)));
        site.logic.state().opened.clear();
        let forgotten = LeaseRenewed { lease_ms: 60_000, forgotten: true, said_ms: 0 };
        site.logic.send(vec![to_gateway::Message::Lease(forgotten)]);
        eventually("both are announced", || site.logic.state().opened.len() == 2);
        assert_eq!(site.logic.state().opened[0].user_id, ["one", "two"][active]);
    }
}

#[test]
fn a_logic_that_forgets_again_while_it_is_told_is_told_everything_again() {
    let site = Site::with(|config| config.workers = 1);
    // Several batches of announcements, so that the list is not empty after the first.
    let clients: Vec<_> = (0..450).map(|i| site.login(Transport::Tcp, "alice", &format!("d-{i}"))).collect();
    let forgotten =
        || to_gateway::Message::Lease(LeaseRenewed { lease_ms: 60_000, forgotten: true, said_ms: 0 });
    site.logic.state().opened.clear();
    // Until we come between two batches.
    eventually("a part is announced", || {
        site.logic.send(vec![forgotten()]);
        eventually("the first are announced", || site.logic.state().opened.len() >= 100);
        std::mem::take(&mut site.logic.state().opened).len() < 450
    });
    site.logic.send(vec![forgotten()]);
    let devices = || {
        let state = site.logic.state();
        state.opened.iter().map(|open| open.device_id.clone()).collect::<std::collections::HashSet<_>>().len()
    };
    eventually("all of them are announced after the second time", || devices() == 450);
    drop(clients);
}

#[test]
fn an_end_that_logic_had_no_room_for_is_told_later() {
    let site = Site::start();
    site.logic.state().closes = Manner::Full;
    drop(site.login(Transport::Tcp, "alice", "d"));
    let refused = || site.metrics.counter("berth_gateway_link_refused_total{message=\"close\"}");
    eventually("the close is refused, and refused again", || refused() >= 2);
    assert!(site.logic.state().closed.is_empty());
    site.logic.state().closes = Manner::Answers;
    eventually("the close", || site.logic.state().closed.len() == 1);
}

#[test]
fn several_logics_share_the_users_and_one_that_is_away_gets_nobody() {
    let site = Site::start();
    let other = Arc::new(FakeLogic::default());
    site.gateway.attach_logic(Arc::clone(&other) as _);
    let login = |user: usize| site.login(ALL[user % 3], &format!("user-{user}"), "d");
    let mut clients: Vec<_> = (0..40).map(login).collect();
    for client in &mut clients {
        client.pull(1);
        assert_eq!(client.response().0, 1);
    }
    let users =
        |logic: &FakeLogic| logic.state().opened.iter().map(|o| o.user_id.clone()).collect::<Vec<_>>();
    assert!(users(&site.logic).len() > 8 && users(&other).len() > 8);
    for logic in [&site.logic, &other] {
        let asked: Vec<_> = logic.state().requested.iter().map(|r| r.user_id.clone()).collect();
        assert_eq!(asked, users(logic), "a session's requests go where it was opened");
    }
    other.state().away = true;
    let before = users(&other).len();
    let _more: Vec<_> = (40..60).map(login).collect();
    assert_eq!(users(&other).len(), before);
    let theirs = clients.iter_mut().filter_map(|client| {
        client.pull(2);
        match client.response() {
            (2, response::Result::Error(error)) => Some(error.code),
            _ => None,
        }
    });
    assert_eq!(theirs.collect::<Vec<_>>(), vec!["UNAVAILABLE"; before]);
}

#[test]
fn a_drain_answers_what_is_in_flight_and_spreads_the_returns() {
    let site = Site::start();
    let idle: Vec<_> = (0..40).map(|i| site.login(ALL[i % 3], "alice", &format!("d-{i}"))).collect();
    site.logic.state().requests = Manner::Silent;
    let mut busy = site.login(Transport::Tcp, "bob", "d");
    busy.pull(3);
    eventually("the request", || site.logic.state().waiting.len() == 1);
    site.gateway.drain(Duration::from_secs(10));
    assert!(site.scheduler.last_report().is_some_and(|report| report.draining && !report.ready));
    assert_eq!(site.gateway.ready(), Err("draining".to_owned()));
    let mut waits: Vec<u32> = idle
        .into_iter()
        .map(|mut client| {
            let goodbye = client.disconnected();
            assert_eq!((goodbye.code, goodbye.reason.as_str()), (4001, "draining"));
            goodbye.retry_after_ms
        })
        .collect();
    waits.sort_unstable();
    assert!(*waits.last().expect("forty") <= 10_000 && waits[39] - waits[0] > 2_000, "{waits:?}");
    let waiting = site.logic.state().waiting.clone();
    site.logic.answer(&waiting[0]);
    assert_eq!(busy.response().0, 3);
    assert_eq!(busy.disconnected().code, 4001);
    // Whoever comes now is sent away as well, not all for the same moment.
    let late = ALL.into_iter().cycle().take(12).map(|transport| {
        let mut late = site.connect(transport);
        late.hello(&site.scheduler.sign(&Site::ticket("carol", "d")), "d");
        let goodbye = late.disconnected();
        assert!(goodbye.code == 4001 && goodbye.retry_after_ms <= 10_000, "{goodbye:?}");
        goodbye.retry_after_ms
    });
    let waits: std::collections::HashSet<u32> = late.collect();
    assert!(waits.len() > 6, "{waits:?}");
}

#[test]
fn who_leaves_with_a_request_in_flight_is_not_closed_for_silence() {
    let site = Site::with(|config| {
        config.heartbeat.interval_ms = 100;
        config.heartbeat.timeout_ms = 200;
        config.timeouts.request = Duration::from_millis(2_500);
    });
    site.logic.state().requests = Manner::Silent;
    let mut client = site.login(Transport::Proto, "alice", "d");
    client.pull(1);
    eventually("the request", || site.logic.state().waiting.len() == 1);
    site.gateway.drain(Duration::ZERO);
    assert!(matches!(client.response(), (1, response::Result::Error(e)) if e.code == "DEADLINE_EXCEEDED"));
    assert_eq!(client.disconnected().code, 4001);
}

#[test]
fn stop_says_goodbye_to_everybody_and_joins() {
    let site = Site::start();
    let mut clients: Vec<_> = ALL.into_iter().map(|t| site.login(t, "alice", &format!("{t:?}"))).collect();
    let Site { gateway, logic, scheduler, metrics } = site;
    let stopper = std::thread::spawn(move || gateway.stop());
    for client in &mut clients {
        assert_eq!(client.disconnected().code, 4001);
    }
    drop(clients);
    eventually("it stops", || stopper.is_finished());
    stopper.join().expect("no panic");
    assert_eq!(logic.state().closed.len(), 3, "logic knew before the threads ended");
    assert!(scheduler.reports() > 0);
    assert!(metrics.gauge("berth_gateway_connections").abs() < f64::EPSILON);
}

#[test]
fn a_stop_tells_who_waits_for_an_answer_that_none_comes_and_says_goodbye() {
    // With and without a drain that listed them before.
    for drained in [false, true] {
        let site = Site::with(|config| config.timeouts.stop = Duration::from_millis(2_500));
        site.logic.state().requests = Manner::Silent;
        let mut clients = ALL.map(|t| site.login(t, "alice", &format!("{t:?}")));
        for client in &mut clients {
            client.pull(7);
        }
        eventually("the requests", || site.logic.state().waiting.len() == 3);
        if drained {
            site.gateway.drain(Duration::ZERO);
        }
        let Site { gateway, logic, .. } = site;
        let stopper = std::thread::spawn(move || gateway.stop());
        for client in &mut clients {
            let (id, error) = client.error();
            assert_eq!((id, error.code.as_str(), error.retryable), (7, "UNAVAILABLE", true));
            let goodbye = client.disconnected();
            assert!(goodbye.code == 4001 && (!drained || goodbye.retry_after_ms == 0), "{goodbye:?}");
        }
        stopper.join().expect("no panic");
        assert_eq!(logic.state().closed.len(), 3);
    }
}

/// Stops the gateway and fails if that does not end.
#[track_caller]
fn check_stops(gateway: Gateway) {
    let stopper = std::thread::spawn(move || gateway.stop());
    eventually("it stops", || stopper.is_finished());
    stopper.join().expect("no panic");
}

#[test]
fn an_end_that_logic_had_no_room_for_is_told_at_the_latest_at_the_stop() {
    // The last connection's end is refused once, and nothing else would wake the worker before it stops.
    let site = Site::with(|config| config.workers = 1);
    site.logic.state().closes = Manner::Full;
    drop(site.login(Transport::Tcp, "alice", "d"));
    let refused = || site.metrics.counter("berth_gateway_link_refused_total{message=\"close\"}");
    eventually("the close is refused", || refused() >= 1);
    site.logic.state().closes = Manner::Answers;
    let Site { gateway, logic, .. } = site;
    check_stops(gateway);
    assert_eq!(logic.state().closed.len(), 1);
}

#[test]
fn stop_does_not_wait_for_a_peer_that_stays() {
    // Far more than the test's patience: the lingering ends long before this.
    let site = Site::with(|config| {
        config.timeouts.stop = Duration::from_secs(600);
        config.timeouts.linger = Duration::from_secs(600);
    });
    let mut said = site.login(Transport::Tcp, "bob", "d");
    said.send_payload(b"rubbish", false);
    assert_eq!(said.disconnected().code, 4501);
    let stays = site.login(Transport::Tcp, "alice", "d");
    let Site { gateway, logic, .. } = site;
    check_stops(gateway);
    assert_eq!(logic.state().closed.len(), 2);
    drop((said, stays));
}
