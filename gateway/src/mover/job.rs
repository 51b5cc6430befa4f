//! One order to move connections, shared by who paces it and the workers that carry it out.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
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
    /// Of each worker, those to be asked about yet.
    lefts: Vec<AtomicU64>,
    asked: AtomicU64,
    moved: AtomicU64,
    stayed: AtomicU64,
    unplaced: AtomicU64,
    /// Why the last who was asked about was not moved, until somebody takes note.
    hold: Mutex<Option<String>>,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
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
            lefts: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            asked: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            stayed: AtomicU64::new(0),
            unplaced: AtomicU64::new(0),
            hold: Mutex::default(),
        }
    }

    /// A worker has so many left, and this more or fewer are being asked about.
    pub(crate) fn left(&self, worker: u8, left: usize) {
        self.lefts[usize::from(worker)].store(left as u64, Relaxed);
    }

    pub(crate) fn lefts(&self) -> Vec<u64> {
        self.lefts.iter().map(|left| left.load(Relaxed)).collect()
    }

    pub(crate) fn asks(&self) {
        self.asked.fetch_add(1, Relaxed);
    }

    /// A question came to its end: answered, given up, or never taken.
    pub(crate) fn asked(&self) {
        self.asked.fetch_sub(1, Relaxed);
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
        Count {
            left: self.lefts().iter().sum(),
            asked: self.asked.load(Relaxed),
            moved: self.moved.load(Relaxed),
            stayed: self.stayed.load(Relaxed),
            unplaced: self.unplaced.load(Relaxed),
        }
    }
}
