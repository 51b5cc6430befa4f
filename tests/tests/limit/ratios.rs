//! The figures: Berth beside the limit, in interleaved rounds of one run, each load with a fresh server. Long:
//! `cargo test --release -p berth-tests --test limit -- --ignored --nocapture`, with `BERTH_LIMIT_CONNECTIONS` (15000),
//! `BERTH_LIMIT_ROUNDS` (3) and `BERTH_LIMIT_SECONDS` (8).

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use berth_tests::{
    TestResult, figure,
    server::{Options, Server},
};
use serde_json::Value;

use crate::{
    figures::{Figure, Figures, Who},
    support::{Limit, PATIENCE, Running, Target, count},
};

/// What is measured, each with a fresh server.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// Schedules, connects, idle connections, heartbeats.
    Connections,
    /// Messages from few to many, told by a notify.
    Unicast { pull: bool },
    /// Messages to a group of all.
    Group,
    /// As many messages as go, with so many in flight.
    Send(usize),
}

const LOADS: [Load; 7] = [
    Load::Connections,
    Load::Unicast { pull: false },
    Load::Unicast { pull: true },
    Load::Group,
    Load::Send(1),
    Load::Send(64),
    Load::Send(512),
];

/// How large and how long.
#[derive(Debug, Clone, Copy)]
struct Size {
    connections: u64,
    seconds: u64,
}

fn setting(name: &str, default: u64) -> anyhow::Result<u64> {
    let Ok(text) = std::env::var(name) else { return Ok(default) };
    text.parse().with_context(|| format!("{name}={text}: a whole number is wanted"))
}

/// Berth in one process, or the limit.
enum Subject {
    Berth(Box<Server>),
    Limit(Limit),
}

impl Subject {
    /// The limit with a log in this folder, or with inbox rows in memory where receivers pull.
    async fn start(who: Who, log: Option<&Path>, rows: bool) -> anyhow::Result<Self> {
        if who == Who::Limit {
            return Ok(Self::Limit(match log {
                Some(folder) => Limit::with_log(folder)?,
                None if rows => Limit::start(&["--rows"])?,
                None => Limit::start(&[])?,
            }));
        }
        let options = Options::default().one().tireless_clients().env("BERTH_GATEWAY__WORKERS", 1);
        Ok(Self::Berth(Box::new(Server::start(options).await?)))
    }

    /// Puts a load on, which must be good.
    async fn bear(&self, load: &str, size: Size) -> anyhow::Result<Report> {
        let target = match self {
            Self::Berth(server) => Target::of(&server.at, server.process().id()),
            Self::Limit(limit) => limit.target.clone(),
        };
        let patience = PATIENCE + Duration::from_secs(4 * size.seconds);
        let (code, report) = Running::start(&target, load)?.ended_within(patience).await?;
        ensure!(code == Some(0), "berth bench {load}: {code:?} {report}");
        Ok(Report(report))
    }
}

/// What `berth bench` said.
struct Report(Value);

impl Report {
    fn number(&self, pointer: &str) -> anyhow::Result<f64> {
        let value = self.0.pointer(pointer).and_then(Value::as_f64);
        value.with_context(|| format!("no number {pointer} in {}", self.0))
    }

    /// What the server used in a stage.
    fn used(&self, stage: &str) -> anyhow::Result<Self> {
        let all = self.0["server"].as_array().map(Vec::as_slice).unwrap_or_default();
        let used = all.iter().find(|used| used["stage"] == stage);
        Ok(Self(used.with_context(|| format!("no stage {stage} in {}", self.0))?.clone()))
    }

    /// A figure that a generator busy all through `stage` would make its own.
    fn figure(&self, name: impl Into<String>, value: f64, stage: &str) -> Figure {
        let stages = self.0["generator"]["boundIn"].as_array().map(Vec::as_slice).unwrap_or_default();
        Figure { name: name.into(), value, bound: stages.iter().any(|bound| bound == stage) }
    }

    fn rate(&self, name: &str, rate: &str, stage: &str) -> anyhow::Result<Figure> {
        Ok(self.figure(name, self.number(&format!("/rates/{rate}"))?, stage))
    }

