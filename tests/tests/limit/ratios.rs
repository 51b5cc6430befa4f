//! The figures: Berth beside the limit, in interleaved rounds of one run, each with a fresh server. Long:
//! `cargo test --release -p berth-tests --test limit -- --ignored --nocapture`, with `BERTH_LIMIT_CONNECTIONS` (15000),
//! `BERTH_LIMIT_ROUNDS` (3) and `BERTH_LIMIT_SECONDS` (8).

use std::collections::BTreeMap;

use anyhow::ensure;
use berth_tests::{
    TestResult, figure,
    server::{Options, Server},
};
use serde_json::Value;

use crate::support::{Limit, Target, bench, count, good, millis};

/// What was measured, by name: of each round one value.
#[derive(Default)]
struct Figures(BTreeMap<String, Vec<f64>>);

impl Figures {
    fn add(&mut self, name: impl Into<String>, value: f64) {
        self.0.entry(name.into()).or_default().push(value);
    }

    fn median(&self, name: &str) -> Option<f64> {
        let mut values = self.0.get(name)?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }
}

/// The subjects of a run: Berth in one process, and the limit.
enum Subject {
    Berth(Box<Server>),
    Limit(Limit),
}

impl Subject {
    async fn start(berth: bool, log: Option<&std::path::Path>) -> anyhow::Result<Self> {
        if berth {
            let options = Options::default()
                .tireless_clients()
                .env("BERTH_GATEWAY__HANDSHAKES_PER_SECOND", 1_000_000)
                .env("BERTH_GATEWAY__WORKERS", 1);
            return Ok(Self::Berth(Box::new(Server::start(options).await?)));
        }
        Ok(Self::Limit(match log {
            Some(folder) => Limit::with_log(folder)?,
            None => Limit::start(&[])?,
        }))
    }

    fn target(&self) -> Target {
        match self {
            Self::Berth(server) => Target::of(&server.at, server.process().id()),
            Self::Limit(limit) => limit.target.clone(),
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn stage<'a>(report: &'a Value, name: &str) -> &'a Value {
    let all = report["server"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|used| used["stage"] == name).unwrap_or(&Value::Null)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

/// CPU microseconds for each of `count` in a stage: of the whole process, and of the threads that hold connections.
fn cost(figures: &mut Figures, name: &str, report: &Value, in_stage: &str, count: u64) {
    let used = stage(report, in_stage);
    let each = |seconds: f64| seconds * 1e6 / count.max(1) as f64;
    figures.add(name, each(number(&used["cpuSeconds"])));
    let threads = &used["cpuSecondsByThread"];
    let gateway = threads.get("gateway").or_else(|| threads.get("berth-limit")).map_or(0.0, number);
    figures.add(format!("{name}, gateway threads"), each(gateway));
}

async fn round(figures: &mut Figures, berth: bool, connections: u64, seconds: u64) -> TestResult {
    let subject = Subject::start(berth, None).await?;
    let target = subject.target();
    // Once, so that what a server makes only once does not count as a connection's.
    good(&target, "connect --connections 200 --hold 0.1").await?;
    // No heartbeat in here: the first would come after 30 s.
    let load = format!("connect --connections {connections} --schedule-first --hold 1 --heartbeat 30");
    let report = good(&target, &load).await?;
    ensure!(count(&report, "heldAtEnd") == connections, "{report}");
    let (before, idle) = (stage(&report, "connect"), stage(&report, "load"));
    cost(figures, "CPU of a schedule, us", &report, "schedule", connections);
    cost(figures, "CPU of a connect, us", &report, "connect", connections);
    figures.add("connects /s", number(&report["rates"]["connectedPerSecond"]));
    let grown = number(&idle["residentBytes"]) - number(&before["residentBytesBefore"]);
    figures.add("bytes of an idle connection", grown / connections as f64);
    let load = format!("connect --connections {connections} --hold {} --heartbeat 4", seconds.max(5));
    let report = good(&target, &load).await?;
    cost(figures, "CPU of a heartbeat, us", &report, "load", count(&report, "heartbeats"));
    figures.add("heartbeat p99, ms", millis(&report, "heartbeat", "p99"));
    drop(subject);

    let subject = Subject::start(berth, None).await?;
    let load = format!("push --connections {connections} --senders 16 --rate 2000 --duration {seconds}");
    let report = good(&subject.target(), &load).await?;
    cost(figures, "CPU of a unicast, us", &report, "load", count(&report, "notified"));
    figures.add("unicast p99, ms", millis(&report, "notify", "p99"));
    drop(subject);

    let subject = Subject::start(berth, None).await?;
    let members = connections.min(10_000);
    let load = format!("group --connections {members} --rate 4 --duration {seconds}");
    let (code, report) = bench(&subject.target(), &load).await.unwrap_or_default();
    if code == Some(0) {
        cost(figures, "CPU of a group delivery, us", &report, "load", count(&report, "deliveries"));
        figures.add("last member p50, ms", millis(&report, "lastMember", "p50"));
        figures.add("deliveries /s", number(&report["rates"]["deliveriesPerSecond"]));
        let (before, after) = (stage(&report, "connect"), stage(&report, "load"));
        let grown = number(&after["residentBytes"]) - number(&before["residentBytesBefore"]);
        figures.add("bytes after the storm", grown / members as f64);
    } else {
        figure(&format!("berth bench {load}: {code:?} {}", report["errors"]));
    }
    Ok(())
}

async fn sends(figures: &mut Figures, berth: bool, seconds: u64) -> TestResult {
    for in_flight in [1, 64, 512] {
        let folder = tempfile::tempdir()?;
        let subject = Subject::start(berth, Some(folder.path())).await?;
        let load = format!("send --connections 64 --in-flight {in_flight} --duration {seconds}");
        let report = good(&subject.target(), &load).await?;
        figures.add(
            format!("send, {in_flight} in flight: accepted /s"),
            number(&report["rates"]["acceptedPerSecond"]),
        );
        for (which, of) in [("ack", "p50"), ("ack", "p99"), ("pull", "p50"), ("pull", "p99")] {
            figures.add(format!("send, {in_flight} in flight: {which} {of}, ms"), millis(&report, which, of));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn ratios_to_the_limit() -> TestResult {
    let connections = setting("BERTH_LIMIT_CONNECTIONS", 15_000);
    let (rounds, seconds) = (setting("BERTH_LIMIT_ROUNDS", 3), setting("BERTH_LIMIT_SECONDS", 8));
    let mut of = [Figures::default(), Figures::default()];
    for _ in 0..rounds {
        for (berth, figures) in [false, true].into_iter().zip(&mut of) {
            round(figures, berth, connections, seconds).await?;
        }
        for (berth, figures) in [false, true].into_iter().zip(&mut of) {
            sends(figures, berth, seconds.min(5)).await?;
        }
    }
    let [limit, berth] = of;
    figure(&format!("{connections} connections, medians of {rounds} interleaved rounds"));
    figure(&format!("{:<46}{:>12}{:>12}{:>8}", "", "limit", "berth", "ratio"));
    for name in berth.0.keys() {
        let (Some(floor), Some(value)) = (limit.median(name), berth.median(name)) else { continue };
        figure(&format!("{name:<46}{floor:>12.2}{value:>12.2}{:>8.2}", value / floor));
    }
    Ok(())
}
