//! What was accepted lately under which `client_msg_id`, and its durable rows: in day windows, so that old ones go by
//! the window.

use prost::Message;
use ring::digest::{Context, SHA256};

use crate::{
    kv::{Direction, KvError, Space, View},
    queue::{Appended, DEDUP_MS, Fingerprint, QueueError, Record},
};

/// The space of dedup rows.
pub(super) const DEDUP: Space = Space(0);

/// Bytes of a row's key: its window and its name.
pub(super) const KEY: usize = 18;

/// What was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) partition: u16,
    pub(super) offset: u64,
    pub(super) message_id: u64,
    pub(super) conversation_id: u64,
    pub(super) at_ms: i64,
    pub(super) fingerprint: Fingerprint,
    /// The queue's own time when it was accepted, for its age: unlike `at_ms` it never goes back with the clock, so
    /// that a name accepted after such a step is as old as it looks.
    pub(super) noted_ms: i64,
}

/// The same as a row.
#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(uint32, tag = "1")]
    partition: u32,
    #[prost(uint64, tag = "2")]
    offset: u64,
    #[prost(uint64, tag = "3")]
    message_id: u64,
    #[prost(uint64, tag = "4")]
    conversation_id: u64,
    #[prost(int64, tag = "5")]
    at_ms: i64,
    #[prost(bytes = "vec", tag = "6")]
    fingerprint: Vec<u8>,
    #[prost(int64, tag = "7")]
    noted_ms: i64,
}

impl Seen {
    /// What to answer to a message of this conversation and fingerprint that comes under the same name.
    pub(super) fn answer(
        &self,
        conversation_id: u64,
        fingerprint: Fingerprint,
    ) -> Result<Appended, QueueError> {
        let same = self.conversation_id == conversation_id && self.fingerprint == fingerprint;
        if same { Ok(self.appended(true)) } else { Err(QueueError::Conflict) }
    }

    pub(super) fn appended(&self, duplicate: bool) -> Appended {
        Appended {
            partition: self.partition,
            offset: self.offset,
            message_id: self.message_id,
            conversation_id: self.conversation_id,
            at_ms: self.at_ms,
            duplicate,
        }
    }

    /// Whether its name still means it.
    pub(super) fn holds(&self, now_ms: i64) -> bool {
        now_ms - self.noted_ms < DEDUP_MS
    }

    /// The window its row is in.
    pub(super) fn window(&self) -> u16 {
        window(self.noted_ms)
    }

    /// The row's value.
    pub(super) fn row(&self) -> Vec<u8> {
        let row = Row {
            partition: self.partition.into(),
            offset: self.offset,
            message_id: self.message_id,
            conversation_id: self.conversation_id,
            at_ms: self.at_ms,
            fingerprint: self.fingerprint.to_vec(),
            noted_ms: self.noted_ms,
        };
        row.encode_to_vec()
    }
}

impl TryFrom<Row> for Seen {
    type Error = KvError;

    fn try_from(row: Row) -> Result<Self, KvError> {
        let wrong = |what: &str| KvError { action: KvError::DECODE, detail: format!("a dedup row's {what}") };
        Ok(Self {
            partition: row.partition.try_into().map_err(|_| wrong("partition"))?,
            offset: row.offset,
            message_id: row.message_id,
            conversation_id: row.conversation_id,
            at_ms: row.at_ms,
            fingerprint: row.fingerprint.try_into().map_err(|_| wrong("fingerprint"))?,
            noted_ms: row.noted_ms,
        })
    }
}

/// Which message of which sender: 16 bytes of SHA-256 of both. Keys of this length are kept inline by the engine and
/// differ in their first bytes, which makes a lookup a third as long as with the texts themselves.
pub(super) type Name = [u8; 16];

/// The name of a record.
pub(super) fn name(record: &Record) -> Name {
    let mut hash = Context::new(&SHA256);
    hash.update(record.sender.as_bytes());
    hash.update(&[0]);
    hash.update(record.client_msg_id.as_bytes());
    *hash.finish().as_ref().first_chunk().expect("SHA-256 has 32 bytes")
}

/// The key of a row.
pub(super) fn key(window: u16, name: &Name) -> [u8; KEY] {
    let mut key = [0; KEY];
    key[..2].copy_from_slice(&window.to_be_bytes());
    key[2..].copy_from_slice(name);
    key
}

/// Window and name of a row's key.
pub(super) fn parts(key: &[u8]) -> Option<(u16, Name)> {
    let (window, name) = key.split_first_chunk()?;
    Some((u16::from_be_bytes(*window), name.try_into().ok()?))
}

/// The windows that a name accepted within [`DEDUP_MS`] before `now_ms` (the queue's own time) can be in: this one and the
/// one before it, since they are as long as the promise.
pub(super) fn windows(now_ms: i64) -> [u16; 2] {
    [window(now_ms), window(now_ms).saturating_sub(1)]
}

/// The row of this window, if its name still means it.
pub(super) fn find(view: &dyn View, window: u16, name: &Name, now_ms: i64) -> Result<Option<Seen>, KvError> {
    let Some(bytes) = view.get(DEDUP, &key(window, name))? else { return Ok(None) };
    let seen = Seen::try_from(crate::kv::decode::<Row>(bytes)?)?;
    Ok(Some(seen).filter(|seen| seen.holds(now_ms)))
}

/// Where the next purge goes on, so that it does not walk over the tombstones of those before.
#[derive(Debug, Default)]
pub(super) struct Purged {
    end: [u8; 2],
    through: Vec<u8>,
}

/// Keys of rows in windows that nothing looks at any more: at most `limit`, after those that `purged` remembers. It
/// remembers these then.
pub(super) fn expired(
    view: &dyn View,
    now_ms: i64,
    limit: usize,
    purged: &mut Purged,
) -> Result<Vec<Vec<u8>>, KvError> {
    let end = window(now_ms).saturating_sub(1).to_be_bytes();
    if purged.end != end {
        // Once a day from the beginning: a clock that was ahead may have let rows come in behind.
        *purged = Purged { end, through: Vec::new() };
    }
    let mut from = purged.through.clone();
    // The first key after it.
    from.push(0);
    let mut keys = Vec::new();
    view.scan(DEDUP, &from, &end, Direction::Forward, &mut |key, _| {
        keys.push(key.to_vec());
        if keys.len() < limit {
            std::ops::ControlFlow::Continue(())
        } else {
            std::ops::ControlFlow::Break(())
        }
    })?;
    if let Some(last) = keys.last() {
        purged.through.clone_from(last);
    }
    Ok(keys)
}

/// In 16 bits: until the year 2149.
fn window(now_ms: i64) -> u16 {
    u16::try_from(now_ms.div_euclid(DEDUP_MS).max(0)).unwrap_or(u16::MAX)
}
