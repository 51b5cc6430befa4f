//! Frames as a client writes and reads them, over WebSocket or TCP. Pure.

use berth_proto::{
    client::{client_frame, server_frame},
    frame::{Encoding, FrameError, decode_server, encode_client},
    limits, tcp,
};
use thiserror::Error;

/// How the connections are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// WebSocket with subprotocol berth.v1.proto.
    Ws,
    /// TCP with length prefixes.
    Tcp,
}

impl Transport {
    /// As PROTOCOL.md names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Tcp => "tcp",
        }
    }

    /// The transport of that name.
    ///
    /// # Errors
    /// Names the possible ones.
    pub fn from_name(name: &str) -> Result<Self, String> {
        [Self::Ws, Self::Tcp]
            .into_iter()
            .find(|transport| transport.name() == name)
            .ok_or_else(|| format!("{name:?} is no transport; write ws or tcp"))
    }
}

/// What a server sent.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    /// A frame.
    Frame(server_frame::Frame),
    /// A WebSocket close, with its code if it has one.
    Close(Option<u16>),
    /// Something that needs no answer here: a pong, or a kind of frame that a newer server sends.
    Other,
}

/// The server does not speak the protocol.
#[derive(Debug, Error, PartialEq)]
pub enum WireError {
    /// No WebSocket frame that a server may send us.
    #[error("a WebSocket frame beginning with {0:#04x} {1:#04x}")]
    WebSocket(u8, u8),
    /// Larger than any server frame.
    #[error("a frame of {0} bytes")]
    TooLarge(u64),
    /// Not a frame of ours inside.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Appends a frame.
pub fn write(transport: Transport, frame: client_frame::Frame, out: &mut Vec<u8>) {
    let mut payload = Vec::with_capacity(64);
    encode_client(Encoding::Proto, frame, &mut payload);
    match transport {
        Transport::Tcp => out.extend(tcp::prefix(payload.len())),
        // A mask of zeros is a mask: the server undoes it like any other.
        Transport::Ws => {
            out.push(0x82);
            match u16::try_from(payload.len()) {
                Ok(length @ 0..126) => out.push(0x80 | length.to_be_bytes()[1]),
                Ok(length) => {
                    out.push(0x80 | 126);
                    out.extend(length.to_be_bytes());
                }
                Err(_) => {
                    out.push(0x80 | 127);
                    out.extend((payload.len() as u64).to_be_bytes());
                }
            }
            out.extend([0; 4]);
        }
    }
    out.extend(payload);
}

/// The first thing in `bytes` and how many bytes it took; `None` while it is incomplete.
///
/// # Errors
/// When this is no server of ours; the connection cannot go on.
pub fn next(transport: Transport, bytes: &[u8]) -> Result<Option<(Incoming, usize)>, WireError> {
    match transport {
        Transport::Tcp => {
            let split = tcp::split(bytes, limits::SERVER_FRAME);
            let split = split.map_err(|too_large| WireError::TooLarge(too_large.length as u64))?;
            split.map(|(payload, taken)| Ok((frame(payload)?, taken))).transpose()
        }
        Transport::Ws => next_ws(bytes),
    }
}

fn next_ws(bytes: &[u8]) -> Result<Option<(Incoming, usize)>, WireError> {
    let Some(([first, second], rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
    let (length, rest) = match second {
        126 => match rest.split_first_chunk::<2>() {
            Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((length, rest)) => (u64::from_be_bytes(*length), rest),
            None => return Ok(None),
        },
        length => (u64::from(*length), rest),
    };
    // Whole messages, not masked, no extension.
    if first & 0xf0 != 0x80 || second & 0x80 != 0 {
        return Err(WireError::WebSocket(*first, *second));
    }
    if length > limits::SERVER_FRAME as u64 {
        return Err(WireError::TooLarge(length));
    }
    let Some(payload) = rest.get(..length as usize) else { return Ok(None) };
    let taken = bytes.len() - rest.len() + payload.len();
    let incoming = match first & 0x0f {
        2 => frame(payload)?,
        8 => Incoming::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code))),
        9 | 10 => Incoming::Other,
        _ => return Err(WireError::WebSocket(*first, *second)),
    };
    Ok(Some((incoming, taken)))
}

