//! What stands for scheduler and logic: tokens, schedules and groups over HTTP. Pure.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use berth_proto::{
    schedule::{Decision, ScheduleAnswer, ScheduleEndpoint, ScheduleRequest},
    ticket::TicketSigner,
    wire::Ticket,
};
use serde_json::{Value, json};

use crate::city::City;

/// How long a ticket is good for, in milliseconds: longer than any run.
const TICKET_MS: i64 = 24 * 3_600 * 1_000;

/// The only gateway.
const GATEWAY: &str = "limit";

/// A request, whole.
pub struct Request<'a> {
    /// POST, PUT.
    pub method: &'a str,
    /// Without a host.
    pub path: &'a str,
    /// Whose token it carries.
    pub bearer: Option<&'a str>,
    /// JSON.
    pub body: &'a [u8],
}

/// The answer's whole text.
pub fn answer(
    request: &Request<'_>,
    city: &mut City,
    signer: &TicketSigner,
    authority: &str,
    now_ms: i64,
) -> Vec<u8> {
    let body: Value = serde_json::from_slice(request.body).unwrap_or_default();
    let (status, answer) = match (request.method, request.path) {
        ("POST", "/v1/dev/token") => (200, json!({ "token": token(body["userId"].as_str().unwrap_or("")) })),
        ("POST", "/v1/schedule") => match request.bearer.and_then(subject) {
            Some(user) => (200, schedule(&user, request.body, signer, authority, now_ms)),
            None => (401, json!({ "reason": "UNAUTHENTICATED" })),
        },
        ("POST", "/live") => (200, json!({ "connected": city.connected(), "heartbeats": city.heartbeats })),
        ("PUT", path) if path.starts_with("/v1/groups/") => {
            let members: Vec<String> = serde_json::from_value(body["members"].clone()).unwrap_or_default();
            let id = path.trim_start_matches("/v1/groups/");
            city.put_group(id, &members);
            (200, json!({ "groupId": id, "conversationId": "1", "memberCount": members.len() }))
        }
        _ => (404, json!({ "reason": "NOT_FOUND" })),
    };
    let text = answer.to_string();
    let reason = if status == 200 { "OK" } else { "Refused" };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    )
    .into_bytes()
}

/// Of the form of a JWT, signed by nobody: nothing here checks one.
fn token(user: &str) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.", part(json!({ "alg": "none" })), part(json!({ "sub": user })))
}

/// Whom a JWT names; its signature is not looked at.
fn subject(token: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    Some(claims["sub"].as_str()?.to_owned())
}

fn schedule(user: &str, body: &[u8], signer: &TicketSigner, authority: &str, now_ms: i64) -> Value {
    let asked: ScheduleRequest = serde_json::from_slice(body).unwrap_or_default();
    let expires_at_ms = now_ms + TICKET_MS;
    let ticket = Ticket {
        user_id: user.to_owned(),
        device_id: asked.device_id,
        gateway_ids: vec![GATEWAY.to_owned()],
        pool: "stable".to_owned(),
        expires_at_ms,
        auth_expires_at_ms: expires_at_ms,
        issued_at_ms: now_ms,
        auth_issued_at_ms: now_ms,
        ..Ticket::default()
    };
    let endpoint = |transport: &str, url: String| ScheduleEndpoint {
        gateway_id: GATEWAY.to_owned(),
        transport: transport.to_owned(),
        url,
        ..ScheduleEndpoint::default()
    };
    let answer = ScheduleAnswer {
        server_time_ms: now_ms,
        ttl_seconds: 86_400,
        endpoints: vec![
            endpoint("ws", format!("ws://{authority}/v1/ws")),
            endpoint("tcp", format!("tcp://{authority}")),
        ],
        ticket: signer.sign(&ticket),
        ticket_expires_at_ms: expires_at_ms,
        decision: Decision { pool: "stable".to_owned(), ..Decision::default() },
        ..ScheduleAnswer::default()
    };
    serde_json::to_value(answer).expect("has a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::ticket::TicketVerifier;

    #[test]
    fn a_token_leads_to_a_genuine_ticket() {
        let (signer, mut city) =
            (TicketSigner::from_secret(b"the limit's secret, 32 bytes at least"), City::new(false));
        let mut ask = |path, bearer, body: &str| {
            let request = Request { method: "POST", path, bearer, body: body.as_bytes() };
            let text = String::from_utf8(answer(&request, &mut city, &signer, "h:1", 5)).expect("UTF-8");
            let (head, body) = text.split_once("\r\n\r\n").expect("a head").to_owned();
            (head.to_owned(), serde_json::from_str::<Value>(body).expect("JSON"))
        };
        let (_, given) = ask("/v1/dev/token", None, r#"{"userId":"alice"}"#);
        let (head, scheduled) = ask("/v1/schedule", given["token"].as_str(), r#"{"deviceId":"d"}"#);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(scheduled["endpoints"][0]["url"], "ws://h:1/v1/ws");
        let verifier = TicketVerifier::new(&[signer.public_key()]);
        let ticket = verifier.genuine(scheduled["ticket"].as_str().expect("a text")).expect("genuine");
        assert_eq!((ticket.user_id.as_str(), ticket.device_id.as_str()), ("alice", "d"));
        assert!(ask("/v1/schedule", None, "{}").0.starts_with("HTTP/1.1 401"));
        assert!(ask("/v1/nothing", None, "{}").0.starts_with("HTTP/1.1 404"));
    }
}
