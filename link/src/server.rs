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
use futures_util::{Stream, StreamExt, stream};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Response, Status, Streaming, metadata::MetadataMap, service::Routes,
    transport::server::TcpIncoming,
};

use crate::{
    ClusterKey, LinkMetrics,
    client::{CONNECT_TIMEOUT, KEEPALIVE, KEEPALIVE_TIMEOUT, MESSAGE, WINDOW},
    dialect::{Dialect, LogicDialect, SchedulerDialect},
    outgoing::{self, Outgoing},
    receiving::{RETRY, Receiving},
    rpc::{
        FromSchedulerBatch, ToGatewayBatch, ToLogicBatch, ToSchedulerBatch, logic_server, scheduler_server,
    },
    turns::{Complaints, End, Turns},
};

/// An attempt to attach counts only once the gateway says something after it heard our answer. A process that was frozen
/// finds attempts in its backlog that were given up long ago; taken for gateways, they would stand in for the real one.
pub(crate) const FIRST_WORD: Duration = CONNECT_TIMEOUT;

/// What a link left behind that must not be lost is offered to the role for so long. A role that takes nothing meanwhile is
/// ill, and its readyz says so.
const LEFT_BEHIND: Duration = Duration::from_secs(60);

/// At a stop, connections that do not end by themselves get this long.
const STOP: Duration = Duration::from_secs(2);

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
        metrics: LinkMetrics,
        service: Arc<dyn LogicService>,
    ) -> Result<Self, ServerError> {
        Self::start::<LogicDialect>(listen, key, metrics, service, |attach| {
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
        metrics: LinkMetrics,
        service: Arc<dyn SchedulerService>,
    ) -> Result<Self, ServerError> {
        Self::start::<SchedulerDialect>(listen, key, metrics, service, |attach| {
            let server = scheduler_server::SchedulerServer::new(attach);
            Routes::new(server.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
        })
        .await
    }

    async fn start<D: Dialect>(
        listen: SocketAddr,
        key: ClusterKey,
        metrics: LinkMetrics,
        service: Arc<D::Service>,
        routes: impl FnOnce(Attach<D>) -> Routes,
    ) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Bind { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let attach = Attach {
            service,
            key,
            metrics,
            stop: stop.clone(),
            tasks: tasks.clone(),
            turns: Arc::default(),
            complaints: Complaints::default(),
        };
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
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
        let mut serving = self.serving;
        match timeout(STOP, &mut serving).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::error!(%error, "the gRPC server failed"),
            Ok(Err(error)) => tracing::error!(%error, "the gRPC server panicked"),
            Err(_) => {
                tracing::debug!("a gateway did not end its connection; it is cut");
                serving.abort();
            }
        }
    }
}

struct Attach<D: Dialect> {
    service: Arc<D::Service>,
    key: ClusterKey,
    metrics: LinkMetrics,
    stop: CancellationToken,
    tasks: TaskTracker,
    turns: Arc<Turns>,
    complaints: Complaints,
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
        let checked = self.key.check(request.metadata()).and_then(|()| gateway(request.metadata()));
        let gateway = checked.inspect_err(|status| {
            self.metrics.refused.increment(1);
            self.complaints.complain(D::ROLE, request.remote_addr(), status.message());
        })?;
        let (batches, waiting) = outgoing::queue(outgoing::BATCHES, self.metrics.clone());
        // Ends with the receiving task, however that ends: nobody must talk into a link that nobody listens to.
        let end = End::under(&self.stop);
        let alive = end.asked().clone().drop_guard();
        let attached = Attached::<D> {
            service: Arc::clone(&self.service),
            gateway,
            down: Arc::new(DownLink { batches, open: AtomicBool::new(true) }),
            metrics: self.metrics.clone(),
            turns: Arc::clone(&self.turns),
            end: end.clone(),
            stop: self.stop.clone(),
        };
        self.tasks.spawn(async move {
            let _alive = alive;
            attached.serve(request.into_inner()).await;
        });
        let stream = stream::unfold(waiting, |mut waiting| async move {
            waiting.next().await.map(|batch| (Ok(batch), waiting))
        });
        let batches = stream.take_until(end.asked().clone().cancelled_owned());
        let verdict =
            stream::once(async move { end.verdict() }).filter_map(|verdict| async { verdict.map(Err) });
        Ok(Response::new(Box::pin(batches.chain(verdict))))
    }
}

