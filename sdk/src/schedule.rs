//! One `POST /v1/schedule`, without anything automatic.

use std::time::Duration;

use berth_proto::schedule::Problem;
pub use berth_proto::schedule::{ScheduleAnswer, ScheduleEndpoint, ScheduleRequest};
use thiserror::Error;

use crate::http::{self, Answer, HttpError};

/// Why there is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScheduleError {
    /// The address is none, or the token is not a line of text.
    #[error("{0}")]
    Invalid(String),
    /// No answer in time: 10 s, or 3 s for a client that has another scheduler to ask and was not
    /// left without an answer by all of them.
    #[error("{0}")]
    Unreachable(String),
    /// The scheduler answered with a problem.
    #[error("the scheduler answered {} {}: {}", .0.status, .0.reason, .0.detail)]
    Refused(Box<Problem>),
    /// The scheduler answered something that is no schedule.
    #[error("the scheduler's answer is no schedule: {0}")]
    BadAnswer(String),
}

impl ScheduleError {
    /// Whether no scheduler had a say in it: nobody answered, or something before the schedulers (a load balancer) did, which
    /// knows none of their reasons. Whoever says 401 has looked at the token, so that counts.
    pub(crate) fn unanswered(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::BadAnswer(_) => true,
            Self::Refused(problem) => problem.reason.is_empty() && problem.status != 401,
            Self::Invalid(_) => false,
        }
    }
}

impl From<HttpError> for ScheduleError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Url { .. } => Self::Invalid(error.to_string()),
            HttpError::Unreachable { .. } | HttpError::Deadline { .. } => {
                Self::Unreachable(error.to_string())
            }
        }
    }
}

/// Asks the scheduler at `base_url` (`http://host:port`) where to connect.
///
/// # Errors
/// See [`ScheduleError`]. Every answer other than 200 is [`ScheduleError::Refused`]; what its body does not say (a proxy in
/// between has its own words) is filled in from HTTP.
pub async fn fetch(
    base_url: &str,
    token: &str,
    request: &ScheduleRequest,
) -> Result<ScheduleAnswer, ScheduleError> {
    fetch_within(http::DEADLINE, base_url, token, request).await
}

pub(crate) async fn fetch_within(
    within: Duration,
    base_url: &str,
    token: &str,
    request: &ScheduleRequest,
) -> Result<ScheduleAnswer, ScheduleError> {
    let body = serde_json::to_vec(request).expect("every field has a JSON form");
    read(&http::post_json(base_url, "/v1/schedule", Some(token), body, within).await?)
}

fn read(answer: &Answer) -> Result<ScheduleAnswer, ScheduleError> {
    if answer.status == 200 {
        let schedule: ScheduleAnswer =
            serde_json::from_slice(&answer.body).map_err(|e| ScheduleError::BadAnswer(e.to_string()))?;
        // Any JSON object reads as a schedule of defaults.
        if schedule.ticket.is_empty() {
            return Err(ScheduleError::BadAnswer("it has no ticket".to_owned()));
        }
        return Ok(schedule);
    }
    let mut problem: Problem = serde_json::from_slice(&answer.body).unwrap_or_default();
    problem.status = answer.status;
    problem.retry_after_ms = problem.retry_after_ms.or(answer.retry_after.map(|s| s.saturating_mul(1000)));
    Err(ScheduleError::Refused(Box::new(problem)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(status: u16, body: &'static str) -> Result<ScheduleAnswer, ScheduleError> {
        read(&Answer { status, retry_after: Some(2), body: body.into() })
    }

    #[test]
    fn a_problem_keeps_its_reason_and_its_wait() {
        let Err(ScheduleError::Refused(problem)) =
            read_text(503, r#"{"reason":"NO_GATEWAY","detail":"none is ready","retryAfterMs":700}"#)
        else {
            panic!("expected a refusal");
        };
        assert_eq!((problem.status, problem.reason.as_str()), (503, "NO_GATEWAY"));
        assert_eq!(problem.retry_after_ms, Some(700));
        assert!(!ScheduleError::Refused(problem).unanswered(), "a scheduler said so");
    }

    #[test]
    fn another_servers_words_leave_status_and_wait() {
        for status in [400, 403, 404, 429, 502] {
            let Err(ScheduleError::Refused(problem)) = read_text(status, "<html>what schedulers?") else {
                panic!("expected a refusal");
            };
            assert_eq!((problem.status, problem.reason.as_str()), (status, ""));
            assert_eq!(problem.retry_after_ms, Some(2000));
            assert!(ScheduleError::Refused(problem).unanswered(), "{status}: no scheduler said so");
        }
        assert!(!read_text(401, "").expect_err("a refusal").unanswered(), "it looked at the token");
    }

    #[test]
    fn what_is_no_schedule_is_said() {
        for text in ["<html>welcome", r#"{"status":"ok"}"#] {
            let error = read_text(200, text).expect_err("no schedule");
            assert!(matches!(error, ScheduleError::BadAnswer(_)) && error.unanswered(), "{text}");
        }
        assert!(read_text(200, r#"{"ticket":"t"}"#).is_ok());
    }
}
