//! Follows the file of the address database: reads it again when it changed or on demand; one that is broken is refused, and the
//! one in force stays.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;
use tracing::{info, warn};

use super::{Database, DatabaseError, MAX_FILE};
use crate::{
    core::Core,
    follow::{Seen, next_look},
    metrics::GeoipLoad,
};

/// Why there is no database in a file.
#[derive(Debug, Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("cannot be read")]
    Unreadable(#[from] io::Error),
    /// It is larger than [`MAX_FILE`].
    #[error("has more than {MAX_FILE} bytes")]
    TooLarge,
    /// It holds something else.
    #[error("holds none")]
    Broken(#[from] DatabaseError),
}

/// What tells one version of a file from another: a database is too large to be read twice a second.
#[derive(Debug, Clone, PartialEq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

fn look(path: &Path) -> Result<Stamp, String> {
    std::fs::metadata(path).map(|metadata| Stamp::of(&metadata)).map_err(|error| error.to_string())
}

/// Reads and checks a file.
fn load(path: &Path) -> Result<Database, LoadError> {
    let file = File::open(path)?;
    // As large as the file at once: growing by doubling would take twice its memory.
    let mut bytes = Vec::with_capacity(file.metadata()?.len().min(MAX_FILE) as usize);
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(LoadError::TooLarge);
    }
    Ok(Database::read(bytes)?)
}

/// A file whose database is in force.
pub(crate) struct Followed {
    path: PathBuf,
    seen: Seen<Stamp>,
}

impl Followed {
    /// Loads the first database. The file is looked at before it is read: a change in between is seen later.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(path: PathBuf) -> Result<(Database, Self), LoadError> {
        let seen = Seen::offered(look(&path));
        Ok((load(&path)?, Self { path, seen }))
    }
}

/// Runs until dropped.
pub(crate) async fn watch(core: Arc<Core>, file: Followed) {
    let Followed { path, mut seen } = file;
    loop {
        let asked = next_look(&core.locator.reload).await;
        let looked_at = path.clone();
        // The disk may be slow, and others are served on this thread.
        let stamp = tokio::task::spawn_blocking(move || look(&looked_at)).await;
        let stamp = stamp.unwrap_or_else(|error| Err(error.to_string()));
        if seen.due(stamp, asked) {
            let to_read = path.clone();
            match tokio::task::spawn_blocking(move || load(&to_read)).await {
                Ok(loaded) => take_up(&core, &path, loaded),
                Err(error) => warn!(%error, "reading the address database ended early"),
            }
        }
    }
}

fn take_up(core: &Core, path: &Path, loaded: Result<Database, LoadError>) {
    let (path, metrics) = (path.display(), core.locator.metrics());
    match loaded {
        Ok(database) => {
            info!(%path, %database, "address database taken up");
            core.locator.put(database);
            metrics.load(GeoipLoad::Taken);
        }
        Err(error) => {
            metrics.load(match error {
                LoadError::Unreadable(_) => GeoipLoad::Unreadable,
                LoadError::TooLarge | LoadError::Broken(_) => GeoipLoad::Broken,
            });
            let error = chain(&error);
            warn!(%path, %error, "the address database is refused; the one in force stays");
        }
    }
}

/// An error with everything below it: the log shows one line.
fn chain(error: &dyn std::error::Error) -> String {
    let below = std::iter::successors(error.source(), |error| error.source());
    below.fold(error.to_string(), |text, error| format!("{text}: {error}"))
}
