//! Who is online, with which devices.

use anyhow::ensure;
use berth_proto::client::Hello;
use berth_proto::client::client_frame::Frame;
use berth_tests::{
    TestResult,
    device::Device,
    fresh,
    raw::{Raw, Transport},
    server::Server,
    tokens, wait,
};

#[tokio::test]
async fn presence_follows_connects_and_closes() -> TestResult {
    let server = Server::shared().await?;
    let (watcher, alice, nobody) = (fresh("watcher"), fresh("alice"), fresh("nobody"));
    let mut watching = Device::connect(&server.at, Transport::WsJson, &watcher, "d").await?;
    let users = watching.presence(&[&alice, &nobody, &watcher]).await?;
    let online: Vec<_> = users.iter().map(|u| (u.user_id.as_str(), u.online)).collect();
    ensure!(
        online == [(alice.as_str(), false), (nobody.as_str(), false), (watcher.as_str(), true)],
        "{users:?}"
    );

    let mut phone = Raw::connect(Transport::Tcp, &server.at.gateway).await?;
    let ticket = tokens::sign(&tokens::ticket(&alice, "phone", "gw-1"));
    let (device_id, platform) = ("phone".to_owned(), "ios".to_owned());
    phone.send(Frame::Hello(Hello { ticket, device_id, platform, ..Default::default() })).await?;
    phone.frame().await?;
    // Welcome comes after the route is written: no waiting.
    let user = watching.presence(&[&alice]).await?.remove(0);
    ensure!(user.online && user.devices.len() == 1, "{user:?}");
    ensure!(user.devices[0].device_id == "phone" && user.devices[0].platform == "ios", "{user:?}");

    let laptop = Device::connect(&server.at, Transport::WsProto, &alice, "laptop").await?;
    ensure!(watching.presence(&[&alice]).await?[0].devices.len() == 2);
    drop(phone);
    let only_laptop = async {
        while watching.presence(&[&alice]).await?[0].devices.len() != 1 {}
        anyhow::Ok(())
    };
    wait::within("the phone's close is noticed", only_laptop).await??;
    drop(laptop);
    let offline = async {
        while watching.presence(&[&alice]).await?[0].online {}
        anyhow::Ok(())
    };
    wait::within("alice is offline", offline).await??;
    ensure!(watching.presence(&[]).await?.is_empty(), "nobody asked for");
    Ok(())
}
