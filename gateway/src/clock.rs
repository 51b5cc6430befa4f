//! The one place that reads a clock: the parts behind it are given the time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time as a worker saw it at the start of a wake-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the Unix epoch at the process's start, plus what a monotonic clock counted since. Every
    /// deadline is on this scale, so that a step of the wall clock closes nobody.
    pub steady_ms: i64,
    /// Milliseconds since the Unix epoch by the wall clock: what tickets and clients are told in.
    pub wall_ms: i64,
}

/// Reads both scales.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
    started_ms: i64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), started_ms: wall_ms() }
    }

    pub(crate) fn now(&self) -> Now {
        Now { steady_ms: self.started_ms + self.uptime_ms(), wall_ms: wall_ms() }
    }

    /// Since [`Clock::start`], to measure how long something takes.
    pub(crate) fn precise(&self) -> Duration {
        self.started.elapsed()
    }

    /// Milliseconds since [`Clock::start`].
    pub(crate) fn uptime_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

fn wall_ms() -> i64 {
    // A clock before 1970 is a broken one; 0 then refuses no ticket and hides nothing.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
