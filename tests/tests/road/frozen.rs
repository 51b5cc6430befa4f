//! Peers that are there no more, or behave so: reaped within the heartbeat's bound, and what they cost is given back.

use std::time::{Duration, Instant};

use anyhow::ensure;
use berth_proto::client::{HistoryRequest, Request, client_frame::Frame, request::Method};
use berth_tests::{
    TestResult,
    device::Device,
    figure, fresh,
    hostile::unsent,
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

/// A frozen peer's kernel still takes what is sent: the gateway only sees the silence.
#[tokio::test]
async fn frozen_peers_are_reaped_within_the_heartbeat_bound_and_memory_stays() -> TestResult {
    let server = Server::start(Options::default().heartbeat(700, 2_000)).await?;
    // The first round makes what is made once: routes of these users, tables' growth.
    freeze(&server, 300.0).await?;
    let before = server.process().resident()?;
    let reaped = freeze(&server, 600.0).await?;
    let grown = server.process().resident()?.saturating_sub(before) / 1024;
    figure(&format!(
        "frozen peers: 300 closed with 4003 {:.2} s after the last one's sign of life (timeout {TIMEOUT:?}, wheel 1 s); \
         {grown} KiB more resident after the second 300 than after the first",
        reaped.as_secs_f64()
    ));
    ensure!(reaped < TIMEOUT + LATE, "{reaped:?}");
    ensure!(grown < 8 * 1024, "{grown} KiB");
    Ok(())
}

/// Peers whose network is gone.
const HALF_OPEN: usize = 60;

/// Half-open peers: their kernels acknowledge nothing, neither a notify nor the goodbye. The gateway sees the silence, closes
/// them in time and keeps no socket for them.
#[tokio::test]
async fn half_open_peers_are_reaped_within_the_heartbeat_bound_and_leave_no_socket_behind() -> TestResult {
    let server = Server::start(Options::default().heartbeat(700, 2_000)).await?;
    let mut authors = Device::connect(&server.at, Transport::Tcp, &fresh("author"), "d").await?;
    let mut deaf = Vec::new();
    for n in 0..HALF_OPEN {
        let user = format!("half-open-{n}");
        let device = Device::connect(&server.at, Transport::ALL[n % 3], &user, "d").await?;
        device.raw.deafen()?;
        authors.send(&user, &format!("c-{n}"), "are you there?").await?;
        deaf.push(device);
    }
    let last = Instant::now();
    let mut most = 0;
    wait::until("all are closed", || {
        most = most.max(unsent(&server.at.gateway).unwrap_or(0));
        async { Ok((closed(&server, "4003").await? >= HALF_OPEN as f64).then_some(())) }
    })
    .await?;
    let reaped = last.elapsed();
    ensure!(reaped < TIMEOUT + LATE, "{reaped:?}");
    ensure!(most > 0, "they acknowledged everything");
    drop(authors);
    nobody_left(&server).await?;
    // The kernel's half of it: it repeats the goodbye until the user timeout of the socket.
    wait::until("the kernel has given them up", || async {
        Ok((unsent(&server.at.gateway)? == 0).then_some(()))
    })
    .await?;
    figure(&format!(
        "half-open peers: {HALF_OPEN} closed with 4003 {:.2} s after the last one came (timeout {TIMEOUT:?}), gone from the kernel \
         {:.2} s after it",
        reaped.as_secs_f64(),
        last.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Connects 300 who say nothing more, and waits until `all` were closed for it and nobody is left; how long after the last
/// one's sign of life.
async fn freeze(server: &Server, all: f64) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut frozen = Vec::new();
    for n in 0..300 {
        frozen.push(Device::connect(&server.at, Transport::ALL[n % 3], &format!("frozen-{n}"), "d").await?);
    }
    let last = Instant::now();
    let reaped = wait::until("all are closed", || async {
        Ok((closed(server, "4003").await? >= all).then(|| last.elapsed()))
    });
    let reaped = reaped.await?;
    ensure!(begun.elapsed() >= TIMEOUT, "not before their time");
    nobody_left(server).await?;
    Ok(reaped)
}

async fn nobody_left(server: &Server) -> anyhow::Result<()> {
    wait::until("all are gone", || async {
        let scrape = Scrape::fetch(&server.at.admin).await?;
        Ok((scrape.sum("berth_gateway_connections", &[]) <= 0.0).then_some(()))
    })
    .await
}

/// Peers whose window is shut, and the answers each asked for and does not read.
const SHUT: usize = 8;
const ANSWERS: u32 = 16;
/// What the kernel holds unsent for one of them, at the most: the gateway's send buffer as the kernel doubles it, and the
/// peer's receive buffer is its own.
const KERNEL: u64 = 1024 * 1024;

/// The peer's window is shut: what it asked for stands unsent. It is closed as slow, and its memory serves the next.
#[tokio::test]
async fn a_shut_window_is_closed_with_4004_and_costs_a_bounded_amount() -> TestResult {
    let server = Server::start(Options::default().heartbeat(700, 2_000)).await?;
    let (author, reader) = (fresh("author"), fresh("reader"));
    let mut authors = Device::connect(&server.at, Transport::Tcp, &author, "d").await?;
    let mut conversation_id = 0;
    for n in 0..100 {
        let body = "z".repeat(6 * 1024);
        conversation_id = authors.send(&reader, &format!("c-{n}"), &body).await?.conversation_id;
    }
    let before = server.process().resident()?;
    let first = shut_windows(&server, &reader, conversation_id, SHUT as f64).await?;
    let second = shut_windows(&server, &reader, conversation_id, 2.0 * SHUT as f64).await?;
    let mib = |bytes: u64| bytes / (1024 * 1024);
    figure(&format!(
        "shut windows: {SHUT} peers with {ANSWERS} answers of 600 KiB unread: closed with 4004 after {:.1} s; at most {} KiB \
         unsent in the kernel for one; {} MiB resident before, {} at the peak, {} after, {} at the peak of a second round",
        first.closed.as_secs_f64(),
        first.unsent / 1024,
        mib(before),
        mib(first.peak),
        mib(first.after),
        mib(second.peak)
    ));
    ensure!(first.unsent > 0 && first.unsent <= KERNEL, "{} bytes in the kernel", first.unsent);
    // Of each peer three answers exist, two that are fetched and one that is unsent: each at most 1 MiB, as rows, as a frame, and
    // twice on its way between roles.
    let bound = SHUT as u64 * 3 * 4 * 1024 * 1024;
    ensure!(first.peak - before < bound, "{} MiB", mib(first.peak - before));
    ensure!(second.peak < first.peak + bound / 4, "a second round takes {} MiB", mib(second.peak));
    Ok(())
}

struct Round {
    closed: Duration,
    peak: u64,
    after: u64,
    unsent: u64,
}

async fn shut_windows(
    server: &Server,
    reader: &str,
    conversation_id: u64,
    all: f64,
) -> anyhow::Result<Round> {
    let mut shut = Vec::new();
    for n in 0..SHUT {
        let mut device =
            Device::connect(&server.at, Transport::ALL[n % 3], reader, &format!("d-{n}")).await?;
        let history = HistoryRequest { conversation_id, limit: 200, ..Default::default() };
        let ask = |id| Frame::Request(Request { id, method: Some(Method::History(history)) });
        device.raw.send_all((1..=ANSWERS).map(ask).collect()).await?;
        shut.push(device);
    }
    let (begun, mut peak, mut most) = (Instant::now(), 0, 0);
    wait::until("all are closed as slow", || {
        peak = peak.max(server.process().resident().unwrap_or(0));
        most = most.max(unsent(&server.at.gateway).unwrap_or(0));
        async { Ok((closed(server, "4004").await? >= all).then_some(())) }
    })
    .await?;
    let closed = begun.elapsed();
    nobody_left(server).await?;
    Ok(Round { closed, peak, after: server.process().resident()?, unsent: most })
}
