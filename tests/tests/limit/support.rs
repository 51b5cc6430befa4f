//! Runs `berth bench` and `berth-limit`, and reads what they say.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use berth_tests::{
    server::{Addresses, berth, binary},
    tokens,
};
use serde_json::Value;

/// Where a load goes, and whose CPU it is.
#[derive(Debug, Clone)]
pub struct Target {
    /// `http://host:port`.
    pub scheduler: String,
    /// `http://host:port`.
    pub logic: String,
    /// The process to watch.
    pub pid: u32,
}

impl Target {
    /// A server of the harness.
    pub fn of(at: &Addresses, pid: u32) -> Self {
        Self { scheduler: at.scheduler.clone(), logic: at.logic.clone(), pid }
    }
}

/// A running limit; it ends with this.
pub struct Limit {
    child: Child,
    /// Where it listens.
    pub target: Target,
}

impl Limit {
    /// Starts one with these further arguments.
    pub fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let program = binary()?.with_file_name("berth-limit");
        ensure!(program.exists(), "{} is missing: cargo build --release --workspace", program.display());
        let mut child = Command::new(program).args(arguments).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let text = |key: &str| said[key].as_str().map(str::to_owned).context("an address");
        let target = Target { scheduler: text("scheduler")?, logic: text("logic")?, pid: child.id() };
        Ok(Self { child, target })
    }

    /// One that syncs a log in this folder before it answers.
    pub fn with_log(folder: &Path) -> anyhow::Result<Self> {
        Self::start(&["--log", folder.join("limit.log").to_str().context("a path of ours")?])
    }

    /// Sends it a signal by its name without SIG.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        signal(self.child.id(), name)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a child of ours, not reaped yet, a signal.
pub fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status()?;
    ensure!(status.success(), "kill -{name}: {status}");
    Ok(())
}

/// The command of a load on a target, in words.
fn command(target: &Target, load: &str) -> anyhow::Result<Command> {
    let mut command = berth()?;
    command.arg("bench").args(load.split_whitespace());
    command.args(["--json", "--scheduler", &target.scheduler, "--watch", &target.pid.to_string()]);
    if load.starts_with("group") {
        command.args(["--logic", &target.logic]).env("BERTH_AUTH__SERVICE_KEY", tokens::SERVICE_KEY);
    }
    command.env("BERTH_AUTH__JWT_SECRET", tokens::JWT_SECRET);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// Longer than any load of the tests takes on a busy machine; one that is still there then hangs, and is killed.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A load that runs; it ends with this.
pub struct Running(Option<Child>);

impl Running {
    /// Puts the load on.
    pub fn start(target: &Target, load: &str) -> anyhow::Result<Self> {
        Ok(Self(Some(command(target, load)?.spawn()?)))
    }

    /// Sends it a signal by its name without SIG.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        signal(self.0.as_ref().context("it runs")?.id(), name)
    }

    /// Waits for its end; gives the exit code and the report.
    pub async fn ended(self) -> anyhow::Result<(Option<i32>, Value)> {
        self.ended_within(PATIENCE).await
    }

    /// [`Running::ended`] with a deadline of its own.
    pub async fn ended_within(mut self, patience: Duration) -> anyhow::Result<(Option<i32>, Value)> {
        let child = self.0.take().context("it runs")?;
        let pid = child.id();
        // On a thread, since both pipes are to be read; a child that is killed ends it.
        let mut output = tokio::task::spawn_blocking(move || child.wait_with_output());
        match tokio::time::timeout(patience, &mut output).await {
            Ok(output) => read(&output??),
            Err(_) => {
                signal(pid, "KILL")?;
                let output = output.await??;
                bail!("berth bench still ran after {patience:?}: {}", String::from_utf8_lossy(&output.stderr))
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may be gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The exit code and the report.
fn read(output: &Output) -> anyhow::Result<(Option<i32>, Value)> {
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_str(&said).with_context(|| format!("{said} {complained}"))?;
    Ok((output.status.code(), report))
}

/// Puts the load on, to its end.
pub async fn bench(target: &Target, load: &str) -> anyhow::Result<(Option<i32>, Value)> {
    Running::start(target, load)?.ended().await
}

/// A load that must be good.
pub async fn good(target: &Target, load: &str) -> anyhow::Result<Value> {
    let (code, report) = bench(target, load).await?;
    ensure!(code == Some(0) && report["ok"] == true, "berth bench {load}: {code:?} {report}");
    Ok(report)
}

/// A count of a report.
pub fn count(report: &Value, name: &str) -> u64 {
    report["counts"][name].as_u64().unwrap_or(0)
}

/// A latency of a report in milliseconds.
pub fn millis(report: &Value, name: &str, which: &str) -> f64 {
    report["latencyMs"][name][which].as_f64().unwrap_or(0.0)
}
