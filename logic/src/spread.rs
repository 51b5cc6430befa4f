//! Spread: committed messages to the other members, in order per conversation, concurrent across conversations.
//!
//! A conversation always belongs to the same worker. A worker knows which conversations have something in the outbox
//! and from which seq, so it never scans for work; what a crash makes it forget is read from the outbox at the start.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    context::{Context, Part},
    gateways,
    store::{Moved, Spread, StoreError, Unspread},
};

/// Workers, each a thread: one writes while the other notifies.
const WORKERS: usize = 2;

/// Conversations a worker may have waiting: above it commit waits, and the queue on disk takes the rest.
const WAITING: usize = 65_536;

/// Messages one step gives, over all its conversations.
const STEP: usize = 512;

/// Messages of one conversation in one step, so that a busy one does not starve the others.
const STEP_CONVERSATION: u64 = 64;

/// Outbox rows read at a time at the start.
const LOAD: usize = 1024;

/// Before what failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Failures one after the other that mean that the store fails, not single rows: the worker pauses as a whole then.
const DOWN: usize = 16;

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
    /// The same of conversations that failed: nothing of them is given before the first of it, or the order is lost.
    held: HashMap<u64, (u64, u64)>,
    /// When those are tried again.
    retry: Option<Instant>,
}

impl Waiting {
    fn add(&mut self, work: Unspread) {
        let Unspread { conversation_id, seq } = work;
        let known = match self.held.get_mut(&conversation_id) {
            None => self.seqs.get_mut(&conversation_id),
            held => held,
        };
        match known {
            Some((first, last)) => (*first, *last) = (seq.min(*first), seq.max(*last)),
            None => {
                self.seqs.insert(conversation_id, (seq, seq));
                self.turns.push_back(conversation_id);
            }
        }
    }

    /// Whether there is room for something of this conversation.
    fn takes(&self, conversation_id: u64) -> bool {
        let known = self.held.contains_key(&conversation_id) || self.seqs.contains_key(&conversation_id);
        known || self.seqs.len() + self.held.len() < WAITING
    }

    /// Keeps back what failed, and what of its conversation is behind it, until `retry`.
    fn hold(&mut self, work: Unspread, retry: Instant) {
        let Unspread { conversation_id, seq } = work;
        let (first, last) = self.seqs.remove(&conversation_id).unwrap_or((seq, seq));
        let held = self.held.entry(conversation_id).or_insert((seq, seq));
        *held = (held.0.min(first).min(seq), held.1.max(last).max(seq));
        self.retry.get_or_insert(retry);
    }

    /// Lets what was held back have its turn again, when it is time.
    fn release(&mut self, now: Instant) {
        if self.retry.is_some_and(|retry| retry <= now) {
            self.retry = None;
            for (conversation_id, range) in self.held.drain() {
                self.seqs.insert(conversation_id, range);
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

    /// Adds work; waits while the worker it belongs to has [`WAITING`] conversations. Cancelled, it leaves the rest:
    /// the next start finds it in the outbox.
    pub(crate) async fn offer(&self, work: Vec<Unspread>, stop: &CancellationToken) {
        for unspread in work {
            let worker = &self.workers[(unspread.conversation_id % WORKERS as u64) as usize];
            loop {
                let mut room = std::pin::pin!(worker.room.notified());
                room.as_mut().enable();
                {
                    let mut waiting = worker.waiting();
                    if waiting.takes(unspread.conversation_id) {
                        waiting.add(unspread);
                        break;
                    }
                }
                if stop.run_until_cancelled(room).await.is_none() {
                    return;
                }
            }
            worker.more.notify_one();
        }
    }

    /// Adds everything the outbox holds.
    pub(crate) async fn load(&self, context: &Context, stop: &CancellationToken) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let found = context.store.outbox(after, LOAD).await?;
            let Some(last) = found.last() else { return Ok(()) };
            after = Some(*last);
            context.outbox_gained(found.len());
            self.offer(found, stop).await;
        }
    }

    /// The numbers of the workers to [`Spreads::run`].
    pub(crate) fn workers(&self) -> std::ops::Range<usize> {
        0..self.workers.len()
    }

    /// One worker, until cancelled.
    pub(crate) async fn run(self: Arc<Self>, number: usize, context: Arc<Context>, stop: CancellationToken) {
        let worker = &self.workers[number];
        while !stop.is_cancelled() {
            let (work, retry) = {
                let mut waiting = worker.waiting();
                waiting.release(Instant::now());
                (waiting.take(), waiting.retry)
            };
            worker.room.notify_waiters();
            if work.is_empty() {
                worker.wait(retry, &stop).await;
                continue;
            }
            let given = match context.store.spread(work.clone(), context.now()).await {
                Ok(spread) => {
                    context.metrics.delivered.increment(spread.delivered);
                    context.outbox_lost(work.len());
                    Given { moved: spread.moved, ..Given::default() }
                }
                // One damaged row fails the whole step: which one is found out, the others go on.
                Err(_) => worker.one_by_one(&context, work, &stop).await,
            };
            gateways::notify(&*context.routes, &context.gateways, given.moved).await;
            let held = !worker.waiting().held.is_empty();
            match given.trouble {
                Some(reason) => context.note(Part::Spread(number), Err(reason)),
                None if !held => context.note(Part::Spread(number), Ok(())),
                None => {}
            }
            if given.down {
                stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
            }
        }
    }
}

/// What a step that failed as a whole gave all the same.
#[derive(Default)]
struct Given {
    moved: Vec<Moved>,
    /// Why something of it is held back.
    trouble: Option<String>,
    /// So much failed that the store itself fails.
    down: bool,
}

impl Worker {
    /// Until something was added, it is time to try again, or cancelled.
    async fn wait(&self, retry: Option<Instant>, stop: &CancellationToken) {
        let more = self.more.notified();
        let more = async {
            match retry {
                None => more.await,
                // Time to try again is as good as more.
                Some(at) => tokio::time::timeout_at(at, more).await.unwrap_or_default(),
            }
        };
        stop.run_until_cancelled(more).await;
    }

