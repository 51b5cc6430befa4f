//! Which roles run together, and how they are wired: this is the only place that knows more than one role.

mod back_end_endpoint;
pub mod dev;
pub mod gateway;
mod keys;
pub mod logic;
mod parts;
pub mod scheduler;
mod token_endpoint;

use std::sync::Arc;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

pub use keys::require;
pub use token_endpoint::{sign as sign_token, sign_expected as sign_expected_token};

/// A runtime of its own, with so many threads of this name.
pub fn runtime(name: &str, workers: usize) -> anyhow::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(workers).thread_name(name).enable_all();
    builder.build().with_context(|| format!("starting the threads of {name}"))
}

/// Ends a role once nobody looks at it any more: an admin request may, for the length of one readiness check.
fn owned<T>(mut shared: Arc<T>, stop: impl FnOnce(T)) {
    loop {
        match Arc::try_unwrap(shared) {
            Ok(role) => return stop(role),
            Err(still) => shared = still,
        }
        std::thread::yield_now();
    }
}
