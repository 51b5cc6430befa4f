//! User tokens (JWT) and tickets signed by the tests themselves: good ones, and every kind of bad one.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use berth_proto::{ticket::TicketSigner, wire::Ticket};
use ring::hmac;
use serde_json::{Value, json};

/// The user tokens' secret that the harness gives every server.
pub const JWT_SECRET: &str = "tests-jwt-secret-0123456789abcdefghij";
/// The tickets' secret that the harness gives every server.
pub const TICKET_KEY: &str = "tests-ticket-key-0123456789abcdefghij";
/// What the harness' roles show each other.
pub const CLUSTER_KEY: &str = "tests-cluster-key-0123456789abcdefgh";
/// The back-end API's key that the harness gives every server.
pub const SERVICE_KEY: &str = "tests-service-key-0123456789abcdefgh";
/// The operators' key that the harness gives every server.
pub const ADMIN_KEY: &str = "tests-admin-key-0123456789abcdefghijk";

/// The clock, in milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(since.as_millis()).expect("the clock is before the year 292 million")
}

/// A good token for an hour.
#[must_use]
pub fn user(user: &str) -> String {
    user_for(user, 3600)
}

/// A token that expires in `seconds` (negative: expired already).
#[must_use]
pub fn user_for(user: &str, seconds: i64) -> String {
    jwt(&json!({"alg":"HS256","typ":"JWT"}), &json!({"sub":user,"exp":now_ms() / 1000 + seconds}), JWT_SECRET)
}

/// A token for an hour that says when it was issued, in whole seconds of the clock's milliseconds.
#[must_use]
pub fn user_issued(user: &str, issued_at_ms: i64) -> String {
    user_signed(user, issued_at_ms, JWT_SECRET)
}

/// The same, signed with another secret.
#[must_use]
pub fn user_signed(user: &str, issued_at_ms: i64, secret: &str) -> String {
    let iat = issued_at_ms / 1000;
    jwt(
        &json!({"alg":"HS256","typ":"JWT"}),
        &json!({"sub":user,"iat":iat,"exp":now_ms() / 1000 + 3600}),
        secret,
    )
}

/// Any header and claims, signed as the header's `alg` says: HS256, HS512, or with no signature for `none`.
#[must_use]
pub fn jwt(header: &Value, claims: &Value, secret: &str) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let algorithm = match header["alg"].as_str() {
        Some("none") => return format!("{signed}."),
        Some("HS512") => hmac::HMAC_SHA512,
        _ => hmac::HMAC_SHA256,
    };
    let signature = hmac::sign(&hmac::Key::new(algorithm, secret.as_bytes()), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A genuine ticket's content, good for a minute at `gateway_id`.
#[must_use]
pub fn ticket(user: &str, device: &str, gateway_id: &str) -> Ticket {
    Ticket {
        user_id: user.to_owned(),
        device_id: device.to_owned(),
        gateway_ids: vec![gateway_id.to_owned()],
        pool: "stable".to_owned(),
        expires_at_ms: now_ms() + 60_000,
        auth_expires_at_ms: now_ms() + 3_600_000,
        schedule_id: rand::random(),
        issued_at_ms: now_ms(),
        auth_issued_at_ms: now_ms(),
        ..Default::default()
    }
}

/// The ticket's text as the scheduler would sign it.
#[must_use]
pub fn sign(ticket: &Ticket) -> String {
    sign_with(TICKET_KEY, ticket)
}

/// The ticket's text signed with another secret.
#[must_use]
pub fn sign_with(secret: &str, ticket: &Ticket) -> String {
    TicketSigner::from_secret(secret.as_bytes()).sign(ticket)
}
