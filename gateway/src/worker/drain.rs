//! Saying 4001 to everybody, a part at each wake-up, so that those who are still here are served meanwhile.

use rand::Rng;

use super::Worker;
use crate::table::Place;

/// Connections told at one wake-up.
const EVICTIONS_PER_TURN: usize = 256;

/// The wait given at a stop that no drain came before, in milliseconds.
const STOP_SPREAD_MS: u32 = 2_000;

/// Who is still to be told.
pub(super) struct Eviction {
    left: Vec<Place>,
    spread_ms: u32,
}

impl Worker {
    pub(super) fn begin_eviction(&mut self, spread_ms: u32) {
        let left = self.table.iter().map(|(place, _)| place).collect();
        self.eviction = Some(Eviction { left, spread_ms });
    }

    /// No new connections; those here are told, and have until the deadline to go.
    pub(super) fn begin_stop(&mut self) {
        self.acceptor.close();
        self.env.stopping = true;
        // Anew, though a drain may have listed them before: those who linger since are given less time now.
        self.begin_eviction(STOP_SPREAD_MS);
        let grace = i64::try_from(self.env.timeouts.stop.as_millis()).unwrap_or(i64::MAX);
        self.stopping_ms = Some(self.now.steady_ms.saturating_add(grace));
    }

    pub(super) fn evict_some(&mut self) {
        for _ in 0..EVICTIONS_PER_TURN {
            let Some(eviction) = &mut self.eviction else { return };
            let Some(place) = eviction.left.pop() else {
                self.eviction = None;
                return;
            };
            let retry_after_ms = self.rng.random_range(0..=eviction.spread_ms);
            self.with(place, |session, cx| session.evict(cx, retry_after_ms));
        }
    }
}
