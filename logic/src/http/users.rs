//! Users: `POST /v1/users/{userId}:disconnect`, `:revoke` and `:restore`, `GET /v1/users/{userId}/revocations`.

use berth_proto::{
    client,
    code::{CloseCode, ErrorCode},
    id,
    schedule::int64,
};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::{
    call::{self, Call},
    table::Answer,
};
use crate::{gateways::Downs, revoke, store::Revocation};

/// Longest reason of a disconnect, in bytes: it travels in a close frame (123 bytes at most).
pub(super) const REASON: usize = 100;

#[derive(Default, Deserialize)]
struct Asked {
    #[serde(default)]
    reason: Option<String>,
}

/// Closes every connection of a user with 4503.
pub(super) async fn disconnect(call: Call) -> Answer {
    let user = user(&call)?;
    let asked: Asked = if call.bodiless() { Asked::default() } else { call.json()? };
    let reason = checked(asked.reason)?;
    let context = &call.api.context;
    let found = context.routes.lookup(&[user]).await;
    let routes = found.map_err(|error| context.routes_error(&error))?.concat();
    let reason = if reason.is_empty() { "disconnected by the service" } else { &reason };
    let mut downs = Downs::default();
    for route in &routes {
        downs.close(route, CloseCode::Kicked, reason);
    }
    // Not those whose gateway is away or takes nothing now: they are not closed, or later.
    let untold = downs.flush(&context.gateways);
    call::json(&json!({ "sessions": routes.len().saturating_sub(untold) }))
}

/// How far a revocation may lie ahead of our clock, in milliseconds: the clock of who issues tokens may. Further ahead would be a ban,
/// which this is not.
const AHEAD_MS: i64 = 60_000;

/// What is to be revoked, or restored.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Credentials {
    device_id: Option<String>,
    reason: Option<String>,
    #[serde(deserialize_with = "given_ms")]
    not_before_ms: Option<i64>,
    /// To be restored: everything, his devices' too.
    devices: bool,
}

/// An int64 in the JSON of protobuf: a string, or a number.
fn given_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    int64::deserialize(deserializer).map(Some)
}

/// Voids what was issued to a user or a device, and closes who is connected with it with 4500.
pub(super) async fn revoke(call: Call) -> Answer {
    let (user, context) = (user(&call)?, &call.api.context);
    let asked: Credentials = if call.bodiless() { Credentials::default() } else { call.json()? };
    let (device, reason) = (device(asked.device_id)?.unwrap_or_default(), checked(asked.reason)?);
    if let Some(ms) = asked.not_before_ms {
        let most = context.now().saturating_add(AHEAD_MS);
        if !(1..=most).contains(&ms) {
            return Err(invalid(format!(
                "notBeforeMs is {ms}; 1 to {most}, a minute from now, are possible"
            )));
        }
    }
    let revoked = revoke::revoke(context, (&user, &device), asked.not_before_ms, &reason).await?;
    call::json(&json!({ "notBeforeMs": revoked.not_before_ms.to_string(), "closed": revoked.closed }))
}

/// Takes revocations back.
pub(super) async fn restore(call: Call) -> Answer {
    let user = user(&call)?;
    let asked: Credentials = if call.bodiless() { Credentials::default() } else { call.json()? };
    let device = match (device(asked.device_id)?, asked.devices) {
        (Some(_), true) => return Err(invalid("devices means all of them; leave out deviceId")),
        (None, true) => None,
        (device, false) => Some(device.unwrap_or_default()),
    };
    let restored = revoke::restore(&call.api.context, &user, device.as_deref()).await?;
    call::json(&json!({ "restored": restored }))
}

/// What is revoked of a user.
pub(super) async fn revocations(call: Call) -> Answer {
    let (user, context) = (user(&call)?, &call.api.context);
    let found = context.store.revocations(&user).await.map_err(|error| context.store_error(&error))?;
    let shown = |one: Revocation| {
        json!({
            "deviceId": one.device, "notBeforeMs": one.not_before_ms.to_string(), "reason": one.reason,
            "changedMs": one.changed_ms.to_string(),
        })
    };
    call::json(&json!({ "revocations": found.into_iter().map(shown).collect::<Vec<_>>() }))
}

fn user(call: &Call) -> Result<String, client::Error> {
    let user = call.parameters.first().cloned().unwrap_or_default();
    id::check(&user).map_err(|problem| invalid(format!("userId {problem}")))?;
    Ok(user)
}

fn device(given: Option<String>) -> Result<Option<String>, client::Error> {
    if let Some(device) = &given {
        id::check(device).map_err(|problem| invalid(format!("deviceId {problem}")))?;
    }
    Ok(given)
}

fn checked(reason: Option<String>) -> Result<String, client::Error> {
    let reason = reason.unwrap_or_default();
    if reason.len() > REASON {
        return Err(invalid(format!("reason is {} bytes; at most {REASON} are allowed", reason.len())));
    }
    Ok(reason)
}

fn invalid(detail: impl Into<String>) -> client::Error {
    ErrorCode::InvalidArgument.error(detail)
}
