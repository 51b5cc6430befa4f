//! How a session goes when its gateway drains or stops: answered first, if that can be.

use berth_proto::code::CloseCode;

use super::{Cx, Goodbye, Session, Stage};

impl Session {
    /// The gateway drains: says 4001 now, or after the requests in flight are answered.
    pub(crate) fn evict(&mut self, cx: &mut Cx<'_>, retry_after_ms: u32) {
        match &mut self.stage {
            Stage::Identified(session) => {
                session.leave(retry_after_ms);
                self.leave_when_answered(cx);
            }
            Stage::Arriving(_) => {
                self.close(cx, Goodbye::new(CloseCode::Draining).retry_after(retry_after_ms))
            }
            // Its goodbye is written: at a stop it is not waited for as long as otherwise.
            Stage::Closing { deadline_ms, .. } if self.blocked_ms == 0 => {
                *deadline_ms = (*deadline_ms).min(cx.now.steady_ms.saturating_add(cx.env.linger_ms(true)));
            }
            Stage::Closing { .. } | Stage::Gone => {}
        }
    }

    /// The gateway is about to end: says so to each request that waits, and 4001.
    pub(crate) fn dismiss(&mut self, cx: &mut Cx<'_>, retry_after_ms: u32) {
        if let Stage::Identified(session) = &mut self.stage {
            session.give_up(cx, self.wire, "the gateway stops before logic answered");
        }
        self.evict(cx, retry_after_ms);
    }

    pub(super) fn leave_when_answered(&mut self, cx: &mut Cx<'_>) {
        if let Stage::Identified(session) = &self.stage
            && let Some(retry_after_ms) = session.ready_to_leave()
        {
            self.close(cx, Goodbye::new(CloseCode::Draining).retry_after(retry_after_ms));
        }
    }
}
