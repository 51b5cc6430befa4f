//! Schedule, connect, send, notify, pull: over both transports and both encodings.

use anyhow::ensure;
use berth_proto::{client::HistoryRequest, schedule::ScheduleRequest};
use berth_tests::{
    TestResult,
    device::{Device, gateway_of, schedule},
    fresh,
    raw::Transport,
    server::Server,
    tokens::now_ms,
};

async fn check_road(from: Transport, to: Transport) -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut alices = Device::connect(&server.at, from, &alice, "phone").await?;
    let mut bobs = Device::connect(&server.at, to, &bob, "phone").await?;
    ensure!(bobs.welcome.user_id == bob && !bobs.welcome.session_id.is_empty(), "{:?}", bobs.welcome);
    ensure!(bobs.welcome.inbox_seq == 0 && bobs.welcome.inbox_epoch > 0, "{:?}", bobs.welcome);
    ensure!((bobs.welcome.server_time_ms - now_ms()).abs() < 60_000, "{:?}", bobs.welcome);

    let sent = alices.send(&bob, "c-1", "hello, bob: äöü \u{1F600}").await?;
    ensure!(sent.message_id > 0 && sent.conversation_id > 0 && !sent.duplicate, "{sent:?}");
    bobs.notified(1).await?;
    let got = bobs.receive(1).await?;
    ensure!(got.len() == 1, "{got:?}");
    ensure!(
        got[0].message_id == sent.message_id && got[0].conversation_id == sent.conversation_id,
        "{got:?}"
    );
    ensure!(got[0].from == alice && got[0].client_msg_id == "c-1" && got[0].r#type == "text", "{got:?}");
    ensure!(got[0].body == "hello, bob: äöü \u{1F600}".as_bytes(), "{got:?}");
    ensure!(got[0].conversation_seq == 1 && got[0].group_id.is_empty(), "{got:?}");

    let answer = bobs.send(&alice, "c-1", "hello, alice").await?;
    ensure!(answer.conversation_id == sent.conversation_id, "one conversation for the pair: {answer:?}");
    ensure!(answer.message_id > sent.message_id, "message ids grow with time: {answer:?} after {sent:?}");
    let both = alices.receive(2).await?;
    ensure!(both.iter().map(|m| m.conversation_seq).eq([1, 2]), "{both:?}");
    let (history, more) = alices
        .history(HistoryRequest { conversation_id: sent.conversation_id, ..Default::default() })
        .await?;
    ensure!(history == both && !more, "{history:?}");
    Ok(())
}

#[tokio::test]
async fn from_websocket_json_to_each() -> TestResult {
    for to in Transport::ALL {
        check_road(Transport::WsJson, to).await?;
    }
    Ok(())
}

#[tokio::test]
async fn from_websocket_proto_to_each() -> TestResult {
    for to in Transport::ALL {
        check_road(Transport::WsProto, to).await?;
    }
    Ok(())
}

#[tokio::test]
async fn from_tcp_to_each() -> TestResult {
    for to in Transport::ALL {
        check_road(Transport::Tcp, to).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_largest_body_and_the_empty_one_arrive_whole() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        let (alice, bob) = (fresh("alice"), fresh("bob"));
        let mut alices = Device::connect(&server.at, transport, &alice, "d").await?;
        let mut bobs = Device::connect(&server.at, transport, &bob, "d").await?;
        let largest = "x".repeat(32 * 1024);
        alices.send(&bob, "large", &largest).await?;
        alices.send(&bob, "empty", "").await?;
        let got = bobs.receive(2).await?;
        ensure!(got[0].body == largest.as_bytes() && got[1].body.is_empty(), "{transport:?}");
    }
    Ok(())
}

/// 40 bodies of 32 KiB are more than one server frame may hold: pages must be cut by bytes too.
#[tokio::test]
async fn a_page_of_large_rows_fits_a_frame_on_every_transport() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut alices = Device::connect(&server.at, Transport::Tcp, &alice, "d").await?;
    for n in 0..40 {
        alices.send(&bob, &format!("c-{n}"), &"y".repeat(32 * 1024)).await?;
    }
    for (transport, device) in Transport::ALL.into_iter().zip(["one", "two", "three"]) {
        let mut bobs = Device::connect(&server.at, transport, &bob, device).await?;
        ensure!(bobs.receive(40).await?.len() == 40, "{transport:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_ticket_serves_every_transport_and_several_connects() -> TestResult {
    let server = Server::shared().await?;
    let user = fresh("alice");
    let request = ScheduleRequest { device_id: "d".to_owned(), ..Default::default() };
    let answer = schedule(&server.at, &user, &request).await?;
    for transport in Transport::ALL {
        let gateway = gateway_of(&answer, transport)?;
        let mut device = Device::connect_to(&gateway, transport, &answer.ticket, "d").await?;
        device.heartbeat().await?;
    }
    Ok(())
}
