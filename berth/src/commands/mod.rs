//! One file a command: its arguments and its work.

mod admin_client;
pub mod bench;
pub mod chat;
pub mod config;
pub mod ctl;
pub mod demo;
pub mod dev;
mod duration;
pub mod gateway;
mod http;
pub mod logic;
pub mod policy;
mod role;
pub mod scheduler;
pub mod token;

use crate::exit::Failure;

/// Why a composition with a scheduler did not start. A policy or an address database that cannot be is the person's to mend,
/// like every other configuration.
fn started(error: anyhow::Error) -> Failure {
    use berth_scheduler::StartError::{Geoip, Policy, PolicyFile};
    match error.downcast_ref() {
        Some(Policy { .. } | PolicyFile { .. } | Geoip { .. }) => Failure::Configuration(error),
        _ => Failure::Start(error),
    }
}
