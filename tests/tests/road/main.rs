//! The behaviours of the running system, a module each, against the real binary.

mod backend;
mod catch_up;
mod cli;
mod conversations;
mod crash;
mod dedup;
mod frames;
mod groups;
mod heartbeats;
mod operation;
mod order;
mod policy;
mod presence;
mod readme;
mod replacement;
mod requests;
mod schedule;
mod slow;
mod stop;
mod the_road;
mod third_party;
mod tickets;
