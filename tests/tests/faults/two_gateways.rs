//! A device that connects to one gateway and then to another: the first connection is closed with 4504, whichever of the two
//! logic hears of first, and what the first one's gateway says later touches nothing.

use std::time::Duration;

use berth_tests::{
    TestResult,
    device::{Device, hello},
    ensure, fresh,
    raw::{Raw, Transport},
    server::{Role, Server},
    tokens, wait,
};

use crate::{at_gateway, options};

/// Longer than what logic takes for the order of arrival (250 ms), shorter than it takes a link to be given up.
const HELD_UP: Duration = Duration::from_millis(600);

/// Says hello at a gateway, and does not wait for the welcome.
async fn knock(server: &Server, gateway: usize, user: &str) -> anyhow::Result<Raw> {
    let mut raw = Raw::connect(Transport::Tcp, &server.at.gateways[gateway]).await?;
    let ticket = tokens::sign(&tokens::ticket(user, "phone", &format!("gw-{}", gateway + 1)));
    raw.send(hello(&ticket, "phone")).await?;
    Ok(raw)
}

/// The device's one session is this one: it is told of messages, answers, and is all there is of the user.
async fn check_is_the_one(device: &mut Device, user: &str, watcher: &mut Device) -> TestResult {
    let id = fresh("c");
    watcher.send(user, &id, "which one?").await?;
    let told = wait::within("the message", async {
        loop {
            if device.receive(1).await?.iter().any(|message| message.client_msg_id == id) {
                return anyhow::Ok(());
            }
        }
    });
    told.await??;
    device.heartbeat().await?;
    let presence = &watcher.presence(&[user]).await?[0];
    ensure!(presence.online && presence.devices.len() == 1, "{presence:?}");
    Ok(())
}

async fn in_order(server: &Server, first: usize, watcher: &mut Device) -> TestResult {
    let user = fresh("alice");
    let mut older = at_gateway(server, first, &user, "phone").await?;
    let mut newer = at_gateway(server, 1 - first, &user, "phone").await?;
    ensure!(older.ending().await?.code(Transport::Tcp)? == 4504);
    // The older one's gateway has said its close by the time that one is gone.
    drop(older);
    check_is_the_one(&mut newer, &user, watcher).await
}

/// The first gateway's link is cut, so logic hears of the second connection first.
async fn held_up_by_a_network(server: &Server, watcher: &mut Device) -> TestResult {
    let user = fresh("alice");
    server.cut(0, Role::Logic)?;
    let mut older = knock(server, 0, &user).await?;
    // Not to wait for something: this is by how much the first is held up.
    tokio::time::sleep(HELD_UP).await;
    let mut newer = at_gateway(server, 1, &user, "phone").await?;
    server.heal(0, Role::Logic)?;
    let ending = older.ending().await?;
    ensure!(ending.code(Transport::Tcp)? == 4504, "{ending:?}");
    check_is_the_one(&mut newer, &user, watcher).await
}

/// Both openings wait for a logic that stands still; which it reads first is chance.
async fn held_up_by_logic(server: &Server, first: usize, watcher: &mut Device) -> TestResult {
    let user = fresh("alice");
    server.freeze(Role::Logic)?;
    let mut older = knock(server, first, &user).await?;
    tokio::time::sleep(HELD_UP).await;
    let ticket = tokens::sign(&tokens::ticket(&user, "phone", &format!("gw-{}", 2 - first)));
    let gateway = server.at.gateways[1 - first].clone();
    let newer =
        tokio::spawn(async move { Device::connect_to(&gateway, Transport::Tcp, &ticket, "phone").await });
    tokio::time::sleep(HELD_UP).await;
    server.thaw(Role::Logic)?;
    let mut newer = newer.await??;
    let ending = older.ending().await?;
    ensure!(ending.code(Transport::Tcp)? == 4504, "{ending:?}");
    check_is_the_one(&mut newer, &user, watcher).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_device_at_two_gateways_the_one_that_came_last_stays() -> TestResult {
    let server = Server::start(options().links_that_can_be_cut()).await?;
    let mut watcher = at_gateway(&server, 1, &fresh("watcher"), "d").await?;
    for first in [0, 1] {
        in_order(&server, first, &mut watcher).await?;
    }
    held_up_by_a_network(&server, &mut watcher).await?;
    for first in [0, 1, 0] {
        held_up_by_logic(&server, first, &mut watcher).await?;
    }
    Ok(())
}
