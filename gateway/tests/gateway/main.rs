//! A real gateway over real sockets, with a logic and a scheduler that the test plays itself.

mod bounds;
mod churn;
mod delivery;
mod errors;
mod handshake;
mod lifecycle;
mod limits;
mod network;
mod outage;
mod revoked;
mod road;
mod storm;
mod support;
