//! The suite of [`Store`]: the road of messages, counts and repeats.

use std::sync::Arc;

use berth_proto::client::{self, event::Event as EventKind};

use super::{NOW, Place};
use crate::{
    queue::{Poison, Record, Stored},
    store::{Ack, Committed, Page, Store, StoreError, Unspread},
};

/// More than these tests hold.
pub(super) const ALL: Page = Page { rows: 1_000_000, bytes: usize::MAX };

/// A partition of the ingest queue, by hand.
pub(super) struct Ingest {
    pub(super) store: Arc<dyn Store>,
    pub(super) partition: u16,
    pub(super) offset: u64,
}

impl Ingest {
    pub(super) fn new(store: &Arc<dyn Store>, partition: u16) -> Self {
        Self { store: store.clone(), partition, offset: 0 }
    }

    pub(super) async fn record(&mut self, from: &str, to: &str, body: &str) -> Stored {
        let conversation_id = self.store.direct(from, to, NOW).await.expect("a conversation");
        self.offset += 1;
        let record = Record {
            message_id: self.offset * 1000 + u64::from(self.partition),
            conversation_id,
            sender: from.to_owned(),
            peer: to.to_owned(),
            client_msg_id: format!("c{}", self.offset),
            r#type: "text".to_owned(),
            body: body.to_owned().into(),
            at_ms: NOW,
        };
        Stored { offset: self.offset, record: Ok(record) }
    }

    /// A message to a group.
    pub(super) fn group_record(&mut self, from: &str, conversation_id: u64, body: &str) -> Stored {
        self.offset += 1;
        let record = Record {
            message_id: self.offset * 1000 + u64::from(self.partition),
            conversation_id,
            sender: from.to_owned(),
            client_msg_id: format!("c{}", self.offset),
            r#type: "text".to_owned(),
            body: body.to_owned().into(),
            at_ms: NOW,
            ..Record::default()
        };
        Stored { offset: self.offset, record: Ok(record) }
    }

    pub(super) async fn commit(&mut self, from: &str, to: &str, body: &str) -> Committed {
        let record = self.record(from, to, body).await;
        self.store.commit(self.partition, vec![record], NOW).await.expect("commits")
    }

    /// A message, committed and spread.
    pub(super) async fn send(&mut self, from: &str, to: &str, body: &str) {
        let committed = self.commit(from, to, body).await;
        self.store.spread(committed.unspread, NOW).await.expect("spreads");
    }
}

/// A whole inbox, checked to be contiguous from 1.
pub(super) async fn inbox(store: &Arc<dyn Store>, user: &str) -> Vec<EventKind> {
    let pulled = store.pull(user, 0, ALL).await.expect("pulls");
    assert_eq!(pulled.latest_seq, pulled.items.len() as u64);
    let event = |(n, item): (usize, client::InboxItem)| {
        assert_eq!(item.seq, n as u64 + 1, "contiguous");
        item.event.and_then(|event| event.event).expect("an event")
    };
    pulled.items.into_iter().enumerate().map(event).collect()
}

/// The texts of the messages in an inbox.
pub(super) async fn texts(store: &Arc<dyn Store>, user: &str) -> Vec<String> {
    let text = |event| match event {
        EventKind::Message(message) => Some(String::from_utf8_lossy(&message.body).into_owned()),
        _ => None,
    };
    inbox(store, user).await.into_iter().filter_map(text).collect()
}

/// (unread by conversation's peer, total), checked to agree.
pub(super) async fn unread(store: &Arc<dyn Store>, user: &str) -> (Vec<(String, u64)>, u64) {
    let (listed, _) = store.conversations(user, None, ALL).await.expect("lists");
    let by_peer: Vec<_> = listed.conversations.into_iter().map(|c| (c.peer_id, c.unread)).collect();
    assert_eq!(by_peer.iter().map(|(_, unread)| unread).sum::<u64>(), listed.total_unread);
    (by_peer, listed.total_unread)
}

