//! One noisy user, one noisy address: their limits hold, and the others' latency stays what it was.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use berth_proto::client::{PullRequest, request::Method};
use berth_tests::{
    TestResult,
    device::{Device, Refused},
    figure, fresh,
    hostile::{connect_from, quantile},
    metrics::Scrape,
    raw::Transport,
    server::{Options, Server},
    tokens::{sign, ticket},
};
use tokio::task::JoinSet;

/// How long each measurement goes on.
const MEASURED: Duration = Duration::from_secs(3);
/// The others' p99 may grow by this factor: the noise shares two cores with the server, its clients and other tests.
const FACTOR: f64 = 20.0;
/// Below this a factor says nothing: it is a turn of the scheduler.
const FLOOR: Duration = Duration::from_millis(20);

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

fn check(what: &str, mut alone: Vec<Duration>, mut beside: Vec<Duration>, noise: &str) -> TestResult {
    let quiet = (quantile(&mut alone, 0.5), quantile(&mut alone, 0.99));
    let noisy = (quantile(&mut beside, 0.5), quantile(&mut beside, 0.99));
    figure(&format!(
        "{what}: {noise}; the others p50 {:.2} -> {:.2} ms (x {:.2}), p99 {:.2} -> {:.2} ms (x {:.2}), {} and {} samples",
        ms(quiet.0),
        ms(noisy.0),
        ms(noisy.0) / ms(quiet.0),
        ms(quiet.1),
        ms(noisy.1),
        ms(noisy.1) / ms(quiet.1),
        alone.len(),
        beside.len()
    ));
    ensure!(
        ms(noisy.1) < FACTOR * ms(quiet.1.max(FLOOR)),
        "p99 {:?} beside the noise, {:?} alone",
        noisy.1,
        quiet.1
    );
    Ok(())
}

/// A user's share is that at one gateway, so all go to the first.
async fn at_one_gateway(
    server: &Server,
    transport: Transport,
    user: &str,
    device: &str,
) -> anyhow::Result<Device> {
    let ticket = sign(&ticket(user, device, "gw-1"));
    Device::connect_to(&server.at.gateway, transport, &ticket, device).await
}

fn pull() -> Method {
    Method::Pull(PullRequest { after_seq: 0, limit: 1 })
}

