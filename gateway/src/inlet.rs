//! How other threads reach a worker: a bounded mailbox and a wake-up.

use std::{
    io,
    sync::{Arc, Mutex, Weak},
};

use berth_proto::{
    handle::Handle,
    link::{Link, Refused, RefusedReason},
    wire::{
        FromScheduler, NotifyConnection, NotifyConnections, RedirectAnswer, Revocation, ToGateway,
        from_scheduler,
        to_gateway::{self, Message},
    },
};
use mio::Waker;

use crate::{
    carried,
    config::MAX_WORKERS,
    metrics::Notified,
    mover::Job,
    pieces::Pieces,
    shared::{Shared, lock},
};

/// Notifies that may wait for a worker. More than a whole 10,000-member fan-out several times over; what comes above is
/// dropped, and the next heartbeats make up for it.
const NOTIFIES: usize = 65_536;

/// Notifies of one piece of a list of them: 4 KiB of the usual ones.
const PIECE: usize = 256;

/// What a worker is told, beside notifies. Bounded by what is in flight: answers to what the worker asked, at most one
/// close a connection, and the supervisor's few words.
pub(crate) enum Delivery {
    /// Logic's message about the connection with this handle.
    Logic(u64, to_gateway::Message),
    /// A scheduler's answer; it carries the handle.
    Redirect(RedirectAnswer),
    /// Say 4001 to everybody, with a random wait of at most so many milliseconds.
    Evict(u32),
    /// The same to those who were welcomed: who is arriving is answered soon.
    TellRest(u32),
    /// List those whom the job is about.
    Move(Arc<Job>),
    /// Ask where so many more of those listed are to go.
    Grant(u64),
    /// Whoever was not asked about yet stays.
    MovedEnough,
    /// Say goodbye and end.
    Stop,
    /// The logic with that index forgot this gateway's sessions, or may have missed what was said of them.
    Reannounce(u8),
    /// The link to the logic with that index broke: what is not answered by now will not be.
    Unanswered(u8),
    /// Credentials are void: who is connected with them is to go.
    Revoked(Arc<Revocation>),
    /// Ticket keys with these tags are void: who was let in by one is to go.
    KeysVoid(Arc<[u32]>),
}

/// The inbox of the user on a connection reached a seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) handle: u64,
    pub(crate) inbox_seq: u64,
}

/// What waits for a worker.
#[derive(Default)]
pub(crate) struct Waiting {
    pub(crate) deliveries: Vec<Delivery>,
    /// In no order: merging them is commutative.
    pub(crate) notifies: Pieces<Reached, PIECE>,
    /// Notifies that are about conversations too.
    pub(crate) others: Pieces<NotifyConnection, PIECE>,
    /// Answers to heartbeat batches: what repairs a notify that was dropped is itself never dropped. Bounded by the
    /// connections: each asks at most once a second.
    pub(crate) refreshed: Pieces<Reached, PIECE>,
    /// The worker was woken and has not come yet: once is enough.
    woken: bool,
    /// Nobody comes any more: nothing is kept.
    closed: bool,
}

/// A worker's mailbox.
pub(crate) struct Inlet {
    waiting: Mutex<Waiting>,
    waker: Waker,
}

impl Inlet {
    pub(crate) fn new(waker: Waker) -> Self {
        Self { waiting: Mutex::default(), waker }
    }

    /// Hands over one message.
    pub(crate) fn send(&self, delivery: Delivery) {
        self.put(|waiting| waiting.deliveries.push(delivery));
    }

    /// Takes what came; `into` gives its memory for what comes next. Notifies stay while `into` has some left to do, so
    /// that the bound counts them. Whether something stayed.
    pub(crate) fn take(&self, into: &mut Waiting) -> bool {
        fn exchange<T>(here: &mut Pieces<T, PIECE>, there: &mut Pieces<T, PIECE>) {
            if there.is_empty() {
                std::mem::swap(here, there);
            }
        }
        let mut waiting = lock(&self.waiting);
        waiting.woken = false;
        if into.deliveries.is_empty() {
            std::mem::swap(&mut waiting.deliveries, &mut into.deliveries);
        }
        exchange(&mut waiting.others, &mut into.others);
        exchange(&mut waiting.notifies, &mut into.notifies);
        exchange(&mut waiting.refreshed, &mut into.refreshed);
        !(waiting.notifies.is_empty() && waiting.refreshed.is_empty() && waiting.others.is_empty())
    }

