//! Opens the backends that the configuration chooses, and keeps the mark that tells a clean end from an unclean one.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    config::{Config, StartError, StoreChoice},
    kv::{Embedded, Kv, Memory, Space, Tail},
    metrics::QueueMetrics,
    queue::{Disk, Files, InMemory, LogQueue, Queue},
    routes::{KvRoutes, Routes},
    store::{Epoch, KvStore, Store},
};

/// Block cache of the queue's dedup rows: they are read for repeats, which are rare.
const QUEUE_CACHE: u64 = 8 * 1024 * 1024;

/// Block cache of the store's database.
const STORE_CACHE: u64 = 64 * 1024 * 1024;

/// Where routes are: a fourth space of the store's database.
pub(crate) const ROUTES: Space = Space(KvStore::SPACES.len() as u8);

/// The databases, open, and what is known of their last end.
pub(crate) struct Opened {
    /// Of the queue's log.
    pub(crate) files: Arc<dyn Files>,
    /// The queue's dedup rows.
    pub(crate) names: Arc<dyn Kv>,
    pub(crate) store: Arc<dyn Kv>,
    pub(crate) epoch: Epoch,
    pub(crate) marker: Option<Marker>,
}

/// What a logic works over.
pub(crate) struct Backends {
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) routes: Arc<dyn Routes>,
    pub(crate) marker: Option<Marker>,
}

/// Opens them.
pub(crate) fn open(config: &Config, metrics: QueueMetrics, now_ms: i64) -> Result<Backends, StartError> {
    let opened = match &config.store {
        StoreChoice::Memory => Opened {
            files: Arc::new(InMemory::default()),
            names: Arc::new(Memory::new(LogQueue::SPACES.len())),
            store: Arc::new(Memory::new(store_spaces().len())),
            // Each start begins empty: cursors of an earlier one must not be believed.
            epoch: Epoch::Is(u64::try_from(now_ms).unwrap_or(1).max(1)),
            marker: None,
        },
        StoreChoice::Embedded(directory) => {
            let (marker, epoch) = Marker::set(directory, &config.os_boot_id)
                .map_err(|source| StartError::Directory { path: directory.clone(), source })?;
            let queue = directory.join("queue");
            let files = Disk::open(&queue)?;
            // Before the log is read: it is locked while another process has it open.
            let tail = if epoch == Epoch::Raise { Tail::Torn } else { Tail::Whole };
            let names = Embedded::open(&queue.join("names"), &LogQueue::SPACES, QUEUE_CACHE, tail)?;
            let store = Embedded::open(&directory.join("store"), &store_spaces(), STORE_CACHE, tail)?;
            let (files, names, store) = (Arc::new(files), Arc::new(names), Arc::new(store));
            Opened { files, names, store, epoch, marker: Some(marker) }
        }
    };
    opened.backends(config, metrics, now_ms)
}

impl Opened {
    /// The backends over them.
    pub(crate) fn backends(
        self,
        config: &Config,
        metrics: QueueMetrics,
        now_ms: i64,
    ) -> Result<Backends, StartError> {
        let Self { files, names, store, epoch, marker } = self;
        if marker.as_ref().is_some_and(|marker| marker.found) {
            // Before anything is written behind it, or forgotten because it is there.
            names.rewrite()?;
            store.rewrite()?;
        }
        let lease_ms = i64::try_from(config.lease.as_millis()).unwrap_or(i64::MAX);
        Ok(Backends {
            queue: Arc::new(LogQueue::open(files, names, config.partitions, config.node, metrics)?),
            routes: Arc::new(
                KvRoutes::open(store.clone(), ROUTES, lease_ms, now_ms)?
                    .with_devices(config.sessions_per_user),
            ),
            store: Arc::new(KvStore::open(store, config.node, epoch)?),
            marker,
        })
    }
}

fn store_spaces() -> Vec<&'static str> {
    KvStore::SPACES.into_iter().chain(["routes"]).collect()
}

