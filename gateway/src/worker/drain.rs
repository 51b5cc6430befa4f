//! Saying 4001 to everybody, or to all who were welcomed, a part at each wake-up, so that those who are still here are served meanwhile.

use berth_proto::code::CloseCode;
use rand::Rng;

use super::Worker;
use crate::{
    metrics::Moved,
    session::{Goodbye, Session},
    table::Place,
};

/// Connections told at one wake-up.
pub(super) const EVICTIONS_PER_TURN: usize = 256;

/// So long before the grace of a stop ends nobody is waited for any more, in milliseconds: what is said then still has to
/// be taken.
const LAST_CALL_MS: i64 = 1_000;

/// Who is still to be told.
pub(super) struct Eviction {
    left: Vec<Place>,
    spread_ms: u32,
}

impl Worker {
    pub(super) fn begin_eviction(&mut self, spread_ms: u32, whom: impl Fn(&Session) -> bool) {
        let whom = self.table.iter().filter(|(_, connection)| whom(&connection.session));
        let left = whom.map(|(place, _)| place).collect();
        self.eviction = Some(Eviction { left, spread_ms });
    }

    /// No new connections; those here are told, and have until the deadline to go.
    pub(super) fn begin_stop(&mut self) {
        self.acceptor.close();
        self.env.stopping = true;
        // Anew, though a drain may have listed them before: those who linger since are given less time now.
        self.begin_eviction(self.env.spread_ms, |_| true);
        let grace = i64::try_from(self.env.timeouts.stop.as_millis()).unwrap_or(i64::MAX);
        let until = self.now.steady_ms.saturating_add(grace);
        self.stopping_ms = Some(until);
        self.last_call_ms = Some(until.saturating_sub(LAST_CALL_MS.min(grace / 2)));
    }

    /// Shortly before the end: whoever still waits for answers is told that none will come, and goes.
    pub(super) fn last_call(&mut self) {
        if self.last_call_ms.is_none_or(|at| self.now.steady_ms < at) {
            return;
        }
        self.last_call_ms = None;
        let places: Vec<Place> = self.table.iter().map(|(place, _)| place).collect();
        for place in places {
            let retry_after_ms = self.rng.random_range(0..=self.env.spread_ms);
            self.with(place, |session, cx| session.dismiss(cx, retry_after_ms));
        }
    }

    pub(super) fn evict_some(&mut self) {
        for _ in 0..EVICTIONS_PER_TURN {
            let Some(eviction) = &mut self.eviction else { return };
            let Some(place) = eviction.left.pop() else {
                self.eviction = None;
                return;
            };
            let goodbye =
                Goodbye::new(CloseCode::Draining).retry_after(self.rng.random_range(0..=eviction.spread_ms));
            let movable = self.table.get(place).is_some_and(|connection| connection.session.movable());
            self.with(place, |session, cx| session.evict(cx, goodbye));
            if movable && self.env.evacuating {
                self.shared.metrics.moves.one(Moved::Unplaced);
                if let Some(moving) = &self.moving {
                    moving.unplaced();
                }
            }
        }
    }
}
