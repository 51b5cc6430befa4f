//! Logic: stores messages, fans them out, and has gateways notify so that clients pull.
//!
//! The road of a message: `lane` (in order per user) -> `ingest` (refuse at once what can be) -> [`queue`] (durable:
//! the sender's ack) -> `commit` (timeline, the sender's own inbox, outbox: one atomic step) -> `spread` (the other
//! members' inboxes) -> notify. Everything after the ack can be done again from the queue and changes nothing twice.
//!
//! What must be durable is synced in one place, the queue's group commit. The store is written through to the operating
//! system at once (kill -9 loses nothing) and synced each second; the queue is trimmed only behind that. When the
//! operating system itself ends, the store may fall back by a second: the queue replays it, and the inbox epoch tells
//! clients whose cursors may point at rows that came out in another order.
//!
//! Backends are written against [`queue::Queue`], [`store::Store`] and [`routes::Routes`] and pass one conformance
//! suite; both of this crate's are written once: the queue over [`queue::Files`] (a directory, or memory), the rest over
//! [`kv::Kv`] (fjall, or maps in memory).

mod backend;
mod commit;
mod config;
#[cfg(test)]
mod conformance;
mod context;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod gateways;
mod group;
mod http;
mod ingest;
pub mod kv;
mod lane;
mod logic;
pub mod metrics;
pub mod queue;
mod request;
mod revoke;
pub mod routes;
mod serve;
mod service;
pub mod snowflake;
mod spread;
pub mod store;
mod synced;
#[cfg(test)]
mod tests;
mod turnstile;
mod upkeep;

pub use config::{Config, StartError, StoreChoice};
pub use context::{Clock, system_clock};
pub use logic::Logic;
