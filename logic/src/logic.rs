//! A running logic: opens, replays, serves, and ends cleanly.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_proto::{link::LogicService, metric::Registry};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    backend::{self, Backends, Marker},
    commit::{Commit, CommitError},
    config::{Config, StartError},
    context::Context,
    gateways::Gateways,
    http, lane,
    metrics::Metrics,
    service::{CONTROLS, LANES, Service},
    spread::Spreads,
    upkeep,
};

/// How long tasks may take to end once they are told.
const STOP: Duration = Duration::from_secs(10);

/// A running logic. Runs on the runtime it was started on; its embedded store blocks that runtime's threads for
/// microseconds per call (milliseconds while it syncs), so give it a runtime of its own.
pub struct Logic {
    context: Arc<Context>,
    service: Arc<Service>,
    local_addr: SocketAddr,
    marker: Option<Marker>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Logic {
    /// Opens the store and the queue, replays what the store had not applied, and serves.
    ///
    /// # Errors
    /// When a value of the configuration cannot be, a database cannot be opened or replayed, or the address is taken.
    pub async fn start(config: Config, metrics: Registry<'_>) -> Result<Self, StartError> {
        config.check()?;
        let metrics = Metrics::new(metrics);
        let backends = backend::open(&config, metrics.queue.clone(), (config.clock)())?;
        Self::over(config, backends, metrics).await
    }

    /// The same over given backends.
    pub(crate) async fn over(
        config: Config,
        backends: Backends,
        metrics: Metrics,
    ) -> Result<Self, StartError> {
        let listen = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        if let Some(marker) = &backends.marker {
            let path = marker.directory();
            marker.confirm(&config.os_boot_id).map_err(|source| StartError::Directory { path, source })?;
        }
        let context = Arc::new(Context {
            queue: backends.queue,
            store: backends.store,
            routes: backends.routes,
            gateways: Arc::new(Gateways::new(metrics.clone())),
            metrics,
            clock: config.clock.clone(),
            lease_ms: u32::try_from(config.lease.as_millis()).unwrap_or(u32::MAX),
            troubles: Mutex::default(),
        });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        // On an early return the tasks end with this.
        let guard = stop.clone().drop_guard();
        replay(&context, &stop, &tasks).await?;
        let service = serve(&context, &config, listener, &stop, &tasks);
        let _ = guard.disarm();
        tracing::info!(id = config.id, %local_addr, inbox_epoch = context.store.inbox_epoch(), "logic serves");
        Ok(Self { context, service, local_addr, marker: backends.marker, stop, tasks })
    }

    /// Where the back-end HTTP API listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What gateways attach to.
    #[must_use]
    pub fn service(&self) -> Arc<dyn LogicService> {
        self.service.clone()
    }

    /// Whether messages are accepted and delivered.
    ///
    /// # Errors
    /// Why not, for the operator: the queue or the store failed.
    pub fn ready(&self) -> Result<(), String> {
        self.context.health()
    }

    /// Ends every task, then syncs and closes the databases. What is not done by then is done at the next start.
    pub async fn stop(self) {
        let Self { context, service, marker, stop, tasks, .. } = self;
        stop.cancel();
        tasks.close();
        if tokio::time::timeout(STOP, tasks.wait()).await.is_err() {
            tracing::warn!(waited = ?STOP, left = tasks.len(), "tasks did not end in time");
        }
        context.gateways.clear();
        drop(service);
        let synced = upkeep::sync_and_trim(&context).await;
        context.queue.close().await;
        // The databases join their threads when they are dropped.
        let closed = tokio::task::spawn_blocking(move || Arc::try_unwrap(context).map(drop).is_ok()).await;
        match (synced, marker) {
            (Err(error), _) => {
                tracing::error!(%error, "the store could not be synced; the next start replays the queue")
            }
            (Ok(()), _) if !matches!(closed, Ok(true)) => {
                tracing::error!(
                    "the databases are still in use; the next start treats this as an unclean end"
                );
            }
            (Ok(()), Some(marker)) => {
                if let Err(error) = marker.remove() {
                    tracing::warn!(%error, "the mark of an unclean end could not be removed");
                }
            }
            (Ok(()), None) => {}
        }
    }
}

/// Commits what the queue has and the store has not; spread goes on while serving.
async fn replay(
    context: &Arc<Context>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<(), StartError> {
    let spreads = Arc::new(Spreads::new());
    for worker in spreads.workers() {
        tasks.spawn(spreads.clone().run(worker, context.clone(), stop.clone()));
    }
    spreads.load(context).await?;
    let failed = |error| match error {
        CommitError::Store(error) => StartError::Store(error),
        CommitError::Queue(error) => StartError::Queue(error),
    };
    let mut commit = Commit::new(context.clone(), spreads).await.map_err(failed)?;
    commit.catch_up().await.map_err(failed)?;
    tasks.spawn(commit.run(stop.clone()));
    Ok(())
}

fn serve(
    context: &Arc<Context>,
    config: &Config,
    listener: TcpListener,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Arc<Service> {
    let lane = |_| {
        let (sender, arrivals) = mpsc::channel(lane::WAITING);
        tasks.spawn(lane::run(context.clone(), arrivals, stop.clone()));
        sender
    };
    let lanes = (0..LANES).map(lane).collect();
    let (control, controls) = mpsc::channel(CONTROLS);
    tasks.spawn(upkeep::control(context.clone(), controls, stop.clone()));
    tasks.spawn(upkeep::sync(context.clone(), stop.clone()));
    tasks.spawn(upkeep::sweep(context.clone(), config.inbox_lifetime, stop.clone()));
    tasks.spawn(upkeep::leases(context.clone(), stop.clone()));
    let router = http::router(context.clone(), &config.service_key);
    let stopped = stop.clone().cancelled_owned();
    tasks.spawn(async move {
        let server = axum::serve(listener, router).with_graceful_shutdown(stopped);
        if let Err(error) = server.await {
            tracing::error!(%error, "the back-end API ended");
        }
    });
    let (gateways, metrics) = (context.gateways.clone(), context.metrics.clone());
    Arc::new(Service { lanes, control, gateways, metrics })
}
