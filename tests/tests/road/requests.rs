//! PROTOCOL.md's error table, request rows: what is answered with an error while the connection goes on, on each transport.

use std::collections::HashMap;

use anyhow::{bail, ensure};
use berth_proto::{
    client::{
        ConversationsRequest, Error, Heartbeat, HistoryRequest, MarkReadRequest, PresenceRequest,
        PullRequest, Request, SendRequest, Target, client_frame::Frame, request::Method, response,
        server_frame, target::To,
    },
    limits,
};
use berth_tests::{
    TestResult,
    device::{Device, send_to},
    fresh,
    raw::{Raw, Transport},
    server::Server,
};

async fn error_of(raw: &mut Raw) -> anyhow::Result<(u32, Error)> {
    match raw.frame().await? {
        server_frame::Frame::Response(answer) => match answer.result {
            Some(response::Result::Error(error)) => Ok((answer.id, error)),
            other => bail!("no error: {other:?}"),
        },
        other => bail!("no response: {other:?}"),
    }
}

fn request(id: u32, method: Option<Method>) -> Frame {
    Frame::Request(Request { id, method })
}

fn pull(limit: u32) -> Method {
    Method::Pull(PullRequest { after_seq: 0, limit })
}

#[tokio::test]
async fn request_id_zero_is_invalid() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        let mut device = Device::connect(&server.at, transport, &fresh("user"), "d").await?;
        device.raw.send(request(0, Some(pull(1)))).await?;
        let (id, error) = error_of(&mut device.raw).await?;
        ensure!(id == 0 && error.code == "INVALID_ARGUMENT" && !error.retryable, "{error:?}");
        ensure!(error.message.contains("id"), "names the field: {error:?}");
        device.heartbeat().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_id_in_flight_already_is_invalid() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        let mut device = Device::connect(&server.at, transport, &fresh("user"), "d").await?;
        let bob = fresh("bob");
        // Back to back, so that the first is still being synced when the others are read.
        let same = (0..8).map(|n| request(5, Some(send_to(&bob, &format!("c-{n}"), "x")))).collect();
        device.raw.send_all(same).await?;
        let (mut sent, mut invalid) = (0, 0);
        while sent + invalid < 8 {
            match device.raw.frame().await? {
                server_frame::Frame::Response(answer) => match answer.result {
                    Some(response::Result::Send(_)) => sent += 1,
                    Some(response::Result::Error(error)) => {
                        ensure!(
                            error.code == "INVALID_ARGUMENT" && error.message.contains("id"),
                            "{error:?}"
                        );
                        invalid += 1;
                    }
                    other => bail!("{other:?}"),
                },
                server_frame::Frame::Notify(_) => {}
                other => bail!("{other:?}"),
            }
        }
        ensure!(sent >= 1 && invalid >= 1, "{transport:?}: {sent} sent, {invalid} invalid");
        // The id is free again.
        device.raw.send(request(5, Some(pull(1)))).await?;
        loop {
            match device.raw.frame().await? {
                server_frame::Frame::Response(answer) => {
                    let pulled = matches!(answer.result, Some(response::Result::Pull(_)));
                    ensure!(answer.id == 5 && pulled, "{answer:?}");
                    break;
                }
                server_frame::Frame::Notify(_) => {}
                other => bail!("{other:?}"),
            }
        }
    }
    Ok(())
}

