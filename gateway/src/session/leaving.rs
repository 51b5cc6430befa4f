//! How a session goes when its gateway lets go of it (a drain, a stop, a move elsewhere): answered first, if that can be.

use std::net::IpAddr;

use berth_proto::{code::CloseCode, wire::RedirectAsk};

use super::{Cx, Goodbye, Session, Stage};
use crate::{clock::Now, mover::Order};

impl Session {
    /// The session is let go of with that goodbye: now, or after the requests in flight are answered.
    pub(crate) fn evict(&mut self, cx: &mut Cx<'_>, goodbye: Goodbye) {
        match &mut self.stage {
            Stage::Identified(session) => {
                session.leave(goodbye);
                self.leave_when_answered(cx);
            }
            Stage::Arriving(_) => self.close(cx, goodbye),
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
        self.evict(cx, Goodbye::new(CloseCode::Draining).retry_after(retry_after_ms));
    }

    pub(super) fn leave_when_answered(&mut self, cx: &mut Cx<'_>) {
        if let Stage::Identified(session) = &mut self.stage
            && let Some(goodbye) = session.take_leave()
        {
            self.close(cx, goodbye);
        }
    }

    /// Whether it may be moved: welcomed, and not let go of yet.
    pub(crate) fn movable(&self) -> bool {
        matches!(&self.stage, Stage::Identified(session) if !session.leaving())
    }

    /// Whether its user's home is another region.
    pub(crate) fn away(&self) -> bool {
        matches!(&self.stage, Stage::Identified(session) if session.away())
    }

    /// What to ask a scheduler of it, if it may be moved. `retry_after_ms`: the wait that it will be told.
    pub(crate) fn whereabouts(
        &self,
        order: &Order,
        handle: u64,
        peer: IpAddr,
        retry_after_ms: u32,
        now: Now,
    ) -> Option<RedirectAsk> {
        let Stage::Identified(session) = &self.stage else { return None };
        (!session.leaving()).then(|| RedirectAsk {
            purpose: order.purpose.into(),
            pool: order.pool.clone(),
            within_permille: order.within_permille,
            retry_after_ms,
            ..session.ask(handle, self.wire, peer, now)
        })
    }
}
