//! Operators move live connections: a gateway is drained under load, while schedulers and the gateway itself are killed; gateways
//! are evened out; users go home, and wait for it or are served elsewhere while it is down.

use std::time::{Duration, Instant};

use anyhow::Context;
use berth_proto::schedule::ScheduleRequest;
use berth_tests::{
    TestResult,
    ctl::{ctl, json},
    device::{Device, schedule},
    ensure, figure, fresh,
    history::check,
    load::{Load, Shape},
    raw::{Ending, Transport},
    server::{Options, Role, Server},
    tokens, wait,
};
use serde_json::Value;

use crate::{PATIENCE, at_gateway, check_clean, crowd::Crowd, options};

const SHAPE: Shape = Shape { senders: 6, receivers: 3 };
const CROWD: usize = 40;

/// The drain of a gateway as a scheduler tells it; none: it is not drained.
async fn drain_of(server: &Server, scheduler: usize, gateway: &str) -> anyhow::Result<Option<Value>> {
    let status = json(server, scheduler, &["drain", "status", gateway]).await?;
    Ok(status["drains"].as_array().and_then(|drains| drains.first().cloned()))
}

async fn drain_is(server: &Server, scheduler: usize, gateway: &str, phase: &str) -> anyhow::Result<Value> {
    wait::until_within(&format!("the drain of {gateway} is {phase}"), PATIENCE, || async {
        // A scheduler that was killed may not answer yet.
        let drain = drain_of(server, scheduler, gateway).await.ok().flatten();
        Ok(drain.filter(|drain| drain["phase"] == phase))
    })
    .await
}

