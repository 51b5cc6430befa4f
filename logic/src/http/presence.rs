//! Presence: `POST /v1/presence:batchGet`.

use berth_proto::{client, code::ErrorCode, validate};
use serde::Deserialize;

use super::{
    call::{self, Call},
    table::Answer,
};
use crate::request;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    #[serde(default)]
    user_ids: Option<Vec<String>>,
}

/// Who of these users is connected, and with what.
pub(super) async fn batch_get(call: Call) -> Answer {
    let asked: Asked = call.json()?;
    let wanted = client::PresenceRequest { user_ids: asked.user_ids.unwrap_or_default() };
    validate::method(&client::request::Method::Presence(wanted.clone()))
        .map_err(|problem| ErrorCode::InvalidArgument.error(problem.to_string()))?;
    call::json(&request::presence(&call.api.context, wanted.user_ids).await?)
}
