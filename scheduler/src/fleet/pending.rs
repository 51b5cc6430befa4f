//! What this replica has assigned and no gateway has reported as used yet.
//!
//! Reports are half a second old on average; without this a replica would send everybody of that half second to the
//! same gateways. An assignment counts until a gateway (any: the client walks along its list) reports its ticket as
//! used, and for at most [`PENDING_MS`].

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
};

use super::{Fleet, Profile};

/// A client that has not connected after 10 s is not coming, or will ask again.
const PENDING_MS: i64 = 10_000;

/// Most assignments remembered: 26,000 a second for ten seconds. Beyond, the oldest stops counting early.
const MAX_PENDING: usize = 262_144;

/// How pending assignments ended, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PendingCounts {
    /// A gateway saw the ticket.
    pub used: u64,
    /// Nobody came.
    pub expired: u64,
    /// Stopped counting early, since too many were pending.
    pub evicted: u64,
}

/// The ledger of pending assignments.
#[derive(Debug, Default)]
pub struct Pending {
    open: HashMap<u64, Arc<Profile>>,
    /// In order of time: all live equally long. Holds used ones too, until their time comes.
    order: VecDeque<(i64, u64)>,
    counts: PendingCounts,
}

impl Pending {
    /// Counts an assignment to a gateway of `fleet`, under its schedule id.
    pub fn assign(&mut self, fleet: &Fleet, gateway: u32, schedule_id: u64, now_ms: i64) {
        while self.order.len() >= MAX_PENDING {
            self.drop_oldest(|counts| &mut counts.evicted);
        }
        let gateway = fleet.gateway(gateway);
        gateway.profile.pending.fetch_add(1, Ordering::Relaxed);
        for group in fleet.groups_of(gateway) {
            group.pending.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(before) = self.open.insert(schedule_id, Arc::clone(&gateway.profile)) {
            before.pending.fetch_sub(1, Ordering::Relaxed);
        }
        self.order.push_back((now_ms + PENDING_MS, schedule_id));
    }

    /// A gateway saw these tickets: they are in its connections now.
    pub fn used(&mut self, schedule_ids: &[u64]) {
        for id in schedule_ids {
            if let Some(profile) = self.open.remove(id) {
                profile.pending.fetch_sub(1, Ordering::Relaxed);
                self.counts.used += 1;
            }
        }
    }

    /// Stops counting what is older than ten seconds.
    pub fn expire(&mut self, now_ms: i64) {
        while self.order.front().is_some_and(|(until, _)| *until <= now_ms) {
            self.drop_oldest(|counts| &mut counts.expired);
        }
    }

    /// How many are pending now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// How they ended so far.
    #[must_use]
    pub fn counts(&self) -> PendingCounts {
        self.counts
    }

    fn drop_oldest(&mut self, counter: impl Fn(&mut PendingCounts) -> &mut u64) {
        let Some((_, id)) = self.order.pop_front() else { return };
        if let Some(profile) = self.open.remove(&id) {
            profile.pending.fetch_sub(1, Ordering::Relaxed);
            *counter(&mut self.counts) += 1;
        }
    }
}
