//! What `berth bench` counts is what happened, against the limit and against Berth alike. Small: the figures are not looked
//! at, only that all was done and everything arrived.

use anyhow::ensure;
use berth_tests::{TestResult, server::Server};
use serde_json::Value;

use crate::support::{Limit, Target, bench, count, good, millis};

async fn check_connections(target: &Target) -> TestResult {
    for transport in ["ws", "tcp"] {
        let load = format!("connect --connections 300 --hold 1 --heartbeat 0.3 --transport {transport}");
        let report = good(target, &load).await?;
        ensure!(count(&report, "connected") == 300 && count(&report, "heldAtEnd") == 300, "{report}");
        ensure!(count(&report, "heartbeats") >= 300, "each beat at least once: {report}");
        for step in ["schedule", "transport", "welcome", "connect", "heartbeat"] {
            ensure!(millis(&report, step, "p50") > 0.0, "{step} is measured: {report}");
        }
        ensure!(report["server"][0]["residentBytes"].as_u64() > Some(0), "the server is watched: {report}");
    }
    Ok(())
}

async fn check_messages(target: &Target) -> TestResult {
    let report = good(target, "push --connections 100 --rate 300 --duration 1").await?;
    ensure!(count(&report, "sent") == 300, "a rate is kept exactly, however late: {report}");
    ensure!(count(&report, "notified") == 300, "{report}");
    // The server reads the send, and writes its answer, the receiver's notify and, unless several are one, the sender's.
    ensure!(count(&report, "requestFrames") == 300 && count(&report, "responseFrames") == 300, "{report}");
    let notifies = count(&report, "notifyFrames");
    ensure!(notifies > count(&report, "notifies") && notifies <= 600, "{report}");
    let report = good(target, "push --connections 50 --rate 200 --duration 1 --pull --transport tcp").await?;
    ensure!(count(&report, "pulled") == 200, "{report}");
    for in_flight in [1, 40] {
        let report =
            good(target, &format!("send --connections 20 --in-flight {in_flight} --duration 1")).await?;
        let accepted = count(&report, "accepted");
        ensure!(accepted > 0 && count(&report, "pulled") == accepted, "each exactly once: {report}");
        let faults = ["duplicates", "gaps", "lostMessages", "refused", "unanswered"];
        ensure!(faults.iter().all(|fault| count(&report, fault) == 0), "{report}");
    }
    Ok(())
}

async fn check_schedules(target: &Target) -> TestResult {
    let report = good(target, "schedule --connections 4 --rate 200 --duration 1").await?;
    ensure!(count(&report, "asked") == 200 && count(&report, "scheduled") == 200, "{report}");
    let report = good(target, "schedule --connections 4 --duration 0.5").await?;
    ensure!(count(&report, "scheduled") > 0, "{report}");
    Ok(())
}

async fn check_group(target: &Target) -> TestResult {
    for more in ["", " --processes 2"] {
        let load = format!("group --connections 120 --rate 10 --duration 1{more}");
        let report = good(target, &load).await?;
        ensure!(count(&report, "accepted") == 10 && count(&report, "deliveries") == 1_200, "{report}");
        ensure!(count(&report, "undelivered") == 0, "{report}");
        let of = |which: &str| report["latencyMs"][which]["count"].as_u64();
        ensure!(of("member") == Some(1_200) && of("lastMember") == Some(10), "{report}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_serves_every_load() -> TestResult {
    let limit = Limit::start(&["--rows"])?;
    check_connections(&limit.target).await?;
    check_messages(&limit.target).await?;
    check_schedules(&limit.target).await?;
    check_group(&limit.target).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_with_a_log_answers_after_its_sync() -> TestResult {
    let folder = tempfile::tempdir()?;
    let limit = Limit::with_log(folder.path())?;
    let report = good(&limit.target, "send --connections 20 --in-flight 64 --duration 1 --size 100").await?;
    let accepted = count(&report, "accepted");
    let log = std::fs::read(folder.path().join("limit.log"))?;
    let mut rest = &log[..];
    let mut written = 0;
    while let Some((length, record)) = rest.split_first_chunk::<4>() {
        rest = record.get(u32::from_be_bytes(*length) as usize..).unwrap_or_default();
        written += 1;
    }
    ensure!(written == accepted, "{written} records for {accepted} accepted");
    ensure!(count(&report, "pulled") == accepted, "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn berth_serves_every_load() -> TestResult {
    let server = Server::shared().await?;
    let target = Target::of(&server.at, server.process().id());
    check_connections(&target).await?;
    check_messages(&target).await?;
    check_schedules(&target).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_add_up() -> TestResult {
    let limit = Limit::start(&["--rows"])?;
    let report = good(&limit.target, "connect --connections 100 --hold 0.2 --processes 3").await?;
    ensure!(count(&report, "connected") == 100 && report["generator"]["processes"] == 3, "{report}");
    let load = "push --connections 60 --senders 6 --rate 300 --duration 1 --pull --processes 3";
    let report = good(&limit.target, load).await?;
    ensure!(count(&report, "sent") == 300 && count(&report, "pulled") == 300, "{report}");
    ensure!(report["latencyMs"]["notify"]["count"] == 300, "their histograms are one: {report}");
    // One of the processes has no sender: the other one has the whole rate, and all that is in flight.
    let load = "push --connections 60 --senders 1 --rate 300 --duration 1 --processes 2";
    let report = good(&limit.target, load).await?;
    ensure!(count(&report, "sent") == 300, "{report}");
    let report = good(&limit.target, "send --in-flight 1 --duration 1 --processes 2").await?;
    ensure!(count(&report, "accepted") > 0, "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_report_has_its_keys() -> TestResult {
    let limit = Limit::start(&[])?;
    let report = good(&limit.target, "push --connections 10 --rate 50 --duration 0.5").await?;
    let document = std::fs::read_to_string(berth_tests::root().join("docs/bench.md"))?;
    let parts = [&report, &report["counts"], &report["rates"], &report["latencyMs"], &report["generator"]];
    for (key, _) in parts.into_iter().chain([&report["server"][0]]).filter_map(Value::as_object).flatten() {
        ensure!(document.contains(&format!("`{key}`")), "{key} is not in docs/bench.md");
    }
    let ack: Vec<&str> =
        report["latencyMs"]["ack"].as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    ensure!(ack == ["count", "max", "mean", "p50", "p90", "p99"], "{ack:?}");
    ensure!(
        report["rates"]["acceptedPerSecond"].is_number() && report["errors"] == Value::Object(<_>::default())
    );
    let without_rows = bench(&limit.target, "send --connections 4 --in-flight 2 --duration 0.2").await?;
    ensure!(without_rows.0 == Some(3), "what never arrives is found missing: {without_rows:?}");
    Ok(())
}
