//! PROTOCOL.md's error table, ticket rows; and the upgrade that offers no subprotocol.

use anyhow::{Context, bail, ensure};
use berth_proto::{client::server_frame::Frame, schedule::ScheduleEndpoint};
use berth_tests::{
    TestResult,
    device::{Device, hello},
    fresh,
    raw::{Ending, Raw, Transport},
    server::Server,
    tokens::{TICKET_KEY, now_ms, sign, sign_with, ticket},
};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, client::IntoClientRequest, http::HeaderValue};

async fn ending_of(
    server: &Server,
    transport: Transport,
    ticket: &str,
    device: &str,
) -> anyhow::Result<Ending> {
    let mut raw = Raw::connect(transport, &server.at.gateway).await?;
    raw.send(hello(ticket, device)).await?;
    raw.ending().await
}

#[tokio::test]
async fn unreadable_changed_and_foreign_tickets_close_with_4500() -> TestResult {
    let server = Server::shared().await?;
    let good = ticket(&fresh("alice"), "d", "gw-1");
    let mut flipped = sign(&good).into_bytes();
    let middle = flipped.len() / 2;
    flipped[middle] = if flipped[middle] == b'A' { b'B' } else { b'A' };
    let cases = [
        ("none", String::new(), "d"),
        ("unreadable", "certainly not a ticket".to_owned(), "d"),
        ("too long", "A".repeat(60_000), "d"),
        ("cut off", sign(&good)[..80].to_owned(), "d"),
        ("changed", String::from_utf8(flipped)?, "d"),
        ("of another device", sign(&good), "other"),
        ("of no device", sign(&good), ""),
    ];
    for transport in Transport::ALL {
        for (what, ticket, device) in &cases {
            let ending = ending_of(&server, transport, ticket, device).await?;
            let code = ending.code(transport).with_context(|| format!("{what} on {transport:?}"))?;
            ensure!(code == 4500, "{what} on {transport:?}: {ending:?}");
            let said = ending.disconnect.context("checked above")?.reason;
            ensure!(ticket.is_empty() || !said.contains(ticket.as_str()), "the reason repeats the ticket");
        }
        let gateway = &server.at.gateway;
        Device::connect_to(gateway, transport, &sign(&good), "d").await.context("the good one passes")?;
    }
    ensure!(!server.process().log().contains(&sign(&good)), "a ticket is in the log");
    ensure!(!server.process().log().contains(TICKET_KEY), "the key is in the log");
    Ok(())
}

#[tokio::test]
async fn an_expired_ticket_and_one_of_an_unknown_key_close_with_4005() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        let mut late = ticket(&fresh("alice"), "d", "gw-1");
        late.expires_at_ms = now_ms() - 1;
        let unknown =
            sign_with("another key, as long as it must be.....", &ticket(&fresh("alice"), "d", "gw-1"));
        let ending = ending_of(&server, transport, &unknown, "d").await?;
        ensure!(ending.code(transport)? == 4005, "a key that the gateway does not know: {ending:?}");
        let ending = ending_of(&server, transport, &sign(&late), "d").await?;
        ensure!(ending.code(transport)? == 4005, "{ending:?}");

        let mut over = ticket(&fresh("alice"), "d", "gw-1");
        over.auth_expires_at_ms = now_ms() - 1;
        let ending = ending_of(&server, transport, &sign(&over), "d").await?;
        ensure!(ending.code(transport)? == 4005, "the user's token is over: {ending:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_ends_with_4005_when_the_users_token_does() -> TestResult {
    let server = Server::shared().await?;
    let mut open = Vec::new();
    for transport in Transport::ALL {
        let mut short = ticket(&fresh("alice"), "d", "gw-1");
        short.auth_expires_at_ms = now_ms() + 3_000;
        open.push((
            short.auth_expires_at_ms,
            Device::connect_to(&server.at.gateway, transport, &sign(&short), "d").await?,
        ));
    }
    for (expires, mut device) in open {
        let transport = device.raw.transport;
        ensure!(device.ending().await?.code(transport)? == 4005);
        ensure!(now_ms() >= expires, "not before its time");
    }
    Ok(())
}

