//! The address database: clients are sent to the region of their address, a changed file is taken up, a broken one is not.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, ensure};
use berth_proto::schedule::ScheduleRequest;
use berth_tests::{
    TestResult,
    device::schedule,
    fresh, http,
    metrics::Scrape,
    mmdb::{self, Field},
    server::{Composition, GATEWAYS, Options, Role, SCHEDULERS, Server, berth},
    tokens, wait,
};
use serde_json::{Value, json};

const POLICY: &str = r#"
version = 1
[[proximity.place]]
region = "eu"
countries = ["DE"]
[[proximity.place]]
region = "ap"
countries = ["JP"]
[[proximity.place]]
region = "us-west"
subdivisions = ["US-CA"]
[[proximity.region]]
name = "us-west"
lat = 37.4
lon = -122.1
[[proximity.region]]
name = "eu"
lat = 50.1
lon = 8.7
[[proximity.distance]]
between = ["us-west", "ap"]
ms = 100
"#;

/// Where gw-1 and gw-2 stand.
const REGIONS: [&str; 2] = ["eu", "ap"];

fn networks(first: &'static str) -> Vec<u8> {
    let networks = [
        ("203.0.113.0/24", Field::city(first, "", 0)),
        ("198.51.100.0/24", Field::city("JP", "13", 2497)),
        ("2001:db8::/32", Field::city("US", "CA", 0)),
    ];
    mmdb::database(&networks, 1_700_000_000)
}

/// Replaces the file in one step, as an operator's tool would.
fn replace(server: &Server, bytes: &[u8]) -> TestResult {
    let new = server.folder().join("places.mmdb.new");
    fs::write(&new, bytes)?;
    Ok(fs::rename(new, server.folder().join("places.mmdb"))?)
}

/// A server whose gateways stand in [`REGIONS`], as far as it has two.
async fn start(options: Options) -> anyhow::Result<Server> {
    let mut server = Server::prepare(options.policy(POLICY))?;
    replace(&server, &networks("DE"))?;
    let file = server.folder().join("places.mmdb").display().to_string();
    server.env("BERTH_SCHEDULER__GEOIP", &file);
    server.env("BERTH_GATEWAY__REGION", REGIONS[0]);
    if server.composition() == Composition::One {
        server.start_role(Role::Dev).await?;
    } else {
        server.start_role(Role::Logic).await?;
        for index in 0..SCHEDULERS {
            server.start_role(Role::Scheduler(index)).await?;
        }
        for (index, region) in REGIONS.into_iter().enumerate().take(GATEWAYS) {
            server.env("BERTH_GATEWAY__REGION", region);
            server.start_role(Role::Gateway(index)).await?;
        }
    }
    server.ready().await?;
    Ok(server)
}

async fn explain(server: &Server, address: &str) -> anyhow::Result<Value> {
    let url = format!("{}/v1/schedule:explain", server.at.scheduler);
    let ask = json!({"deviceId":"d","userId":fresh("alice"),"clientIp":address});
    let answer = http::post(&url, Some(tokens::ADMIN_KEY), &ask).await?;
    ensure!(answer.status == 200, "{answer:?}");
    answer.json()
}

/// The client's region, the tier it was sent to, and the gateway.
fn sent(told: &Value) -> [&str; 3] {
    [&told["client"]["region"], &told["tier"], &told["endpoints"][0]["gatewayId"]]
        .map(|value| value.as_str().unwrap_or_default())
}