/// Round trips of quiet users' requests, one at a time each.
async fn round_trips(devices: &mut [Device]) -> anyhow::Result<Vec<Duration>> {
    let (mut samples, begun) = (Vec::new(), Instant::now());
    while begun.elapsed() < MEASURED {
        for device in &mut *devices {
            let asked = Instant::now();
            device.request(pull()).await?;
            samples.push(asked.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(samples)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_noisy_user_has_his_share_and_no_more() -> TestResult {
    let options = Options::default().env("BERTH_GATEWAY__REQUESTS_PER_SECOND_PER_USER", 500);
    let server = Server::start(options).await?;
    let mut quiet = Vec::new();
    for n in 0..10 {
        quiet.push(at_one_gateway(&server, Transport::ALL[n % 3], &fresh("quiet"), "d").await?);
    }
    let alone = round_trips(&mut quiet).await?;

    let (stop, served, refused) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (user, mut noise) = (fresh("noisy"), JoinSet::new());
    let begun = Instant::now();
    for n in 0..6 {
        let mut device = at_one_gateway(&server, Transport::ALL[n % 3], &user, &format!("d-{n}")).await?;
        let (stop, served, refused) = (stop.clone(), served.clone(), refused.clone());
        noise.spawn(async move {
            while !stop.load(Relaxed) {
                match device.request(pull()).await {
                    Ok(_) => served.fetch_add(1, Relaxed),
                    Err(error) if error.is::<Refused>() => refused.fetch_add(1, Relaxed),
                    // The connection's own limit on frames.
                    Err(_) => return,
                };
            }
        });
    }
    let beside = round_trips(&mut quiet).await?;
    stop.store(true, Relaxed);
    noise.join_all().await;
    let (seconds, served, refused) =
        (begun.elapsed().as_secs_f64(), served.load(Relaxed), refused.load(Relaxed));
    check(
        "noisy user",
        alone,
        beside,
        &format!("{served} requests served and {refused} refused in {seconds:.1} s at 500/s"),
    )?;
    ensure!(refused > 0 && (served as f64) < 500.0 * (seconds + 1.5), "{served} served in {seconds:.1} s");
    let counted = Scrape::fetch(&server.at.admin).await?;
    ensure!(counted.sum("berth_gateway_limited_total", &[("limit", "user_requests")]) >= refused as f64);
    Ok(())
}

/// From connect to welcome, one client after the other.
async fn connects(server: &Server) -> anyhow::Result<Vec<Duration>> {
    let (mut samples, begun) = (Vec::new(), Instant::now());
    while begun.elapsed() < MEASURED {
        let asked = Instant::now();
        at_one_gateway(server, Transport::ALL[samples.len() % 3], &fresh("honest"), "d").await?;
        samples.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(samples)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_noisy_address_uses_up_nobody_else_s_handshakes() -> TestResult {
    let options = Options::default()
        .env("BERTH_GATEWAY__EXEMPT_ADDRESSES", "127.0.0.1")
        .env("BERTH_GATEWAY__HANDSHAKES_PER_SECOND_PER_ADDRESS", 50)
        .env("BERTH_GATEWAY__CONNECTIONS_PER_ADDRESS", 100);
    let server = Server::start(options).await?;
    let alone = connects(&server).await?;

    let (stop, tried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (gateway, over, count) = (server.at.gateway.clone(), stop.clone(), tried.clone());
    let noise = tokio::spawn(async move {
        let mut held = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while !over.load(Relaxed) {
            tick.tick().await;
            // In bursts of ten: a thousand a second, twenty times its share. The gateway may hang up in the middle.
            for _ in 0..10 {
                held.extend(connect_from([127, 0, 0, 2], &gateway).await.ok());
                count.fetch_add(1, Relaxed);
            }
            held.truncate(100);
        }
    });
    let beside = connects(&server).await?;
    stop.store(true, Relaxed);
    noise.await?;
    let scrape = Scrape::fetch(&server.at.admin).await?;
    let limited = |limit: &str| scrape.sum("berth_gateway_limited_total", &[("limit", limit)]);
    let (rate, held) = (limited("address_rate"), limited("address_connections"));
    let tried = tried.load(Relaxed);
    check(
        "noisy address",
        alone,
        beside,
        &format!("{tried} connects tried, {rate} dropped for their rate, {held} for their number"),
    )?;
    ensure!(rate > 0.0, "the limit was met");
    let log = server.process().log();
    let said =
        log.lines().iter().filter(|line| line.contains("connections are dropped for their address")).count();
    ensure!(said == 1, "the log says {said} times that it began");
    Ok(())
}

#[tokio::test]
async fn more_devices_of_a_user_than_allowed_are_refused_with_4506() -> TestResult {
    let server = Server::start(Options::default().env("BERTH_LOGIC__SESSIONS_PER_USER", 2)).await?;
    let user = fresh("alice");
    let mut first = Device::connect(&server.at, Transport::Tcp, &user, "d-1").await?;
    let _second = Device::connect(&server.at, Transport::WsJson, &user, "d-2").await?;
    for transport in Transport::ALL {
        let mut raw = berth_tests::raw::Raw::connect(transport, &server.at.gateway).await?;
        raw.send(berth_tests::device::hello(&sign(&ticket(&user, "d-3", "gw-1")), "d-3")).await?;
        let ending = raw.ending().await?;
        ensure!(ending.code(transport)? == 4506, "{ending:?}");
    }
    // The same device again is no other one.
    let _again = Device::connect(&server.at, Transport::WsProto, &user, "d-1").await?;
    ensure!(first.ending().await?.code(Transport::Tcp)? == 4504);
    let scrape = Scrape::fetch(&server.at.admin).await?;
    ensure!(scrape.sum("berth_logic_sessions_refused_total", &[]) >= 3.0);
    Ok(())
}
