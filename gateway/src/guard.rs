//! What one peer may cost: limits for each address, user and connection, and which pages may connect.
//!
//! Deciding is pure, the time an argument; what is shared between the workers is a fixed table of atomic cells, or a map
//! with one entry for each address that holds a connection. Nothing here grows with who merely asks.

mod addresses;
mod cells;
mod networks;
mod origins;
mod pending;
mod rate;
mod spell;

pub(crate) use addresses::{Addresses, Crowded, Network};
pub(crate) use cells::Cells;
pub use networks::Networks;
pub use origins::Origins;
pub(crate) use pending::{Kept, Pending};
pub(crate) use rate::Rate;
pub(crate) use spell::Spell;

use crate::config::Limits;

/// The limits in force, shared by all workers.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    pub(crate) addresses: Addresses,
    /// Connections that [`Addresses`] did not let in, for the log.
    pub(crate) drops: Spell,
    /// Requests of each user on this gateway.
    pub(crate) users: Cells,
    /// Frames of each connection.
    pub(crate) frames: Rate,
    pub(crate) origins: Origins,
}

impl Guard {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            addresses: Addresses::new(
                limits.exempt_addresses.clone(),
                limits.connections_per_address,
                limits.handshakes_per_second_per_address,
            ),
            drops: Spell::default(),
            users: Cells::new(Rate::new(limits.requests_per_second_per_user)),
            frames: Rate::new(limits.frames_per_second),
            origins: limits.origins.clone(),
        }
    }
}
