//! Closing who is connected with credentials that are void now. Each revocation is looked for in the whole table: several at a time,
//! so that a thousand a second cost a few looks. Who was let in by a ticket key that is void may be everybody: some of them at each
//! wake-up.

use std::{collections::HashMap, sync::Arc};

use berth_proto::{limits::LONGEST_WAIT_MS, wire::Revocation};
use rand::Rng;

use super::{Worker, drain::EVICTIONS_PER_TURN};
use crate::{session::Session, table::Place};

/// Between two looks, in milliseconds: far below the two seconds in which a revoked session has to be closed.
const BETWEEN_MS: i64 = 100;

/// The longest spread of those whose key is void, in milliseconds, as schedulers have one for the clients of a gateway that is gone.
/// Beyond, gateways and schedulers themselves tell those above their rates when to come.
const LONGEST_SPREAD_MS: u32 = LONGEST_WAIT_MS / 5;

/// What is looked for.
#[derive(Default)]
pub(super) struct Revoking {
    due: Vec<Arc<Revocation>>,
    not_before_ms: i64,
    /// Who was let in by a key that is void, and is not closed yet.
    let_in: Vec<Place>,
    /// Over how long they come back, in milliseconds.
    spread_ms: u32,
}

impl Revoking {
    pub(super) fn add(&mut self, revocation: Arc<Revocation>) {
        self.due.push(revocation);
    }

    /// When there is something to do.
    pub(super) fn next_ms(&self) -> Option<i64> {
        if !self.let_in.is_empty() {
            return Some(0);
        }
        (!self.due.is_empty()).then_some(self.not_before_ms)
    }

    /// What is to be looked for now.
    fn take(&mut self, now_ms: i64) -> Vec<Arc<Revocation>> {
        if now_ms < self.not_before_ms || self.due.is_empty() {
            return Vec::new();
        }
        self.not_before_ms = now_ms + BETWEEN_MS;
        std::mem::take(&mut self.due)
    }
}

impl Worker {
    pub(super) fn close_revoked(&mut self) {
        let revocations = self.revoking.take(self.now.steady_ms);
        if revocations.is_empty() {
            return;
        }
        let mut by_user: HashMap<&str, Vec<&Revocation>> = HashMap::new();
        for revocation in &revocations {
            by_user.entry(&revocation.user_id).or_default().push(revocation);
        }
        let connections = self.table.iter();
        let found: Vec<(Place, &Revocation)> = connections
            .filter_map(|(place, connection)| Some((place, voided(&connection.session, &by_user)?)))
            .collect();
        for (place, revocation) in found {
            self.with(place, |session, cx| session.revoke(cx, revocation));
        }
    }
}

impl Worker {
    /// Who was let in by a ticket of a key that is void now is to go. Who says hello meanwhile is looked at with his welcome.
    ///
    /// It may be everybody who is connected anywhere: each worker spreads its own over the time in which its share of the gateway's
    /// handshakes would take them back, so all of them together come as fast as gateways take them.
    pub(super) fn list_let_in_by(&mut self, tags: &[u32]) {
        let connections = self.table.iter();
        let let_in = connections.filter(|(_, connection)| {
            connection.session.identity().is_some_and(|identity| tags.contains(&identity.ticket_key()))
        });
        // Those of an earlier list who are not closed yet are among them.
        self.revoking.let_in = let_in.map(|(place, _)| place).collect();
        let everywhere = self.revoking.let_in.len().saturating_mul(self.shared.inlets.len());
        let takes_ms = everywhere as u64 * 1_000 / u64::from(self.shared.config.handshakes_per_second.max(1));
        let takes_ms = u32::try_from(takes_ms).unwrap_or(u32::MAX).min(LONGEST_SPREAD_MS);
        self.revoking.spread_ms = self.env.spread_ms.max(takes_ms);
    }

    /// Closes some of those, each answered first. The wait is for honest clients alone: nobody stays for its sake.
    pub(super) fn close_let_in(&mut self) {
        let left = self.revoking.let_in.len().saturating_sub(EVICTIONS_PER_TURN);
        for place in self.revoking.let_in.split_off(left) {
            let retry_after_ms = self.rng.random_range(0..=self.revoking.spread_ms);
            self.with(place, |session, cx| session.let_in_wrongly(cx, retry_after_ms));
        }
        if self.revoking.let_in.is_empty() {
            self.revoking.let_in = Vec::new();
        }
    }
}

/// Of these the one that voids what the session was opened with.
fn voided<'a>(session: &Session, by_user: &HashMap<&str, Vec<&'a Revocation>>) -> Option<&'a Revocation> {
    let identity = session.identity()?;
    let theirs = by_user.get(identity.user())?.iter().copied();
    let mut fitting = theirs.filter(|one| one.device_id.is_empty() || one.device_id == identity.device());
    fitting.find(|one| identity.auth_issued_at_ms() < one.not_before_ms)
}
