//! `berth ctl`, as an operator runs it.

use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use crate::{
    ensure,
    server::{Role, Server, berth},
    tokens, wait,
};

/// `berth ctl` at the scheduler of that index: its exit code, and what it printed.
///
/// # Errors
/// When it cannot be run, or does not end in time.
pub async fn ctl(
    server: &Server,
    scheduler: usize,
    arguments: &[&str],
) -> anyhow::Result<(Option<i32>, String)> {
    let mut command: Command = berth()?;
    command.arg("ctl").args(arguments);
    command.args(["--admin", &server.admin_of(Role::Scheduler(scheduler))]);
    command.env("BERTH_AUTH__ADMIN_KEY", tokens::ADMIN_KEY);
    let ran = tokio::task::spawn_blocking(move || command.output());
    let output = wait::within("berth ctl ends", ran).await???;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

/// What `berth ctl ... --json` says.
///
/// # Errors
/// As [`ctl`], and when it did not exit with 0.
pub async fn json(server: &Server, scheduler: usize, arguments: &[&str]) -> anyhow::Result<Value> {
    let (code, said) = ctl(server, scheduler, &[arguments, &["--json"]].concat()).await?;
    ensure!(code == Some(0), "{code:?} {said}");
    serde_json::from_str(&said).context(said)
}
