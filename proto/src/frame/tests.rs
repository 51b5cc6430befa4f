//! Both encodings: golden texts, every kind of bad frame, there and back, perturbed bytes.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::client::{self, client_frame::Frame as Up, request::Method, server_frame::Frame as Down};

fn json(text: &str) -> Result<Up, FrameError> {
    decode_client(Encoding::Json, text.as_bytes())
}

fn send(id: u32, body: &'static [u8]) -> Up {
    Up::Request(client::Request {
        id,
        method: Some(Method::Send(client::SendRequest {
            client_msg_id: "c-1".into(),
            to: Some(client::Target { to: Some(client::target::To::UserId("bob".into())) }),
            r#type: "text".into(),
            body: Bytes::from_static(body),
        })),
    })
}

/// The examples of PROTOCOL.md, to the letter.
#[test]
fn the_documents_examples() {
    assert_eq!(
        json(r#"{"hello":{"ticket":"t","deviceId":"d1","platform":"web"}}"#),
        Ok(Up::Hello(client::Hello {
            ticket: "t".into(),
            device_id: "d1".into(),
            platform: "web".into(),
            ..Default::default()
        }))
    );
    assert_eq!(json(r#"{"heartbeat":{}}"#), Ok(Up::Heartbeat(client::Heartbeat {})));
    assert_eq!(
        json(
            r#"{"request":{"id":7,"send":{"clientMsgId":"c-1","to":{"userId":"bob"},"type":"text","body":"aGk="}}}"#
        ),
        Ok(send(7, b"hi"))
    );

    let mut out = Vec::new();
    encode_server(
        Encoding::Json,
        Down::Notify(client::Notify { inbox_seq: 6, ..Default::default() }),
        &mut out,
    );
    assert_eq!(std::str::from_utf8(&out), Ok(r#"{"notify":{"inboxSeq":"6"}}"#));
}

#[test]
fn numbers_are_taken_as_numbers_and_as_strings_and_unknown_fields_are_ignored() {
    let pull = |after_seq| {
        Ok(Up::Request(client::Request {
            id: 1,
            method: Some(Method::Pull(client::PullRequest { after_seq, limit: 0 })),
        }))
    };
    assert_eq!(json(r#"{"request":{"id":"1","pull":{"afterSeq":5}}}"#), pull(5));
    assert_eq!(
        json(r#"{"request":{"id":1,"pull":{"afterSeq":"18446744073709551615","new":[{}]}}}"#),
        pull(u64::MAX)
    );
    assert_eq!(json(r#"{"heartbeat":{},"later":1}"#), Ok(Up::Heartbeat(client::Heartbeat {})));
}

#[test]
fn null_is_every_fields_default() {
    let pull = client::PullRequest { after_seq: 0, limit: 3 };
    let expected = Ok(Up::Request(client::Request { id: 1, method: Some(Method::Pull(pull)) }));
    assert_eq!(json(r#"{"request":{"id":1,"pull":{"afterSeq":null,"limit":3}}}"#), expected);
    let others = r#"{"hello":null,"request":{"id":1,"send":null,"pull":{"afterSeq":null,"limit":3}}}"#;
    assert_eq!(json(others), expected);
    assert_eq!(json(r#"{"request":null}"#), Err(FrameError::NoKind));
}

#[test]
fn what_is_no_frame_is_told_apart() {
    for (text, expected) in [
        ("{}", FrameError::NoKind),
        (r#"{"later":{}}"#, FrameError::NoKind),
        (r#"{"heartbeat":{},"hello":{}}"#, FrameError::SeveralKinds),
    ] {
        assert_eq!(json(text), Err(expected), "{text}");
    }
    for text in
        ["", "hi", "[]", "1", r#"{"heartbeat":{}} x"#, r#"{"hello":{"ticket":5}}"#, r#"{"request":5}"#]
    {
        assert!(matches!(json(text), Err(FrameError::Undecodable(_))), "{text}: {:?}", json(text));
    }
    assert_eq!(decode_client(Encoding::Proto, &[]), Err(FrameError::NoKind));
    assert_eq!(decode_client(Encoding::Proto, &[0x12, 0, 0x12, 0]), Err(FrameError::SeveralKinds));
    assert!(matches!(decode_client(Encoding::Proto, b"\xff\xff"), Err(FrameError::Undecodable(_))));
}

#[test]
fn a_bad_field_of_a_request_is_named_and_leaves_its_id() {
    let Err(FrameError::BadRequest { id: 7, message }) =
        json(r#"{"request":{"id":7,"send":{"clientMsgId":5}}}"#)
    else {
        panic!("expected a bad request");
    };
    assert!(message.contains("request.send.clientMsgId"), "{message}");
    for text in
        [r#"{"request":{"id":[]}}"#, r#"{"request":{"id":-1}}"#, r#"{"request":{"pull":{"limit":"x"}}}"#]
    {
        assert!(matches!(json(text), Err(FrameError::BadRequest { id: 0, .. })), "{text}: {:?}", json(text));
    }
}

#[test]
fn a_request_without_a_known_method_is_a_frame() {
    assert_eq!(
        json(r#"{"request":{"id":3,"fly":{}}}"#),
        Ok(Up::Request(client::Request { id: 3, method: None }))
    );
}

proptest! {
    #[test]
    fn both_encodings_there_and_back(id: u32, key in ".{0,64}", body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let Up::Request(mut request) = send(id, b"") else { unreachable!() };
        if let Some(Method::Send(send)) = &mut request.method {
            send.client_msg_id = key;
            send.body = body.into();
        }
        for encoding in [Encoding::Json, Encoding::Proto] {
            let mut out = Vec::new();
            encode_client(encoding, Up::Request(request.clone()), &mut out);
            prop_assert_eq!(decode_client(encoding, &out), Ok(Up::Request(request.clone())));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for encoding in [Encoding::Json, Encoding::Proto] {
            let _ = decode_client(encoding, &bytes);
            let _ = decode_server(encoding, &bytes);
        }
    }

    #[test]
    fn no_perturbed_frame_panics(at in 0usize..100, with: u8) {
        for encoding in [Encoding::Json, Encoding::Proto] {
            let mut out = Vec::new();
            encode_client(encoding, send(9, b"body"), &mut out);
            let at = at % out.len();
            out[at] = with;
            let _ = decode_client(encoding, &out);
        }
    }
}

proptest! {
    #[test]
    fn the_short_way_to_a_notify_writes_the_same(inbox_seq in prop_oneof![Just(0), 0u64..300, any::<u64>()]) {
        for encoding in [Encoding::Json, Encoding::Proto] {
            let (mut short, mut long) = (b"x".to_vec(), b"x".to_vec());
            encode_inbox_notify(encoding, inbox_seq, &mut short);
            let notify = client::Notify { inbox_seq, ..Default::default() };
            encode_server(encoding, Down::Notify(notify), &mut long);
            prop_assert_eq!(&short, &long);
        }
    }
}
