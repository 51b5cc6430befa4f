//! One link's life on the dialling side: dial, carry, find out that it broke, dial again.

use std::{
    error::Error,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use berth_proto::{link::Link, wire::AttachGateway};
use rand::Rng;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery,
    metadata::MetadataValue, transport::Channel,
};
use tonic_prost::ProstCodec;

use crate::{
    DialConfig,
    client::{CONNECT_TIMEOUT, MESSAGE, Trouble},
    dialect::Dialect,
    memory::Memory,
    metrics::Up,
    outgoing::{self, Waiting},
    turns::OVERTAKEN_CODE,
};

/// A gateway that lets go waits this long for what is still to be said to be taken, and for the other side to end its half.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A link that was up for this long was worth dialling for: when it breaks, dialling begins with the shortest wait again.
const SETTLED: Duration = Duration::from_secs(5);

/// Two links of one gateway to the same process cannot be: each that comes up ends the other. The one that was ended rests
/// this long, or they would take turns without an end.
const OVERTAKEN: Duration = Duration::from_secs(30);

/// How a link that was up ended.
enum Loss {
    /// By the other side, in good order.
    Ended,
    /// By another link of this gateway.
    Overtaken(String),
    /// The network or the other process failed.
    Broke(String),
}

pub(crate) struct Dialer<D: Dialect> {
    pub(crate) config: DialConfig,
    pub(crate) gateway: AttachGateway,
    pub(crate) down: Arc<dyn Link<D::Down>>,
    pub(crate) connected: Arc<AtomicBool>,
    /// The gateway needs the link no more.
    pub(crate) let_go: CancellationToken,
    pub(crate) trouble: Trouble,
    /// The operator was told that what was said could not be remembered.
    pub(crate) forgetful: AtomicBool,
}

/// A link that is up, until this is dropped, by a panic too: nobody must take it for one that carries.
struct Carrying<'a> {
    connected: &'a AtomicBool,
    _up: Up,
}

impl Drop for Carrying<'_> {
    fn drop(&mut self) {
        self.connected.store(false, Ordering::Release);
    }
}

/// A stream of batches each way.
type Streams<D> = (mpsc::Sender<<D as Dialect>::UpBatch>, Streaming<<D as Dialect>::DownBatch>);

impl<D: Dialect> Dialer<D> {
    /// Dials until the gateway lets go. What waited for a connection that broke is thrown away, but for what must outlive
    /// it: the senders of everything else have deadlines, and a new connection begins with what is true then.
    pub(crate) async fn run(self, mut queue: Waiting<D::UpBatch>) {
        let mut backoff = self.config.base_backoff;
        let memory = Mutex::new(Memory::new());
        let mut again = Vec::new();
        while let Some(opened) = self.let_go.run_until_cancelled(self.open()).await {
            let mut rest = None;
            match opened {
                Ok(streams) => {
                    let since = Instant::now();
                    let carrying = self.is_up();
                    let loss = self.carry(std::mem::take(&mut again), &memory, &mut queue, streams).await;
                    drop(carrying);
                    self.is_down(&loss);
                    again = lock(&memory).take(Instant::now());
                    while let Some(batch) = queue.try_next() {
                        again.extend(D::up_messages(batch).into_iter().filter(D::outlives_the_link));
                    }
                    if since.elapsed() >= SETTLED {
                        backoff = self.config.base_backoff;
                    }
                    rest = matches!(loss, Loss::Overtaken(_)).then_some(OVERTAKEN);
                }
                Err(status) => self.failed(&status),
            }
            let wait = rest.unwrap_or_else(|| rand::rng().random_range(backoff / 2..=backoff));
            if self.let_go.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
            backoff = (backoff * 2).min(self.config.max_backoff);
        }
    }

