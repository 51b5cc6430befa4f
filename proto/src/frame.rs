//! Client and server frames in both encodings: protobuf, and its JSON mapping.

use std::io::Write;

use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::client::{ClientFrame, Notify, ServerFrame, client_frame, server_frame};

/// How the frames of one connection are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// proto3 JSON in WebSocket text messages.
    Json,
    /// Protobuf in WebSocket binary messages, and on TCP.
    Proto,
}

impl Encoding {
    /// The WebSocket subprotocol that asks for it.
    #[must_use]
    pub fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "berth.v1.json",
            Self::Proto => "berth.v1.proto",
        }
    }

    /// The encoding a subprotocol asks for.
    #[must_use]
    pub fn from_subprotocol(name: &str) -> Option<Self> {
        [Self::Json, Self::Proto].into_iter().find(|encoding| encoding.subprotocol() == name)
    }
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Not JSON, not protobuf, or not of the frame's shape.
    #[error("{0}")]
    Undecodable(String),
    /// A frame without any known kind.
    #[error("the frame has no known kind")]
    NoKind,
    /// A frame with several kinds.
    #[error("the frame has several kinds")]
    SeveralKinds,
    /// The frame is a request, but a field inside it is not of its type. The request can be answered.
    #[error("{message}")]
    BadRequest {
        /// The request's id; 0 where it has none that can be read.
        id: u32,
        /// Names the field and what is wrong.
        message: String,
    },
}

/// Reads a client's frame.
///
/// # Errors
/// See [`FrameError`]; only [`FrameError::BadRequest`] leaves the connection usable.
pub fn decode_client(encoding: Encoding, bytes: &[u8]) -> Result<client_frame::Frame, FrameError> {
    let frame = match encoding {
        Encoding::Proto => {
            one_kind(bytes, 1..=3)?;
            ClientFrame::decode(bytes).map_err(undecodable)?
        }
        Encoding::Json => serde_json::from_slice::<ClientFrame>(bytes).or_else(|_| second_look(bytes))?,
    };
    frame.frame.ok_or(FrameError::NoKind)
}

/// Reads a server's frame. A kind that a newer server may send reads as [`FrameError::NoKind`]; clients ignore it.
///
/// # Errors
/// See [`FrameError`].
pub fn decode_server(encoding: Encoding, bytes: &[u8]) -> Result<server_frame::Frame, FrameError> {
    let frame = match encoding {
        Encoding::Proto => ServerFrame::decode(bytes).map_err(undecodable)?,
        Encoding::Json => from_json::<ServerFrame>(bytes).map_err(undecodable)?,
    };
    frame.frame.ok_or(FrameError::NoKind)
}

/// Appends a client's frame to `out`.
pub fn encode_client(encoding: Encoding, frame: client_frame::Frame, out: &mut Vec<u8>) {
    encode(encoding, &ClientFrame { frame: Some(frame) }, out);
}

/// Appends a server's frame to `out`.
pub fn encode_server(encoding: Encoding, frame: server_frame::Frame, out: &mut Vec<u8>) {
    encode(encoding, &ServerFrame { frame: Some(frame) }, out);
}

/// Appends the payload of a notify that says where an inbox is and nothing else: the same as [`encode_server`], without an
/// allocation, since this is what a gateway writes most.
pub fn encode_inbox_notify(encoding: Encoding, inbox_seq: u64, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Json if inbox_seq > 0 => {
            write!(out, r#"{{"notify":{{"inboxSeq":"{inbox_seq}"}}}}"#).expect("a Vec grows");
        }
        _ => encode_server(
            encoding,
            server_frame::Frame::Notify(Notify { inbox_seq, ..Notify::default() }),
            out,
        ),
    }
}

fn encode<M: Message + Serialize>(encoding: Encoding, message: &M, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Proto => message.encode(out).expect("a Vec grows"),
        Encoding::Json => {
            serde_json::to_writer(out, message).expect("a Vec grows and every field has a JSON form")
        }
    }
}

fn undecodable(error: impl ToString) -> FrameError {
    FrameError::Undecodable(error.to_string())
}

/// Deserializes with the path of the offending field in the error.
fn from_json<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, String> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let message = serde_path_to_error::deserialize(&mut json).map_err(|e| e.to_string())?;
    json.end().map_err(|e| e.to_string())?;
    Ok(message)
}

/// Reads JSON again that was no client frame at first sight: failing is rare, so only here is `null` taken out (in proto3
/// JSON it stands for a field's default, and pbjson's 64-bit integers do not know it) and the fault explained in detail.
fn second_look(bytes: &[u8]) -> Result<ClientFrame, FrameError> {
    let mut value: serde_json::Value = serde_json::from_slice(bytes).map_err(undecodable)?;
    let nulls = remove_nulls(&mut value);
    if several_kinds(&value) {
        return Err(FrameError::SeveralKinds);
    }
    if nulls && let Ok(frame) = serde_json::from_value(value.clone()) {
        return Ok(frame);
    }
    let message = from_json::<ClientFrame>(bytes).err().unwrap_or_else(|| "not a frame".to_owned());
    match value.get("request") {
        Some(request) if request.is_object() => {
            Err(FrameError::BadRequest { id: request_id(request), message })
        }
        _ => Err(FrameError::Undecodable(message)),
    }
}

fn several_kinds(value: &serde_json::Value) -> bool {
    let known = |kind: &&String| matches!(kind.as_str(), "hello" | "heartbeat" | "request");
    value.as_object().is_some_and(|kinds| kinds.keys().filter(known).count() > 1)
}

/// The id of a request that is otherwise bad, to answer it by; 0 where that is what is bad.
fn request_id(request: &serde_json::Value) -> u32 {
    let id = match request.get("id") {
        Some(serde_json::Value::Number(number)) => number.as_u64().and_then(|id| u32::try_from(id).ok()),
        Some(serde_json::Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    id.unwrap_or(0)
}

/// Removes every member that is null; says whether there was any. serde_json has bounded the depth at 128.
fn remove_nulls(value: &mut serde_json::Value) -> bool {
    match value {
        serde_json::Value::Object(members) => {
            let before = members.len();
            members.retain(|_, member| !member.is_null());
            let removed = members.len() < before;
            members.values_mut().fold(removed, |removed, member| remove_nulls(member) | removed)
        }
        serde_json::Value::Array(items) => {
            items.iter_mut().fold(false, |removed, item| remove_nulls(item) | removed)
        }
        _ => false,
    }
}

/// Protobuf decoders keep the last of several kinds; this finds them. Unknown fields are passed over.
fn one_kind(mut bytes: &[u8], kinds: std::ops::RangeInclusive<u32>) -> Result<(), FrameError> {
    use prost::encoding::{DecodeContext, decode_key, skip_field};
    let mut seen = 0;
    while !bytes.is_empty() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(undecodable)?;
        if kinds.contains(&tag) {
            seen += 1;
        }
        skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).map_err(undecodable)?;
    }
    match seen {
        0 => Err(FrameError::NoKind),
        1 => Ok(()),
        _ => Err(FrameError::SeveralKinds),
    }
}

#[cfg(test)]
mod tests;
