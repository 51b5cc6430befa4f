//! What a fuzzer feeds this crate's parsers: any bytes, and what must hold of the answer. The property tests below and the
//! targets of `tests/fuzz` call the same functions.

use crate::{
    frame::{Encoding, decode_client, decode_server, encode_client},
    limits, tcp,
    ticket::{TicketSigner, TicketVerifier},
};

/// A client's or a server's frame: what is read and written again reads the same.
///
/// # Panics
/// When something does not hold.
pub fn frame(bytes: &[u8]) {
    for encoding in [Encoding::Json, Encoding::Proto] {
        let _ = decode_server(encoding, bytes);
        let Ok(frame) = decode_client(encoding, bytes) else { continue };
        let mut again = Vec::new();
        encode_client(encoding, frame.clone(), &mut again);
        assert_eq!(decode_client(encoding, &again), Ok(frame), "{encoding:?}");
    }
}

/// TCP framing: what is split off lies within the input and within the limit, and less than a frame is never taken for one.
///
/// # Panics
/// When something does not hold.
pub fn tcp(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((payload, taken))) = tcp::split(rest, limits::CLIENT_FRAME) {
        assert!(payload.len() <= limits::CLIENT_FRAME && taken == tcp::PREFIX + payload.len());
        assert_eq!(tcp::prefix(payload.len()), rest[..tcp::PREFIX], "the prefix is the payload's");
        assert_eq!(tcp::split(&rest[..taken - 1], limits::CLIENT_FRAME), Ok(None));
        rest = &rest[taken..];
    }
}

/// A ticket's text: nothing passes that was not signed, however it was come by.
///
/// # Panics
/// When something does not hold.
pub fn ticket(bytes: &[u8]) {
    let signer = TicketSigner::from_secret(b"a fuzzer's secret of 32 bytes...");
    let verifier = TicketVerifier::new(&[signer.public_key()]);
    let text = String::from_utf8_lossy(bytes);
    assert!(verifier.genuine(&text).is_err(), "nobody signed {text:?}");
    // A genuine one, changed in one place.
    let [at, with, ..] = *bytes else { return };
    let ticket = crate::wire::Ticket { user_id: "alice".into(), expires_at_ms: 9, ..Default::default() };
    let mut changed = signer.sign(&ticket).into_bytes();
    let at = usize::from(at) % changed.len();
    if changed[at] != with {
        changed[at] = with;
        let passed = verifier.genuine(&String::from_utf8_lossy(&changed));
        assert!(passed.is_err(), "byte {at} is {with}: {passed:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// JSON that is nearly a frame finds more than random bytes do.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            Just("{"),
            Just("}"),
            Just("\"request\":"),
            Just("\"hello\":"),
            Just("\"heartbeat\":{}"),
            Just("\"id\":"),
            Just("7"),
            Just("\"7\""),
            Just("-1"),
            Just("1e400"),
            Just("null"),
            Just("\"send\":{"),
            Just("\"pull\":{"),
            Just("\"afterSeq\":"),
            Just("\"body\":\"aGk=\""),
            Just(","),
            Just("[]"),
            Just("\"\\ud800\""),
            Just("true"),
        ];
        prop_oneof![
            proptest::collection::vec(word, 0..20).prop_map(|words| words.concat().into_bytes()),
            proptest::collection::vec(any::<u8>(), 0..300),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn frames(bytes in nearly()) {
            super::frame(&bytes);
        }

        #[test]
        fn tcp_framing(lengths in proptest::collection::vec(0u32..40, 0..5), bytes in nearly()) {
            super::tcp(&bytes);
            let whole: Vec<u8> = lengths
                .iter()
                .flat_map(|length| length.to_be_bytes().into_iter().chain((0..*length).map(|n| n as u8)))
                .chain(bytes)
                .collect();
            super::tcp(&whole);
        }
    }

    proptest! {
        #[test]
        fn tickets(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            super::ticket(&bytes);
        }
    }
}
