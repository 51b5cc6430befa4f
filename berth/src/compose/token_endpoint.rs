//! `POST /v1/dev/token`: in dev mode anybody on this machine may be anybody.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use berth_proto::{id, schedule::Problem};
use berth_scheduler::JwtExpected;
use serde::Deserialize;
use serde_json::json;

/// A dev token outlives a working day, so that a terminal left open goes on.
pub const TTL: Duration = Duration::from_secs(24 * 3_600);

/// Larger than any user id in JSON.
const BODY: usize = 4 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ask {
    user_id: String,
}

/// The route, for the scheduler's port.
pub fn router(jwt_secret: &str, expected: JwtExpected) -> Router {
    let signer: Arc<(String, JwtExpected)> = Arc::new((jwt_secret.to_owned(), expected));
    let limit = DefaultBodyLimit::max(BODY);
    Router::new().route("/v1/dev/token", post(token)).layer(limit).with_state(signer)
}

/// Takes the body as JSON whatever its content type says: this is for people with curl.
async fn token(State(signer): State<Arc<(String, JwtExpected)>>, body: Bytes) -> Response {
    let ask: Ask = match serde_json::from_slice(&body) {
        Ok(ask) => ask,
        Err(error) => return refused(&format!("the body is not {{\"userId\":\"…\"}}: {error}")),
    };
    if let Err(problem) = id::check(&ask.user_id) {
        return refused(&format!("userId {problem}"));
    }
    if ask.user_id == id::SYSTEM_USER {
        return refused("userId \"system\" belongs to the server");
    }
    let (secret, expected) = &*signer;
    let token = sign_expected(secret, expected, &ask.user_id, TTL);
    ([(header::CACHE_CONTROL, "no-store")], Json(json!({ "token": token }))).into_response()
}

/// A token that begins now.
pub fn sign(secret: &str, user_id: &str, ttl: Duration) -> String {
    sign_expected(secret, &JwtExpected::default(), user_id, ttl)
}

/// The same, with the claims that are expected.
pub fn sign_expected(secret: &str, expected: &JwtExpected, user_id: &str, ttl: Duration) -> String {
    berth_scheduler::sign_expected_token(secret.as_bytes(), expected, user_id, ttl, now_ms())
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn refused(detail: &str) -> Response {
    let status = StatusCode::BAD_REQUEST;
    let problem = Problem {
        r#type: "about:blank".to_owned(),
        title: "Bad Request".to_owned(),
        status: status.as_u16(),
        detail: detail.to_owned(),
        reason: "INVALID_ARGUMENT".to_owned(),
        ..Problem::default()
    };
    let headers = [(header::CONTENT_TYPE, "application/problem+json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, Json(problem)).into_response()
}
