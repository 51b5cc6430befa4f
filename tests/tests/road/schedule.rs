//! `POST /v1/schedule`: what it answers, whom it refuses and how, and what `:explain` tells an operator.

use anyhow::{Context, ensure};
use berth_proto::schedule::{Problem, ScheduleAnswer, ScheduleRequest};
use berth_tests::{
    TestResult,
    device::schedule,
    fresh,
    http::{self, Answer},
    server::{Options, Server},
    tokens::{self, JWT_SECRET, jwt, now_ms},
};
use serde_json::{Value, json};

async fn post(server: &Server, token: Option<&str>, body: &str) -> anyhow::Result<Answer> {
    http::send("POST", &format!("{}/v1/schedule", server.at.scheduler), token, Some(body.to_owned())).await
}

fn check_problem(what: &str, answer: &Answer, status: u16, reason: &str) -> TestResult {
    let shown = format!("{what}: {} {}", answer.status, answer.body);
    ensure!(answer.status == status, "not {status}: {shown}");
    let content = answer.header("content-type").unwrap_or_default();
    ensure!(content.starts_with("application/problem+json"), "{content}: {shown}");
    let problem: Problem = answer.json()?;
    ensure!(problem.status == status && problem.reason == reason, "not {reason}: {shown}");
    let filled = [&problem.r#type, &problem.title, &problem.detail, &problem.request_id];
    ensure!(filled.iter().all(|text| !text.is_empty()), "an empty field: {shown}");
    Ok(())
}

#[tokio::test]
async fn the_answer_keeps_its_contract() -> TestResult {
    let server = Server::shared().await?;
    let body = json!({"deviceId":"d1","platform":"ios","appVersion":"7.3.1","sdk":"x/1","transports":["ws","tcp"],
        "region":"eu","attempt":0,"failed":["gw-3"],"rttMs":{"gw-1":23},"later":{"unknown":true}});
    let answer = post(&server, Some(&tokens::user(&fresh("alice"))), &body.to_string()).await?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(answer.header("cache-control") == Some("no-store"), "{answer:?}");
    let raw = answer.value();
    for text in ["serverTimeMs", "ticketExpiresAtMs"] {
        ensure!(raw[text].is_string(), "{text} is a string: {raw}");
    }
    let answer: ScheduleAnswer = answer.json()?;
    ensure!(
        answer.schedule_id.len() == 16 && answer.schedule_id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{raw}"
    );
    ensure!((answer.server_time_ms - now_ms()).abs() < 60_000, "{raw}");
    ensure!(answer.ttl_seconds == 300, "{raw}");
    ensure!(answer.ticket_expires_at_ms <= answer.server_time_ms + 300_000, "{raw}");
    let ways: Vec<_> = answer.endpoints.iter().map(|e| (e.transport.as_str(), e.url.clone())).collect();
    let gateway = &server.at.gateway;
    ensure!(ways.contains(&("ws", format!("ws://{gateway}/v1/ws"))), "{raw}");
    let all = 2 * server.at.gateways.len();
    ensure!(ways.contains(&("tcp", format!("tcp://{gateway}"))) && ways.len() == all, "{raw}");
    ensure!((answer.heartbeat.interval_ms, answer.heartbeat.timeout_ms) == (25_000, 37_500), "{raw}");
    let reconnect = answer.reconnect;
    ensure!(reconnect.base_ms > 0 && reconnect.max_ms > reconnect.base_ms, "{raw}");
    ensure!(reconnect.reschedule_after_failures > 0, "{raw}");
    ensure!(answer.decision.pool == "stable" && raw["decision"]["reason"] == "DEFAULT", "{raw}");
    Ok(())
}

#[tokio::test]
async fn only_the_transports_asked_for_are_given() -> TestResult {
    let server = Server::shared().await?;
    let user = fresh("alice");
    for (transports, expected) in [(vec!["ws"], 1), (vec!["tcp"], 1), (vec![], 2)] {
        let wanted: Vec<String> = transports.iter().map(|t| (*t).to_owned()).collect();
        let request =
            ScheduleRequest { device_id: "d".into(), transports: wanted.clone(), ..Default::default() };
        let endpoints = schedule(&server.at, &user, &request).await?.endpoints;
        ensure!(endpoints.len() == expected * server.at.gateways.len(), "{wanted:?}: {endpoints:?}");
        let asked = |t: &String| wanted.is_empty() || wanted.contains(t);
        ensure!(endpoints.iter().all(|e| asked(&e.transport)), "{wanted:?}: {endpoints:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_ticket_never_outlives_the_users_token() -> TestResult {
    let server = Server::shared().await?;
    let expires = now_ms() / 1000 + 30;
    let claims = json!({"sub": fresh("alice"), "exp": expires});
    let token = jwt(&json!({"alg":"HS256"}), &claims, JWT_SECRET);
    let answer: ScheduleAnswer = post(&server, Some(&token), r#"{"deviceId":"d"}"#).await?.json()?;
    ensure!(answer.ticket_expires_at_ms <= expires * 1000, "{answer:?}");
    ensure!(answer.ttl_seconds <= 30, "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn whose_token_is_not_good_is_unauthenticated() -> TestResult {
    let server = Server::shared().await?;
    let hs256 = json!({"alg":"HS256","typ":"JWT"});
    let later = now_ms() / 1000 + 3600;
    let good = tokens::user("alice");
    let mut changed = good.clone();
    changed.truncate(good.len() - 2);
    let cases = [
        ("none", None),
        ("empty", Some(String::new())),
        ("garbage", Some("not.a.token".to_owned())),
        ("cut off", Some(changed)),
        ("expired", Some(tokens::user_for("alice", -3_600))),
        ("no expiry", Some(jwt(&hs256, &json!({"sub":"alice"}), JWT_SECRET))),
        ("expiry no number", Some(jwt(&hs256, &json!({"sub":"alice","exp":"soon"}), JWT_SECRET))),
        (
            "another secret",
            Some(jwt(&hs256, &json!({"sub":"alice","exp":later}), "another secret of many bytes...")),
        ),
        ("alg none", Some(jwt(&json!({"alg":"none"}), &json!({"sub":"alice","exp":later}), ""))),
        ("another alg", Some(jwt(&json!({"alg":"HS512"}), &json!({"sub":"alice","exp":later}), JWT_SECRET))),
        ("no alg", Some(jwt(&json!({"typ":"JWT"}), &json!({"sub":"alice","exp":later}), JWT_SECRET))),
        ("no subject", Some(jwt(&hs256, &json!({"exp":later}), JWT_SECRET))),
        ("not yet", Some(jwt(&hs256, &json!({"sub":"alice","exp":later,"nbf":later - 60}), JWT_SECRET))),
        ("the admin key", Some(tokens::ADMIN_KEY.to_owned())),
    ];
    for (what, token) in cases {
        let answer = post(&server, token.as_deref(), r#"{"deviceId":"d"}"#).await?;
        check_problem(what, &answer, 401, "UNAUTHENTICATED")?;
    }
    let url = format!("{}/v1/schedule", server.at.scheduler);
    let missing = http::post(&url, None, &json!({"deviceId":"d"})).await?;
    check_problem("no header", &missing, 401, "UNAUTHENTICATED")
}

#[tokio::test]
async fn the_servers_own_user_is_forbidden() -> TestResult {
    let server = Server::shared().await?;
    let answer = post(&server, Some(&tokens::user("system")), r#"{"deviceId":"d"}"#).await?;
    check_problem("system", &answer, 403, "FORBIDDEN")
}

#[tokio::test]
async fn a_bad_body_is_invalid_and_named() -> TestResult {
    let server = Server::shared().await?;
    let token = tokens::user("alice");
    let large = format!(r#"{{"deviceId":"d","sdk":"{}"}}"#, "x".repeat(1 << 20));
    let cases = [
        ("no JSON", "hello".to_owned(), ""),
        ("an array", "[]".to_owned(), ""),
        ("no device", "{}".to_owned(), "deviceId"),
        ("an empty device", r#"{"deviceId":""}"#.to_owned(), "deviceId"),
        ("no id", r#"{"deviceId":"a b"}"#.to_owned(), "deviceId"),
        ("too long", format!(r#"{{"deviceId":"{}"}}"#, "x".repeat(65)), "deviceId"),
        ("another type", r#"{"deviceId":7}"#.to_owned(), "deviceId"),
        ("no number", r#"{"deviceId":"d","attempt":"many"}"#.to_owned(), "attempt"),
        ("a megabyte", large, ""),
    ];
    for (what, body, field) in cases {
        let answer = post(&server, Some(&token), &body).await?;
        check_problem(what, &answer, 400, "INVALID_ARGUMENT")?;
        let detail = answer.json::<Problem>()?.detail;
        ensure!(detail.contains(field), "{what}: {detail}");
    }
    Ok(())
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_too() -> TestResult {
    let server = Server::shared().await?;
    for (method, path, status) in
        [("GET", "/v1/schedule", 405), ("POST", "/v1/nothing", 404), ("GET", "/", 404)]
    {
        let answer = http::send(method, &format!("{}{path}", server.at.scheduler), None, None).await?;
        let content = answer.header("content-type").unwrap_or_default();
        ensure!(answer.status == status, "{method} {path}: {answer:?}");
        ensure!(content.starts_with("application/problem+json"), "{method} {path}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn too_many_requests_are_told_when_to_come_back() -> TestResult {
    let options = Options::default().env("BERTH_SCHEDULER__REQUESTS_PER_SECOND_PER_USER", 5);
    let server = Server::start(options).await?;
    let token = tokens::user("alice");
    let mut limited = None;
    for _ in 0..60 {
        let answer = post(&server, Some(&token), r#"{"deviceId":"d"}"#).await?;
        if answer.status != 200 {
            limited = Some(answer);
            break;
        }
    }
    let answer = limited.context("60 requests at 5 a second all passed")?;
    check_problem("too many", &answer, 429, "RATE_LIMITED")?;
    let seconds: u64 = answer.header("retry-after").context("Retry-After")?.parse()?;
    let wait = answer.json::<Problem>()?.retry_after_ms.context("retryAfterMs")?;
    ensure!(seconds >= 1 && wait > 0, "{answer:?}");
    let other = post(&server, Some(&tokens::user("bob")), r#"{"deviceId":"d"}"#).await?;
    ensure!(other.status == 200, "the limit is per user: {other:?}");
    Ok(())
}

#[tokio::test]
async fn explain_is_the_operators_and_tells_every_stage() -> TestResult {
    let server = Server::shared().await?;
    let url = format!("{}/v1/schedule:explain", server.at.scheduler);
    let ask = json!({"deviceId":"d","userId":fresh("alice"),"clientIp":"10.1.2.3","transports":["ws"]});
    for token in [None, Some("wrong"), Some(tokens::SERVICE_KEY)] {
        check_problem("not the admin key", &http::post(&url, token, &ask).await?, 401, "UNAUTHENTICATED")?;
    }
    let user = tokens::user("alice");
    check_problem("a user's token", &http::post(&url, Some(&user), &ask).await?, 401, "UNAUTHENTICATED")?;

    let answer = http::post(&url, Some(tokens::ADMIN_KEY), &ask).await?;
    ensure!(answer.status == 200, "{answer:?}");
    let told = answer.value();
    ensure!(told["decision"]["pool"] == "stable" && told["decision"]["reason"] == "DEFAULT", "{told}");
    let first = told["endpoints"][0]["gatewayId"].as_str().unwrap_or_default();
    ensure!(first == "gw-1" || (first == "gw-2" && server.at.gateways.len() == 2), "{told}");
    ensure!(told["stages"].is_object(), "{told}");
    ensure!(
        holds(&told["stages"], "gatewayId") && holds(&told["stages"], "score"),
        "each candidate's score: {told}"
    );
    ensure!(told.get("ticket").is_none(), "an operator gets no ticket: {told}");

    let bad = http::post(&url, Some(tokens::ADMIN_KEY), &json!({"deviceId":"d","userId":"a b"})).await?;
    check_problem("no user", &bad, 400, "INVALID_ARGUMENT")
}

/// Whether there is a key of that name anywhere.
fn holds(value: &Value, key: &str) -> bool {
    match value {
        Value::Object(map) => map.contains_key(key) || map.values().any(|inner| holds(inner, key)),
        Value::Array(list) => list.iter().any(|inner| holds(inner, key)),
        _ => false,
    }
}

#[tokio::test]
async fn the_dev_endpoint_gives_tokens_that_work() -> TestResult {
    let server = Server::start(Options::default().one()).await?;
    let url = format!("{}/v1/dev/token", server.at.scheduler);
    let answer = http::post(&url, None, &json!({"userId":"alice"})).await?;
    ensure!(answer.status == 200, "{answer:?}");
    let token = answer.value()["token"].as_str().context("a token")?.to_owned();
    ensure!(post(&server, Some(&token), r#"{"deviceId":"d"}"#).await?.status == 200);
    ensure!(
        post(&server, server.at.tokens.get("bob").map(String::as_str), r#"{"deviceId":"d"}"#).await?.status
            == 200
    );
    for bad in [json!({}), json!({"userId":"a b"})] {
        let answer = http::post(&url, None, &bad).await?;
        ensure!((400..500).contains(&answer.status), "{bad}: {answer:?}");
    }
    Ok(())
}
