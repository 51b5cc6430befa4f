//! How other threads reach a worker: a bounded mailbox and a wake-up.

use std::{
    io,
    sync::{Mutex, Weak},
};

use berth_proto::{
    handle::Handle,
    link::{Link, Refused, RefusedReason},
    wire::{FromScheduler, NotifyConnection, RedirectAnswer, ToGateway, from_scheduler, to_gateway},
};
use mio::Waker;

use crate::{
    metrics::Notified,
    shared::{Shared, lock},
};

/// Notifies that may wait for a worker. More than a whole 10,000-member fan-out several times over; what comes above is
/// dropped, and the next heartbeats make up for it.
const NOTIFIES: usize = 65_536;

/// What a worker is told, beside notifies. Bounded by what is in flight: answers to what the worker asked, at most one
/// close a connection, and the supervisor's few words.
pub(crate) enum Delivery {
    /// Logic's message about the connection with this handle.
    Logic(u64, to_gateway::Message),
    /// A scheduler's answer; it carries the handle.
    Redirect(RedirectAnswer),
    /// Say 4001 to everybody.
    Drain,
    /// Say goodbye and end.
    Stop,
    /// The logic with that index forgot this gateway's sessions, or may have missed what was said of them.
    Reannounce(u8),
    /// The link to the logic with that index broke: what is not answered by now will not be.
    Unanswered(u8),
}

/// What waits for a worker.
#[derive(Default)]
pub(crate) struct Waiting {
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) notifies: Vec<NotifyConnection>,
    /// Answers to heartbeat batches: what repairs a notify that was dropped is itself never dropped. Bounded by the
    /// connections: each asks at most once a second.
    pub(crate) refreshed: Vec<NotifyConnection>,
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
        self.put(Waiting { deliveries: vec![delivery], ..Waiting::default() });
    }

    /// Takes everything; `into` gives its memory for what comes next.
    pub(crate) fn take(&self, into: &mut Waiting) {
        into.deliveries.clear();
        into.notifies.clear();
        into.refreshed.clear();
        into.woken = false;
        std::mem::swap(&mut *lock(&self.waiting), into);
    }

    /// The worker has ended: what waits is dropped, and so is what comes.
    pub(crate) fn close(&self) {
        *lock(&self.waiting) = Waiting { closed: true, ..Waiting::default() };
    }

    /// Hands over a batch with one wake-up; returns how many notifies were over the bound.
    fn put(&self, mut parcel: Waiting) -> usize {
        let mut waiting = lock(&self.waiting);
        if waiting.closed {
            return parcel.notifies.len();
        }
        waiting.deliveries.append(&mut parcel.deliveries);
        waiting.refreshed.append(&mut parcel.refreshed);
        let room = NOTIFIES.saturating_sub(waiting.notifies.len());
        let dropped = parcel.notifies.len().saturating_sub(room);
        waiting.notifies.extend(parcel.notifies.drain(..).take(room));
        let wake = !std::mem::replace(&mut waiting.woken, true);
        drop(waiting);
        if wake {
            self.wake();
        }
        dropped
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
    fn send(&self, batch: Vec<ToGateway>) -> Result<(), Refused<ToGateway>> {
        let Some(shared) = self.shared.upgrade() else {
            return Err(Refused { rest: batch, reason: RefusedReason::Closed });
        };
        let mut parcels: Vec<Waiting> = shared.inlets.iter().map(|_| Waiting::default()).collect();
        for message in batch.into_iter().filter_map(|message| message.message) {
            self.sort(&shared, message, &mut parcels);
        }
        for (inlet, parcel) in shared.inlets.iter().zip(parcels) {
            if parcel.deliveries.is_empty() && parcel.notifies.is_empty() && parcel.refreshed.is_empty() {
                continue;
            }
            let dropped = inlet.put(parcel);
            shared.metrics.traffic.notifies.add(Notified::Dropped, dropped as u64);
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

impl LogicDown {
    fn sort(&self, shared: &Shared, message: to_gateway::Message, parcels: &mut [Waiting]) {
        use to_gateway::Message;
        let handle = match &message {
            Message::Opened(opened) => opened.handle,
            Message::Response(response) => response.handle,
            Message::Close(close) => close.handle,
            Message::Notify(_) | Message::Refreshed(_) => 0,
            Message::Lease(lease) => return shared.mailbox.lease(self.index, lease),
        };
        match message {
            Message::Notify(notify) => {
                if let Some(parcel) = parcels.get_mut(worker(notify.handle)) {
                    parcel.notifies.push(notify);
                }
            }
            Message::Refreshed(refreshed) => {
                for inbox in refreshed.inboxes {
                    if let Some(parcel) = parcels.get_mut(worker(inbox.handle)) {
                        parcel.refreshed.push(inbox);
                    }
                }
            }
            message => {
                if let Some(parcel) = parcels.get_mut(worker(handle)) {
                    parcel.deliveries.push(Delivery::Logic(handle, message));
                }
            }
        }
    }
}

fn worker(handle: u64) -> usize {
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
                    if !shared.ticket_keys(self.index, &keys.public_keys) {
                        tracing::warn!("a scheduler told no usable ticket key; the ones known so far stay");
                    }
                }
                from_scheduler::Message::Redirect(answer) => {
                    if let Some(inlet) = shared.inlets.get(worker(answer.handle)) {
                        inlet.send(Delivery::Redirect(answer));
                    }
                }
                from_scheduler::Message::Policy(policy) => shared.mailbox.policy(policy),
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
