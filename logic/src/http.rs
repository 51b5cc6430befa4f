//! The back-end API of PROTOCOL.md: what other servers ask of logic, under the service key.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use berth_proto::{
    client,
    code::{CloseCode, ErrorCode},
    id::{self, SYSTEM_USER},
    limits, schedule, validate,
};
use ring::digest::{Digest, SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{context::Context, gateways::Downs, group, ingest, request};

/// Longest body of a request: a message as large as a client's.
const BODY: usize = limits::CLIENT_FRAME;

/// Longest time for a whole request, its body included.
const DEADLINE: Duration = Duration::from_secs(15);

/// Longest reason of a disconnect, in bytes: it travels in a close frame (123 bytes at most).
const REASON: usize = 100;

#[derive(Clone)]
struct Api {
    context: Arc<Context>,
    /// Compared by hash, so that the time taken tells nothing of the key.
    key: Arc<Digest>,
}

/// The routes of the API.
pub(crate) fn router(context: Arc<Context>, service_key: &str) -> Router {
    let api = Api { context, key: Arc::new(digest(&SHA256, service_key.as_bytes())) };
    Router::new()
        .route("/v1/messages", post(send))
        .route("/v1/presence:batchGet", post(presence))
        .route("/v1/users/{action}", post(user))
        .merge(groups())
        .fallback(|| async { Problem::from(ErrorCode::NotFound.error("there is nothing at this path")) })
        .method_not_allowed_fallback(|| async {
            Problem {
                status: StatusCode::METHOD_NOT_ALLOWED,
                ..ErrorCode::Unimplemented.error("use POST").into()
            }
        })
        .layer(middleware::from_fn_with_state(api.clone(), guard))
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(api)
}

/// Authenticates, bounds the time, counts.
async fn guard(State(api): State<Api>, request: Request, next: Next) -> Result<Response, Problem> {
    api.context.metrics.http_requests.increment(1);
    let token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if digest(&SHA256, token.as_bytes()).as_ref() != api.key.as_ref().as_ref() {
        let error = ErrorCode::Unauthenticated
            .error("give the service key: Authorization: Bearer <auth.service_key>");
        return Err(refused(&api, error));
    }
    let late =
        |_| refused(&api, ErrorCode::DeadlineExceeded.error("the request took longer than 15 s; retry"));
    tokio::time::timeout(DEADLINE, next.run(request)).await.map_err(late)
}

/// A JSON body, refused as a problem that names the field.
struct Json<T>(T);

impl<T: for<'de> Deserialize<'de>> FromRequest<Api> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, api)
            .await
            .map_err(|error| refused(api, ErrorCode::InvalidArgument.error(error.body_text())))?;
        let parsed = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&bytes));
        let bad = |error: serde_path_to_error::Error<serde_json::Error>| {
            refused(api, ErrorCode::InvalidArgument.error(error.to_string()))
        };
        parsed.map(Self).map_err(bad)
    }
}

async fn send(
    State(api): State<Api>,
    headers: HeaderMap,
    Json(mut body): Json<Value>,
) -> Result<Response, Problem> {
    let from = match body.get("from") {
        None | Some(Value::Null) => SYSTEM_USER.to_owned(),
        Some(Value::String(from)) => from.clone(),
        Some(_) => return Err(invalid(&api, "from is not a string")),
    };
    id::check(&from).map_err(|problem| invalid(&api, format!("from {problem}")))?;
    drop_nulls(&mut body);
    if let Some(fields) = body.as_object_mut() {
        fields.remove("from");
        // The default is the same as absent, in this form too.
        let absent = match fields.get("clientMsgId") {
            None | Some(Value::Null) => true,
            Some(given) => given == "",
        };
        if let (true, Some(key)) = (absent, headers.get("idempotency-key")) {
            let key = key.to_str().map_err(|_| invalid(&api, "Idempotency-Key is not visible ASCII"))?;
            fields.insert("clientMsgId".to_owned(), key.into());
        }
    }
    let request: client::SendRequest =
        serde_path_to_error::deserialize(body).map_err(|error| invalid(&api, error.to_string()))?;
    let accepted = async {
        let pending = ingest::enter(&api.context, &from, request).await?;
        ingest::accepted(&api.context, pending).await
    };
    let response = accepted.await.map_err(|error| refused(&api, error))?;
    Ok(ok(&response))
}

