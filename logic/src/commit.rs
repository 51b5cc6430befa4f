//! Commit: queue records into the store, each partition strictly in order, O(1) per record.
//!
//! One loop serves all partitions: an embedded store has one journal, and a batch per partition and round is what it
//! wants. What it gave to spread and to the senders' own inboxes goes on at once.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::{
    context::{Context, Part},
    gateways,
    queue::{QueueError, Stored},
    spread::Spreads,
    store::StoreError,
};

/// Records of one partition taken at a time: a batch worth writing, a pause for other writers of milliseconds.
const TAKE: usize = 256;

/// Before a failed store is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a round did not finish.
#[derive(Debug, Error)]
pub(crate) enum CommitError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// The loop, and where it is.
pub(crate) struct Commit {
    context: Arc<Context>,
    spreads: Arc<Spreads>,
    marks: Vec<u64>,
    stop: CancellationToken,
}

impl Commit {
    pub(crate) async fn new(
        context: Arc<Context>,
        spreads: Arc<Spreads>,
        stop: CancellationToken,
    ) -> Result<Self, CommitError> {
        let marks = context.store.marks(context.queue.partitions()).await?;
        // A queue behind its store would give offsets again that the store skips as done: acknowledged and lost.
        for ((partition, mark), head) in (0..).zip(&marks).zip(context.queue.heads()) {
            if *mark > head {
                return Err(StoreError::Ahead { partition, mark: *mark, head }.into());
            }
        }
        context.committed.store(marks.iter().sum(), Ordering::Relaxed);
        Ok(Self { context, spreads, marks, stop })
    }

    /// Commits everything the queue has: at the start, before anything is served.
    pub(crate) async fn catch_up(&mut self) -> Result<(), CommitError> {
        while self.lag() > 0 && !self.stop.is_cancelled() {
            self.round().await?;
        }
        Ok(())
    }

    /// Until cancelled.
    pub(crate) async fn run(mut self) {
        let stop = self.stop.clone();
        loop {
            let context = self.context.clone();
            if stop.run_until_cancelled(context.queue.wait(&self.marks)).await.is_none() {
                return;
            }
            match self.round().await {
                Ok(()) => context.note(Part::Commit, Ok(())),
                Err(error) => {
                    context.note(Part::Commit, Err(error.to_string()));
                    if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Every partition that has something, once. One that fails does not hold up the others.
    async fn round(&mut self) -> Result<(), CommitError> {
        let heads = self.context.queue.heads();
        let mut result = Ok(());
        for (partition, head) in (0..).zip(heads) {
            if head > self.marks[usize::from(partition)]
                && let Err(error) = self.partition(partition).await
            {
                result = Err(error);
            }
        }
        self.context.metrics.commit_lag.set(self.lag() as f64);
        result
    }

    async fn partition(&mut self, partition: u16) -> Result<(), CommitError> {
        let context = &self.context;
        let mark = &mut self.marks[usize::from(partition)];
        let records = context.queue.read(partition, *mark, TAKE).await?;
        let Some(last) = records.last() else {
            let error = "it says it has records but gives none; restore the queue from a copy".to_owned();
            return Err(QueueError::Failed(error).into());
        };
        let (before, expected) = (*mark, last.offset - *mark);
        let to_groups = to_groups(&records);
        let committed = context.store.commit(partition, records, context.now()).await?;
        *mark = committed.mark;
        // The outbox first: what moves from the one to the other must not look gone in between.
        context.outbox_gained(committed.unspread.len());
        context.committed.fetch_add(committed.mark.saturating_sub(before), Ordering::Relaxed);
        context.metrics.committed.increment(expected - committed.poisoned - committed.failed);
        context.metrics.failed.increment(committed.failed);
        context.metrics.poisoned.increment(committed.poisoned);
        to_groups.into_iter().for_each(|id| self.spreads.left_the_queue(id));
        self.spreads.offer(committed.unspread, &self.stop).await;
        gateways::notify(&*context.routes, &context.gateways, committed.moved).await;
        Ok(())
    }

    fn lag(&self) -> u64 {
        self.context
            .queue
            .heads()
            .iter()
            .zip(&self.marks)
            .map(|(head, mark)| head.saturating_sub(*mark))
            .sum()
    }
}

/// The groups that records are for: each as often as it has one.
fn to_groups(records: &[Stored]) -> Vec<u64> {
    let records = records.iter().filter_map(|stored| stored.record.as_ref().ok());
    records.filter(|record| record.peer.is_empty()).map(|record| record.conversation_id).collect()
}
