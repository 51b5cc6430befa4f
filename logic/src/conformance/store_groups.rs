//! The suite of [`Store`]: groups, who is in them and what each member gets.

use std::sync::Arc;

use berth_proto::client::{self, event::Event as EventKind};

use super::{
    NOW, Place,
    store::{ALL, Ingest, inbox, texts},
};
use crate::store::{Changed, Conversation, Cut, Due, Limits, Refusal, Sliced, Store};

/// More than most of these tests need.
const LIMITS: Limits = Limits { members: 1000, groups: 1000 };

/// Everything in one slice.
const WHOLE: Cut = Cut { messages: 1000, members: 1000, rows: 1_000_000 };

fn named(users: &[&str]) -> Vec<String> {
    users.iter().map(|user| (*user).to_owned()).collect()
}

/// A group with members.
pub(super) async fn group(store: &Arc<dyn Store>, name: &str, members: &[&str]) -> u64 {
    let id = store.create_group(name, NOW).await.expect("made").conversation_id;
    let joined = change(store, id, members, &[]).await;
    assert_eq!((joined.joined as usize, joined.refused), (members.len(), None));
    id
}

pub(super) async fn change(store: &Arc<dyn Store>, id: u64, joins: &[&str], leaves: &[&str]) -> Changed {
    store.change_members(id, &named(joins), &named(leaves), LIMITS, NOW).await.expect("changes")
}

/// Commits a message to a group; its seq, where others must get it.
async fn say(ingest: &mut Ingest, from: &str, id: u64, body: &str) -> Option<u64> {
    let record = ingest.group_record(from, id, body);
    let committed = ingest.store.commit(ingest.partition, vec![record], NOW).await.expect("commits");
    committed.unspread.first().map(|unspread| {
        assert!(unspread.members.is_some());
        unspread.seq
    })
}

/// A step of one group.
pub(super) async fn slice(
    store: &Arc<dyn Store>,
    (conversation_id, first, last): (u64, u64, u64),
    cut: Cut,
) -> Sliced {
    let due = Due { conversation_id, first, last };
    let sliced = store.spread_groups(&[due], cut, NOW).await.expect("spreads");
    let [sliced] = <[Sliced; 1]>::try_from(sliced).expect("the first always has its turn");
    sliced
}

/// Spreads everything of a group that waits.
pub(super) async fn spread_all(store: &Arc<dyn Store>, id: u64, last: u64) -> Sliced {
    let sliced = slice(store, (id, 1, last), WHOLE).await;
    assert_eq!(sliced.through, Some(last));
    sliced
}

/// Kinds of the `conversation` events in an inbox.
async fn changes(store: &Arc<dyn Store>, user: &str) -> Vec<String> {
    let kind = |event| match event {
        EventKind::Conversation(change) => Some(change.kind),
        _ => None,
    };
    inbox(store, user).await.into_iter().filter_map(kind).collect()
}

async fn listed(store: &Arc<dyn Store>, user: &str) -> (Vec<client::Conversation>, u64) {
    let (listed, _) = store.conversations(user, None, ALL).await.expect("lists");
    (listed.conversations, listed.total_unread)
}

/// Seqs of what a user may read; `None`: nothing is his to read.
pub(super) async fn history(store: &Arc<dyn Store>, user: &str, id: u64) -> Option<Vec<u64>> {
    let request = client::HistoryRequest { conversation_id: id, ..Default::default() };
    let found = store.history(user, &request, ALL).await.expect("reads")?;
    Some(found.messages.iter().map(|message| message.conversation_seq).collect())
}

