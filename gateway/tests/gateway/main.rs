//! A real gateway over real sockets, with a logic and a scheduler that the test plays itself.

mod bounds;
mod churn;
mod errors;
mod handshake;
mod lifecycle;
mod limits;
mod road;
mod support;
