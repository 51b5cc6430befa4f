//! Heartbeats: what they answer, who is reaped without them, and what else counts as life.

use std::time::Duration;

use anyhow::{Context, ensure};
use berth_tests::{
    TestResult,
    device::Device,
    fresh,
    metrics::Scrape,
    raw::{Raw, Transport},
    server::{Options, Server},
    wait,
};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn an_ack_carries_the_inbox_seq() -> TestResult {
    let server = Server::shared().await?;
    for transport in Transport::ALL {
        let (alice, bob) = (fresh("alice"), fresh("bob"));
        let mut alices = Device::connect(&server.at, transport, &alice, "d").await?;
        let mut bobs = Device::connect(&server.at, transport, &bob, "d").await?;
        ensure!(bobs.heartbeat().await? == 0);
        for n in 1..=3 {
            alices.send(&bob, &format!("c-{n}"), "x").await?;
        }
        // Even had every notify been lost: two heartbeats tell, once the rows are written.
        bobs.notified(3).await?;
        bobs.heartbeat().await?;
        ensure!(bobs.heartbeat().await? == 3);
    }
    Ok(())
}

/// The heartbeat timeout of these tests: short, yet many times what a busy machine delays a lively client.
const TIMEOUT_MS: u32 = 3_000;

#[tokio::test]
async fn a_silent_peer_is_reaped_and_a_lively_one_is_not() -> TestResult {
    let server = Server::start(Options::default().heartbeat(1_000, TIMEOUT_MS)).await?;
    let dead = fresh("dead");
    let mut watcher = Device::connect(&server.at, Transport::Tcp, &fresh("watcher"), "d").await?;
    ensure!(watcher.welcome.heartbeat_interval_ms == 1_000, "{:?}", watcher.welcome);
    let mut pinger = Raw::connect(Transport::WsProto, &server.at.gateway).await?;
    let ticket = berth_tests::tokens::ticket(&fresh("pinger"), "d", "gw-1");
    pinger.send(berth_tests::device::hello(&berth_tests::tokens::sign(&ticket), "d")).await?;
    pinger.frame().await?;

    let mut silent = Vec::new();
    for (transport, device) in Transport::ALL.into_iter().zip(["a", "b", "c"]) {
        silent.push((transport, Device::connect(&server.at, transport, &dead, device).await?));
    }
    let online = watcher.presence(&[&dead]).await?;
    ensure!(online[0].devices.len() == 3, "{online:?}");

    let kept_alive = async {
        loop {
            watcher.heartbeat().await?;
            pinger.send_message(Message::Ping(Vec::new().into())).await?;
            let user = &watcher.presence(&[&dead]).await?[0];
            if !user.online {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    wait::within("the silent ones turn offline", kept_alive).await??;
    for (transport, mut device) in silent {
        ensure!(device.ending().await?.code(transport)? == 4003, "{transport:?}");
    }
    watcher.heartbeat().await?;
    ensure!(pinger.next_within(Duration::from_millis(1)).await?.is_none(), "pings are life");
    let scrape = Scrape::fetch(&server.at.admin).await?;
    ensure!(scrape.sum("berth_gateway_heartbeat_timeouts_total", &[]) == 3.0);
    Ok(())
}

/// A peer whose process is stopped keeps its socket open and acknowledges at the TCP level: only heartbeats tell.
#[tokio::test]
async fn nothing_is_lost_for_a_ghost_that_comes_back() -> TestResult {
    let server = Server::start(Options::default().heartbeat(1_000, TIMEOUT_MS)).await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut ghost = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    let mut alices = Device::connect(&server.at, Transport::Tcp, &alice, "d").await?;
    for n in 0..20 {
        alices.send(&bob, &format!("c-{n}"), "x").await?;
    }
    let code = ghost.ending().await?.code(Transport::WsJson)?;
    ensure!(code == 4003, "{code}");
    let mut back = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    ensure!(back.receive(20).await?.len() == 20);
    Ok(())
}

#[tokio::test]
async fn who_never_says_hello_is_closed_with_4008() -> TestResult {
    let server = Server::shared().await?;
    let mut waiting = Vec::new();
    for transport in Transport::ALL {
        let mut raw = Raw::connect(transport, &server.at.gateway).await?;
        if transport == Transport::Tcp {
            raw.send_unframed(&[0, 0, 0, 9, 0x0a]).await?; // a frame that is never complete
        }
        waiting.push(tokio::spawn(async move { anyhow::Ok((transport, raw.ending().await?)) }));
    }
    // Not even the first bytes: nothing says which way it speaks, so it is only closed.
    let mut mute = tokio::net::TcpStream::connect(&server.at.gateway).await?;
    for ended in waiting {
        let (transport, ending) = ended.await??;
        let code = ending.code(transport).with_context(|| format!("{transport:?}"))?;
        ensure!(code == 4008, "{transport:?} {ending:?}");
    }
    let mut rest = Vec::new();
    let ended = tokio::io::AsyncReadExt::read_to_end(&mut mute, &mut rest);
    // A reset is an end as well.
    let _ = wait::within("the mute connection ends", ended).await?;
    Ok(())
}
