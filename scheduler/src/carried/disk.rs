//! The carried records in a data directory: one file, replaced whole.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_proto::{
    carry::{self, Damaged},
    wire::CarriedRecord,
};

use crate::core::Core;

/// The records.
const FILE: &str = "carried";

/// Held by the scheduler that uses the directory.
const LOCK: &str = "lock";

/// After a write that failed the next is tried so much later.
const AGAIN: Duration = Duration::from_secs(5);

/// Between two writes at least: each is of everything.
const BETWEEN: Duration = Duration::from_millis(250);

/// A scheduler's data directory, in use by this process.
pub(crate) struct DataDir {
    path: PathBuf,
    /// The kernel lets go of it with the process, however that ends.
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be, takes it for this process, and reads the records.
    ///
    /// # Errors
    /// What cannot be made or read; another process that uses it; a file that is damaged.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<CarriedRecord>)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let lock =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => io::Error::other("another process uses it; give each its own"),
        })?;
        let records = match fs::read(path.join(FILE)) {
            Ok(bytes) => carry::from_bytes(&bytes).map_err(|error| named(&error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok((Self { path: path.to_owned(), _lock: lock }, records))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whole or not at all.
    fn write(&self, records: &[u8]) -> io::Result<()> {
        let (path, unfinished) = (self.path.join(FILE), self.path.join(format!("{FILE}.new")));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(records)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(&self.path)?.sync_all()
    }
}

fn named(error: &Damaged) -> io::Error {
    let problem = format!("its file {FILE:?} is {error}; remove it: the gateways carry what it had");
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// Writes every change until dropped; without a directory, says of each that it is as safe as it will be.
pub(crate) async fn keep(core: Arc<Core>, directory: Option<DataDir>) {
    let directory = directory.map(Arc::new);
    let mut changes = core.carried.changed.subscribe();
    let mut failing = false;
    loop {
        let change = *changes.borrow_and_update();
        if let Some(directory) = &directory {
            match save(&core, Arc::clone(directory)).await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        let path = directory.path.display();
                        tracing::warn!(%path, %error, "what outlives this scheduler cannot be written; the gateways carry it");
                    }
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
        }
        core.carried.saved.send_replace(change);
        if directory.is_some() {
            tokio::time::sleep(BETWEEN).await;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn save(core: &Core, directory: Arc<DataDir>) -> io::Result<()> {
    let records: Vec<_> = core.carried.read(|store| store.all().cloned().collect());
    let write = move || directory.write(&carry::to_bytes(records));
    let written = tokio::task::spawn_blocking(write).await;
    written.unwrap_or_else(|error| Err(io::Error::other(error)))
}
