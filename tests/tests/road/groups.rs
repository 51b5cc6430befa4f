//! Groups: made by the back end, spoken to by members on every transport, under load with members who come and go.

use std::time::Duration;

use anyhow::{Context, ensure};
use berth_proto::client::{event::Event, request::Method, response};
use berth_tests::{
    TestResult,
    device::{Device, to_group},
    figure, fresh,
    group_load::{GroupLoad, Shape, call},
    history::{Report, groups::check},
    http,
    raw::Transport,
    server::{Options, Server},
    tokens::SERVICE_KEY,
};
use serde_json::json;

const SHAPE: Shape = Shape { stable: 8, comers: 8 };
/// For every reader to have everything after the last restart.
const PATIENCE: Duration = Duration::from_secs(30);

/// The kinds of `conversation` events in an inbox, from its start.
async fn changes(device: &mut Device) -> anyhow::Result<Vec<String>> {
    let rows = device.pull(0, 200).await?.items;
    let kinds = rows.into_iter().filter_map(|item| match item.event.and_then(|event| event.event) {
        Some(Event::Conversation(change)) => Some(change.kind),
        _ => None,
    });
    Ok(kinds.collect())
}

async fn send(device: &mut Device, method: Method) -> anyhow::Result<u64> {
    match device.request(method).await? {
        response::Result::Send(sent) => Ok(sent.conversation_id),
        other => anyhow::bail!("to send: {other:?}"),
    }
}

#[tokio::test]
async fn everybody_in_a_group_sees_one_order_on_every_transport() -> TestResult {
    let server = Server::shared().await?;
    let group = fresh("group");
    let names: Vec<String> = Transport::ALL.iter().map(|_| fresh("user")).collect();
    let mut devices = Vec::new();
    for (transport, user) in Transport::ALL.into_iter().zip(&names) {
        devices.push(Device::connect(&server.at, transport, user, "d").await?);
    }
    let made = call(&server.at, "PUT", &group, &names).await?;
    ensure!(made["groupId"] == group.as_str() && made["conversationId"].is_string(), "{made}");
    for device in &mut devices {
        device.notified(1).await?;
        ensure!(changes(device).await? == ["joined"]);
    }
    for (n, device) in devices.iter_mut().enumerate() {
        for m in 0..5 {
            let id = send(device, to_group(&group, &format!("{n}-{m}"), "x")).await?;
            let id = id.to_string();
            ensure!(made["conversationId"].as_str() == Some(&id), "{id} is not {made}");
        }
    }
    let mut orders = Vec::new();
    for device in &mut devices {
        let got = device.receive(15).await?;
        ensure!(got.len() == 15 && got.iter().all(|message| message.group_id == group), "{got:?}");
        let mut order: Vec<_> =
            got.into_iter().map(|message| (message.conversation_seq, message.message_id)).collect();
        order.sort_unstable();
        orders.push(order);
    }
    ensure!(orders.iter().all(|order| *order == orders[0]), "{orders:?}");
    ensure!(orders[0].iter().map(|(seq, _)| *seq).eq(1..=15), "contiguous: {orders:?}");
    for device in &mut devices {
        let (listed, total) = device.conversations(0).await?;
        ensure!(listed.len() == 1 && listed[0].kind == "group" && listed[0].group_id == group, "{listed:?}");
        ensure!(listed[0].unread == 10 && total == 10, "others' messages: {listed:?}");
    }
    Ok(())
}

#[tokio::test]
async fn who_joins_and_who_leaves_sees_what_was_said_in_between() -> TestResult {
    let server = Server::shared().await?;
    let (group, alice, bob) = (fresh("group"), fresh("alice"), fresh("bob"));
    let mut alices = Device::connect(&server.at, Transport::WsJson, &alice, "d").await?;
    let mut bobs = Device::connect(&server.at, Transport::Tcp, &bob, "d").await?;
    call(&server.at, "PUT", &group, std::slice::from_ref(&alice)).await?;
    let mut said = 0;
    let mut say = async |device: &mut Device| {
        said += 1;
        // Committed before the next change: her own row is there.
        send(device, to_group(&group, &format!("m{said}"), &said.to_string())).await?;
        device.notified(said + 1).await
    };
    say(&mut alices).await?;
    let refused = bobs.refused(to_group(&group, "x", "x")).await?;
    ensure!(refused.code == "PERMISSION_DENIED", "{refused:?}");
    call(&server.at, "POST", &format!("{group}/members:add"), std::slice::from_ref(&bob)).await?;
    say(&mut alices).await?;
    say(&mut alices).await?;
    call(&server.at, "POST", &format!("{group}/members:remove"), std::slice::from_ref(&bob)).await?;
    say(&mut alices).await?;
    let refused = bobs.refused(to_group(&group, "x", "x")).await?;
    ensure!(refused.code == "PERMISSION_DENIED", "{refused:?}");
    let got = bobs.receive(2).await?;
    let seqs: Vec<u64> = got.iter().map(|message| message.conversation_seq).collect();
    ensure!(seqs == [2, 3], "{seqs:?}");
    let conversation_id = got[0].conversation_id;
    let shown = bobs.history(berth_proto::client::HistoryRequest { conversation_id, ..Default::default() });
    let shown: Vec<u64> = shown.await?.0.iter().map(|message| message.conversation_seq).collect();
    ensure!(shown == [2, 3], "{shown:?}");
    bobs.notified(4).await?;
    ensure!(changes(&mut bobs).await? == ["joined", "left"]);
    let unknown = bobs.refused(to_group(&fresh("nobody"), "x", "x")).await?;
    ensure!(unknown.code == "NOT_FOUND", "{unknown:?}");
    Ok(())
}

