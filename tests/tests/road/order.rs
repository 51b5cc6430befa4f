//! Order and no duplicate under 16 concurrent senders.

use std::time::Duration;

use anyhow::ensure;
use berth_tests::{
    TestResult,
    device::{Device, send_to},
    figure, fresh,
    history::check,
    load::{Load, Shape},
    raw::Transport,
    server::Server,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_senders_are_seen_in_order_and_once() -> TestResult {
    let server = Server::shared().await?;
    let load = Load::start(&server.at, Shape { senders: 16, receivers: 4 }, &fresh("order"));
    load.more_acked(1_500).await?;
    let report = check(&load.finish(Duration::from_secs(30)).await?);
    figure(&format!("16 concurrent senders: {report}"));
    ensure!(report.clean() && report.acked >= 1_500, "{report:#?}");
    Ok(())
}

/// One conversation, both ends and everybody's order: 16 users to one, all at once, 16 requests in flight each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_sends_keep_their_order() -> TestResult {
    let server = Server::shared().await?;
    let bob = fresh("bob");
    let mut bobs = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    let mut senders = tokio::task::JoinSet::new();
    for n in 0..16 {
        let (at, bob) = (server.at.clone(), bob.clone());
        senders.spawn(async move {
            let mut device = Device::connect(&at, Transport::ALL[n % 3], &fresh("sender"), "d").await?;
            for round in 0..4 {
                let mut ids = Vec::new();
                for nth in 0..16 {
                    let number = format!("{:03}", round * 16 + nth);
                    ids.push(device.start(send_to(&bob, &number, &number)).await?);
                }
                let mut last = 0;
                for id in ids {
                    let result = device.finish(id).await?;
                    let berth_proto::client::response::Result::Send(sent) = result else {
                        anyhow::bail!("{result:?}")
                    };
                    ensure!(sent.message_id > last, "ids grow in the order sent");
                    last = sent.message_id;
                }
            }
            Ok(())
        });
    }
    while let Some(sender) = senders.join_next().await {
        sender??;
    }
    let got = bobs.receive(16 * 64).await?;
    ensure!(got.len() == 16 * 64, "{} messages", got.len());
    let mut last = std::collections::HashMap::new();
    for message in got {
        let before = last.insert(message.from.clone(), message.client_msg_id.clone());
        let ordered = before.as_ref().is_none_or(|before| *before < message.client_msg_id);
        ensure!(ordered, "{message:?} after {before:?}");
    }
    Ok(())
}
