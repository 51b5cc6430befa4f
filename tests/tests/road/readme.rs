//! The commands of README.md and docs/ work as they stand there.
//!
//! The convention: every ```sh block must consist of these forms, one command a line (`\` continues a line), or this fails:
//!
//! | form | what happens here |
//! |---|---|
//! | `cargo run --release -- dev …` | not run again: it is what the harness starts, on free ports |
//! | `berth scheduler …`, `berth gateway …`, `berth logic …` | run by a test of their own, on free ports, with the `toml` block that comes before |
//! | `./tests/run …` | must exist and be executable: it is what runs this test |
//! | `git clone …`, `cd …`, `cargo test …` | passed over |
//! | `berth bench …` | run with a few connections for a second |
//! | `cargo run --release -- SUB …`, `berth SUB …`, `./target/release/berth SUB …` | run, with `--scheduler` where SUB takes it; exit code 0 |
//! | `curl …`, `NAME=$(curl …)` | run, the default ports replaced by the harness' own; an HTTP error fails |
//! | `# …` | a comment |
//!
//! Commands of one block share a shell. `$TOKEN`, `$SERVICE_KEY` and `$ADMIN_KEY` are set.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context, bail, ensure};
use berth_tests::{
    TestResult, http, root,
    server::{Options, Server, berth, binary, port},
    tokens, wait,
};

/// The `sh` blocks of a Markdown text.
fn blocks(text: &str) -> Vec<String> {
    blocks_of(text, &["```sh", "```bash", "```console", "```shell"])
}

fn blocks_of(text: &str, fences: &[&str]) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if fences.contains(&line.trim()) {
            blocks
                .push(lines.by_ref().take_while(|line| line.trim() != "```").collect::<Vec<_>>().join("\n"));
        }
    }
    blocks
}

/// The commands of a block: continued lines joined, comments and empty lines left out.
fn commands(block: &str) -> Vec<String> {
    let joined = block.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// Nothing to run.
    Known,
    /// The test script itself.
    Script(String),
    /// A line for the shell.
    Run(String),
}

/// Subcommands that speak to a running scheduler.
const SPEAKS: [&str; 2] = ["chat", "demo"];

/// Subcommands that speak to a running scheduler's admin port.
const OPERATES: [&str; 3] = ["policy status", "policy history", "ctl "];

fn form(command: &str) -> anyhow::Result<Form> {
    for prefix in ["cargo run --release -- ", "./target/release/berth ", "target/release/berth ", "berth "] {
        if let Some(rest) = command.strip_prefix(prefix) {
            let subcommand = rest.split_whitespace().next().unwrap_or_default();
            return Ok(match subcommand {
                "dev" | "scheduler" | "gateway" | "logic" => Form::Known,
                // The port is written so that the server's own takes its place.
                "ctl" => Form::Run(format!("\"$BERTH\" {rest} --admin http://127.0.0.1:7702")),
                "bench" => Form::Run(format!("\"$BERTH\" {} --scheduler \"$SCHEDULER\"", small(rest))),
                _ if SPEAKS.contains(&subcommand) && !rest.contains("--scheduler") => {
                    Form::Run(format!("\"$BERTH\" {rest} --scheduler \"$SCHEDULER\""))
                }
                _ if OPERATES.iter().any(|start| rest.starts_with(start)) && !rest.contains("--admin") => {
                    Form::Run(format!("\"$BERTH\" {rest} --admin \"$ADMIN\""))
                }
                _ => Form::Run(format!("\"$BERTH\" {rest}")),
            });
        }
    }
    let assigned = command.split_once("=$(").is_some_and(|(name, value)| {
        value.starts_with("curl ") && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
    });
    match command.split_whitespace().next() {
        Some("./tests/run") => Ok(Form::Script("tests/run".to_owned())),
        Some("cd") => Ok(Form::Known),
        Some("cargo") if command.starts_with("cargo test ") => Ok(Form::Known),
        Some("git") if command.starts_with("git clone ") => Ok(Form::Known),
        Some("curl") => Ok(Form::Run(command.to_owned())),
        _ if assigned => Ok(Form::Run(command.to_owned())),
        _ => bail!("a command of no runnable form (see tests/tests/road/readme.rs): {command}"),
    }
}

