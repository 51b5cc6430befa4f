//! A scheduler on its own: clients' HTTP, the port gateways dial, the operator's port.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use berth_link::{ClusterKey, LinkMetrics, Server};
use berth_proto::metric::Registry;
use berth_scheduler::Scheduler;
use tokio::{net::TcpListener, runtime::Runtime};

use super::{owned, parts};
use crate::{
    admin::{Admin, Readiness},
    config::Config,
    telemetry,
};

/// A scheduler while it runs.
pub struct SchedulerRole {
    runtime: Runtime,
    scheduler: Arc<Scheduler>,
    links: Server,
    admin: Admin,
}

/// Where it listens.
pub struct Addresses {
    pub client: SocketAddr,
    pub rpc: SocketAddr,
    pub admin: SocketAddr,
}

/// The role's own settings, known to be good before anything starts.
///
/// # Errors
/// A key, or a file of keys, that cannot be.
pub fn settings(config: &Config) -> anyhow::Result<berth_scheduler::Config> {
    parts::scheduler(config, &config.auth)
}

impl SchedulerRole {
    /// Binds and serves.
    ///
    /// # Errors
    /// What could not be read or bound, and where.
    pub fn start(
        config: &Config,
        settings: berth_scheduler::Config,
        key: ClusterKey,
        runtime: Runtime,
    ) -> anyhow::Result<Self> {
        let recorder = telemetry::recorder();
        let metrics = Registry::new(recorder);
        let started = runtime.block_on(async {
            let wanted = &config.scheduler;
            let admin = TcpListener::bind(wanted.admin_listen)
                .await
                .with_context(|| format!("binding the admin port {}", wanted.admin_listen))?;
            let scheduler = Scheduler::start(settings, metrics)
                .await
                .with_context(|| format!("starting the scheduler on {}", wanted.listen))?;
            let links = LinkMetrics::scheduler(metrics);
            let links = Server::scheduler(wanted.rpc_listen, key, links, scheduler.service()).await?;
            let scheduler = Arc::new(scheduler);
            let own = scheduler.admin_routes();
            let admin = Admin::start(admin, recorder.handle(), readiness(&scheduler), &["scheduler"], own)?;
            anyhow::Ok((scheduler, links, admin))
        });
        let (scheduler, links, admin) = started?;
        Ok(Self { runtime, scheduler, links, admin })
    }

    /// The runtime for whatever else this process does.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            client: self.scheduler.local_addr(),
            rpc: self.links.local_addr(),
            admin: self.admin.local_addr(),
        }
    }

    /// Reads the policy and the address database again.
    pub fn reload(&self) {
        self.scheduler.reload();
    }

    /// Lets requests in flight end, then closes every link.
    pub fn stop(self) {
        let Self { runtime, scheduler, links, admin } = self;
        runtime.block_on(admin.stop());
        runtime.block_on(links.stop());
        owned(scheduler, |scheduler| runtime.block_on(scheduler.stop()));
    }
}

fn readiness(scheduler: &Arc<Scheduler>) -> Readiness {
    let scheduler = Arc::downgrade(scheduler);
    Arc::new(move || match scheduler.upgrade() {
        Some(scheduler) => scheduler.ready(),
        None => Err("stopping".to_owned()),
    })
}
