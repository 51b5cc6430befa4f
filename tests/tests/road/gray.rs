//! Gray release: ramps by the clock, policies by the command line, replicas that catch up, and a guard that stops its rule and has
//! its pool emptied without a hand.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use berth_client::{Client, Event, token::StaticToken};
use berth_proto::{
    bucket,
    schedule::{Decision, Reason, ScheduleRequest},
};
use berth_tests::{
    TestResult,
    device::{Device, gateway_of, schedule},
    figure, fresh, http,
    proxy::Proxy,
    raw::Transport,
    server::{Composition, Options, Role, SCHEDULERS, Server, berth},
    tokens::{self, ADMIN_KEY},
    wait,
};
use serde_json::Value;

/// A rule that half of the users go by, and its guard.
const GUARDED: &str = "[[gray]]\nid = \"new\"\npool = \"canary\"\npercent = 50.0\n\
    [gray.guard]\nconnect_failures = 0.05\nabnormal_closes = 0.2\nwindow_seconds = 20\nmin_handshakes = 30\n";

async fn decision(server: &Server, user: &str) -> anyhow::Result<Decision> {
    let request = ScheduleRequest { device_id: "d".into(), ..Default::default() };
    Ok(schedule(&server.at, user, &request).await?.decision)
}

/// A server whose second gateway, if it has one, is of pool canary; clients reach that by `canary`, if it is given.
async fn start(
    options: Options,
    canary: impl FnOnce(&Server) -> anyhow::Result<Option<Proxy>>,
) -> anyhow::Result<(Server, Option<Proxy>)> {
    let mut server = Server::prepare(options)?;
    if server.composition() == Composition::One {
        server.start_role(Role::Dev).await?;
        server.ready().await?;
        return Ok((server, None));
    }
    server.start_role(Role::Logic).await?;
    for index in 0..SCHEDULERS {
        server.start_role(Role::Scheduler(index)).await?;
    }
    server.start_role(Role::Gateway(0)).await?;
    let proxy = canary(&server)?;
    if let Some(proxy) = &proxy {
        server.env("BERTH_GATEWAY__ADVERTISE", &proxy.address().to_string());
    }
    server.env("BERTH_GATEWAY__POOL", "canary");
    server.start_role(Role::Gateway(1)).await?;
    server.ready().await?;
    Ok((server, proxy))
}

