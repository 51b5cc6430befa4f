//! Records that outlive a scheduler: every gateway and every scheduler holds them, and whoever hears of a newer one passes it
//! on. Pure.
//!
//! Of one kind and key the greater version stays, and of two under one version the longer text, then the greater: so it does
//! not matter in which order, how often and by which way records come (a last-writer-wins map, Shapiro et al., "A
//! comprehensive study of Convergent and Commutative Replicated Data Types", 2011). Of each kind a bounded number is kept:
//! those that expire last, and of those that expire together the newest. That too does not depend on the order.
//!
//! A record expires no sooner than any other that was held of its key: else who was away would come back with the older one
//! when the newer is forgotten.

mod revoked;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use prost::Message;
use ring::digest::{SHA256, digest};
use thiserror::Error;

pub use self::revoked::Revoked;
use crate::wire::{Carried, CarriedRecord, Drain, PolicyText, Revocation, RuleStop};

/// Kinds there may be, numbered from 1. A newer role may know more of them; all are carried.
pub const KINDS: usize = 8;

/// Records of one kind, at the most.
pub const RECORDS_EACH: usize = 65_536;

/// Bytes of the records of one kind, at the most.
pub const BYTES_EACH: usize = 16 * 1024 * 1024;

/// Records that are merged under one hold of a lock: about a millisecond's work.
pub const PIECE: usize = 256;

/// Bytes of the records in one message, at the most, but for a single one that is longer.
pub const MESSAGE: usize = 4 * 1024 * 1024;

/// Longest key, in bytes: two ids and a word.
pub const KEY: usize = 192;

/// Longest value, in bytes: the largest policy, and room around it.
pub const VALUE: usize = BYTES_EACH / 8;

/// What a record says, where its kind is known.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// The policy in force.
    Policy(PolicyText),
    /// A gray rule that is stopped, or goes on.
    RuleStop(RuleStop),
    /// A gateway that is emptied, or serves again.
    Drain(Drain),
    /// Credentials that are void.
    Revocation(Revocation),
}

/// The number of a kind.
pub mod kind {
    /// [`super::Record::Policy`].
    pub const POLICY: u32 = 1;
    /// [`super::Record::RuleStop`].
    pub const RULE_STOP: u32 = 2;
    /// [`super::Record::Drain`].
    pub const DRAIN: u32 = 3;
    /// [`super::Record::Revocation`].
    pub const REVOCATION: u32 = 4;
}

/// What kinds are called, for a metric; the last is for those that are not known here.
pub const KIND_NAMES: [&str; 5] = ["policy", "rule_stop", "drain", "revocation", "other"];

impl Record {
    /// Makes it a record to carry. `expires_at_ms` is by the wall clock; 0: never.
    #[must_use]
    pub fn carried(&self, version: u64, expires_at_ms: i64) -> CarriedRecord {
        let (kind, key, value) = match self {
            Self::Policy(policy) => (kind::POLICY, String::new(), policy.encode_to_vec()),
            Self::RuleStop(stop) => {
                (kind::RULE_STOP, stop_key(&stop.rule_id, &stop.rule_hash), stop.encode_to_vec())
            }
            Self::Drain(drain) => (kind::DRAIN, drain.gateway_id.clone(), drain.encode_to_vec()),
            Self::Revocation(revoked) => {
                let key = revocation_key(&revoked.user_id, &revoked.device_id);
                (kind::REVOCATION, key, revoked.encode_to_vec())
            }
        };
        CarriedRecord { kind, key, version, expires_at_ms, value }
    }

    /// What a carried record says; none: a kind that is not known here, or a value that does not read.
    #[must_use]
    pub fn read(carried: &CarriedRecord) -> Option<Self> {
        let value = carried.value.as_slice();
        match carried.kind {
            kind::POLICY => PolicyText::decode(value).ok().map(Self::Policy),
            kind::RULE_STOP => RuleStop::decode(value).ok().map(Self::RuleStop),
            kind::DRAIN => Drain::decode(value).ok().map(Self::Drain),
            kind::REVOCATION => Revocation::decode(value).ok().map(Self::Revocation),
            _ => None,
        }
    }
}

