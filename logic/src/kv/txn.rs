//! Reads and writes that become one batch: a read sees what the same transaction wrote before.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prost::{Message, bytes::Bytes};

use super::{Batch, Durability, Kv, KvError, Recent, Space, View};

/// A read-modify-write in the making. Whoever makes one holds the backend's writer lock: nothing here detects a
/// conflict.
pub struct Txn<'k> {
    kv: &'k dyn Kv,
    view: Box<dyn View + 'k>,
    /// By space.
    changes: Vec<HashMap<Vec<u8>, Option<Bytes>>>,
    recent: Option<&'k Mutex<Recent>>,
}

impl<'k> Txn<'k> {
    /// Begins at this moment of the database.
    #[must_use]
    pub fn begin(kv: &'k dyn Kv) -> Self {
        Self { kv, view: kv.view(), changes: Vec::new(), recent: None }
    }

    /// The same, where some rows are known from earlier transactions.
    pub(crate) fn knowing(kv: &'k dyn Kv, recent: &'k Mutex<Recent>) -> Self {
        Self { recent: Some(recent), ..Self::begin(kv) }
    }

    /// The value of a key, with this transaction's own writes.
    ///
    /// # Errors
    /// When the engine cannot read.
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        if let Some(value) = self.changes.get(usize::from(space.0)).and_then(|changes| changes.get(key)) {
            return Ok(value.clone());
        }
        let Some(mut recent) = self.recent().filter(|recent| recent.keeps(space, key)) else {
            return self.view.get(space, key);
        };
        if let Some(value) = recent.get(key) {
            return Ok(value);
        }
        let value = self.view.get(space, key)?;
        recent.keep(key.to_vec(), value.clone());
        Ok(value)
    }

    fn recent(&self) -> Option<MutexGuard<'k, Recent>> {
        self.recent.map(|recent| recent.lock().unwrap_or_else(PoisonError::into_inner))
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
        self.change(space, key.into(), Some(value.into()));
    }

    /// Sets a key to a message.
    pub fn put_message(&mut self, space: Space, key: impl Into<Vec<u8>>, message: &impl Message) {
        self.put(space, key, message.encode_to_vec());
    }

    /// Removes a key.
    pub fn remove(&mut self, space: Space, key: impl Into<Vec<u8>>) {
        self.change(space, key.into(), None);
    }

    fn change(&mut self, space: Space, key: Vec<u8>, value: Option<Bytes>) {
        let place = usize::from(space.0);
        if self.changes.len() <= place {
            self.changes.resize_with(place + 1, HashMap::new);
        }
        self.changes[place].insert(key, value);
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
        let mut recent = self.recent();
        let Self { kv, view, changes, .. } = self;
        drop(view);
        let mut writes = Vec::with_capacity(changes.iter().map(HashMap::len).sum());
        for (space, changes) in (0..).map(Space).zip(changes) {
            writes.extend(changes.into_iter().map(|(key, value)| (space, key, value)));
        }
        if writes.is_empty() {
            return Ok(());
        }
        // Neighbours follow each other into the engine's tables: each finds the way of the one before it in the
        // processor's caches.
        writes.sort_unstable_by(|(space, key, _), (other, later, _)| (space, key).cmp(&(other, later)));
        let known: Vec<_> = recent.as_ref().map_or_else(Vec::new, |recent| {
            writes.iter().filter(|(space, key, _)| recent.keeps(*space, key)).cloned().collect()
        });
        // Before the write: should the engine panic in it, what it did is not known.
        if let Some(recent) = &mut recent {
            known.iter().for_each(|(_, key, _)| recent.lose(key));
        }
        let written = kv.write(Batch { writes }, durability);
        if let Some(recent) = &mut recent {
            match &written {
                Ok(()) => known.into_iter().for_each(|(_, key, value)| recent.keep(key, value)),
                Err(_) => recent.forget(),
            }
        }
        written
    }
}

/// Reads a message that this crate wrote.
pub(crate) fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, KvError> {
    M::decode(bytes).map_err(|error| KvError { action: KvError::DECODE, detail: error.to_string() })
}