/// A benchmark's command with so little of everything that it ends in a second: here only that it works counts.
fn small(command: &str) -> String {
    let most = |flag: &str| match flag {
        "--connections" => 8,
        "--in-flight" => 4,
        "--rate" => 50,
        "--duration" | "--hold" => 1,
        _ => u64::MAX,
    };
    let mut words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    for at in 1..words.len() {
        if let Ok(number) = words[at].parse::<u64>() {
            words[at] = number.min(most(&words[at - 1])).to_string();
        }
    }
    words.join(" ")
}

fn run(server: &Server, script: &str) -> anyhow::Result<Output> {
    let at = &server.at;
    let admin = at.admin.to_string();
    let ports = [("7700", &at.scheduler), ("7702", &admin), ("7720", &at.logic)];
    let mut script = script.to_owned();
    for (port, ours) in ports {
        script = script.replace(&format!("http://127.0.0.1:{port}"), ours);
        script = script.replace(&format!("http://localhost:{port}"), ours);
    }
    ensure!(!script.contains("127.0.0.1:77"), "an address that is no default: {script}");
    // -f: an HTTP error is an error.
    let whole = format!("set -euo pipefail\ncurl() {{ command curl -f \"$@\"; }}\n{script}\n");
    // No BERTH_* variable of the caller's, as for the server.
    let program = berth()?.get_program().to_owned();
    Ok(Command::new("timeout")
        .args(["60", "bash", "-c", &whole])
        .current_dir(root())
        .env("BERTH", program)
        .env("SCHEDULER", &at.scheduler)
        .env("TOKEN", tokens::user("alice"))
        .env("SERVICE_KEY", &at.service_key)
        .env("ADMIN_KEY", &at.admin_key)
        .env("ADMIN", &admin)
        .env("BERTH_AUTH__ADMIN_KEY", &at.admin_key)
        .env("BERTH_AUTH__JWT_SECRET", tokens::JWT_SECRET)
        .env("BERTH_AUTH__ADMIN_KEY", &at.admin_key)
        .stdin(Stdio::null())
        .output()?)
}

#[tokio::test]
async fn every_command_of_the_readme_works() -> TestResult {
    // The commands are those for `berth dev`.
    let server = Server::start(Options::default().one()).await?;
    let shown = check_commands(&server, &root().join("README.md")).await?;
    ensure!(!shown.is_empty(), "README.md shows no command");
    let dev = shown.iter().any(|command| command == "cargo run --release -- dev");
    let tests = shown.iter().any(|command| command == "./tests/run");
    ensure!(dev && tests, "the two commands stand in README.md: dev {dev}, tests {tests}");
    ensure!(binary()?.exists());
    Ok(())
}

#[tokio::test]
async fn every_command_of_the_documents_works() -> TestResult {
    // As docs/bench.md says: a load generator meets the limits of one user and one connection at once.
    let server = Server::start(Options::default().one().tireless_clients()).await?;
    let mut shown = Vec::new();
    for path in crate::docs::documents()?.iter().skip(1) {
        shown.extend(check_commands(&server, path).await?);
    }
    ensure!(shown.len() >= 5, "the documents show only {shown:?}");
    Ok(())
}

/// Runs every command of a document; returns them all.
async fn check_commands(server: &Server, path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut shown = Vec::new();
    for block in blocks(&text) {
        let mut script = String::new();
        for command in commands(&block) {
            match form(&command).with_context(|| path.display().to_string())? {
                Form::Known => {}
                Form::Script(script) => {
                    let mode =
                        root().join(&script).metadata().with_context(|| script.clone())?.permissions().mode();
                    ensure!(mode & 0o111 != 0, "{script} is not executable");
                }
                Form::Run(line) => script.push_str(&format!("{line}\n")),
            }
            shown.push(command);
        }
        let output = run(server, &script)?;
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(
            output.status.success(),
            "{}: {block}\n{} {said}\n{complained}",
            path.display(),
            output.status
        );
        // One that drained its gateway lets it serve again, which takes the next report.
        server.ready().await?;
    }
    Ok(shown)
}

