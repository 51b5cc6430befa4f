//! A graceful stop: everybody is told when to come back, what was acknowledged is there after it. And one before anything
//! serves.

use std::process::{Child, Command, Stdio};

use anyhow::Context;
use berth_proto::client::client_frame::Frame;
use berth_tests::{
    TestResult,
    device::{Device, send_to},
    ensure, fresh,
    raw::Transport,
    server::{Options, Server, berth},
    tokens, wait,
};
use tokio::net::unix::pipe;

const SPREAD_MS: u32 = 1_000;

#[tokio::test]
async fn sigterm_tells_everybody_to_come_back_spread_out() -> TestResult {
    let options = Options::default().env("BERTH_GATEWAY__DRAIN_SPREAD_MS", SPREAD_MS);
    let mut server = Server::start(options).await?;
    let mut devices = Vec::new();
    for n in 0..30 {
        devices.push(Device::connect(&server.at, Transport::ALL[n % 3], &fresh("user"), "d").await?);
    }
    let bob = fresh("bob");
    let sent = devices[0].send(&bob, "c-1", "before the stop").await?;
    let epoch = devices[0].welcome.inbox_epoch;
    server.sigterm()?;
    let mut waits = std::collections::BTreeSet::new();
    for mut device in devices {
        let transport = device.raw.transport;
        let ending = device.ending().await?;
        ensure!(ending.code(transport)? == 4001, "{transport:?}: {ending:?}");
        let wait = ending.disconnect.map_or(0, |disconnect| disconnect.retry_after_ms);
        ensure!(wait <= SPREAD_MS, "{wait} ms");
        waits.insert(wait);
    }
    ensure!(waits.len() > 5, "30 clients come back at {waits:?}");
    ensure!(server.ended().await? == Some(0), "exit code 0");

    server.restart(&[]).await?;
    let mut bobs = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    ensure!(bobs.welcome.inbox_epoch == epoch, "a clean stop rolls nothing back");
    let got = bobs.receive(1).await?;
    ensure!(got[0].message_id == sent.message_id, "{got:?}");
    Ok(())
}

#[tokio::test]
async fn sends_in_flight_at_the_stop_are_answered_or_absent_never_lied_about() -> TestResult {
    let mut server = Server::start(Options::default()).await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut alices = Device::connect(&server.at, Transport::Tcp, &alice, "d").await?;
    alices.send(&bob, "first", "x").await?;
    let ids: Vec<_> = (0..16).map(|n| format!("c-{n}")).collect();
    let frames = (100..).zip(&ids).map(|(id, name)| {
        let method = Some(send_to(&bob, name, "x"));
        Frame::Request(berth_proto::client::Request { id, method })
    });
    alices.raw.send_all(frames.collect()).await?;
    server.sigterm()?;
    let mut acked = vec!["first".to_owned()];
    for (id, name) in (100..).zip(&ids) {
        if alices.finish(id).await.is_ok() {
            acked.push(name.clone());
        }
    }
    server.ended().await?;
    server.restart(&[]).await?;
    let mut bobs = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    let got = bobs.receive(acked.len()).await?;
    let there: Vec<_> = got.into_iter().map(|message| message.client_msg_id).collect();
    ensure!(acked.iter().all(|id| there.contains(id)), "acked {acked:?}, there {there:?}");
    Ok(())
}

/// A process that does not outlive the test.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The mark of an unclean end is a pipe here, and reading it takes for ever: a start that takes long, at a known place.
#[tokio::test]
async fn the_first_signal_ends_a_start_that_takes_long() -> TestResult {
    let any = "127.0.0.1:0";
    let starts: [&[&str]; 2] = [
        &[
            "dev",
            "--scheduler-listen",
            any,
            "--gateway-listen",
            any,
            "--logic-listen",
            any,
            "--admin-listen",
            any,
        ],
        &["logic", "--listen", any, "--rpc", any, "--admin", any],
    ];
    for arguments in starts {
        let folder = tempfile::tempdir()?;
        let mark = folder.path().join("open");
        ensure!(Command::new("mkfifo").arg(&mark).status()?.success());
        let mut command = berth()?;
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let data = folder.path().to_str().context("a path of ASCII")?;
        match arguments[0] {
            "dev" => command.args(["--data-dir", data]),
            _ => command.args(["--store", &format!("embedded:{data}")]),
        };
        command.env("BERTH_AUTH__CLUSTER_KEY", tokens::CLUSTER_KEY);
        command.env("BERTH_AUTH__SERVICE_KEY", tokens::SERVICE_KEY);
        let mut process = Owned(command.spawn()?);
        // Opens only while somebody reads; nothing is ever written.
        let _writer = wait::until("it reads the mark", || {
            let opened = pipe::OpenOptions::new().open_sender(&mark);
            let over = process.0.try_wait();
            async move {
                ensure!(over?.is_none(), "it ended before");
                Ok(opened.ok())
            }
        })
        .await?;
        let id = process.0.id().to_string();
        ensure!(Command::new("kill").args(["-TERM", &id]).status()?.success());
        let status = wait::until("the process ends", || {
            let ended = process.0.try_wait();
            async move { Ok(ended?) }
        })
        .await?;
        ensure!(status.code() == Some(143), "{arguments:?}: {status}");
    }
    Ok(())
}
