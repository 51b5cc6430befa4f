//! The records that outlive this scheduler: it holds them, its gateways hold them, and with a data directory its disk does.
//!
//! A gateway's reports tell the digests of what it holds, by kind. It is told what was news since its last report. Digests that are
//! those of now, or of the last telling, say that nothing is missing but news, and those of an earlier telling that more are on
//! their way. Where other ones last for seconds, something was lost: the gateway is told everything of those kinds and answers
//! with what this scheduler lacks. So it is at its first report on a link: a scheduler that has just started knows within a
//! report interval what the gateways carry.

pub(crate) mod disk;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_proto::{
    carry::{self, BYTES_EACH, EMPTY, KINDS, RECORDS_EACH, Record, Revoked, Store},
    wire::{Carried, CarriedRecord},
};
use thiserror::Error;
use tokio::sync::watch;

use crate::{admission::Now, core::Core};

/// An operator is answered after this, though the disk has not taken what he ordered.
const DISK: Duration = Duration::from_secs(2);

/// News that a gateway may be behind; one that is further behind is told everything.
const NEWS: usize = 4_096;

/// Digests that differ for so long mean that something was lost, in milliseconds: news are on their way for far less.
const LOST_AFTER_MS: i64 = 5_000;

/// Between two times that a gateway is told everything of a kind while the digests go on differing, in milliseconds: they do for a
/// while when clocks differ and something expires, and for longer if a role does not keep what it is told.
const WHOLE_EVERY_MS: i64 = 30_000;

/// Gateways that a scheduler which holds nothing asks for everything at once: what one has the others have as well, most of the time,
/// and it comes from all of them as fast as they attach. Who differs after that is asked as one that lost something.
const ASKED_FIRST: u8 = 3;

/// Tellings whose digests are remembered: those of some seconds.
const TELLINGS: usize = 8;

/// A record was let go of at once, or is larger than may be.
#[derive(Debug, PartialEq, Eq, Error)]
#[error(
    "there is no room for it: of its kind {RECORDS_EACH} records or {BYTES_EACH} bytes are carried that expire later or are newer; see berth_scheduler_carried_evicted_total"
)]
pub(crate) struct NoRoom;

/// What this scheduler holds.
pub(crate) struct Carrier {
    held: Mutex<Held>,
    /// What of it is revoked, to be read without waiting for anybody.
    pub revoked: Arc<Revoked>,
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
    /// Gateways that were asked for everything of a kind, from 1, while nothing of it is held.
    asked: [u8; KINDS],
}

/// What a gateway was told.
#[derive(Debug, Default, Clone)]
pub(crate) struct Told {
    /// News up to this number.
    next: u64,
    /// The digests as they were at the last tellings, newest last, and the number of each.
    before: VecDeque<(u64, Vec<u64>)>,
    /// Of each kind, from 1.
    kinds: [Differing; KINDS],
    /// It has reported on this link.
    met: bool,
}

/// How long a kind has differed.
#[derive(Debug, Default, Clone, Copy)]
struct Differing {
    since_ms: Option<i64>,
    /// The gateway was at this telling then.
    at: u64,
    /// It was told everything.
    whole_ms: Option<i64>,
}

impl Differing {
    /// The gateway's digest is that of a telling: it comes on as long as that is a later one each time.
    fn recognized(&mut self, telling: u64, now_ms: i64) {
        if telling > self.at {
            (self.at, self.since_ms) = (telling, Some(now_ms));
        }
    }

    /// Whether everything is to be told now.
    fn due(&mut self, first: bool, now_ms: i64) -> bool {
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        let lost = now_ms - since_ms >= LOST_AFTER_MS;
        let rested = self.whole_ms.is_none_or(|whole_ms| now_ms - whole_ms >= WHOLE_EVERY_MS);
        let due = first || lost && rested;
        if due {
            self.whole_ms = Some(now_ms);
        }
        due
    }
}

impl Carrier {
    /// Without any records.
    pub fn new() -> Self {
        let held = Held::default();
        let revoked = held.store.revoked();
        Self { held: Mutex::new(held), revoked, changed: watch::Sender::new(0), saved: watch::Sender::new(0) }
    }

    /// Takes records in, some at a time; returns those that were news.
    fn merge(&self, records: Vec<CarriedRecord>, now_ms: i64) -> Vec<CarriedRecord> {
        let mut all = Vec::new();
        for piece in carry::pieces(records) {
            let mut held = self.lock();
            let news = held.store.merge(piece, now_ms);
            for record in &news {
                held.news.push_back((record.kind, record.key.clone()));
                held.next += 1;
            }
            let over = held.news.len().saturating_sub(NEWS);
            held.news.drain(..over);
            all.extend(news);
        }
        if !all.is_empty() {
            self.changed.send_modify(|changes| *changes += 1);
        }
        all
    }