    /// The worker has ended: what waits is dropped, and so is what comes.
    pub(crate) fn close(&self) {
        *lock(&self.waiting) = Waiting { closed: true, ..Waiting::default() };
    }

    /// Hands over what `put` adds, with one wake-up.
    fn put<R>(&self, put: impl FnOnce(&mut Waiting) -> R) -> R {
        let mut waiting = lock(&self.waiting);
        let result = put(&mut waiting);
        if waiting.closed {
            *waiting = Waiting { closed: true, ..Waiting::default() };
            return result;
        }
        let wake = !std::mem::replace(&mut waiting.woken, true);
        drop(waiting);
        if wake {
            self.wake();
        }
        result
    }

    fn wake(&self) {
        // An eventfd write fails only for a full counter, which wakes as well, or a closed one: the worker is gone.
        if let Err(error) = self.waker.wake()
            && error.kind() != io::ErrorKind::WouldBlock
        {
            tracing::debug!(%error, "a worker could not be woken");
        }
    }
}

/// A logic's way to this gateway. Weak: logic keeps it, and the gateway keeps logic's.
pub(crate) struct LogicDown {
    pub(crate) shared: Weak<Shared>,
    pub(crate) index: u8,
}

impl Link<ToGateway> for LogicDown {
    fn send(&self, mut batch: Vec<ToGateway>) -> Result<(), Refused<ToGateway>> {
        let Some(shared) = self.shared.upgrade() else {
            return Err(Refused { rest: batch, reason: RefusedReason::Closed });
        };
        let mut shares = Shares::default();
        for message in &batch {
            match &message.message {
                Some(Message::Lease(lease)) => shared.mailbox.lease(self.index, lease),
                Some(Message::Revoked(carried)) => carried::revoked(&shared, carried.clone()),
                Some(message) => shares.note(message),
                None => {}
            }
        }
        // One hand-over for each worker, whatever the batch holds: its part goes straight to where it waits.
        for (worker, inlet) in shared.inlets.iter().enumerate() {
            if shares.has(worker) {
                let dropped = inlet.put(|waiting| waiting.fill(&mut batch, worker));
                if dropped > 0 {
                    shared.metrics.traffic.notifies.add(Notified::Dropped, dropped as u64);
                }
            }
        }
        Ok(())
    }

    fn connected(&self) -> bool {
        self.shared.strong_count() > 0
    }

    /// After a break both sides may have missed something: the lease is renewed at once, and every session is announced
    /// again, which writes its route, reads its inbox seq, and tells of a newer session of the same device.
    fn network(&self, up: bool) {
        let Some(shared) = self.shared.upgrade() else { return };
        let tell = |delivery: fn(u8) -> Delivery| {
            shared.inlets.iter().for_each(|inlet| inlet.send(delivery(self.index)));
        };
        if up {
            shared.mailbox.attached(self.index);
            tell(Delivery::Reannounce);
        } else {
            tell(Delivery::Unanswered);
            // Readiness may have changed.
            shared.mailbox.poke();
        }
    }
}

impl Waiting {
    /// Adds the worker's part of a batch; returns how many notifies were over the bound.
    fn fill(&mut self, batch: &mut [ToGateway], worker: usize) -> usize {
        let mut dropped = 0;
        for slot in batch {
            match &mut slot.message {
                Some(Message::Notify(notify)) => dropped += self.notified(notify, worker),
                Some(Message::Refreshed(refreshed)) => {
                    self.refreshed.extend(reached(refreshed, worker));
                    self.others
                        .extend(refreshed.others.extract_if(.., |other| worker_of(other.handle) == worker));
                }
                Some(message) => {
                    if let Some(handle) = handle_of(message).filter(|handle| worker_of(*handle) == worker) {
                        self.deliveries
                            .extend(slot.message.take().map(|message| Delivery::Logic(handle, message)));
                    }
                }
                None => {}
            }
        }
        dropped
    }

