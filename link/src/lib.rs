//! The network between the roles: `berth_proto::link`'s traits carried by gRPC.
//!
//! [`Remote`] stands in for logic or a scheduler on a gateway's side: it implements the role's service trait, dials, and
//! dials again. [`Server`] puts a role's service on a port. The roles know neither: they see the traits, as in one process.

mod client;
mod dialect;
mod dialer;
mod key;
mod memory;
mod metrics;
mod outgoing;
mod receiving;
mod server;
mod turns;

pub use client::{DialConfig, Remote, check_address};
pub use key::ClusterKey;
pub use metrics::LinkMetrics;
pub use server::{Server, ServerError};

/// Logic that is elsewhere.
pub type RemoteLogic = Remote<dialect::LogicDialect>;
/// A scheduler that is elsewhere.
pub type RemoteScheduler = Remote<dialect::SchedulerDialect>;

/// Generated from `services.proto`.
#[expect(clippy::allow_attributes, reason = "generated")]
mod rpc {
    include!(concat!(env!("OUT_DIR"), "/berth.rpc.v1.rs"));
}
