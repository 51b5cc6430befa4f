//! The road: open, send, notify, pull; and everything a client may ask.

use std::collections::HashMap;

use berth_proto::{
    client::{self, request::Method, response::Result as Answer, target::To},
    wire::{self, to_logic::Message as Up},
};

use super::{
    KEY, config,
    gateway::{Gateway, send_to, send_to_user},
    in_memory,
    recorder::Counting,
    until,
};
use crate::{Logic, StoreChoice};

#[tokio::test]
async fn a_message_is_stored_notified_and_pulled() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (alice, tablet) = (gateway.open("alice", "phone", 1).await, gateway.open("alice", "tablet", 2).await);
    let bob = gateway.open("bob", "phone", 3).await;
    let sent = alice.sent("c-1", "bob", "hi").await;
    assert!(!sent.duplicate && sent.message_id > 0 && sent.conversation_id > 0 && sent.server_time_ms > 0);
    for session in [&alice, &tablet, &bob] {
        session.notified(1).await;
        let pulled = session.pull(0, 0).await;
        assert_eq!((pulled.items.len(), pulled.latest_seq, pulled.has_more), (1, 1, false));
        assert_eq!(pulled.inbox_epoch, session.opened.inbox_epoch);
        let messages = session.messages().await;
        let message = &messages[0];
        assert_eq!(
            (message.from.as_str(), message.body.as_ref(), message.r#type.as_str()),
            ("alice", &b"hi"[..], "text")
        );
        assert_eq!((message.message_id, message.conversation_id), (sent.message_id, sent.conversation_id));
    }
    let later = gateway.open("bob", "tablet", 4).await;
    assert_eq!(later.opened.inbox_seq, 1, "read after the route was written");
    logic.stop().await;
}

#[tokio::test]
async fn a_lost_notify_is_found_by_a_heartbeat() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (alice, bob) = (gateway.open("alice", "d", 1).await, gateway.open("bob", "d", 2).await);
    gateway.deaf_to_notifies(true);
    alice.sent("c-1", "bob", "hi").await;
    until("the heartbeat's batch tells", async || (bob.refresh().await == 1).then_some(())).await;
    assert_eq!(bob.messages().await.len(), 1);
    logic.stop().await;
}

#[tokio::test]
async fn a_repeat_is_accepted_once_and_another_message_under_its_name_refused() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let alice = gateway.open("alice", "d", 1).await;
    let first = alice.sent("c-1", "bob", "hi").await;
    let again = alice.sent("c-1", "bob", "hi").await;
    assert_eq!(again, client::SendResponse { duplicate: true, ..first });
    let to_conversation = send_to("c-1", To::ConversationId(first.conversation_id), "hi");
    assert!(
        matches!(alice.ask(to_conversation).await, Answer::Send(sent) if sent.duplicate),
        "the same target"
    );
    for other in [send_to_user("c-1", "bob", "ho"), send_to_user("c-1", "carol", "hi")] {
        assert_eq!(alice.refused(other).await.0, "ALREADY_EXISTS");
    }
    logic.stop().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (alice, mallory) = (gateway.open("alice", "d", 1).await, gateway.open("mallory", "d", 2).await);
    let id = alice.sent("c-1", "bob", "hi").await.conversation_id;
    let history =
        |conversation_id| Method::History(client::HistoryRequest { conversation_id, ..Default::default() });
    let read = |conversation_id| Method::MarkRead(client::MarkReadRequest { conversation_id, seq: 1 });
    let cases = [
        (send_to_user("", "bob", "x"), "INVALID_ARGUMENT", "send.clientMsgId"),
        (send_to_user("c", "no spaces", "x"), "INVALID_ARGUMENT", "send.to.userId"),
        (send_to("c", To::GroupId("g".into()), "x"), "NOT_FOUND", "group g does not exist"),
        (send_to_user("c", "system", "x"), "PERMISSION_DENIED", "system"),
        (send_to("c", To::ConversationId(id), "x"), "PERMISSION_DENIED", "no member"),
        (send_to("c", To::ConversationId(id + 1), "x"), "PERMISSION_DENIED", "no member"),
        (history(id), "PERMISSION_DENIED", "no member"),
        (history(id + 1), "PERMISSION_DENIED", "no member"),
        (history(0), "INVALID_ARGUMENT", "history.conversationId"),
        (read(id), "PERMISSION_DENIED", "no member"),
        (Method::Pull(client::PullRequest { after_seq: 0, limit: 201 }), "INVALID_ARGUMENT", "pull.limit"),
        (
            Method::Conversations(client::ConversationsRequest { limit: 0, cursor: "x".into() }),
            "INVALID_ARGUMENT",
            "conversations.cursor",
        ),
    ];
    for (method, code, text) in cases {
        let (got, message) = mallory.refused(method.clone()).await;
        assert!(got == code && message.contains(text), "{method:?}: {got} {message}");
    }
    let unknown = mallory.say(None);
    assert!(matches!(mallory.answer(unknown).await, Answer::Error(error) if error.code == "UNIMPLEMENTED"));
    let denied = gateway.try_open("system", "d", 9, 0).await;
    assert_eq!((denied.close_code, denied.session_epoch), (4505, 0));
    logic.stop().await;
}

