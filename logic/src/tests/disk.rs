//! Files in memory that fail and crash when a test says so, under the strictest reading of what POSIX promises: content is
//! durable once its file was synced, a name once its folder was.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, ErrorKind},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rand::{Rng, rngs::SmallRng};

use crate::queue::{Files, LogFile};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// Whether calls go through.
#[derive(Debug)]
pub(crate) struct Fuse {
    blown: AtomicBool,
    left: AtomicU64,
}

impl Default for Fuse {
    fn default() -> Self {
        Self { blown: AtomicBool::new(false), left: AtomicU64::new(u64::MAX) }
    }
}

impl Fuse {
    pub(super) fn blow(&self, blown: bool) {
        self.blown.store(blown, Ordering::SeqCst);
    }

    pub(super) fn blow_after(&self, calls: u64) {
        self.left.store(calls, Ordering::SeqCst);
    }

    pub(super) fn check(&self) -> io::Result<()> {
        let less = |left: u64| if left == u64::MAX { Some(left) } else { left.checked_sub(1) };
        let passed = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok();
        if passed && !self.blown.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::StorageFull, "no space left on device"))
    }
}

type Names = BTreeMap<String, Arc<Inode>>;

/// A folder: the names a process sees, and those that are durable.
pub(crate) struct Folder {
    fuse: Arc<Fuse>,
    names: Mutex<(Names, Names)>,
}

/// A file's content.
struct Inode {
    fuse: Arc<Fuse>,
    content: Mutex<Content>,
}

#[derive(Default, Clone)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last sync.
    changes: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Written(usize, Vec<u8>),
    Length(usize),
}

impl Folder {
    pub(super) fn empty(fuse: Arc<Fuse>) -> Arc<Self> {
        Arc::new(Self { fuse, names: Mutex::default() })
    }

    fn names(&self) -> MutexGuard<'_, (Names, Names)> {
        self.names.lock().expect("not poisoned")
    }

    /// What is there after the end of the operating system, of what was synced.
    pub(super) fn crash(&self, fuse: Arc<Fuse>) -> Arc<Self> {
        let (_, durable) = self.names().clone();
        Self::of(fuse, (durable.clone(), durable), |content| Content::of(content.durable.clone()))
    }

    /// The same, with a part of what was not.
    pub(super) fn tear(&self, fuse: Arc<Fuse>, random: &mut SmallRng) -> Arc<Self> {
        let (live, durable) = self.names().clone();
        let names = if random.random() { live } else { durable };
        Self::of(fuse, (names.clone(), names), |content| Content::of(content.torn(random)))
    }

    /// What is there after the end of the process: what was written, and what the kernel has yet to make durable of it.
    pub(super) fn kill(&self, fuse: Arc<Fuse>) -> Arc<Self> {
        Self::of(fuse, self.names().clone(), Content::clone)
    }

    fn of(
        fuse: Arc<Fuse>,
        (live, durable): (Names, Names),
        mut left: impl FnMut(&Content) -> Content,
    ) -> Arc<Self> {
        let mut made: HashMap<*const Inode, Arc<Inode>> = HashMap::new();
        let mut copy = |names: Names| -> Names {
            let inode = |(name, old): (String, Arc<Inode>)| {
                let new = made.entry(Arc::as_ptr(&old)).or_insert_with(|| {
                    let content = Mutex::new(left(&old.content.lock().expect("not poisoned")));
                    Arc::new(Inode { fuse: fuse.clone(), content })
                });
                (name, new.clone())
            };
            names.into_iter().map(inode).collect()
        };
        let names = Mutex::new((copy(live), copy(durable)));
        Arc::new(Self { names, fuse })
    }

    /// Changes a file behind everybody's back.
    pub(crate) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let inode = self.names().0[name].clone();
        let mut content = inode.content.lock().expect("not poisoned");
        change(&mut content.live);
        *content = Content::of(std::mem::take(&mut content.live));
    }
}

impl Content {
    fn of(bytes: Vec<u8>) -> Self {
        Self { durable: bytes.clone(), live: bytes, changes: Vec::new() }
    }

    /// After a sync that failed the kernel counts all of it as written, and shows it.
    fn settle(&mut self, failed: bool) {
        for change in self.changes.drain(..) {
            if !failed {
                change.make(&mut self.durable);
            }
        }
    }

    fn torn(&self, random: &mut SmallRng) -> Vec<u8> {
        let mut left = self.durable.clone();
        for change in &self.changes {
            match change {
                Change::Length(_) if random.random() => change.make(&mut left),
                Change::Written(at, bytes) => match random.random_range(0..4) {
                    0 => change.make(&mut left),
                    1 => {
                        let some = bytes[..random.random_range(0..=bytes.len())].to_vec();
                        Change::Written(*at, some).make(&mut left);
                    }
                    2 => {
                        for (n, sector) in bytes.chunks(SECTOR).enumerate().filter(|_| random.random()) {
                            Change::Written(at + n * SECTOR, sector.to_vec()).make(&mut left);
                        }
                    }
                    _ => {}
                },
                Change::Length(_) => {}
            }
        }
        left
    }
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(length) => bytes.resize(*length, 0),
            Self::Written(at, written) => {
                bytes.resize(bytes.len().max(at + written.len()), 0);
                bytes[*at..at + written.len()].copy_from_slice(written);
            }
        }
    }
}

impl Files for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names().0.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        self.fuse.check()?;
        let inode = Arc::new(Inode { fuse: self.fuse.clone(), content: Mutex::default() });
        self.names().0.insert(name.to_owned(), inode.clone());
        Ok(inode)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        Ok(self.names().0.get(name).ok_or(ErrorKind::NotFound)?.clone())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.fuse.check()?;
        let mut names = self.names();
        let inode = names.0.remove(from).ok_or(ErrorKind::NotFound)?;
        names.0.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.fuse.check()?;
        self.names().0.remove(name).map(drop).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        let mut names = self.names();
        self.fuse.check()?;
        names.1 = names.0.clone();
        Ok(())
    }
}

impl Inode {
    fn change(&self, change: Change) {
        let mut content = self.content.lock().expect("not poisoned");
        change.make(&mut content.live);
        content.changes.push(change);
    }
}

impl LogFile for Inode {
    fn length(&self) -> io::Result<u64> {
        Ok(self.content.lock().expect("not poisoned").live.len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let content = self.content.lock().expect("not poisoned");
        let range = at as usize..at as usize + bytes.len();
        bytes.copy_from_slice(content.live.get(range).ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// A full disk takes a part.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let passed = self.fuse.check();
        let taken = if passed.is_ok() { bytes.len() } else { bytes.len() / 2 };
        self.change(Change::Written(at as usize, bytes[..taken].to_vec()));
        passed
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.fuse.check()?;
        self.change(Change::Length(length as usize));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // Under the lock, which the end of the machine takes too: what was said to be durable before it is.
        let mut content = self.content.lock().expect("not poisoned");
        let passed = self.fuse.check();
        content.settle(passed.is_err());
        passed
    }
}
