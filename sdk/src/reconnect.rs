//! When to try again, and where after which end. Pure.

use berth_proto::{code::CloseCode, limits::LONGEST_WAIT_MS, schedule::ReconnectParameters};
use rand::Rng;

/// Where to go after a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The same gateway: nothing speaks against it.
    Same,
    /// The next one of the list: this one is leaving or ill.
    Another,
    /// Where `disconnect` says; without a redirect, a scheduler is asked.
    Redirect,
    /// A scheduler is asked: the ticket is of no use any more.
    Schedule,
    /// Nowhere: the client ends.
    Stop,
}

/// Where to go after a gateway closed with `code`; `None`: the connection just ended.
#[must_use]
pub fn after_close(code: Option<u16>) -> Next {
    let Some(code) = code else { return Next::Same };
    match CloseCode::from_number(u32::from(code)) {
        Some(CloseCode::Moved) => Next::Redirect,
        Some(CloseCode::TicketExpired) => Next::Schedule,
        Some(CloseCode::Internal | CloseCode::Draining | CloseCode::Overloaded) => Next::Another,
        Some(known) if known.reconnect() => Next::Same,
        // A newer server's code is told by its range; WebSocket's own codes (1000 to 3999) are just ends.
        Some(_) => Next::Stop,
        None if (4500..5000).contains(&code) => Next::Stop,
        None => Next::Same,
    }
}

/// A wait of U(0, min(max, base x 2^attempt)) milliseconds: "full jitter" (M. Brooker, AWS Architecture Blog, 2015).
pub fn full_jitter(base_ms: u32, max_ms: u32, attempt: u32, rng: &mut impl Rng) -> i64 {
    let doubled = u64::from(base_ms).saturating_mul(1 << attempt.min(32));
    let most = doubled.min(u64::from(max_ms.max(base_ms)));
    i64::from(rng.random_range(0..=u32::try_from(most).unwrap_or(u32::MAX)))
}

/// How often a client has failed, and so how long it waits.
#[derive(Debug, Clone, Default)]
pub struct Reconnect {
    parameters: ReconnectParameters,
    attempt: u32,
    /// The wait before the latest attempt.
    last_wait_ms: i64,
}

impl Reconnect {
    /// Takes the scheduler's parameters.
    pub fn set_parameters(&mut self, parameters: ReconnectParameters) {
        self.parameters = parameters;
    }

    /// The scheduler's parameters, as they are in force.
    #[must_use]
    pub fn parameters(&self) -> ReconnectParameters {
        self.parameters
    }

    /// The wait before the next attempt, in milliseconds: the first U(0, max(spreadMs, baseMs)), then full jitter up to
    /// maxMs. A server's own wait is kept in full (up to [`LONGEST_WAIT_MS`]) and the first jitter added to it, so that
    /// clients told the same do not come back together.
    pub fn wait(&mut self, retry_after_ms: u32, rng: &mut impl Rng) -> i64 {
        self.last_wait_ms = self.draw(retry_after_ms, rng);
        self.attempt = self.attempt.saturating_add(1);
        self.last_wait_ms
    }

    fn draw(&self, retry_after_ms: u32, rng: &mut impl Rng) -> i64 {
        let ReconnectParameters { base_ms, max_ms, spread_ms, .. } = self.parameters;
        if retry_after_ms > 0 {
            let asked = i64::from(retry_after_ms.min(LONGEST_WAIT_MS));
            return asked + full_jitter(base_ms, base_ms, 0, rng);
        }
        if self.attempt == 0 {
            return i64::from(rng.random_range(0..=spread_ms.max(base_ms).min(LONGEST_WAIT_MS)));
        }
        full_jitter(base_ms, max_ms, self.attempt, rng)
    }