pub(super) async fn check_create_join_and_leave(place: &dyn Place) {
    let store = place.store();
    assert_eq!(store.group("g").await.expect("reads"), None);
    let id = group(&store, "g", &["carol", "alice", "bob"]).await;
    let known = store.group("g").await.expect("reads").expect("there");
    assert_eq!((known.conversation_id, known.member_count, known.group_id.as_str()), (id, 3, "g"));
    assert_eq!(store.create_group("g", NOW).await.expect("known"), known, "one conversation for ever");
    assert_eq!(store.conversation(id).await.expect("reads"), Some(Conversation::Group(known.clone())));
    assert_eq!(store.members(id, None, 2).await.expect("reads"), named(&["alice", "bob"]));
    assert_eq!(store.members(id, Some("bob"), 2).await.expect("reads"), named(&["carol"]));
    let event = |kind: &str| {
        let (group_id, kind) = ("g".to_owned(), kind.to_owned());
        EventKind::Conversation(client::ConversationEvent {
            conversation_id: id,
            group_id,
            kind,
            large: false,
        })
    };
    assert_eq!(inbox(&store, "bob").await, [event("joined")]);

    let nothing = change(&store, id, &["alice", "bob"], &["mallory"]).await;
    assert_eq!(nothing, Changed { member_count: 3, ..Changed::default() }, "as it was already");
    assert_eq!(store.group("g").await.expect("reads").expect("there").version, known.version);
    let mut ingest = Ingest::new(&store, 0);
    say(&mut ingest, "alice", id, "x").await;
    let left = change(&store, id, &["dave"], &["bob", "bob"]).await;
    assert_eq!((left.joined, left.left, left.member_count), (1, 1, 3));
    let moved: Vec<_> = left.moved.iter().map(|moved| (moved.user.as_str(), moved.inbox_seq)).collect();
    assert_eq!(moved, [("dave", 1), ("bob", 2)]);
    assert_eq!(inbox(&store, "bob").await, [event("joined"), event("left")]);
    assert!(store.group("g").await.expect("reads").expect("there").version > known.version);
    assert_eq!(store.joined(id, "bob").await.expect("reads"), None);
    let version = store.group("g").await.expect("reads").expect("there").version;
    assert_eq!(store.joined(id, "dave").await.expect("reads"), Some(version));
    assert_eq!(store.joined(id, "alice").await.expect("reads"), Some(known.version));
    assert_eq!(store.members(id, None, 9).await.expect("reads"), named(&["alice", "carol", "dave"]));
    let direct = store.direct("alice", "bob", NOW).await.expect("made");
    assert!(store.change_members(direct, &named(&["x"]), &[], LIMITS, NOW).await.is_err(), "no group's");
}

pub(super) async fn check_a_message_to_a_group(place: &dyn Place) {
    let store = place.store();
    let id = group(&store, "g", &["alice", "bob", "carol"]).await;
    let mut ingest = Ingest::new(&store, 3);
    let record = ingest.group_record("alice", id, "hi");
    let committed = store.commit(3, vec![record], NOW).await.expect("commits");
    assert_eq!(
        committed.moved.len(),
        1,
        "the sender's own inbox: commit does the same for a group of any size"
    );
    assert_eq!(store.outbox(None, 10).await.expect("reads"), committed.unspread);
    assert_eq!(texts(&store, "alice").await, ["hi"]);
    assert!(texts(&store, "bob").await.is_empty());
    let sliced = spread_all(&store, id, 1).await;
    assert_eq!((sliced.delivered, sliced.finished, sliced.moved.len()), (2, 1, 2));
    assert!(store.outbox(None, 10).await.expect("reads").is_empty());
    for user in ["alice", "bob", "carol"] {
        let events = inbox(&store, user).await;
        let [EventKind::Conversation(_), EventKind::Message(message)] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!((message.group_id.as_str(), message.from.as_str()), ("g", "alice"));
        assert_eq!((message.conversation_id, message.conversation_seq), (id, 1));
        let (conversations, total) = listed(&store, user).await;
        let [entry] = conversations.as_slice() else { panic!("{conversations:?}") };
        assert_eq!(
            (entry.kind.as_str(), entry.group_id.as_str(), entry.peer_id.as_str()),
            ("group", "g", "")
        );
        assert_eq!((entry.last_seq, entry.unread, total), (1, u64::from(user != "alice"), entry.unread));
        assert_eq!(entry.last_message.as_ref().map(|message| message.body.as_ref()), Some(&b"hi"[..]));
    }
    assert_eq!(spread_all(&store, id, 1).await, Sliced { through: Some(1), ..Sliced::default() }, "once");
    // Whoever is alone in a group leaves no work behind.
    let alone = group(&store, "alone", &["alice"]).await;
    assert_eq!(say(&mut ingest, "alice", alone, "note").await, None);
    assert_eq!(history(&store, "alice", alone).await, Some(vec![1]));
}

