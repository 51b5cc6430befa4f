//! What goes wrong is told: a stall in the latencies, a dead server in the counts and the exit code.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use berth_tests::{TestResult, http, wait};

use crate::support::{Limit, Running, Target, bench, count, millis};

/// Waits until so many users are connected; with `beating`, until as many heartbeats came too: then the load knows it.
async fn connected(limit: &Limit, least: u64, beating: bool) -> TestResult {
    let url = format!("{}/live", limit.target.scheduler);
    wait::until("the load is connected", || async {
        let live = http::post(&url, None, &serde_json::json!({})).await?.value();
        let beats = if beating { live["heartbeats"].as_u64() } else { Some(least) };
        Ok((live["connected"].as_u64() >= Some(least) && beats >= Some(least)).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stalls_shows_in_the_tail() -> TestResult {
    let limit = Limit::start(&[])?;
    let load = Running::start(&limit.target, "push --connections 100 --senders 4 --rate 500 --duration 4")?;
    connected(&limit, 104, false).await?;
    // The load has begun, or will while it is stopped: either way a fixed share of its 4 s is stalled.
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let stopped = Instant::now();
    limit.signal("STOP")?;
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    limit.signal("CONT")?;
    let stalled = stopped.elapsed().as_secs_f64() * 1_000.0;
    let (code, report) = load.ended().await?;
    ensure!(code == Some(0) && count(&report, "notified") == 2_000, "{report}");
    let (p99, max) = (millis(&report, "notify", "p99"), millis(&report, "notify", "max"));
    ensure!(max >= stalled * 0.9, "stalled {stalled} ms, max {max} ms: {report}");
    // A quarter of the run was stalled: of its messages 1 in 25 waited for nearly all of the stall.
    ensure!(p99 >= stalled * 0.7, "stalled {stalled} ms, p99 {p99} ms: {report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_answers_nothing_any_more_ends_the_run_and_owes_the_rest() -> TestResult {
    let limit = Limit::start(&[])?;
    let load = "push --connections 50 --senders 2 --rate 100 --duration 3 --heartbeat 0.2";
    let load = Running::start(&limit.target, load)?;
    connected(&limit, 52, true).await?;
    limit.signal("STOP")?;
    let (code, report) = load.ended().await?;
    ensure!(code == Some(3) && report["intended"] == 300, "as many as the rate asks for: {code:?} {report}");
    ensure!(count(&report, "sent") < 300 && count(&report, "unanswered") <= 32, "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_in_the_middle_is_exit_code_3_and_counted() -> TestResult {
    for load in ["push --connections 50 --rate 100 --duration 30", "connect --connections 50 --hold 30"] {
        let limit = Limit::start(&[])?;
        let load = Running::start(&limit.target, &format!("{load} --processes 2"))?;
        connected(&limit, 50, false).await?;
        drop(limit);
        let (code, report) = load.ended().await?;
        ensure!(code == Some(3) && report["ok"] == false, "{code:?} {report}");
        let lost = report["errors"].as_object().context("errors")?;
        let ended = |kind: &str| {
            kind.starts_with("lost:") || kind.starts_with("connect:") || kind.starts_with("schedule:")
        };
        let told: u64 = lost.iter().filter(|(kind, _)| ended(kind)).filter_map(|(_, n)| n.as_u64()).sum();
        ensure!(told >= 50, "each lost connection is told: {report}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lost_come_back_where_that_is_asked_for() -> TestResult {
    let limit = Limit::start(&[])?;
    let port = limit.target.scheduler.trim_start_matches("http://").to_owned();
    let load = "connect --connections 50 --hold 4 --heartbeat 0.2 --reconnect";
    let load = Running::start(&limit.target, load)?;
    connected(&limit, 50, true).await?;
    drop(limit);
    let again = Limit::start(&["--listen", &port])?;
    let (code, report) = load.ended().await?;
    drop(again);
    let (lost, back) = (count(&report, "lost"), count(&report, "reconnected"));
    ensure!(
        lost > 0 && back == lost && count(&report, "heldAtEnd") + count(&report, "failed") == 50,
        "{report}"
    );
    ensure!(code == Some(if count(&report, "failed") == 0 { 0 } else { 3 }), "{code:?} {report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_exit_code_3_with_the_kind() -> TestResult {
    // Nobody listens at port 1, and nobody has process id 0.
    let nowhere = || "http://127.0.0.1:1".to_owned();
    let target = Target { scheduler: nowhere(), logic: nowhere(), pid: 0 };
    for load in ["connect --connections 3", "schedule --connections 2 --duration 1", "send --duration 1"] {
        let (code, report) = bench(&target, load).await?;
        ensure!(
            code == Some(3) && report["errors"]["schedule:ConnectionRefused"].as_u64() > Some(0),
            "{report}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_prints_what_there_is() -> TestResult {
    for more in ["", " --processes 2"] {
        let limit = Limit::start(&[])?;
        let load = format!("connect --connections 40 --hold 600 --heartbeat 0.2{more}");
        let load = Running::start(&limit.target, &load)?;
        connected(&limit, 40, true).await?;
        // The load stage begins once all are welcomed; how far it is when the signal comes does not matter.
        load.signal("INT")?;
        let (_, report) = load.ended_within(wait::DEADLINE).await?;
        ensure!(report["interrupted"] == true && count(&report, "connections") == 40, "{report}");
    }
    Ok(())
}
