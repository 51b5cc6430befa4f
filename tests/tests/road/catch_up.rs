//! Offline then catch up, and several devices with a cursor each.

use anyhow::ensure;
use berth_proto::client::AckRequest;
use berth_proto::client::request::Method;
use berth_tests::{TestResult, device::Device, fresh, raw::Transport, server::Server};

#[tokio::test]
async fn who_was_offline_pulls_everything_in_pages() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut alices = Device::connect(&server.at, Transport::Tcp, &alice, "d").await?;
    for n in 0..250 {
        alices.send(&bob, &format!("c-{n}"), &n.to_string()).await?;
    }
    // The last row is spread when a reader of its own is told so.
    let mut first = Device::connect(&server.at, Transport::Tcp, &bob, "first").await?;
    first.receive(250).await?;
    drop(first);

    let mut bobs = Device::connect(&server.at, Transport::WsJson, &bob, "second").await?;
    ensure!(bobs.welcome.inbox_seq == 250, "welcome tells the newest row: {:?}", bobs.welcome);
    let page = bobs.pull(0, 0).await?;
    ensure!(page.items.len() == 100 && page.has_more, "limit 0 means 100: {}", page.items.len());
    ensure!(page.latest_seq == 250 && page.inbox_epoch == bobs.welcome.inbox_epoch, "{:?}", page.latest_seq);
    ensure!(page.floor_seq <= 1, "nothing expired: {}", page.floor_seq);
    let page = bobs.pull(100, 200).await?;
    ensure!(page.items.iter().map(|item| item.seq).eq(101..=250) && !page.has_more, "{page:?}");
    let page = bobs.pull(250, 0).await?;
    ensure!(page.items.is_empty() && !page.has_more && page.latest_seq == 250, "{page:?}");
    let page = bobs.pull(1_000, 0).await?;
    ensure!(page.items.is_empty() && page.latest_seq == 250, "a cursor from nowhere gets nothing: {page:?}");
    let texts = bobs.sync_messages().await?;
    ensure!(texts.iter().enumerate().all(|(n, m)| m.body == n.to_string().as_bytes()), "in order");
    Ok(())
}

#[tokio::test]
async fn each_device_reads_everything_whatever_the_other_acked() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut alices = Device::connect(&server.at, Transport::WsProto, &alice, "phone").await?;
    let mut phone = Device::connect(&server.at, Transport::WsJson, &bob, "phone").await?;
    let mut laptop = Device::connect(&server.at, Transport::Tcp, &bob, "laptop").await?;
    for n in 0..5 {
        alices.send(&bob, &format!("c-{n}"), "x").await?;
    }
    let on_phone = phone.receive(5).await?;
    phone.request(Method::Ack(AckRequest { seq: 5 })).await?;
    let on_laptop = laptop.receive(5).await?;
    ensure!(on_phone == on_laptop, "both devices see the same");
    let mut tablet = Device::connect(&server.at, Transport::WsProto, &bob, "tablet").await?;
    ensure!(tablet.receive(5).await? == on_phone, "and so does one that comes later");
    Ok(())
}

#[tokio::test]
async fn the_senders_other_devices_see_what_he_sent() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut phone = Device::connect(&server.at, Transport::WsJson, &alice, "phone").await?;
    let mut laptop = Device::connect(&server.at, Transport::Tcp, &alice, "laptop").await?;
    for n in 0..10 {
        let to = if n % 2 == 0 { bob.clone() } else { fresh("carol") };
        phone.send(&to, &format!("c-{n}"), "x").await?;
    }
    let seen = laptop.receive(10).await?;
    let ids: Vec<_> = seen.iter().map(|m| m.client_msg_id.clone()).collect();
    let sent: Vec<_> = (0..10).map(|n| format!("c-{n}")).collect();
    ensure!(ids == sent, "his order over all conversations: {ids:?}");
    Ok(())
}

#[tokio::test]
async fn a_message_to_oneself_is_one_row() -> TestResult {
    let server = Server::shared().await?;
    let alice = fresh("alice");
    let mut device = Device::connect(&server.at, Transport::WsJson, &alice, "d").await?;
    device.send(&alice, "note", "buy milk").await?;
    let seen = device.receive(1).await?;
    device.send(&alice, "note-2", "and bread").await?;
    let more = device.receive(1).await?;
    ensure!(seen.len() == 1 && more.len() == 1, "{seen:?} {more:?}");
    let (conversations, unread) = device.conversations(0).await?;
    ensure!(conversations.len() == 1 && unread == 0, "own messages are read: {conversations:?}");
    Ok(())
}
