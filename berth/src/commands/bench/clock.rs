//! The time of a run: one clock for all that a process measures.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::pace::Nanos;

/// Nanoseconds since the start of this process's share, and their place on the wall clock, which all processes share.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    wall: u128,
}

impl Clock {
    /// Begins at 1, so that 0 can stand for never.
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Self { origin: Instant::now(), wall }
    }

    /// Now.
    pub fn now(&self) -> Nanos {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX - 1) + 1
    }

    /// A time of the wall clock, in nanoseconds since the Unix epoch, on this clock.
    pub fn of_wall(&self, wall: u128) -> Nanos {
        u64::try_from(wall.saturating_sub(self.wall)).unwrap_or(u64::MAX)
    }
}
