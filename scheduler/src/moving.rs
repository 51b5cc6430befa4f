//! Moving connected users: whether those who were told to go arrive, which homes are there, what was ordered, how far it is.

mod arrivals;
mod homes;
pub(crate) mod plan;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use berth_proto::{
    carry::{Record, kind},
    wire::{CarriedRecord, Drain, Introduction, MoveOrder, MoveProgress},
};

use self::{arrivals::Arrivals, homes::Homes};
use crate::{
    core::Core,
    fleet::{Fleet, PendingCounts},
    policy::Policy,
};

/// What a scheduler knows of connections that are moved.
#[derive(Default)]
pub(crate) struct Moving {
    arrivals: Mutex<Arrivals>,
    homes: Mutex<Homes>,
    /// Of the home regions that can take connections.
    homes_there: AtomicU64,
    /// By gateway, as it reported last.
    progress: Mutex<HashMap<String, Vec<MoveProgress>>>,
    /// The last rebalance, by gateway.
    orders: Mutex<HashMap<String, MoveOrder>>,
}

impl Moving {
    /// Takes note of a new snapshot.
    pub fn look(&self, fleet: &Fleet, policy: &Policy, ended: PendingCounts, now_ms: i64) {
        lock(&self.arrivals).count(ended.arrived, ended.lost, now_ms);
        self.homes_there.store(lock(&self.homes).look(fleet, policy, now_ms), Relaxed);
    }

    /// Why nobody should be moved now, if so: those who were told to go do not arrive.
    pub fn hold(&self) -> Option<String> {
        lock(&self.arrivals).hold()
    }

    /// A gateway reported how far it is.
    pub fn progressed(&self, gateway_id: &str, progress: &[MoveProgress]) {
        let mut known = lock(&self.progress);
        if progress.is_empty() {
            known.remove(gateway_id);
        } else {
            known.insert(gateway_id.to_owned(), progress.to_vec());
        }
    }

    /// How far every gateway of the fleet is, as it said last. The others are forgotten.
    pub fn progress(&self, fleet: &Fleet) -> HashMap<String, Vec<MoveProgress>> {
        let mut known = lock(&self.progress);
        known.retain(|gateway_id, _| fleet.find(gateway_id).is_some());
        known.clone()
    }

    /// Gateways are to let go of some connections, each as its order says; those who had orders before are to end them.
    pub fn order(&self, orders: HashMap<String, MoveOrder>, id: u64) {
        let mut known = lock(&self.orders);
        for order in known.values_mut() {
            *order = MoveOrder { id, ..MoveOrder::default() };
        }
        known.extend(orders);
    }

    /// The order of a gateway.
    pub fn order_of(&self, gateway_id: &str) -> Option<MoveOrder> {
        lock(&self.orders).get(gateway_id).copied()
    }
}

impl Core {
    /// What a gateway is told of this scheduler.
    pub fn introduction(&self) -> Introduction {
        let policy = self.policy.load();
        Introduction {
            scheduler_id: self.id.clone(),
            policy_version: policy.version,
            policy_hash: policy.hash.clone(),
            placement: policy.placement,
            moves_per_second: policy.moves_per_second,
            homes: self.moving.homes_there.load(Relaxed),
            boot: self.queue_tokens.issuer(),
        }
    }

    /// The drains that are known, with their versions; also those that ended.
    pub fn drains(&self) -> Vec<(u64, Drain)> {
        let drain = |carried: &CarriedRecord| match Record::read(carried) {
            Some(Record::Drain(drain)) => Some((carried.version, drain)),
            _ => None,
        };
        self.carried.read(|store| store.of_kind(kind::DRAIN).filter_map(drain).collect())
    }

    /// An operator drains a gateway, or no longer does.
    pub fn drains_changed(&self) {
        let active = self.drains().into_iter().filter(|(_, drain)| drain.active);
        let drained: HashSet<String> = active.map(|(_, drain)| drain.gateway_id).collect();
        self.drained(drained);
    }
}

/// Nothing panics while it holds one of these locks halfway through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
