//! A peer that never reads costs a bounded amount, and nobody else anything.

use std::time::Duration;

use anyhow::ensure;
use berth_proto::{
    client::{HistoryRequest, PullRequest, Request, client_frame::Frame, request::Method},
    limits,
};
use berth_tests::{
    TestResult,
    device::Device,
    figure, fresh,
    raw::Transport,
    server::{Composition, Options, Server},
};

/// Pushed at peers that never read.
const MESSAGES: usize = 3_000;
/// Who do not read.
const PEERS: usize = 6;
/// Of each three answers exist: two that are fetched and one that is unsent, as rows and as bytes.
const ANSWERS: u64 = PEERS as u64 * 3 * (limits::RESPONSE_ROWS + limits::SERVER_FRAME) as u64;
/// What the store gathers before it writes a table, twice: one is being written.
const STORE: u64 = 2 * 16 * 1024 * 1024;
/// 61 MiB. Without a bound it would be gigabytes: each asks 4,000 times for 600 KiB.
const GROWTH: u64 = ANSWERS + STORE;
/// With roles apart the answers pass a link on their way: as bytes of a batch that is written and of one that is read.
const ON_LINKS: u64 = 2 * ANSWERS;

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
    for n in 0..PEERS {
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
