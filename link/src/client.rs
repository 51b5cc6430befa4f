//! The dialling side: a role that is elsewhere, behind the same trait as one in this process.

use std::{
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_proto::{
    link::{Link, LogicService, Refused, RefusedReason, SchedulerService},
    wire::{self, AttachGateway},
};
use rand::Rng;
use tokio::{
    runtime::Handle,
    sync::mpsc::{self, error::TrySendError},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{
    ClusterKey,
    dialect::{Dialect, LogicDialect, SchedulerDialect},
};

/// How to reach a role over the network.
#[derive(Clone)]
pub struct DialConfig {
    /// `http://host:port` of the role's gRPC.
    pub endpoint: Endpoint,
    /// What to show.
    pub key: ClusterKey,
    /// Batches that may wait for the network; what comes beyond is refused with [`RefusedReason::Full`].
    pub queue: usize,
    /// The first wait after a failed dial; doubles up to `max_backoff`, each wait drawn from half of it to all of it.
    pub base_backoff: Duration,
    /// The longest wait between two dials.
    pub max_backoff: Duration,
}

/// A connection attempt that takes longer is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A silent network is found out by pings this far apart, each answered within [`KEEPALIVE_TIMEOUT`].
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

impl DialConfig {
    /// With the usual bounds: 1,024 batches, 50 ms to 2 s between dials.
    ///
    /// # Errors
    /// When `address` is no `host:port`.
    pub fn new(address: &str, key: ClusterKey) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| format!("{address:?} is no host:port: {error}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let (base_backoff, max_backoff) = (Duration::from_millis(50), Duration::from_secs(2));
        Ok(Self { endpoint, key, queue: 1024, base_backoff, max_backoff })
    }
}

/// Logic or a scheduler at the other end of the network. Implements that role's service trait.
pub struct Remote<D> {
    config: DialConfig,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
    dialect: PhantomData<D>,
}

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
            dialect: PhantomData,
        }
    }

    /// Ends every link and awaits their tasks.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn dial(&self, gateway: AttachGateway, down: Arc<dyn Link<D::Down>>) -> Arc<dyn Link<D::Up>> {
        let (batches, queue) = mpsc::channel(self.config.queue);
        let connected = Arc::new(AtomicBool::new(false));
        let dropped = self.stop.child_token();
        let dialer =
            Dialer::<D> { config: self.config.clone(), gateway, down, connected: Arc::clone(&connected) };
        let ended = dropped.clone();
        self.tasks.spawn_on(
            async move {
                tokio::select! {
                    () = dialer.run(queue) => {}
                    () = ended.cancelled() => {}
                }
            },
            &self.runtime,
        );
        Arc::new(RemoteLink::<D> { batches, connected, dropped })
    }
}

/// What the gateway holds: dropping it ends the dialling.
struct RemoteLink<D: Dialect> {
    batches: mpsc::Sender<Vec<D::Up>>,
    connected: Arc<AtomicBool>,
    dropped: CancellationToken,
}

impl<D: Dialect> Drop for RemoteLink<D> {
    fn drop(&mut self) {
        self.dropped.cancel();
    }
}

impl<D: Dialect> Link<D::Up> for RemoteLink<D> {
    fn send(&self, batch: Vec<D::Up>) -> Result<(), Refused<D::Up>> {
        if !self.connected() {
            return Err(Refused { rest: batch, reason: RefusedReason::Closed });
        }
        self.batches.try_send(batch).map_err(|error| match error {
            TrySendError::Full(rest) => Refused { rest, reason: RefusedReason::Full },
            TrySendError::Closed(rest) => Refused { rest, reason: RefusedReason::Closed },
        })
    }

    fn connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }
}

struct Dialer<D: Dialect> {
    config: DialConfig,
    gateway: AttachGateway,
    down: Arc<dyn Link<D::Down>>,
    connected: Arc<AtomicBool>,
}

impl<D: Dialect> Dialer<D> {
    /// Dials for ever. What waited for a connection that broke is thrown away: its senders have deadlines, and a new
    /// connection begins with what is true then.
    async fn run(self, mut queue: mpsc::Receiver<Vec<D::Up>>) {
        let mut backoff = self.config.base_backoff;
        loop {
            match self.open().await {
                Ok((up, down)) => {
                    backoff = self.config.base_backoff;
                    tracing::info!(role = D::ROLE, to = %self.config.endpoint.uri(), "link up");
                    self.connected.store(true, Ordering::Release);
                    let reason = self.carry(&mut queue, up, down).await;
                    self.connected.store(false, Ordering::Release);
                    while queue.try_recv().is_ok() {}
                    tracing::warn!(role = D::ROLE, to = %self.config.endpoint.uri(), reason, "link down");
                }
                Err(error) => {
                    tracing::debug!(role = D::ROLE, to = %self.config.endpoint.uri(), %error, "cannot attach");
                    backoff = (backoff * 2).min(self.config.max_backoff);
                }
            }
            let wait = rand::rng().random_range(backoff / 2..=backoff);
            tokio::time::sleep(wait).await;
        }
    }

    async fn open(&self) -> Result<(mpsc::Sender<D::UpBatch>, Streaming<D::DownBatch>), Status> {
        let channel =
            self.config.endpoint.connect().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let mut grpc: Grpc<Channel> =
            Grpc::new(channel).max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE);
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let (up, stream) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(stream));
        let metadata = request.metadata_mut();
        self.config.key.show(metadata);
        let id = MetadataValue::try_from(&self.gateway.gateway_id).map_err(|_| {
            Status::invalid_argument(format!("gateway id {:?} is no id", self.gateway.gateway_id))
        })?;
        metadata.insert("berth-gateway-id", id);
        metadata.insert("berth-gateway-boot", MetadataValue::from(self.gateway.boot));
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(D::PATH);
        let codec = ProstCodec::<D::UpBatch, D::DownBatch>::default();
        let response = tokio::time::timeout(CONNECT_TIMEOUT, grpc.streaming(request, path, codec))
            .await
            .map_err(|_| Status::deadline_exceeded("no answer to attach"))??;
        Ok((up, response.into_inner()))
    }

    /// Carries batches both ways until either side ends; returns why.
    async fn carry(
        &self,
        queue: &mut mpsc::Receiver<Vec<D::Up>>,
        up: mpsc::Sender<D::UpBatch>,
        mut down: Streaming<D::DownBatch>,
    ) -> String {
        let upward = async {
            while let Some(batch) = queue.recv().await {
                if up.send(D::up_batch(batch)).await.is_err() {
                    return "the stream up ended".to_owned();
                }
            }
            "the gateway let go".to_owned()
        };
        let downward = async {
            loop {
                match down.message().await {
                    // The gateway's inlet takes what must not be lost and counts what it drops.
                    Ok(Some(batch)) => drop(self.down.send(D::down_messages(batch))),
                    Ok(None) => return "the other side ended it".to_owned(),
                    Err(status) => return status.message().to_owned(),
                }
            }
        };
        tokio::select! {
            reason = upward => reason,
            reason = downward => reason,
        }
    }
}

/// Largest batch on the wire, in bytes: a wake-up's worth of requests or answers, each of at most a frame.
pub const MESSAGE: usize = 64 * 1024 * 1024;