    /// Returns when everything that is held now is as safe as it will be.
    pub async fn saved(&self) {
        let change = *self.changed.borrow();
        // It is not closed: this is its sender.
        let _ = self.saved.subscribe().wait_for(|saved| *saved >= change).await;
    }

    /// Reads what is held.
    pub fn read<R>(&self, read: impl FnOnce(&Store) -> R) -> R {
        read(&self.lock().store)
    }

    /// What a gateway is to be told that holds records of these digests; `told` changes once it was, see [`Telling::done`].
    /// `now` on both clocks. A gateway that tells no digests at all is older than the records, and would not keep them.
    pub fn tell(&self, told: &Told, digests: &[u64], now: Now) -> Telling {
        if digests.is_empty() {
            return Telling { carried: Vec::new(), told: told.clone() };
        }
        let mut held = self.lock();
        held.store.expire(now.wall_ms);
        let own = held.store.digests();
        let behind = usize::try_from(held.next - told.next).unwrap_or(usize::MAX);
        let far = behind > held.news.len();
        let mut next = Told { next: held.next, met: true, ..told.clone() };
        let (mut whole, mut agree) = (Vec::new(), true);
        let newest = told.before.back().map_or(0, |(number, _)| *number);
        for (index, (kind, differing)) in (1..).zip(&mut next.kinds).enumerate() {
            let theirs = digest(digests, index);
            let agrees = theirs == digest(&own, index);
            agree &= agrees;
            let mut tellings = told.before.iter().rev();
            let at = tellings.find(|(_, before)| digest(before, index) == theirs).map(|(number, _)| *number);
            if agrees || at == Some(newest) && !far {
                // What is lost after they agreed is another matter than what was told whole before.
                let whole_ms = differing.whole_ms.filter(|_| !agrees);
                *differing = Differing { at: newest, whole_ms, since_ms: None };
                continue;
            }
            at.into_iter().for_each(|at| differing.recognized(at, now.monotonic_ms));
            let asked = &mut held.asked[index];
            let enough = !told.met && digest(&own, index) == EMPTY && *asked >= ASKED_FIRST;
            if differing.due((!told.met || far) && !enough, now.monotonic_ms) {
                *asked = asked.saturating_add(1);
                whole.push(kind);
            }
        }
        let mut carried = if agree { Vec::new() } else { held.newest(behind, &whole) };
        carried.extend(held.store.whole(&whole));
        if told.before.back().is_none_or(|(_, before)| *before != own) {
            next.before.push_back((newest + 1, own));
            let over = next.before.len().saturating_sub(TELLINGS);
            next.before.drain(..over);
        }
        Telling { carried, told: next }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// The last so many news, but for those of kinds that are told whole.
    fn newest(&self, behind: usize, whole: &[u32]) -> Vec<Carried> {
        let newest = self.news.iter().skip(self.news.len().saturating_sub(behind));
        let told = newest.filter(|(kind, _)| !whole.contains(kind));
        carry::messages(told.filter_map(|(kind, key)| self.store.get(*kind, key)).cloned())
    }
}

/// What to say to a gateway, and what it was told once it has taken that.
pub(crate) struct Telling {
    pub carried: Vec<Carried>,
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
        self.metrics.carried_evicted(self.carried.read(Store::evicted));
        for record in news.iter().filter_map(Record::read) {
            self.news(record);
        }
    }

    /// The same, and returns when they are on disk, if there is a data directory; false: they are not yet, after [`DISK`]. They
    /// are in force and told all the same, and written once the disk takes them.
    ///
    /// # Errors
    /// When there was no room for one: it is not in force.
    pub async fn carry_durably(&self, records: Vec<CarriedRecord>) -> Result<bool, NoRoom> {
        let keys: Vec<_> = records.iter().map(|record| (record.kind, record.key.clone())).collect();
        self.carry(records);
        if keys.iter().any(|(kind, key)| self.carried.read(|store| store.get(*kind, key).is_none())) {
            return Err(NoRoom);
        }
        let saved = async {
            self.carried.saved().await;
            // What was put in force by these records is there by now.
            self.history.saved().await;
        };
        Ok(tokio::time::timeout(DISK, saved).await.is_ok())
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
