//! Spread: committed messages to the other members, in order per conversation, concurrent across conversations.
//!
//! A conversation always belongs to the same worker. A worker knows which conversations have something in the outbox
//! and from which seq, so it never scans for work; what a crash makes it forget is read from the outbox at the start.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    context::{Context, Part},
    gateways,
    store::{Moved, StoreError, Unspread},
};

/// Workers: one writes while the other notifies.
const WORKERS: usize = 2;

/// Conversations a worker may have waiting: above it commit waits, and the queue on disk takes the rest.
const WAITING: usize = 65_536;

/// Messages one step gives, over all its conversations.
const STEP: usize = 512;

/// Messages of one conversation in one step, so that a busy one does not starve the others.
const STEP_CONVERSATION: u64 = 64;

/// Outbox rows read at a time at the start.
const LOAD: usize = 1024;

/// Before a failed store is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// The work that waits, by worker.
pub(crate) struct Spreads {
    workers: Vec<Worker>,
}

#[derive(Default)]
struct Worker {
    waiting: Mutex<Waiting>,
    /// Something was added.
    more: Notify,
    /// Something was taken.
    room: Notify,
}

#[derive(Default)]
struct Waiting {
    turns: VecDeque<u64>,
    /// First and last seq that wait, by conversation; those in `turns` and no others.
    seqs: HashMap<u64, (u64, u64)>,
}

impl Waiting {
    fn add(&mut self, work: Unspread) {
        let Unspread { conversation_id, seq } = work;
        match self.seqs.get_mut(&conversation_id) {
            Some((first, last)) => (*first, *last) = (seq.min(*first), seq.max(*last)),
            None => {
                self.seqs.insert(conversation_id, (seq, seq));
                self.turns.push_back(conversation_id);
            }
        }
    }

    /// The next step's work; conversations with more than their part go to the back.
    fn take(&mut self) -> Vec<Unspread> {
        let mut work = Vec::new();
        while work.len() < STEP
            && let Some(conversation_id) = self.turns.pop_front()
        {
            let Some((first, last)) = self.seqs.remove(&conversation_id) else { continue };
            let part = STEP_CONVERSATION.min((STEP - work.len()) as u64);
            let end = last.min(first + part - 1);
            work.extend((first..=end).map(|seq| Unspread { conversation_id, seq }));
            if end < last {
                self.seqs.insert(conversation_id, (end + 1, last));
                self.turns.push_back(conversation_id);
            }
        }
        work
    }
}

impl Worker {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spreads {
    pub(crate) fn new() -> Self {
        Self { workers: (0..WORKERS).map(|_| Worker::default()).collect() }
    }

    /// Adds work; waits while the worker it belongs to has [`WAITING`] conversations.
    pub(crate) async fn offer(&self, work: Vec<Unspread>) {
        for unspread in work {
            let worker = &self.workers[(unspread.conversation_id % WORKERS as u64) as usize];
            loop {
                let mut room = std::pin::pin!(worker.room.notified());
                room.as_mut().enable();
                {
                    let mut waiting = worker.waiting();
                    let known = waiting.seqs.contains_key(&unspread.conversation_id);
                    if known || waiting.seqs.len() < WAITING {
                        waiting.add(unspread);
                        break;
                    }
                }
                room.await;
            }
            worker.more.notify_one();
        }
    }

    /// Adds everything the outbox holds.
    pub(crate) async fn load(&self, context: &Context) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let found = context.store.outbox(after, LOAD).await?;
            let Some(last) = found.last() else { return Ok(()) };
            after = Some(*last);
            context.metrics.outbox.increment(found.len() as f64);
            self.offer(found).await;
        }
    }

    /// The numbers of the workers to [`Spreads::run`].
    pub(crate) fn workers(&self) -> std::ops::Range<usize> {
        0..self.workers.len()
    }

    /// One worker, until cancelled.
    pub(crate) async fn run(self: Arc<Self>, number: usize, context: Arc<Context>, stop: CancellationToken) {
        let worker = &self.workers[number];
        loop {
            let work = worker.waiting().take();
            worker.room.notify_waiters();
            if work.is_empty() {
                if stop.run_until_cancelled(worker.more.notified()).await.is_none() {
                    return;
                }
                continue;
            }
            let Some(moved) = give(&context, work, &stop).await else { return };
            gateways::notify(&*context.routes, &context.gateways, moved).await;
        }
    }
}

/// Gives one step's messages, again until the store takes it; `None`: cancelled.
async fn give(context: &Context, work: Vec<Unspread>, stop: &CancellationToken) -> Option<Vec<Moved>> {
    loop {
        if stop.is_cancelled() {
            return None;
        }
        match context.store.spread(work.clone(), context.now()).await {
            Ok(spread) => {
                context.metrics.delivered.increment(spread.delivered);
                context.metrics.outbox.decrement(work.len() as f64);
                return Some(spread.moved);
            }
            Err(error) => {
                context.note(Part::Store, Err(error.to_string()));
                stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_conversation_takes_turns_and_keeps_its_order() {
        let mut waiting = Waiting::default();
        for seq in 1..=1000 {
            waiting.add(Unspread { conversation_id: 1, seq });
        }
        waiting.add(Unspread { conversation_id: 2, seq: 7 });
        let mut given = Vec::new();
        loop {
            let step = waiting.take();
            if step.is_empty() {
                break;
            }
            assert!(step.len() <= STEP);
            given.extend(step);
        }
        let place = given.iter().position(|work| work.conversation_id == 2).expect("it had its turn");
        assert_eq!(place as u64, STEP_CONVERSATION, "it had its turn after one step of the busy one");
        let busy: Vec<u64> =
            given.iter().filter(|work| work.conversation_id == 1).map(|work| work.seq).collect();
        assert_eq!(busy, (1..=1000).collect::<Vec<_>>());
    }
}
