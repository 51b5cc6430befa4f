//! A running Berth: in one process (`berth dev`), or each role in its own. Started, waited for, killed in any way as a whole or
//! role by role, cut off, restarted on its data, always reaped, and its logs checked at the end.
//!
//! A test runs in both compositions, one after the other (`BERTH_TEST_COMPOSITION`), unless it says which one it is about.

mod layout;
mod process;
mod roles;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use anyhow::Context;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::sync::{Mutex, oneshot};

use self::layout::Layout;
pub use self::{
    layout::{Composition, GATEWAYS, Role, SCHEDULERS, port},
    process::{Process, Processes, berth, binary},
};
use crate::{
    bail, ensure, http,
    metrics::{Admin, Scrape},
    powercut::Disk,
    wait,
};

/// How a server differs from a plain one.
#[derive(Debug, Clone, Default)]
pub struct Options {
    env: BTreeMap<String, String>,
    policy: Option<String>,
    expected: Vec<String>,
    makes_its_own_keys: bool,
    on_a_disk_that_can_fail: bool,
    links_that_can_be_cut: bool,
    schedulers: Option<usize>,
    composition: Option<Composition>,
    descriptors: Option<u32>,
    gateways: Option<usize>,
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

    /// Without the gateways' limits on what one user and one connection may ask, and on how many come: for tests that flood,
    /// or look again and again until something is so.
    #[must_use]
    pub fn tireless_clients(self) -> Self {
        self.env("BERTH_GATEWAY__REQUESTS_PER_SECOND_PER_USER", 0)
            .env("BERTH_GATEWAY__FRAMES_PER_SECOND", 0)
            .handshakes_per_second(1_000_000)
    }

    /// Each gateway takes so many handshakes a second.
    #[must_use]
    pub fn handshakes_per_second(self, rate: u32) -> Self {
        self.env("BERTH_GATEWAY__HANDSHAKES_PER_SECOND", rate)
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

    /// No keys in the environment: dev makes its own and keeps them in the data dir. Nothing else does.
    #[must_use]
    pub fn own_keys(mut self) -> Self {
        self.makes_its_own_keys = true;
        self.one()
    }

    /// `berth dev`, whatever this run is about: for what only that does.
    #[must_use]
    pub fn one(mut self) -> Self {
        self.composition = Some(Composition::One);
        self
    }

    /// Each role in its own process, whatever this run is about: for faults of single roles.
    #[must_use]
    pub fn apart(mut self) -> Self {
        self.composition = Some(Composition::Apart);
        self
    }

    /// Roles apart, with so many gateways: for a fleet of which one can be missing.
    #[must_use]
    pub fn gateways(mut self, count: usize) -> Self {
        self.gateways = Some(count);
        self.apart()
    }

    /// Roles apart, with so many schedulers.
    #[must_use]
    pub fn schedulers(mut self, count: usize) -> Self {
        self.schedulers = Some(count);
        self.apart()
    }

    /// Roles apart, with a proxy in each link: see [`Server::cut`].
    #[must_use]
    pub fn links_that_can_be_cut(mut self) -> Self {
        self.links_that_can_be_cut = true;
        self.apart()
    }

    /// The composition of a server with these options in this run.
    #[must_use]
    pub fn composition(&self) -> Composition {
        self.composition.unwrap_or_else(Composition::of_this_run)
    }

    /// What holds the connections is started with so many descriptors, soft and hard (`ulimit -n`).
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

/// Where a started server listens and how to get in: what `berth dev --json` prints, and more where there is more.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Addresses {
    /// `http://host:port`, of the first.
    pub scheduler: String,
    /// All of them.
    pub schedulers: Vec<String>,
    /// `host:port`, of gw-1.
    pub gateway: String,
    /// All of them.
    pub gateways: Vec<String>,
    /// `http://host:port`.
    pub logic: String,
    /// The operators' ports: shown as the first scheduler's, scraped as one.
    pub admin: Admin,
    /// For the back-end API.
    pub service_key: String,
    /// For the operators' API.
    pub admin_key: String,
    /// By user id.
    pub tokens: BTreeMap<String, String>,
}

/// A running Berth with its data dir.
pub struct Server {
    /// Where it listens now; a restart may change the ports.
    pub at: Addresses,
    options: Options,
    layout: Layout,
    processes: BTreeMap<Role, Process>,
    disk: Option<Disk>,
    folder: TempDir,
}

impl Server {
    /// Starts one and waits until a client can be served.
    ///
    /// # Errors
    /// When it ends or does not become ready in time; the error shows its log.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let mut server = Self::prepare(options)?;
        server.launch().await?;
        Ok(server)
    }