    fn notified(&mut self, notify: &mut NotifyConnections, worker: usize) -> usize {
        let mut room =
            if self.closed { 0 } else { NOTIFIES.saturating_sub(self.notifies.len() + self.others.len()) };
        let mut dropped = 0;
        let mut fits = || {
            let fits = room > 0;
            room = room.saturating_sub(1);
            dropped += usize::from(!fits);
            fits
        };
        self.notifies.extend(reached(notify, worker).filter(|_| fits()));
        let theirs = notify.others.extract_if(.., |other| worker_of(other.handle) == worker);
        self.others.extend(theirs.filter(|_| fits()));
        dropped
    }
}

fn reached(notify: &NotifyConnections, worker: usize) -> impl Iterator<Item = Reached> + '_ {
    let theirs = notify.inboxes().filter(move |(handle, _)| worker_of(*handle) == worker);
    theirs.map(|(handle, inbox_seq)| Reached { handle, inbox_seq })
}

/// Which workers a batch has messages for, so that each is looked for only where there is something.
struct Shares([bool; MAX_WORKERS]);

impl Default for Shares {
    fn default() -> Self {
        Self([false; MAX_WORKERS])
    }
}

impl Shares {
    fn note(&mut self, message: &Message) {
        match message {
            Message::Notify(batch) | Message::Refreshed(batch) => {
                batch.handles.iter().for_each(|handle| self.one(*handle));
                batch.others.iter().for_each(|other| self.one(other.handle));
            }
            message => handle_of(message).into_iter().for_each(|handle| self.one(handle)),
        }
    }

    fn one(&mut self, handle: u64) {
        if let Some(share) = self.0.get_mut(worker_of(handle)) {
            *share = true;
        }
    }

    /// Whether something is for this worker.
    fn has(&self, worker: usize) -> bool {
        self.0.get(worker).is_some_and(|share| *share)
    }
}

/// The connection of a message that is about one.
fn handle_of(message: &Message) -> Option<u64> {
    match message {
        Message::Opened(opened) => Some(opened.handle),
        Message::Response(response) => Some(response.handle),
        Message::Close(close) => Some(close.handle),
        Message::Notify(_) | Message::Refreshed(_) | Message::Lease(_) | Message::Revoked(_) => None,
    }
}

fn worker_of(handle: u64) -> usize {
    usize::from(Handle::unpack(handle).worker)
}

/// A scheduler's way to this gateway.
pub(crate) struct SchedulerDown {
    pub(crate) shared: Weak<Shared>,
    /// Tells this scheduler's keys from the others'.
    pub(crate) index: usize,
}

impl Link<FromScheduler> for SchedulerDown {
    fn send(&self, batch: Vec<FromScheduler>) -> Result<(), Refused<FromScheduler>> {
        let Some(shared) = self.shared.upgrade() else {
            return Err(Refused { rest: batch, reason: RefusedReason::Closed });
        };
        for message in batch.into_iter().filter_map(|message| message.message) {
            match message {
                from_scheduler::Message::Keys(keys) => {
                    if !shared.ticket_keys(self.index, &keys) {
                        tracing::warn!("a scheduler told no usable ticket key; the ones known so far stay");
                    }
                }
                from_scheduler::Message::Redirect(answer) => {
                    if let Some(inlet) = shared.inlets.get(worker_of(answer.handle)) {
                        inlet.send(Delivery::Redirect(answer));
                    }
                }
                from_scheduler::Message::Demand(demand) => {
                    shared.demand(self.index, demand.wanted_per_second);
                }
                from_scheduler::Message::Introduction(word) => {
                    shared.introduced(self.index, word.clone());
                    shared.mailbox.introduced(self.index, word);
                }
                from_scheduler::Message::Order(order) => shared.mailbox.ordered(order),
                from_scheduler::Message::Carried(carried) => shared.mailbox.carried(self.index, carried),
            }
        }
        Ok(())
    }

    fn connected(&self) -> bool {
        self.shared.strong_count() > 0
    }

    /// A scheduler that has just started learns of this gateway at once rather than at the next report.
    fn network(&self, up: bool) {
        if up && let Some(shared) = self.shared.upgrade() {
            shared.mailbox.poke();
        }
    }
}

#[cfg(test)]
mod tests;
