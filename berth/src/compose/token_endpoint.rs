//! `POST /v1/dev/token`: in dev mode anybody on this machine may be anybody.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use berth_proto::{id, schedule::Problem};
use serde::Deserialize;
use serde_json::json;

/// A dev token outlives a working day, so that a terminal left open goes on.
pub const TTL: Duration = Duration::from_secs(24 * 3_600);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ask {
    user_id: String,
}

/// The route, for the scheduler's port.
pub fn router(jwt_secret: &str) -> Router {
    Router::new().route("/v1/dev/token", post(token)).with_state(Arc::from(jwt_secret))
}

async fn token(State(secret): State<Arc<str>>, Json(ask): Json<Ask>) -> Response {
    if let Err(problem) = id::check(&ask.user_id) {
        return refused(&format!("userId {problem}"));
    }
    if ask.user_id == id::SYSTEM_USER {
        return refused("userId \"system\" belongs to the server");
    }
    Json(json!({ "token": sign(&secret, &ask.user_id, TTL) })).into_response()
}

/// A token that begins now.
pub fn sign(secret: &str, user_id: &str, ttl: Duration) -> String {
    berth_scheduler::sign_user_token(secret.as_bytes(), user_id, ttl, now_ms())
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
    (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(problem)).into_response()
}
