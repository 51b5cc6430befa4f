//! Which roles run together, and how they are wired: this is the only place that knows more than one role.

pub mod dev;
mod keys;
mod token_endpoint;

pub use token_endpoint::sign as sign_token;
