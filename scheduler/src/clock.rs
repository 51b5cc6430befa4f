//! The only place that reads a clock: everything else takes milliseconds as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Two clocks, both in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// Starts the monotonic clock at 0.
    #[must_use]
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Since the start; never jumps. For the age of reports, so that a corrected wall clock does not make a fleet stale.
    #[must_use]
    pub fn monotonic_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// Since the Unix epoch. For tokens and tickets, which others read.
    #[must_use]
    pub fn wall_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}
