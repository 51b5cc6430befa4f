//! One `berth dev` child process: started with port 0 everywhere, waited for, killed in any way, restarted on its data, always
//! reaped, and its log checked at the end.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Weak},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::sync::{Mutex, oneshot};

use crate::{http, log::Log, powercut::Disk, root, tokens, wait};

/// How a server differs from a plain one.
#[derive(Debug, Clone, Default)]
pub struct Options {
    env: BTreeMap<String, String>,
    policy: Option<String>,
    expected: Vec<String>,
    makes_its_own_keys: bool,
    on_a_disk_that_can_fail: bool,
    descriptors: Option<u32>,
}

impl Options {
    /// Sets an environment variable, such as `BERTH_GATEWAY__HEARTBEAT_INTERVAL_MS`.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.insert(name.to_owned(), value.to_string());
        self
    }

    /// Heartbeats this short, in milliseconds.
    #[must_use]
    pub fn heartbeat(self, interval_ms: u32, timeout_ms: u32) -> Self {
        self.env("BERTH_GATEWAY__HEARTBEAT_INTERVAL_MS", interval_ms)
            .env("BERTH_GATEWAY__HEARTBEAT_TIMEOUT_MS", timeout_ms)
    }

    /// Starts with this policy file.
    #[must_use]
    pub fn policy(mut self, text: &str) -> Self {
        self.policy = Some(text.to_owned());
        self
    }

    /// A warning or error whose line contains `text` does not fail the test.
    #[must_use]
    pub fn expect_warning(mut self, text: &str) -> Self {
        self.expected.push(text.to_owned());
        self
    }

    /// No keys in the environment: dev makes its own and keeps them in the data dir.
    #[must_use]
    pub fn own_keys(mut self) -> Self {
        self.makes_its_own_keys = true;
        self
    }

    /// Started with so many descriptors, soft and hard (`ulimit -n`).
    #[must_use]
    pub fn descriptors(mut self, limit: u32) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// Runs on [`crate::powercut`]'s disk, so that [`Server::cut_power`] can be used.
    #[must_use]
    pub fn disk_that_can_fail(mut self) -> Self {
        self.on_a_disk_that_can_fail = true;
        self
    }
}

/// Where a started server listens and how to get in: what `berth dev --json` prints.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// `http://host:port`.
    pub scheduler: String,
    /// `host:port`.
    pub gateway: String,
    /// `http://host:port`.
    pub logic: String,
    /// `http://host:port`.
    pub admin: String,
    /// For the back-end API.
    pub service_key: String,
    /// For the operators' API.
    pub admin_key: String,
    /// By user id.
    pub tokens: BTreeMap<String, String>,
}

/// A `berth dev` process with its data dir.
pub struct Server {
    /// Where it listens now; a restart changes the ports.
    pub at: Addresses,
    options: Options,
    process: Option<Process>,
    disk: Option<Disk>,
    folder: TempDir,
}

