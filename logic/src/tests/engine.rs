//! An engine, with files beside it, that fails and crashes when a test says so: it knows what was synced and what was
//! only written.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use rand::rngs::SmallRng;

use super::disk::{Folder, Fuse};
use crate::kv::{Batch, Direction, Durability, Kv, KvError, Memory, Space, View};

/// Two databases in memory: what a process sees, and what the disk has. A queue also has files on it.
pub(crate) struct Volatile {
    spaces: usize,
    live: Memory,
    disk: Mutex<Disk>,
    refuse_sync: AtomicBool,
    refuse_spread: AtomicBool,
    syncs: AtomicUsize,
    fuse: Arc<Fuse>,
    files: Arc<Folder>,
}

struct Disk {
    synced: Memory,
    unsynced: Vec<Batch>,
    /// A sync failed. The kernel counts what it was to write as written, shows it, and never writes it; what is written
    /// behind that is not found again by whoever reads the disk. Until all of it is written once more.
    hole: bool,
}

impl Volatile {
    pub(crate) fn new(spaces: usize) -> Arc<Self> {
        let fuse = Arc::new(Fuse::default());
        let files = Folder::empty(fuse.clone());
        let disk = Disk { synced: Memory::new(spaces), unsynced: Vec::new(), hole: false };
        Self::of(spaces, &Memory::new(spaces), disk, fuse, files)
    }

    /// What a process finds that sees `content`.
    fn of(spaces: usize, content: &Memory, disk: Disk, fuse: Arc<Fuse>, files: Arc<Folder>) -> Arc<Self> {
        let (live, disk) = (copy(content, spaces), Mutex::new(disk));
        let (refuse_sync, refuse_spread) = (AtomicBool::new(false), AtomicBool::new(false));
        let syncs = AtomicUsize::new(0);
        Arc::new(Self { spaces, live, disk, refuse_sync, refuse_spread, syncs, fuse, files })
    }

    /// The files beside the database.
    pub(crate) fn files(&self) -> Arc<Folder> {
        self.files.clone()
    }

    /// From now on writes and syncs fail, or work again.
    pub(crate) fn fail(&self, fail: bool) {
        self.fuse.blow(fail);
    }

    /// So many writes, syncs and changes of names go through, then all fail.
    pub(crate) fn fail_after(&self, calls: u64) {
        self.fuse.blow_after(calls);
    }

    /// From now on syncs alone fail, before they touch anything, or work again.
    pub(super) fn refuse_sync(&self, refuse: bool) {
        self.refuse_sync.store(refuse, Ordering::SeqCst);
    }

    /// How often it was synced.
    pub(super) fn syncs(&self) -> usize {
        self.syncs.load(Ordering::SeqCst)
    }

    /// How many batches were written since the last sync.
    pub(super) fn writes(&self) -> usize {
        self.disk.lock().expect("not poisoned").unsynced.len()
    }

    /// Keeps every write and sync waiting until `done` is said, or for `most`; whether it was said. `held`: it does.
    pub(super) fn hold(
        &self,
        held: impl FnOnce(),
        done: &std::sync::mpsc::Receiver<()>,
        most: std::time::Duration,
    ) -> bool {
        let _disk = self.disk.lock().expect("not poisoned");
        held();
        done.recv_timeout(most).is_ok()
    }

    /// From now on batches that take rows off the outbox fail, or work again.
    pub(crate) fn refuse_spread(&self, refuse: bool) {
        self.refuse_spread.store(refuse, Ordering::SeqCst);
    }

    /// The operating system ends here: nothing later counts. What the disk had, as the next start finds it: nothing that
    /// was not synced.
    pub(crate) fn crash(&self) -> Arc<Self> {
        self.end(|files, fuse| files.crash(fuse))
    }

    /// The same, but some of what was not synced is there, and some of that in parts.
    pub(crate) fn tear(&self, random: &mut SmallRng) -> Arc<Self> {
        self.end(|files, fuse| files.tear(fuse, random))
    }

    fn end(&self, files: impl FnOnce(&Folder, Arc<Fuse>) -> Arc<Folder>) -> Arc<Self> {
        let disk = self.disk.lock().expect("not poisoned");
        self.fuse.blow(true);
        let fuse = Arc::new(Fuse::default());
        let synced = copy(&disk.synced, self.spaces);
        let left = Disk { synced, unsynced: Vec::new(), hole: false };
        Self::of(self.spaces, &disk.synced, left, fuse.clone(), files(&self.files, fuse))
    }

    /// The process ends here: what was written is there, and as durable as it was.
    pub(crate) fn kill(&self) -> Arc<Self> {
        let disk = self.disk.lock().expect("not poisoned");
        self.fuse.blow(true);
        let fuse = Arc::new(Fuse::default());
        let unsynced = disk.unsynced.iter().map(|batch| Batch { writes: batch.writes.clone() }).collect();
        let left = Disk { synced: copy(&disk.synced, self.spaces), unsynced, hole: disk.hole };
        Self::of(self.spaces, &self.live, left, fuse.clone(), self.files.kill(fuse))
    }

    fn check(&self, action: &'static str) -> Result<(), KvError> {
        self.fuse.check().map_err(|error| KvError { action, detail: error.to_string() })
    }
}

impl Kv for Volatile {
    fn view(&self) -> Box<dyn View + '_> {
        self.live.view()
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), KvError> {
        let mut disk = self.disk.lock().expect("not poisoned");
        self.check("write")?;
        let spreads = |(space, key, value): &(Space, Vec<u8>, Option<_>)| {
            *space == Space(2) && key.first() == Some(&b'o') && value.is_none()
        };
        if self.refuse_spread.load(Ordering::SeqCst) && batch.writes.iter().any(spreads) {
            return Err(KvError { action: "write", detail: "spread is refused".to_owned() });
        }
        disk.unsynced.push(Batch { writes: batch.writes.clone() });
        self.live.write(batch, durability)?;
        if durability == Durability::Synced {
            disk.settle();
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), KvError> {
        let mut disk = self.disk.lock().expect("not poisoned");
        let passed = self.check("sync");
        disk.hole |= passed.is_err();
        passed?;
        if self.refuse_sync.load(Ordering::SeqCst) {
            return Err(KvError { action: "sync", detail: "input/output error".to_owned() });
        }
        self.syncs.fetch_add(1, Ordering::SeqCst);
        disk.settle();
        Ok(())
    }

    fn rewrite(&self) -> Result<(), KvError> {
        let mut disk = self.disk.lock().expect("not poisoned");
        self.check("write once more")?;
        disk.hole = false;
        disk.settle();
        Ok(())
    }
}

impl Disk {
    fn settle(&mut self) {
        if self.hole {
            return;
        }
        for batch in self.unsynced.drain(..) {
            self.synced.write(batch, Durability::Synced).expect("memory");
        }
    }
}

fn copy(from: &Memory, spaces: usize) -> Memory {
    let to = Memory::new(spaces);
    let mut batch = Batch::default();
    for space in (0..).take(spaces).map(Space) {
        let visit = &mut |key: &[u8], value: &[u8]| {
            batch.put(space, key, value.to_vec());
            std::ops::ControlFlow::Continue(())
        };
        from.view().scan(space, &[], &[u8::MAX; 200], Direction::Forward, visit).expect("memory");
    }
    to.write(batch, Durability::Synced).expect("memory");
    to
}
