//! Each role in its own process: what it needs to start, who may start first, and what a link does when it breaks.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context;
use berth_proto::schedule::ScheduleRequest;
use berth_tests::{
    TestResult,
    device::{Device, Refused, gateway_of, schedule},
    ensure, figure, fresh,
    raw::Transport,
    server::{Options, Role, Server, berth},
    tokens, wait,
};

/// Every key a role may need, by variable.
const KEYS: [(&str, &str); 4] = [
    ("BERTH_AUTH__JWT_SECRET", tokens::JWT_SECRET),
    ("BERTH_AUTH__TICKET_KEY", tokens::TICKET_KEY),
    ("BERTH_AUTH__CLUSTER_KEY", tokens::CLUSTER_KEY),
    ("BERTH_AUTH__SERVICE_KEY", tokens::SERVICE_KEY),
];

/// Runs a command that is expected to end; its exit code and what it said on stderr.
async fn complaint(arguments: &[&str], without: &str) -> anyhow::Result<(Option<i32>, String)> {
    let mut command = berth()?;
    command.args(arguments).stdin(Stdio::null());
    command.envs(KEYS.into_iter().filter(|(name, _)| *name != without));
    let done = tokio::task::spawn_blocking(move || command.output());
    let output = wait::within("the command ends", done).await???;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_a_key_it_needs_refuses_to_start_and_names_it() -> TestResult {
    let needed = [
        ("scheduler", "BERTH_AUTH__JWT_SECRET", "auth.jwt_secret"),
        ("scheduler", "BERTH_AUTH__TICKET_KEY", "auth.ticket_key"),
        ("scheduler", "BERTH_AUTH__CLUSTER_KEY", "auth.cluster_key"),
        ("gateway", "BERTH_AUTH__CLUSTER_KEY", "auth.cluster_key"),
        ("logic", "BERTH_AUTH__CLUSTER_KEY", "auth.cluster_key"),
        ("logic", "BERTH_AUTH__SERVICE_KEY", "auth.service_key"),
    ];
    for (role, variable, key) in needed {
        let (code, said) = complaint(&[role], variable).await?;
        ensure!(code == Some(1) && said.contains(key) && said.contains(variable), "{role}: {code:?} {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_role_cannot_be_told_is_exit_code_1_and_says_why() -> TestResult {
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> anyhow::Result<String> {
        let path = folder.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_str().context("a path of ASCII")?.to_owned())
    };
    let keys = &file("keys", "[auth]\njwks_file = \"/nonexistent/jwks.json\"\n")?;
    let short = &file("short", "[logic]\nlease_seconds = 7\n")?;
    let cases: [(&[&str], &str); 13] = [
        (&["logic", "--store", "memory", "--config", short], "logic.lease_seconds = 7; 8 to"),
        (&["scheduler", "--config", keys], "auth.jwks_file = \"/nonexistent/jwks.json\""),
        (&["logic", "--store", "redis://127.0.0.1:6379"], "not built yet"),
        (&["logic", "--store", "disk"], "store.backend = \"disk\""),
        (&["gateway", "--logic", "a:1", "--logic", "b:1"], "gateway.logics has 2 addresses"),
        (&["gateway", "--scheduler", "nowhere"], "\"nowhere\" is no host:port"),
        (
            &["gateway", "--scheduler", "a:1", "--scheduler", "b:1,a:1"],
            "gateway.schedulers has \"a:1\" twice",
        ),
        (&["gateway", "--advertise", "here"], "gateway.advertise: \"here\" is no host:port"),
        (&["gateway", "--listen", "0.0.0.0:0"], "set gateway.advertise"),
        (&["gateway", "--id", "a b"], "gateway.id"),
        (&["scheduler", "--listen", "here"], "--listen"),
        (&["scheduler", "--policy", "/nonexistent/policy.toml"], "policy"),
        (&["logic", "--no-such-flag"], "--no-such-flag"),
    ];
    for (arguments, expected) in cases {
        let (code, said) = complaint(arguments, "").await?;
        ensure!(code == Some(1) && said.contains(expected), "{arguments:?}: {code:?} {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_exit_code_2() -> TestResult {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    let any = "127.0.0.1:0";
    let cases: [&[&str]; 4] = [
        &["scheduler", "--listen", any, "--admin", any, "--rpc", &taken],
        &["scheduler", "--listen", any, "--rpc", any, "--admin", &taken],
        &["gateway", "--admin", any, "--listen", &taken],
        &["logic", "--store", "memory", "--listen", any, "--admin", any, "--rpc", &taken],
    ];
    for arguments in cases {
        let (code, said) = complaint(arguments, "").await?;
        ensure!(code == Some(2) && said.contains(&taken), "{arguments:?}: {code:?} {said}");
    }
    Ok(())
}

async fn check_missing(server: &Server, role: Role, expected: &str) -> TestResult {
    let said = server.readyz(role).await?.err().with_context(|| format!("{role:?} is ready"))?;
    ensure!(said.contains(expected), "{role:?}: {said}");
    Ok(())
}

#[tokio::test]
async fn roles_start_in_any_order_and_say_what_is_missing() -> TestResult {
    let mut server = Server::prepare(Options::default().apart())?;
    server.start_role(Role::Gateway(0)).await?;
    check_missing(&server, Role::Gateway(0), "no logic is attached").await?;
    for index in [0, 1] {
        server.start_role(Role::Scheduler(index)).await?;
        check_missing(&server, Role::Scheduler(index), "").await?;
    }
    server.start_role(Role::Logic).await?;
    server.start_role(Role::Gateway(1)).await?;
    server.ready().await?;
    let alice = fresh("alice");
    let mut alices = Device::connect(&server.at, Transport::Tcp, &alice, "d").await?;
    alices.send(&fresh("bob"), "c-1", "x").await?;
    Ok(())
}

#[tokio::test]
async fn every_scheduler_assigns_every_gateway_and_their_tickets_are_good_everywhere() -> TestResult {
    let server = Server::start(Options::default().apart()).await?;
    for url in &server.at.schedulers {
        let mut at = server.at.clone();
        at.scheduler.clone_from(url);
        let (alice, request) =
            (fresh("alice"), ScheduleRequest { device_id: "d".into(), ..Default::default() });
        let answer = schedule(&at, &alice, &request).await?;
        ensure!(answer.endpoints.len() == 2 * server.at.gateways.len(), "{answer:?}");
        for gateway in &server.at.gateways {
            let device = Device::connect_to(gateway, Transport::WsProto, &answer.ticket, "d").await?;
            ensure!(device.welcome.user_id == alice, "{:?}", device.welcome);
        }
    }
    Ok(())
}

/// The promise is a second; the rest is for a busy machine.
const KNOWS_THE_FLEET: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_scheduler_that_comes_back_knows_the_fleet_at_once() -> TestResult {
    let mut server = Server::start(Options::default().apart()).await?;
    let mut alices = Device::connect(&server.at, Transport::WsJson, &fresh("alice"), "d").await?;
    server.kill9_role(Role::Scheduler(0));
    let mut at = server.at.clone();
    at.scheduler.clone_from(&server.at.schedulers[1]);
    // The other replica goes on, and so do connections.
    Device::connect(&at, Transport::Tcp, &fresh("bob"), "d").await?;
    alices.heartbeat().await?;

    server.start_role(Role::Scheduler(0)).await?;
    let started = Instant::now();
    server.ready().await?;
    let took = started.elapsed();
    figure(&format!("scheduler restarted: knows both gateways {} ms after it listens", took.as_millis()));
    ensure!(took < KNOWS_THE_FLEET, "{took:?}");
    let request = ScheduleRequest { device_id: "d".into(), ..Default::default() };
    let answer = schedule(&server.at, &fresh("carol"), &request).await?;
    ensure!(server.at.gateways.contains(&gateway_of(&answer, Transport::Tcp)?), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_gateway_with_another_cluster_key_is_turned_away_and_everybody_is_told_once() -> TestResult {
    let options = Options::default().apart().expect_warning("turned away");
    let mut server = Server::start(options).await?;
    server.kill9_role(Role::Gateway(1));
    server.env("BERTH_AUTH__CLUSTER_KEY", "another-cluster-key-0123456789abcdefgh");
    server.start_role(Role::Gateway(1)).await?;
    wait::until("readyz names the key", || async {
        let said = server.readyz(Role::Gateway(1)).await?;
        Ok(said.is_err_and(|reason| reason.contains("auth.cluster_key")).then_some(()))
    })
    .await?;
    // Turned away many times, and said once for each peer, and once by each.
    wait::until("it dials on", || async {
        let refused = "berth_gateway_link_attempts_refused_total";
        let scrape = server.scrape(Role::Gateway(1)).await?;
        Ok((scrape.sum(refused, &[("peer", "logic")]) >= 3.0).then_some(()))
    })
    .await?;
    let warnings = |role: Role| -> anyhow::Result<usize> {
        let log = server.role(role)?.log().lines();
        Ok(log.iter().filter(|line| line.contains("WARN") && line.contains("turned away")).count())
    };
    ensure!(warnings(Role::Gateway(1))? == 3, "two schedulers and logic: {}", warnings(Role::Gateway(1))?);
    ensure!(warnings(Role::Logic)? == 1, "{}", warnings(Role::Logic)?);
    for role in [Role::Gateway(1), Role::Logic] {
        ensure!(!server.role(role)?.log().contains("another-cluster-key"), "{role:?} logs the key");
    }
    // The other gateway serves on. Schedulers may still send clients to the one that was there a moment ago: those go on
    // along their list.
    at_gateway(&server, 0, &fresh("alice")).await?.heartbeat().await?;
    Ok(())
}

/// A gateway's own device of a user.
async fn at_gateway(server: &Server, index: usize, user: &str) -> anyhow::Result<Device> {
    let ticket = tokens::sign(&tokens::ticket(user, "d", &format!("gw-{}", index + 1)));
    Device::connect_to(&server.at.gateways[index], Transport::WsJson, &ticket, "d").await
}

#[tokio::test]
async fn a_notify_that_a_cut_link_swallowed_comes_when_it_is_healed() -> TestResult {
    let options = Options::default().links_that_can_be_cut();
    let server = Server::start(options).await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut bobs = at_gateway(&server, 0, &bob).await?;
    let mut alices = at_gateway(&server, 1, &alice).await?;
    server.cut(0, Role::Logic)?;
    alices.send(&bob, "c-1", "are you there?").await?;
    let cut = Instant::now();
    wait::until("the gateway notices", || async {
        let said = server.readyz(Role::Gateway(0)).await?;
        Ok(said.is_err_and(|reason| reason.contains("no logic")).then_some(()))
    })
    .await?;
    figure(&format!("link cut without a word: noticed after {} ms", cut.elapsed().as_millis()));
    let refused = bobs.send(&alice, "c-1", "no").await.err().context("nobody takes it")?;
    let code = refused.downcast_ref::<Refused>().map(|refused| refused.0.code.clone());
    ensure!(code.as_deref() == Some("UNAVAILABLE"), "{refused:?}");

    server.heal(0, Role::Logic)?;
    let healed = Instant::now();
    // No heartbeat: what bob missed is found because the link came back.
    bobs.notified(1).await?;
    figure(&format!("link healed: a swallowed notify came after {} ms", healed.elapsed().as_millis()));
    ensure!(bobs.receive(1).await?[0].body == "are you there?".as_bytes());
    bobs.send(&alice, "c-1", "yes").await?;

    for (role, peer) in [(Role::Gateway(0), "logic"), (Role::Logic, "gateway")] {
        let scrape = server.scrape(role).await?;
        let name = if role == Role::Logic { "logic" } else { "gateway" };
        let sum = |what: &str| scrape.sum(&format!("berth_{name}_link_{what}"), &[("peer", peer)]);
        // Logic has two gateways, of which one was never cut off.
        let links = if role == Role::Logic { 2.0 } else { 1.0 };
        let counts = (sum("attached"), sum("attaches_total"));
        ensure!(counts == (links, links + 1.0), "{role:?}: {counts:?}");
        // Logic may have been told of the end, by what the proxy held back, before it noticed the silence.
        let breaks = sum("breaks_total");
        ensure!(breaks == 1.0 || (role == Role::Logic && breaks == 0.0), "{role:?}: {breaks} breaks");
        ensure!(sum("batches_total") > 0.0 && sum("sent_bytes_total") > 0.0, "{role:?} says nothing");
        let quiet = ["full_total", "attempts_refused_total", "forgotten_total"];
        let there = quiet.iter().all(|what| scrape.has(&format!("berth_{name}_link_{what}")));
        ensure!(there && quiet.iter().all(|what| sum(what) == 0.0), "{role:?}");
    }
    Ok(())
}

#[tokio::test]
async fn who_waits_for_a_logic_that_froze_is_told_before_the_deadline() -> TestResult {
    let server = Server::start(Options::default().apart()).await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut alices = at_gateway(&server, 0, &alice).await?;
    let mut bobs = at_gateway(&server, 1, &bob).await?;
    server.freeze(Role::Logic)?;
    let refused = alices.send(&bob, "c-1", "x").await.err().context("logic does not answer")?;
    let code = refused.downcast_ref::<Refused>().map(|refused| refused.0.code.clone());
    ensure!(code.as_deref() == Some("UNAVAILABLE"), "not DEADLINE_EXCEEDED after 10 s: {refused:?}");
    server.thaw(Role::Logic)?;
    server.ready().await?;
    // Whether or not the first try arrived: once is once.
    alices.send(&bob, "c-1", "x").await?;
    ensure!(bobs.receive(1).await?.len() == 1);
    ensure!(bobs.presence(&[&alice, &bob]).await?.iter().all(|user| user.online), "both are still connected");
    Ok(())
}
