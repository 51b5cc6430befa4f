//! Accepts HTTP connections of the back-end API and serves each in a task of its own, within bounds.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::Router;
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

/// Connections at a time; more wait in the listener's backlog. Back ends are servers that keep theirs open: a thousand
/// of them is many, and each costs a descriptor and some kilobytes.
const MAX_CONNECTIONS: usize = 1024;

/// A request's head must be complete this long after its first byte, and the next one's after the answer before.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// When stopping, requests in flight get this long: several syncs, and a fraction of what all tasks get.
const GRACE: Duration = Duration::from_secs(2);

/// After a failed accept (descriptors exhausted, say) a pause, since the next would fail at once too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until cancelled, then lets requests in flight end within [`GRACE`].
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let mut failing = false;
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &slots)).await {
        match accepted {
            Ok((stream, slot)) => {
                failing = false;
                let (router, stop) = (router.clone(), stop.clone());
                connections.spawn(async move {
                    connection(stream, router, stop).await;
                    drop(slot);
                });
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "the back-end API cannot accept connections; trying on");
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

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
    let (stream, _) = listener.accept().await?;
    Ok((stream, slot))
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    // Answers are one small write: waiting to fill a segment would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was not set");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut served = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let result = match stop.run_until_cancelled(served.as_mut()).await {
        Some(result) => Ok(result),
        None => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(GRACE, served).await
        }
    };
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection ended early"),
        Err(_) => tracing::debug!("an HTTP connection was cut: its request did not end within the grace"),
    }
}