/// Makes a directory, and those above it, so that their names survive the end of the operating system: each is as durable
/// as what is in it.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    let missing: Vec<_> =
        path.ancestors().take_while(|at| !at.as_os_str().is_empty() && !at.exists()).collect();
    fs::create_dir_all(path)?;
    // `path` itself in any case: an earlier start may have ended between making and syncing it.
    let made = missing.len().max(1);
    path.ancestors().take(made).filter_map(Path::parent).try_for_each(|above| {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        File::open(above)?.sync_all()
    })
}

/// A file that is there while the databases are open and says under which boot of the operating system.
///
/// Found at a start, it tells that the last end was unclean. Under the same boot the kernel still has everything that
/// was written; under another one the unsynced tail of the store may be gone, and inboxes with it: the epoch rises.
///
/// A sync of the store that failed counts like another boot: the kernel may have thrown away what it could not write and
/// say no more of it, so that even a later sync that succeeds, and a clean end, prove nothing. From then on the mark names
/// no boot and stays. After a failure of the queue it stays as it is.
///
/// Whoever finds it writes once more what the kernel may show and not have written ([`Kv::rewrite`]).
pub(crate) struct Marker {
    path: PathBuf,
    /// Left by the last end, which was unclean.
    found: bool,
    doubted: AtomicBool,
}

impl Marker {
    /// Sets it and says what must become of the inbox epoch. An unknown boot id (empty) counts as another one.
    pub(crate) fn set(directory: &Path, boot_id: &str) -> io::Result<(Self, Epoch)> {
        make_directory(directory)?;
        let path = directory.join("open");
        let (found, epoch) = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (false, Epoch::Keep),
            Err(error) => return Err(error),
            Ok(left) if !boot_id.is_empty() && left == boot_id => (true, Epoch::Keep),
            Ok(_) => (true, Epoch::Raise),
        };
        // While the epoch is being raised the old mark stays: only `confirm` writes the new one.
        let marker = Self { path, found, doubted: AtomicBool::new(false) };
        if epoch == Epoch::Keep {
            marker.write(boot_id)?;
        }
        Ok((marker, epoch))
    }

    /// The data directory.
    pub(crate) fn directory(&self) -> PathBuf {
        self.path.parent().map(Path::to_path_buf).unwrap_or_default()
    }

    /// The databases are open, the raised epoch is durable.
    pub(crate) fn confirm(&self, boot_id: &str) -> io::Result<()> {
        self.write(boot_id)
    }

    /// A sync of the store failed: the next start raises the epoch, whichever boot it is under. Writes once.
    pub(crate) fn doubt(&self) -> io::Result<()> {
        if !self.doubted.load(Ordering::Relaxed) {
            self.write("")?;
            self.doubted.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn write(&self, boot_id: &str) -> io::Result<()> {
        let mut file = File::create(&self.path)?;
        file.write_all(boot_id.as_bytes())?;
        file.sync_all()?;
        self.sync_directory()
    }

    /// The databases are synced and closed. A mark in doubt stays.
    pub(crate) fn remove(&self) -> io::Result<()> {
        if self.doubted.load(Ordering::Relaxed) {
            return Ok(());
        }
        fs::remove_file(&self.path)?;
        self.sync_directory()
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unclean_end_under_another_boot_raises_the_epoch() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let set = |boot: &str| Marker::set(directory.path(), boot).expect("writable");
        let (marker, first) = set("boot-1");
        assert_eq!(first, Epoch::Keep, "a new directory");
        drop(marker);
        assert_eq!(set("boot-1").1, Epoch::Keep, "killed, same boot");
        let (marker, other) = set("boot-2");
        assert_eq!(other, Epoch::Raise, "killed, other boot");
        assert_eq!(set("boot-2").1, Epoch::Raise, "ended before the raised epoch was durable");
        marker.confirm("boot-2").expect("writable");
        assert_eq!(set("boot-2").1, Epoch::Keep);
        set("boot-2").0.remove().expect("removable");
        assert_eq!(set("boot-3").1, Epoch::Keep, "a clean end");
        assert_eq!(set("").1, Epoch::Raise, "an unknown boot is another one");
    }
}
