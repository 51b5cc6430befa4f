//! A gateway on its own: the clients' port, the operator's port, and a link to every scheduler and to logic.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use axum::Router;
use berth_gateway::Gateway;
use berth_link::{ClusterKey, DialConfig, LinkMetrics, Remote, RemoteLogic, RemoteScheduler};
use berth_proto::metric::Registry;
use tokio::{net::TcpListener, runtime::Runtime};

use super::{owned, parts};
use crate::{
    admin::{Admin, Readiness},
    config::{self, Config},
    telemetry,
};

/// Whom to dial, known to be good before anything starts.
pub struct Peers {
    logics: Vec<DialConfig>,
    schedulers: Vec<DialConfig>,
    metrics: &'static metrics_exporter_prometheus::PrometheusRecorder,
}

impl Peers {
    /// Of the configuration.
    ///
    /// # Errors
    /// An address that is none, no address at all, one address twice, or more than one logic.
    pub fn new(config: &Config, key: &ClusterKey) -> anyhow::Result<Self> {
        let recorder = telemetry::recorder();
        let registry = Registry::new(recorder);
        let gateway = &config.gateway;
        let dial = |name: &'static str, addresses: &[String], metrics: &LinkMetrics| {
            if addresses.is_empty() {
                return Err(anyhow!("{name} is empty: give at least one HOST:PORT"));
            }
            let twice = addresses.iter().enumerate().find(|(n, address)| addresses[..*n].contains(address));
            if let Some((_, address)) = twice {
                // Each of the two links would end the other, without an end.
                return Err(anyhow!("{name} has {address:?} twice"));
            }
            let one = |address: &String| {
                DialConfig::new(address, key.clone(), metrics.clone())
                    .map_err(|problem| anyhow!("{name}: {problem}"))
            };
            addresses.iter().map(one).collect::<anyhow::Result<Vec<_>>>()
        };
        if gateway.logics.len() > 1 {
            // Each has its own store: users of different ones could not talk to each other.
            return Err(anyhow!(
                "gateway.logics has {} addresses; there can be one until logics can share a store",
                gateway.logics.len()
            ));
        }
        Ok(Self {
            logics: dial("gateway.logics", &gateway.logics, &LinkMetrics::gateway_to_logic(registry))?,
            schedulers: dial(
                "gateway.schedulers",
                &gateway.schedulers,
                &LinkMetrics::gateway_to_scheduler(registry),
            )?,
            metrics: recorder,
        })
    }
}

/// Whether clients can be told how to reach it.
///
/// # Errors
/// When it listens on every address of the machine and nothing says by which it is reached.
pub fn check_reachable(gateway: &config::Gateway) -> anyhow::Result<()> {
    if gateway.listen.ip().is_unspecified() && gateway.advertise.is_empty() {
        return Err(anyhow!(
            "gateway.listen = {}: no client can be sent there; set gateway.advertise to the HOST:PORT by which clients reach it",
            gateway.listen
        ));
    }
    Ok(())
}

/// A gateway while it runs.
pub struct GatewayRole {
    runtime: Runtime,
    gateway: Arc<Gateway>,
    remotes: Arc<Remotes>,
    admin: Admin,
    drain_spread: Duration,
}

struct Remotes {
    logics: Vec<Arc<RemoteLogic>>,
    schedulers: Vec<Arc<RemoteScheduler>>,
}

/// Where it listens.
pub struct Addresses {
    pub client: SocketAddr,
    pub admin: SocketAddr,
}

impl GatewayRole {
    /// Binds, serves, and dials for as long as it runs.
    ///
    /// # Errors
    /// What could not be bound, and where.
    pub fn start(config: &Config, peers: Peers, runtime: Runtime) -> anyhow::Result<Self> {
        let admin = runtime
            .block_on(TcpListener::bind(config.gateway.admin_listen))
            .with_context(|| format!("binding the admin port {}", config.gateway.admin_listen))?;
        let gateway = Gateway::start(parts::gateway(config), Registry::new(peers.metrics))
            .with_context(|| format!("starting the gateway on {}", config.gateway.listen))?;
        let handle = runtime.handle();
        let logic = |dial| Arc::new(Remote::logic(dial, handle.clone()));
        let scheduler = |dial| Arc::new(Remote::scheduler(dial, handle.clone()));
        let remotes = Arc::new(Remotes {
            logics: peers.logics.into_iter().map(logic).collect(),
            schedulers: peers.schedulers.into_iter().map(scheduler).collect(),
        });
        remotes.logics.iter().for_each(|logic| gateway.attach_logic(logic.clone()));
        remotes.schedulers.iter().for_each(|scheduler| gateway.attach_scheduler(scheduler.clone()));
        let gateway = Arc::new(gateway);
        let admin = {
            let _inside = runtime.enter();
            Admin::start(
                admin,
                peers.metrics.handle(),
                readiness(&gateway, &remotes),
                &["gateway"],
                Router::new(),
            )?
        };
        let drain_spread = parts::drain_spread(config);
        Ok(Self { runtime, gateway, remotes, admin, drain_spread })
    }

    /// The runtime for whatever else this process does.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        Addresses { client: self.gateway.local_addr(), admin: self.admin.local_addr() }
    }

    /// Sends the clients away with 4001, then says to logic which sessions ended, then closes the links.
    pub fn stop(self) {
        self.gateway.drain(self.drain_spread);
        let Self { runtime, gateway, remotes, admin, .. } = self;
        runtime.block_on(admin.stop());
        owned(gateway, Gateway::stop);
        runtime.block_on(async {
            for logic in &remotes.logics {
                logic.stop().await;
            }
            for scheduler in &remotes.schedulers {
                scheduler.stop().await;
            }
        });
    }
}

/// What is missing, and why it cannot be had.
fn readiness(gateway: &Arc<Gateway>, remotes: &Arc<Remotes>) -> Readiness {
    let (gateway, remotes) = (Arc::downgrade(gateway), Arc::clone(remotes));
    Arc::new(move || {
        let Some(gateway) = gateway.upgrade() else { return Err("stopping".to_owned()) };
        gateway.ready().map_err(|reason| {
            let logics = remotes.logics.iter().filter_map(|logic| logic.trouble());
            let schedulers = remotes.schedulers.iter().filter_map(|scheduler| scheduler.trouble());
            std::iter::once(reason).chain(logics).chain(schedulers).collect::<Vec<_>>().join("; ")
        })
    })
}