/// A child that is gone when the test is.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where each role listens instead of its defaults: key of the configuration, default port, ours.
fn ports() -> Vec<(String, String, String)> {
    let listens = [
        ("SCHEDULER__LISTEN", 7700),
        ("SCHEDULER__RPC_LISTEN", 7701),
        ("SCHEDULER__ADMIN_LISTEN", 7702),
        ("GATEWAY__LISTEN", 7710),
        ("GATEWAY__ADMIN_LISTEN", 7712),
        ("LOGIC__LISTEN", 7720),
        ("LOGIC__RPC_LISTEN", 7721),
        ("LOGIC__ADMIN_LISTEN", 7722),
    ];
    let ours = |(key, default)| (format!("BERTH_{key}"), format!("127.0.0.1:{default}"), port().to_string());
    listens.into_iter().map(ours).collect()
}

#[tokio::test]
async fn the_commands_that_run_each_role_on_its_own_work() -> TestResult {
    let text = std::fs::read_to_string(root().join("README.md")).context("README.md")?;
    let section = text.split("### Each role in its own process").nth(1).context("the section")?;
    let folder = tempfile::tempdir()?;
    let keys = blocks_of(section, &["```toml"]).into_iter().next().context("the keys")?;
    std::fs::write(folder.path().join("berth.toml"), &keys)?;
    let ports = ports();
    let mut running = Vec::new();
    for command in commands(blocks(section).first().context("the commands")?) {
        let moved =
            ports.iter().fold(command.clone(), |text, (_, default, ours)| text.replace(default, ours));
        let arguments = moved.strip_prefix("berth ").with_context(|| command.clone())?;
        let mut child = berth()?;
        child.args(arguments.split_whitespace()).current_dir(folder.path());
        child.envs(ports.iter().map(|(key, _, ours)| (key, ours)));
        child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        running.push(Running(child.spawn()?));
    }
    ensure!(running.len() == 3, "a scheduler, a gateway and a logic");
    let at =
        |key: &str| ports.iter().find(|(name, ..)| name == key).map(|(_, _, ours)| format!("http://{ours}"));
    let ready = format!("{}/readyz", at("BERTH_SCHEDULER__ADMIN_LISTEN").context("listed")?);
    wait::until("the scheduler is ready", || async {
        Ok(http::get(&ready, None).await.is_ok_and(|answer| answer.status == 200).then_some(()))
    })
    .await?;
    let keys: toml::Table = keys.parse()?;
    let secret = keys["auth"]["jwt_secret"].as_str().context("a secret")?.to_owned();
    let mut demo = berth()?;
    demo.args(["demo", "--scheduler", &at("BERTH_SCHEDULER__LISTEN").context("listed")?]);
    demo.env("BERTH_AUTH__JWT_SECRET", secret);
    let output = tokio::task::spawn_blocking(move || demo.output()).await??;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

#[test]
fn forms_are_told_apart() {
    assert_eq!(form("cargo run --release -- dev --data-dir x").expect("known"), Form::Known);
    assert_eq!(form("./tests/run --long").expect("known"), Form::Script("tests/run".to_owned()));
    let demo = Form::Run("\"$BERTH\" demo --json --scheduler \"$SCHEDULER\"".to_owned());
    assert_eq!(form("berth demo --json").expect("known"), demo);
    let bench =
        Form::Run("\"$BERTH\" bench send --connections 8 --x 90 --scheduler \"$SCHEDULER\"".to_owned());
    assert_eq!(form("berth bench send --connections 64 --x 90").expect("known"), bench);
    assert!(matches!(form("TOKEN=$(curl -s x)").expect("known"), Form::Run(_)));
    for bad in ["sudo rm -rf /", "TOKEN=$(rm x)", "make", "x=$(curl y)"] {
        assert!(form(bad).is_err(), "{bad}");
    }
}

#[test]
fn blocks_and_continued_lines_are_read() {
    let text = "a\n```sh\ncurl x \\\n  -d y\n\n# so\ncd z\n```\n```toml\nno = 1\n```\n";
    assert_eq!(blocks(text).len(), 1);
    assert_eq!(commands(&blocks(text)[0]), ["curl x    -d y", "cd z"]);
}
