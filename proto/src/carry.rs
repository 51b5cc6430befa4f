//! Records that outlive a scheduler: every gateway and every scheduler holds them, and whoever hears of a newer one passes it
//! on. Pure.
//!
//! Of one kind and key the greater version stays, and of two under one version the longer text, then the greater: so it does
//! not matter in which order, how often and by which way records come (a last-writer-wins map, Shapiro et al., "A
//! comprehensive study of Convergent and Commutative Replicated Data Types", 2011). Of each kind a bounded number is kept:
//! those that expire last. That too does not depend on the order.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use ring::digest::{SHA256, digest};
use thiserror::Error;

use crate::wire::{Carried, CarriedRecord, Drain, PolicyText, Revocation, RuleStop};

/// Kinds there may be, numbered from 1. A newer role may know more of them; all are carried.
pub const KINDS: usize = 8;

/// Records of one kind, at the most.
pub const RECORDS_EACH: usize = 65_536;

/// Bytes of the records of one kind, at the most.
pub const BYTES_EACH: usize = 16 * 1024 * 1024;

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

/// The records of [`Store::to_bytes`].
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
}

#[derive(Debug, Default)]
struct Kind {
    records: BTreeMap<String, Held>,
    /// Who goes first when there are too many, and when its time is over.
    order: BTreeSet<(Ends, String)>,
    bytes: usize,
    digest: u64,
}

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
    /// Takes records in, and returns those that were news: to be acted on and passed on. What has expired at `now_ms`, is of
    /// no possible kind, or is larger than may be, is left out.
    pub fn merge(&mut self, records: Vec<CarriedRecord>, now_ms: i64) -> Vec<CarriedRecord> {
        self.expire(now_ms);
        let mut news = Vec::new();
        for record in records {
            let expired = record.expires_at_ms != 0 && record.expires_at_ms <= now_ms;
            let Some(kind) = self.kind_mut(record.kind) else { continue };
            let fits = record.key.len() <= KEY && record.value.len() <= VALUE;
            if !expired && fits && kind.put(record.clone()) {
                news.push(record);
            }
        }
        news
    }

    /// Lets go of what has expired.
    pub fn expire(&mut self, now_ms: i64) {
        for kind in &mut self.kinds {
            while let Some((Ends::At(at), key)) = kind.order.first()
                && *at <= now_ms
            {
                let key = key.clone();
                kind.remove(&key);
            }
        }
    }

    /// The record of that kind and key.
    #[must_use]
    pub fn get(&self, kind: u32, key: &str) -> Option<&CarriedRecord> {
        self.kind(kind)?.records.get(key).map(|held| &held.record)
    }

    /// The revocation that voids what that user and device identified themselves with, if one does: `auth_issued_at_ms` as in
    /// their ticket.
    #[must_use]
    pub fn revoked(&self, user_id: &str, device_id: &str, auth_issued_at_ms: i64) -> Option<Revocation> {
        if self.count(kind::REVOCATION) == 0 {
            return None;
        }
        let of = |device_id: &str| match Record::read(
            self.get(kind::REVOCATION, &revocation_key(user_id, device_id))?,
        ) {
            Some(Record::Revocation(revoked)) if auth_issued_at_ms < revoked.not_before_ms => Some(revoked),
            _ => None,
        };
        of("").or_else(|| of(device_id))
    }

    /// Every record of a kind, in the order of their keys.
    pub fn of_kind(&self, kind: u32) -> impl Iterator<Item = &CarriedRecord> {
        self.kind(kind).into_iter().flat_map(|kind| kind.records.values()).map(|held| &held.record)
    }

    /// Every record.
    pub fn all(&self) -> impl Iterator<Item = &CarriedRecord> {
        self.kinds.iter().flat_map(|kind| kind.records.values()).map(|held| &held.record)
    }

    /// Every record, for a disk.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        Carried { records: self.all().cloned().collect(), whole: 0 }.encode_to_vec()
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

    /// All records of the kinds of which the other's digest is another, to be answered by [`Store::missing`]; none: they agree.
    #[must_use]
    pub fn differing(&self, digests: &[u64]) -> Option<Carried> {
        let other = |index: usize| digests.get(index).copied().unwrap_or(EMPTY);
        let mut whole = Carried::default();
        for (index, kind) in self.kinds.iter().enumerate() {
            if kind.digest != other(index) {
                whole.whole |= 1 << (index + 1);
                whole.records.extend(kind.records.values().map(|held| held.record.clone()));
            }
        }
        (whole.whole != 0).then_some(whole)
    }

    /// What somebody lacks who said all that he holds of some kinds; to be asked after his records were merged.
    #[must_use]
    pub fn missing(&self, whole: &Carried) -> Vec<CarriedRecord> {
        let theirs: BTreeSet<(u32, &str, u64)> =
            whole.records.iter().map(|record| (record.kind, record.key.as_str(), hash(record))).collect();
        let asked = self.kinds.iter().enumerate().filter(|(index, _)| whole.whole & (1 << (index + 1)) != 0);
        let ours = asked.flat_map(|(_, kind)| kind.records.values());
        ours.filter(|held| !theirs.contains(&(held.record.kind, held.record.key.as_str(), held.hash)))
            .map(|held| held.record.clone())
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
    /// Whether it is newer than what was held, and still held after those that are too many went.
    fn put(&mut self, record: CarriedRecord) -> bool {
        let rank = |record: &CarriedRecord| (record.version, record.encoded_len(), record.encode_to_vec());
        if self.records.get(&record.key).is_some_and(|held| rank(&held.record) >= rank(&record)) {
            return false;
        }
        self.remove(&record.key);
        let (key, hash) = (record.key.clone(), hash(&record));
        self.order.insert((Ends::of(&record), key.clone()));
        self.bytes += record.encoded_len();
        self.digest ^= hash;
        self.records.insert(key.clone(), Held { record, hash });
        while (self.records.len() > RECORDS_EACH || self.bytes > BYTES_EACH)
            && let Some((_, first)) = self.order.first().cloned()
        {
            self.remove(&first);
        }
        self.records.contains_key(&key)
    }

    fn remove(&mut self, key: &str) {
        let Some(Held { record, hash }) = self.records.remove(key) else { return };
        self.bytes -= record.encoded_len();
        self.digest ^= hash;
        self.order.remove(&(Ends::of(&record), record.key));
    }
}

/// The key of [`Record::RuleStop`]: a stop is of one definition of a rule, and another one's leaves it alone.
#[must_use]
pub fn stop_key(rule_id: &str, rule_hash: &str) -> String {
    format!("{rule_id}/{rule_hash}")
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
