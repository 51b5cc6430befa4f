//! What everyone says: frames, role-to-role messages, ids, codes, tickets, limits and the traits between the roles.
//!
//! Pure: no tokio, no sockets, no clock, no randomness. Time is an argument, in milliseconds since the Unix epoch.
//! `scheduler`, `gateway` and `logic` depend on this crate and never on each other.

pub mod batch;
pub mod bucket;
pub mod carry;
pub mod code;
pub mod frame;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod handle;
pub mod health;
pub mod id;
pub mod lateness;
pub mod limits;
pub mod link;
pub mod metric;
pub mod schedule;
pub mod tcp;
pub mod ticket;
pub mod validate;

/// The frames between a client and a gateway and the records a client reads: generated from `client.proto`.
pub use generated::client::v1 as client;
/// What the roles say to each other: generated from `link.proto`.
pub use generated::link::v1 as wire;

/// Nested like the proto packages, since generated code refers to itself by them.
#[expect(missing_docs, reason = "the .proto files document the fields")]
#[expect(clippy::allow_attributes, reason = "generated")]
#[expect(clippy::large_enum_variant, reason = "a report is the largest and the most frequent of its kind")]
mod generated {
    pub mod client {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/berth.client.v1.rs"));
            include!(concat!(env!("OUT_DIR"), "/berth.client.v1.serde.rs"));
        }
    }
    pub mod link {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/berth.link.v1.rs"));
        }
    }
}