async fn draining(server: &Server, gateway: usize) -> anyhow::Result<bool> {
    Ok(server.readyz(Role::Gateway(gateway)).await?.is_err_and(|reason| reason.contains("draining")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_loses_nothing_and_outlives_everybody() -> TestResult {
    let mut server = Server::start(options().expect_warning("its lease")).await?;
    let crowd = Crowd::connect(&server.at, CROWD, &fresh("crowd")).await?;
    let load = Load::start(&server.at, SHAPE, &fresh("drain"));
    load.more_acked(100).await?;

    let plan = wait::until("its connections are reported", || async {
        let plan = json(&server, 1, &["drain", "start", "gw-1", "--rate", "10/s", "--dry-run"]).await?;
        Ok(Some(plan["dryRun"].clone()).filter(|plan| plan["connections"].as_u64() > Some(0)))
    });
    let plan = plan.await?;
    ensure!(plan["to"][0]["gatewayId"] == "gw-2" && plan["withoutPlace"] == 0, "{plan}");
    ensure!(
        drain_of(&server, 1, "gw-1").await?.is_none() && !draining(&server, 0).await?,
        "it changed something"
    );

    let (there, losses) = (crowd.at("gw-1") as u64, crowd.losses());
    let started = Instant::now();
    let arguments = ["--rate", "5/s", "--spread", "2s", "--wait-lb", "1s", "--deadline", "2m"];
    let (code, said) = ctl(&server, 0, &[&["drain", "start", "gw-1"], &arguments[..]].concat()).await?;
    ensure!(code == Some(0), "{code:?} {said}");
    let (code, said) = ctl(&server, 0, &["drain", "start", "gw-1"]).await?;
    ensure!(code == Some(1) && said.contains("already"), "{code:?} {said}");
    let (code, said) = ctl(&server, 0, &["drain", "start", "gw-9"]).await?;
    ensure!(code == Some(1) && said.contains("gw-1, gw-2"), "{code:?} {said}");

    // Both schedulers are killed while it goes on: what was ordered is known to those that come after them.
    drain_is(&server, 1, "gw-1", "moving").await?;
    for scheduler in [0, 1] {
        server.kill9_role(Role::Scheduler(scheduler));
    }
    for scheduler in [0, 1] {
        server.start_role(Role::Scheduler(scheduler)).await?;
    }
    let done = drain_is(&server, 0, "gw-1", "done").await?;
    crowd.all_back("gw-1").await?;
    figure(&format!(
        "gw-1 drained of {} connections at 5 a second, both schedulers killed meanwhile: {} ms; {} told without a place",
        done["moved"],
        started.elapsed().as_millis(),
        done["failed"]
    ));
    ensure!(done["moved"].as_u64() >= Some(there) && there > 0 && done["failed"] == 0, "{there}: {done}");
    ensure!(
        crowd.losses() - losses == there,
        "{} losses of {there}: moved twice, or refused",
        crowd.losses() - losses
    );
    ensure!(done["deadlineInMs"].as_u64() > Some(0), "after the deadline: {done}");
    load.more_acked(100).await?;

    // Killed and started again, it is still drained, and is given nobody.
    server.kill9_role(Role::Gateway(0));
    server.start_role(Role::Gateway(0)).await?;
    drain_is(&server, 1, "gw-1", "done").await?;
    ensure!(draining(&server, 0).await?);
    load.more_acked(50).await?;

    let (code, said) = ctl(&server, 1, &["drain", "stop", "gw-1"]).await?;
    ensure!(code == Some(0), "{code:?} {said}");
    server.ready().await?;
    let (code, said) = ctl(&server, 1, &["drain", "stop", "gw-1"]).await?;
    ensure!(code == Some(1) && said.contains("none is"), "{code:?} {said}");
    at_gateway(&server, 0, &fresh("user"), "d").await?.heartbeat().await?;
    check_clean("a drain under load", &check(&load.finish(PATIENCE).await?))?;
    crowd.close().await
}

/// Short limits and few handshakes: the crowd is small. What else pauses a drain is left out.
const SLOW: &str = r#"
version = 1
[move]
handshake_p99_ms = 500
connect_failures = 1.0
min_handshakes = 3
lost = 1.0
"#;

/// Shorter than what ends a link or a client's attempt.
const LOGIC_STOPS: Duration = Duration::from_millis(2_500);

/// Handshakes are looked at for so long, and a sample more.
const WINDOW: Duration = Duration::from_secs(35);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_pauses_while_handshakes_are_slow_and_then_goes_on() -> TestResult {
    let server = Server::start(options().policy(SLOW)).await?;
    let crowd = Crowd::connect(&server.at, CROWD, &fresh("crowd")).await?;
    let load = Load::start(&server.at, SHAPE, &fresh("slow"));
    load.more_acked(100).await?;
    let arguments = ["--rate", "3/s", "--spread", "1s", "--wait-lb", "1s", "--deadline", "5m"];
    let (code, said) = ctl(&server, 0, &[&["drain", "start", "gw-1"], &arguments[..]].concat()).await?;
    ensure!(code == Some(0), "{code:?} {said}");
    drain_is(&server, 0, "gw-1", "moving").await?;

    // Nobody is welcomed meanwhile: logic opens sessions.
    server.freeze(Role::Logic)?;
    tokio::time::sleep(LOGIC_STOPS).await;
    server.thaw(Role::Logic)?;
    let thawed = Instant::now();
    let paused = drain_is(&server, 0, "gw-1", "paused").await?;
    let reason = paused["reason"].as_str().unwrap_or("");
    ensure!(reason.contains("gw-2's handshakes") && reason.contains("p99"), "{paused}");
    ensure!(paused["left"].as_u64() > Some(0), "{paused}");
    let done = wait::until_within("the drain is done", WINDOW + 2 * PATIENCE, || async {
        let drain = drain_of(&server, 0, "gw-1").await?;
        Ok(drain.filter(|drain| drain["phase"] == "done"))
    });
    let done = done.await?;
    figure(&format!(
        "logic stood still for {} ms during a drain: {reason}; done {} ms later",
        LOGIC_STOPS.as_millis(),
        thawed.elapsed().as_millis()
    ));
    ensure!(done["failed"] == 0 && done["deadlineInMs"].as_u64() > Some(0), "{done}");
    crowd.all_back("gw-1").await?;
    check_clean("a drain while logic stood still", &check(&load.finish(PATIENCE).await?))?;
    crowd.close().await
}

/// Devices of as many users at a gateway.
async fn filled(server: &Server, gateway: usize, count: usize) -> anyhow::Result<Vec<Device>> {
    let mut devices = Vec::new();
    for _ in 0..count {
        devices.push(at_gateway(server, gateway, &fresh("user"), "d").await?);
    }
    Ok(devices)
}

/// The gateways that a device was told to go to, when it was closed with that code.
fn told_to_go(ending: &Ending, code: u32) -> anyhow::Result<Vec<String>> {
    let disconnect = ending.disconnect.as_ref().context("closed without a word")?;
    ensure!(disconnect.code == code, "{disconnect:?}");
    ensure!(disconnect.redirect.is_empty() == disconnect.ticket.is_empty(), "{disconnect:?}");
    Ok(disconnect.redirect.iter().map(|endpoint| endpoint.gateway_id.clone()).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fullest_sheds_until_all_are_within_the_share() -> TestResult {
    let server = Server::start(options()).await?;
    let mut devices = filled(&server, 0, 60).await?;
    let mut others = filled(&server, 1, 20).await?;
    // Reports come twice a second.
    let plan = wait::until("the schedulers know of all", || async {
        let plan = json(&server, 0, &["rebalance", "--within", "0.1", "--dry-run"]).await?;
        Ok((plan["gateways"][0]["connections"] == 60 && plan["gateways"][1]["connections"] == 20)
            .then_some(plan))
    });
    let plan = plan.await?;
    ensure!(plan["connections"] == 16 && plan["gateways"][0]["sheds"] == 16, "60 to 44, 20 to 36: {plan}");
    json(&server, 0, &["rebalance", "--within", "0.1", "--rate", "40/s", "--spread", "1s"]).await?;
    let mut moved = 0;
    let done = wait::until("the rebalance is done", || async {
        let moves = json(&server, 0, &["rebalance", "--status"]).await?;
        let moves = moves["moves"].as_array().cloned().unwrap_or_default();
        Ok(moves.into_iter().find(|one| one["what"] == "rebalance" && one["phase"] == "done"))
    });
    let done = done.await?;
    for device in &mut devices {
        // Once for the goodbye, once for the end behind it.
        let look = Duration::from_millis(20);
        if device.idle(look).await.is_err() || device.idle(look).await.is_err() {
            let ending = device.ending().await?;
            ensure!(told_to_go(&ending, 4002)? == ["gw-2"], "{ending:?}");
            moved += 1;
        }
    }
    ensure!(done["moved"] == moved && moved == 16, "{moved} were closed: {done}");
    for device in &mut others {
        device.heartbeat().await?;
    }
    Ok(())
}

/// How many connections gw-1 has moved for a rebalance, and its phase.
async fn evening_out(server: &Server, scheduler: usize) -> anyhow::Result<(u64, String)> {
    let moves = json(server, scheduler, &["rebalance", "--status"]).await?;
    let moves = moves["moves"].as_array().cloned().unwrap_or_default();
    let one = moves.into_iter().find(|one| one["what"] == "rebalance" && one["gatewayId"] == "gw-1");
    let one = one.unwrap_or_default();
    Ok((one["moved"].as_u64().unwrap_or(0), one["phase"].as_str().unwrap_or("").to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_is_ended_at_another_scheduler_than_it_was_begun_at() -> TestResult {
    let server = Server::start(options()).await?;
    let (code, said) = ctl(&server, 1, &["rebalance", "--stop"]).await?;
    ensure!(code == Some(1) && said.contains("no rebalance"), "{code:?} {said}");
    let _devices = filled(&server, 0, 60).await?;
    let begun = wait::until("the scheduler knows of all", || async {
        let begun = json(&server, 0, &["rebalance", "--rate", "1/s", "--spread", "1s"]).await?;
        Ok((begun["gateways"][0]["sheds"].as_u64() >= Some(20)).then_some(()))
    });
    begun.await?;
    wait::until("some are moved", || async { Ok((evening_out(&server, 1).await?.0 >= 2).then_some(())) })
        .await?;
    let (code, said) = ctl(&server, 1, &["rebalance", "--stop"]).await?;
    ensure!(code == Some(0) && said.contains("ends at gw-1"), "{code:?} {said}");
    wait::until("it has ended", || async {
        let (_, phase) = evening_out(&server, 1).await?;
        Ok(matches!(phase.as_str(), "stopped").then_some(()))
    })
    .await?;
    let (moved, _) = evening_out(&server, 0).await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let (later, phase) = evening_out(&server, 0).await?;
    ensure!(later == moved && moved < 20 && phase == "stopped", "{moved}, 4 s later {later}, {phase}");
    Ok(())
}

const HOMES: &str = r#"
version = 1
[[home]]
region = "us"
users = ["walt"]
[[home]]
region = "us"
users = ["wanda"]
when_down = "wait"
"#;

/// Of a user who goes home: gw-1 is in `eu`, gw-2 in `us`.
fn away(user: &str) -> String {
    let mut ticket = tokens::ticket(user, "d", "gw-1");
    "us".clone_into(&mut ticket.home);
    tokens::sign(&ticket)
}

async fn scheduled(server: &Server, user: &str) -> anyhow::Result<String> {
    let request = ScheduleRequest { device_id: "d".to_owned(), ..Default::default() };
    Ok(schedule(&server.at, user, &request).await?.endpoints[0].gateway_id.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_go_home_and_wait_for_it_or_are_served_elsewhere() -> TestResult {
    let options = Options::default().apart().tireless_clients().policy(HOMES).expect_warning("its lease");
    let mut server = Server::prepare(options)?;
    for role in [Role::Logic, Role::Scheduler(0), Role::Scheduler(1)] {
        server.start_role(role).await?;
    }
    for (gateway, region) in ["eu", "us"].into_iter().enumerate() {
        server.env("BERTH_GATEWAY__REGION", region);
        server.start_role(Role::Gateway(gateway)).await?;
    }
    server.ready().await?;
    ensure!(scheduled(&server, "walt").await? == "gw-2" && scheduled(&server, "wanda").await? == "gw-2");

    // With a good ticket, in the wrong region: sent home at once.
    let wrong = Device::connect_to(&server.at.gateways[0], Transport::Tcp, &away("walt"), "d").await;
    ensure!(wrong.is_err_and(|error| error.to_string().contains("4002")), "he was not sent home");

    server.kill9_role(Role::Gateway(1));
    wait::until("home is gone", || async { Ok((scheduled(&server, "walt").await? == "gw-1").then_some(())) })
        .await?;
    let mut walt = Device::connect_to(&server.at.gateways[0], Transport::Tcp, &away("walt"), "d").await?;
    let request = ScheduleRequest { device_id: "d".to_owned(), ..Default::default() };
    let refused = schedule(&server.at, "wanda", &request).await.err().context("she was sent elsewhere")?;
    let refused = refused.to_string();
    ensure!(
        refused.contains("503") && refused.contains("NO_GATEWAY") && refused.contains("home"),
        "{refused}"
    );
    walt.heartbeat().await?;

    server.start_role(Role::Gateway(1)).await?;
    let back = Instant::now();
    let ending = walt.ending().await?;
    ensure!(told_to_go(&ending, 4002)?.first().is_some_and(|first| first == "gw-2"), "{ending:?}");
    figure(&format!("home is back: its user is sent there after {} ms", back.elapsed().as_millis()));
    Ok(())
}

const GRAY: &str = r#"
version = 2
[[gray]]
id = "canary"
pool = "canary"
users = ["gretel"]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_rule_moves_those_it_takes_and_nobody_else() -> TestResult {
    let options =
        Options::default().apart().tireless_clients().policy("version = 1\n").expect_warning("its lease");
    let mut server = Server::prepare(options)?;
    for role in [Role::Logic, Role::Scheduler(0), Role::Scheduler(1)] {
        server.start_role(role).await?;
    }
    for (gateway, pool) in ["stable", "canary"].into_iter().enumerate() {
        server.env("BERTH_GATEWAY__POOL", pool);
        server.start_role(Role::Gateway(gateway)).await?;
    }
    server.ready().await?;
    let mut hansel = at_gateway(&server, 0, "hansel", "d").await?;
    let mut gretel = at_gateway(&server, 0, "gretel", "d").await?;
    let mut early = tokens::ticket("gretel", "late", "gw-1");
    early.expires_at_ms += 600_000;
    let early = tokens::sign(&early);

    server.write_policy(GRAY)?;
    let ending = gretel.ending().await?;
    ensure!(told_to_go(&ending, 4002)?.first().is_some_and(|first| first == "gw-2"), "{ending:?}");
    // By a ticket from before she would come back to where she no longer belongs.
    let late = async |server: &Server| {
        let late = Device::connect_to(&server.at.gateways[0], Transport::Tcp, &early, "late").await;
        let refused = late.err().context("an old ticket let her in")?.to_string();
        ensure!(refused.contains("4002"), "{refused}");
        anyhow::Ok(())
    };
    late(&server).await?;
    let swept = wait::until("the sweep is over", || async {
        let moves = json(&server, 0, &["rebalance", "--status"]).await?;
        let moves = moves["moves"].as_array().cloned().unwrap_or_default();
        Ok(moves.into_iter().find(|one| one["gatewayId"] == "gw-1" && one["phase"] == "done"))
    });
    let swept = swept.await?;
    ensure!((swept["moved"].as_u64(), swept["stayed"].as_u64()) == (Some(1), Some(1)), "{swept}");
    hansel.heartbeat().await?;

    // What it knew of that it forgets when it is killed.
    server.kill9_role(Role::Gateway(0));
    server.env("BERTH_GATEWAY__POOL", "stable");
    server.start_role(Role::Gateway(0)).await?;
    server.ready().await?;
    late(&server).await?;
    Ok(())
}
