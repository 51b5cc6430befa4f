//! A session whose logic or schedulers do not take what it says, do not answer, or have forgotten it.

use berth_proto::wire::to_logic;

use super::{Cx, Goodbye, Session, Stage};

impl Session {
    /// Logic's link did not take the connection's OpenSession.
    pub(crate) fn open_refused(&mut self, cx: &mut Cx<'_>) {
        if let Stage::Arriving(arriving) = &mut self.stage {
            arriving.forget_opening();
            let goodbye = Goodbye::overloaded(cx.rng).because("logic is not reachable");
            self.close(cx, goodbye);
        }
    }

    /// Logic's link did not take the request of that number.
    pub(crate) fn request_refused(&mut self, cx: &mut Cx<'_>, number: u32) {
        if let Stage::Identified(session) = &mut self.stage {
            session.on_refused(cx, self.wire, number);
            self.leave_when_answered(cx);
        }
    }

    /// The scheduler of that index took the question where the connection belongs.
    pub(crate) fn redirect_asked(&mut self, scheduler: usize) {
        if let Stage::Arriving(arriving) = &mut self.stage {
            arriving.asked(scheduler);
        }
    }

    /// No scheduler took the question where the connection belongs.
    pub(crate) fn redirect_refused(&mut self, cx: &mut Cx<'_>) {
        if let Stage::Arriving(arriving) = &mut self.stage
            && arriving.redirecting()
            && let Err(goodbye) = arriving.undirected(cx)
        {
            self.close(cx, goodbye);
        }
    }

    /// Whether something of this connection waits for an answer of the logic with that index.
    pub(crate) fn waits_for(&self, logic: u8) -> bool {
        match &self.stage {
            Stage::Arriving(arriving) => arriving.opens_at(logic),
            Stage::Identified(session) => session.waits_for(logic),
            Stage::Closing { .. } | Stage::Gone => false,
        }
    }

    /// The link to its logic broke: the answers it waits for will not come.
    pub(crate) fn unanswered(&mut self, cx: &mut Cx<'_>) {
        match &mut self.stage {
            Stage::Arriving(_) => {
                let goodbye = Goodbye::overloaded(cx.rng).because("the link to logic broke");
                self.close(cx, goodbye);
            }
            Stage::Identified(session) => {
                session.give_up(cx, self.wire, "the link to logic broke before it answered");
                self.leave_when_answered(cx);
            }
            Stage::Closing { .. } | Stage::Gone => {}
        }
    }

    /// Of a session: the index of its logic, and when its client last gave a sign of life, on the steady scale.
    pub(crate) fn held(&self) -> Option<(u8, i64)> {
        match &self.stage {
            Stage::Identified(session) => Some(session.held()),
            _ => None,
        }
    }

    /// The OpenSession that tells a forgetful logic (the one with that index) of this session again.
    pub(crate) fn reannounce(&self, logic: u8, handle: u64) -> Option<to_logic::Message> {
        match &self.stage {
            Stage::Identified(session) => session.reannounce(logic, handle),
            _ => None,
        }
    }
}