    fn millis(&self, name: &str, latency: &str, which: &str) -> anyhow::Result<Figure> {
        Ok(self.figure(name, self.number(&format!("/latencyMs/{latency}/{which}"))?, "load"))
    }

    /// CPU microseconds for each of `of` in a stage: of the whole process, and of the threads that hold connections. A busy
    /// generator makes it no other.
    fn cost(&self, name: &str, stage: &str, of: u64) -> anyhow::Result<[Figure; 2]> {
        let used = self.used(stage)?;
        let threads = &used.0["cpuSecondsByThread"];
        let holds = ["gateway", "berth-limit"].iter().find_map(|thread| threads[*thread].as_f64());
        let holds = holds.with_context(|| format!("no thread that holds connections in {threads}"))?;
        let figure = |name: &str, seconds: f64| Figure {
            name: name.to_owned(),
            value: seconds * 1e6 / of.max(1) as f64,
            bound: false,
        };
        let whole = used.number("/cpuSeconds")?;
        Ok([figure(name, whole), figure(&format!("{name}, gateway threads"), holds)])
    }

    /// Memory that a client costs from before the connects to the end of the load.
    fn grown(&self, name: &str, clients: u64) -> anyhow::Result<Figure> {
        let before = self.used("connect")?.number("/residentBytesBefore")?;
        let after = self.used("load")?.number("/residentBytes")?;
        Ok(Figure { name: name.to_owned(), value: (after - before) / clients as f64, bound: false })
    }
}

async fn measure(load: Load, who: Who, size: Size) -> anyhow::Result<Vec<Figure>> {
    match load {
        Load::Connections => connections(who, size).await,
        Load::Unicast { pull } => unicast(who, size, pull).await,
        Load::Group => group(who, size).await,
        Load::Send(in_flight) => send(who, size, in_flight).await,
    }
}

async fn connections(who: Who, size: Size) -> anyhow::Result<Vec<Figure>> {
    let Size { connections, seconds } = size;
    let subject = Subject::start(who, None, false).await?;
    // Once, so that what a server makes only once does not count as a connection's.
    subject.bear("connect --connections 200 --hold 0.1", size).await?;
    // No heartbeat in here: the first would come after 30 s.
    let load = format!("connect --connections {connections} --schedule-first --hold 1 --heartbeat 30");
    let report = subject.bear(&load, size).await?;
    ensure!(count(&report.0, "heldAtEnd") == connections, "{}", report.0);
    let mut figures = Vec::from(report.cost("CPU of a schedule, us", "schedule", connections)?);
    figures.extend(report.cost("CPU of a connect, us", "connect", connections)?);
    figures.push(report.rate("connects /s", "connectedPerSecond", "connect")?);
    figures.push(report.grown("bytes of an idle connection", connections)?);
    let load = format!("connect --connections {connections} --hold {} --heartbeat 4", seconds.max(5));
    let report = subject.bear(&load, size).await?;
    figures.extend(report.cost("CPU of a heartbeat, us", "load", count(&report.0, "heartbeats"))?);
    figures.push(report.millis("heartbeat p99, ms", "heartbeat", "p99")?);
    Ok(figures)
}

/// No heartbeat, for as long as connects and load are done in 30 s: so that a unicast's CPU is that of its frames.
async fn unicast(who: Who, size: Size, pull: bool) -> anyhow::Result<Vec<Figure>> {
    let Size { connections, seconds } = size;
    let subject = Subject::start(who, None, pull).await?;
    let (name, more) = if pull { ("pulled unicast", " --pull") } else { ("unicast", "") };
    let load = format!("push --connections {connections} --senders 16 --rate 2000 --duration {seconds}");
    let report = subject.bear(&format!("{load} --heartbeat 30{more}"), size).await?;
    let done = count(&report.0, if pull { "pulled" } else { "notified" });
    let mut figures = Vec::from(report.cost(&format!("CPU of a {name}, us"), "load", done)?);
    let frames: u64 =
        ["requestFrames", "responseFrames", "notifyFrames"].map(|kind| count(&report.0, kind)).iter().sum();
    let [_, of_a_frame] = report.cost(&format!("CPU of a frame of a {name}, us"), "load", frames)?;
    let frames = frames as f64 / done.max(1) as f64;
    figures.extend([of_a_frame, Figure { name: format!("frames of a {name}"), value: frames, bound: false }]);
    figures.push(report.millis(&format!("{name} p99, ms"), if pull { "pull" } else { "notify" }, "p99")?);
    Ok(figures)
}