/// Each with the field its error must name.
fn bad_requests() -> Vec<(Method, &'static str)> {
    let send = |change: fn(&mut SendRequest)| {
        let mut request = SendRequest {
            client_msg_id: "c".into(),
            to: Some(Target { to: Some(To::UserId("bob".into())) }),
            ..Default::default()
        };
        change(&mut request);
        Method::Send(request)
    };
    let history = |conversation_id, after_seq, before_seq, limit| {
        Method::History(HistoryRequest { conversation_id, after_seq, before_seq, limit })
    };
    let presence = |user_ids: Vec<String>| Method::Presence(PresenceRequest { user_ids });
    vec![
        (send(|s| s.client_msg_id.clear()), "clientMsgId"),
        (send(|s| s.client_msg_id = "x".repeat(65)), "clientMsgId"),
        (send(|s| s.to = None), "send.to"),
        (send(|s| s.to = Some(Target { to: None })), "send.to"),
        (send(|s| s.to = Some(Target { to: Some(To::UserId("no spaces".into())) })), "userId"),
        (send(|s| s.to = Some(Target { to: Some(To::UserId("x".repeat(65))) })), "userId"),
        (send(|s| s.to = Some(Target { to: Some(To::GroupId("né".into())) })), "groupId"),
        (send(|s| s.to = Some(Target { to: Some(To::ConversationId(0)) })), "conversationId"),
        (send(|s| s.r#type = "t".repeat(33)), "type"),
        (send(|s| s.body = vec![0; limits::BODY + 1].into()), "body"),
        (pull(201), "pull.limit"),
        (Method::Conversations(ConversationsRequest { limit: 201, cursor: String::new() }), "limit"),
        (history(0, 0, 0, 0), "conversationId"),
        (history(7, 0, 0, 201), "history.limit"),
        (history(7, 3, 9, 0), "beforeSeq"),
        (Method::MarkRead(MarkReadRequest { conversation_id: 0, seq: 1 }), "conversationId"),
        (presence(vec!["a".into(); 201]), "userIds"),
        (presence(vec!["a b".into()]), "userIds"),
    ]
}

#[tokio::test]
async fn each_bad_field_is_named() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        let mut device = Device::connect(&server.at, transport, &fresh("user"), "d").await?;
        for (method, field) in bad_requests() {
            let shown = format!("{transport:?} {method:.300?}");
            let error = device.refused(method).await?;
            ensure!(error.code == "INVALID_ARGUMENT" && !error.retryable, "{shown}: {error:?}");
            ensure!(error.message.contains(field), "{shown}: does not name {field}: {error:?}");
        }
        device.heartbeat().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_field_of_another_type_is_named_in_json() -> TestResult {
    let server = Server::shared().await?;
    let mut device = Device::connect(&server.at, Transport::WsJson, &fresh("user"), "d").await?;
    let cases = [
        (r#""send":{"clientMsgId":5}"#, "clientMsgId"),
        (r#""send":{"clientMsgId":"c","to":{"userId":"b"},"body":"not base64!"}"#, "body"),
        (r#""pull":{"afterSeq":"many"}"#, "afterSeq"),
        (r#""pull":{"afterSeq":-1}"#, "afterSeq"),
        (r#""pull":{"limit":1e99}"#, "limit"),
        (r#""pull":[]"#, "pull"),
    ];
    for (body, field) in cases {
        device.raw.send_bytes(format!(r#"{{"request":{{"id":7,{body}}}}}"#).into()).await?;
        let (id, error) = error_of(&mut device.raw).await?;
        ensure!(id == 7 && error.code == "INVALID_ARGUMENT", "{body}: {error:?}");
        ensure!(error.message.contains(field), "{body}: does not name {field}: {error:?}");
    }
    device.heartbeat().await?;
    Ok(())
}

#[tokio::test]
async fn a_request_without_a_known_method_is_unimplemented() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        let mut device = Device::connect(&server.at, transport, &fresh("user"), "d").await?;
        device.raw.send(request(3, None)).await?;
        let unknown: Vec<u8> = match transport {
            Transport::WsJson => br#"{"request":{"id":4,"dance":{"step":1}}}"#.to_vec(),
            // Request { id: 4, field 100: "" }
            Transport::WsProto | Transport::Tcp => vec![0x1a, 0x05, 0x08, 0x04, 0xa2, 0x06, 0x00],
        };
        device.raw.send_bytes(unknown).await?;
        for expected in [3, 4] {
            let (id, error) = error_of(&mut device.raw).await?;
            ensure!(id == expected && error.code == "UNIMPLEMENTED" && !error.retryable, "{error:?}");
        }
        device.heartbeat().await?;
    }
    Ok(())
}

#[tokio::test]
async fn more_than_16_in_flight_are_refused_and_heartbeats_go_on() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        let mut device = Device::connect(&server.at, transport, &fresh("user"), "d").await?;
        let bob = fresh("bob");
        let mut frames: Vec<Frame> =
            (1..=64).map(|n| request(n, Some(send_to(&bob, &format!("c-{n}"), "x")))).collect();
        frames.push(Frame::Heartbeat(Heartbeat {}));
        device.raw.send_all(frames).await?;
        let mut answers = HashMap::new();
        let mut beats = 0;
        while answers.len() < 64 || beats < 1 {
            match device.raw.frame().await? {
                server_frame::Frame::Response(answer) => {
                    let (id, result) = (answer.id, answer.result);
                    ensure!(answers.insert(id, result).is_none(), "two answers to {id}");
                }
                server_frame::Frame::HeartbeatAck(_) => beats += 1,
                server_frame::Frame::Notify(_) => {}
                other => bail!("{other:?}"),
            }
        }
        let mut refused = 0;
        for (id, answer) in answers {
            match answer {
                Some(response::Result::Send(_)) => {}
                Some(response::Result::Error(error)) => {
                    ensure!(id > 16, "request {id} had room: {error:?}");
                    ensure!(error.code == "RESOURCE_EXHAUSTED" && error.retryable, "{error:?}");
                    refused += 1;
                }
                other => bail!("{other:?}"),
            }
        }
        ensure!(refused > 0, "{transport:?}: 64 at once, and all had room");
        device.send(&bob, "later", "there is room again").await?;
    }
    Ok(())
}
