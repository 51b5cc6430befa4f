//! Moving connected users: whether those who were told to go arrive, which homes are there, what was ordered, how far it is.

mod arrivals;
mod homes;
pub(crate) mod plan;
mod targets;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use berth_proto::{
    carry::{Record, kind},
    wire::{CarriedRecord, Drain, GatewayReport, Introduction, MoveOrder, MoveProgress, MovePurpose},
};

use self::{arrivals::Arrivals, homes::Homes, targets::Targets};
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
    targets: Mutex<Targets>,
    /// The gateways that nobody should be moved to now, with the reasons: most often none.
    strained: ArcSwap<HashMap<String, String>>,
    /// Of the home regions that can take connections.
    homes_there: AtomicU64,
    /// By gateway, as it reported last.
    progress: Mutex<HashMap<String, Vec<MoveProgress>>>,
    /// The last rebalance, by gateway.
    orders: Mutex<HashMap<String, Ordered>>,
}

/// After so long an order is not told any more, in milliseconds: what it evens out is another fleet by then.
const ORDER_MS: i64 = 10 * 60_000;

/// Whether a gateway says that an order of its is carried out, or was ended.
fn over(progress: &MoveProgress) -> bool {
    matches!(progress.phase.as_str(), "done" | "stopped")
}

/// An order, for the boot that was there when it was issued.
#[derive(Clone, Copy)]
struct Ordered {
    boot: u64,
    issued_ms: i64,
    order: MoveOrder,
}

impl Moving {
    /// Takes note of a new snapshot. Returns how many gateways nobody should be moved to.
    pub fn look(&self, fleet: &Fleet, policy: &Policy, ended: PendingCounts, now_ms: i64) -> usize {
        lock(&self.arrivals).count(ended.arrived, ended.lost, policy.move_limits.lost, now_ms);
        self.homes_there.store(lock(&self.homes).look(fleet, policy, now_ms), Relaxed);
        let strained = {
            let mut targets = lock(&self.targets);
            targets.keep(|gateway_id| fleet.find(gateway_id).is_some(), now_ms);
            targets.strained(&policy.move_limits, now_ms)
        };
        let count = strained.len();
        if count > 0 || !self.strained.load().is_empty() {
            self.strained.store(Arc::new(strained));
        }
        count
    }

    /// Why nobody should be moved to that gateway now, if so: clients fare badly there.
    pub fn strained(&self, gateway_id: &str) -> Option<String> {
        self.strained.load().get(gateway_id).cloned()
    }

    /// Some of the gateways that nobody should be moved to now, at most so many.
    pub fn some_strained(&self, most: usize) -> Vec<String> {
        self.strained.load().keys().take(most).cloned().collect()
    }

    /// Why nobody should be moved now, if so: those who were told to go do not arrive.
    pub fn hold(&self) -> Option<String> {
        lock(&self.arrivals).hold()
    }

    /// A gateway reported how clients fare there, and how far it is.
    pub fn reported(&self, report: &GatewayReport, now_ms: i64) {
        lock(&self.targets).take(report, now_ms);
        self.progressed(&report.gateway_id, &report.moves);
    }

    fn progressed(&self, gateway_id: &str, progress: &[MoveProgress]) {
        for ended in progress.iter().filter(|one| one.purpose() == MovePurpose::Rebalance && over(one)) {
            lock(&self.orders).retain(|id, known| id != gateway_id || known.order.id != ended.order);
        }
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

    /// Gateways are to let go of some connections, each (of that boot) as its order says. The others of the fleet are to end what they
    /// have: by an order from here, or by what they say, since another scheduler may have begun it, or this one before it was restarted.
    /// Returns those that end something.
    pub fn order(
        &self,
        fleet: &Fleet,
        orders: HashMap<String, (u64, MoveOrder)>,
        id: u64,
        now_ms: i64,
    ) -> BTreeSet<String> {
        let shed = |moves: &Vec<MoveProgress>| {
            moves.iter().any(|one| one.purpose() == MovePurpose::Rebalance && !over(one))
        };
        let busy = self.progress(fleet).into_iter().filter(|(_, moves)| shed(moves));
        let boot_of =
            |gateway_id: &str| fleet.find(gateway_id).map(|index| fleet.gateway(index).profile.boot);
        let ordered = |(gateway_id, (boot, order))| (gateway_id, Ordered { boot, issued_ms: now_ms, order });
        let none = MoveOrder { id, ..MoveOrder::default() };
        let mut known = lock(&self.orders);
        // One that is not heard is told when it is.
        let is_of = |id: &str, order: &Ordered| boot_of(id).is_none_or(|boot| boot == order.boot);
        let open = known.iter().filter(|(id, known)| known.order.count > 0 && is_of(id, known));
        let mut ending: BTreeSet<String> = open.map(|(gateway_id, _)| gateway_id.clone()).collect();
        for known in known.values_mut() {
            (known.order, known.issued_ms) = (none, now_ms);
        }
        for (gateway_id, _) in busy {
            if let Some(boot) = boot_of(&gateway_id) {
                ending.insert(gateway_id.clone());
                known.extend([ordered((gateway_id, (boot, none)))]);
            }
        }
        known.extend(orders.into_iter().map(ordered));
        ending
    }

    /// The order of a gateway, until it is carried out or too old. A boot that came since has none.
    pub fn order_of(&self, gateway_id: &str, boot: u64, now_ms: i64) -> Option<MoveOrder> {
        let mut known = lock(&self.orders);
        known.retain(|_, known| now_ms - known.issued_ms < ORDER_MS);
        known.get(gateway_id).filter(|known| known.boot == boot).map(|known| known.order)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_of_one_boot_and_ends_when_it_is_done_or_old() {
        let moving = Moving::default();
        let order = |id| MoveOrder { id, count: 10, ..MoveOrder::default() };
        let fleet = Fleet::default();
        let give = |id| moving.order(&fleet, HashMap::from([("gw-1".to_owned(), (7, order(id)))]), id, 1_000);
        give(1);
        assert_eq!(moving.order_of("gw-1", 7, 2_000), Some(order(1)));
        assert_eq!(moving.order_of("gw-1", 8, 2_000), None, "started since");
        let progress = |order, phase: &str| {
            let purpose = MovePurpose::Rebalance.into();
            let one = MoveProgress { purpose, order, phase: phase.to_owned(), ..MoveProgress::default() };
            moving.progressed("gw-1", &[one]);
        };
        progress(1, "moving");
        progress(2, "done");
        assert_eq!(moving.order_of("gw-1", 7, 2_000), Some(order(1)), "another one is done");
        progress(1, "done");
        assert_eq!(moving.order_of("gw-1", 7, 2_000), None);
        give(3);
        let stop = |id| moving.order(&fleet, HashMap::new(), id, 2_000);
        assert_eq!(stop(4).into_iter().collect::<Vec<_>>(), ["gw-1"]);
        assert!(stop(4).is_empty(), "it was told");
        assert_eq!(moving.order_of("gw-1", 7, 3_000), Some(MoveOrder { count: 0, ..order(4) }));
        assert_eq!(moving.order_of("gw-1", 7, 2_000 + ORDER_MS), None);
    }
}
