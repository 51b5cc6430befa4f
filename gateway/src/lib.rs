//! The gateway: holds the clients' connections and knows nothing about messages.
//!
//! Each worker is one thread with its own listener (SO_REUSEPORT), epoll loop, connection table and heartbeat wheel. A
//! connection never changes worker, so its state needs no lock; others reach it by handle through the worker's inlet.
//! Inside out: `session` is the protocol without sockets and clock, `connection` moves its bytes, `worker` runs
//! the loop, `supervisor` reports, renews leases and watches the workers.
//!
//! An idle connection owns its socket, one box of state and one of identity: no buffer, no timer, no queue.

mod asking;
mod budget;
mod carried;
mod clock;
mod config;
mod connection;
mod door;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod gateway;
mod guard;
mod health;
mod inlet;
mod keyring;
mod lease;
mod level;
mod listener;
mod load;
mod metrics;
mod mover;
mod notify;
mod pieces;
mod process;
mod rendezvous;
mod session;
mod shared;
mod supervisor;
mod table;
#[cfg(test)]
mod testing;
mod upgrade;
mod wheel;
mod worker;
mod ws;

pub use config::{Config, Limits, Timeouts};
pub use gateway::{Gateway, StartError};
pub use guard::{Networks, Origins};
