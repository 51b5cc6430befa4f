//! Peers that are there no more, or behave so: reaped within the heartbeat's bound, and what they cost is given back.

use std::time::{Duration, Instant};

use anyhow::ensure;
use berth_proto::client::{HistoryRequest, Request, client_frame::Frame, request::Method};
use berth_tests::{
    TestResult,
    device::Device,
    figure, fresh,
    metrics::Scrape,
    raw::Transport,
    server::{Options, Server},
    wait,
};

const TIMEOUT: Duration = Duration::from_millis(2_000);
/// A slot of the gateway's timer wheel, and some for a busy machine.
const LATE: Duration = Duration::from_secs(1 + 2);

async fn closed(server: &Server, code: &str) -> anyhow::Result<f64> {
    let scrape = Scrape::fetch(&server.at.admin).await?;
    Ok(scrape.sum("berth_gateway_connections_closed_total", &[("code", code)]))
}

/// A frozen peer's kernel still takes what is sent; a half-open one's does not: the gateway only sees the silence.
#[tokio::test]
async fn frozen_peers_are_reaped_within_the_heartbeat_bound_and_memory_stays() -> TestResult {
    let server = Server::start(Options::default().heartbeat(700, 2_000)).await?;
    let before = server.process().resident()?;
    let begun = Instant::now();
    let mut frozen = Vec::new();
    for n in 0..300 {
        frozen.push(Device::connect(&server.at, Transport::ALL[n % 3], &fresh("frozen"), "d").await?);
    }
    let last = Instant::now();
    let reaped = wait::until("all are closed", || async {
        Ok((closed(&server, "4003").await? >= 300.0).then(|| last.elapsed()))
    });
    let reaped = reaped.await?;
    wait::until("all are gone", || async {
        let scrape = Scrape::fetch(&server.at.admin).await?;
        Ok((scrape.sum("berth_gateway_connections", &[]) <= 0.0).then_some(()))
    })
    .await?;
    let grown = server.process().resident()?.saturating_sub(before) / 1024;
    figure(&format!(
        "frozen peers: 300 closed with 4003 {:.2} s after the last one's sign of life (timeout {TIMEOUT:?}, wheel 1 s); \
         {grown} KiB more resident after",
        reaped.as_secs_f64()
    ));
    ensure!(begun.elapsed() >= TIMEOUT, "not before their time");
    ensure!(reaped < TIMEOUT + LATE, "{reaped:?}");
    ensure!(grown < 16 * 1024, "{grown} KiB");
    drop(frozen);
    Ok(())
}

/// The peer's window is shut: what it asked for stands unsent. It is closed as slow, and the memory comes back.
#[tokio::test]
async fn a_shut_window_is_closed_with_4004_and_its_memory_comes_back() -> TestResult {
    let server = Server::start(Options::default().heartbeat(700, 2_000)).await?;
    let (author, reader) = (fresh("author"), fresh("reader"));
    let mut authors = Device::connect(&server.at, Transport::Tcp, &author, "d").await?;
    let mut conversation_id = 0;
    for n in 0..100 {
        conversation_id =
            authors.send(&reader, &format!("c-{n}"), &"z".repeat(6 * 1024)).await?.conversation_id;
    }
    let before = server.process().resident()?;
    let mut shut = Vec::new();
    for n in 0..8 {
        let mut device =
            Device::connect(&server.at, Transport::ALL[n % 3], &reader, &format!("d-{n}")).await?;
        let history = HistoryRequest { conversation_id, limit: 200, ..Default::default() };
        let ask = |id| Frame::Request(Request { id, method: Some(Method::History(history)) });
        device.raw.send_all((1..=16).map(ask).collect()).await?;
        shut.push(device);
    }
    let mut peak = before;
    let begun = Instant::now();
    wait::until("all are closed as slow", || {
        peak = peak.max(server.process().resident().unwrap_or(0));
        async { Ok((closed(&server, "4004").await? >= 8.0).then_some(())) }
    })
    .await?;
    let slow = begun.elapsed();
    wait::until("and gone", || async {
        let scrape = Scrape::fetch(&server.at.admin).await?;
        // The author was silent too, and is gone.
        Ok((scrape.sum("berth_gateway_connections", &[]) <= 0.0).then_some(()))
    })
    .await?;
    let mib = |bytes: u64| bytes / (1024 * 1024);
    let after = server.process().resident()?;
    figure(&format!(
        "shut windows: 8 peers with 16 answers of 600 KiB unread: closed with 4004 after {:.1} s; {} MiB resident before, {} \
         at the peak, {} after",
        slow.as_secs_f64(),
        mib(before),
        mib(peak),
        mib(after)
    ));
    // 16 answers of at most 1 MiB for each, as rows, as frames and on their way.
    ensure!(peak - before < 8 * 16 * 3 * 1024 * 1024, "{} MiB", mib(peak - before));
    drop(shut);
    Ok(())
}
