//! When to send a heartbeat, and when the server is silent for too long. Pure.

use berth_proto::schedule::HeartbeatParameters;
use rand::Rng;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing before [`Heartbeat::wake_at`].
    Nothing,
    /// Send a heartbeat now.
    Send,
    /// Nothing came since a heartbeat was sent, for too long: the connection is dead.
    Silent,
}

/// The heartbeats of one connection.
///
/// A heartbeat goes out each interval x U(0.8, 1.0): jittered, so that clients that connected together do not beat together.
/// Whatever the server sends shows that it lives. A heartbeat that nothing follows for timeout - interval (but at least half an
/// interval) means that it does not: so a dead connection is found within the timeout, as the gateway finds a dead client.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    interval_ms: i64,
    patience_ms: i64,
    next_at: i64,
    /// When the oldest heartbeat was sent after which nothing came.
    unanswered_since: Option<i64>,
}

impl Heartbeat {
    /// The heartbeats of a connection welcomed at `now_ms`. An interval of 0 is taken as the default's 25 s.
    pub fn new(parameters: HeartbeatParameters, now_ms: i64, rng: &mut impl Rng) -> Self {
        let HeartbeatParameters { interval_ms, timeout_ms } =
            if parameters.interval_ms == 0 { HeartbeatParameters::default() } else { parameters };
        let interval_ms = i64::from(interval_ms);
        let patience_ms = (i64::from(timeout_ms) - interval_ms).max(interval_ms / 2).max(1);
        let mut heartbeat = Self { interval_ms, patience_ms, next_at: 0, unanswered_since: None };
        heartbeat.next_at = heartbeat.after(now_ms, rng);
        heartbeat
    }

    fn after(&self, now_ms: i64, rng: &mut impl Rng) -> i64 {
        let least = (self.interval_ms * 4 / 5).max(1);
        now_ms + rng.random_range(least..=self.interval_ms.max(least))
    }

    /// What is due at `now_ms`. [`Due::Send`] counts as sent.
    pub fn poll(&mut self, now_ms: i64, rng: &mut impl Rng) -> Due {
        if self.unanswered_since.is_some_and(|since| now_ms >= since + self.patience_ms) {
            return Due::Silent;
        }
        if now_ms < self.next_at {
            return Due::Nothing;
        }
        self.next_at = self.after(now_ms, rng);
        self.unanswered_since.get_or_insert(now_ms);
        Due::Send
    }

    /// The server sent something.
    pub fn heard(&mut self) {
        self.unanswered_since = None;
    }

    /// When [`Heartbeat::poll`] has something to say.
    #[must_use]
    pub fn wake_at(&self) -> i64 {
        let silent_at = self.unanswered_since.map_or(i64::MAX, |since| since + self.patience_ms);
        self.next_at.min(silent_at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    proptest! {
        /// Beats come 0.8 to 1.0 intervals apart as long as each is answered.
        #[test]
        fn beats_are_jittered_within_their_bounds(interval_ms in 5u32..100_000, extra in 0u32..100_000, seed: u64) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let parameters = HeartbeatParameters { interval_ms, timeout_ms: interval_ms + extra };
            let mut now = 1_000;
            let mut heartbeat = Heartbeat::new(parameters, now, &mut rng);
            for _ in 0..50 {
                let wake = heartbeat.wake_at();
                prop_assert_eq!(heartbeat.poll(wake - 1, &mut rng), Due::Nothing);
                prop_assert_eq!(heartbeat.poll(wake, &mut rng), Due::Send);
                let (least, most) = (i64::from(interval_ms) * 4 / 5, i64::from(interval_ms));
                prop_assert!((least..=most).contains(&(wake - now)), "{} of {}", wake - now, interval_ms);
                heartbeat.heard();
                now = wake;
            }
        }

        /// From the last sign of life to the verdict: never more than the timeout, or one and a half intervals.
        #[test]
        fn silence_is_found_in_time(interval_ms in 5u32..100_000, extra in 0u32..100_000, seed: u64) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let parameters = HeartbeatParameters { interval_ms, timeout_ms: interval_ms + extra };
            let mut heartbeat = Heartbeat::new(parameters, 0, &mut rng);
            let (mut now, mut sent) = (0, 0);
            while heartbeat.poll(now, &mut rng) != Due::Silent {
                let next = heartbeat.wake_at();
                prop_assert!(next > now || sent == 0, "stuck at {now}");
                sent += 1;
                now = next;
                prop_assert!(sent < 1_000_000 && now < 1_000_000_000);
            }
            let bound = i64::from(interval_ms) + i64::from(extra.max(interval_ms / 2)).max(1);
            prop_assert!(now <= bound, "{now} of {bound}");
        }
    }

    #[test]
    fn a_sign_of_life_postpones_the_verdict() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut heartbeat = Heartbeat::new(HeartbeatParameters::default(), 0, &mut rng);
        let sent = heartbeat.wake_at();
        assert_eq!(heartbeat.poll(sent, &mut rng), Due::Send);
        heartbeat.heard();
        assert_eq!(heartbeat.poll(sent + 12_500, &mut rng), Due::Nothing);
    }

    #[test]
    fn no_interval_is_the_default() {
        let mut rng = SmallRng::seed_from_u64(1);
        let heartbeat = Heartbeat::new(HeartbeatParameters { interval_ms: 0, timeout_ms: 0 }, 0, &mut rng);
        assert!((20_000..=25_000).contains(&heartbeat.wake_at()));
    }
}
