//! A lane: the messages about some users (by hash), in order, one task.
//!
//! Everything about one user goes through one lane, so his requests are taken up in the order received. A lane takes
//! what waits at once: sessions are registered as one batch, then the rest goes in order. A send is entered into the
//! queue in its turn and awaited beside the others, so that one sync serves many; acks of receipt are gathered, so that many
//! wait for the store's writer once; everything else is answered inline, since an embedded store's calls are short. What
//! arrives while the lane is full is handed back to the gateway.

use std::{collections::HashMap, sync::Arc, time::Instant};

use berth_proto::{
    client::{self, request::Method, response::Result as Answer},
    code::{CloseCode, ErrorCode},
    id::SYSTEM_USER,
    wire::{self, to_gateway::Message as Down, to_logic::Message as Up},
};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    gateways::Downs,
    ingest,
    metrics::Asked,
    request, revoke,
    routes::{GatewayKey, Opened, Opening, Route, RoutesError},
    store::Ack,
};

/// Messages that may wait in a lane. With 16 lanes and 64 KiB requests 1 GiB at the very worst; a connect storm of a
/// whole gateway's budget (2,000 a second) fills an eighth of one.
pub(crate) const WAITING: usize = 1024;

/// Messages taken up at a time.
const TAKE: usize = 256;

/// Sends awaited at a time: above it the lane takes nothing more until one is answered.
const AWAITED: usize = 1024;

/// Bytes of answers gathered before they are handed over: a few of the largest (PROTOCOL.md: 1 MiB).
const GATHERED: usize = 4 * 1024 * 1024;

/// Messages taken up before their answers are handed over and other tasks have their turn: milliseconds of work.
const STRETCH: usize = 64;

/// Why the older session of a device is closed.
const REPLACED: &str = "the same device connected again";

/// A message and where it came from.
pub(crate) struct Arrived {
    pub(crate) gateway: GatewayKey,
    pub(crate) message: Up,
}

struct Acked {
    gateway: GatewayKey,
    handle: u64,
    id: u32,
    answer: Answer,
}

type Acks = FuturesUnordered<BoxFuture<'static, Acked>>;

/// Until cancelled, or every gateway's link is gone.
pub(crate) async fn run(
    context: Arc<Context>,
    mut arrivals: mpsc::Receiver<Arrived>,
    stop: CancellationToken,
) {
    let mut taken = Vec::with_capacity(TAKE);
    let mut acks = Acks::new();
    let mut downs = Downs::default();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(acked) = acks.next() => {
                respond(&mut downs, acked);
                while let Some(Some(acked)) = futures_util::FutureExt::now_or_never(acks.next()) {
                    respond(&mut downs, acked);
                }
            }
            count = arrivals.recv_many(&mut taken, TAKE), if acks.len() < AWAITED => {
                if count == 0 {
                    return;
                }
                handle(&context, &mut taken, &mut acks, &mut downs).await;
            }
        }
        downs.flush(&context.gateways);
    }
}

fn respond(downs: &mut Downs, acked: Acked) {
    downs.respond(&acked.gateway, acked.handle, acked.id, acked.answer);
}

async fn handle(context: &Arc<Context>, taken: &mut Vec<Arrived>, acks: &mut Acks, downs: &mut Downs) {
    let mut opens = Vec::new();
    let mut ending = std::collections::HashSet::new();
    taken.retain_mut(|arrived| match &mut arrived.message {
        // Behind the end of a session of the same user, which may make room for it, an opening waits for its turn.
        Up::Open(open) if !ending.contains(&open.user_id) => {
            opens.push((arrived.gateway.clone(), std::mem::take(open)));
            false
        }
        Up::Close(close) => {
            ending.insert(close.user_id.clone());
            true
        }
        _ => true,
    });
    if !opens.is_empty() {
        // A session's first request comes after its SessionOpened, so opening first overtakes nothing.
        open(context, opens, downs).await;
    }
    let mut received = Received::default();
    for (n, Arrived { gateway, message }) in taken.drain(..).enumerate() {
        if downs.bytes() >= GATHERED || (n > 0 && n % STRETCH == 0) {
            downs.flush(&context.gateways);
            tokio::task::yield_now().await;
        }
        match message {
            Up::Request(request) => {
                if let Some((gateway, request)) = received.gather(gateway, request) {
                    take_up(context, gateway, request, acks, downs).await;
                }
            }
            Up::Close(close) => {
                if let Err(error) = end(context, &gateway, close).await {
                    // The route lives until its lease ends: notifies to it find nobody.
                    context.routes_error(&error);
                }
            }
            Up::Refresh(refresh) => refresh_inboxes(context, gateway, refresh, downs).await,
            Up::Open(opening) => open(context, vec![(gateway, opening)], downs).await,
            Up::Renew(_) => {}
        }
    }
    received.answer(context, downs).await;
}

