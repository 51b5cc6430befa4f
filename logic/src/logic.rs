//! A running logic: opens, replays, serves, and ends cleanly.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicU64},
    thread::JoinHandle,
    time::Duration,
};

use berth_proto::{link::LogicService, metric::Registry};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    backend::{self, Backends},
    commit::{Commit, CommitError},
    config::{Config, StartError},
    context::{Context, Part, steady_clock},
    gateways::Gateways,
    http, lane,
    metrics::Metrics,
    revoke, serve,
    service::{CONTROLS, LANES, Service},
    spread::Spreads,
    synced::Syncs,
    turnstile::Turnstiles,
    upkeep,
};

/// How long tasks may take to end once they are told.
const STOP: Duration = Duration::from_secs(10);

/// A running logic. Lanes and the HTTP API run on the runtime it was started on; commit, spread and upkeep have threads
/// of their own. The embedded store's calls block the runtime's threads for microseconds; a write that waits for a slice of a
/// group, and a sync once a second, for milliseconds. So give it a runtime of its own, with at least two threads.
pub struct Logic {
    context: Arc<Context>,
    service: Arc<Service>,
    local_addr: SocketAddr,
    /// Dropped, it tells every task to end.
    stop: DropGuard,
    tasks: Tasks,
}

/// What runs, and how it is told to end.
struct Tasks {
    context: Arc<Context>,
    stop: CancellationToken,
    /// On the caller's runtime: lanes and whatever else answers somebody.
    tracker: TaskTracker,
    /// What writes to the databases in bulk: it waits for their locks and their disk, which must not hold up lanes.
    threads: Vec<JoinHandle<()>>,
}

impl Tasks {
    fn new(context: Arc<Context>) -> Self {
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        Self { context, stop, tracker, threads: Vec::new() }
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(self.watched(name, task));
    }

    /// The task, and a word to readiness should it end, or panic, though nobody asked it to.
    fn watched<T>(&self, name: &'static str, task: T) -> impl Future<Output = ()> + Send + use<T>
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let watch = Watch { context: self.context.clone(), stop: self.stop.clone(), name };
        async move {
            let _watch = watch;
            task.await;
        }
    }

    /// Runs a task on a thread of its own, with the timers of the caller's runtime.
    fn spawn_thread(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), StartError> {
        let runtime = tokio::runtime::Handle::current();
        let task = self.tracker.track_future(self.watched(name, task));
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || runtime.block_on(task)).map_err(StartError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Waits for everything to end.
    async fn end(self) {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(STOP, self.tracker.wait()).await.is_err() {
            tracing::warn!(waited = ?STOP, left = self.tracker.len(), "tasks did not end in time");
            return;
        }
        let joined =
            tokio::task::spawn_blocking(|| self.threads.into_iter().all(|thread| thread.join().is_ok()));
        if !matches!(joined.await, Ok(true)) {
            tracing::error!("a thread of logic had panicked");
        }
    }
}

struct Watch {
    context: Arc<Context>,
    stop: CancellationToken,
    name: &'static str,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.stop.is_cancelled() {
            let reason = format!("{} ended by itself; restart this process", self.name);
            self.context.note(Part::Ended(self.name), Err(reason));
        }
    }
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
            marker: backends.marker.map(Arc::new),
            clock: config.clock.clone(),
            steady: steady_clock((config.clock)()),
            lease_ms: u32::try_from(config.lease.as_millis()).unwrap_or(u32::MAX),
            most_behind: config.most_behind,
            spreads: Arc::new(Spreads::new()),
            memberships: Turnstiles::default(),
            revocations: Arc::default(),
            syncs: Syncs::default(),
            committed: AtomicU64::new(0),
            outbox: AtomicU64::new(0),
            troubles: Mutex::default(),
        });
        let mut tasks = Tasks::new(context.clone());
        // On an early return, too, the tasks end.
        let stop = tasks.stop.clone().drop_guard();
        replay(&context, &mut tasks).await?;
        let service = begin(&context, &config, listener, &mut tasks)?;
        tracing::info!(id = config.id, %local_addr, inbox_epoch = context.store.inbox_epoch(), "logic serves");
        Ok(Self { context, service, local_addr, stop, tasks })
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

    /// What its parts share, for tests that call below the HTTP API.
    #[cfg(test)]
    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
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
        let Self { context, service, stop, tasks, .. } = self;
        let marker = context.marker.clone();
        drop(stop);
        tasks.end().await;
        context.gateways.clear();
        drop(service);
        let synced = upkeep::sync_and_trim(&context).await;
        context.queue.close().await;
        // The databases join their threads when they are dropped.
        let failed = context.queue.health().is_err();
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
            (Ok(()), Some(_)) if failed => {
                tracing::warn!("the ingest queue had failed; the next start treats this as an unclean end");
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
async fn replay(context: &Arc<Context>, tasks: &mut Tasks) -> Result<(), StartError> {
    let stop = tasks.stop.clone();
    let spreads = context.spreads.clone();
    for worker in spreads.workers() {
        let run = spreads.clone().run(worker, context.clone(), stop.clone());
        tasks.spawn_thread("logic-spread", run)?;
    }
    spreads.load(context, &stop).await?;
    let failed = |error| match error {
        CommitError::Store(error) => StartError::Store(error),
        CommitError::Queue(error) => StartError::Queue(error),
    };
    let mut commit = Commit::new(context.clone(), spreads, stop).await.map_err(failed)?;
    commit.catch_up().await.map_err(failed)?;
    // What an earlier process wrote and did not sync, a change of a group among it, is relied on from now on.
    context.sync_store().await?;
    tasks.spawn_thread("logic-commit", commit.run())
}

fn begin(
    context: &Arc<Context>,
    config: &Config,
    listener: TcpListener,
    tasks: &mut Tasks,
) -> Result<Arc<Service>, StartError> {
    let stop = tasks.stop.clone();
    let lane = |_| {
        let (sender, arrivals) = mpsc::channel(lane::WAITING);
        tasks.spawn("a lane", lane::run(context.clone(), arrivals, stop.clone()));
        sender
    };
    let lanes = (0..LANES).map(lane).collect();
    let (control, controls) = mpsc::channel(CONTROLS);
    tasks.spawn("lease control", upkeep::control(context.clone(), controls, stop.clone()));
    tasks.spawn("telling revocations", revoke::tell_attached(context.clone(), stop.clone()));
    tasks.spawn("lease expiry", upkeep::leases(context.clone(), stop.clone()));
    let router = http::router(context.clone(), config);
    tasks.spawn("the back-end API", serve::serve(listener, router, stop.clone()));
    let sync = upkeep::sync(context.clone(), stop.clone());
    let sweep = upkeep::sweep(context.clone(), config.inbox_lifetime, stop);
    // Apart: what is removed in bulk must not delay the sync that bounds what a power cut costs.
    tasks.spawn_thread("logic-sync", sync)?;
    tasks.spawn_thread("logic-sweep", sweep)?;
    let (gateways, metrics) = (context.gateways.clone(), context.metrics.clone());
    let (steady, revocations) = (context.steady.clone(), context.revocations.clone());
    Ok(Arc::new(Service { lanes, control, gateways, metrics, steady, revocations }))
}