async fn group(who: Who, size: Size) -> anyhow::Result<Vec<Figure>> {
    let subject = Subject::start(who, None, false).await?;
    let members = size.connections.min(10_000);
    let load = format!("group --connections {members} --rate 4 --duration {} --heartbeat 30", size.seconds);
    let report = subject.bear(&load, size).await?;
    let deliveries = count(&report.0, "deliveries");
    let mut figures = Vec::from(report.cost("CPU of a group delivery, us", "load", deliveries)?);
    figures.push(report.millis("last member p50, ms", "lastMember", "p50")?);
    figures.push(report.grown("bytes of a member after the storm", members)?);
    Ok(figures)
}

async fn send(who: Who, size: Size, in_flight: usize) -> anyhow::Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let subject = Subject::start(who, Some(folder.path()), true).await?;
    let seconds = size.seconds.min(5);
    let load = format!("send --connections 64 --in-flight {in_flight} --duration {seconds}");
    let report = subject.bear(&load, size).await?;
    let named = |what: &str| format!("send, {in_flight} in flight: {what}");
    let mut figures = vec![
        report.rate(&named("accepted /s"), "acceptedPerSecond", "load")?,
        // Until the last one was pulled: what can go on for ever.
        report.rate(&named("pulled /s"), "pulledPerSecond", "load")?,
    ];
    for (latency, which) in [("ack", "p50"), ("ack", "p99"), ("pull", "p50"), ("pull", "p99")] {
        figures.push(report.millis(&named(&format!("{latency} {which}, ms")), latency, which)?);
    }
    Ok(figures)
}

/// The type of the file system that holds `path`, from the text of `/proc/mounts`.
fn file_system<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    // The later of two at the same place covers the earlier.
    let holding = mounts.filter(|(place, _)| path.starts_with(place));
    holding.max_by_key(|(place, _)| place.len()).map(|(_, kind)| kind)
}

/// The servers' data and the limit's log are in the folder for temporary files.
fn check_that_syncs_reach_a_disk() -> TestResult {
    let folder = std::env::temp_dir().canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let kind = file_system(&mounts, &folder).unwrap_or("unknown");
    ensure!(
        !["tmpfs", "ramfs"].contains(&kind),
        "{} is a {kind}, where a sync costs nothing: set TMPDIR to a folder on a disk",
        folder.display()
    );
    Ok(())
}

#[test]
fn the_file_system_is_that_of_the_nearest_mount() {
    let mounts =
        "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/disk xfs rw 0 0\nx /tmp/disk btrfs rw";
    let of = |path: &str| file_system(mounts, Path::new(path));
    assert_eq!(["/", "/tmpx", "/tmp/a"].map(of), [Some("ext4"), Some("ext4"), Some("tmpfs")]);
    assert_eq!(of("/tmp/disk/deep"), Some("btrfs"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn ratios_to_the_limit() -> TestResult {
    check_that_syncs_reach_a_disk()?;
    let size = Size {
        connections: setting("BERTH_LIMIT_CONNECTIONS", 15_000)?,
        seconds: setting("BERTH_LIMIT_SECONDS", 8)?,
    };
    let rounds = usize::try_from(setting("BERTH_LIMIT_ROUNDS", 3)?)?;
    let mut figures = Figures::default();
    for round in 0..rounds {
        for (nth, load) in LOADS.into_iter().enumerate() {
            // Who goes first changes, since a machine is not the same twice: it warms up, or a neighbour comes.
            let order = [[Who::Limit, Who::Berth], [Who::Berth, Who::Limit]][(round + nth) % 2];
            for who in order {
                let measured =
                    measure(load, who, size).await.with_context(|| format!("{load:?} of {who:?}"))?;
                measured.into_iter().for_each(|one| figures.add(round, who, one));
            }
        }
    }
    let connections = size.connections;
    figure(&format!(
        "{connections} connections, {rounds} interleaved rounds: medians, and the ratio of each round"
    ));
    figures.table().iter().for_each(|line| figure(line));
    Ok(())
}
