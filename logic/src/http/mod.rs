//! The back-end API of PROTOCOL.md: what other servers ask of logic, under the service key.
//!
//! One table (`table.rs`) holds every operation. Requests are matched against it and the OpenAPI document is made from
//! it, so neither can have what the other has not. A file for each resource holds what its operations do.

mod call;
mod groups;
mod messages;
mod openapi;
mod presence;
mod problem;
mod schemas;
mod table;
mod users;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use berth_proto::{code::ErrorCode, id};
use ring::digest::{Digest, SHA256, digest};

use self::{call::Call, problem::Problem, table::Found};
use crate::{config::Config, context::Context};

/// Longest time for a whole request, its body included, in seconds: longer than a send waits for its ack. A test has no
/// patience for that.
const DEADLINE_SECONDS: u64 = if cfg!(test) { 3 } else { 15 };

/// What every handler has.
struct Api {
    context: Arc<Context>,
    /// Compared by hash, so that the time taken tells nothing of the key. More than one while it is changed.
    keys: Vec<Digest>,
    /// `/v1/openapi.json`.
    document: Vec<u8>,
}

/// The API as a service.
pub(crate) fn router(context: Arc<Context>, config: &Config) -> Router {
    let keys = [&config.service_key, &config.previous_service_key].into_iter().filter(|key| !key.is_empty());
    let api = Api {
        context,
        keys: keys.map(|key| digest(&SHA256, key.as_bytes())).collect(),
        document: call::json(&openapi::document()).expect("strings, lists and objects have a JSON form"),
    };
    Router::new().fallback(answer).with_state(Arc::new(api))
}

/// Bounds the time, counts, and gives each answer its form.
async fn answer(State(api): State<Arc<Api>>, request: Request) -> Response {
    let begun = Instant::now();
    let found = table::find(request.method(), request.uri().path());
    let deadline = Duration::from_secs(DEADLINE_SECONDS);
    let (route, id) = (found.route(), request_id(request.headers()));
    let answered = match tokio::time::timeout(deadline, respond(&api, found, request)).await {
        Ok(answered) => answered,
        Err(_) => Err(late()),
    };
    let mut response = match answered {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(problem) => {
            api.context.metrics.refused(problem.reason());
            tracing::debug!(request_id = id, %problem, "a request of the back end was refused");
            problem.response(&id)
        }
    };
    api.context.metrics.http.answered(route, response.status().as_u16(), begun.elapsed());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// Who asks comes first: without the key nothing is told, not even what there is. The document is public.
async fn respond(api: &Arc<Api>, found: Found, request: Request) -> Result<Bytes, Problem> {
    if !found.open() {
        authorize(api, request.headers())?;
    }
    let (operation, parameters) = found.operation()?;
    let call = Call::read(Arc::clone(api), parameters, operation.body, request).await?;
    Ok((operation.handle)(call).await?.into())
}

fn late() -> Problem {
    let detail =
        format!("the request took longer than {DEADLINE_SECONDS} s; its outcome is unknown: repeat it");
    ErrorCode::DeadlineExceeded.error(detail).into()
}

fn authorize(api: &Api, headers: &HeaderMap) -> Result<(), Problem> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, key) = value.and_then(|value| value.split_once(' ')).unwrap_or_default();
    let shown = digest(&SHA256, key.trim().as_bytes());
    let known = api.keys.iter().any(|key| key.as_ref() == shown.as_ref());
    if scheme.eq_ignore_ascii_case("bearer") && known {
        return Ok(());
    }
    let help = "give the service key: Authorization: Bearer <auth.service_key>";
    Err(ErrorCode::Unauthenticated.error(help).into())
}

/// The caller's own request id, if it has the form of an id, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let own = headers.get("x-request-id").and_then(|value| value.to_str().ok());
    match own.filter(|text| id::check(text).is_ok()) {
        Some(own) => own.to_owned(),
        None => format!("{:016x}", rand::random::<u64>()),
    }
}
