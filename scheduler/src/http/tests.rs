//! The HTTP API as PROTOCOL.md says it, over real connections.

use std::time::Duration;

use berth_proto::{
    schedule::{Reason, ScheduleAnswer},
    ticket::{TicketSigner, TicketVerifier},
    wire::GatewayReport,
};
use serde_json::json;

use crate::{
    Config, sign_user_token,
    testing::{ADMIN_KEY, Answer, Fixture, SECRET, TICKET_KEY, bearer, config, eventually, report},
};

fn check_problem(answer: &Answer, status: u16, reason: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.body["reason"], reason, "{answer:?}");
    assert_eq!(answer.body["status"], status);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.header("cache-control"), "no-store");
    for field in ["type", "title", "detail", "requestId"] {
        assert!(answer.body[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {answer:?}");
    }
    let retry = status == 429 || status == 503;
    assert_eq!(answer.body["retryAfterMs"].is_u64(), retry, "{answer:?}");
    assert_eq!(!answer.header("retry-after").is_empty(), retry, "{answer:?}");
}

#[tokio::test]
async fn a_schedule_is_answered_as_documented() {
    let fixture = Fixture::start(config()).await;
    fixture.gateway(report("gw-1")).await;
    fixture.gateway(report("gw-2")).await;
    let answer =
        fixture.schedule(r#"{"deviceId":"d1","platform":"web","appVersion":"7.3.1","sdk":"x/1"}"#).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, "no-store"));
    assert_eq!(answer.header("content-type"), "application/json");
    let schedule: ScheduleAnswer = serde_json::from_value(answer.body.clone()).expect("the documented shape");
    assert!(answer.body["serverTimeMs"].is_string() && answer.body["ticketExpiresAtMs"].is_string());
    assert_eq!(schedule.ttl_seconds, 300);
    assert_eq!(schedule.ticket_expires_at_ms - schedule.server_time_ms, 300_000);
    let endpoints: Vec<_> =
        schedule.endpoints.iter().map(|e| (e.gateway_id.as_str(), e.transport.as_str())).collect();
    let first = endpoints[0].0;
    let second = if first == "gw-1" { "gw-2" } else { "gw-1" };
    assert_eq!(endpoints, [(first, "ws"), (first, "tcp"), (second, "ws"), (second, "tcp")]);
    let endpoint = &schedule.endpoints[1];
    assert_eq!((endpoint.url.as_str(), endpoint.region.as_str()), ("tcp://127.0.0.1:7710", "eu"));
    assert_eq!((endpoint.zone.as_str(), endpoint.pool.as_str()), ("a", "stable"));
    assert_eq!((schedule.heartbeat.interval_ms, schedule.reconnect.base_ms), (25_000, 500));
    assert_eq!((schedule.decision.reason, schedule.decision.pool.as_str()), (Reason::Default, "stable"));

    let verifier = TicketVerifier::new(&[TicketSigner::from_secret(TICKET_KEY).public_key()]);
    let ticket = verifier.genuine(&schedule.ticket).expect("signed by the ticket key");
    assert_eq!((ticket.user_id.as_str(), ticket.device_id.as_str()), ("alice", "d1"));
    assert_eq!(ticket.gateway_ids, [first, second]);
    assert_eq!((ticket.platform.as_str(), ticket.app_version.as_str()), ("web", "7.3.1"));
    assert_eq!(schedule.schedule_id, format!("{:016x}", ticket.schedule_id));
    assert_eq!(ticket.expires_at_ms, schedule.ticket_expires_at_ms);
    assert!(ticket.auth_expires_at_ms >= schedule.server_time_ms + 3_500_000);
    assert_eq!(fixture.metric(r#"berth_scheduler_decisions_total{pool="stable",reason="DEFAULT"}"#), 1.0);
    assert_eq!(fixture.metric(r#"berth_scheduler_requests_total{outcome="ok"}"#), 1.0);
    fixture.scheduler.stop().await;
}

#[tokio::test]
async fn transports_and_failed_gateways_are_minded() {
    let fixture = Fixture::start(config()).await;
    fixture.gateway(report("gw-1")).await;
    fixture.gateway(report("gw-2")).await;
    let answer = fixture
        .schedule(r#"{"deviceId":"d1","transports":["quic","tcp"],"failed":["gw-1"],"rttMs":{"gw-2":3},"attempt":2,"region":null,"later":[1]}"#)
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let endpoints = answer.body["endpoints"].as_array().expect("a list");
    assert_eq!(endpoints.len(), 1);
    assert_eq!((&endpoints[0]["gatewayId"], &endpoints[0]["transport"]), (&json!("gw-2"), &json!("tcp")));
    let swapped = fixture.schedule(r#"{"deviceId":"d1","transports":["tcp","ws"]}"#).await;
    assert_eq!(swapped.body["endpoints"][0]["transport"], "tcp", "in the order asked for");
}

#[tokio::test]
async fn a_gateway_is_listed_once_per_transport() {
    let fixture = Fixture::start(config()).await;
    let mut twice = report("gw-1");
    let again = twice.endpoints.clone().into_iter().map(|mut endpoint| {
        endpoint.url += "/again";
        endpoint
    });
    twice.endpoints.extend(again.collect::<Vec<_>>());
    fixture.gateway(twice).await;
    let urls = async |body: &str| {
        let answer = fixture.schedule(body).await;
        let endpoints = answer.body["endpoints"].as_array().cloned().unwrap_or_default();
        endpoints
            .iter()
            .map(|endpoint| endpoint["url"].as_str().expect("text").to_owned())
            .collect::<Vec<_>>()
    };
    let (ws, tcp) = ("ws://127.0.0.1:7710/v1/ws", "tcp://127.0.0.1:7710");
    assert_eq!(urls(r#"{"deviceId":"d"}"#).await, [ws, tcp]);
    assert_eq!(urls(r#"{"deviceId":"d","transports":["tcp","tcp","ws","tcp"]}"#).await, [tcp, ws]);
}

#[tokio::test]
async fn a_ticket_never_outlives_the_token() {
    let fixture = Fixture::start(config()).await;
    fixture.gateway(report("gw-1")).await;
    let now_ms = crate::clock::Clock::start().wall_ms();
    let token = sign_user_token(SECRET, "alice", Duration::from_secs(100), now_ms);
    let headers = [("authorization", &*format!("bearer {token}"))];
    let answer = fixture.post("/v1/schedule", &headers, r#"{"deviceId":"d1"}"#).await;
    let schedule: ScheduleAnswer = serde_json::from_value(answer.body).expect("200");
    assert_eq!(schedule.ticket_expires_at_ms, now_ms / 1000 * 1000 + 100_000);
    assert!(schedule.ttl_seconds <= 100);
}

#[tokio::test]
async fn who_does_not_say_who_he_is_gets_401() {
    let fixture = Fixture::start(config()).await;
    fixture.gateway(report("gw-1")).await;
    let now_ms = crate::clock::Clock::start().wall_ms();
    let signed = |secret: &[u8], age_ms: i64| {
        format!("Bearer {}", sign_user_token(secret, "alice", Duration::from_secs(1), now_ms - age_ms))
    };
    let unsigned = "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSIsImV4cCI6MjAwMDAwMDAwMH0.";
    let wrong = [
        String::new(),
        "Basic YTpi".to_owned(),
        "Bearer".to_owned(),
        "Bearer x.y.z".to_owned(),
        unsigned.to_owned(),
        signed(b"another secret of 32 bytes......", 0),
        signed(SECRET, 60_000),
    ];
    for value in &wrong {
        let answer = fixture.post("/v1/schedule", &[("authorization", value)], r#"{"deviceId":"d"}"#).await;
        check_problem(&answer, 401, "UNAUTHENTICATED");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    check_problem(&fixture.post("/v1/schedule", &[], "{}").await, 401, "UNAUTHENTICATED");
    let system =
        fixture.post("/v1/schedule", &[("authorization", &bearer("system"))], r#"{"deviceId":"d"}"#).await;
    check_problem(&system, 403, "FORBIDDEN");
    assert_eq!(fixture.metric(r#"berth_scheduler_requests_total{outcome="unauthenticated"}"#), 8.0);
    assert_eq!(fixture.metric("berth_scheduler_request_seconds_count"), 9.0, "refusals take time too");
}

#[tokio::test]
async fn impossible_requests_are_named() {
    let fixture = Fixture::start(config()).await;
    fixture.gateway(report("gw-1")).await;
    let many: Vec<String> = (0..65).map(|n| format!("\"g{n}\"")).collect();
    let many = format!(r#"{{"deviceId":"d","failed":[{}]}}"#, many.join(","));
    let long = format!(r#"{{"deviceId":"d","region":"{}"}}"#, "x".repeat(65));
    let cases = [
        ("", "EOF"),
        ("nonsense", "expected"),
        ("[]", "no JSON object"),
        ("{}", "deviceId is empty"),
        (r#"{"deviceId":null}"#, "deviceId is empty"),
        (r#"{"deviceId":"a/b"}"#, "deviceId contains '/'"),
        (r#"{"deviceId":7}"#, "deviceId: invalid type"),
        (r#"{"deviceId":"d","rttMs":{"gw-1":-5}}"#, "rttMs.gw-1: invalid value"),
        (r#"{"deviceId":"d","transports":["quic"]}"#, "transports names none of ws, tcp"),
        (&many, "failed has 65 entries; at most 64"),
        (&long, "region has 65 bytes; at most 64"),
    ];
    for (body, detail) in cases {
        let answer = fixture.schedule(body).await;
        check_problem(&answer, 400, "INVALID_ARGUMENT");
        assert!(answer.body["detail"].as_str().expect("text").contains(detail), "{body:.60}: {answer:?}");
    }
    let large = format!(r#"{{"deviceId":"d","sdk":"{}"}}"#, "x".repeat(40_000));
    check_problem(&fixture.schedule(&large).await, 400, "INVALID_ARGUMENT");
}

#[tokio::test]
async fn other_paths_and_methods_are_problems_too() {
    let fixture = Fixture::start(config()).await;
    check_problem(&fixture.post("/v1/nothing", &[], "").await, 404, "NOT_FOUND");
    let get = fixture.request("GET", "/v1/schedule", &[("x-request-id", "req-7")], "").await;
    check_problem(&get, 405, "INVALID_ARGUMENT");
    assert_eq!((get.header("allow"), get.header("x-request-id")), ("POST", "req-7"));
    assert_eq!(get.body["requestId"], "req-7", "the caller's own id, so that both logs can be joined");
    let counted =
        |outcome: &str| fixture.metric(&format!("berth_scheduler_requests_total{{outcome=\"{outcome}\"}}"));
    assert_eq!(["not_found", "method_not_allowed", "invalid_argument"].map(counted), [1.0, 1.0, 0.0]);
}

#[tokio::test]
async fn without_a_gateway_the_wait_is_spread() {
    let fixture = Fixture::start(config()).await;
    let mut waits = std::collections::HashSet::new();
    for _ in 0..8 {
        let answer = fixture.schedule(r#"{"deviceId":"d"}"#).await;
        check_problem(&answer, 503, "NO_GATEWAY");
        let wait = answer.body["retryAfterMs"].as_u64().expect("a number");
        assert!((1_000..3_000).contains(&wait));
        let header: u64 = answer.header("retry-after").parse().expect("seconds");
        assert!(header * 1000 >= wait, "never sooner than said in milliseconds");
        waits.insert(wait);
    }
    assert!(waits.len() > 1, "not everybody at once: {waits:?}");
    assert_eq!(fixture.metric(r#"berth_scheduler_requests_total{outcome="no_gateway"}"#), 8.0);
}

/// A gateway that leases so many clients a second, and takes no more.
fn leasing(id: &str, per_second: u64) -> GatewayReport {
    let handshakes_per_second_capacity = per_second;
    GatewayReport { admit_per_second: Some(per_second), handshakes_per_second_capacity, ..report(id) }
}

#[tokio::test]
async fn above_the_budget_a_client_gets_its_place_and_comes_back_with_it() {
    let fixture = Fixture::start(config()).await;
    fixture.gateway(leasing("gw-1", 10)).await;
    let (mut waits, mut last) = (Vec::new(), json!(null));
    for user in 0..40 {
        let bearer = bearer(&format!("u{user}"));
        let answer = fixture.post("/v1/schedule", &[("authorization", &bearer)], r#"{"deviceId":"d"}"#).await;
        if answer.status != 200 {
            check_problem(&answer, 503, "OVERLOADED");
            waits.push(answer.body["retryAfterMs"].as_u64().expect("a number"));
            last = answer.body["queueToken"].clone();
        }
    }
    assert!(waits.len() > 20 && waits.is_sorted(), "each behind the one before: {waits:?}");
    let ask = async |user: &str, device: &str| {
        let body = json!({ "deviceId": device, "queueToken": last }).to_string();
        fixture.post("/v1/schedule", &[("authorization", &bearer(user))], &body).await
    };
    let (wait, place) = (waits[waits.len() - 1], last.as_str().expect("text"));
    let early = ask("u39", "d").await;
    check_problem(&early, 503, "OVERLOADED");
    assert_eq!(early.body["queueToken"], place, "the same place");
    let left = early.body["retryAfterMs"].as_u64().expect("a number");
    assert!(left <= wait, "{left} of {wait}");
    for (user, device) in [("mallory", "d"), ("u39", "other")] {
        let stolen = ask(user, device).await;
        check_problem(&stolen, 503, "OVERLOADED");
        assert!(stolen.body["retryAfterMs"].as_u64() > Some(left), "at the end: {stolen:?}");
    }
    let headers = [("authorization", &*format!("Bearer {ADMIN_KEY}"))];
    let explained = fixture.post("/v1/schedule:explain", &headers, r#"{"userId":"u","deviceId":"d"}"#).await;
    let queue = &explained.body["stages"]["admission"]["queue"];
    assert_eq!(queue["budgetPerSecond"], 10, "{explained:?}");
    assert!(queue["waitMs"].as_u64() > Some(0) && queue["waiting"].as_u64() > Some(0), "{queue}");
    tokio::time::sleep(Duration::from_millis(left)).await;
    assert_eq!(ask("u39", "d").await.status, 200);
    let tokens = |outcome: &str| format!("berth_scheduler_queue_tokens_total{{outcome=\"{outcome}\"}}");
    eventually("counted", || fixture.metric(&tokens("honoured")) == 1.0).await;
    assert_eq!((fixture.metric(&tokens("early")), fixture.metric(&tokens("forged"))), (1.0, 2.0));
    assert_eq!(fixture.metric("berth_scheduler_admission_budget_per_second"), 10.0);
    assert!(fixture.metric(r#"berth_scheduler_requests_total{outcome="overloaded"}"#) > 20.0);
}

#[tokio::test]
async fn who_renews_takes_nobodys_place_and_is_refused_while_others_wait() {
    let fixture = Fixture::start(config()).await;
    fixture.gateway(leasing("gw-1", 5)).await;
    for _ in 0..100 {
        let answer = fixture.schedule(r#"{"deviceId":"d","renew":true}"#).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(fixture.scheduler.core.pending_len(), 0, "he comes to no gateway");
    assert_eq!(fixture.schedule(r#"{"deviceId":"d"}"#).await.status, 200, "all of the budget is left");
    for user in 0..100 {
        let bearer = bearer(&format!("u{user}"));
        fixture.post("/v1/schedule", &[("authorization", &bearer)], r#"{"deviceId":"d"}"#).await;
    }
    let refused = fixture.schedule(r#"{"deviceId":"d","renew":true}"#).await;
    check_problem(&refused, 503, "OVERLOADED");
    assert!(refused.body["queueToken"].is_null() && refused.body["retryAfterMs"].is_u64(), "{refused:?}");
}

#[tokio::test]
async fn one_user_does_not_make_the_others_wait() {
    let fixture = Fixture::start(config()).await;
    fixture.gateway(leasing("gw-1", 10)).await;
    let mut placed = 0;
    for _ in 0..200 {
        let answer = fixture.schedule(r#"{"deviceId":"d"}"#).await;
        placed += u64::from(answer.body["queueToken"].is_string());
        assert!(answer.status == 200 || answer.body["retryAfterMs"].is_u64(), "{answer:?}");
    }
    let other =
        fixture.post("/v1/schedule", &[("authorization", &bearer("bob"))], r#"{"deviceId":"d"}"#).await;
    let wait = other.body["retryAfterMs"].as_u64().unwrap_or(0);
    // Four at once, and four in each second that this took, at ten a second.
    assert!(wait <= 600 + 100 * placed && placed < 100, "{wait} ms behind {placed}");
}

#[tokio::test]
async fn beyond_the_queue_s_end_waits_are_spread() {
    let fixture = Fixture::start(config()).await;
    fixture.gateway(leasing("gw-1", 1)).await;
    let mut unplaced = Vec::new();
    for user in 0..330 {
        let bearer = bearer(&format!("u{user}"));
        let answer = fixture.post("/v1/schedule", &[("authorization", &bearer)], r#"{"deviceId":"d"}"#).await;
        if answer.status != 200 && answer.body["queueToken"].is_null() {
            unplaced.push(answer.body["retryAfterMs"].as_u64().expect("a number"));
        }
    }
    assert!(
        unplaced.len() > 5 && unplaced.iter().all(|wait| (150_000..=300_000).contains(wait)),
        "{unplaced:?}"
    );
    assert!(
        unplaced.iter().any(|wait| wait.abs_diff(unplaced[0]) > 5_000),
        "not all at one time: {unplaced:?}"
    );
}

#[tokio::test]
async fn the_spread_is_how_long_the_others_take() {
    let fixture = Fixture::start(config()).await;
    for id in ["gw-1", "gw-2"] {
        let report = GatewayReport {
            capacity: 100_000,
            connections: 9_000,
            handshakes_per_second_capacity: 1_000,
            ..report(id)
        };
        fixture.gateway(report).await;
    }
    let answer = fixture.schedule(r#"{"deviceId":"d"}"#).await;
    assert_eq!(answer.body["reconnect"]["spreadMs"], 8_000, "{answer:?}");
}

#[tokio::test]
async fn a_user_has_a_rate() {
    let fixture = Fixture::start(Config { requests_per_second_per_user: 1, ..config() }).await;
    fixture.gateway(report("gw-1")).await;
    let mut refused = None;
    // On a slow machine a second may pass between two requests; not between all of twenty.
    for _ in 0..20 {
        let answer = fixture.schedule(r#"{"deviceId":"d"}"#).await;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    check_problem(&refused.expect("one of twenty at once"), 429, "RATE_LIMITED");
    let bob = fixture.post("/v1/schedule", &[("authorization", &bearer("bob"))], r#"{"deviceId":"d"}"#).await;
    assert_eq!(bob.status, 200, "others are not touched");
}

#[tokio::test]
async fn explain_tells_all_and_counts_nothing() {
    let policy = "version = 4\n[[gray]]\nid = \"office\"\npool = \"canary\"\npercent = 100\nmatch.cidrs = [\"10.0.0.0/8\"]";
    let (fixture, _path, _directory) = Fixture::with_policy(policy).await;
    fixture.gateway(report("gw-1")).await;
    let canary = berth_proto::wire::GatewayReport { pool: "canary".to_owned(), ..report("gw-c") };
    fixture.gateway(canary).await;
    let body = r#"{"userId":"alice","clientIp":"10.1.2.3","deviceId":"d","transports":["ws"]}"#;
    let path = "/v1/schedule:explain";
    check_problem(&fixture.post(path, &[], body).await, 401, "UNAUTHENTICATED");
    let user = bearer("alice");
    check_problem(&fixture.post(path, &[("authorization", &user)], body).await, 401, "UNAUTHENTICATED");
    let admin = format!("Bearer {ADMIN_KEY}");
    let explain = async |body: &str| fixture.post(path, &[("authorization", &admin)], body).await;
    let answer = explain(body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let expected = json!({"policyVersion":"4","ruleId":"office","reason":"TARGETING_MATCH","pool":"canary"});
    assert_eq!(answer.body["decision"], expected);
    assert_eq!(answer.body["endpoints"][0]["gatewayId"], "gw-c");
    assert_eq!(answer.body["stages"]["rules"][0]["verdict"], "all");
    assert_eq!(answer.body["stages"]["gateways"][1]["dropped"], "pool");
    assert!(answer.body["ticket"].is_null(), "an operator is not given the user's way in");
    let outside = explain(r#"{"userId":"alice","clientIp":"192.0.2.1","deviceId":"d"}"#).await;
    assert_eq!(outside.body["stages"]["rules"][0]["mismatch"], "cidrs");
    assert_eq!(outside.body["decision"]["pool"], "stable");
    let failed = explain(r#"{"userId":"alice","deviceId":"d","failed":["gw-1"]}"#).await;
    assert_eq!(failed.body["decision"]["pool"], "stable", "nobody else is left");
    for bad in
        [r#"{"deviceId":"d"}"#, r#"{"userId":"alice"}"#, r#"{"userId":"a","deviceId":"d","clientIp":"x"}"#]
    {
        check_problem(&explain(bad).await, 400, "INVALID_ARGUMENT");
    }
    assert_eq!(fixture.scheduler.core.pending_len(), 0);
    assert_eq!(fixture.metric(r#"berth_scheduler_decisions_total{pool="stable",reason="DEFAULT"}"#), 0.0);
    let explained =
        |outcome: &str| fixture.metric(&format!("berth_scheduler_explains_total{{outcome=\"{outcome}\"}}"));
    assert_eq!(["ok", "unauthenticated", "invalid_argument"].map(explained), [3.0, 2.0, 3.0]);
}

#[tokio::test]
async fn explain_tells_why_there_is_no_gateway() {
    let fixture = Fixture::start(config()).await;
    let draining = berth_proto::wire::GatewayReport { draining: true, ..report("gw-1") };
    fixture.gateway(draining).await;
    let admin = format!("Bearer {ADMIN_KEY}");
    let body = r#"{"userId":"alice","deviceId":"d"}"#;
    let answer = fixture.post("/v1/schedule:explain", &[("authorization", &admin)], body).await;
    assert_eq!((answer.status, &answer.body["problem"]["reason"]), (200, &json!("NO_GATEWAY")));
    assert_eq!(answer.body["stages"]["gateways"][0]["dropped"], "draining");
}

#[tokio::test]
async fn the_client_s_address_counts_for_rules() {
    let policy = "version = 1\n[[gray]]\nid = \"here\"\npool = \"canary\"\npercent = 100\nmatch.cidrs = [\"127.0.0.0/8\"]";
    let (fixture, _path, _directory) = Fixture::with_policy(policy).await;
    fixture.gateway(berth_proto::wire::GatewayReport { pool: "canary".to_owned(), ..report("gw-c") }).await;
    let answer = fixture.schedule(r#"{"deviceId":"d"}"#).await;
    assert_eq!(answer.body["decision"]["ruleId"], "here", "{answer:?}");
    assert_eq!(
        fixture.metric(r#"berth_scheduler_decisions_total{pool="canary",reason="TARGETING_MATCH"}"#),
        1.0
    );
}

#[tokio::test]
async fn extra_routes_are_served_beside() {
    let extra = axum::Router::new().route("/v1/dev/token", axum::routing::post(async || "{\"token\":\"t\"}"));
    let fixture = Fixture::start(Config { extra_routes: Some(extra), ..config() }).await;
    let answer = fixture.post("/v1/dev/token", &[], "{}").await;
    assert_eq!((answer.status, &answer.body["token"]), (200, &json!("t")));
    check_problem(&fixture.post("/v1/other", &[], "").await, 404, "NOT_FOUND");
    let put = fixture.request("PUT", "/v1/dev/token", &[], "").await;
    check_problem(&put, 405, "INVALID_ARGUMENT");
    assert_eq!(put.header("allow"), "POST");
}