/// Records, for a disk.
#[must_use]
pub fn to_bytes(records: Vec<CarriedRecord>) -> Vec<u8> {
    Carried { records, ..Carried::default() }.encode_to_vec()
}

/// The records of [`to_bytes`].
///
/// # Errors
/// What does not read.
pub fn from_bytes(bytes: &[u8]) -> Result<Vec<CarriedRecord>, Damaged> {
    Ok(Carried::decode(bytes)?.records)
}

/// Bytes that are no records.
#[derive(Debug, Error)]
#[error("damaged: {0}")]
pub struct Damaged(#[from] prost::DecodeError);

/// What a digest of no records is.
pub const EMPTY: u64 = 0;

/// The records that somebody holds.
#[derive(Debug, Default)]
pub struct Store {
    kinds: [Kind; KINDS],
    /// Those of [`kind::REVOCATION`], to be read without this store.
    revoked: Arc<Revoked>,
    /// Records that were let go of for lack of room, as in [`KIND_NAMES`].
    evicted: [u64; KIND_NAMES.len()],
}

#[derive(Debug, Default)]
struct Kind {
    records: BTreeMap<String, Held>,
    /// Who goes first when there are too many, and when its time is over.
    order: BTreeSet<Rank>,
    bytes: usize,
    digest: u64,
}

/// When it expires, its version and key.
type Rank = (Ends, u64, String);

#[derive(Debug)]
struct Held {
    record: CarriedRecord,
    hash: u64,
}

/// When a record expires, those that never do last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ends {
    At(i64),
    Never,
}

impl Ends {
    fn of(record: &CarriedRecord) -> Self {
        if record.expires_at_ms == 0 { Self::Never } else { Self::At(record.expires_at_ms) }
    }
}

impl Store {
    /// Takes records in, and returns those that were news, as they are held now: to be acted on and passed on. What has expired
    /// at `now_ms`, is of no possible kind, or is larger than may be, is left out.
    pub fn merge(&mut self, records: Vec<CarriedRecord>, now_ms: i64) -> Vec<CarriedRecord> {
        self.expire(now_ms);
        let mut news = Vec::new();
        for record in records {
            let expired = record.expires_at_ms != 0 && record.expires_at_ms <= now_ms;
            let fits = record.key.len() <= KEY && record.value.len() <= VALUE;
            if !expired && fits {
                news.extend(self.put(record));
            }
        }
        news
    }

    /// The record as it is held now, if that is news.
    fn put(&mut self, record: CarriedRecord) -> Option<CarriedRecord> {
        let (number, key) = (record.kind, record.key.clone());
        let kind = self.kind_mut(number)?;
        let record = kind.joined(record)?;
        let before = kind.remove(&key);
        kind.insert(record);
        let evicted = kind.evict();
        let held = kind.records.get(&key).map(|held| held.record.clone());
        if number == kind::REVOCATION {
            before.iter().chain(&evicted).for_each(|gone| self.revoked.remove(gone));
            held.iter().for_each(|held| self.revoked.put(held));
        }
        let at = (number as usize).min(KIND_NAMES.len()) - 1;
        self.evicted[at] += evicted.len() as u64;
        held
    }

    /// Lets go of what has expired.
    pub fn expire(&mut self, now_ms: i64) {
        for (number, kind) in (1..).zip(&mut self.kinds) {
            while let Some((Ends::At(at), _, key)) = kind.order.first()
                && *at <= now_ms
            {
                let key = key.clone();
                let gone = kind.remove(&key);
                if number == kind::REVOCATION {
                    gone.iter().for_each(|gone| self.revoked.remove(gone));
                }
            }
        }
    }

    /// What is revoked, to be read without this store.
    #[must_use]
    pub fn revoked(&self) -> Arc<Revoked> {
        Arc::clone(&self.revoked)
    }

