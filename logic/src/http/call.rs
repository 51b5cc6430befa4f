//! A request as its handler gets it: parameters decoded, body read within its bound.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, StatusCode, header},
};
use berth_proto::{client, code::ErrorCode};
use futures_util::StreamExt;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Api,
    problem::Problem,
    table::{Answer, decode},
};

/// Of a body that is too long so much is read and thrown away, in bytes: whoever is cut off while he writes reads a reset
/// instead of the answer.
const THROWN_AWAY: usize = 8 * 1024 * 1024;

/// A request that may be handled.
pub(super) struct Call {
    pub(super) api: Arc<Api>,
    /// What stands in the path where the operation's template has names, in that order.
    pub(super) parameters: Vec<String>,
    pub(super) headers: HeaderMap,
    query: String,
    body: Bytes,
}

impl Call {
    /// Reads the body, if the operation takes one: `most` bytes at most, 0: none.
    pub(super) async fn read(
        api: Arc<Api>,
        parameters: Vec<String>,
        most: usize,
        request: Request,
    ) -> Result<Self, Problem> {
        let (head, body) = request.into_parts();
        let bytes = if most == 0 {
            Bytes::new()
        } else {
            check_kind(&head.headers)?;
            read(body, most).await?
        };
        let query = head.uri.query().unwrap_or_default().to_owned();
        Ok(Self { api, parameters, headers: head.headers, query, body: bytes })
    }

    /// The body. A fault in it is told with the field.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, client::Error> {
        if self.body.trim_ascii_start().first() != Some(&b'{') {
            return Err(ErrorCode::InvalidArgument.error("the body: is no JSON object"));
        }
        let parsed = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&self.body));
        parsed.map_err(|error| ErrorCode::InvalidArgument.error(format!("the body: {error}")))
    }

    /// Whether the request has no body at all.
    pub(super) fn bodiless(&self) -> bool {
        self.body.is_empty()
    }

    /// The query parameter of that name.
    pub(super) fn query(&self, name: &str) -> Result<Option<String>, client::Error> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        let given = pairs.find(|(key, _)| *key == name);
        let decoded = given.map(|(_, value)| {
            let unreadable = || {
                ErrorCode::InvalidArgument
                    .error(format!("{name} is {value:.40}, which is not percent-encoded UTF-8"))
            };
            decode(value).ok_or_else(unreadable)
        });
        decoded.transpose()
    }
}

/// A handler's answer.
pub(super) fn json(body: &impl Serialize) -> Answer {
    serde_json::to_vec(body).map_err(|error| ErrorCode::Internal.error(error.to_string()))
}

/// JSON under its own name, or under what tools say who were not told (curl, browsers, Python): the body decides then. What
/// calls itself something else is not guessed at.
const KINDS: [&str; 3] = ["application/json", "text/plain", "application/x-www-form-urlencoded"];

fn check_kind(headers: &HeaderMap) -> Result<(), Problem> {
    let text =
        |name| headers.get(name).map(|value: &header::HeaderValue| value.to_str().unwrap_or("?").trim());
    let unsupported = |detail: String| Problem::with(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail);
    if let Some(kind) = text(header::CONTENT_TYPE) {
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if !KINDS.contains(&essence.as_str()) && !essence.ends_with("+json") {
            return Err(unsupported(format!("Content-Type is {kind:?}; send application/json")));
        }
    }
    match text(header::CONTENT_ENCODING) {
        None | Some("identity") => Ok(()),
        Some(coding) => Err(unsupported(format!("Content-Encoding is {coding:?}; send the body as it is"))),
    }
}

async fn read(body: Body, most: usize) -> Result<Bytes, Problem> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut length: usize = 0;
    while let Some(chunk) = chunks.next().await {
        let cut = |error| ErrorCode::InvalidArgument.error(format!("the body was cut short: {error}"));
        let chunk = chunk.map_err(cut)?;
        length += chunk.len();
        if length > most + THROWN_AWAY {
            break;
        }
        if length <= most {
            bytes.extend_from_slice(&chunk);
        }
    }
    if length > most {
        let detail = format!("the body is longer than {most} bytes");
        return Err(Problem::with(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    Ok(bytes.into())
}
