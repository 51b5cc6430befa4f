//! One file a command: its arguments and its work.

pub mod config;
pub mod dev;
pub mod token;
