//! The behaviours of the running system, a module each, against the real binary.

mod backend;
mod catch_up;
mod cli;
mod conversations;
mod crash;
mod dedup;
mod descriptors;
mod frames;
mod frozen;
mod heartbeats;
mod noisy;
mod operation;
mod order;
mod policy;
mod presence;
mod readme;
mod replacement;
mod requests;
mod schedule;
mod secrets;
mod slow;
mod slowloris;
mod stop;
mod the_road;
mod third_party;
mod tickets;
