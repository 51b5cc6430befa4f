//! Which roles run together, and how they are wired: this is the only place that knows more than one role.

mod back_end_endpoint;
pub mod dev;
mod keys;
mod token_endpoint;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

pub use token_endpoint::sign as sign_token;

/// A runtime of its own, with so many threads of this name.
pub fn runtime(name: &str, workers: usize) -> anyhow::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(workers).thread_name(name).enable_all();
    builder.build().with_context(|| format!("starting the threads of {name}"))
}
