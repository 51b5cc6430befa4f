//! The Autobahn test suite against an echo server on the gateway's WebSocket codec, and against the same with a check taken
//! away: the suite must notice.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, ensure};
use berth_tests::{TestResult, figure, root};

/// Compression (12 and 13) is not offered.
const WITHOUT: [&str; 2] = ["12.*", "13.*"];

/// The echo server while a test runs.
struct Echo {
    child: Child,
    address: String,
}

impl Echo {
    fn start(broken: Option<&str>) -> anyhow::Result<Self> {
        let here = std::env::current_exe()?;
        let folder = here.ancestors().nth(2).context("a test runs in target/release/deps")?;
        let path = folder.join("examples/autobahn");
        ensure!(
            path.exists(),
            "{} is missing: cargo build --release -p berth-gateway --examples",
            path.display()
        );
        let mut command = Command::new(path);
        command.args(broken.into_iter().flat_map(|what| ["--broken", what]));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("piped")?;
        let address = BufReader::new(stdout).lines().next().context("it says where it listens")??;
        Ok(Self { child, address })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn python() -> PathBuf {
    std::env::var_os("BERTH_TEST_PYTHON")
        .map_or_else(|| root().join("target/third-party/bin/python"), Into::into)
}

/// Runs the cases and returns each with its behaviour.
fn run(address: &str, include: &[&str]) -> anyhow::Result<Vec<(String, String)>> {
    let kosoku = python().with_file_name("kosoku");
    ensure!(kosoku.exists(), "{} is missing: ./tests/run installs it", kosoku.display());
    let report = tempfile::tempdir()?;
    let mut command = Command::new(kosoku);
    command.args(["--parallelism", "4", "--outdir"]).arg(report.path());
    command.args(WITHOUT.iter().flat_map(|case| ["--exclude", case]));
    command.args(include.iter().flat_map(|case| ["--include", case]));
    let output = command.arg(format!("ws://{address}")).output()?;
    let index = std::fs::read_to_string(report.path().join("index.json"))
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let index: serde_json::Value = serde_json::from_str(&index)?;
    let agents = index.as_object().context("agents")?;
    let cases = agents.values().next().and_then(|agent| agent.as_object()).context("an agent")?;
    let behaviour = |case: &serde_json::Value| case["behavior"].as_str().unwrap_or("none").to_owned();
    Ok(cases.iter().map(|(case, result)| (case.clone(), behaviour(result))).collect())
}

/// The cases that behaved so, joined.
fn of(cases: &[(String, String)], behaviour: &str) -> Vec<String> {
    cases.iter().filter(|(_, was)| was == behaviour).map(|(case, _)| case.clone()).collect()
}

#[test]
fn every_case_passes() -> TestResult {
    let echo = Echo::start(None)?;
    let cases = run(&echo.address, &[])?;
    let (ok, late, told) = (of(&cases, "OK"), of(&cases, "NON-STRICT"), of(&cases, "INFORMATIONAL"));
    figure(&format!(
        "Autobahn without compression: {} cases: {} OK, {} informational, {} non-strict ({})",
        cases.len(),
        ok.len(),
        told.len(),
        late.len(),
        late.join(", ")
    ));
    let others: Vec<_> = cases
        .iter()
        .filter(|(_, was)| !["OK", "NON-STRICT", "INFORMATIONAL"].contains(&was.as_str()))
        .collect();
    ensure!(cases.len() >= 300, "{} cases", cases.len());
    ensure!(others.is_empty(), "{others:?}");
    // Text that is wrong in its first fragment is refused when the message is whole, not at once.
    ensure!(late.iter().all(|case| case.starts_with("6.4.")), "{late:?}");
    Ok(())
}

#[test]
fn a_codec_with_a_check_taken_away_fails_the_cases_of_that_check() -> TestResult {
    for (broken, section, others, least) in [("utf8", "6.", "3.*", 70), ("reserved", "3.", "6.*", 6)] {
        let echo = Echo::start(Some(broken))?;
        let cases = run(&echo.address, &[&format!("{section}*"), others])?;
        let failed = of(&cases, "FAILED");
        figure(&format!(
            "Autobahn without the check of {broken}: {} of {} cases fail",
            failed.len(),
            cases.len()
        ));
        ensure!(failed.len() >= least, "{broken}: only {failed:?}");
        ensure!(failed.iter().all(|case| case.starts_with(section)), "{broken}: {failed:?}");
    }
    Ok(())
}
