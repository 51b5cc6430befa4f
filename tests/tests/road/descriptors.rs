//! Descriptors run out: who is connected is served, the listener waits without spinning and recovers, and says so once.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::ensure;
use berth_proto::client::{client_frame, server_frame::Frame};
use berth_tests::{
    TestResult,
    device::Device,
    figure, fresh,
    hostile::{descriptors, processor_time},
    metrics::Scrape,
    raw::Transport,
    server::{Options, Server},
    tokens::{sign, ticket},
    wait,
};
use tokio::net::TcpStream;

/// What the log says when it begins.
const STARVED: &str = "new connections wait: accept fails";

#[tokio::test]
async fn without_descriptors_the_connected_are_served_and_the_listener_waits_and_recovers() -> TestResult {
    let server = Server::start(Options::default().expect_warning(STARVED)).await?;
    let process = server.process().id();
    let mut alice = Device::connect(&server.at, Transport::WsJson, &fresh("alice"), "d").await?;
    let bob = fresh("bob");
    let mut bobs = Device::connect(&server.at, Transport::Tcp, &bob, "d").await?;
    let idle = spent(process).await?;

    // As if something else in the process had taken them: the gateway had counted on 20,000.
    limit(process, 256)?;
    let mut crowd = Vec::new();
    for _ in 0..400 {
        crowd.push(TcpStream::connect(&server.at.gateway).await?);
    }
    wait::until("accept fails", || async { Ok(server.process().log().contains(STARVED).then_some(())) })
        .await?;
    let starved = spent(process).await?;
    let open = descriptors(process)?;
    for n in 0..20 {
        alice.raw.send(client_frame::Frame::Heartbeat(Default::default())).await?;
        loop {
            if let Frame::HeartbeatAck(_) = alice.raw.frame().await? {
                break;
            }
        }
        alice.send(&bob, &format!("c-{n}"), "still here").await?;
    }
    ensure!(bobs.receive(20).await?.len() == 20, "who is connected is served");

    limit(process, 20_000)?;
    drop(crowd);
    Device::connect(&server.at, Transport::WsProto, &fresh("carol"), "d").await?;
    // The admin port had no descriptors either.
    let failed = Scrape::fetch(&server.at.admin).await?.sum("berth_gateway_accept_errors_total", &[]);
    let lines = server.process().log().lines();
    let said = lines.iter().filter(|line| line.contains(STARVED)).count();
    let workers = std::thread::available_parallelism()?.get();
    figure(&format!(
        "descriptors: at 256 with 400 waiting {open} open, {failed} failed accepts, logged {said} times; processor {:.1}% of \
         a core against {:.1}% idle",
        100.0 * starved,
        100.0 * idle
    ));
    ensure!((1..=workers).contains(&said), "each of {workers} workers says it once, not {said} times");
    ensure!(starved < 0.2, "{:.0}% of a core: the listener spins", 100.0 * starved);
    Ok(())
}

/// The share of a core a process uses over some seconds. Measured over time on purpose: spinning is work without an event.
async fn spent(process: u32) -> anyhow::Result<f64> {
    let (begun, before) = (Instant::now(), processor_time(process)?);
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok((processor_time(process)? - before).as_secs_f64() / begun.elapsed().as_secs_f64())
}

fn limit(process: u32, descriptors: u64) -> anyhow::Result<()> {
    let limit = format!("--nofile={descriptors}:20000");
    let status = Command::new("prlimit").args(["--pid", &process.to_string(), &limit]).status()?;
    ensure!(status.success(), "prlimit: {status}");
    Ok(())
}

#[tokio::test]
async fn a_server_started_with_256_descriptors_keeps_some_for_itself_and_tells_the_rest_to_go() -> TestResult
{
    let server = Server::start(Options::default().descriptors(256)).await?;
    let limited = |limit: &'static str| {
        let admin = server.at.admin.clone();
        async move {
            Ok::<_, anyhow::Error>(
                Scrape::fetch(&admin).await?.sum("berth_gateway_limited_total", &[("limit", limit)]),
            )
        }
    };
    let bob = fresh("bob");
    let mut alice = honest(&server, Transport::Tcp, &fresh("alice")).await?;
    let mut crowd = Vec::new();
    for _ in 0..400 {
        crowd.push(TcpStream::connect(&server.at.gateway).await?);
    }
    wait::until("those who say nothing give way", || async {
        Ok((limited("pending_handshakes").await? >= 300.0).then_some(()))
    })
    .await?;
    // Honest ones come in beside them, until it is full; those above are told so.
    let mut devices = Vec::new();
    let refused = loop {
        ensure!(devices.len() < 256, "more connections than descriptors");
        let user = fresh("honest");
        match honest(&server, Transport::ALL[devices.len() % 3], &user).await {
            Ok(device) => devices.push(device),
            Err(refused) => break refused,
        }
    };
    let open = descriptors(server.process().id())?;
    // The admin port still has descriptors.
    ensure!(limited("capacity").await? > 0.0, "refused for another reason: {refused:#}");
    alice.send(&bob, "c-1", "still here").await?;
    let held = devices.len();
    drop((crowd, devices));
    let again = wait::until("others are let in again", || async {
        Ok(honest(&server, Transport::WsJson, &bob).await.ok())
    });
    ensure!(again.await?.receive(1).await?.len() == 1);
    figure(&format!(
        "descriptors: started with 256: {held} came in beside 400 who say nothing, {open} descriptors open when full"
    ));
    Ok(())
}

/// A device at the gateway that the crowd is at.
async fn honest(server: &Server, transport: Transport, user: &str) -> anyhow::Result<Device> {
    Device::connect_to(&server.at.gateway, transport, &sign(&ticket(user, "d", "gw-1")), "d").await
}
