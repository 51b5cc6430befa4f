//! What was accepted lately under which `client_msg_id`: rows in day windows, so that old ones go by the window.

use crate::{
    kv::{Direction, Key, KvError, Space, View},
    queue::{Appended, DEDUP_MS, Fingerprint, QueueError, Record},
};

/// The space of dedup rows.
pub(super) const DEDUP: Space = Space(1);

const ROW: u8 = b'd';

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
}

impl Seen {
    pub(super) fn of(record: &Record, fingerprint: Fingerprint, partition: u16, offset: u64) -> Self {
        Self {
            partition: partition.into(),
            offset,
            message_id: record.message_id,
            conversation_id: record.conversation_id,
            at_ms: record.at_ms,
            fingerprint: fingerprint.to_vec(),
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

/// The key of a row that is written now.
pub(super) fn key(record: &Record, now_ms: i64) -> Key {
    at(window(now_ms), record)
}

/// What was accepted under this record's name within [`DEDUP_MS`] before `now_ms`: this window's row, or the one of
/// the window before it.
pub(super) fn find(view: &dyn View, record: &Record, now_ms: i64) -> Result<Option<Seen>, KvError> {
    for window in [window(now_ms), window(now_ms).saturating_sub(1)] {
        if let Some(bytes) = view.get(DEDUP, at(window, record).bytes())? {
            let seen: Seen = crate::kv::decode(bytes)?;
            if now_ms - seen.at_ms < DEDUP_MS {
                return Ok(Some(seen));
            }
        }
    }
    Ok(None)
}

/// Keys of rows in windows that nothing looks at any more: at most `limit`.
pub(super) fn expired(view: &dyn View, now_ms: i64, limit: usize) -> Result<Vec<Vec<u8>>, KvError> {
    let end = Key::new(ROW).number(window(now_ms).saturating_sub(1));
    let mut keys = Vec::new();
    view.scan(DEDUP, Key::new(ROW).bytes(), end.bytes(), Direction::Forward, &mut |key, _| {
        keys.push(key.to_vec());
        if keys.len() < limit {
            std::ops::ControlFlow::Continue(())
        } else {
            std::ops::ControlFlow::Break(())
        }
    })?;
    Ok(keys)
}

/// Windows are as long as the promise, so this one and the one before cover it.
fn window(now_ms: i64) -> u64 {
    u64::try_from(now_ms.div_euclid(DEDUP_MS)).unwrap_or(0)
}

fn at(window: u64, record: &Record) -> Key {
    Key::new(ROW).number(window).text(&record.sender).tail(record.client_msg_id.as_bytes())
}
