//! Groups through the whole of logic: made by the back-end, spoken to by their members.

use std::collections::BTreeSet;

use berth_proto::client::{
    self, event::Event as EventKind, request::Method, response::Result as Answer, target::To,
};

use super::{
    config,
    engine::Volatile,
    gateway::{Gateway, Session, send_to},
    in_memory, over,
    recorder::Counting,
    until,
};
use crate::{
    Logic, StoreChoice,
    group::{self, Group},
    store::Epoch,
};

fn named(users: &[&str]) -> Vec<String> {
    users.iter().map(|user| (*user).to_owned()).collect()
}

async fn put(logic: &Logic, name: &str, users: &[&str]) -> Group {
    group::put(logic.context(), name, named(users)).await.expect("made")
}

fn to_group(client_msg_id: &str, name: &str, body: &str) -> Method {
    send_to(client_msg_id, To::GroupId(name.to_owned()), body)
}

async fn sent(session: &Session, client_msg_id: &str, name: &str, body: &str) -> client::SendResponse {
    match session.ask(to_group(client_msg_id, name, body)).await {
        Answer::Send(sent) => sent,
        other => panic!("{other:?}"),
    }
}

async fn events(session: &Session) -> Vec<EventKind> {
    let items = session.pull(0, 200).await.items;
    items.into_iter().filter_map(|item| item.event.and_then(|event| event.event)).collect()
}

#[tokio::test]
async fn members_are_told_and_get_what_is_said() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (alice, phone) = (gateway.open("alice", "d", 1).await, gateway.open("bob", "phone", 2).await);
    let (tablet, mallory) = (gateway.open("bob", "tablet", 3).await, gateway.open("mallory", "d", 4).await);
    let made = put(&logic, "team", &["alice", "bob", "bob"]).await;
    assert_eq!((made.member_count, made.group_id.as_str()), (2, "team"));
    for session in [&alice, &phone, &tablet] {
        session.notified(1).await;
        let told = events(session).await;
        let [EventKind::Conversation(event)] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((event.kind.as_str(), event.group_id.as_str()), ("joined", "team"));
        assert_eq!((event.conversation_id, event.large), (made.conversation_id, false));
    }
    let by_name = sent(&alice, "c-1", "team", "hi").await;
    assert_eq!(by_name.conversation_id, made.conversation_id);
    let by_id = send_to("c-2", To::ConversationId(made.conversation_id), "ho");
    assert!(matches!(phone.ask(by_id).await, Answer::Send(_)));
    for session in [&alice, &phone, &tablet] {
        session.notified(3).await;
        let messages = session.messages().await;
        let seqs: BTreeSet<_> = messages.iter().map(|message| message.conversation_seq).collect();
        let bodies: BTreeSet<_> = messages.into_iter().map(|message| message.body).collect();
        assert_eq!((seqs, bodies), (BTreeSet::from([1, 2]), BTreeSet::from(["hi".into(), "ho".into()])));
    }
    for (method, code) in [
        (to_group("c", "team", "x"), "PERMISSION_DENIED"),
        (send_to("c", To::ConversationId(made.conversation_id), "x"), "PERMISSION_DENIED"),
        (to_group("c", "nobody", "x"), "NOT_FOUND"),
    ] {
        assert_eq!(mallory.refused(method).await.0, code);
    }
    logic.stop().await;
}

#[tokio::test]
async fn changes_say_how_it_stands_and_what_cannot_be() {
    let recorder = Counting::default();
    let logic = super::counted(&recorder, Volatile::new(1), Volatile::new(4)).await;
    let context = logic.context();
    put(&logic, "team", &["carol", "alice", "bob"]).await;
    let added = group::add(context, "team", named(&["dave", "alice"])).await.expect("added");
    assert_eq!(added.member_count, 4);
    let removed = group::remove(context, "team", named(&["bob", "nobody"])).await.expect("removed");
    assert_eq!((removed.member_count, removed.conversation_id), (3, added.conversation_id));
    let again = put(&logic, "team", &["erin", "alice"]).await;
    assert_eq!((again.member_count, again.conversation_id), (2, added.conversation_id));
    let page = group::get(context, "team", None, 1).await.expect("there");
    assert_eq!((page.members, page.member_count), (named(&["alice"]), 2));
    let page = group::get(context, "team", Some("alice".to_owned()), 9).await.expect("there");
    assert_eq!(page.members, named(&["erin"]));
    assert_eq!(recorder.counter("berth_logic_memberships_changed_total"), 8, "5 joined, 3 left");
    assert_eq!(recorder.counter("berth_logic_groups_created_total"), 1);
    let code = |refused: Result<Group, client::Error>| refused.expect_err("refused").code;
    assert_eq!(code(group::add(context, "nobody", named(&["alice"])).await), "NOT_FOUND");
    assert_eq!(code(group::get(context, "nobody", None, 9).await), "NOT_FOUND");
    assert_eq!(code(group::put(context, "a b", named(&["alice"])).await), "INVALID_ARGUMENT");
    assert_eq!(code(group::put(context, "team", named(&["a b"])).await), "INVALID_ARGUMENT");
    assert_eq!(code(group::add(context, "team", named(&["system"])).await), "INVALID_ARGUMENT");
    let many = (0..100_001).map(|n| format!("u{n}")).collect();
    assert_eq!(code(group::put(context, "team", many).await), "FAILED_PRECONDITION");
    assert_eq!(group::get(context, "team", None, 9).await.expect("there").member_count, 2);
    logic.stop().await;
}

