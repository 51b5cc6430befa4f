//! The HTTP/1.1 request that opens a WebSocket: read once, answered once. Pure.

use berth_proto::frame::Encoding;
use httparse::{EMPTY_HEADER, Header, Request, Status};
use tungstenite::handshake::derive_accept_key;

use crate::guard::Origins;

/// Longest request head, in bytes: browsers send below 1 KiB, and cookies of a shared domain may add some.
pub const MAX_HEAD: usize = 8 * 1024;

/// Most header lines.
const MAX_HEADERS: usize = 64;

/// The path of the socket.
pub const PATH: &str = "/v1/ws";

/// What to make of the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// More bytes are needed.
    Incomplete,
    /// Answer with `response` and go on with WebSocket frames after `consumed` bytes.
    Accepted {
        /// By the subprotocol agreed on.
        encoding: Encoding,
        /// The head's length.
        consumed: usize,
        /// The whole answer.
        response: String,
    },
    /// Answer so and close.
    Refused(Refusal),
}

/// An HTTP answer that ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    status: &'static str,
    header: &'static str,
    text: &'static str,
}

const fn refusal(status: &'static str, text: &'static str) -> Refusal {
    Refusal { status, header: "", text }
}

const MALFORMED: Refusal = refusal("400 Bad Request", "This is not an HTTP/1.1 request.\n");
const LARGE: Refusal =
    refusal("431 Request Header Fields Too Large", "The request head may have 8 KiB and 64 lines.\n");
const METHOD: Refusal = refusal("405 Method Not Allowed", "A WebSocket is opened with GET.\n");
const NO_KEY: Refusal =
    refusal("400 Bad Request", "Sec-WebSocket-Key is missing or not the base64 of 16 bytes.\n");
const NO_PROTOCOL: Refusal =
    refusal("400 Bad Request", "Offer the subprotocol berth.v1.json or berth.v1.proto.\n");
/// The page is not one of those that may connect.
pub const FORBIDDEN: Refusal = refusal("403 Forbidden", "Pages of this origin may not connect.\n");
const NOT_FOUND: Refusal = refusal("404 Not Found", "The socket is at /v1/ws.\n");
const NOT_UPGRADE: Refusal = Refusal {
    status: "426 Upgrade Required",
    header: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    text: "This is a WebSocket: send Upgrade: websocket, Connection: Upgrade, Sec-WebSocket-Version: 13.\n",
};

/// The gateway holds as many connections as it can.
pub const OVERLOADED: Refusal = Refusal {
    status: "503 Service Unavailable",
    header: "Retry-After: 1\r\n",
    text: "This gateway is full; ask the scheduler for another.\n",
};

impl Refusal {
    /// Appends the whole answer.
    pub fn write(&self, out: &mut Vec<u8>) {
        let Self { status, header, text } = self;
        let length = text.len();
        out.extend_from_slice(
            format!(
                "HTTP/1.1 {status}\r\n{header}Content-Type: text/plain\r\nContent-Length: {length}\r\n\
                 Connection: close\r\n\r\n{text}"
            )
            .as_bytes(),
        );
    }
}

/// Reads a request head; pages of other origins than these are refused.
#[must_use]
pub fn read(bytes: &[u8], origins: &Origins) -> Upgrade {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    let consumed = match request.parse(&bytes[..bytes.len().min(MAX_HEAD)]) {
        Ok(Status::Complete(consumed)) => consumed,
        Ok(Status::Partial) if bytes.len() < MAX_HEAD => return Upgrade::Incomplete,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Upgrade::Refused(LARGE),
        Err(_) => return Upgrade::Refused(MALFORMED),
    };
    match agree(&request, origins) {
        Ok((encoding, response)) => Upgrade::Accepted { encoding, consumed, response },
        Err(refusal) => Upgrade::Refused(refusal),
    }
}

fn agree(request: &Request<'_, '_>, origins: &Origins) -> Result<(Encoding, String), Refusal> {
    if request.version != Some(1) {
        return Err(MALFORMED);
    }
    if request.method != Some("GET") {
        return Err(METHOD);
    }
    // The query is no part of the contract: nothing secret may stand there, so nothing is read.
    let path = request.path.unwrap_or_default();
    if path.split('?').next() != Some(PATH) {
        return Err(NOT_FOUND);
    }
    let headers = &*request.headers;
    // Of several, which no browser sends, each must be allowed.
    let named = |header: &&Header<'_>| header.name.eq_ignore_ascii_case("origin");
    if !headers.iter().filter(named).all(|header| origins.allow(header.value)) {
        return Err(FORBIDDEN);
    }
    let upgrade = tokens(headers, "upgrade").any(|token| token.eq_ignore_ascii_case("websocket"))
        && tokens(headers, "connection").any(|token| token.eq_ignore_ascii_case("upgrade"))
        && tokens(headers, "sec-websocket-version").any(|token| token == "13");
    if !upgrade {
        return Err(NOT_UPGRADE);
    }
    let key = tokens(headers, "sec-websocket-key").next().filter(|key| is_key(key)).ok_or(NO_KEY)?;
    // The client's order is its preference.
    let encoding =
        tokens(headers, "sec-websocket-protocol").find_map(Encoding::from_subprotocol).ok_or(NO_PROTOCOL)?;
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {}\r\n\r\n",
        derive_accept_key(key.as_bytes()),
        encoding.subprotocol(),
    );
    Ok((encoding, response))
}

/// The comma-separated values of every header of that name.
fn tokens<'a>(headers: &'a [Header<'_>], name: &'a str) -> impl Iterator<Item = &'a str> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .filter_map(|header| std::str::from_utf8(header.value).ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Base64 of 16 bytes: 22 characters and two of padding.
fn is_key(text: &str) -> bool {
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    text.strip_suffix("==").is_some_and(|key| key.len() == 22 && key.bytes().all(base64))
}

#[cfg(test)]
mod tests;