#[tokio::test]
async fn the_older_session_of_a_device_is_closed_on_its_gateway() {
    let logic = in_memory().await;
    let (one, two) = (Gateway::attach(&logic, "g1", 1), Gateway::attach(&logic, "g2", 1));
    let old = one.open("alice", "d", 1).await;
    let new = two.open("alice", "d", 1).await;
    let closed = old.closed().await;
    assert_eq!((closed.code, closed.session_epoch), (4504, old.opened.session_epoch));
    // Its close comes late, its announcement too: neither touches the newer.
    old.close();
    let stale = one.try_open("alice", "d", 1, old.opened.session_epoch).await;
    assert_eq!((stale.close_code, stale.session_epoch), (4504, 0));
    let bob = one.open("bob", "d", 2).await;
    assert!(bob.online("alice").await);
    bob.sent("c-1", "alice", "hi").await;
    new.notified(1).await;
    new.close();
    until("she goes offline", async || (!bob.online("alice").await).then_some(())).await;
    logic.stop().await;
}

#[tokio::test]
async fn an_opening_that_was_held_up_does_not_replace_what_came_meanwhile() {
    let logic = in_memory().await;
    let (one, two) = (Gateway::attach(&logic, "g1", 1), Gateway::attach(&logic, "g2", 1));
    // Their clocks have nothing in common.
    let (now_one, now_two) = (77_000_000, 5_000);
    for (gateway, now_ms) in [(&one, now_one), (&two, now_two)] {
        gateway.say(Up::Renew(wire::RenewLease { sessions: 0, now_ms }));
    }
    let open = |handle, said_ms| wire::OpenSession {
        handle,
        user_id: "alice".to_owned(),
        device_id: "d".to_owned(),
        said_ms,
        ..Default::default()
    };
    let newer = two.ask_to_open(open(1, now_two)).await;
    assert!(newer.session_epoch > 0, "{newer:?}");
    let held_up = one.ask_to_open(open(1, now_one - 2_000)).await;
    assert_eq!((held_up.close_code, held_up.session_epoch), (4504, 0), "said 2 s before it came");
    let bob = one.open("bob", "d", 2).await;
    assert!(bob.online("alice").await);
    let newest = one.ask_to_open(open(3, now_one + 60_000)).await;
    assert!(newest.session_epoch > newer.session_epoch, "{newest:?}");
    logic.stop().await;
}

#[tokio::test]
async fn unread_read_and_conversations() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (alice, bob) = (gateway.open("alice", "d", 1).await, gateway.open("bob", "d", 2).await);
    let tablet = gateway.open("bob", "tablet", 3).await;
    let id = alice.sent("c-1", "bob", "1").await.conversation_id;
    alice.sent("c-2", "bob", "2").await;
    bob.notified(2).await;
    let conversations =
        async || match bob.ask(Method::Conversations(client::ConversationsRequest::default())).await {
            Answer::Conversations(listed) => listed,
            other => panic!("{other:?}"),
        };
    let listed = conversations().await;
    assert_eq!((listed.total_unread, listed.conversations.len(), listed.cursor.as_str()), (2, 1, ""));
    assert_eq!((listed.conversations[0].peer_id.as_str(), listed.conversations[0].unread), ("alice", 2));
    let read = client::MarkReadRequest { conversation_id: id, seq: 1 };
    let Answer::MarkRead(counts) = bob.ask(Method::MarkRead(read)).await else { panic!("marked") };
    assert_eq!((counts.unread, counts.total_unread), (1, 1));
    tablet.notified(3).await;
    assert_eq!(tablet.pull(2, 0).await.items.len(), 1, "his other device learns that he read");
    assert!(matches!(bob.ask(Method::Ack(client::AckRequest { seq: 3 })).await, Answer::Ack(_)));
    let request = client::HistoryRequest { conversation_id: id, ..Default::default() };
    let Answer::History(history) = bob.ask(Method::History(request)).await else { panic!("history") };
    assert_eq!(history.messages.iter().map(|m| m.conversation_seq).collect::<Vec<_>>(), [1, 2]);
    logic.stop().await;
}

