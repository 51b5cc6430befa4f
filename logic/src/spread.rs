//! Spread: committed messages to the other members, in order per conversation, concurrent across conversations.
//!
//! Direct conversations are given many in a step, and so are small groups; large ones slice by slice, in turns (see
//! [`waiting`]).
//!
//! A conversation always belongs to the same worker. A worker knows which conversations have something in the outbox
//! and from which seq, so it never scans for work; what a crash makes it forget is read from the outbox at the start.

mod backlog;
mod waiting;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use self::waiting::{CUT, Waiting};
use crate::{
    context::{Context, Part},
    gateways,
    store::{Due, Moved, Sliced, Spread, StoreError, Unspread},
};

/// Workers, each a thread: one writes while the other notifies.
const WORKERS: usize = 2;

/// Outbox rows read at a time at the start.
const LOAD: usize = 1024;

/// Before what failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Failures one after the other that mean that the store fails, not single rows: the worker pauses as a whole then.
const DOWN: usize = 16;

/// A message to a group on its way into the queue. Dropped: nothing comes of it.
pub(crate) struct Entered {
    spreads: Arc<Spreads>,
    conversation_id: u64,
    stays: bool,
}

impl Entered {
    /// The queue has it: it counts until it was committed.
    pub(crate) fn stays(mut self) {
        self.stays = true;
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if !self.stays {
            self.spreads.left_the_queue(self.conversation_id);
        }
    }
}

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

impl Worker {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spreads {
    pub(crate) fn new() -> Self {
        Self { workers: (0..WORKERS).map(|_| Worker::default()).collect() }
    }

    fn worker(&self, conversation_id: u64) -> &Worker {
        &self.workers[(conversation_id % WORKERS as u64) as usize]
    }

    /// A message to a group of so many members is about to be accepted: it counts until it was committed or dropped.
    /// `None`: the group has too much waiting.
    pub(crate) fn enter(self: &Arc<Self>, conversation_id: u64, members: u64) -> Option<Entered> {
        let entered = self.worker(conversation_id).waiting().backlog.enter(conversation_id, members);
        entered.then(|| Entered { spreads: self.clone(), conversation_id, stays: false })
    }

    /// A record of this group was committed, or will never be.
    pub(crate) fn left_the_queue(&self, conversation_id: u64) {
        self.worker(conversation_id).waiting().backlog.left_the_queue(conversation_id);
    }

    /// Committed messages of a conversation that wait.
    #[cfg(test)]
    pub(crate) fn backlog(&self, conversation_id: u64) -> u64 {
        self.worker(conversation_id).waiting().count_of(conversation_id)
    }

    /// When the oldest message that waits was accepted, in milliseconds since the Unix epoch; exact to a second.
    pub(crate) fn oldest_ms(&self) -> Option<i64> {
        self.workers.iter().filter_map(|worker| worker.waiting().oldest_ms()).min()
    }

