//! A connected client's ticket is renewed now and then: a session may last for days, and whoever loses it while no scheduler
//! answers is let in on a ticket that ended not long ago.

use berth_proto::limits::LONGEST_WAIT_MS;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::sleep;

use crate::{
    clock::{from_ms, to_ms},
    http,
    options::Options,
    schedule::{self, ScheduleAnswer, ScheduleError, ScheduleRequest},
    token,
};

/// How often in a row a scheduler that says when to come again is asked sooner than at the next time.
const SOONER: u32 = 3;

/// The first of these waits, at the least, in milliseconds; each further one is at least twice as long. A queue is not over when its last
/// one is let in, and nobody is in a hurry.
const SOONEST_MS: u32 = 10_000;

/// Renews the ticket of one connection.
pub(crate) struct Renewal {
    options: Options,
    request: ScheduleRequest,
    /// Whose ticket it is.
    user_id: String,
    /// Which scheduler to ask.
    scheduler: usize,
    pace: Pace,
}

impl Renewal {
    pub fn new(
        options: Options,
        request: ScheduleRequest,
        user_id: String,
        scheduler: usize,
        rng: &mut impl Rng,
    ) -> Self {
        // What failed before this connection was made says nothing about the next.
        let request = ScheduleRequest { renew: true, attempt: 0, failed: Vec::new(), ..request };
        let pace = Pace::new(to_ms(options.renew_every), SmallRng::from_rng(rng));
        Self { options, request, user_id, scheduler, pace }
    }

    /// The next schedule for the user who is connected. One question at a time; what fails is tried at the next time, or sooner where
    /// a scheduler says when.
    pub async fn next(&mut self) -> ScheduleAnswer {
        loop {
            sleep(from_ms(self.pace.wait_ms())).await;
            match self.ask().await {
                Ok(answer) => {
                    self.pace.answered();
                    return answer;
                }
                Err(Failed { problem, retry_after_ms }) => {
                    tracing::debug!(problem, "the ticket was not renewed");
                    self.pace.failed(retry_after_ms);
                    self.scheduler = self.scheduler.wrapping_add(1);
                }
            }
        }
    }

    /// Asks once, and once more with another token if this one is over.
    async fn ask(&self) -> Result<ScheduleAnswer, Failed> {
        let token = self.token(None).await?;
        let answer = match self.fetch(&token).await {
            Err(ScheduleError::Refused(problem)) if problem.status == 401 => {
                self.fetch(&self.token(Some(&token)).await?).await
            }
            answer => answer,
        };
        answer.map_err(|error| Failed { retry_after_ms: told_ms(&error), problem: error.to_string() })
    }

    async fn token(&self, rejected: Option<&str>) -> Result<String, String> {
        let token = token::ask(&self.options, rejected).await.map_err(|error| error.to_string())?;
        if token::user_of(&token).as_deref() != Some(&self.user_id) {
            return Err("the user token is not of the user who is connected".to_owned());
        }
        Ok(token)
    }

    async fn fetch(&self, token: &str) -> Result<ScheduleAnswer, ScheduleError> {
        let schedulers = &self.options.schedulers;
        let scheduler = &schedulers[self.scheduler % schedulers.len()];
        // Nobody waits for it.
        schedule::fetch_within(http::DEADLINE, scheduler, token, &self.request).await
    }
}

/// Why a ticket was not renewed.
struct Failed {
    problem: String,
    /// When to come again, if a scheduler said so; else 0.
    retry_after_ms: u32,
}

impl From<String> for Failed {
    fn from(problem: String) -> Self {
        Self { problem, retry_after_ms: 0 }
    }
}

/// When a scheduler that has no time for it says to come again; else 0.
fn told_ms(error: &ScheduleError) -> u32 {
    match error {
        ScheduleError::Refused(problem) if problem.status == 503 => problem.retry_after_ms.unwrap_or(0),
        _ => 0,
    }
}

/// When the next renewal is due. Pure.
struct Pace {
    every_ms: i64,
    /// When a scheduler said to come again; 0: the usual time.
    told_ms: u32,
    /// Questions in a row that came sooner than at the usual time.
    sooner: u32,
    rng: SmallRng,
}

impl Pace {
    fn new(every_ms: i64, rng: SmallRng) -> Self {
        Self { every_ms, told_ms: 0, sooner: 0, rng }
    }

    fn answered(&mut self) {
        (self.told_ms, self.sooner) = (0, 0);
    }