/// Acks of what devices have, gathered. Nothing that a client can ask depends on them, so others may overtake them.
#[derive(Default)]
struct Received {
    /// The highest of each user's devices.
    highest: HashMap<(String, String), u64>,
    /// Who is to be answered: gateway, handle, request id.
    waiting: Vec<(GatewayKey, u64, u32)>,
}

impl Received {
    /// Keeps an ack; gives anything else back.
    fn gather(
        &mut self,
        gateway: GatewayKey,
        request: wire::ClientRequest,
    ) -> Option<(GatewayKey, wire::ClientRequest)> {
        let Some(client::Request { id, method: Some(Method::Ack(ack)) }) = &request.request else {
            return Some((gateway, request));
        };
        self.waiting.push((gateway, request.handle, *id));
        let highest = self.highest.entry((request.user_id, request.device_id)).or_default();
        *highest = ack.seq.max(*highest);
        None
    }

    async fn answer(self, context: &Context, downs: &mut Downs) {
        let Self { highest, waiting } = self;
        if waiting.is_empty() {
            return;
        }
        let acks: Vec<Ack> =
            highest.into_iter().map(|((user, device), seq)| Ack { user, device, seq }).collect();
        let answer = request::acks(context, &acks, waiting.len()).await;
        for (gateway, handle, id) in waiting {
            downs.respond(&gateway, handle, id, answer.clone());
        }
    }
}

/// Ends a session: by its epoch, or by the gateway's handle where the gateway never learned the epoch.
async fn end(context: &Context, gateway: &GatewayKey, close: wire::CloseSession) -> Result<(), RoutesError> {
    let wire::CloseSession { user_id, device_id, mut session_epoch, handle } = close;
    if session_epoch == 0 {
        let found = context.routes.lookup(std::slice::from_ref(&user_id)).await?;
        let theirs =
            |route: &&Route| route.device == device_id && route.gateway == *gateway && route.handle == handle;
        match found.iter().flatten().find(theirs) {
            Some(route) => session_epoch = route.epoch,
            None => return Ok(()),
        }
    }
    context.routes.close(&user_id, &device_id, session_epoch).await.map(drop)
}

/// Route written, then inbox seq read, then answered: nothing falls between.
async fn open(context: &Context, opens: Vec<(GatewayKey, wire::OpenSession)>, downs: &mut Downs) {
    let (allowed, denied): (Vec<_>, Vec<_>) =
        opens.into_iter().partition(|(_, open)| open.user_id != SYSTEM_USER);
    for (gateway, open) in denied {
        let error = ErrorCode::PermissionDenied.error("the user id system belongs to the server");
        downs.push(&gateway, Down::Opened(not_opened(open.handle, error, CloseCode::Forbidden)));
    }
    let allowed = revoke::check(context, allowed, downs).await;
    let openings = allowed.iter().map(|(gateway, open)| Opening {
        user: open.user_id.clone(),
        device: open.device_id.clone(),
        platform: open.platform.clone(),
        gateway: gateway.clone(),
        handle: open.handle,
        announced: open.session_epoch,
        said_ms: open.said_ms,
        auth_issued_at_ms: open.auth_issued_at_ms,
    });
    let users: Vec<String> = allowed.iter().map(|(_, open)| open.user_id.clone()).collect();
    let opened = match context.routes.register(openings.collect(), context.steady_now()).await {
        Ok(opened) => opened,
        Err(error) => {
            let error = context.routes_error(&error);
            for (gateway, open) in allowed {
                let answer = not_opened(open.handle, error.clone(), CloseCode::Internal);
                downs.push(&gateway, Down::Opened(answer));
            }
            return;
        }
    };
    let seqs = context.store.inbox_seqs(&users).await;
    for (((gateway, open), opened), seq) in allowed.into_iter().zip(opened).zip(seqs) {
        let answer = match seq {
            Ok(inbox_seq) => answer_open(context, open, opened, inbox_seq, downs),
            Err(error) => {
                take_back(context, &open, opened, downs).await;
                not_opened(open.handle, context.store_error(&error), CloseCode::Internal)
            }
        };
        downs.push(&gateway, Down::Opened(answer));
    }
}

