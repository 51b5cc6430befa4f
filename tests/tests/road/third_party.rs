//! A client by somebody else: Python's `websockets`, told nothing but PROTOCOL.md.

use std::process::Command;

use anyhow::{Context, ensure};
use berth_tests::{
    TestResult, root,
    server::{Options, Server},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_client_gets_along_by_the_document_alone() -> TestResult {
    // It gets its tokens from /v1/dev/token.
    let server = Server::start(Options::default().heartbeat(1_000, 4_000).one()).await?;
    let folder = root().join("tests/third_party");
    let python = std::env::var_os("BERTH_TEST_PYTHON")
        .map_or_else(|| root().join("target/third-party/bin/python"), Into::into);
    ensure!(python.exists(), "{} is missing: ./tests/run installs it", python.display());
    let mut client = Command::new(&python);
    client.arg(folder.join("client.py")).arg(&server.at.scheduler);
    let output = tokio::task::spawn_blocking(move || client.output()).await?.context("starting python")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}");
    ensure!(output.status.success(), "{said}\n{complained}");
    ensure!(said.lines().filter(|line| line.starts_with("ok ")).count() >= 10, "{said}");
    Ok(())
}
