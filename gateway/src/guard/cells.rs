//! A rate for each of unboundedly many keys in a table that never grows, whoever asks.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::atomic::{AtomicI64, Ordering::Relaxed},
};

use super::Rate;

/// Cells of a table: 512 KiB. Two keys share a cell with probability 1 in 65,536, under a hash that nobody outside the
/// process can aim with.
const CELLS: usize = 65_536;

/// One cell for each hash of a key. Without a limit there are none.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    rate: Rate,
    cells: Box<[AtomicI64]>,
    hasher: RandomState,
}

impl Cells {
    pub(crate) fn new(rate: Rate) -> Self {
        let count = if rate.limits() { CELLS } else { 0 };
        Self { rate, cells: (0..count).map(|_| AtomicI64::new(0)).collect(), hasher: RandomState::new() }
    }

    /// Takes one of `key` at `now_ms`, from any thread.
    ///
    /// # Errors
    /// As [`Rate::take`].
    pub(crate) fn take(&self, key: impl Hash, now_ms: i64) -> Result<(), u32> {
        let place = usize::try_from(self.hasher.hash_one(key) % CELLS as u64).expect("below 65,536");
        let Some(cell) = self.cells.get(place) else { return Ok(()) };
        let mut wait_ms = 0;
        let step = |due| self.rate.take(due, now_ms).map_err(|wait| wait_ms = wait).ok();
        match cell.fetch_update(Relaxed, Relaxed, step) {
            Ok(_) => Ok(()),
            Err(_) => Err(wait_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_at_once_and_others_are_not_touched() {
        let cells = Cells::new(Rate::new(10));
        assert_eq!((0..20).filter(|_| cells.take("alice", 5_000).is_ok()).count(), 10);
        let wait = cells.take("alice", 5_000).expect_err("spent");
        assert!((1..=100).contains(&wait), "{wait}");
        assert_eq!(cells.take("alice", 5_000 + i64::from(wait)), Ok(()));
        let free = (0..100).filter(|n| cells.take(format!("u{n}"), 5_000).is_ok()).count();
        assert!(free >= 98, "{free} of 100 passed; only a shared cell may refuse");
    }

    #[test]
    fn without_a_limit_there_is_no_table() {
        let cells = Cells::new(Rate::new(0));
        assert!(cells.cells.is_empty() && (0..100).all(|_| cells.take("alice", 0).is_ok()));
    }
}
