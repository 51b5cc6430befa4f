//! What is measured of connections: how long each step in takes, who got in, and their heartbeats.

use super::{histogram::Histogram, pace::Nanos, tally::Tally};

/// What is measured of connections.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    pub(super) late: Histogram,
    pub(super) schedule: Histogram,
    pub(super) transport: Histogram,
    pub(super) welcome: Histogram,
    pub(super) connect: Histogram,
    pub(super) heartbeat: Histogram,
    pub(super) connected: u64,
    pub(super) failed: u64,
    pub(super) reconnected: u64,
    pub(super) lost: u64,
    pub(super) first_at: Nanos,
    pub(super) last_at: Nanos,
}

impl Latencies {
    pub(super) fn tell(self, tally: &mut Tally, connections: u64, live: u64) {
        if connections == 0 {
            return;
        }
        tally.set("connections", connections);
        tally.set("connected", self.connected);
        tally.set("failed", self.failed);
        tally.set("lost", self.lost);
        tally.set("reconnected", self.reconnected);
        tally.set("heldAtEnd", live);
        tally.set("heartbeats", self.heartbeat.count());
        tally.spans.insert("connected".into(), self.last_at.saturating_sub(self.first_at));
        tally.latency("late", self.late);
        tally.latency("schedule", self.schedule);
        tally.latency("transport", self.transport);
        tally.latency("welcome", self.welcome);
        tally.latency("connect", self.connect);
        tally.latency("heartbeat", self.heartbeat);
    }
}