    /// Adds work; waits while the worker it belongs to has [`waiting::WAITING`] conversations. Cancelled, it leaves the rest:
    /// the next start finds it in the outbox.
    pub(crate) async fn offer(&self, work: Vec<Unspread>, stop: &CancellationToken) {
        for unspread in work {
            let worker = self.worker(unspread.conversation_id);
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
            let (work, due, retry) = {
                let mut waiting = worker.waiting();
                waiting.release(Instant::now());
                (waiting.take(), waiting.turns(), waiting.retry)
            };
            worker.room.notify_waiters();
            if work.is_empty() && due.is_empty() {
                worker.wait(retry, &stop).await;
                continue;
            }
            let mut given = worker.give(&context, work, &stop).await;
            given.and(worker.give_groups(&context, &due).await);
            let held = worker.waiting().holds_any();
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

/// What a step gave.
#[derive(Default)]
struct Given {
    moved: Vec<Moved>,
    /// Why something of it is held back.
    trouble: Option<String>,
    /// So much failed that the store itself fails.
    down: bool,
}

impl Given {
    fn and(&mut self, other: Self) {
        self.trouble = other.trouble.or(self.trouble.take());
        self.down |= other.down;
    }
}

impl Worker {
    /// Gives what waits in direct conversations, and notifies.
    async fn give(&self, context: &Context, work: Vec<Unspread>, stop: &CancellationToken) -> Given {
        if work.is_empty() {
            return Given::default();
        }
        let mut given = match context.store.spread(work.clone(), context.now()).await {
            Ok(spread) => {
                context.metrics.delivered.increment(spread.delivered);
                context.outbox_lost(work.len());
                Given { moved: spread.moved, ..Given::default() }
            }
            // One damaged row fails the whole step: which one is found out, the others go on.
            Err(_) => self.one_by_one(context, work, stop).await,
        };
        let moved = std::mem::take(&mut given.moved);
        gateways::notify(&*context.routes, &context.gateways, moved).await;
        given
    }

    /// Gives what one step may of groups, and notifies.
    async fn give_groups(&self, context: &Context, due: &[Due]) -> Given {
        if due.is_empty() {
            return Given::default();
        }
        let begun = std::time::Instant::now();
        let sliced = match context.store.spread_groups(due, CUT, context.now()).await {
            Ok(sliced) => sliced,
            // One damaged row fails the whole step: the first group by itself, the others the next time.
            Err(error) if error.is_damage() => match self.give_group(context, due[0]).await {
                Ok(sliced) => sliced,
                Err(error) => {
                    self.waiting().missed(&due[1..]);
                    return self.hold(&due[..1], &error);
                }
            },
            Err(error) => return self.hold(due, &error),
        };
        context.metrics.spread_slice.record(begun.elapsed().as_secs_f64());
        let mut moved = Vec::new();
        {
            let mut waiting = self.waiting();
            waiting.missed(&due[sliced.len().min(due.len())..]);
            for (group, sliced) in due.iter().zip(sliced) {
                context.metrics.delivered.increment(sliced.delivered);
                context.metrics.group_delivered.increment(sliced.delivered);
                context.metrics.set_aside.increment(sliced.damaged);
                context.outbox_lost(sliced.finished as usize);
                waiting.gave(group.conversation_id, sliced.through);
                moved.extend(sliced.moved);
            }
        }
        gateways::notify(&*context.routes, &context.gateways, moved).await;
        Given::default()
    }

    /// One group alone: a message of which nothing can be given is set aside, what is behind it goes on.
    async fn give_group(&self, context: &Context, due: Due) -> Result<Vec<Sliced>, StoreError> {
        let error = match context.store.spread_groups(&[due], CUT, context.now()).await {
            Err(error) if error.is_damage() => error,
            done => return done,
        };
        set_aside(context, first_of(due), &error).await?;
        Ok(vec![Sliced { through: Some(due.first), finished: 1, ..Sliced::default() }])
    }

    fn hold(&self, due: &[Due], error: &StoreError) -> Given {
        let retry = Instant::now() + PAUSE;
        let mut waiting = self.waiting();
        due.iter().for_each(|group| waiting.hold(first_of(*group), retry));
        Given { trouble: Some(error.to_string()), ..Given::default() }
    }

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
            let behind = self.waiting().holds(one.conversation_id);
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

fn first_of(due: Due) -> Unspread {
    let Due { conversation_id, first: seq, .. } = due;
    Unspread { conversation_id, seq, message_id: 0, members: Some(0) }
}

/// Gives one message, or sets it aside if it can never be given.
async fn give_one(context: &Context, one: Unspread) -> Result<Spread, StoreError> {
    let error = match context.store.spread(vec![one], context.now()).await {
        Err(error) if error.is_damage() => error,
        done => return done,
    };
    set_aside(context, one, &error).await.map(|()| Spread::default())
}

/// Sets a message aside that can never be given.
async fn set_aside(context: &Context, one: Unspread, error: &StoreError) -> Result<(), StoreError> {
    context.store.set_aside(one, error.to_string(), context.now()).await?;
    context.metrics.set_aside.increment(1);
    let Unspread { conversation_id, seq, .. } = one;
    tracing::warn!(
        conversation_id,
        seq,
        %error,
        "a message cannot be given to others and was set aside: it stays in the conversation's history"
    );
    Ok(())
}