    /// How many records were let go of for lack of room, since it was made: of each kind, as in [`KIND_NAMES`].
    #[must_use]
    pub fn evicted(&self) -> [u64; KIND_NAMES.len()] {
        self.evicted
    }

    /// The record of that kind and key.
    #[must_use]
    pub fn get(&self, kind: u32, key: &str) -> Option<&CarriedRecord> {
        self.kind(kind)?.records.get(key).map(|held| &held.record)
    }

    /// Every record of a kind, in the order of their keys.
    pub fn of_kind(&self, kind: u32) -> impl Iterator<Item = &CarriedRecord> {
        self.kind(kind).into_iter().flat_map(|kind| kind.records.values()).map(|held| &held.record)
    }

    /// Every record.
    pub fn all(&self) -> impl Iterator<Item = &CarriedRecord> {
        self.kinds.iter().flat_map(|kind| kind.records.values()).map(|held| &held.record)
    }

    /// How many records there are of a kind.
    #[must_use]
    pub fn count(&self, kind: u32) -> usize {
        self.kind(kind).map_or(0, |kind| kind.records.len())
    }

    /// One number for each kind, from 1: two that hold the same have the same.
    #[must_use]
    pub fn digests(&self) -> Vec<u64> {
        self.kinds.iter().map(|kind| kind.digest).collect()
    }

    /// All records of these kinds, each in messages of [`MESSAGE`] bytes, to be answered by [`Store::missing`].
    #[must_use]
    pub fn whole(&self, kinds: &[u32]) -> Vec<Carried> {
        let mut all = Vec::new();
        for number in kinds {
            let Some(kind) = self.kind(*number) else { continue };
            let mut pieces = messages(kind.records.values().map(|held| held.record.clone()));
            if pieces.is_empty() {
                pieces.push(Carried::default());
            }
            let firsts: Vec<_> = pieces.iter().skip(1).filter_map(first_key).collect();
            for (at, piece) in pieces.iter_mut().enumerate() {
                piece.whole = 1 << number;
                // Together they span all keys.
                piece.from = if at == 0 { String::new() } else { firsts[at - 1].clone() };
                piece.until = firsts.get(at).cloned().unwrap_or_default();
            }
            all.extend(pieces);
        }
        all
    }

    /// What somebody lacks who said all that he holds of a kind, or of a part of its keys; to be asked after his records were merged.
    #[must_use]
    pub fn missing(&self, said: &Said) -> Vec<CarriedRecord> {
        let asked = (1..).zip(&self.kinds).filter(|(number, _)| said.whole & (1 << *number) != 0);
        let of_kind = asked.flat_map(|(_, kind)| {
            let from = kind.records.range(said.from.clone()..);
            from.take_while(|(key, _)| said.until.is_empty() || **key < said.until)
        });
        of_kind
            .filter(|(key, held)| said.hashes.get(&(held.record.kind, (*key).clone())) != Some(&held.hash))
            .map(|(_, held)| held.record.clone())
            .collect()
    }

    fn kind(&self, kind: u32) -> Option<&Kind> {
        self.kinds.get(usize::try_from(kind).ok()?.checked_sub(1)?)
    }

    fn kind_mut(&mut self, kind: u32) -> Option<&mut Kind> {
        self.kinds.get_mut(usize::try_from(kind).ok()?.checked_sub(1)?)
    }
}

impl Kind {
    /// What is to be held once the record is heard of; none: what is held already.
    fn joined(&self, mut record: CarriedRecord) -> Option<CarriedRecord> {
        let Some(Held { record: held, .. }) = self.records.get(&record.key) else { return Some(record) };
        let ends = Ends::of(held).max(Ends::of(&record));
        let content = |record: &CarriedRecord| {
            let record = CarriedRecord { expires_at_ms: 0, ..record.clone() };
            (record.encoded_len(), record.encode_to_vec())
        };
        let newer =
            record.version.cmp(&held.version).then_with(|| content(&record).cmp(&content(held))).is_gt();
        if !newer && ends == Ends::of(held) {
            return None;
        }
        if !newer {
            record = held.clone();
        }
        record.expires_at_ms = match ends {
            Ends::At(ms) => ms,
            Ends::Never => 0,
        };
        Some(record)
    }