pub(super) async fn check_the_road_of_a_message(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 3);
    let committed = ingest.commit("alice", "bob", "hi").await;
    let id = store.direct("alice", "bob", NOW).await.expect("known");
    assert_eq!(committed.mark, 1);
    assert_eq!(committed.moved.len(), 1, "the sender's own inbox");
    assert_eq!((committed.moved[0].user.as_str(), committed.moved[0].inbox_seq), ("alice", 1));
    assert_eq!(
        committed.unspread,
        [Unspread { conversation_id: id, seq: 1, message_id: 1003, members: None }]
    );
    assert_eq!(store.outbox(None, 10).await.expect("readable"), committed.unspread);
    assert!(texts(&store, "bob").await.is_empty(), "not yet spread");

    let spread = store.spread(committed.unspread, NOW).await.expect("spreads");
    assert_eq!(spread.delivered, 1);
    assert_eq!((spread.moved[0].user.as_str(), spread.moved[0].inbox_seq), ("bob", 1));
    assert!(store.outbox(None, 10).await.expect("readable").is_empty());
    for user in ["alice", "bob"] {
        let events = inbox(&store, user).await;
        let [EventKind::Message(message)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((message.conversation_id, message.conversation_seq, message.message_id), (id, 1, 1003));
        assert_eq!(
            (message.from.as_str(), message.client_msg_id.as_str(), message.r#type.as_str()),
            ("alice", "c1", "text")
        );
        assert_eq!((message.body.as_ref(), message.server_time_ms), (&b"hi"[..], NOW));
    }
    assert_eq!(unread(&store, "alice").await, (vec![("bob".to_owned(), 0)], 0));
    assert_eq!(unread(&store, "bob").await, (vec![("alice".to_owned(), 1)], 1));
    let users = ["bob", "nobody", "alice"].map(str::to_owned);
    let seqs: Result<Vec<u64>, _> = store.inbox_seqs(&users).await.into_iter().collect();
    assert_eq!(seqs.expect("reads"), [1, 0, 1]);
    assert_eq!(store.marks(5).await.expect("reads"), [0, 0, 0, 1, 0]);
}

pub(super) async fn check_commit_twice_changes_nothing(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    let mut records = Vec::new();
    for n in 1..=5 {
        records.push(ingest.record("alice", "bob", &n.to_string()).await);
    }
    let first = store.commit(0, records[..3].to_vec(), NOW).await.expect("commits");
    assert_eq!((first.mark, first.unspread.len()), (3, 3));
    let again = store.commit(0, records[..2].to_vec(), NOW).await.expect("commits");
    assert_eq!(again, Committed { mark: 3, ..Committed::default() });
    let rest = store.commit(0, records.clone(), NOW).await.expect("commits");
    assert_eq!((rest.mark, rest.unspread.len()), (5, 2));
    assert_eq!(texts(&store, "alice").await, ["1", "2", "3", "4", "5"]);
}

pub(super) async fn check_a_gap_is_refused(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    ingest.record("alice", "bob", "lost").await;
    let second = ingest.record("alice", "bob", "x").await;
    let beside = Ingest::new(&store, 1).record("carol", "bob", "beside").await;
    let round = vec![(0, vec![second.clone()]), (1, vec![beside])];
    let answers = store.commit_round(round, NOW).await.expect("commits");
    assert!(matches!(answers[0], Err(StoreError::Gap { partition: 0, .. })), "{answers:?}");
    assert!(answers[1].as_ref().is_ok_and(|done| done.mark == 1), "{answers:?}");
    assert_eq!(texts(&store, "carol").await, ["beside"]);
    let refused = store.commit(0, vec![second], NOW).await.expect_err("the first is missing");
    assert!(matches!(refused, StoreError::Gap { partition: 0, mark: 0, offset: 2 }), "{refused}");
    assert!(texts(&store, "alice").await.is_empty());
    assert_eq!(store.marks(1).await.expect("reads"), [0]);
}

pub(super) async fn check_spread_twice_changes_nothing(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    let mut work = Vec::new();
    for n in 1..=3 {
        work.extend(ingest.commit("alice", "bob", &n.to_string()).await.unspread);
    }
    assert_eq!(store.spread(work[..2].to_vec(), NOW).await.expect("spreads").delivered, 2);
    assert_eq!(store.outbox(None, 10).await.expect("readable"), work[2..]);
    assert_eq!(store.spread(work.clone(), NOW).await.expect("spreads").delivered, 1);
    assert_eq!(store.spread(work, NOW).await.expect("spreads").delivered, 0);
    assert_eq!(texts(&store, "bob").await, ["1", "2", "3"]);
    assert_eq!(unread(&store, "bob").await.1, 3);
}

pub(super) async fn check_a_message_to_oneself(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    let committed = ingest.commit("alice", "alice", "note").await;
    assert!(committed.unspread.is_empty());
    assert_eq!(texts(&store, "alice").await, ["note"], "once");
    assert_eq!(unread(&store, "alice").await, (vec![("alice".to_owned(), 0)], 0));
    let id = store.direct("alice", "alice", NOW).await.expect("known");
    let marked = store.mark_read("alice", id, 1, NOW).await.expect("marks").expect("a member");
    assert_eq!((marked.response.unread, marked.response.total_unread), (0, 0));
}

pub(super) async fn check_direct_conversations(place: &dyn Place) {
    let store = place.store();
    let id = store.direct("alice", "bob", NOW).await.expect("made");
    assert_eq!(store.direct("bob", "alice", NOW).await.expect("known"), id);
    let other = store.direct("alice", "carol", NOW).await.expect("made");
    assert!(other > id && id > 0);
    let known = store.conversation(id).await.expect("reads").expect("there");
    assert_eq!(known.peer_of("alice"), Some("bob"));
    assert_eq!(known.peer_of("bob"), Some("alice"));
    assert_eq!(known.peer_of("carol"), None);
    assert_eq!(store.conversation(id + 1_000_000).await.expect("reads"), None);
    assert!(unread(&store, "alice").await.0.is_empty(), "not listed before its first message");
    drop(store);
    let store = place.store();
    assert_eq!(store.direct("alice", "bob", NOW - 1_000_000).await.expect("known"), id);
    assert!(
        store.direct("alice", "dave", NOW - 1_000_000).await.expect("made") > other,
        "also when the clock stepped back"
    );
}

pub(super) async fn check_a_lost_conversation_comes_back_with_its_record(place: &dyn Place) {
    let store = place.store();
    let record = Record {
        message_id: 1,
        conversation_id: u64::MAX >> 1,
        sender: "bob".to_owned(),
        peer: "alice".to_owned(),
        client_msg_id: "c".to_owned(),
        at_ms: NOW,
        ..Record::default()
    };
    let id = record.conversation_id;
    let committed =
        store.commit(0, vec![Stored { offset: 1, record: Ok(record) }], NOW).await.expect("commits");
    assert_eq!(committed.poisoned, 0);
    assert_eq!(store.direct("alice", "bob", NOW).await.expect("known"), id);
    assert!(store.direct("alice", "carol", NOW).await.expect("made") > id, "its id is never given again");
}

pub(super) async fn check_poison_is_set_aside(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    ingest.send("alice", "bob", "before").await;
    let bytes = prost::bytes::Bytes::from_static(b"\xff\xff");
    let undecodable = Stored { offset: 2, record: Err(Poison { bytes, reason: "torn".to_owned() }) };
    ingest.offset = 2;
    let mut foreign = ingest.record("mallory", "carol", "x").await;
    if let Ok(record) = &mut foreign.record {
        record.conversation_id = store.direct("alice", "bob", NOW).await.expect("known");
    }
    let good = ingest.record("alice", "bob", "after").await;
    let committed = store.commit(0, vec![undecodable, foreign, good], NOW).await.expect("goes on");
    assert_eq!((committed.poisoned, committed.mark), (2, 4));
    assert_eq!(texts(&store, "alice").await, ["before", "after"]);
    let told = inbox(&store, "mallory").await;
    let [EventKind::Failure(failure)] = told.as_slice() else { panic!("the sender is told: {told:?}") };
    assert_eq!((failure.client_msg_id.as_str(), failure.code.as_str()), ("c3", "INTERNAL"));
}

pub(super) async fn check_reopening_keeps_everything(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 1);
    ingest.send("alice", "bob", "1").await;
    let waiting = ingest.commit("alice", "bob", "2").await.unspread;
    store.ack(&[Ack { user: "bob".to_owned(), device: "d".to_owned(), seq: 1 }]).await.expect("acks");
    assert_eq!(store.inbox_epoch(), 1);
    drop((store, ingest.store));
    let store = place.store();
    assert_eq!(store.inbox_epoch(), 1);
    assert_eq!(store.marks(2).await.expect("reads"), [0, 2]);
    let page = store.outbox(None, 1).await.expect("reads");
    assert_eq!(page, waiting);
    assert!(store.outbox(page.last().copied(), 1).await.expect("reads").is_empty());
    store.spread(waiting, NOW).await.expect("spreads");
    store.sync().await.expect("syncs");
    assert_eq!(texts(&store, "bob").await, ["1", "2"]);
    assert_eq!(unread(&store, "bob").await.1, 2);
}