/// Sixteen senders, each with many in flight, to each other and to one; every promise of order, over both engines.
async fn many_senders(logic: &Logic) {
    const SENDERS: usize = 16;
    const EACH: usize = 40;
    let gateway = Gateway::attach(logic, "g1", 1);
    let mut sessions = Vec::new();
    for n in 0..SENDERS {
        sessions.push(gateway.open(&format!("u{n}"), "d", n as u64).await);
    }
    let mut said = Vec::new();
    for message in 0..EACH {
        for (n, session) in sessions.iter().enumerate() {
            let to = if message % 2 == 0 { 0 } else { (n + 1) % SENDERS };
            let method = send_to_user(&format!("c{message}"), &format!("u{to}"), &message.to_string());
            said.push((n, message, to, session.say(Some(method))));
        }
    }
    let mut expected: HashMap<usize, usize> = HashMap::new();
    for (n, message, to, id) in said {
        let answer = sessions[n].answer(id).await;
        assert!(matches!(answer, Answer::Send(ref sent) if !sent.duplicate), "{n} {message}: {answer:?}");
        *expected.entry(n).or_default() += 1;
        if to != n {
            *expected.entry(to).or_default() += 1;
        }
    }
    for (n, session) in sessions.iter().enumerate() {
        let messages = until("everything arrived", async || {
            let messages = session.messages().await;
            (messages.len() >= expected[&n]).then_some(messages)
        })
        .await;
        assert_eq!(messages.len(), expected[&n], "none twice");
        let own: Vec<_> =
            messages.iter().filter(|m| m.from == session.user).map(|m| m.client_msg_id.clone()).collect();
        assert_eq!(own, (0..EACH).map(|n| format!("c{n}")).collect::<Vec<_>>(), "his own order");
        let mut last: HashMap<(u64, &str), u64> = HashMap::new();
        for message in &messages {
            let before = last.insert((message.conversation_id, &message.from), message.conversation_seq);
            assert!(before.unwrap_or(0) < message.conversation_seq);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_senders_keep_their_order_in_memory() {
    let logic = in_memory().await;
    many_senders(&logic).await;
    logic.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_senders_keep_their_order_on_disk_and_are_counted() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let recorder = Counting::default();
    let config = config(StoreChoice::Embedded(directory.path().to_owned()));
    let logic = Logic::start(config, berth_proto::metric::Registry::new(&recorder)).await.expect("starts");
    many_senders(&logic).await;
    assert_eq!(recorder.counter("berth_logic_messages_accepted_total"), 640);
    assert_eq!(recorder.counter("berth_logic_messages_committed_total"), 640);
    // u0 writes to himself in half of his messages: nobody else gets those 20.
    until("everything is counted", async || {
        (recorder.counter("berth_logic_messages_delivered_total") == 620).then_some(())
    })
    .await;
    assert_eq!(recorder.counter("berth_logic_sessions_opened_total"), 16);
    assert_eq!(recorder.counter("berth_logic_messages_duplicate_total"), 0);
    assert!(recorder.counter("berth_logic_queue_batches_total") > 0);
    logic.stop().await;
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let start = async |config| {
        let registry = berth_proto::metric::Registry::new(&metrics::NoopRecorder);
        Logic::start(config, registry).await.map(|_| ()).expect_err("cannot start").to_string()
    };
    let good = config(StoreChoice::Memory);
    let short = crate::Config { service_key: KEY[..31].to_owned(), ..good.clone() };
    assert!(start(short).await.contains("auth.service_key has 31 bytes"));
    assert!(start(crate::Config { partitions: 0, ..good.clone() }).await.contains("logic.partitions"));
    assert!(start(crate::Config { node: 1024, ..good.clone() }).await.contains("logic.node is 1024"));
    let taken = in_memory().await;
    let address = taken.local_addr();
    assert!(start(crate::Config { listen: address, ..good.clone() }).await.contains(&address.to_string()));
    taken.stop().await;
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let store = StoreChoice::Embedded(file.path().to_owned());
    assert!(start(crate::Config { store, ..good }).await.contains("data directory"));
}

#[tokio::test]
async fn many_large_answers_are_handed_over_in_parts() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let alice = gateway.open("alice", "d", 1).await;
    let body = "x".repeat(30_000);
    for n in 0..20 {
        alice.sent(&format!("c{n}"), "bob", &body).await;
    }
    until("all are there", async || (alice.messages().await.len() == 20).then_some(())).await;
    let pull = || Some(Method::Pull(client::PullRequest { after_seq: 0, limit: 200 }));
    let (ids, asked): (Vec<_>, Vec<_>) = (0..60).map(|_| alice.request(pull())).unzip();
    gateway.say_all(asked);
    for id in ids {
        assert!(matches!(alice.answer(id).await, Answer::Pull(pulled) if !pulled.items.is_empty()));
    }
    let largest = gateway.largest_batch();
    assert!(largest < 6 * 1024 * 1024, "{largest} bytes of some 30 MiB at once");
    logic.stop().await;
}
