//! The key of the tickets and the secret of the users' tokens are changed while clients schedule, connect and come back all the time:
//! nobody is refused.

use std::{
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use berth_proto::{schedule::ScheduleAnswer, wire::Ticket};
use berth_tests::{
    TestResult, bail,
    device::{Device, gateway_of, hello, schedule_with},
    ensure, figure, fresh,
    raw::{Raw, Transport},
    server::{Role, SCHEDULERS, Server},
    tokens::{self, JWT_SECRET, TICKET_KEY, now_ms, user_signed},
    wait,
};
use serde_json::json;

use crate::options;

const NEW_TICKET_KEY: &str = "the next ticket key, of 32 bytes and more";
const NEW_SECRET: &str = "the next secret of users' tokens, of 32 bytes and more";

const CLIENTS: usize = 4;

/// Between two rounds of a client.
const PAUSE: Duration = Duration::from_millis(50);

/// A client comes back with a ticket that is so many rounds old at most: far less than a ticket's life.
const OLDEST: usize = 200;

/// What the clients share.
struct Site {
    schedulers: Vec<String>,
    /// What users' tokens are signed with now.
    secret: RwLock<&'static str>,
    over: AtomicBool,
    rounds: AtomicU64,
}

impl Site {
    /// Schedules at whoever answers: one of them is being restarted.
    async fn schedule(&self, user: &str, round: usize) -> anyhow::Result<ScheduleAnswer> {
        let secret = *self.secret.read().expect("nobody panics with it");
        let token = user_signed(user, now_ms(), secret);
        for attempt in 0..self.schedulers.len() {
            let scheduler = &self.schedulers[(round + attempt) % self.schedulers.len()];
            match schedule_with(scheduler, &token, &json!({"deviceId": "d"})).await {
                Ok(answer) if answer.status == 200 => return answer.json(),
                // It has just started, and does not know every gateway yet.
                Ok(answer) if answer.status == 503 => {}
                Ok(answer) => bail!("refused by {scheduler}: {} {}", answer.status, answer.body),
                // It is away: what the test is about.
                Err(_) => {}
            }
        }
        bail!("no scheduler answered")
    }

    /// One client: a fresh ticket and an old one each round.
    async fn client(self: Arc<Self>) -> TestResult {
        let user = fresh("user");
        let mut tickets: Vec<ScheduleAnswer> = Vec::new();
        for round in 0.. {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            tickets.push(self.schedule(&user, round).await?);
            let old = tickets.len().saturating_sub(1 + round % OLDEST);
            for answer in [tickets.last(), tickets.get(old)].into_iter().flatten() {
                let gateway = gateway_of(answer, Transport::Tcp)?;
                let connected = Device::connect_to(&gateway, Transport::Tcp, &answer.ticket, "d").await;
                connected.context("not welcomed")?.heartbeat().await?;
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn more_rounds(&self) -> TestResult {
        let until = self.rounds.load(Ordering::Relaxed) + 5 * CLIENTS as u64;
        wait::until("the clients go on", || async {
            Ok((self.rounds.load(Ordering::Relaxed) >= until).then_some(()))
        })
        .await
    }
}

/// Restarts the schedulers one after the other, in an order of its own, with these variables.
async fn restart(server: &mut Server, step: usize, env: &[(&str, &str)]) -> TestResult {
    env.iter().for_each(|(name, value)| server.env(name, value));
    for n in 0..SCHEDULERS {
        server.restart_role(Role::Scheduler((n + step) % SCHEDULERS)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_changed_and_nobody_is_refused() -> TestResult {
    let mut server = Server::start(options()).await?;
    let site = Arc::new(Site {
        schedulers: server.at.schedulers.clone(),
        secret: RwLock::new(JWT_SECRET),
        over: AtomicBool::new(false),
        rounds: AtomicU64::new(0),
    });
    let mut clients = tokio::task::JoinSet::new();
    (0..CLIENTS).for_each(|_| drop(clients.spawn(Arc::clone(&site).client())));
    site.more_rounds().await?;
    let steps: [&[(&str, &str)]; 3] = [
        &[
            ("BERTH_AUTH__TICKET_KEY_NEXT", NEW_TICKET_KEY),
            ("BERTH_AUTH__JWT_SECRET", NEW_SECRET),
            ("BERTH_AUTH__JWT_SECRET_PREVIOUS", JWT_SECRET),
        ],
        &[
            ("BERTH_AUTH__TICKET_KEY", NEW_TICKET_KEY),
            ("BERTH_AUTH__TICKET_KEY_PREVIOUS", TICKET_KEY),
            ("BERTH_AUTH__TICKET_KEY_NEXT", ""),
        ],
        &[("BERTH_AUTH__TICKET_KEY_PREVIOUS", ""), ("BERTH_AUTH__JWT_SECRET_PREVIOUS", "")],
    ];
    for (step, env) in steps.into_iter().enumerate() {
        restart(&mut server, step, env).await?;
        // Every scheduler accepts the new secret once the first step is made: whoever signs tokens goes over to it.
        *site.secret.write().expect("nobody panics with it") = NEW_SECRET;
        site.more_rounds().await?;
    }
    site.over.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    let rounds = site.rounds.load(Ordering::Relaxed);
    figure(&format!(
        "keys changed in three steps: {rounds} schedules and {} connects, not one refused",
        2 * rounds
    ));
    ensure!(rounds > 0);
    let old = user_signed("u", now_ms(), JWT_SECRET);
    let answer = schedule_with(&server.at.scheduler, &old, &json!({"deviceId": "d"})).await?;
    ensure!(answer.status == 401, "the old secret is good for nothing any more");
    Ok(())
}

/// A thief has the ticket key: for him users are signed in for ever, and from when he likes.
struct Thief {
    gateways: Vec<String>,
    /// What he was told last.
    told: Mutex<String>,
    over: AtomicBool,
}

impl Thief {
    fn forge(gateway: &str) -> String {
        let now_ms = now_ms();
        let (hour_ms, year_ms) = (3_600_000, 365 * 86_400_000);
        tokens::sign_with(
            TICKET_KEY,
            &Ticket {
                expires_at_ms: now_ms + hour_ms,
                auth_expires_at_ms: now_ms + 70 * year_ms,
                auth_issued_at_ms: now_ms,
                ..tokens::ticket(&fresh("victim"), "d", gateway)
            },
        )
    }

    /// Strays with forged tickets all the time; what tickets he is given for them.
    async fn strays(self: Arc<Self>) -> anyhow::Result<Vec<String>> {
        let mut given = Vec::new();
        while !self.over.load(Ordering::Relaxed) {
            for gateway in &self.gateways {
                let mut raw = Raw::connect(Transport::Tcp, gateway).await?;
                raw.send(hello(&Self::forge("elsewhere"), "d")).await?;
                let disconnect = raw.ending().await?.disconnect.unwrap_or_default();
                given.extend(Some(disconnect.ticket).filter(|ticket| !ticket.is_empty()));
                *self.told.lock().expect("nobody panics with it") = disconnect.reason;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(given)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_made_with_a_ticket_key_that_leaked_is_good_once_it_is_void() -> TestResult {
    // One scheduler after the other is told: the last one signs with it for a moment longer.
    let options = options().expect_warning("a scheduler signs tickets with a key that is void");
    let mut server = Server::start(options).await?;
    let thief = Arc::new(Thief {
        gateways: server.at.gateways.clone(),
        told: Mutex::default(),
        over: AtomicBool::new(false),
    });
    let mut connected =
        Device::connect_to(&server.at.gateways[0], Transport::Tcp, &Thief::forge("gw-1"), "d").await?;
    let straying = tokio::spawn(Arc::clone(&thief).strays());
    tokio::time::sleep(10 * PAUSE).await;
    let before = thief.told.lock().expect("nobody panics with it").clone();
    restart(&mut server, 0, &[("BERTH_AUTH__TICKET_KEY_NEXT", NEW_TICKET_KEY)]).await?;
    let second = [
        ("BERTH_AUTH__TICKET_KEY", NEW_TICKET_KEY),
        ("BERTH_AUTH__TICKET_KEY_VOID", TICKET_KEY),
        ("BERTH_AUTH__TICKET_KEY_NEXT", ""),
    ];
    restart(&mut server, 1, &second).await?;
    let ending = connected.ending().await?;
    ensure!(ending.code(Transport::Tcp)? == 4005, "who was connected with it: {ending:?}");
    thief.over.store(true, Ordering::Relaxed);
    let mut tickets = straying.await??;
    let given = tickets.len();
    ensure!(given > 0, "he got some before, when he was told {before:?}");
    tickets.extend(["gw-1", "gw-2", "elsewhere"].map(Thief::forge));
    for (place, ticket) in tickets.iter().enumerate() {
        for gateway in &server.at.gateways {
            let mut raw = Raw::connect(Transport::Tcp, gateway).await?;
            raw.send(hello(ticket, "d")).await?;
            let ending = raw.ending().await?;
            ensure!(ending.code(Transport::Tcp)? == 4005, "ticket {place} of {given} given: {ending:?}");
        }
    }
    figure(&format!("a leaked ticket key is void: {given} tickets were obtained with it, none is good"));
    let token = tokens::user(&fresh("alice"));
    let answer = schedule_with(&server.at.scheduler, &token, &json!({"deviceId": "d"})).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    let answer: ScheduleAnswer = answer.json()?;
    let gateway = gateway_of(&answer, Transport::Tcp)?;
    Device::connect_to(&gateway, Transport::Tcp, &answer.ticket, "d").await?.heartbeat().await?;
    Ok(())
}

/// A ticket for the first gateway, signed with that key.
fn ticket_of(key: &str) -> String {
    let ticket = tokens::ticket(&fresh("user"), "d", "gw-1");
    tokens::sign_with(key, &ticket)
}

async fn both_are_good(server: &Server, when: &str) -> TestResult {
    for key in [TICKET_KEY, NEW_TICKET_KEY] {
        let connected =
            Device::connect_to(&server.at.gateways[0], Transport::Tcp, &ticket_of(key), "d").await;
        connected.with_context(|| format!("{when}: a ticket of {key:?}"))?.heartbeat().await?;
    }
    Ok(())
}

/// Until the first gateway serves: one scheduler never knows it while they are cut off from each other.
async fn start_again(server: &mut Server, roles: &[Role]) -> TestResult {
    for role in roles {
        server.kill9_role(*role);
        server.start_role(*role).await?;
    }
    wait::until("the gateway serves", || async { Ok(server.readyz(Role::Gateway(0)).await?.ok()) }).await
}

/// It has no memory of earlier keys and hears one scheduler only: what that one announces beside its own key is all there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_starts_in_the_middle_of_a_change_accepts_both_keys() -> TestResult {
    let mut server = Server::start(options().links_that_can_be_cut()).await?;
    restart(&mut server, 0, &[("BERTH_AUTH__TICKET_KEY_NEXT", NEW_TICKET_KEY)]).await?;
    server.cut(0, Role::Scheduler(1))?;
    server.env("BERTH_AUTH__TICKET_KEY", NEW_TICKET_KEY);
    server.env("BERTH_AUTH__TICKET_KEY_PREVIOUS", TICKET_KEY);
    server.env("BERTH_AUTH__TICKET_KEY_NEXT", "");
    start_again(&mut server, &[Role::Scheduler(1), Role::Gateway(0)]).await?;
    both_are_good(&server, "its scheduler signs with the old key").await?;
    start_again(&mut server, &[Role::Scheduler(0), Role::Gateway(0)]).await?;
    both_are_good(&server, "its scheduler signs with the new key").await?;
    server.heal(0, Role::Scheduler(1))?;
    server.ready().await
}
