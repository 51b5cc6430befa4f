//! All three roles in one process, on the embedded store.

use std::{
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use berth_gateway::Gateway;
use berth_logic::{Logic, StoreChoice};
use berth_proto::{metric::Registry, schedule::HeartbeatParameters};
use berth_scheduler::{JwtKeys, Scheduler};
use tokio::{net::TcpListener, runtime::Runtime};

use super::{back_end_endpoint::BackEnd, keys, token_endpoint};
use crate::{
    admin::{Admin, Readiness},
    config::{Auth, Config},
    telemetry,
};

/// What names this start of the operating system, on Linux.
const OS_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The three roles while they run. Logic has a runtime of its own: its store calls block for the length of a disk read,
/// which must not hold up a schedule.
pub struct Dev {
    runtime: Runtime,
    logic_runtime: Runtime,
    scheduler: Arc<Scheduler>,
    gateway: Arc<Gateway>,
    logic: Arc<Logic>,
    admin: Admin,
    drain_spread: Duration,
    /// The keys in force.
    pub auth: Auth,
}

/// Where everything listens.
pub struct Addresses {
    pub scheduler: SocketAddr,
    pub gateway: SocketAddr,
    pub logic: SocketAddr,
    pub admin: SocketAddr,
}

impl Dev {
    /// Binds what can be refused first, and opens logic's databases last: a start that fails before leaves them untouched.
    ///
    /// # Errors
    /// What could not be opened or bound, and where.
    pub fn start(config: &Config, data_dir: &Path, runtime: Runtime) -> anyhow::Result<Self> {
        private_directory(data_dir).with_context(|| format!("making --data-dir {}", data_dir.display()))?;
        let auth = keys::complete(&config.auth, data_dir)?;
        let logic_runtime = runtime_for_logic()?;
        let recorder = telemetry::recorder();
        let metrics = Registry::new(recorder);

        let admin = runtime
            .block_on(TcpListener::bind(config.admin.listen))
            .with_context(|| format!("binding the admin port {}", config.admin.listen))?;
        let back_end = BackEnd::new(&auth.service_key);
        let mut scheduler = scheduler_config(config, &auth)?;
        scheduler.extra_routes = scheduler.extra_routes.map(|routes| routes.merge(back_end.router()));
        let scheduler = runtime
            .block_on(Scheduler::start(scheduler, metrics))
            .with_context(|| format!("starting the scheduler on {}", config.scheduler.listen))?;
        let gateway = Gateway::start(gateway_config(config), metrics)
            .with_context(|| format!("starting the gateway on {}", config.gateway.listen))?;
        let logic = logic_runtime
            .block_on(Logic::start(logic_config(config, &auth, data_dir)?, metrics))
            .with_context(|| {
                format!("starting logic on {} in {}", config.logic.listen, data_dir.display())
            })?;
        back_end.is_at(logic.local_addr());
        gateway.attach_logic(logic.service());
        gateway.attach_scheduler(scheduler.service());

        let (scheduler, gateway, logic) = (Arc::new(scheduler), Arc::new(gateway), Arc::new(logic));
        let readiness = readiness_of(&scheduler, &gateway, &logic);
        let admin = {
            let _inside = runtime.enter();
            Admin::start(admin, recorder.handle(), readiness, &["scheduler", "gateway", "logic"])?
        };
        let drain_spread = Duration::from_millis(config.gateway.drain_spread_ms.into());
        Ok(Self { runtime, logic_runtime, scheduler, gateway, logic, admin, drain_spread, auth })
    }

    /// The runtime for whatever else this process does.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Where everything listens.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            scheduler: self.scheduler.local_addr(),
            gateway: self.gateway.local_addr(),
            logic: self.logic.local_addr(),
            admin: self.admin.local_addr(),
        }
    }

    /// Whether a client can be scheduled and served.
    pub fn ready(&self) -> Result<(), String> {
        ready(&self.scheduler, &self.gateway, &self.logic)
    }

    /// Reads the policy again.
    pub fn reload(&self) {
        self.scheduler.reload_policy();
    }

    /// A token of this deployment that begins now.
    pub fn token(&self, user_id: &str) -> String {
        token_endpoint::sign(&self.auth.jwt_secret, user_id, token_endpoint::TTL)
    }

    /// Sends the clients away with 4001, then ends every role: the gateway first, so that what its clients sent is
    /// answered; logic last, so that its databases are closed clean.
    pub fn stop(self) {
        self.gateway.drain(self.drain_spread);
        let Self { runtime, logic_runtime, scheduler, gateway, logic, admin, .. } = self;
        runtime.block_on(admin.stop());
        owned(gateway, Gateway::stop);
        owned(scheduler, |scheduler| runtime.block_on(scheduler.stop()));
        owned(logic, |logic| logic_runtime.block_on(logic.stop()));
    }
}

