//! Random appends, trims, folds, faults and ends of any kind, against a model of what was acknowledged.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{append, open, record};
use crate::{
    conformance::NOW,
    kv::Kv,
    queue::{Appended, DEDUP_MS, QueueError, Record, log::Parts},
    tests::engine::Volatile,
};

const SEEDS: u64 = 256;
const STEPS: usize = 120;
const PARTITIONS: u16 = 3;

/// What was said to those who sent.
#[derive(Default)]
struct Model {
    /// By (sender, name): the answer, the body, and the time.
    acked: HashMap<(String, String), (Appended, Record, i64)>,
    /// By place: the record.
    records: BTreeMap<(u16, u64), Record>,
    /// Sent, and never answered.
    unknown: Vec<Record>,
    trimmed: [u64; PARTITIONS as usize],
    highest_id: u64,
    now: i64,
}

struct Run {
    random: SmallRng,
    disk: Arc<Volatile>,
    parts: Parts,
    model: Model,
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_whatever_ends_when() {
    for seed in 0..SEEDS {
        let disk = Volatile::new(1);
        let parts = open(&disk, PARTITIONS).expect("opens");
        let model = Model { now: NOW, ..Model::default() };
        let mut run = Run { random: SmallRng::seed_from_u64(seed), disk, parts, model };
        for _ in 0..STEPS {
            run.step();
        }
        run.end();
        run.check();
    }
}

impl Run {
    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..60 => self.send(),
            60..75 => self.trim(),
            75..85 => self.fold(),
            85..88 => self.model.now += self.random.random_range(0..DEDUP_MS * 2 / 3),
            88..92 => self.disk.fail_after(self.random.random_range(0..8)),
            92..96 => self.end(),
            _ => self.check(),
        }
    }

    fn send(&mut self) {
        let mut records = Vec::new();
        for _ in 0..self.random.random_range(1..7) {
            let sender = format!("s{}", self.random.random_range(0..5));
            let name = format!("c{}", self.random.random_range(0..40));
            let body = if self.random.random_range(0..8) == 0 { "other" } else { "same" };
            records.push(Record { at_ms: self.model.now, ..record(&sender, &name, body) });
        }
        let answers = append(&mut self.parts, &records);
        if self.parts.shared.failed().is_some() {
            assert!(answers.iter().all(Result::is_err), "nothing is acknowledged after a failure");
            self.model.unknown.extend(records);
            return;
        }
        for (record, answer) in records.into_iter().zip(answers) {
            self.model.answered(record, answer);
        }
    }

    fn trim(&mut self) {
        let partition = self.random.random_range(0..PARTITIONS);
        let head = self.parts.shared.heads()[usize::from(partition)];
        let mark = &mut self.model.trimmed[usize::from(partition)];
        *mark = self.random.random_range(*mark..=head.max(*mark));
        drop(self.parts.shared.index().trim(partition, *mark));
    }

    fn fold(&mut self) {
        if let Err(error) = self.parts.folder.step() {
            self.parts.shared.fail(&error);
        }
    }

    /// The process ends, or the machine does, or the queue is closed; then it starts again, perhaps in vain at first.
    fn end(&mut self) {
        let mut unclean = self.parts.shared.failed().is_some();
        loop {
            let end = self.random.random_range(0..4);
            unclean |= end < 3;
            self.disk = match end {
                0 => self.disk.kill(),
                1 => self.disk.crash(),
                2 => self.disk.tear(&mut self.random),
                _ => {
                    self.parts.writer.note_trimmed();
                    self.disk.kill()
                }
            };
            if self.random.random_range(0..3) == 0 {
                self.disk.fail_after(self.random.random_range(0..12));
            }
            // As logic does where it finds the mark of an unclean end.
            let rewritten = if unclean { self.disk.rewrite() } else { Ok(()) };
            match rewritten.map_err(QueueError::from).and_then(|()| open(&self.disk, PARTITIONS)) {
                Ok(parts) => {
                    self.parts = parts;
                    break;
                }
                Err(QueueError::Damaged { file, position, problem }) => {
                    panic!("{file} at {position}: {problem}")
                }
                Err(_) => unclean = true,
            }
        }
        self.disk.fail_after(u64::MAX);
        if self.random.random() {
            self.parts.loader.try_load().expect("loads");
        }
        self.reconcile();
    }

    /// What was never answered may be there: then it is as good as acknowledged from now on.
    fn reconcile(&mut self) {
        let heads = self.parts.shared.heads().clone();
        let mut found = Vec::new();
        for (partition, head) in (0..).zip(heads) {
            let known = self.model.head(partition);
            assert!(head >= known, "partition {partition} has {head} of {known}");
            found.extend((known + 1..=head).map(|offset| (partition, offset, self.read(partition, offset))));
        }
        found.sort_by_key(|(.., record)| record.message_id);
        for (partition, offset, record) in found {
            assert!(self.model.unknown.iter().any(|sent| same(sent, &record)), "nobody sent {record:?}");
            let Record { message_id, conversation_id, at_ms, .. } = record;
            let appended =
                Appended { partition, offset, message_id, conversation_id, at_ms, duplicate: false };
            self.model.new_one(record, appended);
        }
        self.model.unknown.clear();
    }

    fn read(&self, partition: u16, offset: u64) -> Record {
        let found = self.parts.shared.index().after(partition, offset - 1, 1, 1 << 20).remove(0);
        assert_eq!(found.0, offset);
        let stored = self.parts.shared.stored(partition, offset, found.1).expect("reads");
        stored.record.expect("decodes")
    }

    /// Every record that is not trimmed is there, in its place, as it was sent.
    fn check(&self) {
        for ((partition, offset), sent) in &self.model.records {
            if *offset > self.model.trimmed[usize::from(*partition)] {
                let found = self.read(*partition, *offset);
                assert!(same(sent, &found) && sent.message_id == found.message_id, "{sent:?} {found:?}");
            }
        }
    }
}

impl Model {
    fn head(&self, partition: u16) -> u64 {
        self.records.range((partition, 0)..=(partition, u64::MAX)).next_back().map_or(0, |((_, at), _)| *at)
    }

    fn answered(&mut self, record: Record, answer: Result<Appended, QueueError>) {
        let before = self.acked.get(&(record.sender.clone(), record.client_msg_id.clone()));
        match before.filter(|(.., at)| self.now - at < DEDUP_MS) {
            Some((first, sent, _)) if same(sent, &record) => {
                let answer = answer.expect("accepted before");
                assert_eq!(answer, Appended { duplicate: true, ..first.clone() });
            }
            Some(_) => assert!(matches!(answer, Err(QueueError::Conflict)), "{answer:?}"),
            None => {
                let appended = answer.expect("new");
                assert!(!appended.duplicate, "{record:?}");
                self.new_one(Record { message_id: appended.message_id, ..record }, appended);
            }
        }
    }

    fn new_one(&mut self, record: Record, appended: Appended) {
        assert_eq!(appended.offset, self.head(appended.partition) + 1, "contiguous");
        assert!(appended.message_id > self.highest_id, "ids grow");
        self.highest_id = self.highest_id.max(appended.message_id);
        self.records.insert((appended.partition, appended.offset), record.clone());
        let name = (record.sender.clone(), record.client_msg_id.clone());
        let at = record.at_ms;
        self.acked.insert(name, (appended, record, at));
    }
}

fn same(a: &Record, b: &Record) -> bool {
    (&a.sender, &a.client_msg_id, &a.body) == (&b.sender, &b.client_msg_id, &b.body)
}
