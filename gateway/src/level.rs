//! A worker's part of the gauges that all workers move: what is left of it goes with the worker, however that ends.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use metrics::Gauge;

use crate::metrics::Metrics;

/// A worker's parts. Whoever comes is counted until he goes, at the latest with the worker.
pub(crate) struct Levels {
    pub(crate) connections: Level,
    pub(crate) sessions: Level,
    pub(crate) pending: Level,
    pub(crate) requests_in_flight: Level,
}

impl Levels {
    /// `sessions`: those of all workers together.
    pub(crate) fn new(metrics: &Metrics, sessions: Arc<AtomicU64>) -> Self {
        Self {
            connections: Level::of(&metrics.connections),
            sessions: Level::also(&metrics.sessions, sessions),
            pending: Level::of(&metrics.pending),
            requests_in_flight: Level::of(&metrics.requests.in_flight),
        }
    }
}

/// A part of one gauge.
pub(crate) struct Level {
    gauge: Gauge,
    /// The same number, where the gateway itself goes by it.
    total: Option<Arc<AtomicU64>>,
    part: Cell<u64>,
}

impl Level {
    fn of(gauge: &Gauge) -> Self {
        Self { gauge: gauge.clone(), total: None, part: Cell::new(0) }
    }

    fn also(gauge: &Gauge, total: Arc<AtomicU64>) -> Self {
        let mut level = Self::of(gauge);
        level.total = Some(total);
        level
    }

    /// One more.
    pub(crate) fn up(&self) {
        self.part.set(self.part.get() + 1);
        self.gauge.increment(1.0);
        if let Some(total) = &self.total {
            total.fetch_add(1, Relaxed);
        }
    }

    /// So many fewer: no more than came.
    pub(crate) fn down(&self, count: usize) {
        let count = count as u64;
        debug_assert!(count <= self.part.get(), "who goes has come");
        self.part.set(self.part.get().saturating_sub(count));
        self.take(count);
    }

    /// How many are here.
    pub(crate) fn part(&self) -> u64 {
        self.part.get()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of connections are far below 2^52")]
    fn take(&self, count: u64) {
        self.gauge.decrement(count as f64);
        if let Some(total) = &self.total {
            total.fetch_sub(count, Relaxed);
        }
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        self.take(self.part.get());
    }
}
