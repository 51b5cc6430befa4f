//! A session that meets a limit: too many frames, too long without a hello.

use berth_proto::code::CloseCode;

use super::{Cx, Goodbye, Session, Stage};
use crate::metrics::Limited;

/// Who is closed with 4007 comes back no sooner than this, in milliseconds.
const FLOOD_RETRY_MS: u32 = 1_000;

impl Session {
    /// More frames came than the connection may send: 4007.
    pub(super) fn too_many_frames(&mut self, cx: &mut Cx<'_>, wait_ms: u32) {
        cx.env.metrics.limited.one(Limited::Frames);
        // Whoever floods by mistake does not come back in a circle.
        let retry_after_ms = wait_ms.max(FLOOD_RETRY_MS);
        let goodbye = Goodbye::new(CloseCode::RateLimited).because("too many frames a second");
        self.close(cx, goodbye.retry_after(retry_after_ms));
    }

    /// Of a connection whose hello was not accepted so far: whether that is still so. One that is refused stays pending.
    pub(crate) fn pending(&self) -> bool {
        match &self.stage {
            Stage::Arriving(arriving) => !arriving.waits(),
            Stage::Closing { .. } => true,
            Stage::Identified(_) | Stage::Gone => false,
        }
    }

    /// Bytes of memory held for the fragments of a message.
    pub(crate) fn assembled(&self) -> usize {
        self.assembly.as_ref().map_or(0, |assembly| assembly.memory())
    }

    /// Too many have not said hello: this one is dropped with a word, unless it was refused with another.
    pub(crate) fn crowd_out(&mut self, cx: &mut Cx<'_>) {
        if self.pending() {
            cx.env.metrics.limited.one(Limited::PendingHandshakes);
            let goodbye = Goodbye::overloaded(cx.rng).because("too many connections have not said hello");
            self.close(cx, goodbye);
            // Without waiting for its end: it had its time.
            self.stage = Stage::Gone;
        }
    }
}
