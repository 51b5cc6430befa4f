//! The same user and device twice: the older connection is closed with 4504, whatever ways the two speak.

use anyhow::ensure;
use berth_tests::{TestResult, device::Device, fresh, raw::Transport, server::Server};

#[tokio::test]
async fn the_older_connection_is_closed_with_4504() -> TestResult {
    let server = Server::shared().await?;
    let pairs = [
        (Transport::WsJson, Transport::Tcp),
        (Transport::WsProto, Transport::WsJson),
        (Transport::Tcp, Transport::WsProto),
    ];
    for (old, new) in pairs {
        let alice = fresh("alice");
        let mut older = Device::connect(&server.at, old, &alice, "phone").await?;
        let mut other_device = Device::connect(&server.at, old, &alice, "laptop").await?;
        let mut newer = Device::connect(&server.at, new, &alice, "phone").await?;
        ensure!(newer.welcome.session_id != older.welcome.session_id, "a session of its own");
        ensure!(older.ending().await?.code(old)? == 4504);
        newer.heartbeat().await?;
        other_device.heartbeat().await?;

        // Closing the old one must not have taken the new one's route.
        let bob = fresh("bob");
        let mut bobs = Device::connect(&server.at, old, &bob, "d").await?;
        bobs.send(&alice, "c", "still there?").await?;
        newer.notified(1).await?;
        other_device.notified(1).await?;
        let online = &bobs.presence(&[&alice]).await?[0];
        ensure!(online.online && online.devices.len() == 2, "{online:?}");
    }
    Ok(())
}

#[tokio::test]
async fn of_many_connects_at_once_the_last_one_stays() -> TestResult {
    let server = Server::shared().await?;
    let alice = fresh("alice");
    let mut connects = tokio::task::JoinSet::new();
    for n in 0..12 {
        let (at, alice) = (server.at.clone(), alice.clone());
        connects.spawn(async move { Device::connect(&at, Transport::ALL[n % 3], &alice, "phone").await });
    }
    let mut devices = Vec::new();
    while let Some(device) = connects.join_next().await {
        devices.extend(device?.ok()); // one that was replaced before its welcome
    }
    let bob = fresh("bob");
    let mut bobs = Device::connect(&server.at, Transport::Tcp, &bob, "d").await?;
    bobs.send(&alice, "c", "who is it?").await?;
    let mut alive = Vec::new();
    for mut device in devices {
        match device.notified(1).await {
            Ok(()) => alive.push(device),
            Err(_) => continue, // it ended: the reader of a replaced connection sees nothing else
        }
    }
    ensure!(alive.len() == 1, "{} of the device's connections live", alive.len());
    alive[0].heartbeat().await?;
    ensure!(bobs.presence(&[&alice]).await?[0].devices.len() == 1);
    Ok(())
}
