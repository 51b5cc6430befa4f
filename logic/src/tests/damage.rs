//! Rows that cannot be read: each costs what it is about, and holds up nothing else.

use std::{ops::ControlFlow, sync::Arc};

use berth_proto::client::{
    event::Event as EventKind, request::Method, response::Result as Answer, target::To,
};

use super::{
    config,
    engine::Volatile,
    gateway::{Gateway, Session, send_to},
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
    let mut batch = Batch::default();
    batch.put(STATE, key, vec![0xff; 5]);
    store.write(batch, Durability::Buffered).expect("writes");
}

fn member(conversation_id: u64, user: &str) -> Key {
    Key::new(b'r').number(conversation_id).text(user)
}

/// Rows that were set aside while spreading or changing members.
fn set_aside(store: &Arc<Volatile>) -> usize {
    let (from, mut found) = (Key::new(b'y'), 0);
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
    say(&bob, "again", "team").await;
    until("he is a member like any other", async || {
        named(&alice).await.contains(&"again".to_owned()).then_some(())
    })
    .await;
    logic.stop().await;
}
