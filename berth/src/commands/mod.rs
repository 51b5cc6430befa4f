//! One file a command: its arguments and its work.

pub mod bench;
pub mod chat;
pub mod config;
pub mod demo;
pub mod dev;
pub mod token;
