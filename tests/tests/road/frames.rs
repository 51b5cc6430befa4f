//! PROTOCOL.md's error table, frame rows: what closes a connection, before hello and after, on each transport.

use anyhow::{Context, ensure};
use berth_proto::{
    client::{Heartbeat, Hello, PullRequest, Request, client_frame::Frame, request::Method, server_frame},
    frame::{self, Encoding},
    limits,
};
use berth_tests::{
    TestResult,
    device::{Device, hello},
    fresh,
    raw::{Ending, Raw, Seen, Transport},
    server::Server,
    tokens,
};
use tokio_tungstenite::tungstenite::Message;

fn welcome_ticket() -> String {
    tokens::sign(&tokens::ticket(&fresh("user"), "d", "gw-1"))
}

/// A connection before hello, or after welcome.
async fn connection(server: &Server, transport: Transport, welcomed: bool) -> anyhow::Result<Raw> {
    let mut raw = Raw::connect(transport, &server.at.gateway).await?;
    if welcomed {
        raw.send(hello(&welcome_ticket(), "d")).await?;
        let frame = raw.frame().await?;
        ensure!(matches!(frame, server_frame::Frame::Welcome(_)), "{frame:?}");
    }
    Ok(raw)
}

fn check_bad_frame(what: &str, transport: Transport, ending: &Ending) -> TestResult {
    let code = ending.code(transport).with_context(|| format!("{what} on {transport:?}"))?;
    ensure!(code == 4501, "{what} on {transport:?}: {ending:?}");
    Ok(())
}

