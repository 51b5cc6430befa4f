//! Logic on its own: the back end's HTTP, the port gateways dial, the operator's port.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock, Weak},
};

use anyhow::{Context, anyhow};
use axum::Router;
use berth_link::{ClusterKey, LinkMetrics, Server};
use berth_logic::{Logic, StoreChoice};
use berth_proto::metric::Registry;
use tokio::{net::TcpListener, runtime::Runtime};

use super::{dev::private_directory, owned, parts};
use crate::{
    admin::{Admin, Readiness},
    config::Config,
    telemetry,
};

/// Logic while it runs. It has a runtime of its own: its store calls block for the length of a disk read, which must not
/// hold up the links, whose gateways would take it for dead.
pub struct LogicRole {
    runtime: Runtime,
    logic_runtime: Runtime,
    logic: Arc<Logic>,
    links: Server,
    admin: Admin,
}

/// Where it listens.
pub struct Addresses {
    pub backend: SocketAddr,
    pub rpc: SocketAddr,
    pub admin: SocketAddr,
}

/// What `store.backend` names.
///
/// # Errors
/// When it names nothing, or something that is not built yet.
pub fn store(backend: &str) -> anyhow::Result<StoreChoice> {
    match backend.split_once(':') {
        None if backend == "memory" => Ok(StoreChoice::Memory),
        Some(("embedded", dir)) if !dir.is_empty() => Ok(StoreChoice::Embedded(PathBuf::from(dir))),
        Some(("redis" | "rediss", _)) => {
            Err(anyhow!("store.backend = {backend:?}: the Redis store is not built yet; use embedded:DIR"))
        }
        _ => Err(anyhow!("store.backend = {backend:?}; memory or embedded:DIR are possible")),
    }
}

impl LogicRole {
    /// Opens the store, replays what it lacks, and serves. The operator's port answers from the beginning: a replay may
    /// take its time.
    ///
    /// # Errors
    /// What could not be opened or bound, and where.
    pub fn start(
        config: &Config,
        store: StoreChoice,
        key: ClusterKey,
        runtime: Runtime,
    ) -> anyhow::Result<Self> {
        if let StoreChoice::Embedded(dir) = &store {
            private_directory(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let logic_runtime = parts::runtime_for_logic()?;
        let recorder = telemetry::recorder();
        let metrics = Registry::new(recorder);
        let wanted = &config.logic;
        let started: Arc<OnceLock<Weak<Logic>>> = Arc::default();
        let admin = runtime.block_on(async {
            let listener = TcpListener::bind(wanted.admin_listen)
                .await
                .with_context(|| format!("binding the admin port {}", wanted.admin_listen))?;
            let readiness = readiness(Arc::clone(&started));
            anyhow::Ok(Admin::start(listener, recorder.handle(), readiness, &["logic"], Router::new())?)
        })?;
        let settings = parts::logic(config, &config.auth, store)?;
        let logic = logic_runtime
            .block_on(Logic::start(settings, metrics))
            .with_context(|| format!("starting logic on {} in {}", wanted.listen, config.store.backend))?;
        let links = LinkMetrics::logic(metrics);
        let links = Server::logic(wanted.rpc_listen, key, links, logic.service());
        let links = match runtime.block_on(links) {
            Ok(links) => links,
            Err(error) => {
                // Its databases are to be closed clean all the same.
                logic_runtime.block_on(logic.stop());
                return Err(error.into());
            }
        };
        let logic = Arc::new(logic);
        // The only one who sets it.
        let _ = started.set(Arc::downgrade(&logic));
        Ok(Self { runtime, logic_runtime, logic, links, admin })
    }

    /// The runtime for whatever else this process does.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            backend: self.logic.local_addr(),
            rpc: self.links.local_addr(),
            admin: self.admin.local_addr(),
        }
    }

    /// Closes every link, then the databases.
    pub fn stop(self) {
        let Self { runtime, logic_runtime, logic, links, admin } = self;
        runtime.block_on(admin.stop());
        runtime.block_on(links.stop());
        owned(logic, |logic| logic_runtime.block_on(logic.stop()));
    }
}

fn readiness(logic: Arc<OnceLock<Weak<Logic>>>) -> Readiness {
    Arc::new(move || match logic.get().map(Weak::upgrade) {
        None => Err("the store is being opened".to_owned()),
        Some(Some(logic)) => logic.ready(),
        Some(None) => Err("stopping".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_named() {
        assert_eq!(store("memory").expect("one"), StoreChoice::Memory);
        assert_eq!(store("embedded:a/b:c").expect("one"), StoreChoice::Embedded("a/b:c".into()));
        for (bad, expected) in
            [("redis://h:1", "not built yet"), ("embedded:", "embedded:DIR"), ("disk", "memory")]
        {
            let problem = store(bad).expect_err(bad).to_string();
            assert!(problem.contains(expected) && problem.contains(bad), "{problem}");
        }
    }
}
