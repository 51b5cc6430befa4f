//! One child process: started, read from, signalled, always reaped, and its log checked at the end.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread::JoinHandle,
};

use anyhow::Context;
use tokio::sync::oneshot;

use crate::{ensure, log::Log, root, wait};

/// The child itself. Never left behind: `Process::end` kills and reaps it, and should this process be killed before, a
/// watchdog does, whose stdin then closes.
pub struct Process {
    child: Child,
    watchdog: Child,
    log: Log,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory, in bytes.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    /// Sends a signal by its name without SIG. The child is not reaped before `Process::end`, so its id is still its own.
    ///
    /// # Errors
    /// When `kill` fails.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        signal([self], name)
    }

    /// Waits until it ended by itself.
    ///
    /// # Errors
    /// When it is still there after the deadline.
    pub async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        wait::until("the process ends", || {
            let looked = self.child.try_wait();
            async move { Ok(looked?) }
        })
        .await
    }

    pub(super) fn spawn(mut command: Command) -> anyhow::Result<(Self, oneshot::Receiver<String>)> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let watchdog = Command::new("sh")
            .args(["-c", &format!("read -r _; kill -KILL {}", child.id())])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let (log, stderr_reader) = Log::collect(child.stderr.take().context("stderr is piped")?);
        let (say_ready, ready) = oneshot::channel();
        let stdout_reader = std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            if let Some(line) = lines.next() {
                // Refused only when the test gave up waiting.
                let _ = say_ready.send(line);
            }
            lines.for_each(drop);
        });
        Ok((Self { child, watchdog, log, readers: vec![stdout_reader, stderr_reader] }, ready))
    }

    /// Kills and reaps; then, unless the test fails anyway, fails it for each unexpected line of the log.
    pub(super) fn end(mut self, expected: &[String]) {
        // Errors mean that they are gone already.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers {
            reader.join().expect("reading a pipe does not panic");
        }
        if std::thread::panicking() {
            let lines = self.log.lines();
            eprintln!("the server's last lines:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            return;
        }
        let unexpected = self.log.unexpected(expected);
        let shown = unexpected[..unexpected.len().min(20)].join("\n");
        assert!(unexpected.is_empty(), "{} unexpected lines in the server's log:\n{shown}", unexpected.len());
    }
}

/// Sends several processes a signal, as nearly at once as can be.
pub(super) fn signal<'a>(processes: impl IntoIterator<Item = &'a Process>, name: &str) -> anyhow::Result<()> {
    let ids: Vec<String> = processes.into_iter().map(|process| process.id().to_string()).collect();
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", ids.join(" "))]).status()?;
    ensure!(status.success(), "kill -{name}: {status}");
    Ok(())
}

/// All running processes of a server, asked as one.
pub struct Processes<'a>(pub(super) Vec<&'a Process>);

impl Processes<'_> {
    /// Everything they logged so far, one after the other.
    #[must_use]
    pub fn log(&self) -> Log {
        Log::of(self.0.iter().flat_map(|process| process.log().lines()))
    }

    /// The id of the process that holds the (first gateway's) connections.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0[0].id()
    }

    /// Resident memory of all, in bytes.
    ///
    /// # Errors
    /// When one is gone.
    pub fn resident(&self) -> anyhow::Result<u64> {
        self.0.iter().map(|process| process.resident()).sum()
    }

    /// Sends each a signal by its name without SIG.
    ///
    /// # Errors
    /// When `kill` fails.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        signal(self.0.iter().copied(), name)
    }
}

/// The binary under test: `BERTH_BIN`, or the one that cargo built beside this test.
///
/// # Errors
/// When there is none, saying how to build it.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BERTH_BIN") {
        return Ok(path.into());
    }
    let here = std::env::current_exe()?;
    let path = here.ancestors().nth(2).context("a test runs in target/release/deps")?.join("berth");
    ensure!(path.exists(), "{} is missing: cargo build --release --workspace", path.display());
    Ok(path)
}

/// A plain `berth` command that inherits no `BERTH_*` variable.
///
/// # Errors
/// As [`binary`].
pub fn berth() -> anyhow::Result<Command> {
    plain(Command::new(binary()?))
}

/// `berth` started with so many descriptors, soft and hard: prlimit(1) becomes it, with the same process id.
pub(super) fn berth_with_descriptors(limit: u32) -> anyhow::Result<Command> {
    let mut command = plain(Command::new("prlimit"))?;
    command.arg(format!("--nofile={limit}:{limit}")).arg(binary()?);
    Ok(command)
}

fn plain(mut command: Command) -> anyhow::Result<Command> {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BERTH_")) {
        command.env_remove(name);
    }
    command.current_dir(root());
    Ok(command)
}
