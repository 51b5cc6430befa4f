//! The client's message id: a repeat is answered with what it was, another use of it is refused.

use anyhow::ensure;
use berth_proto::client::{SendRequest, Target, request::Method, target::To};
use berth_tests::{
    TestResult,
    device::{Device, send_to},
    fresh,
    raw::Transport,
    server::Server,
};

#[tokio::test]
async fn a_repeated_send_has_one_effect_on_any_connection() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut phone = Device::connect(&server.at, Transport::WsJson, &alice, "phone").await?;
    let mut laptop = Device::connect(&server.at, Transport::Tcp, &alice, "laptop").await?;
    let first = phone.send(&bob, "c-1", "once").await?;
    for device in [&mut phone, &mut laptop] {
        let again = device.send(&bob, "c-1", "once").await?;
        ensure!(again.duplicate && !first.duplicate, "{again:?}");
        ensure!(again.message_id == first.message_id && again.conversation_id == first.conversation_id);
    }
    let mut bobs = Device::connect(&server.at, Transport::WsProto, &bob, "d").await?;
    bobs.receive(1).await?;
    phone.send(&bob, "c-2", "end").await?;
    let rest = bobs.receive(1).await?;
    ensure!(rest.len() == 1 && rest[0].conversation_seq == 2, "nothing between: {rest:?}");
    Ok(())
}

#[tokio::test]
async fn the_same_id_twice_in_one_batch_is_one_message() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut device = Device::connect(&server.at, Transport::Tcp, &alice, "d").await?;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(device.start(send_to(&bob, "same", "x")).await?);
    }
    let mut messages = std::collections::BTreeSet::new();
    for id in ids {
        if let berth_proto::client::response::Result::Send(sent) = device.finish(id).await? {
            messages.insert(sent.message_id);
        }
    }
    ensure!(messages.len() == 1, "{messages:?}");
    ensure!(device.receive(1).await?.len() == 1);
    Ok(())
}

#[tokio::test]
async fn the_same_id_for_something_else_is_already_exists() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut device = Device::connect(&server.at, Transport::WsJson, &alice, "d").await?;
    device.send(&bob, "c-1", "once").await?;
    for other in [send_to(&bob, "c-1", "another body"), send_to(&fresh("carol"), "c-1", "once")] {
        let error = device.refused(other).await?;
        ensure!(error.code == "ALREADY_EXISTS" && !error.retryable, "{error:?}");
    }
    // Ids are per sender.
    let mut bobs = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    ensure!(!bobs.send(&alice, "c-1", "mine").await?.duplicate);
    Ok(())
}

fn to(target: To) -> Method {
    let to = Some(Target { to: Some(target) });
    Method::Send(SendRequest { client_msg_id: fresh("c"), to, ..Default::default() })
}

#[tokio::test]
async fn sends_that_cannot_be_are_refused_at_once() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob, eve) = (fresh("alice"), fresh("bob"), fresh("eve"));
    let mut alices = Device::connect(&server.at, Transport::WsJson, &alice, "d").await?;
    let mut eves = Device::connect(&server.at, Transport::WsJson, &eve, "d").await?;
    let conversation = alices.send(&bob, "c-1", "between us").await?.conversation_id;
    let error = eves.refused(to(To::ConversationId(conversation))).await?;
    ensure!(error.code == "PERMISSION_DENIED", "not a member: {error:?}");
    let error = alices.refused(to(To::ConversationId(u64::MAX))).await?;
    ensure!(matches!(error.code.as_str(), "PERMISSION_DENIED" | "NOT_FOUND"), "no conversation: {error:?}");
    let error = alices.refused(to(To::GroupId(fresh("group")))).await?;
    ensure!(error.code == "NOT_FOUND", "no group: {error:?}");
    let error = alices.refused(to(To::UserId("system".to_owned()))).await?;
    ensure!(error.code == "PERMISSION_DENIED", "the server's own user: {error:?}");
    // By the conversation's id a member may.
    alices.request(to(To::ConversationId(conversation))).await?;
    Ok(())
}
