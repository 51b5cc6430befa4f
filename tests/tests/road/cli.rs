//! The command line: demo, chat, token, config, exit codes.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, ensure};
use berth_proto::client::request::Method;
use berth_tests::{
    TestResult,
    device::{Device, send_to, to_group},
    fresh,
    group_load::call,
    http,
    raw::Transport,
    server::{Composition, Server, berth},
    tokens::{ADMIN_KEY, JWT_SECRET, SERVICE_KEY},
};
use serde_json::{Value, json};

async fn run(mut command: Command) -> anyhow::Result<Output> {
    command.stdin(Stdio::null());
    let done = tokio::task::spawn_blocking(move || command.output());
    Ok(berth_tests::wait::within("the command ends", done).await???)
}

/// What a client needs to sign its own tokens, where nobody gives them away.
fn secret(server: &Server) -> Option<(&'static str, &'static str)> {
    (server.composition() == Composition::Apart).then_some(("BERTH_AUTH__JWT_SECRET", JWT_SECRET))
}

async fn run_at(server: &Server, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String, String)> {
    let mut command = berth()?;
    command.args(arguments).args(["--scheduler", &server.at.scheduler]).envs(secret(server));
    text_of(run(command).await?)
}

fn text_of(output: Output) -> anyhow::Result<(Option<i32>, String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

async fn run_with(arguments: &[&str]) -> anyhow::Result<(Option<i32>, String, String)> {
    let mut command = berth()?;
    command.args(arguments);
    text_of(run(command).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_passes_every_check() -> TestResult {
    let server = Server::shared().await?;
    let back_end = ["--logic", &server.at.logic, "--service-key", SERVICE_KEY];
    let (code, said, complained) = run_at(&server, &[&["demo", "--json"], &back_end[..]].concat()).await?;
    ensure!(code == Some(0), "{code:?} {said} {complained}");
    let result: Value = serde_json::from_str(&said).context(said.clone())?;
    let checks = result["checks"].as_array().context("no checks")?;
    ensure!(checks.iter().any(|check| check["name"] == "group_message"), "{said}");
    // Only `berth dev` says by itself where the back end's API is.
    let (code, said, complained) = run_at(&server, &["demo"]).await?;
    ensure!(code == Some(0) && !said.is_empty(), "{code:?} {said} {complained}");
    let tried = said.contains("ok   group_message");
    ensure!(tried == (server.composition() == Composition::One), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demo_without_a_server_fails_its_checks() -> TestResult {
    let (code, said, complained) = run_with(&["demo", "--json", "--scheduler", "http://127.0.0.1:1"]).await?;
    ensure!(code == Some(3), "{code:?} {said} {complained}");
    Ok(())
}

/// Pipes a line into `berth chat`, which bob must get; then bob answers, which it must print like this.
async fn check_chat(
    server: &Server,
    to: &[&str],
    bobs: &mut Device,
    answer: Method,
    printed: &str,
) -> TestResult {
    let mut chat = berth()?
        .arg("chat")
        .args(to)
        .args(["--scheduler", &server.at.scheduler])
        .envs(secret(server))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = chat.stdin.take().context("piped")?;
    stdin.write_all(b"hello from a pipe\n")?;
    let got = bobs.receive(1).await?;
    ensure!(got[0].from == to[0] && got[0].body == "hello from a pipe".as_bytes(), "{got:?}");
    bobs.request(answer).await?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(chat.stdout.take().context("piped")?));
    let printed = printed.to_owned();
    let prints =
        tokio::task::spawn_blocking(move || lines.by_ref().map_while(Result::ok).any(|line| line == printed));
    ensure!(berth_tests::wait::within("chat prints bob's line", prints).await??);
    drop(stdin); // the end of its input ends it
    let ended = tokio::task::spawn_blocking(move || chat.wait());
    let status = berth_tests::wait::within("chat ends with its input", ended).await???;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_sends_what_is_piped_in_and_prints_what_comes() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut bobs = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    let answer = send_to(&alice, "c-1", "hello from bob");
    check_chat(&server, &[&alice, &bob], &mut bobs, answer, &format!("{bob}: hello from bob")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_speaks_to_a_group_and_prints_its_members() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob, team) = (fresh("alice"), fresh("bob"), fresh("team"));
    call(&server.at, "PUT", &team, &[alice.clone(), bob.clone()]).await?;
    let mut bobs = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    let answer = to_group(&team, "c-1", "hello, all");
    let printed = format!("{team}/{bob}: hello, all");
    check_chat(&server, &[&alice, "--group", &team], &mut bobs, answer, &printed).await?;
    let (code, _, complained) = run_at(&server, &["chat", &alice, &bob, "--group", &team]).await?;
    ensure!(code == Some(1) && complained.contains("--group"), "one of them: {code:?} {complained}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_the_command_line_is_accepted() -> TestResult {
    let server = Server::shared().await?;
    let mut command = berth()?;
    command.args(["token", "alice", "--ttl", "1h"]).env("BERTH_AUTH__JWT_SECRET", JWT_SECRET);
    let output = run(command).await?;
    ensure!(output.status.success(), "{output:?}");
    let token = String::from_utf8(output.stdout)?;
    let url = format!("{}/v1/schedule", server.at.scheduler);
    let answer = http::post(&url, Some(token.trim()), &json!({"deviceId":"d"})).await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_configuration_is_exit_code_1_and_names_the_key() -> TestResult {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("berth.toml");
    std::fs::write(&file, "[gateway]\nheartbeat_intervall_ms = 5\n")?;
    let path = file.to_str().context("a path of ours")?;
    let (code, _, complained) = run_with(&["config", "check", "--config", path]).await?;
    let named = complained.contains("heartbeat_intervall_ms") && complained.contains("heartbeat_interval_ms");
    ensure!(code == Some(1) && named, "the key and the nearest valid one: {code:?} {complained}");
    std::fs::write(&file, "[gateway]\nheartbeat_interval_ms = 5000\n")?;
    let (code, said, complained) = run_with(&["config", "check", "--config", path]).await?;
    ensure!(code == Some(0), "{code:?} {said} {complained}");
    let (code, said, _) = run_with(&["config", "print", "--config", path]).await?;
    ensure!(code == Some(0) && said.contains("heartbeat_interval_ms = 5000"), "{said}");

    let mut command = berth()?;
    command.args(["dev", "--data-dir"]).arg(folder.path()).env("BERTH_GATEWAY__NO_SUCH_KEY", "1");
    let output = run(command).await?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let mut command = berth()?;
    command.args(["token", "alice"]).env("BERTH_AUTH__JWT_SECRET", "too short");
    ensure!(run(command).await?.status.code() == Some(1), "a key has 32 bytes");
    ensure!(run_with(&["no-such-command"]).await?.0 == Some(1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_exit_code_2() -> TestResult {
    let server = Server::shared().await?;
    let folder = tempfile::tempdir()?;
    let taken = server.at.scheduler.trim_start_matches("http://").to_owned();
    let mut command = berth()?;
    command.args(["dev", "--data-dir"]).arg(folder.path()).args(["--scheduler-listen", &taken]);
    for port in ["--gateway-listen", "--logic-listen", "--admin-listen"] {
        command.args([port, "127.0.0.1:0"]);
    }
    let output = run(command).await?;
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && complained.contains(&taken), "{output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_data_dir_serves_one_process() -> TestResult {
    let server = Server::shared().await?;
    let mut command = berth()?;
    command.args(["dev", "--data-dir"]).arg(server.data());
    for port in ["--scheduler-listen", "--gateway-listen", "--logic-listen", "--admin-listen"] {
        command.args([port, "127.0.0.1:0"]);
    }
    let output = run(command).await?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_is_explained_for_reading() -> TestResult {
    let server = Server::shared().await?;
    let asked = ["policy", "explain", "alice", "--scheduler", &server.at.scheduler];
    let mut command = berth()?;
    command.args(asked).env("BERTH_AUTH__ADMIN_KEY", ADMIN_KEY);
    let (code, said, complained) = text_of(run(command).await?)?;
    ensure!(code == Some(0), "{code:?} {said} {complained}");
    // What a gateway measures is in its report, and that in the answer.
    for part in
        ["decision", "reason DEFAULT", "ranked", "score", "connections ", "cpu ", "memory ", "loop_lag "]
    {
        ensure!(said.contains(part), "{part:?} is not in\n{said}");
    }
    let (code, said, complained) = run_with(&asked).await?;
    ensure!(code == Some(1) && complained.contains("auth.admin_key"), "{code:?} {said} {complained}");
    let mut command = berth()?;
    command.args(asked).env("BERTH_AUTH__ADMIN_KEY", "x".repeat(40));
    let (code, said, complained) = text_of(run(command).await?)?;
    ensure!(code == Some(2) && complained.contains("401"), "{code:?} {said} {complained}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_checked_and_simulated_without_a_server() -> TestResult {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("policy.toml");
    let path = file.to_str().context("a text")?;
    std::fs::write(&file, "version = 2\n[load]\nbound = 0.1\n")?;
    let (code, said, _) = run_with(&["policy", "check", path]).await?;
    ensure!(code == Some(0) && said.contains("version 2"), "{code:?} {said}");
    let simulated =
        ["policy", "simulate", "lose", "--gateways", "10", "--clients", "1000", "--seconds", "80"];
    let asked = [&simulated[..], &["--delays", "0.5", "--policy", path, "--json"]].concat();
    let (code, said, complained) = run_with(&asked).await?;
    ensure!(code == Some(0), "{code:?} {said} {complained}");
    let result: Value = serde_json::from_str(&said).context(said.clone())?;
    let runs = result["runs"].as_array().context("no runs")?;
    ensure!(runs.len() == 4 && runs.iter().all(|run| run["connects"].as_u64() > Some(0)), "{said}");
    let (again, repeated) = (run_with(&asked).await?.1, said);
    ensure!(again == repeated, "the same seed, another result");
    std::fs::write(&file, "version = 2\n[load]\nbound = 'x'\n")?;
    let (code, _, complained) = run_with(&["policy", "check", path]).await?;
    ensure!(code == Some(1) && complained.contains("line 3, load.bound"), "{code:?} {complained}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_has_help() -> TestResult {
    for command in [
        "",
        "dev",
        "scheduler",
        "gateway",
        "logic",
        "token",
        "chat",
        "demo",
        "bench",
        "bench group",
        "config",
        "policy check",
        "policy explain",
        "policy simulate",
    ] {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let (code, said, _) = run_with(&arguments).await?;
        ensure!(code == Some(0) && said.contains("Usage:"), "{command}: {code:?} {said}");
    }
    Ok(())
}
