//! A scheduler replica, and what it decides by: Berth's own decision, or one of three that others use.

use berth_proto::wire::GatewayReport;
use rand::{Rng, rngs::SmallRng};

use super::client::List;
use crate::{
    decide::{Request, decide, pool},
    fleet::{Fleet, Pending, Place, SNAPSHOT_INTERVAL_MS, Table},
    policy::Policy,
};

/// Between two snapshots, in milliseconds.
pub(super) const SNAPSHOT_MS: u32 = SNAPSHOT_INTERVAL_MS as u32;

/// How a gateway is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// Any.
    Random,
    /// The five with the fewest reported connections for their capacity, best first.
    LeastConnections,
    /// The better of two at random, by reported connections.
    TwoChoices,
    /// What [`decide`] says, with the assignments of this replica that no report shows yet.
    Berth,
}

impl Strategy {
    /// Every strategy, the simplest first.
    pub const ALL: [Self; 4] = [Self::Random, Self::LeastConnections, Self::TwoChoices, Self::Berth];

    /// Its name on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::LeastConnections => "least",
            Self::TwoChoices => "two",
            Self::Berth => "berth",
        }
    }

    /// The strategy of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|strategy| strategy.name() == name)
    }
}

/// A replica: what it has heard, what it has assigned, and the snapshot it decides on.
pub(super) struct Scheduler {
    table: Table,
    pending: Pending,
    fleet: Fleet,
    /// Candidates of each pool by reported load, the least first: as many as a list takes.
    least: Vec<Vec<u32>>,
}

impl Scheduler {
    pub fn new() -> Self {
        Self {
            table: Table::default(),
            pending: Pending::default(),
            fleet: Fleet::default(),
            least: Vec::new(),
        }
    }

    /// A report comes in.
    pub fn hear(&mut self, report: &GatewayReport, now_ms: u32) {
        self.table
            .take(1, report, now_ms.into())
            .expect("the labels are of the right form, and the only link is newest");
        self.pending.used(&report.used_tickets);
    }

    /// As `Core` does: what was used, then what expired, then the loads.
    pub fn snapshot(&mut self, strategy: Strategy, policy: &Policy, now_ms: u32) {
        self.pending.settle();
        self.pending.expire(now_ms.into());
        self.fleet = self.table.snapshot(now_ms.into(), policy.slow_start_ms);
        if strategy == Strategy::LeastConnections {
            self.least =
                self.fleet.pools.iter().map(|pool| least(&self.fleet, pool.candidates.clone())).collect();
        }
    }

    /// A list for a client. False: there is no gateway for it.
    pub fn assign(
        &mut self,
        strategy: Strategy,
        asked: &Asked<'_>,
        rng: &mut SmallRng,
        list: &mut List,
    ) -> bool {
        list.clear();
        let fleet = &self.fleet;
        if strategy == Strategy::Berth {
            let Ok(decision) = decide(fleet, asked.policy, asked.request, asked.now_ms.into(), rng) else {
                return false;
            };
            let ranked = decision.ranked.as_slice();
            ranked.iter().for_each(|index| list.push(number(fleet, *index)));
            let place = Place::at_once(ranked[0], asked.request.user_id, asked.schedule_id);
            self.pending.assign(fleet, place, asked.now_ms.into());
            return true;
        }
        let Some(pool) = fleet.pool(pool(asked.policy, asked.request)).filter(|pool| !pool.is_empty()) else {
            return false;
        };
        let candidates = &fleet.candidates[pool.candidates.start as usize..pool.candidates.end as usize];
        if strategy == Strategy::LeastConnections {
            let place = fleet.pools.iter().position(|other| std::ptr::eq(other, pool)).expect("found in it");
            self.least[place].iter().for_each(|index| list.push(number(fleet, *index)));
            return true;
        }
        // Drawn again when it is on the list already; a small pool gives a short list.
        for _ in 0..4 * List::LEN {
            let one = candidates[rng.random_range(0..candidates.len())];
            let other = candidates[rng.random_range(0..candidates.len())];
            let better = strategy == Strategy::TwoChoices && reported(fleet, other) < reported(fleet, one);
            list.push_new(number(fleet, if better { other } else { one }));
        }
        true
    }
}

/// What is asked.
pub(super) struct Asked<'a> {
    pub policy: &'a Policy,
    pub request: &'a Request<'a>,
    pub schedule_id: u64,
    pub now_ms: u32,
}

fn reported(fleet: &Fleet, index: u32) -> f64 {
    let gateway = fleet.gateway(index);
    gateway.connections as f64 / gateway.capacity as f64
}

fn least(fleet: &Fleet, candidates: std::ops::Range<u32>) -> Vec<u32> {
    let mut order = fleet.candidates[candidates.start as usize..candidates.end as usize].to_vec();
    order.sort_by(|a, b| reported(fleet, *a).total_cmp(&reported(fleet, *b)));
    order.truncate(List::LEN);
    order
}

/// The simulation's number of a gateway: its id without the letter.
fn number(fleet: &Fleet, index: u32) -> u16 {
    fleet.gateway(index).profile.id[1..].parse().expect("made by the simulation")
}
