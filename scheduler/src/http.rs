//! `POST /v1/schedule` and `POST /v1/schedule:explain`, and the document that describes them.

pub(crate) mod admin;
mod input;
mod openapi;
mod problem;
pub(crate) mod server;

#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc, time::Instant};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Response, header},
    response::IntoResponse,
};
use berth_proto::{
    id,
    id::SYSTEM_USER,
    schedule::{Decision, Problem, ReconnectParameters, ScheduleAnswer, ScheduleEndpoint, ScheduleRequest},
    wire::Revocation,
};
use rand::Rng;
use ring::digest::{SHA256, digest};
use serde::Serialize;

use self::{problem::Refusal, server::Peer};
use crate::{
    assign::{self, NotAssigned, Terms},
    core::{Ask, Core, Wait},
    decide::{
        NoGateway,
        explain::{Explanation, explain},
    },
    locate::{Claim, ClientSeen},
    metrics::Outcome,
};

/// The shortest wait after NO_GATEWAY, in milliseconds: two report intervals.
const NO_GATEWAY_WAIT_MS: u32 = 1_000;

/// Up to so much is added, so that those who were refused together do not come back together.
const NO_GATEWAY_SPREAD_MS: u32 = 2_000;

/// Up to so much is added to what is left of the wait for the first reports, in milliseconds: it is short anyway.
const STARTING_SPREAD_MS: u32 = 500;

/// The router: the operations of our table, the caller's own, and problems for everything else. The fallbacks come last, since they are
/// set on the routes that are there.
pub(crate) fn router(core: Arc<Core>, extra: Option<Router>) -> Router {
    let add =
        |router: Router<_>, operation: &openapi::Operation| router.route(operation.path, (operation.route)());
    let own = openapi::OPERATIONS.iter().fold(Router::new(), add).with_state(Arc::clone(&core));
    let all = match extra {
        Some(extra) => own.merge(extra),
        None => own,
    };
    let (not_allowed, not_found) = (Arc::clone(&core), core);
    all.method_not_allowed_fallback(async move |request: Request| {
        elsewhere(&not_allowed, &request, &Refusal::Method(request.method().to_string()))
    })
    .fallback(async move |request: Request| {
        elsewhere(&not_found, &request, &Refusal::NotFound(request.uri().path().to_owned()))
    })
}

/// Refuses what no route takes.
fn elsewhere(core: &Core, request: &Request, refusal: &Refusal) -> Response<Body> {
    core.metrics.request(refusal.outcome());
    refuse(&request_id(request.headers()), refusal)
}

async fn schedule(State(core): State<Arc<Core>>, request: Request) -> Response<Body> {
    let request_id = request_id(request.headers());
    let mut started = Instant::now();
    let answered = answer(&core, request, &mut started).await;
    core.metrics.request_seconds.record(started.elapsed());
    match answered {
        Ok(answer) => {
            core.metrics.request(Outcome::Ok);
            finish(Json(answer).into_response(), &request_id)
        }
        Err(refusal) => {
            core.metrics.request(refusal.outcome());
            tracing::debug!(request_id, %refusal, "not scheduled");
            refuse(&request_id, &refusal)
        }
    }
}

/// Sets `started` when the body is there: how long that takes is the client's matter.
async fn answer(core: &Core, request: Request, started: &mut Instant) -> Result<ScheduleAnswer, Refusal> {
    let token = bearer(request.headers())?;
    let now_ms = core.clock.wall_ms();
    let user = core.jwt.verify(token, now_ms).map_err(|e| Refusal::Unauthenticated(e.to_string()))?;
    if user.id == SYSTEM_USER {
        let detail = format!("the user id {SYSTEM_USER:?} belongs to the server");
        return Err(Refusal::Forbidden(detail));
    }
    core.limiter.take(&user.id, core.clock.monotonic_ms()).map_err(|retry_after_ms| {
        Refusal::RateLimited { limit: core.limiter.per_second(), retry_after_ms }
    })?;
    let peer = peer_ip(&request);
    let bytes = input::body(request.into_body(), input::MAX_BODY).await?;
    *started = Instant::now();
    let asked: ScheduleRequest = input::json(&bytes)?;
    input::check(&asked)?;
    user.check_device(&asked.device_id).map_err(Refusal::Forbidden)?;
    core.check_revoked(&user.id, &asked.device_id, user.issued_at_ms).map_err(revoked)?;
    core.settled().map_err(starting)?;
    let terms = Terms {
        transports: &asked.transports,
        rtt_ms: &asked.rtt_ms,
        auth_expires_at_ms: user.expires_at_ms,
        auth_issued_at_ms: user.issued_at_ms,
        now_ms,
        ask: if asked.renew { Ask::Renew } else { Ask::LetIn { queue_token: &asked.queue_token } },
        came_to: "",
        wait_ms: 0,
        moved: false,
        runs: [&asked.platform, &asked.app_version],
    };
    let request = input::decision_request(&asked, &user.id, peer);
    let assigned = core.assign(request, &terms).map_err(not_assigned)?;
    let ttl_seconds = (assigned.expires_at_ms - now_ms).max(0) / 1000;
    Ok(ScheduleAnswer {
        schedule_id: format!("{:016x}", assigned.schedule_id),
        server_time_ms: now_ms,
        ttl_seconds: u32::try_from(ttl_seconds).unwrap_or(u32::MAX),
        endpoints: assigned.endpoints,
        ticket: assigned.ticket,
        ticket_expires_at_ms: assigned.expires_at_ms,
        heartbeat: core.heartbeat,
        reconnect: ReconnectParameters {
            spread_ms: core.reconnect.spread_ms.max(assigned.spread_ms),
            ..core.reconnect
        },
        decision: assigned.decision,
    })
}

