//! The suite of [`Store`]: random histories of groups against a model.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use berth_proto::client::event::Event as EventKind;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::{
    NOW, Place,
    store::{Ingest, inbox, unread},
    store_groups::{change, history, slice},
};
use crate::store::{Cut, Refusal, Store};

/// Random histories one backend is put through; each is some dozens of steps on users and groups of its own.
const HISTORIES: u32 = 24;

const USERS: usize = 4;
const GROUPS: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    Send { from: usize, group: usize },
    Change { group: usize, joins: Vec<usize>, leaves: Vec<usize> },
    Slice { group: usize, messages: usize, members: usize },
    Read { user: usize, group: usize, seq: u64 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let users = || prop::collection::vec(0..USERS, 0..3);
    prop_oneof![
        8 => (0..USERS, 0..GROUPS).prop_map(|(from, group)| Step::Send { from, group }),
        4 => (0..GROUPS, users(), users()).prop_map(|(group, joins, leaves)| Step::Change { group, joins, leaves }),
        8 => (0..GROUPS, 1..5usize, 1..4usize).prop_map(|(group, messages, members)| Step::Slice { group, messages, members }),
        3 => (0..USERS, 0..GROUPS, 0..20u64).prop_map(|(user, group, seq)| Step::Read { user, group, seq }),
        1 => Just(Step::Reopen),
    ]
}

/// What must be so of one group.
#[derive(Default)]
struct Model {
    id: u64,
    members: BTreeSet<usize>,
    /// Who said it, and whose it is.
    said: Vec<(usize, BTreeSet<usize>)>,
    /// Everybody has what comes before.
    spread: u64,
    read: HashMap<usize, u64>,
    /// Kinds of events that each user must have been given.
    told: HashMap<usize, Vec<&'static str>>,
    /// Sends that were too late.
    failed: HashMap<usize, usize>,
}

impl Model {
    fn his(&self, user: usize) -> Vec<u64> {
        (1..).zip(&self.said).filter(|(_, (_, whose))| whose.contains(&user)).map(|(seq, _)| seq).collect()
    }

    /// Whether something is his to read.
    fn listed(&self, user: usize) -> bool {
        self.members.contains(&user) || !self.his(user).is_empty()
    }

    fn others(&self, user: usize) -> Vec<u64> {
        let mut seqs = self.his(user);
        seqs.retain(|seq| self.said[*seq as usize - 1].0 != user);
        seqs
    }

    /// Applies a change as [`Store::change_members`] promises it.
    fn change(&mut self, joins: &[usize], leaves: &[usize]) {
        for user in joins {
            if self.members.insert(*user) {
                self.told.entry(*user).or_default().push("joined");
            }
        }
        for user in leaves {
            if self.members.remove(user) {
                self.told.entry(*user).or_default().push("left");
                if self.his(*user).is_empty() {
                    self.read.remove(user);
                }
            }
        }
    }

    fn read(&mut self, user: usize, seq: u64) {
        let end = match self.members.contains(&user) {
            true => self.said.len() as u64,
            // Where he left: the newest that was his, or one that nobody said since.
            false => self.his(user).last().copied().unwrap_or(0),
        };
        let read = self.read.entry(user).or_default();
        *read = seq.min(end).max(*read);
    }
}

pub(super) async fn check_against_a_model(place: &dyn Place) {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for number in 0..HISTORIES {
        let steps = prop::collection::vec(step(), 1..90);
        let steps = steps.new_tree(&mut runner).expect("a history").current();
        run(place, number, &steps).await;
    }
}

async fn run(place: &dyn Place, number: u32, steps: &[Step]) {
    let mut world = World::new(place, number).await;
    for step in steps {
        match step {
            Step::Send { from, group } => world.send(*from, *group).await,
            Step::Change { group, joins, leaves } => world.change(*group, joins, leaves).await,
            Step::Slice { group, messages, members } => world.slice(*group, *messages, *members).await,
            Step::Read { user, group, seq } => world.read(*user, *group, *seq).await,
            Step::Reopen => {
                world.store = None;
                world.store = Some(place.store());
            }
        }
        world.check(false).await;
    }
    for group in 0..GROUPS {
        while world.models[group].spread < world.models[group].said.len() as u64 {
            world.slice(group, 2, 3).await;
        }
    }
    world.check(true).await;
}

/// A store and what must be so of it; each history has users and groups of its own.
struct World {
    /// `None` only while it is opened again.
    store: Option<Arc<dyn Store>>,
    number: u32,
    offset: u64,
    models: [Model; GROUPS],
}

impl World {
    async fn new(place: &dyn Place, number: u32) -> Self {
        let store = place.store();
        let offset = store.marks(1).await.expect("reads")[0];
        let mut models: [Model; GROUPS] = Default::default();
        for (group, model) in models.iter_mut().enumerate() {
            let created = store.create_group(&format!("h{number}-g{group}"), NOW).await.expect("made");
            model.id = created.conversation_id;
        }
        Self { store: Some(store), number, offset, models }
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone().expect("open")
    }

