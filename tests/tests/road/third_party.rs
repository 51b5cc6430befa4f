//! A client by somebody else: Python's `websockets`, told nothing but PROTOCOL.md.

use std::process::{Command, Output};

use anyhow::{Context, ensure};
use berth_tests::{
    TestResult,
    ctl::ctl,
    fresh, root,
    server::{Composition, Options, Role, Server},
    tokens, wait,
};
use tokio::task::JoinHandle;

/// A run of the client at this server, with these arguments.
fn start(server: &Server, arguments: &[&str]) -> anyhow::Result<JoinHandle<std::io::Result<Output>>> {
    let python = std::env::var_os("BERTH_TEST_PYTHON")
        .map_or_else(|| root().join("target/third-party/bin/python"), Into::into);
    ensure!(python.exists(), "{} is missing: ./tests/run installs it", python.display());
    let mut client = Command::new(&python);
    client.arg(root().join("tests/third_party/client.py")).arg(&server.at.scheduler).args(arguments);
    Ok(tokio::task::spawn_blocking(move || client.output()))
}

/// What it said, once it has ended well.
async fn end(run: JoinHandle<std::io::Result<Output>>) -> anyhow::Result<String> {
    let output = run.await?.context("starting python")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    ensure!(output.status.success(), "{said}\n{complained}");
    Ok(said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_client_gets_along_by_the_document_alone() -> TestResult {
    // It gets its tokens from /v1/dev/token.
    let server = Server::start(Options::default().heartbeat(1_000, 4_000).one()).await?;
    let said = end(start(&server, &[])?).await?;
    ensure!(said.lines().filter(|line| line.starts_with("ok ")).count() >= 10, "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_client_goes_where_a_drain_sends_it() -> TestResult {
    // The second gateway comes once they are connected to the first.
    let mut server = Server::prepare(Options::default().gateways(2))?;
    for role in [Role::Logic, Role::Scheduler(0), Role::Scheduler(1), Role::Gateway(0)] {
        server.start_role(role).await?;
    }
    server.ready().await?;
    let users = [tokens::user(&fresh("json")), tokens::user(&fresh("proto"))];
    let python = start(&server, &["follow", &users[0], &users[1]])?;
    let all = &server;
    let sessions = async |gateway: usize| -> anyhow::Result<Option<()>> {
        let scrape = all.scrape(Role::Gateway(gateway)).await?;
        let welcomed = scrape.sum("berth_gateway_handshakes_total", &[("result", "welcomed")]);
        Ok((welcomed == users.len() as f64).then_some(()))
    };
    wait::until("they are connected", || sessions(0)).await?;
    server.start_role(Role::Gateway(1)).await?;
    server.ready().await?;

    let pace = ["--rate", "50/s", "--spread", "1s", "--wait-lb", "1s", "--deadline", "1m"];
    let (code, said) = ctl(&server, 0, &[&["drain", "start", "gw-1"], &pace[..]].concat()).await?;
    ensure!(code == Some(0), "{code:?} {said}");
    let said = wait::within("they go elsewhere", end(python)).await??;
    ensure!(said.contains("ok they went where they were sent"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_client_keeps_its_place_in_the_queue() -> TestResult {
    let server = Server::start(Options::default().handshakes_per_second(1)).await?;
    let users: Vec<_> = (0..6).map(|n| tokens::user(&fresh(&format!("waiter-{n}")))).collect();
    let arguments: Vec<_> = std::iter::once("queue").chain(users.iter().map(String::as_str)).collect();
    end(start(&server, &arguments)?).await?;
    let scheduler = match server.composition() {
        Composition::One => Role::Dev,
        Composition::Apart => Role::Scheduler(0),
    };
    let scrape = server.scrape(scheduler).await?;
    let honoured = scrape.sum("berth_scheduler_queue_tokens_total", &[("outcome", "honoured")]);
    ensure!(honoured >= 1.0, "{honoured} of the places that were kept were shown");
    Ok(())
}
