//! The per-user rate limit: a fixed table of cells that never grows, whoever asks.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicI64, Ordering},
};

/// Cells of the table: 512 KiB. Two users share a cell with probability 1 in 65,536, under a hash that nobody outside
/// the process can aim with.
const CELLS: usize = 65_536;

/// A generic cell rate algorithm (ITU-T I.371) per hash of the key: `rate` requests a second, a second's worth at once.
pub struct RateLimiter {
    cells: Box<[AtomicI64]>,
    hasher: RandomState,
    interval_us: i64,
    per_second: u32,
}

/// What one second is worth at once, in microseconds.
const BURST_US: i64 = 1_000_000;

impl RateLimiter {
    /// Allows each key `per_second` requests; 0 counts as 1.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self {
            cells: (0..CELLS).map(|_| AtomicI64::new(i64::MIN)).collect(),
            hasher: RandomState::new(),
            interval_us: (BURST_US / i64::from(per_second.max(1))).max(1),
            per_second: per_second.max(1),
        }
    }

    /// The limit, for the error that tells it.
    #[must_use]
    pub fn per_second(&self) -> u32 {
        self.per_second
    }

    /// Takes one request of `key` at `now_ms`.
    ///
    /// # Errors
    /// When the key had its share: after how many milliseconds one is free again.
    pub fn take(&self, key: &str, now_ms: i64) -> Result<(), u32> {
        let now = now_ms.saturating_mul(1000);
        let place = self.hasher.hash_one(key) % (CELLS as u64);
        let cell = &self.cells[usize::try_from(place).expect("below 65,536")];
        let mut wait_us = 0;
        // The cell holds the theoretical arrival time: when everything granted so far would have been due.
        let taken = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| {
            let due = due.max(now);
            wait_us = due - now + self.interval_us - BURST_US;
            (wait_us <= 0).then(|| due + self.interval_us)
        });
        match taken {
            Ok(_) => Ok(()),
            Err(_) => Err(u32::try_from(wait_us / 1000 + 1).unwrap_or(u32::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_at_once_then_the_rate() {
        let limiter = RateLimiter::new(10);
        let burst = (0..20).filter(|_| limiter.take("alice", 5_000).is_ok()).count();
        assert_eq!(burst, 10);
        let wait = limiter.take("alice", 5_000).expect_err("spent");
        assert!((1..=101).contains(&wait), "{wait}");
        assert_eq!(limiter.take("alice", 5_000 + i64::from(wait)), Ok(()));
        assert!(limiter.take("alice", 5_000 + i64::from(wait)).is_err());
    }

    #[test]
    fn others_are_not_touched() {
        let limiter = RateLimiter::new(1);
        assert!(limiter.take("alice", 0).is_ok());
        assert!(limiter.take("alice", 0).is_err());
        let free = (0..100).filter(|n| limiter.take(&format!("u{n}"), 0).is_ok()).count();
        assert!(free >= 98, "{free} of 100 passed; only a shared cell may refuse");
    }

    #[test]
    fn long_run_rate_is_kept() {
        let limiter = RateLimiter::new(100);
        let granted = (0..10_000).filter(|ms| limiter.take("alice", *ms).is_ok()).count();
        assert!((1_090..=1_100).contains(&granted), "10 s at 100/s and a burst of 100: {granted}");
    }
}
