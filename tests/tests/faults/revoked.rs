//! A revocation while a gateway is cut off from logic, and after each role was killed.

use std::time::{Duration, Instant};

use berth_proto::wire::Ticket;
use berth_tests::{
    TestResult,
    device::{Device, hello, schedule_with},
    ensure, figure, fresh, http,
    raw::{Raw, Transport},
    server::{Role, Server},
    tokens::{self, now_ms, user_issued},
    wait,
};
use serde_json::{Value, json};

use crate::{BUSY, options, options_for_an_ended_lease};

/// Who is connected with what was revoked is closed within this, at every gateway that is linked to logic or to a scheduler.
const CLOSED: Duration = Duration::from_secs(2);

/// Users who are revoked one after the other, so that the worst moment between two reports of a gateway is among them.
const USERS: usize = 10;

fn ticket(user: &str, gateway: usize) -> String {
    let auth_issued_at_ms = now_ms() - 5_000;
    tokens::sign(&Ticket {
        auth_issued_at_ms,
        ..tokens::ticket(user, "phone", &format!("gw-{}", gateway + 1))
    })
}

async fn connect(server: &Server, gateway: usize, ticket: &str) -> anyhow::Result<Device> {
    Device::connect_to(&server.at.gateways[gateway], Transport::Tcp, ticket, "phone").await
}

async fn revoke(server: &Server, user: &str) -> anyhow::Result<Value> {
    let url = format!("{}/v1/users/{user}:revoke", server.at.logic);
    // A moment between the login and now: without one each answer would come at the next whole second.
    let asked = json!({"notBeforeMs": now_ms() - 1_000});
    let answer = http::post(&url, Some(tokens::SERVICE_KEY), &asked).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    Ok(answer.value())
}

async fn turned_away(server: &Server, gateway: usize, ticket: &str) -> TestResult {
    let mut raw = Raw::connect(Transport::Tcp, &server.at.gateways[gateway]).await?;
    raw.send(hello(ticket, "phone")).await?;
    let ending = raw.ending().await?;
    ensure!(ending.code(Transport::Tcp)? == 4500, "{ending:?}");
    Ok(())
}

/// Revokes users who are connected at the first gateway; how long the slowest of them was still there.
async fn slowest(server: &Server) -> anyhow::Result<Duration> {
    let mut users = Vec::new();
    for _ in 0..USERS {
        let user = fresh("revoked");
        let ticket = ticket(&user, 0);
        users.push((connect(server, 0, &ticket).await?, user, ticket));
    }
    all_closed(server, users).await
}

async fn all_closed(server: &Server, users: Vec<(Device, String, String)>) -> anyhow::Result<Duration> {
    let mut slowest = Duration::ZERO;
    for (mut device, user, ticket) in users {
        let asked = Instant::now();
        revoke(server, &user).await?;
        let ending = device.ending().await?;
        slowest = slowest.max(asked.elapsed());
        ensure!(ending.code(Transport::Tcp)? == 4500, "{ending:?}");
        turned_away(server, 0, &ticket).await?;
    }
    Ok(slowest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_cut_off_from_logic_closes_who_is_revoked() -> TestResult {
    let server = Server::start(options_for_an_ended_lease().links_that_can_be_cut()).await?;
    let linked = slowest(&server).await?;
    let mut users = Vec::new();
    for _ in 0..USERS {
        let user = fresh("revoked");
        let ticket = ticket(&user, 0);
        users.push((connect(&server, 0, &ticket).await?, user, ticket));
    }
    let stays = fresh("stays");
    let mut stays = connect(&server, 0, &ticket(&stays, 0)).await?;
    // The first ones are revoked before anybody has noticed.
    server.cut(0, Role::Logic)?;
    let cut = all_closed(&server, users).await?;
    figure(&format!(
        "revoked at a gateway linked to logic: closed after {} ms at most; at one that is cut off: {} ms",
        linked.as_millis(),
        cut.as_millis()
    ));
    ensure!(linked < CLOSED + BUSY && cut < CLOSED + BUSY, "{linked:?} {cut:?}");
    stays.heartbeat().await?;
    server.heal(0, Role::Logic)?;
    server.ready().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_survives_whoever_is_killed() -> TestResult {
    let mut server = Server::start(options()).await?;
    let user = fresh("revoked");
    let tickets = [0, 1].map(|gateway| ticket(&user, gateway));
    let token = user_issued(&user, now_ms() - 5_000);
    revoke(&server, &user).await?;
    let killed: [&[Role]; 4] = [
        &[Role::Scheduler(0), Role::Scheduler(1)],
        &[Role::Gateway(0), Role::Gateway(1)],
        &[Role::Logic],
        &[Role::Scheduler(0), Role::Scheduler(1), Role::Gateway(0), Role::Gateway(1)],
    ];
    for roles in killed {
        roles.iter().for_each(|role| server.kill9_role(*role));
        for role in roles.iter().rev() {
            server.start_role(*role).await?;
        }
        server.ready().await?;
        for (gateway, ticket) in tickets.iter().enumerate() {
            turned_away(&server, gateway, ticket).await?;
        }
        for scheduler in &server.at.schedulers {
            let started = Instant::now();
            wait::until("the scheduler has heard of it", || async {
                let answer = schedule_with(scheduler, &token, &json!({"deviceId": "phone"})).await?;
                Ok((answer.status == 401).then_some(()))
            })
            .await?;
            figure(&format!(
                "{roles:?} killed: revoked at a scheduler {} ms after it was ready",
                started.elapsed().as_millis()
            ));
        }
    }
    Ok(())
}
