//! Accepts HTTP connections and serves each in a task of its own, within bounds.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::core::Core;

/// Connections at a time; more wait in the listener's backlog. A request takes well under a millisecond, so this is
/// about slow peers, not about load, and leaves half of 20,000 descriptors free.
const MAX_CONNECTIONS: usize = 10_000;

/// A request's head must be complete this long after its first byte, and the next one's after the answer before.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Then a connection is asked to end: a peer that neither reads nor closes must not hold its place for ever, and clients
/// that come by a balancer find new replicas.
const LIFETIME: Duration = Duration::from_secs(300);

/// When stopping, requests in flight get this long.
const GRACE: Duration = Duration::from_secs(5);

/// After a failed accept (descriptors exhausted, say) a pause, since the next would fail at once too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The client's address, as an extension of each request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub SocketAddr);

/// Serves until cancelled, then lets requests in flight end.
pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener, router: Router, cancel: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                failing = false;
                let router = router.clone().layer(Extension(Peer(peer)));
                let (core, cancel) = (Arc::clone(&core), cancel.clone());
                connections.spawn(async move {
                    let _open = Open::new(core, slot);
                    connection(stream, router, cancel).await;
                });
            }
            Err(error) => {
                if !failing {
                    warn!(%error, "cannot accept HTTP connections; trying on");
                }
                failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// An open connection, counted until it is dropped: also when its task is, or panics.
struct Open {
    core: Arc<Core>,
    _slot: OwnedSemaphorePermit,
}

impl Open {
    fn new(core: Arc<Core>, slot: OwnedSemaphorePermit) -> Self {
        core.metrics.http_connections.increment(1.0);
        Self { core, _slot: slot }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.core.metrics.http_connections.decrement(1.0);
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, slot))
}

async fn connection(stream: TcpStream, router: Router, cancel: CancellationToken) {
    // Answers are one small write: waiting to fill a segment would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY was not set");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = pin!(served);
    let result = tokio::select! {
        biased;
        result = served.as_mut() => Ok(result),
        () = ended(&cancel) => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(GRACE, served).await
        }
    };
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "an HTTP connection ended early"),
        Err(_) => debug!("an HTTP connection was cut: its request did not end within the grace"),
    }
}

/// The scheduler stops, or the connection has lived long enough.
async fn ended(cancel: &CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = tokio::time::sleep(LIFETIME) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, config};

    #[tokio::test]
    async fn a_connection_whose_task_panics_is_not_counted_for_ever() {
        let fixture = Fixture::start(config()).await;
        let slots = Arc::new(Semaphore::new(1));
        let slot = Arc::clone(&slots).try_acquire_owned().expect("free");
        let core = Arc::clone(&fixture.scheduler.core);
        let open = || fixture.metric("berth_scheduler_http_connections");
        let task = tokio::spawn(async move {
            let _open = Open::new(core, slot);
            panic!("as a handler might");
        });
        assert!(task.await.expect_err("panicked").is_panic());
        assert_eq!((open(), slots.available_permits()), (0.0, 1));
    }
}
