//! What a session does: heartbeats, requests, notifies.

use berth_proto::{
    client::{
        ConversationSeq, SendRequest, Target, request::Method, response, server_frame::Frame, target::To,
    },
    wire::to_gateway,
};

use crate::support::{
    Site,
    client::{ALL, Transport},
    eventually,
    logic::{Manner, notify},
};

fn send_to(user: &str) -> Method {
    Method::Send(SendRequest {
        client_msg_id: "c-1".into(),
        to: Some(Target { to: Some(To::UserId(user.into())) }),
        body: b"hi".to_vec().into(),
        ..SendRequest::default()
    })
}

#[test]
fn requests_go_up_with_their_session_and_come_back_under_the_clients_id() {
    let site = Site::start();
    for transport in ALL {
        let mut client = site.login(transport, "alice", "d");
        client.request(77, send_to("bob"));
        assert!(matches!(client.response(), (77, response::Result::Send(sent)) if sent.message_id == 9));
        let requested = site.logic.state().requested.pop().expect("forwarded");
        assert_eq!((requested.user_id.as_str(), requested.device_id.as_str()), ("alice", "d"));
        assert!(requested.session_epoch > 0);
        assert!(
            matches!(requested.request.and_then(|r| r.method), Some(Method::Send(sent)) if &sent.body[..] == b"hi")
        );
    }
}

