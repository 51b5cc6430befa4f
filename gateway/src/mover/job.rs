//! One order to move connections, shared by who paces it and the workers that carry it out.

use std::sync::{
    Mutex,
    atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use berth_proto::{code::CloseCode, wire::MovePurpose};

use crate::shared::lock;

/// Whom to move, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    /// What for.
    pub(crate) purpose: MovePurpose,
    /// Tells it from others of its purpose.
    pub(crate) id: u64,
    /// Those told to go come back within so many milliseconds.
    pub(crate) spread_ms: u32,
    /// The pool to send them to; empty: as the policy says.
    pub(crate) pool: String,
    /// Of a rebalance: nobody is made fuller than so far above the mean.
    pub(crate) within_permille: u32,
    /// Only those whose home is another region.
    pub(crate) only_away: bool,
}

impl Order {
    /// What those who are moved are told.
    pub(crate) fn code(&self) -> CloseCode {
        match self.purpose {
            MovePurpose::Drain => CloseCode::Draining,
            _ => CloseCode::Moved,
        }
    }
}

/// An order and how far it is.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) order: Order,
    /// Of each worker, those to be asked about yet, and in the lower half those asked about: together, so that nobody is seen
    /// to be neither on his way from one to the other. [`UNLISTED`] until it has listed them.
    open: Vec<AtomicU64>,
    /// The schedulers to ask, a bit each by their index.
    among: AtomicU64,
    moved: AtomicU64,
    stayed: AtomicU64,
    unplaced: AtomicU64,
    /// Why the last who was asked about was not moved, until somebody takes note.
    hold: Mutex<Option<String>>,
}

/// A worker that has not listed anybody yet.
const UNLISTED: u64 = u64::MAX;

/// How far a job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Every worker has listed whom it is about; before, the rest says little.
    pub(crate) listed: bool,
    /// To be asked about yet.
    pub(crate) left: u64,
    /// Asked about, and not answered.
    pub(crate) asked: u64,
    /// Told where a place is kept for them.
    pub(crate) moved: u64,
    /// They belong where they are, or have gone.
    pub(crate) stayed: u64,
    /// Told to go without a place.
    pub(crate) unplaced: u64,
}

impl Job {
    pub(crate) fn new(order: Order, workers: usize) -> Self {
        Self {
            order,
            open: (0..workers).map(|_| AtomicU64::new(UNLISTED)).collect(),
            among: AtomicU64::new(u64::MAX),
            moved: AtomicU64::new(0),
            stayed: AtomicU64::new(0),
            unplaced: AtomicU64::new(0),
            hold: Mutex::default(),
        }
    }

    /// A worker has so many left, and so many are being asked about; said after what became of the others.
    pub(crate) fn open(&self, worker: u8, left: usize, asked: usize) {
        self.open[usize::from(worker)].store((left as u64) << 32 | asked as u64, Release);
    }

    /// Of each worker, those left and those being asked about; nothing of one that has not listed them yet.
    fn opens(&self) -> impl Iterator<Item = Option<(u64, u64)>> {
        let open = self.open.iter().map(|open| open.load(Acquire));
        open.map(|open| (open != UNLISTED).then_some((open >> 32, open & u64::from(u32::MAX))))
    }

    pub(crate) fn lefts(&self) -> Vec<u64> {
        self.opens().map(|open| open.map_or(0, |(left, _)| left)).collect()
    }

    /// Whom to ask: the schedulers of these bits.
    pub(crate) fn ask_among(&self, schedulers: u64) {
        self.among.store(schedulers, Relaxed);
    }

    pub(crate) fn among(&self) -> u64 {
        self.among.load(Relaxed)
    }

    pub(crate) fn moved(&self) {
        self.moved.fetch_add(1, Relaxed);
    }

    pub(crate) fn stayed(&self) {
        self.stayed.fetch_add(1, Relaxed);
    }

    pub(crate) fn unplaced(&self) {
        self.unplaced.fetch_add(1, Relaxed);
    }

    /// Nobody should be moved now.
    pub(crate) fn hold(&self, reason: &str) {
        *lock(&self.hold) = Some(reason.to_owned());
    }

    pub(crate) fn take_hold(&self) -> Option<String> {
        lock(&self.hold).take()
    }

    pub(crate) fn count(&self) -> Count {
        let opens: Vec<_> = self.opens().collect();
        let (lefts, asked): (Vec<u64>, Vec<u64>) = opens.iter().flatten().copied().unzip();
        Count {
            listed: opens.iter().all(Option::is_some),
            left: lefts.iter().sum(),
            asked: asked.iter().sum(),
            moved: self.moved.load(Relaxed),
            stayed: self.stayed.load(Relaxed),
            unplaced: self.unplaced.load(Relaxed),
        }
    }
}