fn frame(payload: &[u8]) -> Result<Incoming, WireError> {
    match decode_server(Encoding::Proto, payload) {
        Ok(frame) => Ok(Incoming::Frame(frame)),
        Err(FrameError::NoKind) => Ok(Incoming::Other),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::{
        client::{Heartbeat, Notify, SendRequest},
        frame::{decode_client, encode_server},
    };
    use proptest::prelude::*;

    use super::*;

    fn server_message(length: usize) -> (server_frame::Frame, Vec<u8>) {
        let disconnect =
            berth_proto::client::Disconnect { reason: "x".repeat(length), code: 4001, ..Default::default() };
        let frame = server_frame::Frame::Disconnect(disconnect);
        let mut payload = Vec::new();
        encode_server(Encoding::Proto, frame.clone(), &mut payload);
        (frame, payload)
    }

    fn unmasked_header(length: usize) -> Vec<u8> {
        match u16::try_from(length) {
            Ok(short @ 0..126) => vec![0x82, short.to_be_bytes()[1]],
            Ok(length) => [&[0x82, 126][..], &length.to_be_bytes()].concat(),
            Err(_) => [&[0x82, 127][..], &(length as u64).to_be_bytes()].concat(),
        }
    }

    proptest! {
        #[test]
        fn a_servers_frame_is_read_whole_or_not_yet(length in prop_oneof![0..300usize, 65_000..66_000usize], more in 0..4usize) {
            let (frame, payload) = server_message(length);
            for transport in [Transport::Ws, Transport::Tcp] {
                let mut bytes = match transport {
                    Transport::Ws => unmasked_header(payload.len()),
                    Transport::Tcp => tcp::prefix(payload.len()).to_vec(),
                };
                bytes.extend(&payload);
                let whole = bytes.len();
                bytes.extend(vec![0x82; more]);
                prop_assert_eq!(next(transport, &bytes), Ok(Some((Incoming::Frame(frame.clone()), whole))));
                for cut in [0, 1, 2, 3, whole / 2, whole - 1] {
                    prop_assert_eq!(next(transport, &bytes[..cut]), Ok(None));
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = next(Transport::Ws, &bytes);
            let _ = next(Transport::Tcp, &bytes);
        }
    }

    #[test]
    fn what_is_written_has_the_length_it_says() {
        for body in [0, 100, 125, 126, 1_000, 32_768] {
            let send = SendRequest { body: vec![1; body].into(), ..Default::default() };
            let method = Some(berth_proto::client::request::Method::Send(send));
            let frame = client_frame::Frame::Request(berth_proto::client::Request { id: 1, method });
            let mut bytes = Vec::new();
            write(Transport::Ws, frame.clone(), &mut bytes);
            let header = match bytes[1] & 0x7f {
                126 => 8,
                _ => 6,
            };
            assert_eq!(decode_client(Encoding::Proto, &bytes[header..]), Ok(frame));
        }
        let mut bytes = Vec::new();
        write(Transport::Tcp, client_frame::Frame::Heartbeat(Heartbeat {}), &mut bytes);
        assert_eq!(bytes, [0, 0, 0, 2, 0x12, 0]);
    }

    #[test]
    fn closes_pongs_and_nonsense() {
        assert_eq!(next(Transport::Ws, &[0x88, 2, 0x0f, 0xa1]), Ok(Some((Incoming::Close(Some(4001)), 4))));
        assert_eq!(next(Transport::Ws, &[0x88, 0]), Ok(Some((Incoming::Close(None), 2))));
        assert_eq!(next(Transport::Ws, &[0x8a, 0]), Ok(Some((Incoming::Other, 2))));
        assert_eq!(next(Transport::Ws, &[0x82, 0x81, 0, 0, 0, 0, 0]), Err(WireError::WebSocket(0x82, 0x81)));
        assert_eq!(next(Transport::Tcp, &[0xff, 0, 0, 0]), Err(WireError::TooLarge(0xff00_0000)));
        let notify = server_frame::Frame::Notify(Notify { inbox_seq: 7, ..Default::default() });
        assert_eq!(
            next(Transport::Tcp, &[0, 0, 0, 4, 0x22, 2, 8, 7]),
            Ok(Some((Incoming::Frame(notify), 8)))
        );
    }
}
