//! Messages of the back end: `POST /v1/messages`.

use berth_proto::{
    client,
    code::ErrorCode,
    id::{self, SYSTEM_USER},
};
use serde_json::Value;

use super::{
    call::{self, Call},
    table::Answer,
};
use crate::ingest;

/// As a client's `send`, from any user.
pub(super) async fn send(call: Call) -> Answer {
    let mut body: Value = call.json()?;
    let from = match body.get("from") {
        None | Some(Value::Null) => SYSTEM_USER.to_owned(),
        // The default is the same as absent.
        Some(Value::String(from)) if from.is_empty() => SYSTEM_USER.to_owned(),
        Some(Value::String(from)) => from.clone(),
        Some(_) => return Err(invalid("from is not a string")),
    };
    id::check(&from).map_err(|problem| invalid(format!("from {problem}")))?;
    drop_nulls(&mut body);
    if let Some(fields) = body.as_object_mut() {
        fields.remove("from");
        // In this form too.
        let absent = match fields.get("clientMsgId") {
            None | Some(Value::Null) => true,
            Some(given) => given == "",
        };
        if let (true, Some(key)) = (absent, call.headers.get("idempotency-key")) {
            let key = key.to_str().map_err(|_| invalid("Idempotency-Key is not visible ASCII"))?;
            fields.insert("clientMsgId".to_owned(), key.into());
        }
    }
    let request: client::SendRequest =
        serde_path_to_error::deserialize(body).map_err(|error| invalid(error.to_string()))?;
    let context = &call.api.context;
    let pending = ingest::enter(context, &from, request).await?;
    call::json(&ingest::accepted(context, pending).await?)
}

/// JSON null is a field's default, which is the same as absent. Bounded by the parser's own depth.
fn drop_nulls(value: &mut Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(drop_nulls);
    }
}

fn invalid(detail: impl Into<String>) -> client::Error {
    ErrorCode::InvalidArgument.error(detail)
}
