//! Logic that is slow (it stands still for 2 s again and again) or frozen for longer than a lease, under load: what waits is
//! bounded, who waits is told, nothing is acknowledged that is not kept, and nobody goes offline for it.

use std::time::{Duration, Instant};

use berth_proto::limits;
use berth_tests::{
    TestResult,
    device::{Device, send_to},
    ensure, figure, fresh,
    history::check,
    load::{Load, Shape},
    server::{Role, Server},
};

use crate::{
    BUSY, LEASE, LEASE_TICK, LINK_LOST, PATIENCE, REQUEST_DEADLINE, at_gateway, check_clean, metric, online,
    options, refused_send,
};

const SHAPE: Shape = Shape { senders: 16, receivers: 4 };
/// Shorter than it takes a gateway to give its link up: requests wait, and are answered.
const SLOW: Duration = Duration::from_secs(2);
const SLOW_ROUNDS: u64 = 3;
/// Longer than [`LEASE`].
const FROZEN: Duration = Duration::from_secs(10);

/// A client that asks for as much as it may at once, and does not wait.
async fn flood(device: &mut Device) -> TestResult {
    for n in 0..2 * limits::IN_FLIGHT {
        device.start(send_to("nobody", &format!("flood-{n}"), "x")).await?;
    }
    Ok(())
}

/// The gateway's count of what waits for logic.
async fn in_flight(server: &Server) -> anyhow::Result<f64> {
    metric(server, Role::Gateway(0), "berth_gateway_requests_in_flight").await
}

async fn slow_rounds(server: &Server, load: &Load) -> TestResult {
    let mut flooding = at_gateway(server, 0, &fresh("flood"), "d").await?;
    let sessions = metric(server, Role::Gateway(0), "berth_gateway_sessions").await?;
    let mut most: f64 = 0.0;
    for round in 0..SLOW_ROUNDS {
        load.more_acked(50).await?;
        server.freeze(Role::Logic)?;
        let frozen = Instant::now();
        if round == 0 {
            flood(&mut flooding).await?;
        }
        while frozen.elapsed() < SLOW {
            let waiting = in_flight(server).await?;
            ensure!(
                waiting <= (sessions + 64.0) * limits::IN_FLIGHT as f64,
                "{waiting} of {sessions} sessions"
            );
            most = most.max(waiting);
            flooding.idle(Duration::from_millis(100)).await?;
        }
        server.thaw(Role::Logic)?;
    }
    figure(&format!("logic still for {SLOW:?}: at most {most} requests waited at a gateway"));
    ensure!(most > 0.0, "nothing waited");
    // Each of the flood was answered: the last ones with RESOURCE_EXHAUSTED, at once.
    let mut refused = 0;
    for id in 1..=u32::try_from(2 * limits::IN_FLIGHT)? {
        refused += u32::from(flooding.finish(id).await.is_err());
    }
    ensure!((1..=limits::IN_FLIGHT).contains(&(refused as usize)), "{refused} refused");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logic_that_is_slow_or_frozen_loses_nothing_and_nobody() -> TestResult {
    let server = Server::start(options()).await?;
    let mut keepers = Vec::new();
    let mut users = Vec::new();
    for n in 0..8 {
        let user = fresh("keeper");
        keepers.push(at_gateway(&server, n % 2, &user, "d").await?);
        users.push(user);
    }
    let load = Load::start(&server.at, SHAPE, &fresh("slow"));
    slow_rounds(&server, &load).await?;

    server.freeze(Role::Logic)?;
    let frozen = Instant::now();
    let mut longest = Duration::ZERO;
    while frozen.elapsed() < FROZEN {
        for keeper in &mut keepers {
            let asked = Instant::now();
            let error = refused_send(keeper, "nobody", "c-1").await?;
            ensure!(error.code == "UNAVAILABLE", "{error:?}");
            longest = longest.max(asked.elapsed());
            // Connections live on without logic.
            keeper.heartbeat().await?;
        }
        keepers[0].idle(Duration::from_millis(200)).await?;
    }
    figure(&format!("logic frozen for {FROZEN:?}: a send refused after {} ms at most", longest.as_millis()));
    ensure!(longest < (LINK_LOST + BUSY).min(REQUEST_DEADLINE + BUSY), "{longest:?}");
    server.thaw(Role::Logic)?;
    let thawed = Instant::now();
    server.ready().await?;
    figure(&format!("logic back: both gateways serve again after {} ms", thawed.elapsed().as_millis()));
    // Nobody could renew a lease while logic itself was away: for a whole lease from its return nobody goes offline.
    while thawed.elapsed() < LEASE + 2 * LEASE_TICK {
        let (first, all) = (&mut keepers[0], users.len());
        ensure!(online(first, &users).await? == all, "{:?} after its return", thawed.elapsed());
        first.idle(Duration::from_millis(100)).await?;
    }
    ensure!(metric(&server, Role::Logic, "berth_logic_leases_expired_total").await? == 0.0);
    for keeper in &mut keepers {
        keeper.send("nobody", "c-1", "x").await?;
    }
    load.more_acked(50).await?;
    check_clean("logic still for 2 s three times, and for 10 s", &check(&load.finish(PATIENCE).await?))
}
