//! A connected client's ticket is renewed now and then: a session may last for days, and whoever loses it while no scheduler
//! answers is let in on a ticket that ended not long ago.

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::sleep;

use crate::{
    clock::{from_ms, to_ms},
    http,
    options::Options,
    schedule::{self, ScheduleAnswer, ScheduleError, ScheduleRequest},
    token,
};

/// Renews the ticket of one connection.
pub(crate) struct Renewal {
    options: Options,
    request: ScheduleRequest,
    /// Whose ticket it is.
    user_id: String,
    /// Which scheduler to ask.
    scheduler: usize,
    rng: SmallRng,
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
        Self { options, request, user_id, scheduler, rng: SmallRng::from_rng(rng) }
    }

    /// The next schedule for the user who is connected. One question at a time; what fails is tried at the next time.
    pub async fn next(&mut self) -> ScheduleAnswer {
        loop {
            sleep(from_ms(interval_ms(to_ms(self.options.renew_every), &mut self.rng))).await;
            match self.ask().await {
                Ok(answer) => return answer,
                Err(problem) => {
                    tracing::debug!(problem, "the ticket was not renewed");
                    self.scheduler = self.scheduler.wrapping_add(1);
                }
            }
        }
    }

    /// Asks once, and once more with another token if this one is over.
    async fn ask(&self) -> Result<ScheduleAnswer, String> {
        let token = self.token(None).await?;
        let answer = match self.fetch(&token).await {
            Err(ScheduleError::Refused(problem)) if problem.status == 401 => {
                self.fetch(&self.token(Some(&token)).await?).await
            }
            answer => answer,
        };
        answer.map_err(|error| error.to_string())
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

/// A random part of a sixth more or less than `every_ms`: clients that connected together do not ask together.
fn interval_ms(every_ms: i64, rng: &mut impl Rng) -> i64 {
    let part = every_ms / 6;
    rng.random_range(every_ms - part..=every_ms.saturating_add(part)).max(1)
}

#[cfg(test)]
mod tests {
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
}