/// `berth policy …` at the first scheduler, or at the admin port that is given: the exit code, and what it said.
async fn policy(server: &Server, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let mut command = berth()?;
    command.arg("policy").args(arguments).args(["--admin", &server.at.admin.to_string()]);
    command.env("BERTH_AUTH__ADMIN_KEY", ADMIN_KEY);
    let done = tokio::task::spawn_blocking(move || command.output());
    let output = wait::within("the command ends", done).await???;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

/// What a scheduler's admin API says of the policy in force.
async fn state(server: &Server, scheduler: usize) -> anyhow::Result<Value> {
    let base = match server.composition() {
        Composition::One => server.at.admin.to_string(),
        Composition::Apart => server.admin_of(Role::Scheduler(scheduler)),
    };
    http::get(&format!("{base}/admin/v1/policy"), Some(ADMIN_KEY)).await?.json()
}

async fn version_is(server: &Server, scheduler: usize, version: &str) -> TestResult {
    wait::until(&format!("scheduler {scheduler} has version {version}"), || async {
        Ok((state(server, scheduler).await?["policyVersion"] == version).then_some(()))
    })
    .await
}

fn write(server: &Server, name: &str, text: &str) -> anyhow::Result<String> {
    let path = server.folder().join(name);
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}

fn unix_ms() -> anyhow::Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

/// RFC 3339, as `date` writes it.
fn at(unix_ms: i64) -> anyhow::Result<String> {
    let seconds = format!("@{}", unix_ms / 1_000);
    let date =
        std::process::Command::new("date").args(["-u", "-d", &seconds, "+%Y-%m-%dT%H:%M:%SZ"]).output()?;
    Ok(String::from_utf8(date.stdout)?.trim().to_owned())
}

#[tokio::test]
async fn a_ramp_takes_more_and_then_less_by_the_clock() -> TestResult {
    let now = unix_ms()?;
    let steps = [(now + 4_000, 30), (now + 9_000, 60), (now + 14_000, 30)];
    let steps: Vec<_> = steps
        .iter()
        .map(|(ms, percent)| Ok(format!("{{ at = {}, percent = {percent} }}", at(*ms)?)))
        .collect::<anyhow::Result<_>>()?;
    let text =
        format!("version = 1\n[[gray]]\nid = \"r\"\npool = \"canary\"\nramp = [{}]\n", steps.join(", "));
    let (server, _) = start(Options::default().policy(&text), |_| Ok(None)).await?;
    let users: Vec<_> = (0..40).map(|n| format!("u{n}")).collect();
    let taken = async || -> anyhow::Result<Vec<String>> {
        let mut taken = Vec::new();
        for user in &users {
            if decision(&server, user).await?.rule_id == "r" {
                taken.push(user.clone());
            }
        }
        Ok(taken)
    };
    let of = |percent: f64| -> Vec<String> {
        users.iter().filter(|user| bucket::within(bucket::bucket("r", user), percent)).cloned().collect()
    };
    // Each is seen in its turn, however slow this machine: a step that was missed fails the test.
    for percent in [30.0, 60.0, 30.0] {
        let expected = of(percent);
        wait::until(&format!("{percent}%"), || async { Ok((taken().await? == expected).then_some(())) })
            .await?;
    }
    ensure!(!of(30.0).is_empty() && of(30.0).iter().all(|user| of(60.0).contains(user)), "a part of it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_go_in_and_back_by_the_command_line() -> TestResult {
    let (server, _) = start(Options::default(), |_| Ok(None)).await?;
    let half = write(&server, "half.toml", &format!("version = 3\n{GUARDED}"))?;
    let (code, said) = policy(&server, &["diff", &half]).await?;
    ensure!(
        code == Some(0) && said.contains("50.00% of clients that no match fits: stable -> canary"),
        "{said}"
    );
    let (code, said) =
        policy(&server, &["apply", &half, "--by", "alice", "--note", "the first half"]).await?;
    ensure!(code == Some(0) && said.starts_with("version 3 ("), "{code:?} {said}");
    let schedulers = server.at.schedulers.len();
    ensure!(said.matches("holds it").count() == schedulers, "every scheduler is told of: {said}");
    for index in 0..schedulers {
        let state = state(&server, index).await?;
        ensure!(state["policyVersion"] == "3" && state["rules"][0]["percent"] == 50.0, "{state}");
    }
    let user = (0..)
        .map(|n| format!("u{n}"))
        .find(|user| bucket::bucket("new", user) < 5_000)
        .context("half of all")?;
    let decided = decision(&server, &user).await?;
    let there = server.composition() == Composition::Apart;
    let expected = if there { (Reason::Split, "canary") } else { (Reason::Fallback, "stable") };
    ensure!((decided.reason, decided.pool.as_str()) == expected, "{decided:?}");

    for (text, part) in [
        ("version = 2\n", "its version 2 is older than 3"),
        ("version = 3\n", "another text under version 3"),
        ("version = 4\n[load]\nbound = -1\n", "line 3, load.bound: -1 is not between 0 and 100"),
    ] {
        let file = write(&server, "refused.toml", text)?;
        let (code, said) = policy(&server, &["apply", &file]).await?;
        ensure!(code == Some(1) && said.contains(part), "{code:?} {said}");
    }
    let none = write(&server, "none.toml", "version = 4\n")?;
    ensure!(policy(&server, &["apply", &none, "--by", "bob"]).await?.0 == Some(0));
    ensure!(decision(&server, &user).await?.reason == Reason::Default);
    let (code, said) = policy(&server, &["rollback", "--by", "carol"]).await?;
    ensure!(code == Some(0) && said.starts_with("version 5 ("), "{code:?} {said}");
    ensure!(decision(&server, &user).await?.reason == expected.0, "the text of version 3");
    let (code, said) = policy(&server, &["rollback", "--to", "4"]).await?;
    ensure!(code == Some(0) && said.starts_with("version 6 ("), "{code:?} {said}");

    let (_, said) = policy(&server, &["history"]).await?;
    let parts = [
        "api by carol\n    back to version 3",
        "api by bob",
        "api by alice\n    the first half\n    rule new added",
    ];
    let places: Vec<_> = parts.iter().map(|part| said.find(part)).collect();
    ensure!(places.iter().all(Option::is_some) && places.is_sorted(), "the newest first: {said}");
    let (_, said) = policy(&server, &["status", "--text"]).await?;
    ensure!(said == "version = 6\n", "{said:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_was_down_catches_up_through_the_gateways() -> TestResult {
    let (mut server, _) = start(Options::default().apart().policy("version = 1\n"), |_| Ok(None)).await?;
    server.kill9_role(Role::Scheduler(1));
    let second = write(&server, "second.toml", "version = 2\n")?;
    let (code, said) = policy(&server, &["apply", &second]).await?;
    ensure!(
        code == Some(0) && said.matches("holds it").count() == 1,
        "the other is not there: {code:?} {said}"
    );
    server.start_role(Role::Scheduler(1)).await?;
    version_is(&server, 1, "2").await?;
    server.ready().await?;
    // Nobody but the gateways remembers: the schedulers have no data directory, and an older file.
    for index in 0..SCHEDULERS {
        server.kill9_role(Role::Scheduler(index));
    }
    for index in 0..SCHEDULERS {
        server.start_role(Role::Scheduler(index)).await?;
    }
    for index in 0..SCHEDULERS {
        version_is(&server, index, "2").await?;
    }
    let (_, history) = policy(&server, &["history"]).await?;
    ensure!(history.contains("policy version 2") && history.contains("carried"), "{history}");
    server.write_policy("version = 3\n")?;
    for index in 0..SCHEDULERS {
        version_is(&server, index, "3").await?;
    }
    Ok(())
}

/// Users that connect and stay, by pool, and how many did not come in.
#[derive(Default)]
struct Crowd {
    here: BTreeMap<String, Vec<Device>>,
    failed: usize,
}

impl Crowd {
    async fn one_more(&mut self, server: &Server) -> TestResult {
        let request =
            ScheduleRequest { device_id: "d".into(), transports: vec!["ws".into()], ..Default::default() };
        let answer = schedule(&server.at, &fresh("user"), &request).await?;
        let gateway = gateway_of(&answer, Transport::WsProto)?;
        match Device::connect_to(&gateway, Transport::WsProto, &answer.ticket, "d").await {
            Ok(device) => self.here.entry(answer.decision.pool).or_default().push(device),
            Err(_) => self.failed += 1,
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_fails_its_clients_is_stopped_and_emptied_without_a_hand() -> TestResult {
    let options = Options::default()
        .apart()
        .policy(&format!("version = 1\n{GUARDED}"))
        .expect_warning("a gray rule's guard stops it")
        // Both schedulers are killed while gateways ask who belongs where.
        .expect_warning("moving connections pauses");
    let (mut server, proxy) =
        start(options, |server| Ok(Some(Proxy::breaking(server.at.gateways[1].parse()?, 5)?))).await?;
    let stopped = async |server: &Server| -> anyhow::Result<bool> {
        let mut all = true;
        for index in 0..SCHEDULERS {
            let scrape = server.scrape(Role::Scheduler(index)).await?;
            all &= scrape.sum("berth_scheduler_rule_stopped", &[("rule", "new")]) == 1.0;
        }
        Ok(all)
    };
    let (begun, mut crowd) = (Instant::now(), Crowd::default());
    while !stopped(&server).await? {
        ensure!(begun.elapsed() < Duration::from_secs(60), "not stopped; {} failed", crowd.failed);
        for _ in 0..5 {
            crowd.one_more(&server).await?;
        }
    }
    let stop = begun.elapsed();
    let canaries = crowd.here.get("canary").map_or(0, Vec::len);
    ensure!(crowd.failed > 0 && canaries > 0, "{} failed, {canaries} came in", crowd.failed);
    let sessions = async |gateway: usize| -> anyhow::Result<f64> {
        Ok(server.scrape(Role::Gateway(gateway)).await?.sum("berth_gateway_sessions", &[]))
    };
    wait::until("its pool is empty", || async { Ok((sessions(1).await? == 0.0).then_some(())) }).await?;
    figure(&format!(
        "gray: a pool in which a fifth of the handshakes fail was stopped {:.1} s after its first client, and its {canaries} clients were \
         told where to go {:.1} s later",
        stop.as_secs_f64(),
        (begun.elapsed() - stop).as_secs_f64()
    ));
    let stable = crowd.here.get("stable").map_or(0, Vec::len);
    ensure!(sessions(0).await? >= stable as f64, "nobody else was moved");
    let user = (0..)
        .map(|n| format!("u{n}"))
        .find(|user| bucket::bucket("new", user) < 5_000)
        .context("half of all")?;
    ensure!(decision(&server, &user).await?.reason == Reason::Default);

    for index in 0..SCHEDULERS {
        server.kill9_role(Role::Scheduler(index));
    }
    for index in 0..SCHEDULERS {
        server.start_role(Role::Scheduler(index)).await?;
    }
    server.ready().await?;
    wait::until("the stop outlives the schedulers", || async { Ok(stopped(&server).await?.then_some(())) })
        .await?;
    ensure!(decision(&server, &user).await?.reason == Reason::Default);
    let (_, said) = policy(&server, &["status"]).await?;
    ensure!(said.contains("STOPPED") && said.contains("connect failures"), "{said}");
    drop(proxy);
    let (code, said) = policy(&server, &["resume", "new"]).await?;
    ensure!(code == Some(0), "{said}");
    ensure!(decision(&server, &user).await?.reason == Reason::Split, "the rule goes on");
    Ok(())
}

/// Connections of the ramp below: a percent is twenty of them.
const RAMPED: usize = 2_000;

/// A client that follows where it is told to go, and the gateways that welcomed it.
struct Follower {
    bucket: u16,
    _client: Client,
    visited: Arc<Mutex<Vec<String>>>,
}

impl Follower {
    async fn connect(server: &Server, user: &str) -> anyhow::Result<Self> {
        let token = StaticToken::new(tokens::user(user));
        let mut options = berth_client::Options::new(server.at.scheduler.clone(), "sdk", token);
        options.schedulers.clone_from(&server.at.schedulers);
        let (client, mut events) = Client::connect(options).await?;
        let visited = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&visited);
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if let Event::Connected(connected) = event {
                    notes.lock().expect("nobody panics with it").push(connected.gateway_id);
                }
            }
        });
        Ok(Self { bucket: bucket::bucket("r", user), _client: client, visited })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn a_ramp_of_2000_connections_moves_each_of_them_once_each_way() -> TestResult {
    let rule = |version: u32, percent: u32| {
        format!(
            "version = {version}\n[[gray]]\nid = \"r\"\npool = \"canary\"\npercent = {percent}\n\
             [move]\nper_second = 200\n"
        )
    };
    let (server, _) = start(Options::default().apart().policy(&rule(1, 5)), |_| Ok(None)).await?;
    let mut followers = Vec::new();
    for n in 0..RAMPED {
        followers.push(Follower::connect(&server, &format!("u{n}")).await?);
    }
    let visits = |path: &[&str]| {
        let visited = |follower: &&Follower| *follower.visited.lock().expect("nobody panics with it") == path;
        followers.iter().filter(visited).map(|follower| follower.bucket).collect::<Vec<_>>()
    };
    let of = |from: u16, to: u16| followers.iter().filter(|one| (from..to).contains(&one.bucket)).count();
    // Everybody is where his bucket says, and came there on the shortest way.
    let arrived = async |percent: &str, paths: [(&[&str], u16, u16); 3]| {
        let begun = Instant::now();
        wait::until_within(percent, Duration::from_secs(60), || async {
            Ok(paths.iter().all(|(path, from, to)| visits(path).len() == of(*from, *to)).then_some(()))
        })
        .await?;
        for (path, from, to) in paths {
            ensure!(visits(path).iter().all(|bucket| (from..to).contains(bucket)), "{percent}: {path:?}");
        }
        let canary = paths
            .iter()
            .filter(|(path, ..)| path.last() == Some(&"gw-2"))
            .map(|(_, from, to)| of(*from, *to));
        figure(&format!(
            "gray: at {percent} of {RAMPED} connections, {} are in canary, {:.1} s after the policy was written",
            canary.sum::<usize>(),
            begun.elapsed().as_secs_f64()
        ));
        anyhow::Ok(())
    };
    arrived("5%", [(&["gw-2"], 0, 500), (&["gw-1"], 500, 10_000), (&["none"], 0, 0)]).await?;
    server.write_policy(&rule(2, 25))?;
    let more: [(&[&str], u16, u16); 3] =
        [(&["gw-2"], 0, 500), (&["gw-1", "gw-2"], 500, 2_500), (&["gw-1"], 2_500, 10_000)];
    arrived("25%", more).await?;
    server.write_policy(&rule(3, 5))?;
    let less: [(&[&str], u16, u16); 3] =
        [(&["gw-2"], 0, 500), (&["gw-1", "gw-2", "gw-1"], 500, 2_500), (&["gw-1"], 2_500, 10_000)];
    arrived("5% again", less).await
}
