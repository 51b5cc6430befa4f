//! The records that outlive this scheduler: it holds them, its gateways hold them, and with a data directory its disk does.
//!
//! A gateway's reports tell the digests of what it holds. It is told what was news since its last report; where the digests
//! differ all the same, it is told everything of those kinds and answers with what this scheduler lacks. So one that has
//! just started knows within a report interval what the gateways carry, and a lost message is made up for.

pub(crate) mod disk;

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use berth_proto::{
    carry::{EMPTY, Record, Store},
    wire::{Carried, CarriedRecord},
};
use tokio::sync::watch;

use crate::core::Core;

/// News that a gateway may be behind; one that is further behind is told everything.
const NEWS: usize = 4_096;

/// Reports between two times that a gateway is told everything, while the digests go on differing: ten seconds. They do for
/// a while when clocks differ and something expires, and for longer if a role does not keep what it is told.
const REPORTS_BETWEEN: u32 = 20;

/// What this scheduler holds.
pub(crate) struct Carrier {
    held: Mutex<Held>,
    /// Grows with every change, for whoever writes them to disk.
    changed: watch::Sender<u64>,
    /// The change up to which the disk has them; without a data directory always the newest.
    saved: watch::Sender<u64>,
}

#[derive(Default)]
struct Held {
    store: Store,
    /// Kind and key of what changed, oldest first.
    news: VecDeque<(u32, String)>,
    /// The number of the next one.
    next: u64,
}

/// What a gateway was told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// News up to this number.
    next: u64,
    /// It has agreed before.
    agreed: bool,
    /// Reports in a row that differ.
    differing: u32,
}

impl Carrier {
    /// Without any records.
    pub fn new() -> Self {
        Self { held: Mutex::default(), changed: watch::Sender::new(0), saved: watch::Sender::new(0) }
    }

    /// Takes records in; returns those that were news.
    fn merge(&self, records: Vec<CarriedRecord>, now_ms: i64) -> Vec<CarriedRecord> {
        let mut held = self.lock();
        let news = held.store.merge(records, now_ms);
        for record in &news {
            held.news.push_back((record.kind, record.key.clone()));
            held.next += 1;
        }
        let over = held.news.len().saturating_sub(NEWS);
        held.news.drain(..over);
        if !news.is_empty() {
            self.changed.send_modify(|changes| *changes += 1);
        }
        news
    }

    /// Reads what is held.
    pub fn read<R>(&self, read: impl FnOnce(&Store) -> R) -> R {
        read(&self.lock().store)
    }

    /// What a gateway is to be told that holds records of these digests; `told` changes once it was, see [`Telling::done`].
    pub fn tell(&self, told: &Told, digests: &[u64], now_ms: i64) -> Telling {
        let mut held = self.lock();
        held.store.expire(now_ms);
        let behind = held.next - told.next;
        let news = usize::try_from(behind).unwrap_or(usize::MAX);
        let mut telling = Telling { carried: None, told: Told { next: held.next, ..*told } };
        let agree = held.store.digests().iter().enumerate().all(|(kind, own)| digest(digests, kind) == *own);
        if agree {
            (telling.told.agreed, telling.told.differing) = (true, 0);
            return telling;
        }
        telling.told.differing = told.differing.saturating_add(1);
        let everything = news > held.news.len()
            || if told.agreed { telling.told.differing == 2 } else { telling.told.differing == 1 }
            || telling.told.differing.is_multiple_of(REPORTS_BETWEEN);
        telling.carried = if everything {
            held.store.differing(digests)
        } else if news > 0 {
            let newest = held.news.iter().skip(held.news.len() - news);
            let records = newest.filter_map(|(kind, key)| held.store.get(*kind, key)).cloned().collect();
            Some(Carried { records, whole: 0 })
        } else {
            None
        };
        telling
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to say to a gateway, and what it was told once it has taken that.
pub(crate) struct Telling {
    pub carried: Option<Carried>,
    told: Told,
}

impl Telling {
    /// It was said, or there was nothing to say.
    pub fn done(self) -> Told {
        self.told
    }
}

fn digest(digests: &[u64], kind: usize) -> u64 {
    digests.get(kind).copied().unwrap_or(EMPTY)
}

impl Core {
    /// Takes records in, acts on those that are news, and has them told to every gateway with its next report.
    pub fn carry(&self, records: Vec<CarriedRecord>) {
        let news = self.carried.merge(records, self.clock.wall_ms());
        for record in news.iter().filter_map(Record::read) {
            self.news(record);
        }
    }

    /// The same, and returns when they are on disk, if there is a data directory.
    pub async fn carry_durably(&self, records: Vec<CarriedRecord>) {
        self.carry(records);
        let change = *self.carried.changed.borrow();
        // Its sender lives as long as this.
        let _ = self.carried.saved.subscribe().wait_for(|saved| *saved >= change).await;
    }

    /// Something is to be done about a record, from wherever it came: an operator, a gateway, the disk.
    pub fn news(&self, record: Record) {
        match record {
            Record::Policy(_) => self.policy_carried(),
            Record::RuleStop(stop) => self.stop_carried(&stop),
            Record::Drain(_) => self.drains_changed(),
            record @ Record::Revocation(_) => tracing::debug!(?record, "carried"),
        }
    }
}

#[cfg(test)]
mod tests;
