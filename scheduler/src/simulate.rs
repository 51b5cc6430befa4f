//! The scheduler on a virtual clock: the real table, snapshots, ledger and decisions, with gateways, clients and the network
//! between them made up.
//!
//! ```text
//! client -> one of the schedulers -> decide -> list -> gateway's backlog -> connected -> report -> every scheduler
//! ```
//!
//! Each scheduler has a table, a snapshot and a ledger of its own, as replicas have, and hears of a connection only by the
//! gateways' reports, as late as the scenario says. Everything follows from the scenario and the seed. What it stands
//! for and what it found: docs/scheduling.md.

mod calendar;
mod client;
mod gateway;
mod measure;
mod scenario;
mod scheduler;
mod world;

#[cfg(test)]
mod tests;

pub use self::{
    measure::{Outcome, Sample},
    scenario::{Event, Scenario, ScenarioError, What},
    scheduler::Strategy,
};
use crate::policy::Policy;

/// Runs a scenario to its end.
#[must_use]
pub fn run(scenario: &Scenario, strategy: Strategy, policy: &Policy, seed: u64) -> Outcome {
    world::World::new(scenario, strategy, policy, seed).run()
}
