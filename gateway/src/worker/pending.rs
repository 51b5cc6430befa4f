//! Those without a hello that was accepted: a worker holds a bounded number of them, and bounded bytes of theirs.

use super::Worker;
use crate::{
    connection::{Connection, Verdict},
    guard::{Kept, Pending},
    shared::Shared,
    table::{Place, Table},
};

/// Bytes kept over all workers for peers that have not said hello: incomplete heads of requests and incomplete hellos. A
/// whole budget of honest ones (8,192 by default), each in the middle of a hello of 2 KiB, fits in; whoever keeps more than
/// that share gives way when all of it is used.
pub(super) const BYTES: usize = 16 * 1024 * 1024;

/// A worker's share of the bounds. However small the gateway, those who have not said hello never take the half of it.
pub(super) fn share(shared: &Shared) -> Pending<Place> {
    let workers = shared.inlets.len().max(1);
    let most = u64::from(shared.config.limits.pending_handshakes).min(shared.capacity / 2).max(1);
    Pending::new(usize::try_from(most).unwrap_or(usize::MAX).div_ceil(workers), BYTES / workers)
}

impl Worker {
    pub(super) fn enter_pending(&mut self, place: Place) -> Kept {
        self.env.levels.pending.up();
        self.pending.enter(place)
    }

    /// Follows a connection that was pending, with so much kept, over one step. One that is refused stays pending until it
    /// is gone: its slot costs as much while it lingers.
    pub(super) fn still_pending(
        &mut self,
        place: Place,
        connection: &mut Connection,
        mut kept: Kept,
        verdict: Verdict,
    ) {
        if verdict == Verdict::Gone || !connection.session.pending() {
            connection.pending = None;
            self.pending.leave(kept);
            self.env.levels.pending.down(1);
            return;
        }
        self.pending.resize(place, &mut kept, connection.input_memory());
        connection.pending = Some(kept);
    }

    /// While there are too many, some give way.
    pub(super) fn crowd_out(&mut self) {
        while let Some(place) = self.pending.give_way() {
            // It may have said hello since.
            if is_pending(&self.table, place) {
                self.with(place, |session, cx| session.crowd_out(cx));
            }
        }
        self.pending.tidy(|place| is_pending(&self.table, place));
    }
}

fn is_pending(table: &Table<Connection>, place: Place) -> bool {
    table.get(place).is_some_and(|connection| connection.pending.is_some())
}
