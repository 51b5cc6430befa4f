//! Reads and writes that become one batch: a read sees what the same transaction wrote before.

use std::collections::HashMap;

use prost::{Message, bytes::Bytes};

use super::{Batch, Durability, Kv, KvError, Space, View};

/// A read-modify-write in the making. Whoever makes one holds the backend's writer lock: nothing here detects a
/// conflict.
pub struct Txn<'k> {
    kv: &'k dyn Kv,
    view: Box<dyn View + 'k>,
    changes: HashMap<(Space, Vec<u8>), Option<Bytes>>,
}

impl<'k> Txn<'k> {
    /// Begins at this moment of the database.
    #[must_use]
    pub fn begin(kv: &'k dyn Kv) -> Self {
        Self { kv, view: kv.view(), changes: HashMap::new() }
    }

    /// The value of a key, with this transaction's own writes.
    ///
    /// # Errors
    /// When the engine cannot read.
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        if !self.changes.is_empty()
            && let Some(value) = self.changes.get(&(space, key.to_vec()))
        {
            return Ok(value.clone());
        }
        self.view.get(space, key)
    }

    /// The value of a key as a message.
    ///
    /// # Errors
    /// When the engine cannot read, or what it holds is no such message.
    pub fn message<M: Message + Default>(&self, space: Space, key: &[u8]) -> Result<Option<M>, KvError> {
        self.get(space, key)?.map(decode).transpose()
    }

    /// Sets a key.
    pub fn put(&mut self, space: Space, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) {
        self.changes.insert((space, key.into()), Some(value.into()));
    }

    /// Sets a key to a message.
    pub fn put_message(&mut self, space: Space, key: impl Into<Vec<u8>>, message: &impl Message) {
        self.put(space, key, message.encode_to_vec());
    }

    /// Removes a key.
    pub fn remove(&mut self, space: Space, key: impl Into<Vec<u8>>) {
        self.changes.insert((space, key.into()), None);
    }

    /// The database as it was when this began: scans do not see this transaction's own writes.
    #[must_use]
    pub fn before(&self) -> &dyn View {
        &*self.view
    }

    /// Writes everything at once.
    ///
    /// # Errors
    /// As [`Kv::write`].
    pub fn commit(self, durability: Durability) -> Result<(), KvError> {
        let Self { kv, view, changes } = self;
        drop(view);
        if changes.is_empty() {
            return Ok(());
        }
        let writes = changes.into_iter().map(|((space, key), value)| (space, key, value)).collect();
        kv.write(Batch { writes }, durability)
    }
}

/// Reads a message that this crate wrote.
pub(crate) fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, KvError> {
    M::decode(bytes).map_err(|error| KvError { action: KvError::DECODE, detail: error.to_string() })
}