#[test]
fn requests_of_one_connection_keep_their_order() {
    let site = Site::start();
    let mut client = site.login(Transport::Proto, "alice", "d");
    for round in 0..50u32 {
        for id in 1..=16 {
            client.request(
                id,
                Method::Ack(berth_proto::client::AckRequest { seq: u64::from(round * 16 + id) }),
            );
        }
        for id in 1..=16 {
            assert_eq!(client.response().0, id);
        }
    }
    let state = site.logic.state();
    let seqs: Vec<u64> = state
        .requested
        .iter()
        .map(|request| match request.request.as_ref().and_then(|r| r.method.as_ref()) {
            Some(Method::Ack(ack)) => ack.seq,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seqs, (1..=800).collect::<Vec<_>>());
}

#[test]
fn notifies_arrive_and_old_ones_are_not_told() {
    let site = Site::start();
    for transport in ALL {
        let mut client = site.login(transport, "alice", "d");
        let handle = site.logic.handle("alice", "d");
        site.logic.notify(handle, 6);
        assert!(matches!(client.frame(), Frame::Notify(n) if n.inbox_seq == 6 && !n.sync_all));
        site.logic.notify(handle, 5);
        let moved = ConversationSeq { conversation_id: 3, seq: 4 };
        site.logic.send(vec![notify(handle, 6, vec![moved])]);
        assert!(matches!(client.frame(), Frame::Notify(n) if n.conversations == [moved]));
    }
    assert_eq!(site.metrics.counter("berth_gateway_frames_sent_total{kind=\"notify\"}"), 6);
    assert_eq!(site.metrics.counter("berth_gateway_notifies_total{outcome=\"merged\"}"), 3);
}

#[test]
fn a_batch_is_merged_into_one_notify() {
    let site = Site::start();
    let mut client = site.login(Transport::Json, "alice", "d");
    let handle = site.logic.handle("alice", "d");
    let one = |i| notify(handle, i, vec![ConversationSeq { conversation_id: i, seq: 1 }]);
    site.logic.send((1..=40).map(one).collect());
    let Frame::Notify(told) = client.frame() else { panic!("a notify") };
    assert!(told.inbox_seq == 40 && told.sync_all && told.conversations.is_empty(), "{told:?}");
}

#[test]
fn a_lost_notify_is_made_up_for_within_two_heartbeats() {
    let site = Site::with(|config| config.heartbeat.interval_ms = 1);
    for transport in ALL {
        let mut client = site.login(transport, "alice", "d");
        // The message came; its notify did not.
        site.logic.state().inbox_seq.insert("alice".into(), 9);
        client.heartbeat();
        let told = |frame: &Frame| match frame {
            Frame::HeartbeatAck(ack) => ack.inbox_seq,
            Frame::Notify(notify) => notify.inbox_seq,
            other => panic!("{other:?}"),
        };
        assert!(matches!(client.frame(), Frame::HeartbeatAck(_)));
        assert_eq!(told(&client.frame()), 9, "the batch's answer is told at once");
        client.heartbeat();
        assert!(matches!(client.frame(), Frame::HeartbeatAck(ack) if ack.inbox_seq == 9));
        site.logic.state().inbox_seq.clear();
    }
}

#[test]
fn fast_heartbeats_are_acked_but_do_not_make_logic_work() {
    let site = Site::start();
    let mut client = site.login(Transport::Proto, "alice", "d");
    let started = std::time::Instant::now();
    for _ in 0..500 {
        client.heartbeat();
    }
    for _ in 0..500 {
        assert!(matches!(client.frame(), Frame::HeartbeatAck(_)));
    }
    // The first one asks, then one a second.
    let (asked, seconds) = (site.logic.state().refreshes, started.elapsed().as_secs());
    assert!(asked >= 1 && asked as u64 <= 2 + seconds, "{asked} refreshes in {seconds} s");
}

#[test]
fn a_ping_is_answered() {
    let site = Site::start();
    site.login(Transport::Json, "alice", "d").ping();
    assert_eq!(site.metrics.counter("berth_gateway_frames_received_total{kind=\"ping\"}"), 1);
}

#[test]
fn a_notify_that_overtakes_the_opening_is_told_after_the_welcome() {
    let site = Site::start();
    site.logic.state().opens = Manner::Silent;
    let mut client = site.connect(Transport::Tcp);
    client.hello(&site.scheduler.sign(&Site::ticket("alice", "d")), "d");
    eventually("the open", || site.logic.state().opened.len() == 1);
    let handle = site.logic.state().opened[0].handle;
    site.logic.send(vec![
        notify(handle, 8, Vec::new()),
        to_gateway::Message::Opened(berth_proto::wire::SessionOpened {
            handle,
            session_epoch: 1,
            inbox_seq: 7,
            inbox_epoch: 1,
            ..Default::default()
        }),
    ]);
    assert_eq!(client.welcome().inbox_seq, 7);
    assert!(matches!(client.frame(), Frame::Notify(notify) if notify.inbox_seq == 8));
}

#[test]
fn what_is_sent_before_the_welcome_waits_for_it() {
    let site = Site::start();
    for transport in ALL {
        let mut client = site.connect(transport);
        client.hello(&site.scheduler.sign(&Site::ticket("alice", "d")), "d");
        client.heartbeat();
        client.pull(1);
        client.welcome();
        assert!(matches!(client.frame(), Frame::HeartbeatAck(_)));
        assert_eq!(client.response().0, 1);
    }
}

#[test]
fn large_answers_come_whole() {
    let site = Site::start();
    site.logic.state().row_bytes = 600 * 1024;
    for transport in ALL {
        let mut client = site.login(transport, "alice", "d");
        client.pull(3);
        let (3, response::Result::Pull(page)) = client.response() else { panic!("a page") };
        let event = page.items[0].event.as_ref().and_then(|e| e.event.as_ref());
        assert!(
            matches!(event, Some(berth_proto::client::event::Event::Message(m)) if m.body.len() == 600 * 1024)
        );
    }
}

#[test]
fn an_answer_above_the_frame_limit_becomes_an_error() {
    let site = Site::start();
    site.logic.state().row_bytes = 1024 * 1024;
    let mut client = site.login(Transport::Proto, "alice", "d");
    client.pull(3);
    let (id, error) = client.error();
    assert_eq!((id, error.code.as_str()), (3, "INTERNAL"));
}
