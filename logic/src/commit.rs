//! Commit: queue records into the store, each partition strictly in order, O(1) per record.
//!
//! One loop serves all partitions, and a round of it is one step of the store: an embedded store has one journal, and who
//! waits for its writer as often as there are partitions waits for as many slices of groups. What it gave to spread and to
//! the senders' own inboxes goes on at once.

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
    store::{Committed, StoreError},
};

/// Records of a round, over all partitions that have some: a batch worth writing, a pause for other writers of
/// milliseconds.
const ROUND: usize = 512;

/// Records of one partition in a round.
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
        let (taken, mut result) = self.take().await;
        let mut round = Vec::with_capacity(taken.len());
        let mut shares = Vec::with_capacity(taken.len());
        for (partition, records) in taken {
            shares.push(Share::of(partition, &records));
            round.push((partition, records));
        }
        let answers = match round.is_empty() {
            true => Ok(Vec::new()),
            false => self.context.store.commit_round(round, self.context.now()).await,
        };
        match answers {
            Ok(answers) => {
                for (share, committed) in shares.into_iter().zip(answers) {
                    match committed {
                        Ok(committed) => self.committed(share, committed).await,
                        Err(error) => result = Err(error.into()),
                    }
                }
            }
            Err(error) => result = Err(error.into()),
        }
        self.context.metrics.commit_lag.set(self.lag() as f64);
        result
    }

    /// The records of a round, by partition; and why some partition gave none, if one did not.
    async fn take(&self) -> (Vec<(u16, Vec<Stored>)>, Result<(), CommitError>) {
        let heads = self.context.queue.heads();
        let behind: Vec<(u16, u64)> = (0..)
            .zip(heads.iter().zip(&self.marks))
            .filter(|(_, (head, mark))| head > mark)
            .map(|(partition, (_, mark))| (partition, *mark))
            .collect();
        let most = (ROUND / behind.len().max(1)).clamp(1, TAKE);
        let mut taken = Vec::with_capacity(behind.len());
        let mut result = Ok(());
        for (partition, mark) in behind {
            match self.context.queue.read(partition, mark, most).await {
                Ok(records) if records.is_empty() => {
                    let error = "it says it has records but gives none; restore the queue from a copy";
                    result = Err(QueueError::Failed(error.to_owned()).into());
                }
                Ok(records) => taken.push((partition, records)),
                Err(error) => result = Err(error.into()),
            }
        }
        (taken, result)
    }

    /// What a partition's records became goes on.
    async fn committed(&mut self, share: Share, committed: Committed) {
        let context = &self.context;
        let mark = &mut self.marks[usize::from(share.partition)];
        let before = std::mem::replace(mark, committed.mark);
        // The outbox first: what moves from the one to the other must not look gone in between.
        context.outbox_gained(committed.unspread.len());
        context.committed.fetch_add(committed.mark.saturating_sub(before), Ordering::Relaxed);
        let expected = share.last.saturating_sub(before);
        context.metrics.committed.increment(expected - committed.poisoned - committed.failed);
        context.metrics.failed.increment(committed.failed);
        context.metrics.poisoned.increment(committed.poisoned);
        share.to_groups.into_iter().for_each(|id| self.spreads.left_the_queue(id));
        self.spreads.offer(committed.unspread, &self.stop).await;
        gateways::notify(&*context.routes, &context.gateways, committed.moved).await;
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

/// Of a round: what one partition's records were.
struct Share {
    partition: u16,
    /// The newest offset.
    last: u64,
    /// The groups that they are for: each as often as it has one.
    to_groups: Vec<u64>,
}

impl Share {
    fn of(partition: u16, records: &[Stored]) -> Self {
        let last = records.last().map_or(0, |stored| stored.offset);
        let records = records.iter().filter_map(|stored| stored.record.as_ref().ok());
        let to_groups = records.filter(|record| record.peer.is_empty()).map(|record| record.conversation_id);
        Self { partition, last, to_groups: to_groups.collect() }
    }
}