impl Server {
    /// Starts one and waits until a client can be served.
    ///
    /// # Errors
    /// When it ends or does not become ready in time; the error shows its log.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("berth-test-").tempdir()?;
        fs::create_dir(folder.path().join("data"))?;
        if let Some(policy) = &options.policy {
            fs::write(folder.path().join("policy.toml"), policy)?;
        }
        let mut server = Self { at: Addresses::default(), options, process: None, disk: None, folder };
        server.launch().await?;
        Ok(server)
    }

    /// A server that tests share while any of them runs. They must use [`crate::fresh`] names, and change nothing global.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn shared() -> anyhow::Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Server>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start(Options::default()).await?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    /// The data dir.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder of this server's that lives as long as it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The running process.
    ///
    /// # Panics
    /// When it was killed and not restarted.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the test restarts a server before it uses it again")
    }

    /// Replaces the policy file in one step, as an operator's tool would.
    ///
    /// # Errors
    /// Only the file system's.
    pub fn write_policy(&self, text: &str) -> anyhow::Result<()> {
        let new = self.folder.path().join("policy.toml.new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, self.folder.path().join("policy.toml"))?)
    }

    /// SIGKILL, now; returns when the process is gone. Its log up to here is checked.
    pub fn kill9(&mut self) {
        if let Some(process) = self.process.take() {
            process.end(&self.options.expected);
        }
    }

    /// Cuts the power: kills the process and leaves of the data dir only what was synced.
    ///
    /// # Errors
    /// When the server does not run on a disk that can fail, or the durable state cannot be put together.
    pub fn cut_power(&mut self) -> anyhow::Result<()> {
        self.kill9();
        self.disk.as_ref().context("the server runs on a plain disk")?.cut(&self.data())
    }

    /// From now on the disk says that it synced, and does not.
    ///
    /// # Errors
    /// As [`Server::cut_power`].
    pub fn disk_lies(&self) -> anyhow::Result<()> {
        self.disk.as_ref().context("the server runs on a plain disk")?.lie()
    }

    /// Starts it again on the same data dir, with another environment variable where one is given.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn restart(&mut self, env: &[(&str, &str)]) -> anyhow::Result<()> {
        self.kill9();
        self.change(env);
        self.launch().await
    }

    /// Starts it and kills it (SIGKILL) after `delay`, however far it came: in the middle of its recovery, say.
    ///
    /// # Errors
    /// When it cannot be started at all.
    pub async fn start_in_vain(&mut self, env: &[(&str, &str)], delay: Duration) -> anyhow::Result<()> {
        self.kill9();
        self.change(env);
        let (process, _) = self.spawn()?;
        tokio::time::sleep(delay).await;
        process.end(&self.options.expected);
        Ok(())
    }

    /// Asks it to stop (SIGTERM) without waiting.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn sigterm(&self) -> anyhow::Result<()> {
        self.process().signal("TERM")
    }

    /// Waits until it ended by itself; returns its exit code.
    ///
    /// # Errors
    /// When it is still there after the deadline.
    pub async fn ended(&mut self) -> anyhow::Result<Option<i32>> {
        let process = self.process.as_mut().context("not started")?;
        let status = wait::until("the server ends", || {
            let looked = process.child.try_wait();
            async move { Ok(looked?) }
        })
        .await?;
        self.kill9();
        Ok(status.code())
    }

    fn change(&mut self, env: &[(&str, &str)]) {
        for (name, value) in env {
            self.options.env.insert((*name).to_owned(), (*value).to_owned());
        }
    }

    fn spawn(&mut self) -> anyhow::Result<(Process, oneshot::Receiver<String>)> {
        let mut command = command(&self.options, self.folder.path())?;
        if self.options.on_a_disk_that_can_fail {
            let disk = Disk::under(self.folder.path(), &self.data())?;
            command.envs(disk.env());
            self.disk = Some(disk);
        }
        Process::spawn(command)
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let (process, ready) = self.spawn()?;
        let process = self.process.insert(process);
        let line = match tokio::time::timeout(wait::DEADLINE, ready).await {
            Ok(Ok(line)) => line,
            _ => {
                bail!("berth dev did not say where it listens; its log:\n{}", process.log.lines().join("\n"))
            }
        };
        self.at = serde_json::from_str(&line).with_context(|| format!("berth dev --json printed {line}"))?;
        let readyz = format!("{}/readyz", self.at.admin);
        wait::until("readyz", || async {
            let answer = http::get(&readyz, None).await?;
            ensure!(matches!(answer.status, 200 | 503), "readyz: {} {}", answer.status, answer.body);
            Ok((answer.status == 200).then_some(()))
        })
        .await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill9();
    }
}

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
        let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.id())]).status()?;
        ensure!(status.success(), "kill -{name}: {status}");
        Ok(())
    }

    fn spawn(mut command: Command) -> anyhow::Result<(Self, oneshot::Receiver<String>)> {
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
    fn end(mut self, expected: &[String]) {
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

fn plain(mut command: Command) -> anyhow::Result<Command> {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BERTH_")) {
        command.env_remove(name);
    }
    command.current_dir(root());
    Ok(command)
}

fn command(options: &Options, folder: &Path) -> anyhow::Result<Command> {
    let mut command = match options.descriptors {
        None => berth()?,
        Some(limit) => {
            // prlimit(1) becomes the server, with the same process id.
            let mut command = plain(Command::new("prlimit"))?;
            command.arg(format!("--nofile={limit}:{limit}")).arg(binary()?);
            command
        }
    };
    command.arg("dev").arg("--json").arg("--data-dir").arg(folder.join("data"));
    for port in ["scheduler", "gateway", "logic", "admin"] {
        command.args([&format!("--{port}-listen"), "127.0.0.1:0"]);
    }
    if options.policy.is_some() {
        command.arg("--policy").arg(folder.join("policy.toml"));
    }
    if !options.makes_its_own_keys {
        command
            .env("BERTH_AUTH__JWT_SECRET", tokens::JWT_SECRET)
            .env("BERTH_AUTH__TICKET_KEY", tokens::TICKET_KEY)
            .env("BERTH_AUTH__SERVICE_KEY", tokens::SERVICE_KEY)
            .env("BERTH_AUTH__ADMIN_KEY", tokens::ADMIN_KEY);
    }
    command.envs(&options.env);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}