/// Ends a role once nobody looks at it any more: an admin request may, for the length of one readiness check.
fn owned<T>(mut shared: Arc<T>, stop: impl FnOnce(T)) {
    loop {
        match Arc::try_unwrap(shared) {
            Ok(role) => return stop(role),
            Err(still) => shared = still,
        }
        std::thread::yield_now();
    }
}

/// For the admin port, whose connections may outlive the roles.
fn readiness_of(scheduler: &Arc<Scheduler>, gateway: &Arc<Gateway>, logic: &Arc<Logic>) -> Readiness {
    let (scheduler, gateway, logic) =
        (Arc::downgrade(scheduler), Arc::downgrade(gateway), Arc::downgrade(logic));
    Arc::new(move || match (scheduler.upgrade(), gateway.upgrade(), logic.upgrade()) {
        (Some(scheduler), Some(gateway), Some(logic)) => ready(&scheduler, &gateway, &logic),
        _ => Err("stopping".to_owned()),
    })
}

fn ready(scheduler: &Scheduler, gateway: &Gateway, logic: &Logic) -> Result<(), String> {
    let named = |role: &str, result: Result<(), String>| result.map_err(|reason| format!("{role}: {reason}"));
    named("logic", logic.ready())?;
    named("gateway", gateway.ready())?;
    named("scheduler", scheduler.ready())
}

/// Messages and keys: for this user's eyes only.
fn private_directory(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn runtime_for_logic() -> anyhow::Result<Runtime> {
    super::runtime("berth-logic", cores().max(2))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn heartbeat(config: &Config) -> HeartbeatParameters {
    HeartbeatParameters {
        interval_ms: config.gateway.heartbeat_interval_ms,
        timeout_ms: config.gateway.heartbeat_timeout_ms,
    }
}

fn scheduler_config(config: &Config, auth: &Auth) -> anyhow::Result<berth_scheduler::Config> {
    let scheduler = &config.scheduler;
    Ok(berth_scheduler::Config {
        listen: scheduler.listen,
        policy_file: some(&scheduler.policy_file).map(PathBuf::from),
        jwt: JwtKeys::from_secret(auth.jwt_secret.as_bytes()).context("auth.jwt_secret")?,
        ticket_key: auth.ticket_key.clone().into_bytes(),
        admin_key: auth.admin_key.clone(),
        ticket_ttl: Duration::from_secs(scheduler.ticket_ttl_seconds.into()),
        heartbeat: heartbeat(config),
        reconnect: Default::default(),
        requests_per_second_per_user: scheduler.requests_per_second_per_user,
        extra_routes: Some(token_endpoint::router(&auth.jwt_secret)),
    })
}

fn gateway_config(config: &Config) -> berth_gateway::Config {
    let gateway = &config.gateway;
    berth_gateway::Config {
        workers: gateway.workers.into(),
        region: gateway.region.clone(),
        zone: gateway.zone.clone(),
        pool: gateway.pool.clone(),
        advertise: some(&gateway.advertise),
        capacity: (gateway.capacity > 0).then_some(gateway.capacity),
        handshakes_per_second: gateway.handshakes_per_second,
        heartbeat: heartbeat(config),
        ..berth_gateway::Config::new(gateway.id.clone(), gateway.listen)
    }
}

fn logic_config(config: &Config, auth: &Auth, data_dir: &Path) -> anyhow::Result<berth_logic::Config> {
    let logic = &config.logic;
    let os_boot_id = match some(&config.store.os_boot_id) {
        Some(id) => id,
        None => std::fs::read_to_string(OS_BOOT_ID)
            .with_context(|| format!("reading {OS_BOOT_ID}; set store.os_boot_id where there is none"))?
            .trim()
            .to_owned(),
    };
    let store = StoreChoice::Embedded(data_dir.to_owned());
    Ok(berth_logic::Config {
        node: logic.node,
        listen: logic.listen,
        inbox_lifetime: Duration::from_secs(u64::from(logic.inbox_lifetime_hours) * 3_600),
        partitions: logic.partitions,
        os_boot_id,
        ..berth_logic::Config::new(logic.id.clone(), store, auth.service_key.clone())
    })
}

/// A text that is set.
fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
