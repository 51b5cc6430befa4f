//! `POST /v1/dev/back-end`: in dev mode anybody on this machine may be the back end, too. `berth demo` makes its group so.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::json;

/// Nothing need be said.
const BODY: usize = 1024;

/// What the endpoint answers.
pub struct BackEnd {
    shared: Arc<Shared>,
}

struct Shared {
    service_key: String,
    /// Known once logic listens, which is after the scheduler does.
    address: OnceLock<SocketAddr>,
}

impl BackEnd {
    /// Of a deployment with this key.
    pub fn new(service_key: &str) -> Self {
        let shared = Shared { service_key: service_key.to_owned(), address: OnceLock::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Logic listens here; the first address counts.
    pub fn is_at(&self, address: SocketAddr) {
        self.shared.address.get_or_init(|| address);
    }

    /// The route, for the scheduler's port.
    pub fn router(&self) -> Router {
        let limit = DefaultBodyLimit::max(BODY);
        Router::new().route("/v1/dev/back-end", post(tell)).layer(limit).with_state(Arc::clone(&self.shared))
    }
}

async fn tell(State(shared): State<Arc<Shared>>) -> Response {
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    match shared.address.get() {
        Some(address) => {
            let body = json!({ "logic": format!("http://{address}"), "serviceKey": shared.service_key });
            (no_store, Json(body)).into_response()
        }
        None => (StatusCode::SERVICE_UNAVAILABLE, no_store).into_response(),
    }
}