#[tokio::test]
async fn a_change_of_thousands_is_made_once_however_often_it_is_asked() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let users: Vec<String> = (0..3000).map(|n| format!("u{n:04}")).collect();
    let context = logic.context();
    let half = group::put(context, "crowd", users[..1500].to_vec()).await.expect("as if cut off");
    assert_eq!(half.member_count, 1500);
    for _ in 0..2 {
        assert_eq!(group::put(context, "crowd", users.clone()).await.expect("made").member_count, 3000);
    }
    let first = gateway.open("u0000", "d", 1).await;
    let last = gateway.open("u2999", "d", 2).await;
    assert_eq!((first.opened.inbox_seq, last.opened.inbox_seq), (1, 1), "joined once");
    sent(&first, "c-1", "crowd", "hi").await;
    last.notified(2).await;
    assert_eq!(last.messages().await.len(), 1);
    assert_eq!(group::put(context, "crowd", vec![]).await.expect("emptied").member_count, 0);
    assert_eq!(first.refused(to_group("c-2", "crowd", "x")).await.0, "PERMISSION_DENIED");
    assert_eq!(first.messages().await.len(), 1, "what he had stays");
    logic.stop().await;
}

#[tokio::test]
async fn killed_in_the_middle_of_a_fan_out_everybody_gets_everything_once() {
    const USERS: usize = 600;
    const MESSAGES: usize = 20;
    let (mut queue, mut store) = (Volatile::new(1), Volatile::new(4));
    let users: Vec<String> = (0..USERS).map(|n| format!("u{n:03}")).collect();
    for round in 0..4 {
        let logic = over(config(StoreChoice::Memory), queue.clone(), store.clone(), Epoch::Keep).await;
        let gateway = Gateway::attach(&logic, "g1", round);
        group::put(logic.context(), "crowd", users.clone()).await.expect("made");
        let speaker = gateway.open("u000", "d", 1).await;
        for n in 0..MESSAGES {
            sent(&speaker, &format!("c-{round}-{n}"), "crowd", &n.to_string()).await;
        }
        // Somewhere in the middle: the first user after the speaker has something of this round.
        let second = gateway.open("u001", "d", 2).await;
        let before = 1 + round * MESSAGES as u64;
        until("the fan-out began", async || (second.refresh().await > before).then_some(())).await;
        (queue, store) = (queue.kill(), store.kill());
        logic.stop().await;
    }
    let logic = over(config(StoreChoice::Memory), queue, store, Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 9);
    let all: Vec<u64> = (1..=4 * MESSAGES as u64).collect();
    for (n, user) in users.iter().enumerate() {
        let session = gateway.open(user, "d", n as u64 + 10).await;
        let messages = until("everything arrived", async || {
            let messages = session.messages().await;
            (messages.len() >= all.len()).then_some(messages)
        })
        .await;
        let seqs: Vec<u64> = messages.iter().map(|message| message.conversation_seq).collect();
        assert_eq!(seqs, all, "{user}: once, in order");
    }
    logic.stop().await;
}

