//! A graceful stop: everybody is told when to come back, what was acknowledged is there after it.

use anyhow::ensure;
use berth_proto::client::client_frame::Frame;
use berth_tests::{
    TestResult,
    device::{Device, send_to},
    fresh,
    raw::Transport,
    server::{Options, Server},
};

const SPREAD_MS: u32 = 1_000;

#[tokio::test]
async fn sigterm_tells_everybody_to_come_back_spread_out() -> TestResult {
    let options = Options::default().env("BERTH_GATEWAY__DRAIN_SPREAD_MS", SPREAD_MS);
    let mut server = Server::start(options).await?;
    let mut devices = Vec::new();
    for n in 0..30 {
        devices.push(Device::connect(&server.at, Transport::ALL[n % 3], &fresh("user"), "d").await?);
    }
    let bob = fresh("bob");
    let sent = devices[0].send(&bob, "c-1", "before the stop").await?;
    let epoch = devices[0].welcome.inbox_epoch;
    server.sigterm()?;
    let mut waits = std::collections::BTreeSet::new();
    for mut device in devices {
        let transport = device.raw.transport;
        let ending = device.ending().await?;
        ensure!(ending.code(transport)? == 4001, "{transport:?}: {ending:?}");
        let wait = ending.disconnect.map_or(0, |disconnect| disconnect.retry_after_ms);
        ensure!(wait <= SPREAD_MS, "{wait} ms");
        waits.insert(wait);
    }
    ensure!(waits.len() > 5, "30 clients come back at {waits:?}");
    ensure!(server.ended().await? == Some(0), "exit code 0");

    server.restart(&[]).await?;
    let mut bobs = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    ensure!(bobs.welcome.inbox_epoch == epoch, "a clean stop rolls nothing back");
    let got = bobs.receive(1).await?;
    ensure!(got[0].message_id == sent.message_id, "{got:?}");
    Ok(())
}

#[tokio::test]
async fn sends_in_flight_at_the_stop_are_answered_or_absent_never_lied_about() -> TestResult {
    let mut server = Server::start(Options::default()).await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut alices = Device::connect(&server.at, Transport::Tcp, &alice, "d").await?;
    alices.send(&bob, "first", "x").await?;
    let ids: Vec<_> = (0..16).map(|n| format!("c-{n}")).collect();
    let frames = (100..).zip(&ids).map(|(id, name)| {
        let method = Some(send_to(&bob, name, "x"));
        Frame::Request(berth_proto::client::Request { id, method })
    });
    alices.raw.send_all(frames.collect()).await?;
    server.sigterm()?;
    let mut acked = vec!["first".to_owned()];
    for (id, name) in (100..).zip(&ids) {
        if alices.finish(id).await.is_ok() {
            acked.push(name.clone());
        }
    }
    server.ended().await?;
    server.restart(&[]).await?;
    let mut bobs = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    let got = bobs.receive(acked.len()).await?;
    let there: Vec<_> = got.into_iter().map(|message| message.client_msg_id).collect();
    ensure!(acked.iter().all(|id| there.contains(id)), "acked {acked:?}, there {there:?}");
    Ok(())
}