    /// One of which nothing runs yet: see [`Server::start_role`].
    ///
    /// # Errors
    /// Only the operating system's.
    pub fn prepare(options: Options) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("berth-test-").tempdir()?;
        fs::create_dir(folder.path().join("data"))?;
        if let Some(policy) = &options.policy {
            fs::write(folder.path().join("policy.toml"), policy)?;
        }
        let layout = Layout::new(&options)?;
        let at = layout.addresses();
        Ok(Self { at, options, layout, processes: BTreeMap::new(), disk: None, folder })
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
        let server = Arc::new(Self::start(Options::default().tireless_clients()).await?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    /// How its roles are put into processes.
    #[must_use]
    pub fn composition(&self) -> Composition {
        self.layout.composition
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

    /// The running processes, as one.
    ///
    /// # Panics
    /// When they were killed and not restarted.
    #[must_use]
    pub fn process(&self) -> Processes<'_> {
        assert!(!self.processes.is_empty(), "the test restarts a server before it uses it again");
        Processes(self.processes.values().collect())
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

    /// SIGKILL of everything, now; returns when the processes are gone. Their logs up to here are checked.
    pub fn kill9(&mut self) {
        let processes = std::mem::take(&mut self.processes);
        if processes.len() > 1 {
            // All at one moment, as when a machine ends: none is to see another one die. Errors mean that one is gone already.
            let _ = process::signal(processes.values(), "STOP");
            let _ = process::signal(processes.values(), "KILL");
        }
        processes.into_values().for_each(|process| process.end(&self.options.expected));
    }

    /// Cuts the power: kills the processes and leaves of the data dir only what was synced.
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

    /// Starts what has the data, and kills it (SIGKILL) after `delay`, however far it came: in the middle of its recovery, say.
    ///
    /// # Errors
    /// When it cannot be started at all.
    pub async fn start_in_vain(&mut self, env: &[(&str, &str)], delay: Duration) -> anyhow::Result<()> {
        self.kill9();
        self.change(env);
        let role = self.layout.roles().pop().context("there is one")?;
        let (process, _) = self.spawn(role)?;
        tokio::time::sleep(delay).await;
        process.end(&self.options.expected);
        Ok(())
    }

    /// Asks it to stop (SIGTERM) without waiting. Roles apart are stopped as an operator would, gateways first: see
    /// [`Server::ended`].
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn sigterm(&self) -> anyhow::Result<()> {
        let first = self.processes.iter().filter(|(role, _)| matches!(role, Role::Dev | Role::Gateway(_)));
        process::signal(first.map(|(_, process)| process), "TERM")
    }

    /// Waits until it ended after [`Server::sigterm`]; returns its exit code, or the first that is not 0.
    ///
    /// # Errors
    /// When something is still there after the deadline.
    pub async fn ended(&mut self) -> anyhow::Result<Option<i32>> {
        ensure!(!self.processes.is_empty(), "not started");
        let mut codes = Vec::new();
        for role in self.layout.roles() {
            let Some(process) = self.processes.get_mut(&role) else { continue };
            if matches!(role, Role::Scheduler(_) | Role::Logic) {
                process.signal("TERM")?;
            }
            codes.push(process.ended().await.with_context(|| format!("{role:?}"))?.code());
        }
        self.kill9();
        Ok(codes.into_iter().find(|code| *code != Some(0)).unwrap_or(Some(0)))
    }

    fn change(&mut self, env: &[(&str, &str)]) {
        for (name, value) in env {
            self.options.env.insert((*name).to_owned(), (*value).to_owned());
        }
    }

    fn spawn(&mut self, role: Role) -> anyhow::Result<(Process, oneshot::Receiver<String>)> {
        let mut command = self.layout.command(role, &self.options, self.folder.path())?;
        if self.options.on_a_disk_that_can_fail && matches!(role, Role::Dev | Role::Logic) {
            let disk = Disk::under(self.folder.path(), &self.data())?;
            command.envs(disk.env());
            self.disk = Some(disk);
        }
        Process::spawn(command)
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        for role in self.layout.roles().into_iter().rev() {
            self.start_role(role).await?;
        }
        self.ready().await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill9();
    }
}