    fn name(&self, user: usize) -> String {
        format!("h{}-u{user}", self.number)
    }

    async fn send(&mut self, from: usize, group: usize) {
        let (store, name) = (self.store(), self.name(from));
        let model = &mut self.models[group];
        let mut ingest = Ingest { store: store.clone(), partition: 0, offset: self.offset };
        let record = ingest.group_record(&name, model.id, "x");
        self.offset = ingest.offset;
        let committed = store.commit(0, vec![record], NOW).await.expect("commits");
        let member = model.members.contains(&from);
        assert_eq!(committed.failed, u64::from(!member));
        if member {
            model.said.push((from, model.members.clone()));
        } else {
            *model.failed.entry(from).or_default() += 1;
        }
    }

    async fn change(&mut self, group: usize, joins: &[usize], leaves: &[usize]) {
        let of = |users: &[usize]| users.iter().map(|user| self.name(*user)).collect::<Vec<_>>();
        let (join, leave) = (of(joins), of(leaves));
        let join: Vec<&str> = join.iter().map(String::as_str).collect();
        let leave: Vec<&str> = leave.iter().map(String::as_str).collect();
        let store = self.store();
        let model = &mut self.models[group];
        let changed = change(&store, model.id, &join, &leave).await;
        assert!(matches!(changed.refused, None | Some(Refusal::TooOften(_))));
        if changed.refused.is_none() {
            model.change(joins, leaves);
            assert_eq!(changed.member_count, model.members.len() as u64);
        }
    }

    async fn slice(&mut self, group: usize, messages: usize, members: usize) {
        let store = self.store();
        let model = &mut self.models[group];
        let (first, last) = (model.spread + 1, model.said.len() as u64);
        if first <= last {
            let cut = Cut { messages, members, rows: messages * members };
            let sliced = slice(&store, (model.id, first, last), cut).await;
            model.spread = sliced.through.unwrap_or(model.spread);
        }
    }

    async fn read(&mut self, user: usize, group: usize, seq: u64) {
        let (store, name) = (self.store(), self.name(user));
        let model = &mut self.models[group];
        let marked = store.mark_read(&name, model.id, seq, NOW).await.expect("answers");
        assert_eq!(marked.is_some(), model.listed(user));
        if marked.is_some() {
            model.read(user, seq);
        }
    }

    async fn check(&self, all: bool) {
        for user in 0..USERS {
            check_user(&self.store(), &self.models, user, &self.name(user), all).await;
        }
    }
}

/// `all`: spread is done. Before that: what was given is what must be, and counts agree with each other.
async fn check_user(store: &Arc<dyn Store>, models: &[Model; GROUPS], user: usize, name: &str, all: bool) {
    // Contiguous, and the sum of the counts is the total: both checked by these.
    let (events, (_, total)) = (inbox(store, name).await, unread(store, name).await);
    let mut expected_total = 0;
    for model in models {
        let of_group = |event: &EventKind| match event {
            EventKind::Message(message) if message.conversation_id == model.id => {
                Some(message.conversation_seq)
            }
            _ => None,
        };
        let got: Vec<u64> = events.iter().filter_map(of_group).collect();
        let others: Vec<u64> =
            got.iter().copied().filter(|seq| model.said[*seq as usize - 1].0 != user).collect();
        let due = model.others(user);
        assert!(others.len() <= due.len() && others == due[..others.len()], "{others:?} of {due:?}");
        let at_least = due.iter().filter(|seq| **seq <= model.spread).count();
        assert!(others.len() >= at_least && (!all || others == due), "{others:?} of {due:?}");
        let own: Vec<u64> = got.iter().copied().filter(|seq| !others.contains(seq)).collect();
        let said: Vec<u64> =
            (1..).zip(&model.said).filter(|(_, (from, _))| *from == user).map(|(seq, _)| seq).collect();
        assert_eq!(own, said, "his own rows are there at once");
        let read = model.read.get(&user).copied().unwrap_or(0);
        expected_total += others.iter().filter(|seq| **seq > read).count() as u64;
        let told: Vec<&str> = events
            .iter()
            .filter_map(|event| match event {
                EventKind::Conversation(change) if change.conversation_id == model.id => {
                    Some(change.kind.as_str())
                }
                _ => None,
            })
            .collect();
        assert_eq!(told, model.told.get(&user).cloned().unwrap_or_default());
        let readable = history(store, name, model.id).await;
        assert_eq!(readable, model.listed(user).then(|| model.his(user)));
    }
    assert_eq!(total, expected_total, "unread");
    let failures = events.iter().filter(|event| matches!(event, EventKind::Failure(_))).count();
    assert_eq!(failures, models.iter().filter_map(|model| model.failed.get(&user)).sum::<usize>());
}
