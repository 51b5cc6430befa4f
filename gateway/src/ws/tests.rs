//! The WebSocket reader and writer against tungstenite, and by hand where the two differ on purpose.

use std::io::{Cursor, Read, Write};

use proptest::prelude::*;
use tungstenite::{
    Message, WebSocket,
    protocol::{
        Role, WebSocketConfig,
        frame::{
            FrameHeader,
            coding::{Control, Data, OpCode},
        },
    },
};

use super::*;

const LIMIT: usize = 1_000;

/// What a client may put on the wire.
#[derive(Debug, Clone)]
struct Piece {
    opcode: u8,
    last: bool,
    mask: Option<[u8; 4]>,
    payload: Vec<u8>,
}

impl Piece {
    fn write(&self, out: &mut Vec<u8>) {
        let header = FrameHeader {
            is_final: self.last,
            opcode: OpCode::from(self.opcode),
            mask: self.mask,
            ..FrameHeader::default()
        };
        header.format(self.payload.len() as u64, out).expect("a Vec grows");
        let mask = self.mask.unwrap_or_default();
        out.extend(self.payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
}

fn piece() -> impl Strategy<Value = Piece> {
    let payload = prop_oneof![
        4 => "[a-zé]{0,20}".prop_map(String::into_bytes),
        2 => proptest::collection::vec(any::<u8>(), 0..20),
        1 => proptest::collection::vec(any::<u8>(), 120..140),
        1 => proptest::collection::vec(any::<u8>(), 900..1_100),
    ];
    let opcode = prop_oneof![3 => Just(0u8), 5 => Just(1), 5 => Just(2), 1 => Just(8), 2 => Just(9), 1 => Just(10), 1 => 3u8..8];
    let mask = prop_oneof![20 => any::<[u8; 4]>().prop_map(Some), 1 => Just(None)];
    (opcode, prop::bool::weighted(0.7), mask, payload).prop_map(|(opcode, last, mask, payload)| Piece {
        opcode,
        last,
        mask,
        payload,
    })
}

/// What both sides say they saw.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Close(Option<u16>),
    Error,
}

/// Our own reading, with the input cut into chunks as a socket would.
fn ours(bytes: &[u8], cut: usize) -> Vec<Seen> {
    let (mut assembly, mut buffer, mut seen) = (None, Vec::new(), Vec::new());
    for chunk in bytes.chunks(cut.max(1)) {
        buffer.extend_from_slice(chunk);
        loop {
            match next(&mut assembly, &mut buffer, LIMIT) {
                Ok(None) => break,
                Err(_) => {
                    seen.push(Seen::Error);
                    return seen;
                }
                Ok(Some((event, taken))) => {
                    match event {
                        Event::Message { text: true, payload } => seen.push(Seen::Text(payload.into_owned())),
                        Event::Message { text: false, payload } => {
                            seen.push(Seen::Binary(payload.into_owned()))
                        }
                        Event::Ping(payload) => seen.push(Seen::Ping(payload.to_vec())),
                        Event::Close(code) => {
                            seen.push(Seen::Close(code));
                            return seen;
                        }
                        Event::Fragment | Event::Pong => {}
                    }
                    buffer.drain(..taken);
                }
            }
        }
    }
    seen
}

/// A stream that reads from memory, then has no more for now.
struct Wire(Cursor<Vec<u8>>);

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(std::io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// tungstenite's reading of the same bytes.
fn oracle(bytes: &[u8]) -> Vec<Seen> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LIMIT))
        .max_frame_size(Some(LIMIT))
        .accept_unmasked_frames(false);
    let wire = Wire(Cursor::new(bytes.to_vec()));
    let mut socket = WebSocket::from_raw_socket(wire, Role::Server, Some(config));
    let mut seen = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => seen.push(Seen::Text(text.as_bytes().to_vec())),
            Ok(Message::Binary(bytes)) => seen.push(Seen::Binary(bytes.to_vec())),
            Ok(Message::Ping(bytes)) => seen.push(Seen::Ping(bytes.to_vec())),
            Ok(Message::Close(close)) => {
                seen.push(Seen::Close(close.map(|close| close.code.into())));
                return seen;
            }
            Ok(_) => {}
            Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return seen;
            }
            Err(_) => {
                seen.push(Seen::Error);
                return seen;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn reads_what_tungstenite_reads(pieces in proptest::collection::vec(piece(), 1..8), cut in 1usize..2_000) {
        // A close frame's codes differ: tungstenite lets reserved ones through. They are tested by hand.
        let mut bytes = Vec::new();
        for mut piece in pieces {
            if piece.opcode == 8 {
                piece.payload = 1000u16.to_be_bytes().to_vec();
            }
            piece.write(&mut bytes);
        }
        // tungstenite checks text as it comes, we when it is complete: its error may come earlier, but what it never
        // delivers we never deliver either.
        let (ours, theirs) = (ours(&bytes, cut), oracle(&bytes));
        let Some((Seen::Error, good)) = theirs.split_last() else {
            prop_assert_eq!(ours, theirs);
            return Ok(());
        };
        prop_assert!(ours.starts_with(good), "{ours:?} {theirs:?}");
        let more = |seen: &Seen| matches!(seen, Seen::Text(_) | Seen::Binary(_));
        prop_assert!(!ours[good.len()..].iter().any(more), "{ours:?} {theirs:?}");
    }

    #[test]
    fn no_bytes_panic_and_nothing_is_taken_twice(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 1usize..50) {
        ours(&bytes, cut);
    }

    #[test]
    fn what_is_written_tungstenite_reads(payload in proptest::collection::vec(any::<u8>(), 0..70_000)) {
        let mut out = b"before".to_vec();
        write_frame(Opcode::Binary, &payload, &mut out);
        let mut cursor = Cursor::new(&out[6..]);
        let (header, length) = FrameHeader::parse(&mut cursor).expect("a header").expect("complete");
        prop_assert_eq!(header.opcode, OpCode::Data(Data::Binary));
        prop_assert!(header.is_final && header.mask.is_none());
        prop_assert_eq!(length as usize, payload.len());
        let at = 6 + usize::try_from(cursor.position()).expect("small");
        prop_assert_eq!(&out[at..], &payload[..]);
    }

    #[test]
    fn close_reasons_are_cut_at_a_character(reason in "[aé€]{0,200}") {
        let mut out = Vec::new();
        write_close(4001, &reason, &mut out);
        let mut cursor = Cursor::new(&out);
        let (header, length) = FrameHeader::parse(&mut cursor).expect("a header").expect("complete");
        prop_assert_eq!(header.opcode, OpCode::Control(Control::Close));
        prop_assert!(header.is_final && header.mask.is_none());
        let payload = &out[usize::try_from(cursor.position()).expect("small")..];
        prop_assert_eq!(payload.len() as u64, length);
        prop_assert!(payload.len() <= MAX_CONTROL);
        prop_assert_eq!(&payload[..2], &4001u16.to_be_bytes()[..]);
        let told = std::str::from_utf8(&payload[2..]).expect("whole characters");
        // Cut only as far as it must be: one more character would not fit.
        let next = reason[told.len()..].chars().next().map_or(MAX_CONTROL, char::len_utf8);
        prop_assert!(reason.starts_with(told) && (told == reason || payload.len() + next > MAX_CONTROL));
    }
}

