//! `berth ctl drain`: with another gateway clients are told where to go, without one they stay until the deadline.

use anyhow::ensure;
use berth_tests::{
    TestResult,
    ctl::{ctl, json},
    device::Device,
    fresh,
    raw::Transport,
    server::{Composition, Options, Role, Server},
    tokens, wait,
};

async fn device(server: &Server) -> anyhow::Result<Device> {
    // `berth dev` has a gateway of another id than the first of several.
    let id =
        json(server, 0, &["gateways"]).await?["gateways"][0]["gatewayId"].as_str().unwrap_or("").to_owned();
    let ticket = tokens::sign(&tokens::ticket(&fresh("user"), "d", &id));
    Device::connect_to(&server.at.gateway, Transport::WsJson, &ticket, "d").await
}

async fn start(server: &Server, id: &str, deadline: &str) -> TestResult {
    let pace = ["--rate", "50/s", "--spread", "1s", "--wait-lb", "1s", "--deadline", deadline];
    let (code, said) = ctl(server, 0, &[&["drain", "start", id], &pace[..]].concat()).await?;
    ensure!(code == Some(0), "{code:?} {said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_can_go_elsewhere_is_told_where_and_the_others_stay_until_the_deadline() -> TestResult {
    let server = Server::start(Options::default()).await?;
    let gateways = json(&server, 0, &["gateways"]).await?;
    let id = gateways["gateways"][0]["gatewayId"].as_str().unwrap_or("").to_owned();
    let mut device = device(&server).await?;
    if server.composition() == Composition::Apart {
        start(&server, &id, "1m").await?;
        let ending = device.ending().await?;
        ensure!(ending.code(Transport::WsJson)? == 4001, "{ending:?}");
        let told = ending.disconnect.unwrap_or_default();
        ensure!(
            told.redirect.iter().all(|to| to.gateway_id == "gw-2") && !told.redirect.is_empty(),
            "{told:?}"
        );
        // With the ticket it was given, where a place is kept for it.
        Device::connect_to(&server.at.gateways[1], Transport::WsJson, &told.ticket, "d").await?;
        return Ok(());
    }

    start(&server, &id, "1m").await?;
    let paused = wait::until("it is paused", || async {
        let status = json(&server, 0, &["drain", "status"]).await?;
        Ok(Some(status["drains"][0].clone()).filter(|drain| drain["phase"] == "paused"))
    });
    let paused = paused.await?;
    ensure!(paused["reason"].as_str().is_some_and(|reason| reason.contains("no gateway")), "{paused}");
    let (code, said) = ctl(&server, 0, &["drain", "status"]).await?;
    ensure!(code == Some(0) && said.contains("paused: no gateway"), "{code:?} {said}");
    ensure!(server.scrape(Role::Dev).await?.sum("berth_gateway_drain_phase", &[("phase", "paused")]) == 1.0);
    device.heartbeat().await?;
    let (code, said) = ctl(&server, 0, &["drain", "stop", &id]).await?;
    ensure!(code == Some(0), "{code:?} {said}");
    server.ready().await?;
    device.heartbeat().await?;

    start(&server, &id, "2s").await?;
    let ending = device.ending().await?;
    ensure!(ending.code(Transport::WsJson)? == 4001, "{ending:?}");
    let told = ending.disconnect.unwrap_or_default();
    ensure!(told.redirect.is_empty() && told.retry_after_ms <= 1_000, "{told:?}");
    Ok(())
}
