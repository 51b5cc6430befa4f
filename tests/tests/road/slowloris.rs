//! Thousands who connect and dawdle, at each step before hello: they cost little and go in time, honest clients do not wait.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use berth_tests::{
    TestResult,
    device::Device,
    figure, fresh,
    hostile::{quantile, upgrade, upgraded},
    metrics::Scrape,
    raw::Transport,
    server::{Options, Server},
    tokens::{sign, ticket},
    wait,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

/// FAULTS.md 10.
const STUCK: usize = 5_000;
/// And what an honest client may take beside them.
const HONEST: Duration = Duration::from_secs(1);
/// A stuck connection may make the server's memory grow by this, all told: its state, and what is kept of its bytes.
const EACH: u64 = 2 * 1024;
/// The hello deadline of 10 s, a second of the timer wheel, 5 s for a peer that does not take the goodbye, and some for a
/// busy machine.
const GONE: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_who_dawdle_hold_up_nobody_and_are_gone_in_time() -> TestResult {
    let server = Server::start(Options::default().handshakes_per_second(100_000)).await?;
    let alone = honest(&server).await?;
    let before = server.process().resident()?;
    let begun = Instant::now();
    let (mut stuck, mut slow) = (Vec::new(), Vec::new());
    for n in 0..STUCK {
        let gateway = &server.at.gateway;
        let connected = || async { anyhow::Ok(wait::within("connect", TcpStream::connect(gateway)).await??) };
        match n % 3 {
            0 => stuck.push(connected().await.with_context(|| format!("connection {n}"))?),
            1 => slow.push(connected().await?),
            _ => stuck.push(upgraded(gateway).await.with_context(|| format!("connection {n}"))?),
        }
    }
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(9), "{STUCK} connections took {took:?}: the first are gone already");
    // The head of a request, a byte a second.
    let head = upgrade(&server.at.gateway).into_bytes();
    let drip = tokio::spawn(async move {
        for byte in head {
            for stream in &mut slow {
                // The gateway hangs up on them one after the other.
                let _ = stream.write_all(&[byte]).await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let beside = honest(&server).await?;
    let each = server.process().resident()?.saturating_sub(before) / STUCK as u64;
    let closed = |scrape: &Scrape| scrape.sum("berth_gateway_connections_closed_total", &[("code", "4008")]);
    wait::until_within("the stuck are gone", GONE, || async {
        let scrape = Scrape::fetch(&server.at.admin).await?;
        let gone = scrape.sum("berth_gateway_connections", &[]) <= 0.0;
        Ok((gone && closed(&scrape) >= STUCK as f64).then_some(()))
    })
    .await?;
    let all = begun.elapsed();
    drip.abort();
    drop(stuck);
    figure(&format!(
        "slowloris: {STUCK} stuck before hello: {each} bytes each; connect to welcome p50 {:.1} ms alone, {:.1} ms beside \
         them (x {:.2}), worst {:.1} ms; all gone {:.1} s after the first came",
        ms(alone.0),
        ms(beside.0),
        ms(beside.0) / ms(alone.0),
        ms(beside.1),
        all.as_secs_f64()
    ));
    ensure!(beside.1 < HONEST, "an honest client took {:?}", beside.1);
    ensure!(each < EACH, "{each} bytes for each who dawdles");
    Ok(())
}

/// Median and worst of some honest connects, from the first byte to welcome.
async fn honest(server: &Server) -> anyhow::Result<(Duration, Duration)> {
    let mut samples = Vec::new();
    for n in 0..60 {
        let (user, transport) = (fresh("honest"), Transport::ALL[n % 3]);
        let ticket = sign(&ticket(&user, "d", "gw-1"));
        let begun = Instant::now();
        Device::connect_to(&server.at.gateway, transport, &ticket, "d").await?;
        samples.push(begun.elapsed());
    }
    Ok((quantile(&mut samples, 0.5), quantile(&mut samples, 1.0)))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// The same with fewer slots than peers: the oldest give way, also when they are faster than the deadline.
#[tokio::test]
async fn those_who_dawdle_give_way_to_those_who_come() -> TestResult {
    let server = Server::start(Options::default().env("BERTH_GATEWAY__PENDING_HANDSHAKES", 100)).await?;
    let mut opening = JoinSet::new();
    for _ in 0..600 {
        let gateway = server.at.gateway.clone();
        opening.spawn(async move { TcpStream::connect(gateway).await });
    }
    let stuck = opening.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let limited = wait::until("the oldest give way", || async {
        let scrape = Scrape::fetch(&server.at.admin).await?;
        let limited = scrape.sum("berth_gateway_limited_total", &[("limit", "pending_handshakes")]);
        Ok((limited >= 500.0).then_some(limited))
    });
    limited.await?;
    honest(&server).await?;
    drop(stuck);
    Ok(())
}
