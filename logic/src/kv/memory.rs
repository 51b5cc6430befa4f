//! The memory engine: ordered maps under one lock, gone with the process. For tests and for trying Berth out.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use prost::bytes::Bytes;

use super::{Batch, Direction, Durability, Kv, KvError, Space, View, Visit};

type Maps = Vec<BTreeMap<Vec<u8>, Bytes>>;

/// A database in memory.
pub struct Memory {
    maps: RwLock<Maps>,
}

impl Memory {
    /// An empty database of this many spaces.
    #[must_use]
    pub fn new(spaces: usize) -> Self {
        Self { maps: RwLock::new(vec![BTreeMap::new(); spaces]) }
    }
}

impl Kv for Memory {
    fn view(&self) -> Box<dyn View + '_> {
        Box::new(MemoryView(self.maps.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn write(&self, batch: Batch, _: Durability) -> Result<(), KvError> {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        for (space, key, value) in batch.writes {
            let map = &mut maps[usize::from(space.0)];
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), KvError> {
        Ok(())
    }

    fn rewrite(&self) -> Result<(), KvError> {
        Ok(())
    }
}

struct MemoryView<'a>(RwLockReadGuard<'a, Maps>);

impl View for MemoryView<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.0[usize::from(space.0)].get(key).cloned())
    }

    fn scan(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), KvError> {
        if from >= to {
            return Ok(());
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let rows = self.0[usize::from(space.0)].range::<[u8], _>(bounds);
        let mut each = |(key, value): (&Vec<u8>, &Bytes)| visit(key, value);
        let _: ControlFlow<()> = match direction {
            Direction::Forward => { rows }.try_for_each(&mut each),
            Direction::Backward => rows.rev().try_for_each(&mut each),
        };
        Ok(())
    }
}
