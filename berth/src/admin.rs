//! The operator's port: /livez, /readyz, /metrics, /version, and what a role adds.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::process;

/// Says whether the process can serve, or why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Histograms keep raw samples until somebody sums them up; this often somebody does.
const UPKEEP: Duration = Duration::from_secs(5);

/// At the end, what is being answered gets this long; a connection that only hangs is left to the process's exit.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The admin server while it runs.
pub struct Admin {
    address: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

#[derive(Clone)]
struct Shown {
    metrics: PrometheusHandle,
    readiness: Readiness,
    roles: &'static [&'static str],
}

impl Admin {
    /// Serves on the caller's runtime; `own` are the role's routes.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start(
        listener: TcpListener,
        metrics: PrometheusHandle,
        readiness: Readiness,
        roles: &'static [&'static str],
        own: Router,
    ) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let router = router(Shown { metrics: metrics.clone(), readiness, roles }).merge(own);
        let server = tokio::spawn(serve(listener, router, metrics, stop.clone()));
        Ok(Self { address, stop, server })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Ends it.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.server.await {
            tracing::error!(%error, "the admin server ended badly");
        }
    }
}

async fn serve(listener: TcpListener, router: Router, metrics: PrometheusHandle, stop: CancellationToken) {
    let upkeep = async {
        loop {
            tokio::time::sleep(UPKEEP).await;
            metrics.run_upkeep();
        }
    };
    tokio::select! {
        result = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned()) => {
            if let Err(error) = result {
                tracing::error!(%error, "the admin server failed");
            }
        }
        () = upkeep => {}
        () = async { stop.cancelled().await; tokio::time::sleep(LAST_ANSWERS).await } => {}
    }
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .with_state(shown)
}

async fn readyz(State(shown): State<Shown>) -> (StatusCode, String) {
    match (shown.readiness)() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics(State(shown): State<Shown>) -> ([(&'static str, &'static str); 1], String) {
    (
        [("content-type", "text/plain; version=0.0.4; charset=utf-8")],
        shown.metrics.render() + &process::render(),
    )
}

async fn version(State(shown): State<Shown>) -> Json<Value> {
    Json(json!({ "name": "berth", "version": env!("CARGO_PKG_VERSION"), "roles": shown.roles }))
}