    fn failed(&mut self, told_ms: u32) {
        self.told_ms = if self.sooner < SOONER { told_ms } else { 0 };
        self.sooner = if self.told_ms > 0 { self.sooner + 1 } else { 0 };
    }

    /// How long to wait before the next question, in milliseconds. Never longer than usual; where a scheduler said when, that long and up
    /// to as much again, so that those who were told the same do not come together.
    fn wait_ms(&mut self) -> i64 {
        let usual_ms = interval_ms(self.every_ms, &mut self.rng);
        if self.told_ms == 0 {
            return usual_ms;
        }
        let least_ms = self.told_ms.min(LONGEST_WAIT_MS).max(SOONEST_MS << (self.sooner - 1));
        i64::from(self.rng.random_range(least_ms..=2 * least_ms)).min(usual_ms)
    }
}

/// A random part of a sixth more or less than `every_ms`: clients that connected together do not ask together.
fn interval_ms(every_ms: i64, rng: &mut impl Rng) -> i64 {
    let part = every_ms / 6;
    rng.random_range(every_ms - part..=every_ms.saturating_add(part)).max(1)
}

#[cfg(test)]
mod tests {
    use berth_proto::schedule::Problem;

    use super::*;

    #[test]
    fn those_who_connected_together_ask_over_ten_minutes() {
        let mut rng = SmallRng::seed_from_u64(1);
        let minutes: Vec<_> = (0..2_000).map(|_| interval_ms(30 * 60_000, &mut rng) / 60_000).collect();
        assert!(minutes.iter().all(|minute| (25..=35).contains(minute)), "{minutes:?}");
        assert!((25..35).all(|minute| minutes.contains(&minute)), "the whole range is used");
        for extreme in [0, 1, i64::MAX] {
            assert!(interval_ms(extreme, &mut rng) > 0);
        }
    }

    /// A scheduler that refuses until a time, and a client's questions: when it has its ticket.
    fn renewed_ms(seed: u64, asks_ms: i64, refuses_ms: i64, told_ms: u32) -> i64 {
        let mut pace = Pace::new(30 * 60_000, SmallRng::seed_from_u64(seed));
        let mut now_ms = asks_ms;
        while now_ms < refuses_ms {
            pace.failed(told_ms);
            now_ms += pace.wait_ms();
        }
        now_ms
    }

    #[test]
    fn who_is_refused_for_a_short_queue_is_renewed_within_minutes() {
        for seed in 0..200 {
            for (refuses_ms, told_ms, longest_ms) in [
                (101, 101, 20_000),
                (60_000, 30_000, 150_000),
                (1_000, 300_000, 600_000),
                (1, u32::MAX, 600_000),
            ] {
                let took_ms = renewed_ms(seed, 0, refuses_ms, told_ms);
                assert!((10_000..=longest_ms).contains(&took_ms), "{told_ms}: {took_ms} ms");
            }
        }
    }

    #[test]
    fn a_queue_that_does_not_end_is_left_for_the_next_time_and_asked_sooner_again_then() {
        let mut pace = Pace::new(30 * 60_000, SmallRng::seed_from_u64(3));
        let minutes: Vec<_> = (0..9)
            .map(|_| {
                pace.failed(101);
                pace.wait_ms() / 60_000
            })
            .collect();
        assert!(minutes[..3].iter().chain(&minutes[4..7]).all(|minutes| *minutes < 2), "{minutes:?}");
        assert!((25..=35).contains(&minutes[3]) && (25..=35).contains(&minutes[7]), "{minutes:?}");
        pace.failed(101);
        pace.failed(0);
        assert!(pace.wait_ms() >= 25 * 60_000, "who says nothing of a time is asked at the next one");
        let mut often = Pace::new(1, SmallRng::seed_from_u64(3));
        often.failed(300_000);
        assert!(often.wait_ms() <= 2, "never later than usual");
    }

    #[test]
    fn only_a_scheduler_without_time_says_when_to_come() {
        let refused = |status, retry_after_ms| {
            ScheduleError::Refused(Box::new(Problem { status, retry_after_ms, ..Problem::default() }))
        };
        assert_eq!(told_ms(&refused(503, Some(101))), 101);
        assert_eq!(told_ms(&refused(503, None)), 0);
        assert_eq!(told_ms(&refused(429, Some(101))), 0);
        assert_eq!(told_ms(&ScheduleError::Unreachable(String::new())), 0);
    }
}
