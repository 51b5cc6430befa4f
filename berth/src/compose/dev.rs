//! All three roles in one process, on the embedded store.

use std::{net::SocketAddr, os::unix::fs::DirBuilderExt, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use berth_gateway::Gateway;
use berth_logic::{Logic, StoreChoice};
use berth_proto::metric::Registry;
use berth_scheduler::Scheduler;
use tokio::{net::TcpListener, runtime::Runtime};

use super::{back_end_endpoint::BackEnd, keys, owned, parts, token_endpoint};
use crate::{
    admin::{Admin, Readiness},
    config::{Auth, Config},
    telemetry,
};

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
        let logic_runtime = parts::runtime_for_logic()?;
        let recorder = telemetry::recorder();
        let metrics = Registry::new(recorder);

        let admin = runtime
            .block_on(TcpListener::bind(config.admin.listen))
            .with_context(|| format!("binding the admin port {}", config.admin.listen))?;
        let back_end = BackEnd::new(&auth.service_key);
        let scheduler = berth_scheduler::Config {
            extra_routes: Some(
                token_endpoint::router(&auth.jwt_secret, auth.expected()).merge(back_end.router()),
            ),
            data_dir: Some(data_dir.join("scheduler")),
            ..parts::scheduler(config, &auth)?
        };
        let scheduler = runtime
            .block_on(Scheduler::start(scheduler, metrics))
            .with_context(|| format!("starting the scheduler on {}", config.scheduler.listen))?;
        let gateway = Gateway::start(parts::gateway(config), metrics)
            .with_context(|| format!("starting the gateway on {}", config.gateway.listen))?;
        let store = StoreChoice::Embedded(data_dir.to_owned());
        let logic =
            logic_runtime.block_on(Logic::start(parts::logic(config, &auth, store)?, metrics)).with_context(
                || format!("starting logic on {} in {}", config.logic.listen, data_dir.display()),
            )?;
        back_end.is_at(logic.local_addr());
        gateway.attach_logic(logic.service());
        gateway.attach_scheduler(scheduler.service());

        let (scheduler, gateway, logic) = (Arc::new(scheduler), Arc::new(gateway), Arc::new(logic));
        let readiness = readiness_of(&scheduler, &gateway, &logic);
        let admin = {
            let _inside = runtime.enter();
            let roles = &["scheduler", "gateway", "logic"];
            Admin::start(admin, recorder.handle(), readiness, roles, scheduler.admin_routes())?
        };
        let drain_spread = parts::drain_spread(config);
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

    /// Reads the policy and the address database again.
    pub fn reload(&self) {
        self.scheduler.reload();
    }

    /// A token of this deployment that begins now.
    pub fn token(&self, user_id: &str) -> String {
        token_endpoint::sign_expected(
            &self.auth.jwt_secret,
            &self.auth.expected(),
            user_id,
            token_endpoint::TTL,
        )
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
pub(super) fn private_directory(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
