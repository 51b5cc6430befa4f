//! The suite of [`Store`]: random histories against a model.

use std::collections::{HashMap, HashSet};

use berth_proto::client::{self, event::Event as EventKind};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::{
    NOW, Place,
    store::{ALL, Ingest, inbox, unread},
};
use crate::store::Unspread;

/// Random histories one backend is put through; each is a few dozen steps on users of its own.
const HISTORIES: u32 = 24;

const USERS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    Send {
        from: usize,
        to: usize,
    },
    /// Applies the last `records` of a partition again.
    Repeat {
        partition: usize,
        records: usize,
    },
    /// Gives some of what waits; again if `twice`.
    Spread {
        most: usize,
        twice: bool,
    },
    Read {
        user: usize,
        peer: usize,
        seq: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..USERS, 0..USERS).prop_map(|(from, to)| Step::Send { from, to }),
        1 => (0..2usize, 0..6usize).prop_map(|(partition, records)| Step::Repeat { partition, records }),
        3 => (0..8usize, any::<bool>()).prop_map(|(most, twice)| Step::Spread { most, twice }),
        2 => (0..USERS, 0..USERS, 0..12u64).prop_map(|(user, peer, seq)| Step::Read { user, peer, seq }),
    ]
}

/// What must be so.
#[derive(Default)]
struct Model {
    /// Senders by conversation, in order.
    timelines: HashMap<u64, Vec<usize>>,
    /// (read, spread up to) by user and conversation.
    members: HashMap<(usize, u64), (u64, u64)>,
}

impl Model {
    fn unread(&self, user: usize, id: u64) -> u64 {
        let (read, spread) = self.members.get(&(user, id)).copied().unwrap_or_default();
        let seqs = (1..).zip(&self.timelines[&id]);
        seqs.filter(|(seq, from)| **from != user && *seq > read && *seq <= spread).count() as u64
    }
}

pub(super) async fn check_against_a_model(place: &dyn Place) {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for history in 0..HISTORIES {
        let steps = prop::collection::vec(step(), 1..80);
        let steps = steps.new_tree(&mut runner).expect("a history").current();
        run(place, history, &steps).await;
    }
}

/// Two partitions; a user's is his number's parity. Each history has users, but not partitions, of its own.
async fn run(place: &dyn Place, history: u32, steps: &[Step]) {
    let store = place.store();
    let name = |user: usize| format!("h{history}-u{user}");
    let marks = store.marks(2).await.expect("reads");
    let mut ingests = [0, 1].map(|partition| Ingest::new(&store, partition));
    for (ingest, mark) in ingests.iter_mut().zip(marks) {
        ingest.offset = mark;
    }
    let mut done: [Vec<_>; 2] = Default::default();
    let mut waiting: Vec<Unspread> = Vec::new();
    let mut model = Model::default();
    for step in steps {
        match *step {
            Step::Send { from, to } => {
                let record = ingests[from % 2].record(&name(from), &name(to), "x").await;
                let id = record.record.as_ref().expect("good").conversation_id;
                done[from % 2].push(record.clone());
                let committed = store.commit((from % 2) as u16, vec![record], NOW).await.expect("commits");
                model.timelines.entry(id).or_default().push(from);
                waiting.extend(committed.unspread);
            }
            Step::Repeat { partition, records } => {
                let from = done[partition].len().saturating_sub(records);
                let again = done[partition][from..].to_vec();
                let committed = store.commit(partition as u16, again, NOW).await.expect("commits");
                assert!(committed.unspread.is_empty() && committed.moved.is_empty());
            }
            Step::Spread { most, twice } => {
                let work: Vec<_> = waiting.drain(..most.min(waiting.len())).collect();
                store.spread(work.clone(), NOW).await.expect("spreads");
                if twice {
                    assert_eq!(store.spread(work.clone(), NOW).await.expect("spreads").delivered, 0);
                }
                for Unspread { conversation_id: id, seq, .. } in work {
                    let from = model.timelines[&id][seq as usize - 1];
                    let to = model_peer(&store, id, &name(from), history).await;
                    model.members.entry((to, id)).or_default().1 = seq;
                }
            }
            Step::Read { user, peer, seq } => {
                let id = store.direct(&name(user), &name(peer), NOW).await.expect("known");
                let last = model.timelines.entry(id).or_default().len() as u64;
                let read = &mut model.members.entry((user, id)).or_default().0;
                *read = seq.min(last).max(*read);
                let marked =
                    store.mark_read(&name(user), id, seq, NOW).await.expect("marks").expect("a member");
                assert_eq!(marked.response.unread, model.unread(user, id));
            }
        }
        for user in 0..USERS {
            check_user(&store, &model, user, &name).await;
        }
    }
}

async fn model_peer(
    store: &std::sync::Arc<dyn crate::store::Store>,
    id: u64,
    from: &str,
    history: u32,
) -> usize {
    let conversation = store.conversation(id).await.expect("reads").expect("there");
    let peer = conversation.peer_of(from).expect("a member");
    peer.strip_prefix(&format!("h{history}-u")).and_then(|n| n.parse().ok()).expect("one of ours")
}

async fn check_user(
    store: &std::sync::Arc<dyn crate::store::Store>,
    model: &Model,
    user: usize,
    name: &impl Fn(usize) -> String,
) {
    let (_, total) = unread(store, &name(user)).await;
    let expected: u64 = model
        .timelines
        .keys()
        .filter(|id| model.members.contains_key(&(user, **id)))
        .map(|id| model.unread(user, *id))
        .sum();
    assert_eq!(total, expected);
    // The inbox is contiguous (checked by `inbox`), shows no message twice, and each conversation's messages in order
    // among those of one sender.
    let mut seen = HashSet::new();
    let mut last: HashMap<(u64, String), u64> = HashMap::new();
    for event in inbox(store, &name(user)).await {
        if let EventKind::Message(message) = event {
            assert!(seen.insert((message.conversation_id, message.conversation_seq)));
            let before = last.insert((message.conversation_id, message.from), message.conversation_seq);
            assert!(before.unwrap_or(0) < message.conversation_seq);
        }
    }
    for (id, senders) in &model.timelines {
        let own = senders.iter().filter(|from| **from == user).count();
        let got = seen.iter().filter(|(conversation, _)| conversation == id).count();
        assert!(got >= own, "a sender's own rows are there at once");
        if own > 0 {
            let request = client::HistoryRequest { conversation_id: *id, ..Default::default() };
            let history = store.history(&name(user), &request, ALL).await.expect("reads").expect("a member");
            let seqs: Vec<u64> = history.messages.iter().map(|m| m.conversation_seq).collect();
            assert_eq!(seqs, (1..=senders.len() as u64).collect::<Vec<_>>(), "timelines are contiguous");
        }
    }
}