/// What `:explain` answers: what would be decided, and everything that led there. No ticket, and nothing is counted.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExplainAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<Decision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<&'static str>,
    /// The home cannot take him now.
    elsewhere: bool,
    client: ClientSeen,
    endpoints: Vec<ScheduleEndpoint>,
    policy_hash: String,
    stages: Explanation,
}

async fn explain_schedule(State(core): State<Arc<Core>>, request: Request) -> Response<Body> {
    let (request_id, peer) = (request_id(request.headers()), peer_ip(&request));
    match explanation(&core, request).await {
        Ok(answer) => {
            core.metrics.explain(Outcome::Ok);
            finish(Json(answer).into_response(), &request_id)
        }
        Err(refusal) => {
            core.metrics.explain(refusal.outcome());
            // A wrong admin key too: somebody is guessing, or has an old one.
            tracing::debug!(request_id, ?peer, %refusal, "not explained");
            refuse(&request_id, &refusal)
        }
    }
}

async fn explanation(core: &Core, request: Request) -> Result<ExplainAnswer, Refusal> {
    admin_only(core, request.headers())?;
    let bytes = input::body(request.into_body(), input::MAX_BODY).await?;
    let asked: input::ExplainRequest = input::json(&bytes)?;
    input::check(&asked.schedule)?;
    let wrong_user = |e| Refusal::InvalidArgument(format!("userId {e}"));
    id::check(&asked.user_id).map_err(wrong_user)?;
    let ip = input::address(&asked.client_ip)?;
    let request = input::decision_request(&asked.schedule, &asked.user_id, ip);
    let (fleet, policy) = (core.fleet.load(), core.policy.load());
    let now_ms = core.clock.monotonic_ms();
    let claim = Claim::of(&request, &asked.schedule.rtt_ms);
    let (located, client) = core.locator.explain(&fleet, &policy, &claim, now_ms);
    let request = request.located(&located);
    let (decided, mut stages) = explain(&fleet, &policy, &request, now_ms, &mut rand::rng());
    let pool = decided.as_ref().map_or_else(|error| error.pool.as_str(), |decision| decision.pool);
    stages.admission.queue = core.queue(pool);
    let policy_hash = policy.hash.clone();
    Ok(match decided {
        Ok(decision) => ExplainAnswer {
            endpoints: assign::endpoints(&fleet, decision.ranked.as_slice(), &asked.schedule.transports),
            tier: Some(decision.tier.name()),
            elsewhere: decision.elsewhere,
            client,
            decision: Some(assign::describe(&decision)),
            problem: None,
            policy_hash,
            stages,
        },
        Err(error) => ExplainAnswer {
            endpoints: Vec::new(),
            tier: None,
            elsewhere: false,
            client,
            decision: None,
            problem: Some(no_gateway(&error).problem("")),
            policy_hash,
            stages,
        },
    })
}

fn not_assigned(problem: NotAssigned) -> Refusal {
    match problem {
        NotAssigned::NoGateway(error) => no_gateway(&error),
        NotAssigned::Queued(Wait { ms, queue_token }) => {
            Refusal::Overloaded { retry_after_ms: ms, queue_token }
        }
    }
}

fn revoked(revocation: Revocation) -> Refusal {
    let Revocation { not_before_ms, reason, .. } = revocation;
    let because = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    Refusal::Unauthenticated(format!(
        "tokens issued before {not_before_ms} were revoked{because}; sign in again and send the new one"
    ))
}

fn no_gateway(error: &NoGateway) -> Refusal {
    let spread = rand::rng().random_range(0..NO_GATEWAY_SPREAD_MS);
    Refusal::NoGateway { detail: error.to_string(), retry_after_ms: NO_GATEWAY_WAIT_MS + spread }
}

fn starting(left_ms: u32) -> Refusal {
    let spread = rand::rng().random_range(0..STARTING_SPREAD_MS);
    let detail =
        "this scheduler has just begun to hear from gateways and does not know them all yet".to_owned();
    Refusal::NoGateway { detail, retry_after_ms: left_ms + spread }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let missing = || Refusal::Unauthenticated("send Authorization: Bearer <token>".to_owned());
    let value = headers.get(header::AUTHORIZATION).ok_or_else(missing)?;
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(missing)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(missing()) }
}

/// Refuses whoever does not show an admin key. Compares digests: what the time of the comparison tells about them tells
/// nothing about the key.
fn admin_only(core: &Core, headers: &HeaderMap) -> Result<(), Refusal> {
    let key = bearer(headers)?;
    let digest = |key: &str| digest(&SHA256, key.as_bytes());
    let shown = digest(key);
    let mut keys = core.admin_keys.iter().filter(|own| !own.is_empty());
    if keys.any(|own| shown.as_ref() == digest(own).as_ref()) {
        return Ok(());
    }
    Err(Refusal::Unauthenticated("that is not the admin key (auth.admin_key)".to_owned()))
}

/// An IPv4 client of a dual-stack listener is an IPv4 client.
fn peer_ip(request: &Request) -> Option<IpAddr> {
    request.extensions().get::<Peer>().map(|peer| peer.0.ip().to_canonical())
}

/// The caller's own request id, if it has the form of an id, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let own = headers.get("x-request-id").and_then(|value| value.to_str().ok());
    match own.filter(|text| id::check(text).is_ok()) {
        Some(own) => own.to_owned(),
        None => format!("{:016x}", rand::rng().random::<u64>()),
    }
}

fn refuse(request_id: &str, refusal: &Refusal) -> Response<Body> {
    finish(refusal.response(request_id), request_id)
}

fn finish(mut response: Response<Body>, request_id: &str) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert("x-request-id", value);
    }
    response
}