/// JSON null is a field's default, which is the same as absent. Bounded by the parser's own depth.
fn drop_nulls(value: &mut Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(drop_nulls);
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PresenceAsked {
    #[serde(default)]
    user_ids: Option<Vec<String>>,
}

async fn presence(State(api): State<Api>, Json(asked): Json<PresenceAsked>) -> Result<Response, Problem> {
    let wanted = client::PresenceRequest { user_ids: asked.user_ids.unwrap_or_default() };
    validate::method(&client::request::Method::Presence(wanted.clone()))
        .map_err(|problem| invalid(&api, problem.to_string()))?;
    let found =
        request::presence(&api.context, wanted.user_ids).await.map_err(|error| refused(&api, error))?;
    Ok(ok(&found))
}

#[derive(Deserialize)]
struct DisconnectAsked {
    #[serde(default)]
    reason: Option<String>,
}

/// `POST /v1/users/{userId}:disconnect`: an id may contain colons, so the action is cut off at the end.
async fn user(
    State(api): State<Api>,
    Path(action): Path<String>,
    Json(asked): Json<DisconnectAsked>,
) -> Result<Response, Problem> {
    let Some(user) = action.strip_suffix(":disconnect") else {
        return Err(refused(&api, ErrorCode::NotFound.error("there is nothing at this path")));
    };
    id::check(user).map_err(|problem| invalid(&api, format!("userId {problem}")))?;
    let reason = asked.reason.unwrap_or_default();
    if reason.len() > REASON {
        let problem = format!("reason is {} bytes; at most {REASON} are allowed", reason.len());
        return Err(invalid(&api, problem));
    }
    let context = &api.context;
    let found = context.routes.lookup(&[user.to_owned()]).await;
    let routes = found.map_err(|error| refused(&api, context.routes_error(&error)))?.concat();
    let reason = if reason.is_empty() { "disconnected by the service" } else { &reason };
    let mut downs = Downs::default();
    for route in &routes {
        downs.close(route, CloseCode::Kicked, reason);
    }
    // Not those whose gateway is away: they are not closed.
    let lost = downs.flush(&context.gateways);
    Ok(ok(&json!({ "sessions": routes.len().saturating_sub(lost) })))
}

/// Longest body of a request that lists members: 10,000 ids of the greatest length, and more of a usual one.
const MEMBERS_BODY: usize = 1024 * 1024;

fn groups() -> Router<Api> {
    Router::new()
        .route("/v1/groups/{group}", get(group_get).put(group_put))
        .route("/v1/groups/{group}/{action}", post(group_members))
        .layer(DefaultBodyLimit::max(MEMBERS_BODY))
}

#[derive(Deserialize)]
struct MembersAsked {
    #[serde(default)]
    members: Option<Vec<String>>,
}

async fn group_put(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(asked): Json<MembersAsked>,
) -> Result<Response, Problem> {
    let done = group::put(&api.context, &id, asked.members.unwrap_or_default()).await;
    Ok(ok(&group_json(&done.map_err(|error| refused(&api, error))?)))
}

async fn group_members(
    State(api): State<Api>,
    Path((id, action)): Path<(String, String)>,
    Json(asked): Json<MembersAsked>,
) -> Result<Response, Problem> {
    let members = asked.members.unwrap_or_default();
    let done = match action.as_str() {
        "members:add" => group::add(&api.context, &id, members).await,
        "members:remove" => group::remove(&api.context, &id, members).await,
        _ => Err(ErrorCode::NotFound.error("there is nothing at this path")),
    };
    Ok(ok(&group_json(&done.map_err(|error| refused(&api, error))?)))
}

async fn group_get(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Problem> {
    let found = group::get(&api.context, &id, None, group::PAGE).await;
    let found = found.map_err(|error| refused(&api, error))?;
    let mut body = group_json(&found);
    body["members"] = json!(found.members);
    Ok(ok(&body))
}

fn group_json(group: &group::Group) -> Value {
    let group::Group { group_id, conversation_id, member_count, .. } = group;
    json!({ "groupId": group_id, "conversationId": conversation_id.to_string(), "memberCount": member_count })
}

fn ok(body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => Problem::from(ErrorCode::Internal.error(error.to_string())).into_response(),
    }
}

fn invalid(api: &Api, detail: impl Into<String>) -> Problem {
    refused(api, ErrorCode::InvalidArgument.error(detail))
}

fn refused(api: &Api, error: client::Error) -> Problem {
    api.context.metrics.refused(&error.code);
    error.into()
}

/// An error as `application/problem+json`.
struct Problem {
    status: StatusCode,
    error: client::Error,
}

impl From<client::Error> for Problem {
    fn from(error: client::Error) -> Self {
        let code = ErrorCode::ALL.into_iter().find(|code| code.as_str() == error.code);
        let status = code.and_then(|code| StatusCode::from_u16(code.http_status()).ok());
        Self { status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error }
    }
}

/// After which a retry is worth it where the error says nothing better, in milliseconds: a restart or a backlog takes
/// longer, but one try a second costs nobody anything.
const RETRY_AFTER_MS: u32 = 1000;

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let wait = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&self.status);
        let retry_after_ms = wait.then_some(RETRY_AFTER_MS);
        let body = schedule::Problem {
            r#type: "about:blank".to_owned(),
            title: self.status.canonical_reason().unwrap_or_default().to_owned(),
            status: self.status.as_u16(),
            detail: self.error.message,
            reason: self.error.code,
            request_id: format!("{:016x}", rand::random::<u64>()),
            retry_after_ms,
        };
        let body = serde_json::to_vec(&body).expect("strings and integers have a JSON form");
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (self.status, kind, body).into_response();
        if let Some(ms) = retry_after_ms {
            // In whole seconds, never sooner than said in milliseconds.
            response.headers_mut().insert(header::RETRY_AFTER, ms.div_ceil(1000).into());
        }
        response
    }
}