/// One gateway's link, from its first word on.
struct Attached<D: Dialect> {
    service: Arc<D::Service>,
    gateway: AttachGateway,
    down: Arc<DownLink<D>>,
    metrics: LinkMetrics,
    turns: Arc<Turns>,
    /// The link's.
    end: End,
    /// The server's.
    stop: CancellationToken,
}

impl<D: Dialect> Attached<D> {
    async fn serve(self, mut stream: Streaming<D::UpBatch>) {
        let asked = self.end.asked().clone();
        let Some(Ok(Ok(Some(first)))) =
            asked.run_until_cancelled(timeout(FIRST_WORD, stream.message())).await
        else {
            tracing::debug!(
                role = D::ROLE,
                gateway = self.gateway.gateway_id,
                "an attempt to attach was given up by its gateway"
            );
            return;
        };
        let AttachGateway { gateway_id, boot } = self.gateway.clone();
        let turn = self.turns.take((gateway_id.clone(), boot), self.end.clone()).await;
        let service: &D::Service = &self.service;
        let down = Arc::clone(&self.down) as Arc<dyn Link<D::Down>>;
        let up = D::attach(service, self.gateway.clone(), Arc::clone(&down));
        let mut receiving = Receiving::<D>::new(up, down);
        tracing::info!(role = D::ROLE, gateway = gateway_id, boot, "link up");
        let link_is_up = self.metrics.up();
        let reason = asked.run_until_cancelled(self.receive(first, stream, &mut receiving)).await;
        self.down.open.store(false, Ordering::Release);
        drop(link_is_up);
        match reason {
            Some(Err(status)) => {
                self.metrics.breaks.increment(1);
                let reason = status.message();
                // A gateway that dies is no news for anybody here: its routes end, its clients go elsewhere.
                tracing::info!(role = D::ROLE, gateway = gateway_id, boot, reason, "link down");
            }
            Some(Ok(())) | None => tracing::info!(role = D::ROLE, gateway = gateway_id, boot, "link ended"),
        }
        // The gateway's next link need not wait for that.
        drop(turn);
        let finished = self.stop.run_until_cancelled(timeout(LEFT_BEHIND, receiving.finish())).await;
        if matches!(finished, Some(Err(_))) {
            tracing::warn!(
                role = D::ROLE,
                gateway = gateway_id,
                boot,
                "what a link left behind was not taken"
            );
        }
    }

    /// Hands what comes up to the role, until the stream ends or breaks.
    async fn receive(
        &self,
        first: D::UpBatch,
        mut stream: Streaming<D::UpBatch>,
        receiving: &mut Receiving<D>,
    ) -> Result<(), Status> {
        let mut retries = interval(RETRY);
        retries.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next = Some(first);
        while let Some(batch) = next {
            self.metrics.batches_in.increment(1);
            receiving.take(D::up_messages(batch));
            next = loop {
                tokio::select! {
                    biased;
                    _ = retries.tick(), if receiving.keeps() => receiving.retry(),
                    batch = stream.message(), if !receiving.is_full() => break batch?,
                    // Seen by whoever reads nothing, too.
                    () = self.down.batches.closed() => return Err(Status::unavailable("the gateway has gone")),
                }
            };
        }
        Ok(())
    }
}

struct DownLink<D: Dialect> {
    batches: Outgoing<D::DownBatch>,
    open: AtomicBool,
}

impl<D: Dialect> Link<D::Down> for DownLink<D> {
    fn send(&self, batch: Vec<D::Down>) -> Result<(), Refused<D::Down>> {
        if !self.connected() {
            return Err(Refused { rest: batch, reason: RefusedReason::Closed });
        }
        self.batches.send(batch, D::down_batch, D::down_messages)
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
