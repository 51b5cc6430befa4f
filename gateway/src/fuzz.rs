//! What a fuzzer feeds this crate's parsers: any bytes, and what must hold of the answer. The property tests and the targets
//! of `tests/fuzz` call the same functions.

use crate::{
    guard::{Networks, Origins},
    upgrade::{self, Upgrade},
    ws::{self, Event, WsError},
};

/// The largest message of the WebSocket body: small, so that a fuzzer reaches it.
const LIMIT: usize = 300;

/// The HTTP request that opens a WebSocket: more bytes behind it change nothing, and fewer are never enough.
///
/// # Panics
/// When something does not hold.
pub fn upgrade(bytes: &[u8]) {
    let origins = Origins::default();
    match upgrade::read(bytes, &origins) {
        Upgrade::Incomplete => assert!(bytes.len() < upgrade::MAX_HEAD, "more would be refused"),
        Upgrade::Accepted { encoding, consumed, response } => {
            assert!(consumed <= bytes.len() && consumed <= upgrade::MAX_HEAD);
            assert!(response.starts_with("HTTP/1.1 101 ") && response.ends_with("\r\n\r\n"));
            assert_eq!(
                response.matches("\r\n\r\n").count(),
                1,
                "nothing of the request ends the answer early"
            );
            let again = upgrade::read(&bytes[..consumed], &origins);
            assert_eq!(again, Upgrade::Accepted { encoding, consumed, response });
            assert_eq!(upgrade::read(&bytes[..consumed - 1], &origins), Upgrade::Incomplete);
        }
        Upgrade::Refused(refusal) => {
            let mut answer = Vec::new();
            refusal.write(&mut answer);
            assert!(answer.starts_with(b"HTTP/1.1 4"));
        }
    }
}

/// What one read of a WebSocket stream says, for comparing.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Message(bool, Vec<u8>),
    Fragment,
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    Failed(WsError),
}

/// WebSocket frames: the same is read however the bytes are cut, within the limit, and text is always UTF-8. The first byte
/// says where to cut.
///
/// # Panics
/// When something does not hold.
pub fn websocket(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let whole = read(bytes, usize::MAX);
    assert_eq!(read(bytes, usize::from(*cut) % 20 + 1), whole);
    for seen in &whole {
        if let Seen::Message(text, payload) = seen {
            assert!(payload.len() <= LIMIT);
            assert!(!text || std::str::from_utf8(payload).is_ok());
        }
    }
}

fn read(bytes: &[u8], cut: usize) -> Vec<Seen> {
    let (mut assembly, mut buffer, mut seen) = (None, Vec::new(), Vec::new());
    for chunk in bytes.chunks(cut) {
        buffer.extend_from_slice(chunk);
        loop {
            let (event, taken) = match ws::next(&mut assembly, &mut buffer, LIMIT) {
                Ok(None) => break,
                Ok(Some((event, taken))) => (event, taken),
                Err(problem) => {
                    seen.push(Seen::Failed(problem));
                    return seen;
                }
            };
            seen.push(match event {
                Event::Message { text, payload } => Seen::Message(text, payload.into_owned()),
                Event::Fragment => Seen::Fragment,
                Event::Ping(payload) => Seen::Ping(payload.to_vec()),
                Event::Pong => Seen::Pong,
                Event::Close(code) => Seen::Close(code),
            });
            buffer.drain(..taken);
            assert!(assembly.as_ref().is_none_or(|assembly| assembly.memory() <= LIMIT));
        }
        assert!(buffer.len() < LIMIT + ws::MAX_HEADER || cut > LIMIT, "less than a frame is kept");
    }
    seen
}

/// The configuration's lists of networks and origins, and an Origin header against such a list.
///
/// # Panics
/// When something does not hold.
pub fn lists(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = text.parse::<Networks>();
    let Ok(origins) = text.parse::<Origins>() else { return };
    let only: Origins = "https://*.example.com".parse().expect("an origin");
    let _ = origins.allow(bytes);
    if only.allow(bytes) {
        assert!(bytes.to_ascii_lowercase().ends_with(b".example.com"));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Frames with small headers, some masked and some wrong: random bytes alone hardly ever pass the first two.
    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let first = prop_oneof![4 => Just(0x81u8), 2 => Just(1), 3 => Just(0x80), 2 => Just(0), 1 => Just(0x89), 1 => any::<u8>()];
        let frame =
            (first, 0u8..126, any::<[u8; 4]>(), "[aé]{0,20}").prop_map(|(first, length, mask, text)| {
                let payload = text.bytes().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
                let length = if length == 125 { 125 } else { text.len() as u8 };
                [first, 0x80 | length].into_iter().chain(mask).chain(payload).collect::<Vec<u8>>()
            });
        proptest::collection::vec(frame, 0..30).prop_map(|frames| frames.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn websockets(cut: u8, bytes in frames()) {
            super::websocket(&[&[cut][..], &bytes].concat());
        }

        #[test]
        fn websockets_of_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::websocket(&bytes);
        }

        #[test]
        fn configured_lists(text in "[a-z0-9:/.*,\\[\\] -]{0,40}|https://[a-z.]{0,9}\\.example\\.com") {
            super::lists(text.as_bytes());
        }
    }
}
