//! Rows that cannot be read: each costs what it is about, and holds up nothing else.

use std::{ops::ControlFlow, sync::Arc};

use berth_proto::{
    client::{self, event::Event as EventKind, request::Method, response::Result as Answer, target::To},
    wire::{self, to_gateway::Message as Down, to_logic::Message as Up},
};

use serde_json::json;

use super::{
    config,
    engine::Volatile,
    gateway::{Gateway, Session, send_to},
    http::ask,
    over, until,
};
use crate::{
    Logic, StoreChoice, group,
    kv::{Batch, Direction, Durability, Key, Kv, Space},
    store::Epoch,
};

/// Where `store::kv::row` keeps everything but bodies and inboxes.
const STATE: Space = Space(2);

fn damage(store: &Arc<Volatile>, key: Key) {
    damage_in(STATE, store, key);
}

fn damage_in(space: Space, store: &Arc<Volatile>, key: Key) {
    let mut batch = Batch::default();
    batch.put(space, key, vec![0xff; 5]);
    store.write(batch, Durability::Buffered).expect("writes");
}

fn member(conversation_id: u64, user: &str) -> Key {
    Key::new(b'r').number(conversation_id).text(user)
}

/// Rows that were set aside while spreading or changing members.
fn set_aside(store: &Arc<Volatile>) -> usize {
    rows_of(store, b'y')
}

fn rows_of(store: &Arc<Volatile>, kind: u8) -> usize {
    let (from, mut found) = (Key::new(kind), 0);
    let visit = &mut |_: &[u8], _: &[u8]| {
        found += 1;
        ControlFlow::Continue(())
    };
    store.view().scan(STATE, from.bytes(), &from.after_prefix(), Direction::Forward, visit).expect("reads");
    found
}

async fn put(logic: &Logic, name: &str, users: &[&str]) -> u64 {
    let users = users.iter().map(|user| (*user).to_owned()).collect();
    group::put(logic.context(), name, users).await.expect("made").conversation_id
}

fn to_group(client_msg_id: &str, name: &str) -> Method {
    send_to(client_msg_id, To::GroupId(name.to_owned()), "x")
}

async fn say(session: &Session, client_msg_id: &str, name: &str) {
    let answer = session.ask(to_group(client_msg_id, name)).await;
    assert!(matches!(answer, Answer::Send(_)), "{answer:?}");
}

async fn named(session: &Session) -> Vec<String> {
    session.messages().await.into_iter().map(|message| message.client_msg_id).collect()
}

