//! One gateway of four dies with its share of a crowd. Its clients hold tickets for the other three and ask nobody: what they
//! are let in at is those gateways' handshake rate, whoever else comes, and those who are connected there hardly notice.

use std::time::{Duration, Instant};

use anyhow::Context;
use berth_tests::{
    TestResult, ensure, figure,
    server::{Role, SCHEDULERS, Server},
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

/// Welcomes come later than their hellos by what logic takes: this part of a second's worth may come together with those behind it.
const TOGETHER: f64 = 0.5;

/// How many were let in by a gateway.
struct Count {
    asked: Instant,
    let_in: f64,
    answered: Instant,
}

/// Looks at a gateway's counter until it is told to end.
async fn count(server: &Server, index: usize, end: watch::Receiver<bool>) -> anyhow::Result<Vec<Count>> {
    let mut counts = Vec::new();
    while !*end.borrow() {
        let asked = Instant::now();
        let scrape = server.scrape(Role::Gateway(index)).await?;
        let let_in = scrape.sum("berth_gateway_handshakes_total", &[("result", "welcomed")]);
        counts.push(Count { asked, let_in, answered: Instant::now() });
        tokio::time::sleep(LOOK).await;
    }
    Ok(counts)
}

/// The most that was let in within any second or a little more, and the most that this was above the rate.
fn peak(counts: &[Count], per_second: u32) -> (f64, f64) {
    let windows = counts.iter().enumerate().filter_map(|(at, from)| {
        let until =
            counts[at..].iter().find(|until| until.answered - from.asked >= Duration::from_secs(1))?;
        let let_in = until.let_in - from.let_in;
        Some((let_in, let_in - f64::from(per_second) * (until.answered - from.asked).as_secs_f64()))
    });
    windows.fold((0.0, 0.0), |(most, above), (let_in, over)| (most.max(let_in), above.max(over)))
}

/// What schedulers told those who asked them, from one moment to another.
struct Asked {
    /// Clients with a place in a queue.
    queued: f64,
    /// The longest wait that any of them would have told a newcomer.
    longest: Duration,
}

/// How many were told a place so far, and for how long the next would wait.
async fn asked(server: &Server) -> anyhow::Result<Asked> {
    let (mut queued, mut longest) = (0.0, 0.0f64);
    for index in 0..SCHEDULERS {
        let scrape = server.scrape(Role::Scheduler(index)).await?;
        queued += scrape.sum("berth_scheduler_admissions_total", &[("outcome", "queued")]);
        longest = longest.max(scrape.sum("berth_scheduler_admission_queue_seconds", &[]));
    }
    Ok(Asked { queued, longest: Duration::from_secs_f64(longest) })
}

/// What schedulers tell until the end.
async fn asking(server: &Server, end: watch::Receiver<bool>) -> anyhow::Result<Asked> {
    let before = asked(server).await?.queued;
    let mut longest = Duration::ZERO;
    loop {
        let now = asked(server).await?;
        longest = longest.max(now.longest);
        if *end.borrow() {
            return Ok(Asked { queued: now.queued - before, longest });
        }
        tokio::time::sleep(4 * LOOK).await;
    }
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

/// In which clients find out that their gateway is gone, and the others that it is over: beside three times what the rate takes.
const FOUND_OUT: Duration = Duration::from_secs(10);

/// Ten times as long as it takes at the rate, and the time in which clients find out.
fn patience(clients: usize, gateways: usize, per_second: u32) -> Duration {
    Duration::from_secs(30) + 10 * Duration::from_secs(clients as u64) / (gateways as u32 * per_second)
}

/// How often the gateways told somebody to come later.
async fn told(server: &Server) -> anyhow::Result<f64> {
    let mut told = 0.0;
    for index in (0..GATEWAYS).filter(|index| *index != DIES) {
        let limited = server.scrape(Role::Gateway(index)).await?;
        told += limited.sum("berth_gateway_limited_total", &[("limit", "handshakes")]);
    }
    Ok(told)
}

async fn storm(clients: usize, per_second: u32) -> TestResult {
    let options = options_for_an_ended_lease().gateways(GATEWAYS).handshakes_per_second(per_second);
    let mut server = Server::start(options).await?;
    let crowd =
        Crowd::connect_within(&server.at, clients, "crowd", patience(clients, GATEWAYS, per_second)).await?;
    let id = format!("gw-{}", DIES + 1);
    let lost = crowd.at(&id);
    ensure!(lost > clients / GATEWAYS / 2, "only {lost} of {clients} are at {id}");
    let before = measured(&server, BEFORE).await?;
    let told_before = told(&server).await?;

    server.kill9_role(Role::Gateway(DIES));
    let (end, ended) = watch::channel(false);
    let rest = GATEWAYS - 1;
    let server = &server;
    let counting = async {
        let [a, b, c] = [1, 2, 3].map(|index| count(server, DIES + index, ended.clone()));
        tokio::try_join!(a, b, c)
    };
    let back = async {
        let took = crowd.all_back_within(&id, patience(lost, rest, per_second)).await;
        end.send_replace(true);
        took
    };
    let pulling = pull(server, DIES + 1, ended.clone());
    let (counts, pulls, asked, took) = tokio::join!(counting, pulling, asking(server, ended.clone()), back);
    let ((a, b, c), Asked { queued, longest }, took) = (counts?, asked?, took?);
    let during = p99(&mut pulls?)?;
    let peaks = [a, b, c].map(|counts| peak(&counts, per_second));
    let [peak, above] = [peaks.map(|(most, _)| most), peaks.map(|(_, above)| above)]
        .map(|of| of.into_iter().fold(0.0, f64::max));
    let told = told(server).await? - told_before;
    let alone = Duration::from_secs_f64(lost as f64 / f64::from(rest as u32 * per_second));
    figure(&format!(
        "kill -9 of one of {GATEWAYS} gateways, {lost} of {clients} clients on it, {per_second} handshakes a second each: all back \
         after {took:.1?} (at the rate alone {alone:.1?}); most let in by one gateway within a second {peak:.0}; 4009 {told} times (while all connected: \
         {told_before}); \
         503 with a place {queued} times, the longest wait {longest:.1?}; p99 of another's pulls {before:.1?} before, {during:.1?} \
         meanwhile"
    ));
    ensure!(took < 3 * alone + FOUND_OUT, "{took:?} where the rate takes {alone:?}");
    ensure!(told > 0.0, "nobody was told to come later: too few came for the rate to matter");
    let burst = f64::from(per_second);
    ensure!(
        above <= burst * (1.0 + TOGETHER),
        "{peak} were let in within a second at {per_second}, {above} above the rate: more than the {burst} that may come at once"
    );
    ensure!(
        during < before * 20 + Duration::from_millis(500),
        "p99 was {before:?}, and {during:?} in the storm"
    );
    crowd.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_of_a_dead_gateway_come_back_at_the_others_rate() -> TestResult {
    // A hundred come back to three gateways, half of them within a second: three times what the rate lets in at once and in it.
    storm(400, 6).await
}

/// `cargo test --release --workspace --test faults -- --ignored --nocapture storm::`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn eight_thousand_clients_of_four_gateways() -> TestResult {
    storm(8_000, 150).await
}
