//! A peer that never reads costs a bounded amount, and nobody else anything.

use std::time::Duration;

use anyhow::ensure;
use berth_proto::client::{HistoryRequest, PullRequest, Request, client_frame::Frame, request::Method};
use berth_tests::{
    TestResult,
    device::Device,
    figure, fresh,
    raw::Transport,
    server::{Composition, Options, Server},
};

/// Pushed at peers that never read.
const MESSAGES: usize = 3_000;
/// Each of the six peers may leave 16 answers of at most 1 MiB unread, which exist as rows and as bytes: 192 MiB;
/// and the store keeps what it wrote last, and its cache: 64 MiB. Without a bound it would be gigabytes: each asks
/// 4,000 times for 600 KiB.
const GROWTH: u64 = 256 * 1024 * 1024;
/// With roles apart the answers pass two links on their way, each with a queue of 32 MiB at most, windows of 4 MiB, and a batch
/// that is being written and one that is being read; and each process keeps some of what it freed.
const ON_LINKS: u64 = 128 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_never_reads_is_bounded_and_others_do_not_notice() -> TestResult {
    // Its peers flood on purpose, as one user: what bounds them here is that they do not read.
    let server = Server::start(Options::default().tireless_clients()).await?;
    let (victim, author) = (fresh("victim"), fresh("author"));
    let mut authors = Device::connect(&server.at, Transport::Tcp, &author, "d").await?;
    // Large answers to ask for: 200 rows of 3 KiB are 600 KiB a page.
    let mut conversation_id = 0;
    for n in 0..200 {
        conversation_id =
            authors.send(&victim, &format!("fill-{n}"), &"z".repeat(3 * 1024)).await?.conversation_id;
    }
    let mut deaf = Vec::new();
    for n in 0..6 {
        deaf.push(Device::connect(&server.at, Transport::ALL[n % 3], &victim, &format!("d-{n}")).await?);
    }
    let before = server.process().resident()?;

    // Each asks for pages until the gateway takes no more, and reads nothing.
    let mut stuffed = tokio::task::JoinSet::new();
    for mut device in deaf {
        stuffed.spawn(async move {
            let pull = Method::Pull(PullRequest { after_seq: 0, limit: 200 });
            let history = HistoryRequest { conversation_id, limit: 200, ..Default::default() };
            let mut taken = 0u32;
            for id in 1..4_000 {
                let method = if id % 2 == 0 { pull.clone() } else { Method::History(history) };
                let request = Request { id, method: Some(method) };
                match device.raw.push(Frame::Request(request), Duration::from_millis(500)).await {
                    Ok(true) => taken += 1,
                    Ok(false) | Err(_) => break,
                }
            }
            (device, taken)
        });
    }
    let (bob, carol) = (fresh("bob"), fresh("carol"));
    let mut bobs = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    let mut carols = Device::connect(&server.at, Transport::WsProto, &carol, "d").await?;
    let mut peak = before;
    for n in 0..MESSAGES {
        authors.send(&victim, &format!("c-{n}"), "x").await?;
        if n % 100 == 0 {
            bobs.send(&carol, &format!("c-{n}"), "are you there?").await?;
            carols.receive(1).await?;
            peak = peak.max(server.process().resident()?);
        }
    }
    peak = peak.max(server.process().resident()?);
    let mib = |bytes: u64| bytes / (1024 * 1024);
    figure(&format!(
        "never-reading peers: {} MiB before, {} MiB at the peak of {MESSAGES} pushes",
        mib(before),
        mib(peak)
    ));
    let links = if server.composition() == Composition::Apart { ON_LINKS } else { 0 };
    ensure!(peak - before < GROWTH + links, "{} MiB more", mib(peak - before));

    // One of them reads again: it was promised nothing but its inbox, which is whole.
    let mut back = Device::connect(&server.at, Transport::Tcp, &victim, "back").await?;
    ensure!(back.receive(MESSAGES + 200).await?.len() == MESSAGES + 200);
    while let Some(peer) = stuffed.join_next().await {
        let (_, taken) = peer?;
        ensure!(taken > 0, "the gateway took something");
    }
    Ok(())
}
