//! Refusals as `application/problem+json`.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use berth_proto::schedule::Problem;
use thiserror::Error;

use crate::metrics::Outcome;

/// Why a request is not answered as asked. The text speaks to the caller's developer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    InvalidArgument(String),
    #[error("{0}")]
    Unauthenticated(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("more than {limit} requests a second for this user; wait {retry_after_ms} ms")]
    RateLimited { limit: u32, retry_after_ms: u32 },
    #[error("{detail}; ask again after {retry_after_ms} ms")]
    NoGateway { detail: String, retry_after_ms: u32 },
    #[error("{}", told_to_wait(*.retry_after_ms, .queue_token))]
    Overloaded { retry_after_ms: u32, queue_token: String },
    #[error("there is no {0} here")]
    NotFound(String),
    #[error("{0} is not what this path takes; see the Allow header")]
    Method(String),
    #[error("{0}")]
    Conflict(String),
}

fn told_to_wait(retry_after_ms: u32, queue_token: &str) -> String {
    let how = match queue_token {
        "" => "no place is kept for you",
        _ => "send queueToken with the next request, it keeps your place",
    };
    format!("more clients ask than the gateways can take; ask again after {retry_after_ms} ms; {how}")
}

impl Refusal {
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::InvalidArgument(_) => Outcome::InvalidArgument,
            Self::Unauthenticated(_) => Outcome::Unauthenticated,
            Self::Forbidden(_) => Outcome::Forbidden,
            Self::RateLimited { .. } => Outcome::RateLimited,
            Self::NoGateway { .. } => Outcome::NoGateway,
            Self::Overloaded { .. } => Outcome::Overloaded,
            Self::NotFound(_) => Outcome::NotFound,
            Self::Method(_) => Outcome::Method,
            Self::Conflict(_) => Outcome::Conflict,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::InvalidArgument(_) => StatusCode::BAD_REQUEST,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NoGateway { .. } | Self::Overloaded { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict(_) => StatusCode::CONFLICT,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::InvalidArgument(_) | Self::Method(_) => "INVALID_ARGUMENT",
            Self::Unauthenticated(_) => "UNAUTHENTICATED",
            Self::Forbidden(_) => "FORBIDDEN",
            Self::RateLimited { .. } => "RATE_LIMITED",
            Self::NoGateway { .. } => "NO_GATEWAY",
            Self::Overloaded { .. } => "OVERLOADED",
            Self::NotFound(_) => "NOT_FOUND",
            Self::Conflict(_) => "CONFLICT",
        }
    }

    fn retry_after_ms(&self) -> Option<u32> {
        match self {
            Self::RateLimited { retry_after_ms, .. }
            | Self::NoGateway { retry_after_ms, .. }
            | Self::Overloaded { retry_after_ms, .. } => Some(*retry_after_ms),
            _ => None,
        }
    }

    fn queue_token(&self) -> &str {
        match self {
            Self::Overloaded { queue_token, .. } => queue_token,
            _ => "",
        }
    }

    /// As the body says it.
    pub fn problem(&self, request_id: &str) -> Problem {
        let status = self.status();
        Problem {
            r#type: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            detail: self.to_string(),
            reason: self.reason().to_owned(),
            request_id: request_id.to_owned(),
            retry_after_ms: self.retry_after_ms(),
            queue_token: self.queue_token().to_owned(),
        }
    }

    /// The answer to the request of this id.
    pub fn response(&self, request_id: &str) -> Response<Body> {
        let body =
            serde_json::to_vec(&self.problem(request_id)).expect("strings and integers have a JSON form");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(ms) = self.retry_after_ms() {
            // In whole seconds, never sooner than said in milliseconds.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
        }
        if let Self::Unauthenticated(_) = self {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