#[tokio::test]
async fn a_groups_damaged_outbox_row_costs_one_message_after_a_restart_too() {
    let (queue, store) = (Volatile::new(2), Volatile::new(4));
    let logic = over(config(StoreChoice::Memory), queue.clone(), store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let alice = gateway.open("alice", "d", 1).await;
    let id = put(&logic, "team", &["alice", "bob", "carol"]).await;
    store.refuse_spread(true);
    for n in 1..=3 {
        say(&alice, &format!("c-{n}"), "team").await;
    }
    until("all are committed", async || (alice.messages().await.len() == 3).then_some(())).await;
    damage(&store, Key::new(b'o').number(id).number(1));
    let (queue, store) = (queue.kill(), store.kill());
    logic.stop().await;
    let logic = over(config(StoreChoice::Memory), queue, store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 2);
    for (user, handle) in [("bob", 1), ("carol", 2)] {
        let session = gateway.open(user, "d", handle).await;
        let got = until("what is behind it arrives", async || {
            Some(named(&session).await).filter(|got| got.len() >= 2)
        });
        assert_eq!(got.await, ["c-2", "c-3"], "{user}");
    }
    assert_eq!(set_aside(&store), 1);
    until("it works again", async || logic.ready().ok()).await;
    logic.stop().await;
}

#[tokio::test]
async fn a_damaged_member_costs_himself_and_can_be_removed() {
    let (queue, store) = (Volatile::new(2), Volatile::new(4));
    let logic = over(config(StoreChoice::Memory), queue.clone(), store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (bob, carol) = (gateway.open("bob", "d", 1).await, gateway.open("carol", "d", 2).await);
    let id = put(&logic, "team", &["alice", "bob", "carol", "dave"]).await;
    say(&bob, "before", "team").await;
    until("it is spread", async || (named(&carol).await == ["before"]).then_some(())).await;
    // Accepted while he could be read, committed when he cannot.
    store.fail(true);
    say(&bob, "late", "team").await;
    until("commit noticed", async || logic.ready().err()).await;
    let (queue, store) = (queue.kill(), store.kill());
    logic.stop().await;
    damage(&store, member(id, "bob"));
    damage(&store, member(id, "dave"));
    let logic = over(config(StoreChoice::Memory), queue, store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 2);
    let (alice, bob) = (gateway.open("alice", "d", 1).await, gateway.open("bob", "d", 2).await);
    let carol = gateway.open("carol", "d", 3).await;
    let items = bob.pull(0, 200).await.items;
    let Some(EventKind::Failure(failure)) =
        items.into_iter().filter_map(|item| item.event?.event).next_back()
    else {
        panic!("he is not told")
    };
    assert_eq!((failure.client_msg_id.as_str(), failure.code.as_str()), ("late", "INTERNAL"));
    say(&alice, "after", "team").await;
    until("the others go on", async || (named(&carol).await == ["before", "after"]).then_some(())).await;
    assert_eq!(set_aside(&store), 2, "both are noted");
    let found = group::get(logic.context(), "team", None, 9).await.expect("reads");
    assert_eq!(found.members, ["alice", "bob", "carol", "dave"], "whoever cannot be read is listed");
    put(&logic, "team", &["alice", "carol"]).await;
    let found = group::get(logic.context(), "team", None, 9).await.expect("reads");
    assert_eq!((found.members.len(), found.member_count), (2, 2));
    put(&logic, "team", &["alice", "bob", "carol"]).await;
    let request = Method::Conversations(client::ConversationsRequest::default());
    let Answer::Conversations(list) = bob.ask(request).await else { panic!("he has a list") };
    assert_eq!((list.conversations.len(), list.total_unread), (1, 0), "it is on it once: {list:?}");
    say(&bob, "again", "team").await;
    until("he is a member like any other", async || {
        named(&alice).await.contains(&"again".to_owned()).then_some(())
    })
    .await;
    logic.stop().await;
}

#[tokio::test]
async fn a_damaged_inbox_costs_nobody_else_his_session() {
    let (queue, store) = (Volatile::new(2), Volatile::new(4));
    let logic = over(config(StoreChoice::Memory), queue, store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    damage(&store, Key::new(b'h').text("u0"));
    // Enough that some are opened in one batch with him, whichever lane is his.
    let opens = (0..200).map(|n| {
        Up::Open(wire::OpenSession {
            handle: n,
            user_id: format!("u{n}"),
            device_id: "d".to_owned(),
            platform: "web".to_owned(),
            ..Default::default()
        })
    });
    gateway.say_all(opens.collect());
    for n in 0..200 {
        let opened = |message: &Down| match message {
            Down::Opened(opened) if opened.handle == n => Some(opened.clone()),
            _ => None,
        };
        let opened = gateway.hear("SessionOpened", opened).await;
        assert_eq!(opened.error.is_some(), n == 0, "{opened:?}");
    }
    logic.ready().expect("one damaged row is no trouble of the store");
    let inboxes = (0..200).map(|handle| wire::InboxQuery { handle, user_id: format!("u{handle}") });
    gateway.say(Up::Refresh(wire::RefreshInboxes { inboxes: inboxes.collect() }));
    let handles = |message: &Down| match message {
        Down::Refreshed(batch) => Some(batch.handles.clone()),
        _ => None,
    };
    assert_eq!(gateway.hear("InboxesRefreshed", handles).await, (1..200).collect::<Vec<_>>());
    logic.ready().expect("one damaged row is no trouble of the store");
    logic.stop().await;
}

#[tokio::test]
async fn damaged_inboxes_do_not_keep_those_of_others() {
    const INBOX: Space = Space(1);
    let (queue, store) = (Volatile::new(2), Volatile::new(4));
    let logic = over(config(StoreChoice::Memory), queue, store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let zoe = gateway.open("zoe", "d", 1).await;
    for n in 0..3 {
        for user in ["alice", "bob", "carol"] {
            zoe.sent(&format!("{user}-{n}"), user, "x").await;
        }
    }
    for user in ["alice", "bob", "carol"] {
        let seq = async || logic.context().store.inbox_seqs(&[user.to_owned()]).await.remove(0).ok();
        until("it is spread", async || (seq().await == Some(3)).then_some(())).await;
    }
    damage(&store, Key::new(b'h').text("alice"));
    damage_in(INBOX, &store, Key::new(b'i').text("bob").number(2));
    let swept = logic.context().store.sweep(None, i64::MAX, 200, 2).await.expect("goes on");
    // Three of bob's and of carol's, and what zoe said nine times.
    assert_eq!((swept.rows, swept.next), (15, None));
    assert_eq!(rows_of(&store, b'z'), 1, "bob's is kept for the operator");
    let bob = gateway.open("bob", "d", 2).await;
    assert_eq!(bob.pull(0, 200).await.items.len(), 0);
    zoe.sent("more", "bob", "y").await;
    until("bob goes on", async || {
        bob.pull(0, 200).await.items.first().filter(|item| item.seq == 4).map(drop)
    })
    .await;
    logic.stop().await;
}

#[tokio::test]
async fn a_damaged_revocation_keeps_nobody_elses_from_gateways_and_is_mended_by_the_next() {
    let (queue, store) = (Volatile::new(2), Volatile::new(4));
    let logic = over(config(StoreChoice::Memory), queue, store.clone(), Epoch::Keep).await;
    for (user, device) in [("alice", "phone"), ("alice", "laptop"), ("bob", "")] {
        let revoke = json!({"deviceId": device, "notBeforeMs": 9_000});
        let revoke = if device.is_empty() { json!({"notBeforeMs": 9_000}) } else { revoke };
        assert_eq!(ask(&logic, &format!("/v1/users/{user}:revoke"), revoke).await.0, 200);
    }
    for device in ["phone", "laptop"] {
        damage(&store, Key::new(b'v').text("alice").text(device));
    }
    let gateway = Gateway::attach(&logic, "g1", 1);
    let told = |message: &Down| match message {
        Down::Revoked(carried) => Some(carried.records.iter().map(|record| record.key.clone()).collect()),
        _ => None,
    };
    let told: Vec<String> = gateway.hear("what was revoked", told).await;
    assert_eq!(told, ["bob/"]);
    let opening = |device: &str, handle, auth_issued_at_ms| wire::OpenSession {
        handle,
        user_id: "alice".to_owned(),
        device_id: device.to_owned(),
        auth_issued_at_ms,
        ..Default::default()
    };
    let refused = gateway.ask_to_open(opening("phone", 1, 9_000)).await;
    assert!(refused.error.is_some() && refused.close_code != 4500, "nobody can say: {refused:?}");
    let again = json!({"deviceId": "phone", "notBeforeMs": 9_000});
    assert_eq!(ask(&logic, "/v1/users/alice:revoke", again).await.0, 200);
    assert_eq!(gateway.ask_to_open(opening("phone", 2, 8_999)).await.close_code, 4500);
    assert!(gateway.ask_to_open(opening("phone", 3, 9_000)).await.session_epoch > 0);
    let restore = json!({"deviceId": "laptop"});
    assert_eq!(ask(&logic, "/v1/users/alice:restore", restore).await, (200, json!({"restored": 0})));
    assert!(gateway.ask_to_open(opening("laptop", 4, 0)).await.session_epoch > 0);
    logic.ready().expect("one damaged row is no trouble of the store");
    logic.stop().await;
}

#[tokio::test]
async fn acks_that_wait_are_written_together() {
    let (queue, store) = (Volatile::new(2), Volatile::new(4));
    let logic = over(config(StoreChoice::Memory), queue, store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let mut sessions = Vec::new();
    for n in 0..32 {
        sessions.push(gateway.open(&format!("u{n}"), "d", n).await);
    }
    let acks: Vec<_> = (0..320u64)
        .map(|n| {
            let (session, seq) = (&sessions[n as usize % 32], 1000 - n);
            (session, session.request(Some(Method::Ack(client::AckRequest { seq }))))
        })
        .collect();
    let before = store.writes();
    let (waiting, said): (Vec<_>, Vec<_>) = acks.into_iter().map(|(s, (id, up))| ((s, id), up)).unzip();
    gateway.say_all(said);
    for (session, id) in waiting {
        assert!(matches!(session.answer(id).await, Answer::Ack(_)));
    }
    let writes = store.writes().saturating_sub(before);
    assert!(writes <= 16, "{writes}: one for each lane at most");
    let kept = store.view().get(STATE, Key::new(b'u').text("u7").text("d").bytes()).expect("reads");
    assert_eq!(kept.expect("kept").as_ref(), 993u64.to_be_bytes(), "the highest, whatever came last");
    logic.stop().await;
}