    /// Gives messages each by itself: a damaged one is set aside, one that fails otherwise is held back with what is
    /// behind it in its conversation.
    async fn one_by_one(&self, context: &Context, work: Vec<Unspread>, stop: &CancellationToken) -> Given {
        let mut given = Given::default();
        let mut failures = 0;
        let retry = Instant::now() + PAUSE;
        for one in work {
            given.down = failures >= DOWN;
            let behind = self.waiting().held.contains_key(&one.conversation_id);
            if given.down || behind || stop.is_cancelled() {
                self.waiting().hold(one, retry);
                continue;
            }
            match give_one(context, one).await {
                Ok(spread) => {
                    failures = 0;
                    context.metrics.delivered.increment(spread.delivered);
                    context.outbox_lost(1);
                    given.moved.extend(spread.moved);
                }
                Err(error) => {
                    failures += 1;
                    given.trouble = Some(error.to_string());
                    self.waiting().hold(one, retry);
                }
            }
        }
        given
    }
}

/// Gives one message, or sets it aside if it can never be given.
async fn give_one(context: &Context, one: Unspread) -> Result<Spread, StoreError> {
    let error = match context.store.spread(vec![one], context.now()).await {
        Err(error) if error.is_damage() => error,
        done => return done,
    };
    context.store.set_aside(one, error.to_string(), context.now()).await?;
    context.metrics.set_aside.increment(1);
    let Unspread { conversation_id, seq } = one;
    tracing::warn!(
        conversation_id,
        seq,
        %error,
        "a message cannot be given to its recipient and was set aside: it stays in the conversation's history"
    );
    Ok(Spread::default())
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

    #[test]
    fn what_is_behind_a_failure_waits_with_it() {
        let mut waiting = Waiting::default();
        let work = |conversation_id, seq| Unspread { conversation_id, seq };
        let now = Instant::now();
        for seq in 1..=100 {
            waiting.add(work(1, seq));
        }
        let step = waiting.take();
        waiting.hold(step[9], now + PAUSE);
        for later in &step[10..] {
            waiting.hold(*later, now + PAUSE);
        }
        waiting.add(work(1, 101));
        waiting.add(work(2, 1));
        waiting.release(now);
        assert_eq!(waiting.take(), [work(2, 1)], "others go on");
        waiting.release(now + PAUSE);
        let mut given = Vec::new();
        while let step = waiting.take()
            && !step.is_empty()
        {
            given.extend(step.into_iter().map(|work| work.seq));
        }
        assert_eq!(given, (10..=101).collect::<Vec<_>>(), "all of it, in order");
    }
}