pub(super) async fn check_slices_and_a_crash_between(place: &dyn Place) {
    let mut store = place.store();
    let users: Vec<String> = (0..10).map(|n| format!("u{n}")).collect();
    let id = group(&store, "g", &users.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut ingest = Ingest::new(&store, 0);
    for n in 1..=5 {
        say(&mut ingest, &format!("u{n}"), id, &n.to_string()).await;
    }
    drop(ingest);
    let cut = Cut { messages: 3, members: 4, rows: 1000 };
    let mut steps = Vec::new();
    let mut first = 1;
    while first <= 5 {
        // Another cut in the middle of a batch changes nothing about the batch.
        let sliced = slice(&store, (id, first, 5), cut).await;
        steps.push((sliced.moved.len(), sliced.through, sliced.finished));
        if let Some(through) = sliced.through {
            first = through + 1;
        }
        drop(store);
        store = place.store();
        let waiting = store.outbox(None, 10).await.expect("reads");
        assert_eq!(waiting.first().map(|unspread| unspread.seq), (first <= 5).then_some(first));
    }
    assert_eq!(
        steps,
        [(4, None, 0), (4, None, 0), (2, Some(3), 3), (4, None, 0), (4, None, 0), (2, Some(5), 2)]
    );
    for user in &users {
        let mut got = texts(&store, user).await;
        got.sort();
        assert_eq!(got, ["1", "2", "3", "4", "5"], "{user}");
    }
}

pub(super) async fn check_a_step_of_several_groups(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    let mut due = Vec::new();
    for name in ["a", "b", "c"] {
        let conversation_id = group(&store, name, &["alice", "bob", "carol"]).await;
        for _ in 0..2 {
            say(&mut ingest, "alice", conversation_id, name).await;
        }
        due.push(Due { conversation_id, first: 1, last: 2 });
    }
    // Two messages to three members each: the second group uses the rest up, the third has to wait.
    let cut = Cut { messages: 2, members: 9, rows: 8 };
    let sliced = store.spread_groups(&due, cut, NOW).await.expect("spreads");
    let did: Vec<_> = sliced.iter().map(|sliced| (sliced.through, sliced.moved.len())).collect();
    assert_eq!(did, [(Some(2), 2), (None, 0)], "alice comes first and has her own already");
    let rest = store.spread_groups(&due[1..], WHOLE, NOW).await.expect("spreads");
    assert_eq!(rest.iter().map(|sliced| sliced.through).collect::<Vec<_>>(), [Some(2), Some(2)]);
    for user in ["bob", "carol"] {
        assert_eq!(texts(&store, user).await, ["a", "a", "b", "b", "c", "c"], "{user}");
        assert_eq!(listed(&store, user).await.1, 6, "one inbox, three groups of one step");
    }
    // A batch that was begun stays as it was, and is given to as many as a batch of its size is.
    let users: Vec<String> = (0..20).map(|n| format!("u{n:02}")).collect();
    let id = group(&store, "wide", &users.iter().map(String::as_str).collect::<Vec<_>>()).await;
    say(&mut ingest, "u00", id, "1").await;
    let cut = Cut { messages: 4, members: 8, rows: 8 };
    assert_eq!(slice(&store, (id, 1, 1), cut).await.moved.len(), 7);
    for _ in 0..3 {
        say(&mut ingest, "u00", id, "more").await;
    }
    assert_eq!(slice(&store, (id, 1, 4), cut).await.moved.len(), 8, "one message, eight members");
    assert_eq!(slice(&store, (id, 1, 4), cut).await.through, Some(1));
    assert_eq!(
        slice(&store, (id, 2, 4), cut).await.delivered,
        3,
        "three messages to two members, of whom one said them"
    );
}

pub(super) async fn check_a_group_is_never_given_as_one_of_two(place: &dyn Place) {
    let store = place.store();
    let id = group(&store, "g", &["alice", "bob"]).await;
    let mut ingest = Ingest::new(&store, 0);
    say(&mut ingest, "alice", id, "1").await;
    let waiting = store.outbox(None, 10).await.expect("reads");
    let refused = store.spread(waiting.clone(), NOW).await.expect_err("not of two");
    assert!(!refused.is_damage(), "{refused}");
    assert_eq!(store.outbox(None, 10).await.expect("reads"), waiting, "nothing is lost by it");
    spread_all(&store, id, 1).await;
    assert_eq!(texts(&store, "bob").await, ["1"]);
}

pub(super) async fn check_joining_and_leaving_while_spread_lags(place: &dyn Place) {
    let store = place.store();
    let id = group(&store, "g", &["alice", "bob", "carol"]).await;
    let mut ingest = Ingest::new(&store, 0);
    say(&mut ingest, "alice", id, "1").await;
    change(&store, id, &["dave"], &["bob"]).await;
    say(&mut ingest, "alice", id, "2").await;
    change(&store, id, &["bob"], &["dave"]).await;
    say(&mut ingest, "alice", id, "3").await;
    change(&store, id, &["dave"], &["carol"]).await;
    say(&mut ingest, "alice", id, "4").await;
    change(&store, id, &[], &["dave"]).await;
    // Only now does spread come.
    let cut = Cut { messages: 2, members: 2, rows: 1000 };
    let mut first = 1;
    while first <= 4 {
        if let Some(through) = slice(&store, (id, first, 4), cut).await.through {
            first = through + 1;
        }
    }
    let seen: [(&str, &[&str], &[u64]); 4] = [
        ("alice", &["1", "2", "3", "4"], &[1, 2, 3, 4]),
        ("bob", &["1", "3", "4"], &[1, 3, 4]),
        ("carol", &["1", "2", "3"], &[1, 2, 3]),
        ("dave", &["2", "4"], &[2, 4]),
    ];
    for (user, got, seqs) in seen {
        assert_eq!(texts(&store, user).await, got, "{user}");
        assert_eq!(history(&store, user, id).await, Some(seqs.to_vec()), "{user}");
    }
    assert_eq!(changes(&store, "bob").await, ["joined", "left", "joined"]);
    assert_eq!(changes(&store, "dave").await, ["joined", "left", "joined", "left"]);
    // Who left is set apart once everything is his, and comes back as he was.
    say(&mut ingest, "alice", id, "5").await;
    spread_all(&store, id, 5).await;
    assert_eq!(history(&store, "dave", id).await, Some(vec![2, 4]));
    let marked = store.mark_read("dave", id, 2, NOW).await.expect("marks").expect("he was a member");
    assert_eq!((marked.response.unread, marked.response.total_unread), (1, 1));
    change(&store, id, &["dave"], &[]).await;
    say(&mut ingest, "alice", id, "6").await;
    spread_all(&store, id, 6).await;
    assert_eq!(history(&store, "dave", id).await, Some(vec![2, 4, 6]));
    let (conversations, total) = listed(&store, "dave").await;
    assert_eq!((conversations[0].unread, conversations[0].read_seq, total), (2, 2, 2));
}

pub(super) async fn check_history_of_stays(place: &dyn Place) {
    let store = place.store();
    let id = group(&store, "g", &["alice", "bob"]).await;
    let mut ingest = Ingest::new(&store, 0);
    for n in 1..=12 {
        match n {
            4 | 10 => drop(change(&store, id, &[], &["bob"]).await),
            7 | 12 => drop(change(&store, id, &["bob"], &[]).await),
            _ => {}
        }
        say(&mut ingest, "alice", id, &n.to_string()).await;
    }
    let page = async |after_seq, before_seq, rows| {
        let request = client::HistoryRequest { conversation_id: id, after_seq, before_seq, limit: 0 };
        let page = crate::store::Page { rows, bytes: usize::MAX };
        let found = store.history("bob", &request, page).await.expect("reads").expect("a member");
        let seqs: Vec<u64> = found.messages.iter().map(|message| message.conversation_seq).collect();
        (seqs, found.has_more)
    };
    assert_eq!(page(0, 0, 100).await, (vec![1, 2, 3, 7, 8, 9, 12], false));
    assert_eq!(page(0, 0, 2).await, (vec![9, 12], true), "over a gap");
    assert_eq!(page(0, 9, 3).await, (vec![3, 7, 8], true));
    assert_eq!(page(0, 3, 3).await, (vec![1, 2], false));
    assert_eq!(page(2, 0, 3).await, (vec![3, 7, 8], true));
    assert_eq!(page(4, 0, 4).await, (vec![7, 8, 9, 12], false));
    assert_eq!(page(12, 0, 4).await, (vec![], false));
    assert_eq!(history(&store, "mallory", id).await, None, "never a member");
    change(&store, id, &[], &["bob"]).await;
    say(&mut ingest, "alice", id, "13").await;
    let (conversations, _) = listed(&store, "bob").await;
    assert_eq!(conversations[0].last_seq, 12, "it ends for him where he left");
    assert_eq!(conversations[0].last_message.as_ref().map(|m| m.conversation_seq), Some(12));
}

pub(super) async fn check_a_sender_who_left_is_told(place: &dyn Place) {
    let store = place.store();
    let id = group(&store, "g", &["alice", "bob"]).await;
    let mut ingest = Ingest::new(&store, 0);
    say(&mut ingest, "bob", id, "before").await;
    // Accepted while he was a member, committed after he was removed.
    let (late, other) = (ingest.group_record("bob", id, "late"), ingest.group_record("alice", id, "other"));
    change(&store, id, &[], &["bob"]).await;
    let committed = store.commit(0, vec![late.clone(), other], NOW).await.expect("commits");
    assert_eq!((committed.failed, committed.poisoned, committed.mark), (1, 0, 3));
    let again = store.commit(0, vec![late], NOW).await.expect("commits");
    assert_eq!((again.failed, again.moved.len()), (0, 0), "told once");
    let events = inbox(&store, "bob").await;
    let Some(EventKind::Failure(failure)) = events.last() else { panic!("{events:?}") };
    assert_eq!((failure.client_msg_id.as_str(), failure.code.as_str()), ("c2", "PERMISSION_DENIED"));
    assert!(failure.message.contains("group g"), "{}", failure.message);
    assert_eq!(history(&store, "alice", id).await, Some(vec![1, 2]), "no seq is left out");
    assert_eq!(texts(&store, "alice").await, ["other"]);
}

pub(super) async fn check_limits(place: &dyn Place) {
    let store = place.store();
    let id = group(&store, "g", &["alice"]).await;
    let limits = Limits { members: 3, groups: 2 };
    let join = async |id, users: &[&str]| {
        let changed = store.change_members(id, &named(users), &[], limits, NOW).await.expect("answers");
        (changed.joined, changed.refused)
    };
    assert_eq!(join(id, &["bob", "carol", "dave"]).await, (0, Some(Refusal::GroupFull)), "all or nothing");
    assert_eq!(store.members(id, None, 9).await.expect("reads"), named(&["alice"]));
    assert!(inbox(&store, "bob").await.is_empty(), "a refused step writes nothing");
    assert_eq!(join(id, &["bob", "carol"]).await, (2, None));
    assert_eq!(join(id, &["alice", "bob"]).await, (0, None), "who is in it anyhow does not count");
    let other = group(&store, "h", &[]).await;
    assert_eq!(join(other, &["alice"]).await, (1, None));
    let third = group(&store, "i", &[]).await;
    assert_eq!(join(third, &["alice"]).await, (0, Some(Refusal::TooManyGroups("alice".to_owned()))));
    change(&store, other, &[], &["alice"]).await;
    assert_eq!(join(third, &["alice"]).await, (1, None), "those he left do not count");
}

pub(super) async fn check_coming_and_going_too_often(place: &dyn Place) {
    let store = place.store();
    let id = group(&store, "g", &["alice", "carol"]).await;
    let mut ingest = Ingest::new(&store, 0);
    let mut last = 0;
    let mut round = async || {
        let joined = change(&store, id, &["bob"], &[]).await;
        if joined.refused.is_none() {
            say(&mut ingest, "alice", id, "x").await;
            change(&store, id, &[], &["bob"]).await;
            say(&mut ingest, "alice", id, "y").await;
            last += 2;
        }
        (joined.refused, last)
    };
    let mut refused = None;
    for _ in 0..40 {
        (refused, _) = round().await;
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused, Some(Refusal::TooOften("bob".to_owned())), "nothing that is his may be forgotten");
    let (_, last) = round().await;
    spread_all(&store, id, last).await;
    let kept = history(&store, "bob", id).await.expect("a member");
    assert_eq!(texts(&store, "bob").await.len(), kept.len());
    let (_, total) = listed(&store, "bob").await;
    assert_eq!(total, kept.len() as u64);
    let (refused, last) = round().await;
    assert_eq!(refused, None, "spread came along");
    spread_all(&store, id, last).await;
    let now = history(&store, "bob", id).await.expect("a member");
    assert_eq!(now[..now.len() - 1], kept[1..], "the oldest stay is forgotten");
    let (conversations, total) = listed(&store, "bob").await;
    assert_eq!((total, conversations[0].unread), (now.len() as u64, total), "with what was unread of it");
}

pub(super) async fn check_a_stay_that_saw_nothing_leaves_nothing(place: &dyn Place) {
    let store = place.store();
    let id = group(&store, "g", &["alice", "bob"]).await;
    assert_eq!(listed(&store, "bob").await.0.len(), 1, "listed before its first message");
    assert!(listed(&store, "bob").await.0[0].last_message.is_none());
    change(&store, id, &[], &["bob"]).await;
    assert!(listed(&store, "bob").await.0.is_empty());
    assert_eq!(history(&store, "bob", id).await, None);
    assert_eq!(store.mark_read("bob", id, 1, NOW).await.expect("reads"), None);
    assert_eq!(changes(&store, "bob").await, ["joined", "left"]);
    let mut ingest = Ingest::new(&store, 0);
    say(&mut ingest, "alice", id, "1").await;
    change(&store, id, &["bob"], &[]).await;
    assert_eq!(history(&store, "bob", id).await, Some(vec![]));
}

pub(super) async fn check_group_unread(place: &dyn Place) {
    let store = place.store();
    let id = group(&store, "g", &["alice", "bob", "carol"]).await;
    let mut ingest = Ingest::new(&store, 0);
    for from in ["alice", "bob", "bob", "carol", "alice", "bob", "carol"] {
        say(&mut ingest, from, id, "x").await;
    }
    spread_all(&store, id, 7).await;
    let total = async || listed(&store, "bob").await.1;
    assert_eq!(total().await, 4);
    let mark = async |seq| {
        let marked = store.mark_read("bob", id, seq, NOW).await.expect("marks").expect("a member");
        (marked.response.unread, marked.response.total_unread, marked.moved.is_some())
    };
    assert_eq!(mark(1).await, (3, 3, true));
    assert_eq!(mark(3).await, (3, 3, true), "his own do not count");
    assert_eq!(mark(2).await, (3, 3, false), "never back");
    assert_eq!(mark(5).await, (1, 1, true));
    say(&mut ingest, "bob", id, "x").await;
    say(&mut ingest, "alice", id, "x").await;
    assert_eq!(mark(8).await, (0, 0, true), "8 is his own, 9 is not yet spread");
    spread_all(&store, id, 9).await;
    assert_eq!(total().await, 1);
    change(&store, id, &[], &["bob"]).await;
    say(&mut ingest, "alice", id, "x").await;
    spread_all(&store, id, 10).await;
    assert_eq!(total().await, 1, "it does not grow any more");
    assert_eq!(mark(u64::MAX).await, (0, 0, true));
    assert_eq!(listed(&store, "bob").await.0[0].read_seq, 9);
}

pub(super) async fn check_the_system_may_speak_to_groups(place: &dyn Place) {
    let store = place.store();
    let id = group(&store, "g", &["alice"]).await;
    let mut ingest = Ingest::new(&store, 0);
    assert_eq!(say(&mut ingest, "system", id, "news").await, Some(1), "also to one member");
    spread_all(&store, id, 1).await;
    assert_eq!(texts(&store, "alice").await, ["news"]);
    assert!(texts(&store, "system").await.is_empty());
    assert_eq!(listed(&store, "alice").await.1, 1);
    let mut record = ingest.group_record("alice", id + 1_000_000, "x");
    let committed = store.commit(0, vec![record.clone()], NOW).await.expect("goes on");
    assert_eq!(committed.poisoned, 1, "a group that does not exist");
    ingest.offset += 1;
    record.offset = ingest.offset;
    if let Ok(record) = &mut record.record {
        (record.conversation_id, record.peer) = (id, "bob".to_owned());
    }
    assert_eq!(store.commit(0, vec![record], NOW).await.expect("goes on").poisoned, 1, "not of two");
}

pub(super) async fn check_reopening_keeps_groups(place: &dyn Place) {
    let store = place.store();
    let id = group(&store, "g", &["alice", "bob"]).await;
    let mut ingest = Ingest::new(&store, 0);
    say(&mut ingest, "alice", id, "1").await;
    change(&store, id, &[], &["bob"]).await;
    drop((store, ingest.store));
    let store = place.store();
    assert_eq!(store.group("g").await.expect("reads").expect("there").member_count, 1);
    let waiting = store.outbox(None, 10).await.expect("reads");
    assert!(waiting.len() == 1 && waiting[0].members == Some(1) && waiting[0].conversation_id == id);
    spread_all(&store, id, 1).await;
    assert_eq!(texts(&store, "bob").await, ["1"], "he was there when it was said");
    assert!(store.create_group("h", NOW - 1_000_000).await.expect("made").conversation_id > id);
}
