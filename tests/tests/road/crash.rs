//! kill -9 and power cuts under load: the history checker decides. One round in the normal run, ten in the long one.

use std::time::Duration;

use anyhow::ensure;
use berth_tests::{
    TestResult, figure, fresh,
    history::{Event, Report, check},
    load::{Load, Shape},
    server::{Options, Server},
};

const SHAPE: Shape = Shape { senders: 16, receivers: 4 };
/// What names a start of the operating system.
const BOOT_ID: &str = "BERTH_STORE__OS_BOOT_ID";
/// For every reader to have everything after the last restart.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many messages are acknowledged before the `round`th fault: another amount each time.
fn work(round: u64) -> u64 {
    200 + 397 * round % 1_000
}

/// Every second fault is followed by another one while the server is starting: its recovery is cut off as well.
fn also_while_starting(round: u64) -> Option<Duration> {
    (round % 2 == 1).then(|| Duration::from_millis(50 + 83 * round % 500))
}

/// Kills the process `rounds` times under load.
async fn killed(rounds: u64) -> anyhow::Result<Report> {
    let mut server = Server::start(Options::default()).await?;
    let load = Load::start(&server.at, SHAPE, &fresh("kill"));
    for round in 0..rounds {
        load.more_acked(work(round)).await?;
        server.kill9();
        if let Some(delay) = also_while_starting(round) {
            server.start_in_vain(&[], delay).await?;
        }
        server.restart(&[]).await?;
        load.moved(&server.at);
    }
    load.more_acked(200).await?;
    let events = load.finish(PATIENCE).await?;
    ensure!(epochs(&events) == 1, "the operating system went on: no inbox was rolled back");
    Ok(check(&events))
}

/// Cuts the power `rounds` times under load: what was never synced is thrown away, and the machine starts anew.
async fn power_cut(rounds: u64) -> anyhow::Result<Report> {
    let boot = |round: u64, again: &str| format!("boot-{round}{again}");
    let options = Options::default().disk_that_can_fail().env(BOOT_ID, boot(0, ""));
    let mut server = Server::start(options).await?;
    let load = Load::start(&server.at, SHAPE, &fresh("power"));
    for round in 0..rounds {
        load.more_acked(work(round)).await?;
        server.cut_power()?;
        if let Some(delay) = also_while_starting(round) {
            server.start_in_vain(&[(BOOT_ID, &boot(round + 1, ""))], delay).await?;
            server.cut_power()?;
        }
        server.restart(&[(BOOT_ID, &boot(round + 1, "again"))]).await?;
        load.moved(&server.at);
    }
    load.more_acked(200).await?;
    let events = load.finish(PATIENCE).await?;
    ensure!(epochs(&events) == rounds as usize + 1, "{} epochs in {rounds} power cuts", epochs(&events));
    Ok(check(&events))
}

fn epochs(events: &[Event]) -> usize {
    let epoch = |event: &Event| match event {
        Event::Row { epoch, .. } | Event::Timeline { epoch, .. } => Some(*epoch),
        _ => None,
    };
    events.iter().filter_map(epoch).collect::<std::collections::BTreeSet<_>>().len()
}

fn check_clean(what: &str, report: &Report) -> TestResult {
    figure(&format!("{what}: {report}"));
    ensure!(report.clean(), "{report:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_loses_nothing() -> TestResult {
    check_clean("kill -9, 1 round", &killed(1).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn kill_9_ten_times_under_load_loses_nothing() -> TestResult {
    check_clean("kill -9, 10 rounds", &killed(10).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_under_load_loses_nothing_acknowledged() -> TestResult {
    check_clean("power cut, 1 round", &power_cut(1).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn ten_power_cuts_under_load_lose_nothing_acknowledged() -> TestResult {
    check_clean("power cut, 10 rounds", &power_cut(10).await?)
}

/// The control: on a disk that lies, acknowledged messages are lost, and the checker says so. Were it silent, the other
/// tests here would mean nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_disk_that_lies_the_checker_finds_the_loss() -> TestResult {
    let options = Options::default().disk_that_can_fail().env(BOOT_ID, "boot-0");
    let mut server = Server::start(options).await?;
    let load = Load::start(&server.at, SHAPE, &fresh("lie"));
    load.more_acked(200).await?;
    server.disk_lies()?;
    load.more_acked(200).await?;
    server.cut_power()?;
    server.restart(&[(BOOT_ID, "boot-1")]).await?;
    load.moved(&server.at);
    load.more_acked(50).await?;
    let report = check(&load.finish(Duration::from_secs(5)).await?);
    figure(&format!("power cut on a disk that lies (must lose): {report}"));
    ensure!(report.lost >= 100, "{report:#?}");
    Ok(())
}
