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

/// Whether a close code says that the sign-in is over or the user is not wanted: then the ticket is of no use in a later run
/// either.
#[must_use]
pub fn voids_ticket(code: Option<u16>) -> bool {
    let known = code.and_then(|code| CloseCode::from_number(u32::from(code)));
    matches!(known, Some(CloseCode::Unauthenticated | CloseCode::Kicked | CloseCode::Forbidden))
}

/// Where an attempt goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toward {
    /// The endpoint that the client was at.
    Same,
    /// Another one, or one that a scheduler is to name.
    Another,
}

/// A wait of U(0, min(max, base x 2^attempt)) milliseconds: "full jitter" (M. Brooker, AWS Architecture Blog, 2015).
pub fn full_jitter(base_ms: u32, max_ms: u32, attempt: u32, rng: &mut impl Rng) -> i64 {
    i64::from(rng.random_range(0..=longest(base_ms, max_ms, attempt)))
}

fn longest(base_ms: u32, max_ms: u32, attempt: u32) -> u32 {
    let doubled = u64::from(base_ms).saturating_mul(1 << attempt.min(32));
    u32::try_from(doubled.min(u64::from(max_ms.max(base_ms)))).unwrap_or(u32::MAX)
}

/// How often a client has failed, and so how long it waits.
#[derive(Debug, Clone, Default)]
pub struct Reconnect {
    parameters: ReconnectParameters,
    attempt: u32,
    /// The wait before the latest attempt.
    last_wait_ms: i64,
    /// The client has lost a gateway that served it well, and has not waited yet for its turn among those who lost the same one.
    owes_spread: bool,
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

    /// The wait before the next attempt, in milliseconds: full jitter from baseMs up to maxMs. The first time that a client
    /// leaves a gateway that served it well it waits U(0, spreadMs) if that is longer: the others of a dead gateway do so too, and
    /// the rest take so long to take them all. A gateway that is alive is soon come back to, and one that is dead takes no harm. A
    /// server's own wait is kept in full ([`Reconnect::told`]).
    pub fn wait(&mut self, toward: Toward, retry_after_ms: u32, rng: &mut impl Rng) -> i64 {
        let ReconnectParameters { base_ms, max_ms, spread_ms, .. } = self.parameters;
        let leaves = toward == Toward::Another && self.owes_spread;
        self.last_wait_ms = match () {
            () if retry_after_ms > 0 => self.told(retry_after_ms, rng),
            () if leaves => {
                let most = longest(base_ms, max_ms, self.attempt).max(spread_ms.min(LONGEST_WAIT_MS));
                i64::from(rng.random_range(0..=most))
            }
            () => full_jitter(base_ms, max_ms, self.attempt, rng),
        };
        if leaves {
            self.no_spread();
        }
        self.attempt = self.attempt.saturating_add(1);
        self.last_wait_ms
    }

    /// A wait that a server told, in milliseconds, kept in full (up to [`LONGEST_WAIT_MS`]) and the first jitter added to it, so
    /// that clients told the same do not come back together. By itself it does not count as a failure: who stands in line has
    /// not failed. It stands in place of the spread.
    pub fn told(&mut self, retry_after_ms: u32, rng: &mut impl Rng) -> i64 {
        self.no_spread();
        let base_ms = self.parameters.base_ms;
        i64::from(retry_after_ms.min(LONGEST_WAIT_MS)) + full_jitter(base_ms, base_ms, 0, rng)
    }

    /// There is nobody to be spread among: the gateway has spoken, so it is not dead, or a scheduler has let this client in.
    pub fn no_spread(&mut self) {
        self.owes_spread = false;
    }

