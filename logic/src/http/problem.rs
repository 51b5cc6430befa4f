//! A refusal as `application/problem+json` (RFC 9457).

use std::fmt;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use berth_proto::{client, code::ErrorCode, schedule};

/// After which a retry is worth it where the error says nothing better, in milliseconds: a restart or a backlog takes
/// longer, but one try a second costs nobody anything.
const RETRY_AFTER_MS: u32 = 1000;

/// Why a request is not answered as asked.
pub(super) struct Problem {
    status: StatusCode,
    error: client::Error,
    /// With 405: what the path takes.
    allow: Option<String>,
}

impl From<client::Error> for Problem {
    fn from(error: client::Error) -> Self {
        let code = ErrorCode::ALL.into_iter().find(|code| code.as_str() == error.code);
        let status = code.and_then(|code| StatusCode::from_u16(code.http_status()).ok());
        Self { status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error, allow: None }
    }
}

impl Problem {
    /// An argument that is wrong in a way for which HTTP has a status of its own.
    pub(super) fn with(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, error: ErrorCode::InvalidArgument.error(detail), allow: None }
    }

    /// Nothing at the path.
    pub(super) fn nothing() -> Self {
        ErrorCode::NotFound.error("there is nothing at this path; see /v1/openapi.json").into()
    }

    /// The path takes other methods.
    pub(super) fn method(allow: String) -> Self {
        let error = ErrorCode::Unimplemented.error(format!("this path takes {allow}"));
        Self { status: StatusCode::METHOD_NOT_ALLOWED, error, allow: Some(allow) }
    }

    /// Of the closed set of error codes.
    pub(super) fn reason(&self) -> &str {
        &self.error.code
    }

    /// The whole answer.
    pub(super) fn response(self, request_id: &str) -> Response {
        let wait = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&self.status);
        let told = Some(self.error.retry_after_ms).filter(|ms| *ms > 0);
        let retry_after_ms = wait.then(|| told.unwrap_or(RETRY_AFTER_MS));
        let body = schedule::Problem {
            r#type: "about:blank".to_owned(),
            title: self.status.canonical_reason().unwrap_or_default().to_owned(),
            status: self.status.as_u16(),
            detail: self.error.message,
            reason: self.error.code,
            request_id: request_id.to_owned(),
            retry_after_ms,
            ..schedule::Problem::default()
        };
        let body = serde_json::to_vec(&body).expect("strings and integers have a JSON form");
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (self.status, kind, body).into_response();
        let headers = response.headers_mut();
        if let Some(ms) = retry_after_ms {
            // In whole seconds, never sooner than said in milliseconds.
            headers.insert(header::RETRY_AFTER, ms.div_ceil(1000).into());
        }
        if let Some(allow) = self.allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.status.as_u16(), self.error.code, self.error.message)
    }
}