/// Payloads that are no frame, with what they are.
fn no_frames(transport: Transport) -> Vec<(&'static str, Vec<u8>)> {
    match transport.encoding() {
        Encoding::Json => vec![
            ("not JSON", b"hello".to_vec()),
            ("JSON cut off", br#"{"heartbeat":{}"#.to_vec()),
            ("more than one value", br#"{"heartbeat":{}}{}"#.to_vec()),
            ("an array", b"[]".to_vec()),
            ("a number", b"7".to_vec()),
            ("null", b"null".to_vec()),
            ("nothing", Vec::new()),
            ("no kind", b"{}".to_vec()),
            ("no known kind", br#"{"later":{}}"#.to_vec()),
            ("two kinds", br#"{"heartbeat":{},"request":{"id":1}}"#.to_vec()),
            ("deep nesting", [vec![b'['; 20_000], vec![b']'; 20_000]].concat()),
        ],
        Encoding::Proto => vec![
            ("not protobuf", vec![0xff; 5]),
            ("protobuf cut off", vec![0x12, 0x05, 0x00]),
            ("a group's end", vec![0x14]),
            ("no kind", Vec::new()),
            ("no known kind", vec![0x7a, 0x00]),
            ("two kinds", vec![0x12, 0x00, 0x1a, 0x02, 0x08, 0x01]),
            ("one kind twice", vec![0x12, 0x00, 0x12, 0x00]),
            ("deep nesting", vec![0x1b; 20_000]),
        ],
    }
}

#[tokio::test]
async fn what_is_no_frame_closes_with_4501() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        for (what, payload) in no_frames(transport) {
            for welcomed in [false, true] {
                let mut raw = connection(&server, transport, welcomed).await?;
                raw.send_bytes(payload.clone()).await?;
                check_bad_frame(what, transport, &raw.ending().await?)?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_frame_before_hello_closes_with_4501() -> TestResult {
    let server = Server::shared().await?;
    let request = Request { id: 1, method: Some(Method::Pull(PullRequest { after_seq: 0, limit: 1 })) };
    for transport in Transport::ALL {
        for frame in [Frame::Heartbeat(Heartbeat {}), Frame::Request(request.clone())] {
            let mut raw = connection(&server, transport, false).await?;
            raw.send(frame).await?;
            check_bad_frame("before hello", transport, &raw.ending().await?)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_second_hello_closes_with_4501() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        let mut raw = connection(&server, transport, true).await?;
        raw.send(hello(&welcome_ticket(), "d")).await?;
        check_bad_frame("second hello", transport, &raw.ending().await?)?;

        let mut raw = connection(&server, transport, false).await?;
        let ticket = welcome_ticket();
        raw.send_all(vec![hello(&ticket, "d"), hello(&ticket, "d")]).await?;
        check_bad_frame("second hello before welcome", transport, &raw.ending().await?)?;
    }
    Ok(())
}

#[tokio::test]
async fn the_other_message_type_closes_with_4501() -> TestResult {
    let server = Server::shared().await?;
    let mut proto = Vec::new();
    frame::encode_client(Encoding::Proto, Frame::Heartbeat(Heartbeat {}), &mut proto);
    let cases = [
        (Transport::WsJson, Message::binary(r#"{"heartbeat":{}}"#.as_bytes().to_vec())),
        (Transport::WsJson, Message::binary(proto)),
        (Transport::WsProto, Message::text(r#"{"heartbeat":{}}"#)),
    ];
    for (transport, message) in cases {
        for welcomed in [false, true] {
            let mut raw = connection(&server, transport, welcomed).await?;
            raw.send_message(message.clone()).await?;
            check_bad_frame("the other message type", transport, &raw.ending().await?)?;
        }
    }
    Ok(())
}

/// A heartbeat padded with an unknown field to exactly `length` bytes.
fn padded_heartbeat(encoding: Encoding, length: usize) -> Vec<u8> {
    match encoding {
        Encoding::Json => {
            let around = r#"{"heartbeat":{},"later":""}"#.len();
            format!(r#"{{"heartbeat":{{}},"later":"{}"}}"#, "x".repeat(length - around)).into_bytes()
        }
        Encoding::Proto => {
            // Field 15 with a three-byte length.
            let padding = length - 2 - 4;
            let low = |shift: usize| u8::try_from(padding >> shift & 0x7f).expect("7 bits");
            let mut bytes = vec![0x12, 0x00, 0x7a, low(0) | 0x80, low(7) | 0x80, low(14)];
            bytes.resize(length, b'x');
            bytes
        }
    }
}

#[tokio::test]
async fn the_largest_frame_passes_and_one_byte_more_does_not() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        let mut raw = connection(&server, transport, true).await?;
        raw.send_bytes(padded_heartbeat(transport.encoding(), limits::CLIENT_FRAME)).await?;
        let answer = raw.frame().await?;
        ensure!(matches!(answer, server_frame::Frame::HeartbeatAck(_)), "{transport:?}: {answer:?}");

        for welcomed in [true, false] {
            let mut raw = connection(&server, transport, welcomed).await?;
            raw.send_bytes(padded_heartbeat(transport.encoding(), limits::CLIENT_FRAME + 1)).await?;
            let ending = raw.ending().await?;
            let too_big = transport != Transport::Tcp && ending.close == Some(1009);
            if !too_big {
                check_bad_frame("too large", transport, &ending)?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_announced_frame_too_large_is_refused_before_it_comes() -> TestResult {
    let server = Server::shared().await?;
    for prefix in [[0x00, 0x01, 0x00, 0x01], [0xff; 4]] {
        for welcomed in [false, true] {
            let mut raw = connection(&server, Transport::Tcp, welcomed).await?;
            raw.send_unframed(&prefix).await?;
            check_bad_frame("announced too large", Transport::Tcp, &raw.ending().await?)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_version_of_the_future_closes_with_4502() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        for (version, welcomed) in [(0, true), (1, true), (2, false), (u32::MAX, false)] {
            let mut raw = connection(&server, transport, false).await?;
            let (ticket, device_id) = (welcome_ticket(), "d".to_owned());
            raw.send(Frame::Hello(Hello { version, ticket, device_id, ..Default::default() })).await?;
            if welcomed {
                ensure!(matches!(raw.frame().await?, server_frame::Frame::Welcome(_)));
            } else {
                ensure!(raw.ending().await?.code(transport)? == 4502, "version {version}");
            }
        }
    }
    Ok(())
}

/// Unknown fields are ignored, numbers may be strings and the other way round, names may be the proto's own.
#[tokio::test]
async fn json_is_read_as_proto3_says() -> TestResult {
    let server = Server::shared().await?;
    let mut raw = connection(&server, Transport::WsJson, false).await?;
    let ticket = welcome_ticket();
    raw.send_bytes(format!(r#"{{"hello":{{"ticket":"{ticket}","device_id":"d","x":[1]}},"y":{{}}}}"#).into())
        .await?;
    ensure!(matches!(raw.frame().await?, server_frame::Frame::Welcome(_)));
    for pull in [r#"{"afterSeq":"0","limit":5}"#, r#"{"afterSeq":0,"limit":"5"}"#, r#"{"after_seq":7}"#] {
        raw.send_bytes(format!(r#"{{"request":{{"id":"9","pull":{pull}}}}}"#).into()).await?;
        match raw.next().await? {
            Seen::Frame(server_frame::Frame::Response(answer)) => {
                let pulled = matches!(answer.result, Some(berth_proto::client::response::Result::Pull(_)));
                ensure!(answer.id == 9 && pulled, "{pull}: {answer:?}");
            }
            other => anyhow::bail!("{pull}: {other:?}"),
        }
    }
    Ok(())
}

/// proto3's JSON mapping: null is every field's default.
#[tokio::test]
async fn json_null_is_the_default() -> TestResult {
    let server = Server::shared().await?;
    let mut device = Device::connect(&server.at, Transport::WsJson, &fresh("user"), "d").await?;
    for body in [r#""pull":{"afterSeq":null,"limit":null}"#, r#""conversations":{"cursor":null}"#] {
        device.raw.send_bytes(format!(r#"{{"request":{{"id":9,{body}}}}}"#).into()).await?;
        match device.raw.frame().await? {
            server_frame::Frame::Response(answer) => {
                let error = matches!(answer.result, Some(berth_proto::client::response::Result::Error(_)));
                ensure!(answer.id == 9 && !error, "{body}: {answer:?}");
            }
            other => anyhow::bail!("{body}: {other:?}"),
        }
    }
    Ok(())
}

/// A broken neighbour is no reason to suffer.
#[tokio::test]
async fn a_closed_connection_harms_no_other() -> TestResult {
    let server = Server::shared().await?;
    let mut bystander = Device::connect(&server.at, Transport::WsJson, &fresh("by"), "d").await?;
    for transport in Transport::ALL {
        let mut raw = connection(&server, transport, true).await?;
        raw.send_bytes(no_frames(transport).remove(0).1).await?;
        raw.ending().await?;
        bystander.heartbeat().await?;
    }
    Ok(())
}