    fn is_up(&self) -> Carrying<'_> {
        tracing::info!(role = D::ROLE, to = %self.config.endpoint.uri(), "link up");
        self.note(None);
        let carrying = Carrying { connected: &self.connected, _up: self.config.metrics.up() };
        self.connected.store(true, Ordering::Release);
        self.down.network(true);
        carrying
    }

    fn is_down(&self, loss: &Loss) {
        let to = self.config.endpoint.uri();
        if self.let_go.is_cancelled() {
            return tracing::info!(role = D::ROLE, %to, "link ended");
        }
        self.config.metrics.breaks.increment(1);
        // That a process ends or a network breaks is expected of them: counted, and told by readyz as long as it lasts.
        let reason = match loss {
            Loss::Ended => "the other side ended it",
            Loss::Broke(reason) => reason,
            Loss::Overtaken(reason) => {
                tracing::warn!(role = D::ROLE, %to, reason, "link overtaken");
                reason
            }
        };
        tracing::info!(role = D::ROLE, %to, reason, "link down");
        self.note(Some(reason.to_owned()));
        self.down.network(false);
    }

    /// Whoever may have to act is told once, and again when the reason changes.
    fn failed(&self, status: &Status) {
        let to = self.config.endpoint.uri();
        let reason = reason(status);
        let turned_away = matches!(
            status.code(),
            Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented
        );
        if turned_away {
            self.config.metrics.refused.increment(1);
        }
        match (self.note(Some(reason.clone())), turned_away) {
            (false, _) => tracing::debug!(role = D::ROLE, %to, reason, "cannot attach"),
            (true, false) => tracing::info!(role = D::ROLE, %to, reason, "cannot attach yet; dialling on"),
            (true, true) => tracing::warn!(role = D::ROLE, %to, reason, "turned away; dialling on"),
        }
    }

    /// Whether that is news.
    fn note(&self, trouble: Option<String>) -> bool {
        let mut noted = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *noted != trouble;
        *noted = trouble;
        news
    }

    async fn open(&self) -> Result<Streams<D>, Status> {
        let transport = |error| Status::from_error(Box::new(error));
        let channel = self.config.endpoint.connect().await.map_err(transport)?;
        let mut grpc: Grpc<Channel> =
            Grpc::new(channel).max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE);
        grpc.ready().await.map_err(transport)?;
        let (up, stream) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(stream));
        let metadata = request.metadata_mut();
        self.config.key.show(metadata);
        let id = MetadataValue::try_from(&self.gateway.gateway_id).map_err(|_| {
            Status::invalid_argument(format!("gateway id {:?} is no id", self.gateway.gateway_id))
        })?;
        metadata.insert("berth-gateway-id", id);
        metadata.insert("berth-gateway-boot", MetadataValue::from(self.gateway.boot));
        let codec = ProstCodec::<D::UpBatch, D::DownBatch>::default();
        let response =
            timeout(CONNECT_TIMEOUT, grpc.streaming(request, PathAndQuery::from_static(D::PATH), codec))
                .await
                .map_err(|_| Status::deadline_exceeded("connected, but nobody answers"))??;
        Ok((up, response.into_inner()))
    }

    /// Carries batches both ways until either side ends, first what must be said `again`; returns why.
    async fn carry(
        &self,
        again: Vec<D::Up>,
        memory: &Mutex<Memory<D::Up>>,
        queue: &mut Waiting<D::UpBatch>,
        (up, down): Streams<D>,
    ) -> Loss {
        // Before anything is said: the link may be down already.
        self.remember(memory, &again);
        let too_late = || Loss::Broke("nobody took the last words".to_owned());
        let mut downward = pin!(self.hear(down, memory));
        // Also while what is said finds no room: a peer that takes nothing must not hold up a stop.
        let mut over = pin!(async {
            self.let_go.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        });
        tokio::select! {
            () = self.say(again, memory, queue, up) => {}
            loss = &mut downward => return loss,
            () = &mut over => return too_late(),
        }
        // The other side still has to take what is under way: a stream that is dropped takes it along.
        timeout(LAST_WORDS, downward).await.unwrap_or_else(|_| too_late())
    }

    /// Until the gateway lets go and everything is said, or the stream ends.
    async fn say(
        &self,
        again: Vec<D::Up>,
        memory: &Mutex<Memory<D::Up>>,
        queue: &mut Waiting<D::UpBatch>,
        up: mpsc::Sender<D::UpBatch>,
    ) {
        // The first batch may be empty. It says that this end has heard the answer: see `server::FIRST_WORD`.
        let mut parts = if again.is_empty() { vec![again] } else { outgoing::split(again) };
        loop {
            for part in parts.drain(..) {
                if up.send(D::up_batch(part)).await.is_err() {
                    return;
                }
            }
            let next = tokio::select! {
                biased;
                next = queue.next() => next,
                () = self.let_go.cancelled() => None,
            };
            let Some(batch) = next else { return };
            let messages = D::up_messages(batch);
            self.remember(memory, &messages);
            parts.push(messages);
        }
    }

    /// Remembers what of a batch about to be said must not be lost.
    fn remember(&self, memory: &Mutex<Memory<D::Up>>, messages: &[D::Up]) {
        let forgotten = note::<D>(&mut lock(memory), messages);
        self.config.metrics.forgotten.increment(forgotten);
        if forgotten > 0 && !self.forgetful.swap(true, Ordering::Relaxed) {
            let to = self.config.endpoint.uri();
            tracing::warn!(role = D::ROLE, %to, "more was said than is remembered: what a break loses of it stays lost");
        }
    }

    /// Until the other side ends; returns why.
    async fn hear(&self, mut down: Streaming<D::DownBatch>, memory: &Mutex<Memory<D::Up>>) -> Loss {
        loop {
            match down.message().await {
                Ok(Some(batch)) => {
                    self.config.metrics.batches_in.increment(1);
                    let messages = D::down_messages(batch);
                    if let Some(said_ms) = messages.iter().filter_map(D::proves).max() {
                        lock(memory).proven(said_ms, Instant::now());
                    }
                    // The gateway's inlet takes what must not be lost and counts what it drops.
                    drop(self.down.send(messages));
                }
                Ok(None) => return Loss::Ended,
                Err(status) if status.code() == OVERTAKEN_CODE => return Loss::Overtaken(reason(&status)),
                Err(status) => return Loss::Broke(reason(&status)),
            }
        }
    }
}

/// Remembers what of `messages` must not be lost; how many others are forgotten for it, though nobody is known to have heard them.
fn note<D: Dialect>(memory: &mut Memory<D::Up>, messages: &[D::Up]) -> u64 {
    let mut forgotten = 0;
    for message in messages {
        if D::outlives_the_link(message) {
            forgotten += u64::from(memory.remember(message.clone()));
        }
        if let Some(said_ms) = D::asks_for_proof(message) {
            memory.renewal(said_ms);
        }
    }
    forgotten
}

fn lock<M>(memory: &Mutex<Memory<M>>) -> MutexGuard<'_, Memory<M>> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The whole story: a transport error alone says only that it is one.
fn reason(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}
