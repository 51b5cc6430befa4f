//! Where user tokens come from. They expire, so the client asks each time it needs one.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use berth_proto::{id, schedule::Problem};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use thiserror::Error;
use tokio::time::timeout;

use crate::{
    http::{self, Answer},
    options::Options,
};

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Try again later.
    #[error("{0}")]
    Temporary(String),
    /// There will be none: the client stops.
    #[error("{0}")]
    Permanent(String),
}

/// Gives the user's JWT. Called before each schedule request; a provider caches as it likes. A client is one user's: a token of
/// another one stops it, where tokens say whose they are.
pub trait TokenProvider: Send + Sync {
    /// A token. `rejected` is the one that a scheduler has just refused: giving it again stops the client.
    fn token<'a>(&'a self, rejected: Option<&'a str>) -> BoxFuture<'a, Result<String, TokenError>>;
}

/// An async closure is a provider.
impl<F, T> TokenProvider for F
where
    F: Fn() -> T + Send + Sync,
    T: Future<Output = Result<String, TokenError>> + Send + 'static,
{
    fn token<'a>(&'a self, _rejected: Option<&'a str>) -> BoxFuture<'a, Result<String, TokenError>> {
        Box::pin(self())
    }
}

/// Always the same token.
pub struct StaticToken {
    token: String,
}

impl StaticToken {
    /// Gives `token` until it expires.
    #[must_use]
    pub fn new(token: impl Into<String>) -> Self {
        Self { token: token.into() }
    }
}

impl TokenProvider for StaticToken {
    fn token<'a>(&'a self, _rejected: Option<&'a str>) -> BoxFuture<'a, Result<String, TokenError>> {
        Box::pin(async { Ok(self.token.clone()) })
    }
}

/// Tokens from `POST /v1/dev/token`, which only `berth dev` serves.
pub struct DevToken {
    scheduler: String,
    user_id: String,
}

impl DevToken {
    /// Tokens of `user_id` from the scheduler at `scheduler` (`http://host:port`).
    #[must_use]
    pub fn new(scheduler: impl Into<String>, user_id: impl Into<String>) -> Self {
        Self { scheduler: scheduler.into(), user_id: user_id.into() }
    }

    /// Asks for one token.
    ///
    /// # Errors
    /// [`TokenError::Permanent`] when the id is none or not to be had, or when the scheduler does not serve the endpoint.
    pub async fn fetch(&self) -> Result<String, TokenError> {
        id::check(&self.user_id).map_err(|e| TokenError::Permanent(format!("the user id {e}")))?;
        let body = serde_json::json!({ "userId": self.user_id }).to_string().into_bytes();
        let answer = http::post_json(&self.scheduler, "/v1/dev/token", None, body, http::DEADLINE)
            .await
            .map_err(|e| TokenError::Temporary(e.to_string()))?;
        self.read(&answer)
    }

    fn read(&self, answer: &Answer) -> Result<String, TokenError> {
        #[derive(Deserialize)]
        struct Given {
            token: String,
        }
        match answer.status {
            200 => {}
            // The same request will be refused again: the user id is the server's own, say.
            400 => {
                let problem: Problem = serde_json::from_slice(&answer.body).unwrap_or_default();
                let (scheduler, detail) = (&self.scheduler, problem.detail);
                return Err(TokenError::Permanent(format!("{scheduler} refused: {detail}")));
            }
            404 | 405 => {
                let scheduler = &self.scheduler;
                return Err(TokenError::Permanent(format!(
                    "{scheduler} gives no tokens: only `berth dev` does; give a token instead"
                )));
            }
            status => return Err(TokenError::Temporary(format!("{} answered {status}", self.scheduler))),
        }
        serde_json::from_slice::<Given>(&answer.body)
            .map(|given| given.token)
            .map_err(|e| TokenError::Temporary(format!("{} gave no token: {e}", self.scheduler)))
    }
}

impl TokenProvider for DevToken {
    fn token<'a>(&'a self, _rejected: Option<&'a str>) -> BoxFuture<'a, Result<String, TokenError>> {
        Box::pin(self.fetch())
    }
}

/// Asks the provider, for as long as the options allow.
pub(crate) async fn ask(options: &Options, rejected: Option<&str>) -> Result<String, TokenError> {
    let within = options.token_timeout;
    timeout(within, options.token.token(rejected))
        .await
        .unwrap_or_else(|_| Err(TokenError::Temporary(format!("the provider gave none within {within:?}"))))
}

/// Whose token it is: its `sub`, not verified, which is the scheduler's part. `None`: it is no JWT.
pub(crate) fn user_of(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
    }
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    serde_json::from_slice::<Claims>(&claims).ok().map(|claims| claims.sub)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_tells_its_user() {
        // {"alg":"HS256"} and {"sub":"alice","exp":1}
        let token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSIsImV4cCI6MX0.c2ln";
        assert_eq!(user_of(token).as_deref(), Some("alice"));
        for token in ["", "jwt", "a.b.c", "e30.e30.", "eyJhbGciOiJIUzI1NiJ9"] {
            assert_eq!(user_of(token), None, "{token:?}");
        }
    }

    fn read(status: u16, body: &'static str) -> Result<String, TokenError> {
        DevToken::new("http://h:1", "system").read(&Answer { status, retry_after: None, body: body.into() })
    }

    #[test]
    fn a_refused_request_is_refused_for_good_and_a_failure_is_not() {
        assert_eq!(read(200, r#"{"token":"t"}"#), Ok("t".to_owned()));
        let refused = read(400, r#"{"detail":"userId \"system\" belongs to the server"}"#);
        let expected = "http://h:1 refused: userId \"system\" belongs to the server";
        assert_eq!(refused, Err(TokenError::Permanent(expected.to_owned())));
        assert!(matches!(read(404, ""), Err(TokenError::Permanent(_))));
        assert!(matches!(read(503, ""), Err(TokenError::Temporary(_))));
        assert!(matches!(read(200, "{}"), Err(TokenError::Temporary(_))));
    }
}