fn one(bytes: &[u8]) -> Result<Option<usize>, WsError> {
    let mut assembly = None;
    next(&mut assembly, &mut bytes.to_vec(), LIMIT).map(|event| event.map(|(_, taken)| taken))
}

#[test]
fn an_oversize_message_is_refused_by_its_header() {
    assert_eq!(one(&[0x82, 0xfe, 0x03, 0xe9]), Err(WsError::TooLarge { length: 1_001, limit: LIMIT }));
    let huge = [0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(one(&huge), Err(WsError::TooLarge { length: u64::MAX, limit: LIMIT }));
}

#[test]
fn fragments_may_not_add_up_to_more_than_the_limit() {
    let mut assembly = None;
    let piece = |opcode, last, length| {
        let mut out = Vec::new();
        Piece { opcode, last, mask: Some([0; 4]), payload: vec![b'a'; length] }.write(&mut out);
        out
    };
    assert!(matches!(next(&mut assembly, &mut piece(1, false, 999), LIMIT), Ok(Some((Event::Fragment, _)))));
    let error = next(&mut assembly, &mut piece(0, true, 2), LIMIT).expect_err("too large");
    assert_eq!(error, WsError::TooLarge { length: 1_001, limit: LIMIT });
}

#[test]
fn a_close_frame_may_carry_only_what_may_stand_in_one() {
    for (payload, expected) in [
        (vec![], Ok(None)),
        (vec![3, 232], Ok(Some(1000))),
        (vec![0x0f, 0xa0], Ok(Some(4000))),
        (vec![3], Err(WsError::BadClose)),
        (vec![3, 237], Err(WsError::BadClose)),
        (vec![3, 232, 0xff], Err(WsError::BadClose)),
    ] {
        let mut out = Vec::new();
        Piece { opcode: 8, last: true, mask: Some([9; 4]), payload }.write(&mut out);
        let mut assembly = None;
        let got = next(&mut assembly, &mut out, LIMIT).map(|event| match event {
            Some((Event::Close(code), _)) => code,
            other => panic!("{other:?}"),
        });
        assert_eq!(got, expected);
    }
}

#[test]
fn a_frame_that_does_not_belong_there_is_refused_by_its_first_byte_and_length() {
    let begun = || {
        let mut out = Vec::new();
        Piece { opcode: 1, last: false, mask: Some([0; 4]), payload: vec![b'a'; 10] }.write(&mut out);
        let mut assembly = None;
        assert!(matches!(next(&mut assembly, &mut out, LIMIT), Ok(Some((Event::Fragment, _)))));
        assembly
    };
    // Of none of these the payload is there: nothing of it is ever kept.
    assert_eq!(next(&mut begun(), &mut [0x82, 0xff], LIMIT), Err(WsError::Interleaved));
    assert_eq!(next(&mut begun(), &mut [0x01, 0xff], LIMIT), Err(WsError::Interleaved));
    assert_eq!(next(&mut begun(), &mut [0x80, 0xfe], LIMIT), Ok(None));
    assert_eq!(next(&mut begun(), &mut [0x89, 0x84], LIMIT), Ok(None));
    assert_eq!(next(&mut None, &mut [0x80, 0xff], LIMIT), Err(WsError::NothingToContinue));
}

#[test]
fn what_is_assembled_takes_no_more_memory_than_the_largest_message() {
    let mut assembly = None;
    let mut piece = |opcode, length| {
        let mut out = Vec::new();
        Piece { opcode, last: false, mask: Some([0; 4]), payload: vec![b'a'; length] }.write(&mut out);
        assert!(matches!(next(&mut assembly, &mut out, LIMIT), Ok(Some((Event::Fragment, _)))));
        assembly.as_ref().map_or(0, |assembly| assembly.memory())
    };
    piece(1, 600);
    assert!((1..400).all(|_| piece(0, 1) <= LIMIT));
}
