//! A walk along gateways that have more to do than they take.

use std::{collections::HashSet, mem};

use super::{Endpoints, Origin, lives, place};

impl Endpoints {
    /// The gateway has more to do than it takes, so it lives: on to another that did not fail, which is nobody's failure; without one it is
    /// come back to. After each round in which all of them were busy one that failed is tried again: it may be back, with room
    /// for everybody. Such a round counts towards a scheduler's turn, which may know of more gateways. A bootstrap gateway is left for
    /// that at once.
    pub fn busy(&mut self) {
        if let Origin::Bootstrap(_) = self.origin {
            return self.failed_altogether();
        }
        if let Some(here) = self.list.get(self.at) {
            self.failed.retain(|id| *id != here.gateway_id);
        }
        self.busy += 1;
        let round = self.busy >= self.willing();
        if round {
            self.busy = 0;
            self.busy_rounds = self.busy_rounds.saturating_add(1);
        }
        let again = if round { self.failed_longest_ago() } else { None };
        self.again = again.is_some();
        self.at = again.or_else(|| self.elsewhere(|there| !self.has_failed(there))).unwrap_or(self.at);
    }

    fn failed_longest_ago(&self) -> Option<usize> {
        self.failed.iter().find_map(|id| self.elsewhere(|there| there.gateway_id == *id))
    }

    /// Whether the gateway was tried again though it had failed. That it still fails is no news and does not count, or whoever stands in
    /// line would lose his list by it: back to those that are busy.
    pub(super) fn failed_again(&mut self) -> bool {
        if !mem::take(&mut self.again) {
            return false;
        }
        let id = self.list.get(self.at).map(|endpoint| endpoint.gateway_id.clone());
        self.failed.retain(|failed| Some(failed) != id.as_ref());
        self.failed.extend(id);
        self.at = self.elsewhere(|there| !self.has_failed(there)).unwrap_or(self.at);
        true
    }

    /// No scheduler answers. A list that was left only because all of its gateways were busy is gone on with as long as its ticket lives.
    /// Whether there is one.
    pub fn resume(&mut self, now_ms: i64) -> bool {
        let Self { at, failures, origin, .. } = *self;
        let left_busy = failures < self.told.reschedule_after && self.too_often();
        let walked = matches!(origin, Origin::Told | Origin::Kept);
        if !walked || !left_busy || !lives(self.expires_at_ms, now_ms) || at >= self.told.endpoints.len() {
            return false;
        }
        self.walk();
        (self.at, self.failures, self.origin) = (at, failures, origin);
        true
    }

    /// How many places the list has whose gateway did not fail.
    fn willing(&self) -> usize {
        let willing = self.list.iter().filter(|endpoint| !self.has_failed(endpoint));
        willing.filter_map(place).collect::<HashSet<_>>().len()
    }
}