    /// Takes one in of whose key there is none.
    fn insert(&mut self, record: CarriedRecord) {
        let (key, hash) = (record.key.clone(), hash(&record));
        self.order.insert(rank(&record));
        self.bytes += record.encoded_len();
        self.digest ^= hash;
        self.records.insert(key, Held { record, hash });
    }

    /// Lets go of those that are too many; which.
    fn evict(&mut self) -> Vec<CarriedRecord> {
        let mut evicted = Vec::new();
        while (self.records.len() > RECORDS_EACH || self.bytes > BYTES_EACH)
            && let Some((_, _, first)) = self.order.first().cloned()
        {
            evicted.extend(self.remove(&first));
        }
        evicted
    }

    fn remove(&mut self, key: &str) -> Option<CarriedRecord> {
        let Held { record, hash } = self.records.remove(key)?;
        self.bytes -= record.encoded_len();
        self.digest ^= hash;
        self.order.remove(&rank(&record));
        Some(record)
    }
}

fn rank(record: &CarriedRecord) -> Rank {
    (Ends::of(record), record.version, record.key.clone())
}

/// The key of [`Record::RuleStop`]: a stop is of one definition of a rule, and another one's leaves it alone.
#[must_use]
pub fn stop_key(rule_id: &str, rule_hash: &str) -> String {
    format!("{rule_id}/{rule_hash}")
}

/// What somebody said that he holds of a kind: made without the store that answers him, since it takes a while.
#[derive(Debug)]
pub struct Said {
    whole: u32,
    from: String,
    until: String,
    hashes: HashMap<(u32, String), u64>,
}

impl Said {
    /// None: he did not say all of anything.
    #[must_use]
    pub fn of(carried: &Carried) -> Option<Self> {
        let held = |record: &CarriedRecord| ((record.kind, record.key.clone()), hash(record));
        (carried.whole != 0).then(|| Self {
            whole: carried.whole,
            from: carried.from.clone(),
            until: carried.until.clone(),
            hashes: carried.records.iter().map(held).collect(),
        })
    }
}

/// Records in messages of [`MESSAGE`] bytes.
#[must_use]
pub fn messages(records: impl IntoIterator<Item = CarriedRecord>) -> Vec<Carried> {
    let mut all: Vec<Carried> = Vec::new();
    let mut bytes = 0;
    for record in records {
        let length = record.encoded_len();
        match all.last_mut() {
            Some(last) if bytes + length <= MESSAGE => last.records.push(record),
            _ => {
                bytes = 0;
                all.push(Carried { records: vec![record], ..Carried::default() });
            }
        }
        bytes += length;
    }
    all
}

/// Records in pieces of [`PIECE`], each to be merged under a lock of its own.
pub fn pieces(records: Vec<CarriedRecord>) -> impl Iterator<Item = Vec<CarriedRecord>> {
    let mut rest = records.into_iter();
    std::iter::from_fn(move || {
        let piece: Vec<_> = rest.by_ref().take(PIECE).collect();
        (!piece.is_empty()).then_some(piece)
    })
}

fn first_key(carried: &Carried) -> Option<String> {
    carried.records.first().map(|record| record.key.clone())
}

/// No id has a slash.
fn revocation_key(user_id: &str, device_id: &str) -> String {
    format!("{user_id}/{device_id}")
}

fn hash(record: &CarriedRecord) -> u64 {
    let digest = digest(&SHA256, &record.encode_to_vec());
    digest.as_ref().first_chunk().map_or(EMPTY, |head| u64::from_be_bytes(*head))
}

#[cfg(test)]
mod tests;
