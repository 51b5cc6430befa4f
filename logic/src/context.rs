//! What every part of a running logic shares, and how a failure below becomes an error that a client reads.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use berth_proto::{client, code::ErrorCode};

use crate::{
    backend::Marker,
    gateways::Gateways,
    metrics::Metrics,
    queue::{Queue, QueueError},
    routes::{Routes, RoutesError},
    store::{Store, StoreError},
};

/// The time, in milliseconds since the Unix epoch: read here at the edge, an argument everywhere below.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The system's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    })
}

/// What can be in trouble by itself: each clears what it set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Committing records; works again when a round of all partitions went through.
    Commit,
    /// The store or the routes otherwise; works again when a sync went through.
    Store,
}

/// Shared by lanes, loops and the HTTP API.
pub(crate) struct Context {
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) routes: Arc<dyn Routes>,
    pub(crate) gateways: Arc<Gateways>,
    pub(crate) metrics: Metrics,
    /// The mark of an unclean end, where there is one.
    pub(crate) marker: Option<Arc<Marker>>,
    pub(crate) clock: Clock,
    pub(crate) lease_ms: u32,
    pub(crate) most_behind: u64,
    /// Queue records not yet committed, as of the last round of commit.
    pub(crate) behind: AtomicU64,
    /// Why something cannot be done now, if so, by [`Part`].
    pub(crate) troubles: Mutex<[Option<String>; 2]>,
}

impl Context {
    pub(crate) fn now(&self) -> i64 {
        (self.clock)()
    }

    /// Remembers that something fails or works; logs each change once.
    pub(crate) fn note(&self, part: Part, state: Result<(), String>) {
        let trouble = &mut self.troubles.lock().unwrap_or_else(PoisonError::into_inner)[part as usize];
        match (state, trouble.as_ref()) {
            (Ok(()), Some(_)) => {
                tracing::info!(?part, "works again");
                *trouble = None;
            }
            (Err(reason), known) => {
                self.metrics.store_failures.increment(1);
                if known.is_none() {
                    tracing::error!(?part, reason, "failed: messages stay in the queue until it works again");
                }
                *trouble = Some(reason);
            }
            (Ok(()), None) => {}
        }
    }

    /// How many messages commit is behind, if that is too many to accept more.
    pub(crate) fn too_far_behind(&self) -> Option<u64> {
        Some(self.behind.load(Ordering::Relaxed)).filter(|behind| *behind > self.most_behind)
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.queue.health()?;
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match troubles.iter().flatten().next() {
            Some(reason) => Err(format!("the store failed: {reason}")),
            None => Ok(()),
        }
    }

    pub(crate) fn store_error(&self, error: &StoreError) -> client::Error {
        self.note(Part::Store, Err(error.to_string()));
        ErrorCode::Unavailable.error("the message store cannot be read or written now; retry")
    }

    pub(crate) fn routes_error(&self, error: &RoutesError) -> client::Error {
        self.note(Part::Store, Err(error.to_string()));
        ErrorCode::Unavailable.error("the route table cannot be read or written now; retry")
    }
}

/// What a client reads when the queue did not accept.
pub(crate) fn queue_error(error: &QueueError) -> client::Error {
    match error {
        QueueError::Full(_) => {
            ErrorCode::ResourceExhausted.error("the server has too many sends waiting; retry later")
        }
        QueueError::Conflict => ErrorCode::AlreadyExists
            .error("send.clientMsgId was used for another target or body within 24 h; choose a new one"),
        _ => ErrorCode::Unavailable
            .error("the message may or may not have been accepted; retry under the same clientMsgId"),
    }
}
