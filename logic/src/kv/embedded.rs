//! The embedded engine: one fjall database (a log-structured merge tree with a journal) in one directory.
//!
//! Every batch is flushed to the operating system before it returns, so that kill -9 loses nothing. fjall holds its
//! journal's lock while it syncs, so there is no group commit inside it: whoever wants many durable writes a second
//! has a log of his own (see `queue`). After a failed write or sync fjall refuses all further writes until it is reopened.

mod journal;

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    ops::ControlFlow,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use prost::bytes::Bytes;

use super::{Batch, Direction, Durability, Kv, KvError, Space, View, Visit};

/// Flush and compaction threads of a database: one flushes while the other compacts.
const WORKERS: usize = 2;

/// Bytes of writes a keyspace gathers in memory before it writes a table: a quarter of fjall's own choice, since five
/// keyspaces have one each, and since lookups among fewer rows miss the processor's caches less.
const MEMTABLE: u64 = 16 * 1024 * 1024;

/// Bytes of a journal that are written once more at a time.
const REWRITE: usize = 1024 * 1024;

/// A database on disk.
pub struct Embedded {
    path: PathBuf,
    spaces: Vec<Keyspace>,
    /// After the keyspaces: fields drop in order, and the database joins its threads when it drops last.
    database: Database,
}

/// What may have become of a database since it was last open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// All that was written is there, or it is damaged.
    Whole,
    /// The operating system ended: of what was not synced anything may be missing.
    Torn,
}

impl Embedded {
    /// Opens the database in `path`, or makes it, with a keyspace per name.
    ///
    /// # Errors
    /// When the directory cannot be used, is locked by another process, or what it holds cannot be read.
    pub fn open(path: &Path, names: &[&str], cache_bytes: u64, tail: Tail) -> Result<Self, KvError> {
        let refuse = |error: fjall::Error| KvError {
            action: "open its directory",
            detail: format!("{}: {error}", path.display()),
        };
        let open = || Database::builder(path).cache_size(cache_bytes).worker_threads(WORKERS).open();
        let database = match open() {
            // fjall locked the directory before it read the journal, so no other process has it open.
            Err(fjall::Error::JournalRecovery(_)) if tail == Tail::Torn => {
                cut_torn_tail(path)?;
                open()
            }
            opened => opened,
        };
        let database = database.map_err(refuse)?;
        let spaces = names
            .iter()
            .map(|name| {
                database.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE))
            })
            .collect::<Result<_, _>>()
            .map_err(refuse)?;
        Ok(Self { path: path.to_owned(), spaces, database })
    }
}

impl Kv for Embedded {
    fn view(&self) -> Box<dyn View + '_> {
        Box::new(EmbeddedView { spaces: &self.spaces, snapshot: self.database.snapshot() })
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), KvError> {
        let mode = match durability {
            Durability::Buffered => PersistMode::Buffer,
            Durability::Synced => PersistMode::SyncData,
        };
        let mut into = self.database.batch().durability(Some(mode));
        for (space, key, value) in &batch.writes {
            let keyspace = &self.spaces[usize::from(space.0)];
            match value {
                Some(value) => into.insert(keyspace, key.as_slice(), value.as_ref()),
                None => into.remove(keyspace, key.as_slice()),
            }
        }
        into.commit().map_err(|error| failed("write", &error))
    }

    fn sync(&self) -> Result<(), KvError> {
        self.database.persist(PersistMode::SyncData).map_err(|error| failed("sync", &error))
    }

    /// Of what fjall keeps only its journals: a table is not used before its own sync went through. Flushing the memtables
    /// would not do, since the journal that is written to stays, and replay ends where it has a hole.
    fn rewrite(&self) -> Result<(), KvError> {
        let refuse = |error: io::Error| KvError {
            action: "write its journals once more",
            detail: format!("{}: {error}", self.path.display()),
        };
        rewrite_journals(&self.path).map_err(refuse)
    }
}

fn cut_torn_tail(path: &Path) -> Result<(), KvError> {
    let refuse = |error: io::Error| KvError {
        action: "cut its journal's torn tail",
        detail: format!("{}: {error}", path.display()),
    };
    if let Some(journal::Cut { journal, length, followed }) = journal::cut_torn_tail(path).map_err(refuse)? {
        let journal = journal.display();
        tracing::warn!(
            %journal,
            length,
            followed,
            "the power cut left a journal's unsynced tail in pieces: it is cut off, with the whole batches that followed; if the \
             disk is known to damage what was synced, restore the data dir"
        );
    }
    Ok(())
}

fn rewrite_journals(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension() != Some(OsStr::new("jnl")) {
            continue;
        }
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => rewrite_in_place(&file)?,
            // Everything in it came to be in tables, and fjall removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    File::open(directory)?.sync_all()
}

/// The same bytes at the same places: cut off anywhere, it has changed nothing.
fn rewrite_in_place(file: &File) -> io::Result<()> {
    let (mut at, mut bytes) = (0, vec![0; REWRITE]);
    loop {
        let count = file.read_at(&mut bytes, at)?;
        if count == 0 {
            return file.sync_all();
        }
        file.write_all_at(&bytes[..count], at)?;
        at += count as u64;
    }
}

fn failed(action: &'static str, error: &fjall::Error) -> KvError {
    KvError { action, detail: error.to_string() }
}

struct EmbeddedView<'a> {
    spaces: &'a [Keyspace],
    snapshot: Snapshot,
}

impl View for EmbeddedView<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let value = self.snapshot.get(&self.spaces[usize::from(space.0)], key);
        let value = value.map_err(|error| failed("read", &error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
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
        let mut rows = self.snapshot.range(&self.spaces[usize::from(space.0)], from..to);
        loop {
            let row = match direction {
                Direction::Forward => rows.next(),
                Direction::Backward => rows.next_back(),
            };
            let Some(row) = row else { return Ok(()) };
            let (key, value) = row.into_inner().map_err(|error| failed("read", &error))?;
            if let ControlFlow::Break(()) = visit(&key, &value) {
                return Ok(());
            }
        }
    }
}
