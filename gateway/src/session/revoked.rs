//! A session whose credentials are void: it ends with 4500, before its welcome or after it; or with 4005, if only the key is void
//! that its ticket was signed with.

use berth_proto::{code::CloseCode, wire::Revocation};

use super::{Cx, Env, Goodbye, Session, Stage, identified::Identity};

impl Session {
    /// Who identified himself here; none: nobody has, or he goes already.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        match &self.stage {
            Stage::Identified(session) => Some(session.identity()),
            _ => None,
        }
    }

    /// His credentials are void.
    pub(crate) fn revoke(&mut self, cx: &mut Cx<'_>, revocation: &Revocation) {
        cx.env.metrics.sessions_revoked.increment(1);
        self.close(cx, goodbye(revocation));
    }

    /// The key of the ticket that let him in is void: he is to show a scheduler who he is.
    pub(crate) fn let_in_wrongly(&mut self, cx: &mut Cx<'_>, retry_after_ms: u32) {
        if self.movable() {
            cx.env.metrics.sessions_key_void.increment(1);
        }
        self.evict(cx, key_void().retry_after(retry_after_ms));
    }
}

/// Whether the key of the ticket that he showed is good still: it may have become void since. Asked at the welcome.
pub(super) fn check_key(env: &Env, identity: &Identity) -> Result<(), Goodbye> {
    if env.verifier.knows(identity.ticket_key()) { Ok(()) } else { Err(key_void()) }
}

fn key_void() -> Goodbye {
    Goodbye::new(CloseCode::TicketExpired)
        .because("the key of the ticket is void; ask a scheduler for a new one")
}

/// Whether who identifies himself may be let in: not with what was revoked. Asked at the hello, and again at the welcome, since
/// the revocation may come in between.
pub(super) fn check(env: &Env, identity: &Identity) -> Result<(), Goodbye> {
    let (user, device, issued_at_ms) = (identity.user(), identity.device(), identity.auth_issued_at_ms());
    let revoked = env.revoked.find(user, device, issued_at_ms);
    revoked.map_or(Ok(()), |revocation| Err(goodbye(&revocation)))
}

fn goodbye(revocation: &Revocation) -> Goodbye {
    let reason = &revocation.reason;
    let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Goodbye::new(CloseCode::Unauthenticated).because(format!("the sign-in was revoked{because}"))
}