    /// A session has ended that was open for `open_ms`. Whether it was a stable one: as long as the wait before it, and
    /// four times the first back-off. A shorter one changes nothing, so that a gateway which welcomes and drops at once is
    /// left alone longer and longer.
    pub fn session_ended(&mut self, open_ms: i64) -> bool {
        let stable = open_ms >= self.last_wait_ms.max(4 * i64::from(self.parameters.base_ms));
        if stable {
            self.attempt = 0;
        }
        stable
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    fn parameters() -> impl Strategy<Value = ReconnectParameters> {
        (0u32..60_000, 0u32..600_000, 0u32..600_000).prop_map(|(base_ms, max_ms, spread_ms)| {
            ReconnectParameters { base_ms, max_ms, spread_ms, reschedule_after_failures: 3 }
        })
    }

    proptest! {
        #[test]
        fn waits_stay_within_the_parameters(p in parameters(), seed: u64, attempts in 1usize..40) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut reconnect = Reconnect::default();
            reconnect.set_parameters(p);
            let first = reconnect.wait(0, &mut rng);
            prop_assert!((0..=i64::from(p.spread_ms.max(p.base_ms))).contains(&first));
            for attempt in 1..attempts {
                let wait = reconnect.wait(0, &mut rng);
                let doubled = u64::from(p.base_ms) << attempt.min(32);
                let most = doubled.min(u64::from(p.max_ms.max(p.base_ms)));
                prop_assert!(wait >= 0 && wait.unsigned_abs() <= most, "{wait} of {most}");
            }
        }

        #[test]
        fn a_servers_wait_is_kept(p in parameters(), seed: u64, asked in 1..LONGEST_WAIT_MS, before in 0usize..9) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut reconnect = Reconnect::default();
            reconnect.set_parameters(p);
            for _ in 0..before {
                reconnect.wait(0, &mut rng);
            }
            let wait = reconnect.wait(asked, &mut rng);
            prop_assert!((asked..=asked + p.base_ms).contains(&u32::try_from(wait).expect("short")));
        }

        #[test]
        fn no_number_panics(a: u32, b: u32, c: u32, attempt: u32, retry: u32, open: i64) {
            let mut rng = SmallRng::seed_from_u64(1);
            full_jitter(a, b, attempt, &mut rng);
            let p = ReconnectParameters { base_ms: a, max_ms: b, spread_ms: c, reschedule_after_failures: 0 };
            let mut reconnect = Reconnect { parameters: p, attempt, last_wait_ms: 0 };
            reconnect.wait(retry, &mut rng);
            reconnect.session_ended(open);
        }

        #[test]
        fn the_range_of_a_code_decides(code: u16) {
            prop_assert_eq!(after_close(Some(code)) == Next::Stop, (4500..5000).contains(&code));
        }
    }

    #[test]
    fn the_waits_use_their_whole_range() {
        let mut rng = SmallRng::seed_from_u64(7);
        let waits: Vec<i64> = (0..2000).map(|_| full_jitter(1000, 8000, 3, &mut rng)).collect();
        assert!(waits.iter().any(|w| *w < 400) && waits.iter().any(|w| *w > 7600), "jitter is full");
    }

    #[test]
    fn only_a_stable_session_starts_over() {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut reconnect = Reconnect::default();
        let mut wait = 0;
        while wait <= 2_000 {
            wait = reconnect.wait(0, &mut rng);
        }
        assert!(!reconnect.session_ended(wait - 1), "shorter than the wait before it");
        assert!(reconnect.session_ended(wait));
        assert!(reconnect.wait(0, &mut rng) <= 500);
        assert!(!reconnect.session_ended(1_999), "shorter than four times the first back-off");
        assert!(reconnect.session_ended(2_000));
    }

    #[test]
    fn each_close_code_leads_somewhere() {
        for (code, next) in [
            (None, Next::Same),
            (Some(1006), Next::Same),
            (Some(4000), Next::Another),
            (Some(4001), Next::Another),
            (Some(4002), Next::Redirect),
            (Some(4003), Next::Same),
            (Some(4005), Next::Schedule),
            (Some(4007), Next::Same),
            (Some(4009), Next::Another),
            (Some(4499), Next::Same),
            (Some(4504), Next::Stop),
            (Some(4999), Next::Stop),
        ] {
            assert_eq!(after_close(code), next, "{code:?}");
        }
    }
}
