//! The network between the roles: `berth_proto::link`'s traits carried by gRPC.
//!
//! [`Remote`] stands in for logic or a scheduler on a gateway's side: it implements the role's service trait, dials, and
//! dials again. [`Server`] puts a role's service on a port. The roles know neither: they see the traits, as in one process.

mod client;
mod dialect;
mod key;
mod server;

pub use client::{DialConfig, Remote};
pub use key::ClusterKey;
pub use server::{Server, ServerError};

/// Generated from `services.proto`.
#[expect(clippy::allow_attributes, reason = "generated")]
mod rpc {
    include!(concat!(env!("OUT_DIR"), "/berth.rpc.v1.rs"));
}