#[tokio::test]
async fn a_genuine_ticket_for_other_gateways_is_redirected_with_4002() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        let user = fresh("alice");
        let elsewhere = sign(&ticket(&user, "d", "gw-elsewhere"));
        let ending = ending_of(&server, transport, &elsewhere, "d").await?;
        ensure!(ending.code(transport)? == 4002, "{ending:?}");
        let disconnect = ending.disconnect.context("checked above")?;
        let way = disconnect.redirect.iter().find(|endpoint| endpoint.transport == transport.name());
        let way = way.with_context(|| format!("a redirect by {transport:?}: {disconnect:?}"))?;
        ensure!(way.gateway_id.starts_with("gw-"), "{disconnect:?}");
        ensure!(disconnect.ticket_expires_at_ms > now_ms(), "{disconnect:?}");
        let endpoint = ScheduleEndpoint::from(way.clone());
        let host = endpoint.url.split_once("://").context("a URL")?.1;
        let gateway = host.split('/').next().context("a host")?;
        let device = Device::connect_to(gateway, transport, &disconnect.ticket, "d").await?;
        ensure!(device.welcome.user_id == user, "the redirect's ticket is good there");
    }
    Ok(())
}

async fn upgrade_refused(server: &Server, path: &str, protocol: Option<&'static str>) -> anyhow::Result<u16> {
    let mut request = format!("ws://{}{path}", server.at.gateway).into_client_request()?;
    if let Some(protocol) = protocol {
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(protocol));
    }
    let stream = TcpStream::connect(&server.at.gateway).await?;
    match tokio_tungstenite::client_async(request, stream).await {
        Err(Error::Http(answer)) => Ok(answer.status().as_u16()),
        Err(error) => bail!("{path} {protocol:?}: {error}"),
        Ok(_) => bail!("{path} {protocol:?}: upgraded"),
    }
}

#[tokio::test]
async fn an_upgrade_without_our_subprotocol_is_http_400() -> TestResult {
    let server = Server::shared().await?;
    ensure!(upgrade_refused(&server, "/v1/ws", None).await? == 400);
    ensure!(upgrade_refused(&server, "/v1/ws", Some("chat, berth.v9.json")).await? == 400);
    ensure!(upgrade_refused(&server, "/v2/ws", Some("berth.v1.json")).await? == 404);
    Ok(())
}

#[tokio::test]
async fn of_several_subprotocols_a_known_one_is_taken() -> TestResult {
    let server = Server::shared().await?;
    let mut request = format!("ws://{}/v1/ws", server.at.gateway).into_client_request()?;
    let offers = HeaderValue::from_static("berth.v9.json, berth.v1.proto");
    request.headers_mut().insert("sec-websocket-protocol", offers);
    let stream = TcpStream::connect(&server.at.gateway).await?;
    let (_, answer) = tokio_tungstenite::client_async(request, stream).await?;
    let chosen = answer.headers().get("sec-websocket-protocol").context("a chosen subprotocol")?;
    ensure!(chosen == "berth.v1.proto", "{chosen:?}");
    Ok(())
}

/// Not part of the table, but of the same door: welcome comes only to whom the ticket names.
#[tokio::test]
async fn the_ticket_says_who_one_is() -> TestResult {
    let server = Server::shared().await?;
    let alice = fresh("alice");
    let mut raw = Raw::connect(Transport::WsJson, &server.at.gateway).await?;
    raw.send(hello(&sign(&ticket(&alice, "d", "gw-1")), "d")).await?;
    match raw.frame().await? {
        Frame::Welcome(welcome) => ensure!(welcome.user_id == alice, "{welcome:?}"),
        other => bail!("{other:?}"),
    }
    Ok(())
}
