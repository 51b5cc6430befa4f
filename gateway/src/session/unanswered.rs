//! The link to a session's logic broke: nobody waits for answers that will not come.

use super::{Cx, Goodbye, Session, Stage};

impl Session {
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
}
