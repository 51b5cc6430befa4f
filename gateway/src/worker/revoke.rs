//! Closing who is connected with credentials that are void now. Each revocation is looked for in the whole table: several at a time,
//! so that a thousand a second cost a few looks.

use std::{collections::HashMap, sync::Arc};

use berth_proto::wire::Revocation;
use rand::Rng;

use super::Worker;
use crate::{session::Session, table::Place};

/// Between two looks, in milliseconds: far below the two seconds in which a revoked session has to be closed.
const BETWEEN_MS: i64 = 100;

/// What is looked for.
#[derive(Default)]
pub(super) struct Revoking {
    due: Vec<Arc<Revocation>>,
    not_before_ms: i64,
}

impl Revoking {
    pub(super) fn add(&mut self, revocation: Arc<Revocation>) {
        self.due.push(revocation);
    }

    /// When there is something to do.
    pub(super) fn next_ms(&self) -> Option<i64> {
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
    /// Who was let in by a ticket of a key that is void now goes: answered first, and spread like those of a drain, since it may be
    /// everybody. Who says hello meanwhile is looked at with his welcome.
    pub(super) fn close_let_in_by(&mut self, tags: &[u32]) {
        let connections = self.table.iter();
        let let_in = connections.filter(|(_, connection)| {
            connection.session.identity().is_some_and(|identity| tags.contains(&identity.ticket_key()))
        });
        let found: Vec<Place> = let_in.map(|(place, _)| place).collect();
        for place in found {
            let retry_after_ms = self.rng.random_range(0..=self.env.spread_ms);
            self.with(place, |session, cx| session.let_in_wrongly(cx, retry_after_ms));
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
