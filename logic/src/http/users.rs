//! Users: `POST /v1/users/{userId}:disconnect`.

use berth_proto::{
    client,
    code::{CloseCode, ErrorCode},
    id,
};
use serde::Deserialize;
use serde_json::json;

use super::{
    call::{self, Call},
    table::Answer,
};
use crate::gateways::Downs;

/// Longest reason of a disconnect, in bytes: it travels in a close frame (123 bytes at most).
pub(super) const REASON: usize = 100;

#[derive(Default, Deserialize)]
struct Asked {
    #[serde(default)]
    reason: Option<String>,
}

/// Closes every connection of a user with 4503.
pub(super) async fn disconnect(call: Call) -> Answer {
    let user = call.parameters.first().cloned().unwrap_or_default();
    id::check(&user).map_err(|problem| invalid(format!("userId {problem}")))?;
    let asked: Asked = if call.bodiless() { Asked::default() } else { call.json()? };
    let reason = asked.reason.unwrap_or_default();
    if reason.len() > REASON {
        return Err(invalid(format!("reason is {} bytes; at most {REASON} are allowed", reason.len())));
    }
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

fn invalid(detail: impl Into<String>) -> client::Error {
    ErrorCode::InvalidArgument.error(detail)
}