    /// A session has ended that was open for `open_ms`. Whether it was a stable one: as long as the wait before it, and
    /// four times the first back-off. A shorter one changes nothing, so that a gateway which welcomes and drops at once is
    /// left alone longer and longer.
    pub fn session_ended(&mut self, open_ms: i64) -> bool {
        let stable = open_ms >= self.last_wait_ms.max(4 * i64::from(self.parameters.base_ms));
        if stable {
            self.attempt = 0;
            self.owes_spread = true;
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
            let first = reconnect.wait(Toward::Another, 0, &mut rng);
            prop_assert!((0..=i64::from(p.base_ms)).contains(&first), "a new client has lost no gateway");
            for attempt in 1..attempts {
                let toward = if attempt % 3 == 0 { Toward::Same } else { Toward::Another };
                let wait = reconnect.wait(toward, 0, &mut rng);
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
                reconnect.wait(Toward::Another, 0, &mut rng);
            }
            for wait in [reconnect.told(asked, &mut rng), reconnect.wait(Toward::Another, asked, &mut rng)] {
                prop_assert!((asked..=asked + p.base_ms).contains(&u32::try_from(wait).expect("short")));
            }
        }

        #[test]
        fn no_number_panics(a: u32, b: u32, c: u32, attempt: u32, retry: u32, open: i64) {
            let mut rng = SmallRng::seed_from_u64(1);
            full_jitter(a, b, attempt, &mut rng);
            let p = ReconnectParameters { base_ms: a, max_ms: b, spread_ms: c, reschedule_after_failures: 0 };
            let mut reconnect = Reconnect { parameters: p, attempt, last_wait_ms: 0, owes_spread: true };
            reconnect.wait(Toward::Another, retry, &mut rng);
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
            wait = reconnect.wait(Toward::Another, 0, &mut rng);
        }
        assert!(!reconnect.session_ended(wait - 1), "shorter than the wait before it");
        assert!(reconnect.session_ended(wait));
        assert!(reconnect.wait(Toward::Another, 0, &mut rng) <= 500);
        assert!(!reconnect.session_ended(1_999), "shorter than four times the first back-off");
        assert!(reconnect.session_ended(2_000));
    }

    #[test]
    fn the_spread_is_waited_once_and_only_before_another_gateway() {
        let p = ReconnectParameters { base_ms: 500, max_ms: 2_000, spread_ms: 60_000, ..Default::default() };
        let mut longest = [0; 5];
        for seed in 0..500 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut reconnect = Reconnect::default();
            reconnect.set_parameters(p);
            longest[0] = reconnect.wait(Toward::Another, 0, &mut rng).max(longest[0]);
            assert!(reconnect.session_ended(60_000));
            for (longest, toward) in
                longest[1..].iter_mut().zip([Toward::Same, Toward::Another, Toward::Another, Toward::Same])
            {
                *longest = reconnect.wait(toward, 0, &mut rng).max(*longest);
            }
            assert!(reconnect.session_ended(60_000));
            assert!(reconnect.wait(Toward::Same, 0, &mut rng) <= 500, "a stable session starts over");
        }
        let [new, same, another, again, back] = longest;
        assert!(new <= 500 && same <= 500 && again <= 2_000 && back <= 2_000, "{longest:?}");
        assert!((50_000..=60_000).contains(&another), "{longest:?}");
    }

    #[test]
    fn a_word_of_a_server_stands_in_place_of_the_spread() {
        let p = ReconnectParameters { base_ms: 1, max_ms: 1, spread_ms: 300_000, ..Default::default() };
        type Word = fn(&mut Reconnect, &mut SmallRng) -> i64;
        let words: [(Word, i64); 3] = [
            (|reconnect, rng| reconnect.told(7, rng), 8),
            (|reconnect, rng| reconnect.wait(Toward::Another, 7, rng), 8),
            (
                |reconnect, _| {
                    reconnect.no_spread();
                    0
                },
                0,
            ),
        ];
        for (word, most) in words {
            let mut rng = SmallRng::seed_from_u64(7);
            let mut reconnect = Reconnect::default();
            reconnect.set_parameters(p);
            assert!(reconnect.session_ended(60_000));
            assert!(word(&mut reconnect, &mut rng) <= most);
            assert!(reconnect.wait(Toward::Another, 0, &mut rng) <= 1);
        }
    }

    #[test]
    fn who_stands_in_line_has_not_failed() {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut reconnect = Reconnect::default();
        for _ in 0..20 {
            reconnect.told(300_000, &mut rng);
        }
        assert!(reconnect.wait(Toward::Same, 0, &mut rng) <= 500, "the back-off is the first");
        assert!(reconnect.session_ended(2_000), "and no session need be as long as the line was");
    }

    #[test]
    fn codes_about_the_user_void_the_ticket() {
        let codes = (4000..5000).filter(|code| voids_ticket(Some(*code)));
        assert_eq!(codes.collect::<Vec<_>>(), [4500, 4503, 4505]);
        assert!(!voids_ticket(None));
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
