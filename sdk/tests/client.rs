//! The client against a fake scheduler and a fake gateway whose every step the test decides.

#[path = "client/fake.rs"]
mod fake;
#[path = "client/outage.rs"]
mod outage;
#[path = "client/pull.rs"]
mod pull;
#[path = "client/reconnect.rs"]
mod reconnect;
#[path = "client/road.rs"]
mod road;
#[path = "client/schedule.rs"]
mod schedule;
#[path = "client/send.rs"]
mod send;
