//! How one connection's frames travel: which protocol its first bytes speak, and each frame's envelope.

use std::borrow::Cow;

use berth_proto::{
    client::server_frame,
    frame::{Encoding, encode_server},
    tcp,
};
use thiserror::Error;

use super::Cx;
use crate::{
    metrics::{Handshake, Limited},
    upgrade::{self, Upgrade},
    ws::{self, Event, WsError},
};

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// Its first bytes have not come.
    Unknown,
    /// WebSocket messages, in the encoding of the subprotocol.
    WebSocket(Encoding),
    /// Length-prefixed protobuf.
    Tcp,
}

/// Why the bytes of a connection cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum WireError {
    #[error("{0}")]
    WebSocket(#[from] WsError),
    #[error("{0}")]
    Tcp(#[from] tcp::TooLarge),
}

/// What became of the first bytes.
pub(super) enum Negotiated {
    Incomplete,
    /// The protocol, and how many bytes were spent on agreeing.
    Agreed(Wire, usize),
    /// The answer is written: close.
    Refused,
}

/// Tells the protocols apart by the first four bytes. A TCP length that reads like the head of an HTTP method would announce
/// more than 1 GB, so there is no doubt; TLS (0x16) and PROXY v2 ("\r\n\r\n") begin with lengths above the limit as well and
/// find their place here.
pub(super) fn negotiate(cx: &mut Cx<'_>, input: &[u8], surplus: bool) -> Negotiated {
    let Some(head) = input.first_chunk::<4>() else { return Negotiated::Incomplete };
    if !is_method(head) {
        return Negotiated::Agreed(Wire::Tcp, 0);
    }
    let refusal = match upgrade::read(input, &cx.env.guard.origins) {
        Upgrade::Incomplete => return Negotiated::Incomplete,
        Upgrade::Accepted { .. } if surplus => upgrade::OVERLOADED,
        Upgrade::Accepted { encoding, consumed, response } => {
            cx.out.extend_from_slice(response.as_bytes());
            cx.env.metrics.handshakes.one(Handshake::Upgraded);
            return Negotiated::Agreed(Wire::WebSocket(encoding), consumed);
        }
        Upgrade::Refused(refusal) => refusal,
    };
    if refusal == upgrade::FORBIDDEN {
        cx.env.metrics.limited.one(Limited::Origin);
    }
    refusal.write(cx.out);
    Negotiated::Refused
}

/// Whether an HTTP method begins so: three capitals, then a fourth or the blank behind them.
fn is_method([first @ .., last]: &[u8; 4]) -> bool {
    first.iter().all(u8::is_ascii_uppercase) && (last.is_ascii_uppercase() || *last == b' ')
}

impl Wire {
    /// The name of the transport in endpoints.
    pub(super) fn transport(self) -> &'static str {
        match self {
            Self::WebSocket(_) => "ws",
            Self::Tcp | Self::Unknown => "tcp",
        }
    }

    /// The next complete thing at the head of `input`, and the bytes it took. No message may have more than `limit` bytes.
    pub(super) fn next<'a>(
        self,
        assembly: &mut Option<Box<ws::Assembly>>,
        input: &'a mut [u8],
        limit: usize,
    ) -> Result<Option<(Event<'a>, usize)>, WireError> {
        match self {
            Self::Unknown => Ok(None),
            Self::WebSocket(_) => Ok(ws::next(assembly, input, limit)?),
            Self::Tcp => {
                let next = tcp::split(input, limit)?;
                Ok(next.map(|(payload, taken)| {
                    (Event::Message { text: false, payload: Cow::Borrowed(payload) }, taken)
                }))
            }
        }
    }

    /// The encoding of a message that came as text or binary; none if the subprotocol does not allow it.
    pub(super) fn encoding(self, text: bool) -> Option<Encoding> {
        match self {
            Self::Unknown => None,
            Self::Tcp => Some(Encoding::Proto),
            Self::WebSocket(encoding) => (text == (encoding == Encoding::Json)).then_some(encoding),
        }
    }

    /// Appends a frame in its envelope if its payload has at most `limit` bytes; whether it had.
    pub(super) fn write(self, frame: server_frame::Frame, out: &mut Vec<u8>, limit: usize) -> bool {
        self.write_with(|encoding, out| encode_server(encoding, frame, out), out, limit)
    }

    /// The same of a payload that `encode` appends.
    pub(super) fn write_with(
        self,
        encode: impl FnOnce(Encoding, &mut Vec<u8>),
        out: &mut Vec<u8>,
        limit: usize,
    ) -> bool {
        let start = out.len();
        let encoding = match self {
            // Nothing can be said before the peer has shown what it speaks.
            Self::Unknown => return true,
            Self::Tcp => Encoding::Proto,
            Self::WebSocket(encoding) => encoding,
        };
        if self == Self::Tcp {
            out.extend_from_slice(&tcp::prefix(0));
        }
        let payload = out.len();
        encode(encoding, out);
        let length = out.len() - payload;
        if length > limit {
            out.truncate(start);
            return false;
        }
        match (self, encoding) {
            (Self::WebSocket(_), Encoding::Json) => ws::frame_in_place(ws::Opcode::Text, payload, out),
            (Self::WebSocket(_), Encoding::Proto) => ws::frame_in_place(ws::Opcode::Binary, payload, out),
            _ => out[start..payload].copy_from_slice(&tcp::prefix(length)),
        }
        true
    }
}