#[tokio::test]
async fn clients_are_sent_to_the_region_of_their_address() -> TestResult {
    let server = start(Options::default()).await?;
    let two = server.at.gateways.len() == 2;
    let german = explain(&server, "203.0.113.9").await?;
    ensure!(sent(&german) == ["eu", "region", "gw-1"], "{german}");
    let japanese = explain(&server, "198.51.100.9").await?;
    let there = if two { ["ap", "region", "gw-2"] } else { ["ap", "rest", "gw-1"] };
    ensure!(sent(&japanese) == there, "{japanese}");
    ensure!(japanese["client"]["address"] == "AS2497 JP-13", "{japanese}");
    // No gateway is in us-west; from there Asia is nearer by what the policy says, and Europe by the great circle is known.
    let californian = explain(&server, "2001:db8::9").await?;
    ensure!(sent(&californian) == ["us-west", "near", if two { "gw-2" } else { "gw-1" }], "{californian}");
    let tier = &californian["stages"]["tiers"][0];
    let (ms, by) = if two { (100, "distance") } else { (153, "coordinates") };
    ensure!(tier["distanceMs"] == ms && tier["distanceBy"] == by, "{californian}");
    let nowhere = explain(&server, "192.0.2.9").await?;
    ensure!(sent(&nowhere)[..2] == ["", "rest"], "{nowhere}");

    let hint = ScheduleRequest { device_id: "d".into(), region: "ap".into(), ..Default::default() };
    let answer = schedule(&server.at, &fresh("alice"), &hint).await?;
    ensure!(answer.endpoints[0].gateway_id == there[2], "a client that says where it is: {answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_changed_database_is_taken_up_and_a_broken_one_is_not() -> TestResult {
    let server = start(Options::default().expect_warning("the address database is refused")).await?;
    let region = async || -> anyhow::Result<String> {
        Ok(sent(&explain(&server, "203.0.113.9").await?)[0].to_owned())
    };
    ensure!(region().await? == "eu");
    replace(&server, &networks("JP"))?;
    wait::until("taken up by itself", || async { Ok((region().await? == "ap").then_some(())) }).await?;
    replace(&server, &networks("DE"))?;
    server.process().signal("HUP")?;
    wait::until("taken up on demand", || async { Ok((region().await? == "eu").then_some(())) }).await?;

    let whole = networks("JP");
    replace(&server, &whole[..whole.len() - 20])?;
    wait::until("refused", || async {
        let scrape = Scrape::fetch(&server.at.admin).await?;
        let refused = scrape.sum("berth_scheduler_geoip_loads_total", &[("outcome", "broken")]);
        Ok((refused >= server.at.schedulers.len() as f64).then_some(()))
    })
    .await?;
    ensure!(region().await? == "eu", "the old one stays");
    Ok(())
}

async fn run(mut command: Command) -> anyhow::Result<Output> {
    let done = tokio::task::spawn_blocking(move || command.output());
    Ok(wait::within("the command ends", done).await???)
}

fn with_keys(role: &str, geoip: &Path) -> anyhow::Result<Command> {
    let mut command = berth()?;
    command.arg(role).arg("--geoip").arg(geoip);
    command
        .env("BERTH_AUTH__JWT_SECRET", tokens::JWT_SECRET)
        .env("BERTH_AUTH__TICKET_KEY", tokens::TICKET_KEY)
        .env("BERTH_AUTH__CLUSTER_KEY", tokens::CLUSTER_KEY);
    Ok(command)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_starts_on_a_broken_database() -> TestResult {
    let folder = tempfile::tempdir()?;
    let broken = folder.path().join("broken.mmdb");
    fs::write(&broken, "no database")?;
    let missing = folder.path().join("missing.mmdb");
    for file in [&broken, &missing] {
        let mut dev = with_keys("dev", file)?;
        dev.arg("--data-dir").arg(folder.path().join("data"));
        for port in ["--scheduler-listen", "--gateway-listen", "--logic-listen", "--admin-listen"] {
            dev.args([port, "127.0.0.1:0"]);
        }
        let mut scheduler = with_keys("scheduler", file)?;
        for port in ["--listen", "--rpc", "--admin"] {
            scheduler.args([port, "127.0.0.1:0"]);
        }
        for command in [dev, scheduler] {
            let output = run(command).await?;
            let complained = String::from_utf8_lossy(&output.stderr);
            let name = file.file_name().context("has one")?.to_string_lossy();
            ensure!(output.status.code() == Some(1) && complained.contains(&*name), "{output:?}");
        }
    }
    Ok(())
}
