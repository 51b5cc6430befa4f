//! How clients fare at this gateway, counted since its boot: what the guards of gray rules compare pools by, and what pauses moves.
//!
//! What a client does to itself is not counted: a false ticket, a bad hello, more connections than it may have. Nor is a
//! connection that never said a word: load balancers look so.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use berth_proto::{health::HANDSHAKE_BUCKETS, wire::GatewayHealth};

use crate::metrics::Closed;

/// Counters that workers add to and reports read.
#[derive(Default)]
pub(crate) struct Health {
    connects_failed: AtomicU64,
    connects_lost: AtomicU64,
    welcomed: AtomicU64,
    sessions_ended: AtomicU64,
    ended: [AtomicU64; Abnormal::COUNT],
    handshake_ms: [AtomicU64; HANDSHAKE_BUCKETS],
}

/// An end that no session should have.
#[derive(Clone, Copy)]
enum Abnormal {
    Internal,
    Silent,
    Slow,
    Lost,
    BadFrame,
}

impl Abnormal {
    const COUNT: usize = 5;

    fn of(how: Closed) -> Option<Self> {
        match how {
            Closed::Internal | Closed::Overloaded => Some(Self::Internal),
            Closed::HeartbeatTimeout => Some(Self::Silent),
            Closed::SlowConsumer => Some(Self::Slow),
            Closed::Lost => Some(Self::Lost),
            Closed::BadFrame => Some(Self::BadFrame),
            _ => None,
        }
    }
}

impl Health {
    /// A connection that had shown what it speaks ended before its welcome, and not to wait for its turn. It failed if we ended
    /// it for no fault of its own, or it went. `genuine`: it had shown a genuine ticket. Anybody can come and go without one, so of
    /// such only what we ended ourselves counts for the pauses of moves.
    pub(crate) fn not_welcomed(&self, how: Closed, genuine: bool) {
        let ours = matches!(how, Closed::Internal | Closed::Overloaded);
        let failed = ours
            || matches!(how, Closed::HandshakeTimeout | Closed::SlowConsumer | Closed::Client | Closed::Lost);
        if failed {
            self.connects_failed.fetch_add(1, Relaxed);
        }
        if ours || failed && genuine {
            self.connects_lost.fetch_add(1, Relaxed);
        }
    }

    /// A session began so long after its connection was accepted.
    pub(crate) fn welcomed(&self, after_ms: i64) {
        self.welcomed.fetch_add(1, Relaxed);
        let ms = u64::try_from(after_ms).unwrap_or(0);
        // The first bucket is for up to 1 ms, each next one for up to twice as much, the last for all above.
        let bucket = ms.max(1).next_power_of_two().trailing_zeros() as usize;
        self.handshake_ms[bucket.min(HANDSHAKE_BUCKETS - 1)].fetch_add(1, Relaxed);
    }

    /// A session ended.
    pub(crate) fn ended(&self, how: Closed) {
        if let Some(abnormal) = Abnormal::of(how) {
            self.ended[abnormal as usize].fetch_add(1, Relaxed);
        }
        self.sessions_ended.fetch_add(1, Relaxed);
    }

    /// So many sessions ended with the worker that held them, which nobody had stopped.
    pub(crate) fn died(&self, sessions: u64) {
        self.ended[Abnormal::Internal as usize].fetch_add(sessions, Relaxed);
        self.sessions_ended.fetch_add(sessions, Relaxed);
    }

    /// As reports tell it.
    pub(crate) fn report(&self) -> GatewayHealth {
        let ended = |how: Abnormal| self.ended[how as usize].load(Relaxed);
        GatewayHealth {
            connects_failed: self.connects_failed.load(Relaxed),
            connects_lost: self.connects_lost.load(Relaxed),
            welcomed: self.welcomed.load(Relaxed),
            sessions_ended: self.sessions_ended.load(Relaxed),
            ended_internal: ended(Abnormal::Internal),
            ended_silent: ended(Abnormal::Silent),
            ended_slow: ended(Abnormal::Slow),
            ended_lost: ended(Abnormal::Lost),
            ended_bad_frame: ended(Abnormal::BadFrame),
            handshake_ms: self.handshake_ms.iter().map(|bucket| bucket.load(Relaxed)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_client_did_not_cause_is_held_against_the_pool() {
        let health = Health::default();
        let own = [
            Closed::Unauthenticated,
            Closed::BadFrame,
            Closed::TicketExpired,
            Closed::Moved,
            Closed::Draining,
        ];
        own.into_iter().for_each(|how| health.not_welcomed(how, true));
        assert_eq!(health.report().connects_failed, 0);
        [Closed::Overloaded, Closed::Client, Closed::Lost, Closed::HandshakeTimeout]
            .into_iter()
            .for_each(|how| health.not_welcomed(how, false));
        let without = health.report();
        assert_eq!((without.connects_failed, without.connects_lost), (4, 1), "4009 is ours");
        [Closed::Overloaded, Closed::Client, Closed::Lost, Closed::SlowConsumer]
            .into_iter()
            .for_each(|how| health.not_welcomed(how, true));
        let with = health.report();
        assert_eq!((with.connects_failed, with.connects_lost), (8, 5));
        [
            Closed::Client,
            Closed::Kicked,
            Closed::Draining,
            Closed::Moved,
            Closed::TicketExpired,
            Closed::SessionReplaced,
        ]
        .into_iter()
        .for_each(|how| health.ended(how));
        let ended = health.report();
        assert_eq!((ended.sessions_ended, ended.abnormal()), (6, 0));
        [Closed::Internal, Closed::HeartbeatTimeout, Closed::SlowConsumer, Closed::Lost, Closed::BadFrame]
            .into_iter()
            .for_each(|how| health.ended(how));
        let ended = health.report();
        assert_eq!(
            (ended.sessions_ended, ended.abnormal(), ended.ended_lost),
            (11, 4, 1),
            "a bad frame is the client's fault"
        );
    }

    #[test]
    fn handshakes_are_counted_by_powers_of_two() {
        let health = Health::default();
        for ms in [0, 1, 2, 3, 4, 5, 16_384, 16_385, 10_000_000] {
            health.welcomed(ms);
        }
        let told = health.report();
        assert_eq!(told.welcomed, 9);
        assert_eq!(told.handshake_ms[..5], [2, 1, 2, 1, 0], "up to 1, 2, 4, 8, 16 ms");
        assert_eq!(told.handshake_ms[13..], [0, 1, 2], "up to 16.4 s, and above");
    }
}
