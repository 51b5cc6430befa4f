//! One gateway of four dies with its share of a crowd. Its clients hold tickets for the other three and ask nobody: what they
//! are let in at is those gateways' handshake rate, whoever else comes, and those who are connected there hardly notice.

use std::time::{Duration, Instant};

use anyhow::Context;
use berth_tests::{
    TestResult, ensure, figure,
    server::{Role, Server},
};
use tokio::sync::watch;

use crate::{at_gateway, crowd::Crowd, options_for_an_ended_lease};

const GATEWAYS: usize = 4;

/// The one that dies.
const DIES: usize = 0;

/// Between two looks at the counters.
const LOOK: Duration = Duration::from_millis(50);

/// Between two requests of the one who is not concerned.
const BEAT: Duration = Duration::from_millis(20);

/// How long that one is measured before anything happens.
const BEFORE: Duration = Duration::from_secs(3);

/// How many were let in by a gateway, by when.
type Counts = Vec<(Instant, f64)>;

/// Looks at a gateway's counter until it is told to end.
async fn count(server: &Server, index: usize, end: watch::Receiver<bool>) -> anyhow::Result<Counts> {
    let mut counts = Vec::new();
    while !*end.borrow() {
        let scrape = server.scrape(Role::Gateway(index)).await?;
        let let_in = scrape.sum("berth_gateway_handshakes_total", &[("result", "welcomed")]);
        counts.push((Instant::now(), let_in));
        tokio::time::sleep(LOOK).await;
    }
    Ok(counts)
}

/// The most that was let in within any second, as a rate: between the two looks at its ends.
fn peak(counts: &Counts) -> f64 {
    let windows = counts.iter().enumerate().filter_map(|(at, (from, before))| {
        let (until, after) =
            counts[at..].iter().find(|(until, _)| *until - *from >= Duration::from_secs(1))?;
        Some((after - before) / (*until - *from).as_secs_f64())
    });
    windows.fold(0.0, f64::max)
}

/// Pulls again and again until told to end; how long each took.
async fn pull(server: &Server, index: usize, end: watch::Receiver<bool>) -> anyhow::Result<Vec<Duration>> {
    let mut device = at_gateway(server, index, "bystander", "d").await?;
    let mut took = Vec::new();
    while !*end.borrow() {
        let began = Instant::now();
        device.pull(0, 10).await?;
        took.push(began.elapsed());
        tokio::time::sleep(BEAT).await;
    }
    Ok(took)
}

fn p99(took: &mut [Duration]) -> anyhow::Result<Duration> {
    took.sort_unstable();
    took.get(took.len().saturating_sub(1).min(took.len() * 99 / 100)).copied().context("nothing was measured")
}

/// How long the bystander's pulls took until `end`.
async fn measured(server: &Server, span: Duration) -> anyhow::Result<Duration> {
    let (end, ended) = watch::channel(false);
    let pulls = pull(server, DIES + 1, ended);
    let ending = async {
        tokio::time::sleep(span).await;
        end.send_replace(true);
    };
    let (took, ()) = tokio::join!(pulls, ending);
    p99(&mut took?)
}

async fn storm(clients: usize, per_second: u32) -> TestResult {
    let options = options_for_an_ended_lease().gateways(GATEWAYS).handshakes_per_second(per_second);
    let mut server = Server::start(options).await?;
    let crowd = Crowd::connect(&server.at, clients, "crowd").await?;
    let id = format!("gw-{}", DIES + 1);
    let lost = crowd.at(&id);
    ensure!(lost > clients / GATEWAYS / 2, "only {lost} of {clients} are at {id}");
    let before = measured(&server, BEFORE).await?;

    server.kill9_role(Role::Gateway(DIES));
    let (end, ended) = watch::channel(false);
    // Ten times as long as it takes at the rate, and the time in which clients find out.
    let rest = (GATEWAYS - 1) as u32;
    let patience = Duration::from_secs(30) + 10 * Duration::from_secs(lost as u64) / (rest * per_second);
    let server = &server;
    let counting = async {
        let [a, b, c] = [1, 2, 3].map(|index| count(server, DIES + index, ended.clone()));
        tokio::try_join!(a, b, c)
    };
    let back = async {
        let took = crowd.all_back_within(&id, patience).await;
        end.send_replace(true);
        took
    };
    let (counts, pulls, took) = tokio::join!(counting, pull(server, DIES + 1, ended.clone()), back);
    let ((a, b, c), took) = (counts?, took?);
    let during = p99(&mut pulls?)?;
    let peak = [a, b, c].iter().map(peak).fold(0.0, f64::max);
    let mut told = 0.0;
    for index in 1..GATEWAYS {
        let limited = server.scrape(Role::Gateway(index)).await?;
        told += limited.sum("berth_gateway_limited_total", &[("limit", "handshakes")]);
    }
    figure(&format!(
        "kill -9 of one of {GATEWAYS} gateways, {lost} of {clients} clients on it, {per_second} handshakes a second each: all back \
         after {took:.1?} (at the rate alone {:.1} s); most let in by one gateway within a second {peak:.0}; 4009 {told} times; p99 \
         of another's pulls {before:.1?} before, {during:.1?} meanwhile",
        lost as f64 / f64::from(rest * per_second)
    ));
    // A second's worth at once, and a second's.
    ensure!(peak <= 2.1 * f64::from(per_second), "{peak} a second were let in at {per_second}");
    ensure!(
        during < before * 20 + Duration::from_millis(500),
        "p99 was {before:?}, and {during:?} in the storm"
    );
    crowd.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_of_a_dead_gateway_come_back_at_the_others_rate() -> TestResult {
    storm(400, 30).await
}

/// `cargo test --release --workspace --test faults -- --ignored --nocapture storm::`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn eight_thousand_clients_of_four_gateways() -> TestResult {
    storm(8_000, 150).await
}