pub(super) async fn check_the_system_has_no_inbox(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    let committed = ingest.commit("system", "alice", "news").await;
    assert!(committed.moved.is_empty());
    store.spread(committed.unspread, NOW).await.expect("spreads");
    assert!(texts(&store, "system").await.is_empty());
    assert_eq!(texts(&store, "alice").await, ["news"]);
    assert_eq!(unread(&store, "alice").await, (vec![("system".to_owned(), 1)], 1));
}

pub(super) async fn check_mark_read(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    for (from, to) in
        [("alice", "bob"), ("bob", "alice"), ("alice", "bob"), ("alice", "bob"), ("carol", "bob")]
    {
        ingest.send(from, to, "x").await;
    }
    let id = store.direct("alice", "bob", NOW).await.expect("known");
    assert_eq!(unread(&store, "bob").await.1, 4);
    let mark = async |seq| {
        let marked = store.mark_read("bob", id, seq, NOW).await.expect("marks").expect("a member");
        let counts = (marked.response.unread, marked.response.total_unread);
        assert_eq!(unread(&store, "bob").await.1, counts.1);
        (counts, marked.moved.map(|moved| moved.inbox_seq))
    };
    assert_eq!(mark(3).await, ((1, 2), Some(6)), "1 and 3 read; 2 was his own");
    assert_eq!(mark(2).await, ((1, 2), None), "never back");
    assert_eq!(mark(3).await, ((1, 2), None));
    assert_eq!(mark(u64::MAX).await, ((0, 1), Some(7)), "bounded by the newest");
    let events = inbox(&store, "bob").await;
    let reads: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            EventKind::Read(read) => Some((read.conversation_id, read.seq)),
            _ => None,
        })
        .collect();
    assert_eq!(reads, [(id, 3), (id, 4)]);
    ingest.send("alice", "bob", "next").await;
    assert_eq!(unread(&store, "bob").await.1, 2);
    assert_eq!(store.mark_read("mallory", id, 1, NOW).await.expect("reads"), None, "no member");
    assert_eq!(store.mark_read("bob", id + 1_000_000, 1, NOW).await.expect("reads"), None, "no conversation");
}

pub(super) async fn check_reading_ahead_of_spread(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    let mut work = Vec::new();
    for n in 1..=4 {
        work.extend(ingest.commit("alice", "bob", &n.to_string()).await.unspread);
    }
    let id = work[0].conversation_id;
    // History shows what spread has not yet brought; reading it must not be counted unread later.
    let marked = store.mark_read("bob", id, 3, NOW).await.expect("marks").expect("a member");
    assert_eq!((marked.response.unread, marked.response.total_unread), (0, 0));
    store.spread(work, NOW).await.expect("spreads");
    assert_eq!(unread(&store, "bob").await.1, 1, "only the fourth");
}