#[tokio::test]
async fn after_a_power_cut_answered_changes_and_accepted_messages_are_there() {
    let (queue, store) = (Volatile::new(1), Volatile::new(4));
    let logic = over(config(StoreChoice::Memory), queue.clone(), store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let alice = gateway.open("alice", "d", 1).await;
    put(&logic, "team", &["alice", "bob"]).await;
    let committed = async |count: usize| {
        until("it is committed", async || (alice.messages().await.len() == count).then_some(())).await;
    };
    sent(&alice, "c-1", "team", "1").await;
    committed(1).await;
    group::remove(logic.context(), "team", named(&["bob"])).await.expect("removed");
    group::add(logic.context(), "team", named(&["carol"])).await.expect("added");
    for n in 2..=5 {
        sent(&alice, &format!("c-{n}"), "team", &n.to_string()).await;
    }
    let (queue, store) = (queue.crash(), store.crash());
    logic.stop().await;
    let logic = over(config(StoreChoice::Memory), queue, store, Epoch::Raise).await;
    let gateway = Gateway::attach(&logic, "g1", 2);
    for (user, expected) in [("alice", vec![1, 2, 3, 4, 5]), ("bob", vec![1]), ("carol", vec![2, 3, 4, 5])] {
        let session = gateway.open(user, "d", 1).await;
        let seqs = until("everything is there again", async || {
            let messages = session.messages().await;
            (messages.len() >= expected.len()).then(|| messages.iter().map(|m| m.conversation_seq).collect())
        });
        let seqs: Vec<u64> = seqs.await;
        assert_eq!(seqs, expected, "{user}");
    }
    logic.stop().await;
}

#[tokio::test]
async fn nobody_speaks_in_a_group_before_it_is_synced_that_he_may() {
    let (queue, store) = (Volatile::new(2), Volatile::new(4));
    let logic = over(config(StoreChoice::Memory), queue.clone(), store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (alice, bob) = (gateway.open("alice", "d", 1).await, gateway.open("bob", "d", 2).await);
    let id = put(&logic, "team", &["alice"]).await.conversation_id;
    store.refuse_sync(true);
    let refused =
        group::add(logic.context(), "team", named(&["bob"])).await.expect_err("it cannot be synced");
    assert_eq!(refused.code, "UNAVAILABLE");
    assert!(logic.context().store.joined(id, "bob").await.expect("reads").is_some(), "written all the same");
    for method in [to_group("b-1", "team", "x"), send_to("b-1", To::ConversationId(id), "x")] {
        assert_eq!(bob.refused(method).await.0, "UNAVAILABLE", "it may be taken back");
    }
    sent(&alice, "a-1", "team", "who was in it before is not held up").await;
    let made = group::put(logic.context(), "new", named(&["alice"])).await.expect_err("it cannot be synced");
    assert_eq!(made.code, "UNAVAILABLE");
    let system = crate::ingest::enter(
        logic.context(),
        "system",
        client::SendRequest {
            client_msg_id: "s-1".to_owned(),
            to: Some(client::Target { to: Some(To::GroupId("new".to_owned())) }),
            ..Default::default()
        },
    );
    assert_eq!(system.await.err().expect("there may be no such group").code, "UNAVAILABLE");
    store.refuse_sync(false);
    group::add(logic.context(), "team", named(&["bob"])).await.expect("as it is already, and synced");
    sent(&bob, "b-1", "team", "now he may").await;
    let (queue, store) = (queue.crash(), store.crash());
    logic.stop().await;
    let logic = over(config(StoreChoice::Memory), queue, store, Epoch::Raise).await;
    let gateway = Gateway::attach(&logic, "g1", 2);
    let bob = gateway.open("bob", "d", 1).await;
    until("his message is there", async || {
        let messages = bob.messages().await;
        messages.iter().any(|message| message.client_msg_id == "b-1" && message.from == "bob").then_some(())
    })
    .await;
    logic.stop().await;
}

#[tokio::test]
async fn what_changes_nothing_syncs_nothing() {
    let store = Volatile::new(4);
    let logic = over(config(StoreChoice::Memory), Volatile::new(2), store.clone(), Epoch::Keep).await;
    put(&logic, "team", &["alice", "bob"]).await;
    let (before, begun) = (store.syncs(), std::time::Instant::now());
    for _ in 0..100 {
        put(&logic, "team", &["alice", "bob"]).await;
        group::add(logic.context(), "team", named(&["alice"])).await.expect("as it is");
        group::remove(logic.context(), "team", named(&["carol"])).await.expect("as it is");
    }
    // Beside the one a second that there is anyhow.
    let beside = begun.elapsed().as_secs() as usize + 2;
    assert!(store.syncs() <= before + beside, "{} syncs for nothing", store.syncs() - before);
    logic.stop().await;
}

#[tokio::test]
async fn what_is_not_even_committed_bounds_what_a_group_accepts() {
    let store = Volatile::new(4);
    let logic = over(config(StoreChoice::Memory), Volatile::new(2), store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    group::put(logic.context(), "crowd", (0..3000).map(|n| format!("u{n:04}")).collect())
        .await
        .expect("made");
    let (speaker, other) = (gateway.open("u0000", "d", 1).await, gateway.open("u0001", "d", 2).await);
    put(&logic, "small", &["u0001", "u0002"]).await;
    // A repeat is no message: it does not count.
    for _ in 0..500 {
        sent(&other, "again", "crowd", "x").await;
    }
    store.fail(true);
    let mut accepted = 0;
    let refused = loop {
        match speaker.ask(to_group(&format!("c-{accepted}"), "crowd", "x")).await {
            Answer::Send(_) => accepted += 1,
            Answer::Error(error) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused.code, "RESOURCE_EXHAUSTED");
    // A million rows, of 3000 each.
    assert!((300..=334).contains(&accepted), "{accepted}");
    sent(&other, "c", "small", "who floods one group does not stop another").await;
    store.fail(false);
    let all = accepted + 1;
    until("what was accepted arrives", async || (speaker.refresh().await > all).then_some(())).await;
    until("there is room again", async || {
        let answer = speaker.ask(to_group("again-2", "crowd", "x")).await;
        matches!(answer, Answer::Send(_)).then_some(())
    })
    .await;
    logic.stop().await;
}

#[tokio::test]
async fn a_repeat_of_what_was_accepted_is_answered_after_the_sender_was_removed() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let bob = gateway.open("bob", "d", 1).await;
    let team = put(&logic, "team", &["alice", "bob"]).await;
    let first = sent(&bob, "c-1", "team", "x").await;
    group::remove(logic.context(), "team", named(&["bob"])).await.expect("removed");
    let by_id = send_to("c-1", To::ConversationId(team.conversation_id), "x");
    for again in [to_group("c-1", "team", "x"), by_id] {
        let Answer::Send(repeat) = bob.ask(again).await else { panic!("it was accepted before") };
        assert_eq!(repeat, client::SendResponse { duplicate: true, ..first });
    }
    for other in [to_group("c-1", "team", "another body"), to_group("c-2", "team", "x")] {
        assert_eq!(bob.refused(other).await.0, "PERMISSION_DENIED");
    }
    logic.stop().await;
}

#[tokio::test]
async fn a_sender_who_is_removed_behind_his_ack_is_told() {
    let store = Volatile::new(4);
    let logic = over(config(StoreChoice::Memory), Volatile::new(1), store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (alice, bob) = (gateway.open("alice", "d", 1).await, gateway.open("bob", "d", 2).await);
    put(&logic, "team", &["alice", "bob"]).await;
    // Commit fails for a while, so that the removal overtakes the message.
    store.fail(true);
    sent(&bob, "late", "team", "x").await;
    until("commit noticed", async || logic.ready().err()).await;
    store.fail(false);
    // Commit tries again after a pause; whichever comes first, nothing is lost.
    group::remove(logic.context(), "team", named(&["bob"])).await.expect("removed");
    let told = until("he is told", async || {
        let told = events(&bob).await;
        told.iter()
            .any(|event| match event {
                EventKind::Failure(failure) => failure.client_msg_id == "late",
                EventKind::Message(message) => message.client_msg_id == "late",
                _ => false,
            })
            .then_some(told)
    })
    .await;
    let failed = told.iter().any(|event| matches!(event, EventKind::Failure(_)));
    until("both agree", async || (alice.messages().await.len() == usize::from(!failed)).then_some(())).await;
    logic.stop().await;
}

/// On one thread, where whoever blocks it blocks everybody.
#[tokio::test]
async fn a_change_that_waits_for_the_store_holds_up_no_lane() {
    let (queue, store) = (Volatile::new(2), Volatile::new(4));
    let logic = over(config(StoreChoice::Memory), queue, store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let alice = gateway.open("alice", "d", 1).await;
    group::put(logic.context(), "team", named(&["alice"])).await.expect("made");
    let (done, told) = std::sync::mpsc::sync_channel(1);
    let (holding, held) = tokio::sync::oneshot::channel();
    let holder = std::thread::spawn(move || {
        store.hold(|| holding.send(()).expect("it waits"), &told, super::DEADLINE)
    });
    held.await.expect("it runs");
    let mut change = Box::pin(group::put(logic.context(), "team", named(&["alice", "bob"])));
    assert!(futures_util::poll!(&mut change).is_pending(), "it waits elsewhere");
    alice.pull(0, 10).await;
    done.send(()).expect("it holds");
    assert!(holder.join().expect("it ends"), "the lane went on beside it");
    assert_eq!(change.await.expect("made").member_count, 2);
    logic.stop().await;
}