#[tokio::test]
async fn the_back_end_speaks_to_any_group() -> TestResult {
    let server = Server::shared().await?;
    let (group, alice) = (fresh("group"), fresh("alice"));
    let mut device = Device::connect(&server.at, Transport::WsProto, &alice, "d").await?;
    call(&server.at, "PUT", &group, std::slice::from_ref(&alice)).await?;
    let url = format!("{}/v1/messages", server.at.logic);
    let body = json!({"from":"system","to":{"groupId":group},"clientMsgId":"n-1","body":"aGk="});
    let answer = http::post(&url, Some(SERVICE_KEY), &body).await?;
    ensure!(answer.status == 200, "{answer:?}");
    let got = device.receive(1).await?.remove(0);
    ensure!(got.from == "system" && got.group_id == group, "{got:?}");
    let body = json!({"from":fresh("mallory"),"to":{"groupId":group},"clientMsgId":"n-2"});
    ensure!(http::post(&url, Some(SERVICE_KEY), &body).await?.status == 403, "who is no member may not");
    Ok(())
}

/// Made in steps, so that nobody else waits; asked again it changes nothing.
#[tokio::test]
async fn a_group_of_ten_thousand_is_made_and_hears() -> TestResult {
    let server = Server::shared().await?;
    let group = fresh("crowd");
    let mut users: Vec<String> = (0..10_000).map(|n| format!("{group}-u{n}")).collect();
    let begun = std::time::Instant::now();
    call(&server.at, "PUT", &group, &users).await?;
    let made = begun.elapsed();
    let again = call(&server.at, "PUT", &group, &users).await?;
    ensure!(again["memberCount"] == 10_000 || again["memberCount"] == "10000", "{again}");
    users.sort();
    let (first, last) = (users.first().context("some")?, users.last().context("some")?);
    let mut first = Device::connect(&server.at, Transport::Tcp, first, "d").await?;
    let mut last = Device::connect(&server.at, Transport::WsProto, last, "d").await?;
    ensure!(last.welcome.inbox_seq == 1, "joined once");
    let begun = std::time::Instant::now();
    send(&mut first, to_group(&group, "c", "hello, all")).await?;
    let rows = last.receive(1).await?;
    ensure!(rows.len() == 1 && rows[0].body == "hello, all".as_bytes(), "{rows:?}");
    let heard = begun.elapsed();
    figure(&format!("a group of 10,000: made in {made:.0?}, the last member hears after {heard:.0?}"));
    Ok(())
}

/// Kills the process `rounds` times under load.
async fn under_load(rounds: u64) -> anyhow::Result<Report> {
    let mut server = Server::start(Options::default()).await?;
    let load = GroupLoad::start(&server.at, SHAPE, &fresh("load")).await?;
    for round in 0..rounds {
        load.more_acked(200 + 397 * round % 1_000).await?;
        server.kill9();
        server.restart(&[]).await?;
        load.moved(&server.at);
    }
    load.more_acked(400).await?;
    let (events, stable) = load.finish(PATIENCE).await?;
    Ok(check(&events, &stable))
}

fn check_clean(what: &str, report: &Report) -> TestResult {
    figure(&format!("{what}: {report}"));
    ensure!(report.clean(), "{report:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_who_come_and_go_see_exactly_their_stays() -> TestResult {
    check_clean("group, members come and go", &under_load(0).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_group_load_loses_nothing() -> TestResult {
    check_clean("group, kill -9, 1 round", &under_load(1).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn kill_9_ten_times_under_group_load_loses_nothing() -> TestResult {
    check_clean("group, kill -9, 10 rounds", &under_load(10).await?)
}
