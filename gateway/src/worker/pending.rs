//! Those who have not said hello: a worker holds a bounded number of them, and bounded bytes of theirs.

use super::Worker;
use crate::{
    connection::{Connection, Verdict},
    guard::Pending,
    shared::Shared,
    table::Place,
};

/// Bytes kept over all workers for peers that have not said hello: incomplete heads of requests and incomplete hellos. A
/// whole budget of honest ones (8,192 by default), each in the middle of a hello of 2 KiB, fits in.
const BYTES: usize = 16 * 1024 * 1024;

/// A worker's share of the bounds. However small the gateway, those who have not said hello never take the half of it.
pub(super) fn share(shared: &Shared) -> Pending<Place> {
    let workers = shared.inlets.len().max(1);
    let most = u64::from(shared.config.limits.pending_handshakes).min(shared.capacity / 2).max(1);
    Pending::new(usize::try_from(most).unwrap_or(usize::MAX).div_ceil(workers), BYTES / workers)
}

impl Worker {
    pub(super) fn enter_pending(&mut self, place: Place) {
        self.pending.enter(place);
        self.shared.metrics.pending.increment(1.0);
    }

    /// Follows a connection that was pending, with `before` bytes kept, over one step.
    pub(super) fn still_pending(&mut self, connection: &mut Connection, before: u32, verdict: Verdict) {
        let before = usize::try_from(before).expect("usize has 64 bits here");
        if verdict == Verdict::Gone || !connection.session.pending() {
            connection.pending = None;
            self.pending.leave(before);
            self.shared.metrics.pending.decrement(1.0);
            return;
        }
        let after = u32::try_from(connection.input_memory()).unwrap_or(u32::MAX);
        connection.pending = Some(after);
        self.pending.resize(before, usize::try_from(after).expect("usize has 64 bits here"));
    }

    /// While too many dawdle, the oldest gives way.
    pub(super) fn crowd_out(&mut self) {
        while let Some(place) = self.pending.give_way() {
            self.with(place, |session, cx| session.crowd_out(cx));
        }
        let table = &self.table;
        self.pending.tidy(|place| table.get(place).is_some_and(|connection| connection.pending.is_some()));
    }
}
