//! Conversations, history, unread and read: consistent, and told to every device.

use anyhow::{Context, ensure};
use berth_proto::client::{HistoryRequest, MarkReadRequest, event, request::Method};
use berth_tests::{TestResult, device::Device, fresh, raw::Transport, server::Server};

#[tokio::test]
async fn unread_counts_others_messages_and_read_events_sync() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob, carol) = (fresh("alice"), fresh("bob"), fresh("carol"));
    let mut alices = Device::connect(&server.at, Transport::WsProto, &alice, "d").await?;
    let mut carols = Device::connect(&server.at, Transport::Tcp, &carol, "d").await?;
    let mut phone = Device::connect(&server.at, Transport::WsJson, &bob, "phone").await?;
    let mut laptop = Device::connect(&server.at, Transport::Tcp, &bob, "laptop").await?;
    let with_alice = alices.send(&bob, "a-1", "1").await?.conversation_id;
    alices.send(&bob, "a-2", "2").await?;
    phone.receive(2).await?;
    phone.send(&alice, "b-1", "3").await?;
    phone.receive(1).await?;
    let with_carol = carols.send(&bob, "c-1", "1").await?.conversation_id;
    phone.receive(1).await?;

    let (conversations, total) = phone.conversations(0).await?;
    ensure!(total == 3 && conversations.len() == 2, "{total} {conversations:?}");
    ensure!(conversations[0].conversation_id == with_carol, "newest activity first: {conversations:?}");
    let direct = &conversations[1];
    ensure!(direct.kind == "direct" && direct.peer_id == alice && direct.group_id.is_empty(), "{direct:?}");
    ensure!(
        (direct.last_seq, direct.read_seq, direct.unread) == (3, 0, 2),
        "own messages do not count: {direct:?}"
    );
    ensure!(direct.last_message.as_ref().is_some_and(|m| m.client_msg_id == "b-1"), "{direct:?}");

    let seq = laptop.receive(4).await?.len();
    ensure!(seq == 4);
    let read = phone.mark_read(with_alice, 1).await?;
    ensure!((read.unread, read.total_unread) == (1, 2), "{read:?}");
    laptop.notified(5).await?;
    let event = laptop.sync().await?.pop().and_then(|item| item.event).and_then(|e| e.event);
    match event.context("a row")? {
        event::Event::Read(read) => {
            ensure!((read.conversation_id, read.seq) == (with_alice, 1), "{read:?}");
        }
        other => anyhow::bail!("{other:?}"),
    }
    let back = phone.mark_read(with_alice, 0).await?;
    ensure!((back.unread, back.total_unread) == (1, 2), "never goes back: {back:?}");
    let all = laptop.mark_read(with_alice, 3).await?;
    ensure!((all.unread, all.total_unread) == (0, 1), "{all:?}");
    let beyond = laptop.mark_read(with_carol, 1_000).await?;
    ensure!((beyond.unread, beyond.total_unread) == (0, 0), "{beyond:?}");
    carols.send(&bob, "c-2", "2").await?;
    phone.notified(phone.cursor + 1).await?;
    let later = phone.conversations(0).await?;
    let carols_now = later.0.iter().find(|c| c.conversation_id == with_carol).context("is listed")?;
    ensure!(later.1 == carols_now.unread, "the total is the sum: {later:?}");
    Ok(())
}

#[tokio::test]
async fn marking_what_one_is_no_member_of_is_refused() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob, eve) = (fresh("alice"), fresh("bob"), fresh("eve"));
    let mut alices = Device::connect(&server.at, Transport::WsJson, &alice, "d").await?;
    let mut eves = Device::connect(&server.at, Transport::WsJson, &eve, "d").await?;
    let conversation_id = alices.send(&bob, "c", "x").await?.conversation_id;
    let error = eves.refused(Method::MarkRead(MarkReadRequest { conversation_id, seq: 1 })).await?;
    ensure!(error.code == "PERMISSION_DENIED", "{error:?}");
    let history = HistoryRequest { conversation_id, ..Default::default() };
    let error = eves.refused(Method::History(history)).await?;
    ensure!(error.code == "PERMISSION_DENIED", "{error:?}");
    let unknown = HistoryRequest { conversation_id: u64::MAX, ..Default::default() };
    let error = eves.refused(Method::History(unknown)).await?;
    ensure!(matches!(error.code.as_str(), "PERMISSION_DENIED" | "NOT_FOUND"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn history_pages_both_ways() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut device = Device::connect(&server.at, Transport::WsProto, &alice, "d").await?;
    let mut conversation_id = 0;
    for n in 1..=30 {
        conversation_id = device.send(&bob, &format!("c-{n}"), &n.to_string()).await?.conversation_id;
    }
    device.receive(30).await?;
    let ask = |after_seq, before_seq, limit| HistoryRequest { conversation_id, after_seq, before_seq, limit };
    let cases = [
        (ask(0, 0, 10), 21..=30, true),
        (ask(0, 21, 10), 11..=20, true),
        (ask(0, 11, 10), 1..=10, false),
        (ask(5, 0, 10), 6..=15, true),
        (ask(25, 0, 10), 26..=30, false),
        (ask(0, 0, 0), 1..=30, false),
    ];
    for (request, expected, more) in cases {
        let (messages, has_more) = device.history(request).await?;
        let seqs: Vec<_> = messages.iter().map(|m| m.conversation_seq).collect();
        ensure!(seqs.iter().copied().eq(expected.clone()), "{request:?}: {seqs:?}, not {expected:?}");
        ensure!(has_more == more, "{request:?}: hasMore {has_more}");
    }
    let (beyond, more) = device.history(ask(30, 0, 0)).await?;
    ensure!(beyond.is_empty() && !more, "{beyond:?}");
    Ok(())
}

#[tokio::test]
async fn conversations_page_newest_first_without_repeats() -> TestResult {
    let server = Server::shared().await?;
    let alice = fresh("alice");
    let mut device = Device::connect(&server.at, Transport::Tcp, &alice, "d").await?;
    let mut expected = Vec::new();
    for n in 0..25 {
        let peer = fresh("peer");
        device.send(&peer, &format!("c-{n}"), "x").await?;
        // One by one, so that the activity has an order.
        device.receive(1).await?;
        expected.insert(0, peer);
    }
    for limit in [0, 1, 7, 25] {
        let (conversations, _) = device.conversations(limit).await?;
        let peers: Vec<_> = conversations.into_iter().map(|c| c.peer_id).collect();
        ensure!(peers == expected, "limit {limit}: {peers:?}");
    }
    let oldest = expected.last().cloned().context("there are some")?;
    device.send(&oldest, "again", "x").await?;
    device.receive(1).await?;
    let (conversations, _) = device.conversations(0).await?;
    ensure!(conversations[0].peer_id == oldest && conversations.len() == 25, "moves to the front");
    Ok(())
}
