//! What was accepted lately under which `client_msg_id`: rows in day windows, so that old ones go by the window.

use ring::digest::{Context, SHA256};

use crate::{
    kv::{Direction, KvError, Space, View},
    queue::{Appended, DEDUP_MS, Fingerprint, QueueError, Record},
};

/// The space of dedup rows.
pub(super) const DEDUP: Space = Space(1);

/// What was accepted.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Seen {
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
    /// The queue's own time when it was accepted, for its age: unlike `at_ms` it never goes back with the clock, so
    /// that a name accepted after such a step is as old as it looks.
    #[prost(int64, tag = "7")]
    noted_ms: i64,
}

impl Seen {
    pub(super) fn of(
        record: &Record,
        fingerprint: Fingerprint,
        (partition, offset): (u16, u64),
        noted_ms: i64,
    ) -> Self {
        Self {
            partition: partition.into(),
            offset,
            message_id: record.message_id,
            conversation_id: record.conversation_id,
            at_ms: record.at_ms,
            fingerprint: fingerprint.to_vec(),
            noted_ms,
        }
    }

    /// What to answer to `record`, which comes under the same name.
    pub(super) fn answer(&self, record: &Record, fingerprint: Fingerprint) -> Result<Appended, QueueError> {
        let same = self.conversation_id == record.conversation_id && self.fingerprint == fingerprint;
        if same { Ok(self.appended(true)) } else { Err(QueueError::Conflict) }
    }

    pub(super) fn appended(&self, duplicate: bool) -> Appended {
        Appended {
            partition: u16::try_from(self.partition).expect("written from a u16"),
            offset: self.offset,
            message_id: self.message_id,
            conversation_id: self.conversation_id,
            at_ms: self.at_ms,
            duplicate,
        }
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

/// The key of a row that is written now.
pub(super) fn key(name: &Name, now_ms: i64) -> Vec<u8> {
    at(window(now_ms), name)
}

/// What was accepted under this name within [`DEDUP_MS`] before `now_ms` (the queue's own time): this window's row, or the one of the window
/// before it.
pub(super) fn find(view: &dyn View, name: &Name, now_ms: i64) -> Result<Option<Seen>, KvError> {
    for window in [window(now_ms), window(now_ms).saturating_sub(1)] {
        if let Some(bytes) = view.get(DEDUP, &at(window, name))? {
            let seen: Seen = crate::kv::decode(bytes)?;
            if now_ms - seen.noted_ms < DEDUP_MS {
                return Ok(Some(seen));
            }
        }
    }
    Ok(None)
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

/// Windows are as long as the promise, so this one and the one before cover it. In 16 bits: until the year 2149.
fn window(now_ms: i64) -> u16 {
    u16::try_from(now_ms.div_euclid(DEDUP_MS).max(0)).unwrap_or(u16::MAX)
}

fn at(window: u16, name: &Name) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.extend_from_slice(&window.to_be_bytes());
    key.extend_from_slice(name);
    key
}
