//! The one thread that appends: it takes what waits, writes it as one synced batch, then answers all of it.
//!
//! Group commit by nature: while a batch syncs the next one gathers. A failed write ends accepting for good: the
//! records may or may not be on the disk, and a later success would prove nothing about them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    Appended, Fingerprint, QueueError, Record,
    dedup::{self, DEDUP, Name, Seen},
    kv::{self, LOG},
};
use crate::{
    kv::{Batch, Durability, Kv, KvError, View},
    metrics::QueueMetrics,
    snowflake::Snowflake,
};

/// Appends one sync may carry: enough that the sync is amortised (80,000/s at 64, measured), small enough that the
/// first of them does not wait for long.
const BATCH: usize = 512;

/// An append that waits, and who waits for it.
pub(super) struct Ask {
    pub(super) record: Record,
    /// Computed by the caller, like the next two: hashing is not the writer's time.
    pub(super) fingerprint: Fingerprint,
    pub(super) name: Name,
    pub(super) partition: u16,
    pub(super) answer: oneshot::Sender<Result<Appended, QueueError>>,
    pub(super) asked: Instant,
}

/// What the writer shows to everybody else.
pub(super) struct Shown {
    pub(super) heads: Mutex<Vec<u64>>,
    pub(super) moved: Notify,
    pub(super) failed: Mutex<Option<String>>,
}

impl Shown {
    pub(super) fn heads(&self) -> Vec<u64> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn failed(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The writer's own state.
pub(super) struct Writer {
    pub(super) kv: Arc<dyn Kv>,
    pub(super) shown: Arc<Shown>,
    pub(super) metrics: QueueMetrics,
    pub(super) snowflake: Snowflake,
    pub(super) heads: Vec<u64>,
    /// The latest time seen: dedup windows never go back with the clock.
    pub(super) latest_ms: i64,
}

type Answer = (oneshot::Sender<Result<Appended, QueueError>>, Instant, Result<Appended, QueueError>);

impl Writer {
    /// Until every sender is gone.
    pub(super) fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        let mut batch = Vec::with_capacity(BATCH);
        while asks.blocking_recv_many(&mut batch, BATCH) > 0 {
            let failed = self.shown.failed();
            let answers = match failed {
                Some(reason) => fail(batch.drain(..), &reason),
                None => self.append(&mut batch),
            };
            for (answer, asked, result) in answers {
                self.metrics.append.record(asked.elapsed().as_secs_f64());
                // A caller that stopped waiting is no error: the message is durable all the same.
                let _ = answer.send(result);
            }
        }
    }

    fn append(&mut self, asks: &mut Vec<Ask>) -> Vec<Answer> {
        let before = self.heads.clone();
        let mut answers = Vec::with_capacity(asks.len());
        let written = self.plan(asks, &mut answers).and_then(|batch| {
            if batch.is_empty() {
                return Ok(());
            }
            let begun = Instant::now();
            self.kv.write(batch, Durability::Synced)?;
            self.metrics.sync.record(begun.elapsed().as_secs_f64());
            self.metrics.batches.increment(1);
            Ok(())
        });
        match written {
            Ok(()) => {
                if before != self.heads {
                    self.shown.heads.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.heads);
                    self.shown.moved.notify_waiters();
                }
                answers
            }
            Err(error) => self.stop_accepting(&error, answers),
        }
    }

    /// Decides each append's answer and gathers what must be written before any is given.
    fn plan(&mut self, asks: &mut Vec<Ask>, answers: &mut Vec<Answer>) -> Result<Batch, KvError> {
        let kv = self.kv.clone();
        let view = kv.view();
        let mut batch = Batch::default();
        let mut fresh = HashMap::new();
        let mut highest = 0;
        for Ask { mut record, fingerprint, name, partition, answer, asked } in asks.drain(..) {
            self.latest_ms = self.latest_ms.max(record.at_ms);
            let result = match self.seen(&*view, &fresh, &name) {
                Ok(Some(seen)) => seen.answer(&record, fingerprint),
                Ok(None) => {
                    highest = self.snowflake.next(record.at_ms);
                    record.message_id = highest;
                    let seen = self.enter(&mut batch, &record, &name, fingerprint, partition);
                    let appended = seen.appended(false);
                    fresh.insert(name, seen);
                    Ok(appended)
                }
                Err(error) => {
                    // Into the answers first: whoever asked must hear of the failure with everybody else.
                    answers.push((answer, asked, Err(QueueError::Engine(error.clone()))));
                    return Err(error);
                }
            };
            answers.push((answer, asked, result));
        }
        if !fresh.is_empty() {
            let touched: std::collections::BTreeSet<_> =
                fresh.values().map(|s| s.appended(false).partition).collect();
            for partition in touched {
                let head = self.heads[usize::from(partition)];
                batch.put(LOG, kv::head_key(partition), head.to_be_bytes().to_vec());
            }
            batch.put(LOG, kv::HIGHEST_ID.to_vec(), highest.to_be_bytes().to_vec());
        }
        Ok(batch)
    }

    fn seen(
        &self,
        view: &dyn View,
        fresh: &HashMap<Name, Seen>,
        name: &Name,
    ) -> Result<Option<Seen>, KvError> {
        match fresh.get(name) {
            Some(seen) => Ok(Some(seen.clone())),
            None => dedup::find(view, name, self.latest_ms),
        }
    }

    fn enter(
        &mut self,
        batch: &mut Batch,
        record: &Record,
        name: &Name,
        fingerprint: Fingerprint,
        partition: u16,
    ) -> Seen {
        let head = &mut self.heads[usize::from(partition)];
        *head += 1;
        let seen = Seen::of(record, fingerprint, (partition, *head), self.latest_ms);
        batch.put(LOG, kv::record_key(partition, *head), prost::Message::encode_to_vec(record));
        batch.put(DEDUP, dedup::key(name, self.latest_ms), prost::Message::encode_to_vec(&seen));
        seen
    }

    /// Answers of appends that [`Writer::plan`] did not reach are dropped with them and read as
    /// [`QueueError::Closed`].
    fn stop_accepting(&self, error: &KvError, answers: Vec<Answer>) -> Vec<Answer> {
        let reason = error.to_string();
        tracing::error!(%error, "the ingest queue accepts nothing more until its disk is repaired and this process restarts");
        *self.shown.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
        let failed = |(answer, asked, _)| (answer, asked, Err(QueueError::Failed(reason.clone())));
        answers.into_iter().map(failed).collect()
    }
}

fn fail(asks: impl Iterator<Item = Ask>, reason: &str) -> Vec<Answer> {
    asks.map(|ask| (ask.answer, ask.asked, Err(QueueError::Failed(reason.to_owned())))).collect()
}
