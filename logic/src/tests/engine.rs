//! An engine that fails and crashes when a test says so: it knows what was synced and what was only written.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::kv::{Batch, Durability, Kv, KvError, Memory, Space, View};

/// Two databases in memory: what a process sees, and what the disk has.
pub(super) struct Volatile {
    spaces: usize,
    live: Memory,
    disk: Mutex<Disk>,
    fail: AtomicBool,
    refuse_sync: AtomicBool,
    refuse_spread: AtomicBool,
    syncs: AtomicUsize,
    crashed: AtomicBool,
}

struct Disk {
    synced: Memory,
    unsynced: Vec<Batch>,
}

impl Volatile {
    pub(super) fn new(spaces: usize) -> Arc<Self> {
        Self::holding(spaces, &Memory::new(spaces))
    }

    fn holding(spaces: usize, content: &Memory) -> Arc<Self> {
        let (live, synced) = (Memory::new(spaces), Memory::new(spaces));
        for copy in [&live, &synced] {
            copy_into(content, copy, spaces);
        }
        let disk = Mutex::new(Disk { synced, unsynced: Vec::new() });
        let no = || AtomicBool::new(false);
        let (fail, refuse_sync, refuse_spread, crashed) = (no(), no(), no(), no());
        let syncs = AtomicUsize::new(0);
        Arc::new(Self { spaces, live, disk, fail, refuse_sync, refuse_spread, syncs, crashed })
    }

    /// From now on writes and syncs fail, or work again.
    pub(super) fn fail(&self, fail: bool) {
        self.fail.store(fail, Ordering::SeqCst);
    }

    /// From now on syncs alone fail, or work again.
    pub(super) fn refuse_sync(&self, refuse: bool) {
        self.refuse_sync.store(refuse, Ordering::SeqCst);
    }

    /// How often it was synced.
    pub(super) fn syncs(&self) -> usize {
        self.syncs.load(Ordering::SeqCst)
    }

    /// From now on batches that take rows off the outbox fail, or work again.
    pub(super) fn refuse_spread(&self, refuse: bool) {
        self.refuse_spread.store(refuse, Ordering::SeqCst);
    }

    /// The operating system ends here: nothing later counts. What the disk had, as the next start finds it.
    pub(super) fn crash(&self) -> Arc<Self> {
        let disk = self.disk.lock().expect("not poisoned");
        self.crashed.store(true, Ordering::SeqCst);
        Self::holding(self.spaces, &disk.synced)
    }

    /// The process ends here: what was written is there.
    pub(super) fn kill(&self) -> Arc<Self> {
        let _disk = self.disk.lock().expect("not poisoned");
        self.crashed.store(true, Ordering::SeqCst);
        Self::holding(self.spaces, &self.live)
    }

    fn check(&self, action: &'static str) -> Result<(), KvError> {
        if self.fail.load(Ordering::SeqCst) || self.crashed.load(Ordering::SeqCst) {
            return Err(KvError { action, detail: "no space left on device".to_owned() });
        }
        Ok(())
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
        self.check("sync")?;
        if self.refuse_sync.load(Ordering::SeqCst) {
            return Err(KvError { action: "sync", detail: "input/output error".to_owned() });
        }
        self.syncs.fetch_add(1, Ordering::SeqCst);
        disk.settle();
        Ok(())
    }
}

impl Disk {
    fn settle(&mut self) {
        for batch in self.unsynced.drain(..) {
            self.synced.write(batch, Durability::Synced).expect("memory");
        }
    }
}

fn copy_into(from: &Memory, to: &Memory, spaces: usize) {
    use crate::kv::Direction;
    let mut batch = Batch::default();
    for space in (0..).take(spaces).map(Space) {
        let visit = &mut |key: &[u8], value: &[u8]| {
            batch.put(space, key, value.to_vec());
            std::ops::ControlFlow::Continue(())
        };
        from.view().scan(space, &[], &[u8::MAX; 200], Direction::Forward, visit).expect("memory");
    }
    to.write(batch, Durability::Synced).expect("memory");
}