/// A session that was registered but cannot be opened: nobody would ever close it. What it replaced is gone all the same,
/// and its gateway must hear of it.
async fn take_back(context: &Context, open: &wire::OpenSession, opened: Opened, downs: &mut Downs) {
    let Opened::Registered { epoch, replaced } = opened else { return };
    if let Some(old) = replaced {
        context.metrics.sessions_replaced.increment(1);
        downs.close(&old, CloseCode::SessionReplaced, REPLACED);
    }
    if let Err(error) = context.routes.close(&open.user_id, &open.device_id, epoch).await {
        context.routes_error(&error);
    }
}

fn answer_open(
    context: &Context,
    open: wire::OpenSession,
    opened: Opened,
    inbox_seq: u64,
    downs: &mut Downs,
) -> wire::SessionOpened {
    match opened {
        Opened::Registered { epoch, replaced } => {
            context.metrics.sessions_opened.increment(1);
            if let Some(old) = replaced {
                context.metrics.sessions_replaced.increment(1);
                downs.close(&old, CloseCode::SessionReplaced, REPLACED);
            }
            wire::SessionOpened {
                handle: open.handle,
                session_epoch: epoch,
                inbox_seq,
                inbox_epoch: context.store.inbox_epoch(),
                ..Default::default()
            }
        }
        Opened::Stale => {
            let error = ErrorCode::FailedPrecondition.error("a newer session of this device is connected");
            not_opened(open.handle, error, CloseCode::SessionReplaced)
        }
        Opened::Superseded => {
            let error =
                ErrorCode::Unavailable.error("another process has this gateway's id; try another one");
            not_opened(open.handle, error, CloseCode::Overloaded)
        }
        Opened::TooManyDevices(limit) => {
            context.metrics.sessions_refused.increment(1);
            let error =
                ErrorCode::FailedPrecondition.error(format!("{limit} devices of this user are connected"));
            not_opened(open.handle, error, CloseCode::ConnectionLimit)
        }
    }
}

fn not_opened(handle: u64, error: client::Error, code: CloseCode) -> wire::SessionOpened {
    wire::SessionOpened { handle, error: Some(error), close_code: code.number().into(), ..Default::default() }
}

async fn take_up(
    context: &Arc<Context>,
    gateway: GatewayKey,
    mut request: wire::ClientRequest,
    acks: &mut Acks,
    downs: &mut Downs,
) {
    let Some(client::Request { id, method }) = request.request.take() else { return };
    let handle = request.handle;
    let Some(method) = method else {
        let error = ErrorCode::Unimplemented.error("the request names no method this server knows");
        downs.respond(&gateway, handle, id, request::refuse(context, error));
        return;
    };
    let Method::Send(send) = method else {
        let answer = request::answer(context, &request, method).await;
        downs.respond(&gateway, handle, id, answer);
        return;
    };
    context.metrics.asked(Asked::Send);
    let begun = Instant::now();
    match ingest::enter(context, &request.user_id, send).await {
        Err(error) => downs.respond(&gateway, handle, id, request::refuse(context, error)),
        Ok(pending) => {
            let context = context.clone();
            acks.push(Box::pin(async move {
                let answer = match ingest::accepted(&context, pending).await {
                    Ok(response) => Answer::Send(response),
                    Err(error) => request::refuse(&context, error),
                };
                context.metrics.took(Asked::Send, begun.elapsed());
                Acked { gateway, handle, id, answer }
            }));
        }
    }
}

async fn refresh_inboxes(
    context: &Context,
    gateway: GatewayKey,
    refresh: wire::RefreshInboxes,
    downs: &mut Downs,
) {
    context.metrics.refreshes.increment(refresh.inboxes.len() as u64);
    let (handles, users): (Vec<u64>, Vec<String>) =
        refresh.inboxes.into_iter().map(|query| (query.handle, query.user_id)).unzip();
    let mut refreshed = wire::NotifyConnections::default();
    for (handle, seq) in handles.into_iter().zip(context.store.inbox_seqs(&users).await) {
        match seq {
            Ok(seq) => refreshed.push(handle, seq),
            // The next heartbeat asks again.
            Err(error) => drop(context.store_error(&error)),
        }
    }
    if !refreshed.is_empty() {
        downs.push(&gateway, Down::Refreshed(refreshed));
    }
}
