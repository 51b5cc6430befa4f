//! The bytes of one connection: told apart, cut into frames, and written back. Pure.

use berth_proto::{
    client::{client_frame, server_frame},
    frame::{Encoding, decode_client, encode_server},
    limits, tcp,
};
use tungstenite::handshake::derive_accept_key;

use crate::http::Request;

/// Most header lines of a request.
const HEADERS: usize = 32;

/// Longest HTTP request: a group of 20,000 members.
const MAX_REQUEST: usize = 2 << 20;

/// What a connection turned out to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// Nothing came yet, or HTTP so far.
    Http,
    /// WebSocket, upgraded.
    Ws,
    /// Length-prefixed frames.
    Tcp,
}

/// The first thing in some bytes.
pub enum Came<'a> {
    /// More bytes are needed.
    Incomplete,
    /// Not what anybody here speaks: close.
    Nonsense,
    /// An upgrade, to be answered with this.
    Upgrade(String, usize),
    /// A whole HTTP request.
    Http(Request<'a>, usize),
    /// A whole frame.
    Frame(client_frame::Frame, usize),
    /// A whole WebSocket control frame that is no close.
    Control(usize),
}

/// Reads what is first. WebSocket payloads are unmasked in place.
pub fn next<'a>(speaks: &mut Speaks, bytes: &'a mut [u8]) -> Came<'a> {
    if *speaks == Speaks::Http && bytes.first() == Some(&0) {
        *speaks = Speaks::Tcp;
    }
    match speaks {
        Speaks::Http => http(bytes),
        Speaks::Ws => ws(bytes),
        Speaks::Tcp => match tcp::split(bytes, limits::CLIENT_FRAME) {
            Ok(None) => Came::Incomplete,
            Ok(Some((payload, taken))) => frame(payload, taken),
            Err(_) => Came::Nonsense,
        },
    }
}

/// Appends a frame.
pub fn write(speaks: Speaks, frame: server_frame::Frame, out: &mut Vec<u8>) {
    let start = out.len();
    let room = if speaks == Speaks::Tcp { tcp::PREFIX } else { 2 };
    out.resize(start + room, 0);
    encode_server(Encoding::Proto, frame, out);
    let length = out.len() - start - room;
    if speaks == Speaks::Tcp {
        out[start..start + room].copy_from_slice(&tcp::prefix(length));
        return;
    }
    out[start] = 0x82;
    match u16::try_from(length) {
        Ok(short @ 0..126) => out[start + 1] = short.to_be_bytes()[1],
        Ok(length) => {
            out[start + 1] = 126;
            out.splice(start + 2..start + 2, length.to_be_bytes());
        }
        Err(_) => {
            out[start + 1] = 127;
            out.splice(start + 2..start + 2, (length as u64).to_be_bytes());
        }
    }
}

fn frame<'a>(payload: &[u8], taken: usize) -> Came<'a> {
    decode_client(Encoding::Proto, payload).map_or(Came::Nonsense, |frame| Came::Frame(frame, taken))
}

fn ws(bytes: &mut [u8]) -> Came<'_> {
    let Some(([first, second], rest)) = bytes.split_first_chunk::<2>() else { return Came::Incomplete };
    let (opcode, masked) = (first & 0x0f, second & 0x80 != 0);
    let (length, header) = match second & 0x7f {
        126 => match rest.first_chunk::<2>() {
            Some(length) => (usize::from(u16::from_be_bytes(*length)), 4),
            None => return Came::Incomplete,
        },
        // Larger than a client's frame may be.
        127 => return Came::Nonsense,
        length => (usize::from(length), 2),
    };
    if !masked || first & 0x80 == 0 {
        return Came::Nonsense;
    }
    let Some(mask) = bytes.get(header..header + 4).and_then(|mask| <[u8; 4]>::try_from(mask).ok()) else {
        return Came::Incomplete;
    };
    let taken = header + 4 + length;
    let Some(payload) = bytes.get_mut(header + 4..taken) else { return Came::Incomplete };
    if mask != [0; 4] {
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    }
    match opcode {
        2 => frame(payload, taken),
        9 | 10 => Came::Control(taken),
        _ => Came::Nonsense,
    }
}

fn http(bytes: &[u8]) -> Came<'_> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_REQUEST => return Came::Incomplete,
        _ => return Came::Nonsense,
    };
    let value = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let (Some(method), Some(path)) = (request.method, request.path) else { return Came::Nonsense };
    if method == "GET" {
        let Some(key) = value("sec-websocket-key") else { return Came::Nonsense };
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: berth.v1.proto\r\n\r\n",
            derive_accept_key(key.as_bytes())
        );
        return Came::Upgrade(answer, head);
    }
    let length = value("content-length").and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    if length > MAX_REQUEST {
        return Came::Nonsense;
    }
    let Some(body) = bytes[head..].get(..length) else { return Came::Incomplete };
    let bearer = value("authorization").and_then(|text| text.strip_prefix("Bearer "));
    Came::Http(Request { method, path, bearer, body }, head + length)
}

#[cfg(test)]
mod tests {
    use berth_proto::client::{Heartbeat, Notify};

    use super::*;

    #[test]
    fn the_first_bytes_tell_what_is_spoken() {
        let mut beat = [0, 0, 0, 2, 0x12, 0];
        let mut speaks = Speaks::Http;
        let came = next(&mut speaks, &mut beat);
        assert!(matches!(came, Came::Frame(client_frame::Frame::Heartbeat(Heartbeat {}), 6)));
        assert_eq!(speaks, Speaks::Tcp);
        let mut speaks = Speaks::Http;
        let mut get = *b"GET /v1/ws HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let whole = get.len();
        assert!(matches!(next(&mut speaks, &mut get[..30]), Came::Incomplete));
        match next(&mut speaks, &mut get) {
            Came::Upgrade(answer, taken) => {
                assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") && taken == whole)
            }
            _ => panic!("an upgrade"),
        }
        let mut post = *b"PUT /v1/groups/g HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}";
        match next(&mut speaks, &mut post) {
            Came::Http(request, _) => assert_eq!((request.method, request.body), ("PUT", &b"{}"[..])),
            _ => panic!("a request"),
        }
    }

    #[test]
    fn masked_frames_are_read_and_unmasked_ones_are_not() {
        let mut speaks = Speaks::Ws;
        let mut beat = [0x82, 0x82, 1, 2, 3, 4, 0x12 ^ 1, 2];
        assert!(matches!(next(&mut speaks, &mut beat), Came::Frame(client_frame::Frame::Heartbeat(_), 8)));
        assert!(matches!(next(&mut speaks, &mut [0x82, 2, 0x12, 0]), Came::Nonsense));
        assert!(matches!(next(&mut speaks, &mut [0x89, 0x80, 0, 0, 0, 0]), Came::Control(6)));
        let mut out = Vec::new();
        write(
            Speaks::Ws,
            server_frame::Frame::Notify(Notify { inbox_seq: 7, ..Default::default() }),
            &mut out,
        );
        assert_eq!(out, [0x82, 4, 0x22, 2, 8, 7]);
    }
}
