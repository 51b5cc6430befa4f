//! Unix milliseconds that never go back: the system's time at the start, and the monotonic clock from there on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// The clock of one client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
    start_ms: i64,
}

impl Clock {
    /// Starts at the system's time.
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), start_ms: to_ms(since_epoch) }
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> i64 {
        self.start_ms.saturating_add(to_ms(self.start.elapsed()))
    }

    /// The instant of a time of this clock; what lies before the start is the start.
    pub fn instant(&self, at_ms: i64) -> Instant {
        self.start + from_ms(at_ms.saturating_sub(self.start_ms))
    }
}

/// A duration's milliseconds.
pub(crate) fn to_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Milliseconds as a duration; a year at the most, which no timer of ours reaches.
pub(crate) fn from_ms(ms: i64) -> Duration {
    const YEAR_MS: i64 = 365 * 24 * 3600 * 1000;
    Duration::from_millis(ms.clamp(0, YEAR_MS).unsigned_abs())
}
