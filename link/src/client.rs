//! The dialling side: a role that is elsewhere, behind the same trait as one in this process.

use std::{
    marker::PhantomData,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_proto::{
    link::{Link, LogicService, Refused, RefusedReason, SchedulerService},
    wire::{self, AttachGateway},
};
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Endpoint;

use crate::{
    ClusterKey, LinkMetrics,
    dialect::{Dialect, LogicDialect, SchedulerDialect},
    dialer::Dialer,
    outgoing::{self, Outgoing},
};

/// How to reach a role over the network.
#[derive(Clone)]
pub struct DialConfig {
    /// `http://host:port` of the role's gRPC. A name is resolved again for each attempt.
    pub endpoint: Endpoint,
    /// What to show.
    pub key: ClusterKey,
    /// What the operator is told.
    pub metrics: LinkMetrics,
    /// Batches that may wait for the network; what comes beyond is refused with [`RefusedReason::Full`].
    pub queue: usize,
    /// The first wait after a failed dial; doubles up to `max_backoff`, each wait drawn from half of it to all of it.
    pub base_backoff: Duration,
    /// The longest wait between two dials.
    pub max_backoff: Duration,
}

/// A connection attempt that takes longer is given up, and so is one that is connected and then not answered.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A network that carries nothing is asked after this whether it is there.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(1);

/// And given up when it does not answer for this long: a peer that is frozen or cut off without a word is noticed within
/// 4 s. A process that gets no processor for 3 s serves nobody either.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes under way in each direction before the sender waits for the receiver: 80,000 notifies in one go. A ping waits behind
/// them, so a link needs 3 Mbit/s to carry a full window and the ping within [`KEEPALIVE_TIMEOUT`].
pub(crate) const WINDOW: u32 = 1024 * 1024;

impl DialConfig {
    /// With the usual bounds: 1,024 batches, and 50 to 500 ms between dials. The upper end is what a scheduler that has
    /// just started waits at most for a gateway, and it is to know the fleet within a second.
    ///
    /// # Errors
    /// When `address` is no `host:port`.
    pub fn new(address: &str, key: ClusterKey, metrics: LinkMetrics) -> Result<Self, String> {
        let endpoint = endpoint(address)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let (base_backoff, max_backoff) = (Duration::from_millis(50), Duration::from_millis(500));
        Ok(Self { endpoint, key, metrics, queue: outgoing::BATCHES, base_backoff, max_backoff })
    }
}

/// Whether `address` is a `host:port` that can be dialled.
///
/// # Errors
/// What is wrong with it.
pub fn check_address(address: &str) -> Result<(), String> {
    endpoint(address).map(drop)
}

fn endpoint(address: &str) -> Result<Endpoint, String> {
    let no = |problem: &str| format!("{address:?} is no host:port: {problem}");
    let (host, port) = address.rsplit_once(':').ok_or_else(|| no("the port is missing"))?;
    if host.is_empty() || host.contains(['/', '@', '?', '#']) {
        return Err(no("the host is no name and no address"));
    }
    if port.parse::<u16>().ok().is_none_or(|port| port == 0) {
        return Err(no("the port is no number from 1 to 65535"));
    }
    Endpoint::from_shared(format!("http://{address}")).map_err(|error| no(&error.to_string()))
}

/// Logic or a scheduler at the other end of the network. Implements that role's service trait.
pub struct Remote<D> {
    config: DialConfig,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
    trouble: Trouble,
    dialect: PhantomData<D>,
}

/// Why the role cannot be reached at present.
pub(crate) type Trouble = Arc<Mutex<Option<String>>>;

impl Remote<LogicDialect> {
    /// Logic elsewhere. Dials run on `runtime` from the first attach on.
    #[must_use]
    pub fn logic(config: DialConfig, runtime: Handle) -> Self {
        Self::new(config, runtime)
    }
}

impl Remote<SchedulerDialect> {
    /// A scheduler elsewhere. Dials run on `runtime` from the first attach on.
    #[must_use]
    pub fn scheduler(config: DialConfig, runtime: Handle) -> Self {
        Self::new(config, runtime)
    }
}

impl LogicService for Remote<LogicDialect> {
    fn attach(
        &self,
        gateway: AttachGateway,
        down: Arc<dyn Link<wire::ToGateway>>,
    ) -> Arc<dyn Link<wire::ToLogic>> {
        self.dial(gateway, down)
    }
}

impl SchedulerService for Remote<SchedulerDialect> {
    fn attach(
        &self,
        gateway: AttachGateway,
        down: Arc<dyn Link<wire::FromScheduler>>,
    ) -> Arc<dyn Link<wire::ToScheduler>> {
        self.dial(gateway, down)
    }
}

impl<D: Dialect> Remote<D> {
    fn new(config: DialConfig, runtime: Handle) -> Self {
        Self {
            config,
            runtime,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            trouble: Trouble::default(),
            dialect: PhantomData,
        }
    }

    /// Why the role is not attached to at present; none while it is.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.as_ref().map(|reason| format!("{} at {}: {reason}", D::ROLE, self.config.endpoint.uri()))
    }

    /// Says what still waits to be said, within a second, then ends every link and awaits their tasks: two seconds, if the
    /// other side takes nothing.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn dial(&self, gateway: AttachGateway, down: Arc<dyn Link<D::Down>>) -> Arc<dyn Link<D::Up>> {
        let (batches, queue) = outgoing::queue(self.config.queue, self.config.metrics.clone());
        let connected = Arc::new(AtomicBool::new(false));
        let let_go = self.stop.child_token();
        let dialer = Dialer::<D> {
            config: self.config.clone(),
            gateway,
            down,
            connected: Arc::clone(&connected),
            let_go: let_go.clone(),
            trouble: Arc::clone(&self.trouble),
            forgetful: AtomicBool::new(false),
        };
        self.tasks.spawn_on(dialer.run(queue), &self.runtime);
        Arc::new(RemoteLink::<D> { batches, connected, let_go })
    }
}

/// What the gateway holds: dropping it ends the dialling, once what waits is said.
struct RemoteLink<D: Dialect> {
    batches: Outgoing<D::UpBatch>,
    connected: Arc<AtomicBool>,
    let_go: CancellationToken,
}

impl<D: Dialect> Drop for RemoteLink<D> {
    fn drop(&mut self) {
        self.let_go.cancel();
    }
}

impl<D: Dialect> Link<D::Up> for RemoteLink<D> {
    fn send(&self, batch: Vec<D::Up>) -> Result<(), Refused<D::Up>> {
        if !self.connected() {
            return Err(Refused { rest: batch, reason: RefusedReason::Closed });
        }
        self.batches.send(batch, D::up_batch, D::up_messages)
    }

    fn connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }
}

/// Largest batch on the wire, in bytes. Only a single message can make one that large: see `outgoing::BATCH`.
pub(crate) const MESSAGE: usize = 64 * 1024 * 1024;
