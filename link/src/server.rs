//! The listening side: a role's service on a port.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_proto::{
    id,
    link::{Link, LogicService, Refused, RefusedReason, SchedulerService},
    wire::AttachGateway,
};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::mpsc::{self, error::TrySendError},
    task::JoinHandle,
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Response, Status, Streaming, metadata::MetadataMap, service::Routes,
    transport::server::TcpIncoming,
};

use crate::{
    ClusterKey,
    client::MESSAGE,
    dialect::{Dialect, LogicDialect, SchedulerDialect},
    rpc::{
        FromSchedulerBatch, ToGatewayBatch, ToLogicBatch, ToSchedulerBatch, logic_server, scheduler_server,
    },
};

/// Batches that may wait for one gateway's network; what comes beyond is refused with [`RefusedReason::Full`].
const QUEUE: usize = 1024;

/// A message that must not be lost and found no room is tried again after this.
const RETRY: Duration = Duration::from_millis(5);

/// Pings find a gateway that is gone without a word.
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// Why a role's port could not be opened.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The address is taken, not ours, or not allowed.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

/// A role's gRPC port while it serves.
pub struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    /// Serves logic.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn logic(
        listen: SocketAddr,
        key: ClusterKey,
        service: Arc<dyn LogicService>,
    ) -> Result<Self, ServerError> {
        Self::start::<LogicDialect>(listen, key, service, |attach| {
            let server = logic_server::LogicServer::new(attach);
            Routes::new(server.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
        })
        .await
    }

    /// Serves a scheduler.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn scheduler(
        listen: SocketAddr,
        key: ClusterKey,
        service: Arc<dyn SchedulerService>,
    ) -> Result<Self, ServerError> {
        Self::start::<SchedulerDialect>(listen, key, service, |attach| {
            let server = scheduler_server::SchedulerServer::new(attach);
            Routes::new(server.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
        })
        .await
    }

    async fn start<D: Dialect>(
        listen: SocketAddr,
        key: ClusterKey,
        service: Arc<D::Service>,
        routes: impl FnOnce(Attach<D>) -> Routes,
    ) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Bind { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let attach = Attach { service, key, stop: stop.clone(), tasks: tasks.clone() };
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .add_routes(routes(attach))
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                stop.clone().cancelled_owned(),
            );
        Ok(Self { address, stop, tasks, serving: tokio::spawn(serving) })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Ends every link and awaits their tasks.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        match self.serving.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the gRPC server failed"),
            Err(error) => tracing::error!(%error, "the gRPC server panicked"),
        }
    }
}

struct Attach<D: Dialect> {
    service: Arc<D::Service>,
    key: ClusterKey,
    stop: CancellationToken,
    tasks: TaskTracker,
}

type Down<B> = Pin<Box<dyn Stream<Item = Result<B, Status>> + Send>>;

#[tonic::async_trait]
impl logic_server::Logic for Attach<LogicDialect> {
    type AttachStream = Down<ToGatewayBatch>;

    async fn attach(
        &self,
        request: Request<Streaming<ToLogicBatch>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        self.accept(request)
    }
}

#[tonic::async_trait]
impl scheduler_server::Scheduler for Attach<SchedulerDialect> {
    type AttachStream = Down<FromSchedulerBatch>;

    async fn attach(
        &self,
        request: Request<Streaming<ToSchedulerBatch>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        self.accept(request)
    }
}

impl<D: Dialect> Attach<D> {
    fn accept(
        &self,
        request: Request<Streaming<D::UpBatch>>,
    ) -> Result<Response<Down<D::DownBatch>>, Status> {
        self.key.check(request.metadata())?;
        let gateway = gateway(request.metadata())?;
        let (batches, queue) = mpsc::channel(QUEUE);
        let down = Arc::new(DownLink::<D> { batches, open: AtomicBool::new(true) });
        let up = D::attach(&self.service, gateway.clone(), Arc::clone(&down) as Arc<dyn Link<D::Down>>);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tracing::info!(
                role = D::ROLE,
                gateway = gateway.gateway_id,
                boot = gateway.boot,
                "gateway attached"
            );
            tokio::select! {
                () = receive::<D>(request.into_inner(), &*up, &down) => {}
                () = stop.cancelled() => {}
            }
            down.open.store(false, Ordering::Release);
            tracing::info!(
                role = D::ROLE,
                gateway = gateway.gateway_id,
                boot = gateway.boot,
                "gateway detached"
            );
        });
        let ended = self.stop.clone();
        let stream = ReceiverStream::new(queue).map(|batch| Ok(D::down_batch(batch)));
        Ok(Response::new(Box::pin(until(stream, ended))))
    }
}

/// The stream down, until the server stops: a graceful shutdown would otherwise wait for the gateway.
fn until<S: Stream>(stream: S, stop: CancellationToken) -> impl Stream<Item = S::Item> {
    let stopped = futures_util::stream::once(stop.cancelled_owned()).map(|()| None);
    tokio_stream::StreamExt::merge(stream.map(Some), stopped).map_while(|item| item)
}

/// Hands what comes up to the role. What it has no room for is answered, or offered again where it must not be lost.
async fn receive<D: Dialect>(mut stream: Streaming<D::UpBatch>, up: &dyn Link<D::Up>, down: &DownLink<D>) {
    loop {
        let mut batch = match stream.message().await {
            Ok(Some(batch)) => D::up_messages(batch),
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(role = D::ROLE, reason = status.message(), "stream from a gateway broke");
                return;
            }
        };
        while let Err(Refused { rest, reason }) = up.send(batch) {
            let (mut answers, mut kept) = (Vec::new(), Vec::new());
            for message in rest {
                match D::refused(message, reason) {
                    Ok(answer) => answers.extend(answer),
                    Err(message) => kept.push(message),
                }
            }
            if !answers.is_empty() {
                // No room to say so either: the senders' own deadlines tell them.
                drop(down.send(answers));
            }
            if kept.is_empty() {
                break;
            }
            batch = kept;
            tokio::time::sleep(RETRY).await;
        }
    }
}

struct DownLink<D: Dialect> {
    batches: mpsc::Sender<Vec<D::Down>>,
    open: AtomicBool,
}

impl<D: Dialect> Link<D::Down> for DownLink<D> {
    fn send(&self, batch: Vec<D::Down>) -> Result<(), Refused<D::Down>> {
        if !self.connected() {
            return Err(Refused { rest: batch, reason: RefusedReason::Closed });
        }
        self.batches.try_send(batch).map_err(|error| match error {
            TrySendError::Full(rest) => Refused { rest, reason: RefusedReason::Full },
            TrySendError::Closed(rest) => Refused { rest, reason: RefusedReason::Closed },
        })
    }

    fn connected(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }
}

/// Who dials.
fn gateway(metadata: &MetadataMap) -> Result<AttachGateway, Status> {
    let text = |name| metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let gateway_id = text("berth-gateway-id").to_owned();
    id::check(&gateway_id)
        .map_err(|problem| Status::invalid_argument(format!("berth-gateway-id {problem}")))?;
    let boot = text("berth-gateway-boot");
    let boot = boot
        .parse()
        .map_err(|_| Status::invalid_argument(format!("berth-gateway-boot {boot:?} is no decimal number")))?;
    Ok(AttachGateway { gateway_id, boot })
}
