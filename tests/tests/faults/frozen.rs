//! A gateway and a scheduler that stand still (SIGSTOP) for 10 s, longer than a lease and than a heartbeat's timeout, and go on.

use std::time::{Duration, Instant};

use berth_client::Client;
use berth_proto::{
    client::{Heartbeat, client_frame::Frame},
    schedule::ScheduleRequest,
};
use berth_tests::{
    TestResult,
    device::{Device, schedule},
    ensure, figure, fresh,
    server::{Role, Server},
};

use crate::{
    BUSY, LEASE, LEASE_TICK, LINK_BACK, all_online, at_gateway, crowd::sdk_options,
    options_for_an_ended_lease,
};

/// Longer than [`LEASE`] and [`TIMEOUT_MS`].
const FROZEN: Duration = Duration::from_secs(10);
const INTERVAL_MS: u32 = 2_000;
const TIMEOUT_MS: u32 = 5_000;
/// The clients of the frozen gateway.
const HELD: usize = 10;
/// A scheduler that does not answer is given up by the SDK after 3 s, and the next one asked after up to 1 s more.
const SDK_FAILS_OVER: Duration = Duration::from_secs(4);

struct Held {
    devices: Vec<Device>,
    users: Vec<String>,
}

impl Held {
    async fn connect(server: &Server, gateway: usize) -> anyhow::Result<Self> {
        let (mut devices, mut users) = (Vec::new(), Vec::new());
        for _ in 0..HELD {
            let user = fresh("held");
            devices.push(at_gateway(server, gateway, &user, "d").await?);
            users.push(user);
        }
        Ok(Self { devices, users })
    }

    /// What clients do that do not know: their signs of life wait in the kernel.
    async fn say_alive(&mut self) -> TestResult {
        for device in &mut self.devices {
            device.raw.send(Frame::Heartbeat(Heartbeat {})).await?;
        }
        Ok(())
    }
}

/// Looks until the users are online or not, as `wanted`, with their signs of life; how long that took.
async fn until_online(watcher: &mut Device, held: &mut Held, wanted: bool) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut said = begun;
    while all_online(watcher, &held.users).await? != wanted {
        ensure!(begun.elapsed() < LEASE + LEASE_TICK + LINK_BACK + BUSY, "not online = {wanted}");
        if said.elapsed() > Duration::from_millis(INTERVAL_MS.into()) {
            said = Instant::now();
            held.say_alive().await?;
        }
    }
    Ok(begun.elapsed())
}

async fn a_frozen_gateway(server: &Server) -> TestResult {
    let mut held = Held::connect(server, 0).await?;
    let mut watcher = at_gateway(server, 1, &fresh("watcher"), "d").await?;
    ensure!(all_online(&mut watcher, &held.users).await?);
    server.freeze(Role::Gateway(0))?;
    let frozen = Instant::now();
    let offline = until_online(&mut watcher, &mut held, false).await?;
    figure(&format!("gateway frozen, lease {LEASE:?}: its users offline after {} ms", offline.as_millis()));
    ensure!(offline < LEASE + LEASE_TICK + BUSY, "{offline:?}");
    watcher.send(&held.users[0], "c-1", "while you were away").await?;
    while frozen.elapsed() < FROZEN {
        held.say_alive().await?;
        watcher.idle(Duration::from_secs(1)).await?;
    }

    server.thaw(Role::Gateway(0))?;
    let back = until_online(&mut watcher, &mut held, true).await?;
    figure(&format!("gateway frozen {FROZEN:?} and back: its users online after {} ms", back.as_millis()));
    ensure!(back < LINK_BACK + BUSY, "{back:?}");
    for device in &mut held.devices {
        // The same connection: nobody was silent, whatever the gateway's clock says.
        device.heartbeat().await?;
    }
    ensure!(held.devices[0].receive(1).await?[0].client_msg_id == "c-1");
    Ok(())
}

async fn a_frozen_scheduler(server: &Server) -> TestResult {
    server.freeze(Role::Scheduler(0))?;
    let asked = Instant::now();
    let mut options = sdk_options(&server.at, &fresh("sdk"));
    options.attempt_timeout = Duration::from_secs(3);
    let (client, _events) = Client::connect(options).await?;
    let took = asked.elapsed();
    figure(&format!("scheduler frozen: the SDK connected by the other one after {} ms", took.as_millis()));
    ensure!(took < SDK_FAILS_OVER + BUSY, "{took:?}");
    client.close().await;

    server.thaw(Role::Scheduler(0))?;
    let thawed = Instant::now();
    // It heard nobody for longer than gateways take to be dead, and knows that this was its own doing.
    while thawed.elapsed() < Duration::from_secs(2) {
        let request = ScheduleRequest { device_id: "d".to_owned(), ..Default::default() };
        let answer = schedule(&server.at, &fresh("user"), &request).await?;
        ensure!(!answer.endpoints.is_empty(), "{answer:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_and_a_scheduler_that_froze_go_on_where_they_were() -> TestResult {
    let server = Server::start(options_for_an_ended_lease().heartbeat(INTERVAL_MS, TIMEOUT_MS)).await?;
    tokio::try_join!(a_frozen_gateway(&server), a_frozen_scheduler(&server))?;
    server.ready().await
}
