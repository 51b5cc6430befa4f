//! The ordered key-value engine under the embedded and the memory backends, and what every engine promises.
//!
//! An engine is local: its calls block for microseconds (a memtable, the page cache) or, where they sync, for one
//! `fdatasync`. Domain backends (`KvStore`, `KvRoutes`, the queue's dedup rows) are written
//! once over [`Kv`].

mod embedded;
mod key;
mod memory;
mod recent;
mod txn;

use std::ops::ControlFlow;

use prost::bytes::Bytes;
use thiserror::Error;

pub use self::{
    embedded::{Embedded, Tail},
    key::Key,
    memory::Memory,
    txn::Txn,
};
pub(crate) use self::{key::last_number, recent::Recent, txn::decode};

/// A part of a database with its own key range: an index into the names given when it was opened. Few on purpose:
/// each costs its own memtable and its own flushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Space(pub u8);

/// What a write survives once it returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The end of this process (kill -9 included): the operating system has it.
    Buffered,
    /// The end of the operating system too: the disk has it.
    Synced,
}

/// The order of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the smallest key.
    Forward,
    /// From the largest key.
    Backward,
}

/// Writes that happen together or not at all. The last write to a key wins.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) writes: Vec<(Space, Vec<u8>, Option<Bytes>)>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, space: Space, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) {
        self.writes.push((space, key.into(), Some(value.into())));
    }

    /// Removes a key; one that is not there is no error.
    pub fn remove(&mut self, space: Space, key: impl Into<Vec<u8>>) {
        self.writes.push((space, key.into(), None));
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// An engine failed. After a failed write nothing further may be trusted to be written: engines refuse it.
#[derive(Debug, Clone, Error)]
#[error("the storage engine could not {action}: {detail}")]
pub struct KvError {
    /// What it was asked to do.
    pub action: &'static str,
    /// What it says.
    pub detail: String,
}

impl KvError {
    /// The action of an error that is about one row's content, not about the engine.
    pub(crate) const DECODE: &str = "decode a row it holds";
}

/// What a scan does with a row; [`ControlFlow::Break`] ends it.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// One moment of a database: reads through one view agree with each other.
///
/// Views are short-lived and stay on their thread. A thread does not write while it holds one: the memory engine's
/// view is a read lock.
pub trait View {
    /// The value of a key.
    ///
    /// # Errors
    /// When the engine cannot read.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, KvError>;

    /// Visits the rows whose keys are in `from..to`.
    ///
    /// # Errors
    /// When the engine cannot read.
    fn scan(
        &self,
        space: Space,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), KvError>;
}

/// An ordered key-value engine.
pub trait Kv: Send + Sync + 'static {
    /// This moment of the database.
    fn view(&self) -> Box<dyn View + '_>;

    /// Applies a batch: all of it or nothing, for every view taken after this returned.
    ///
    /// # Errors
    /// When it could not be written as durably as asked; whether it will be there after a restart is then unknown.
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), KvError>;

    /// Makes everything written so far survive the end of the operating system.
    ///
    /// # Errors
    /// When the disk does not say so.
    fn sync(&self) -> Result<(), KvError>;

    /// Writes once more, durably, what may be visible though a sync of it failed. The kernel shows what it could not write
    /// and counts it as written, to this process and to the next; later syncs that succeed then prove nothing, neither
    /// about that nor about what a log has behind it. For a start that an unclean end came before, before any other write.
    ///
    /// # Errors
    /// When it cannot be read back, or the disk does not say that it has it.
    fn rewrite(&self) -> Result<(), KvError>;
}
