//! What every part of a running logic shares, and how a failure below becomes an error that a client reads.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use berth_proto::{client, code::ErrorCode};

use crate::{
    backend::Marker,
    gateways::Gateways,
    metrics::Metrics,
    queue::{Queue, QueueError},
    revoke::Untold,
    routes::{Routes, RoutesError},
    spread::Spreads,
    store::{Store, StoreError},
    synced::Syncs,
    turnstile::Turnstiles,
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

/// A clock for leases: the wall clock as it was at `start_ms`, carried on by the monotonic one, so that it neither
/// jumps with the wall clock nor is far from it in what outlives a restart.
pub(crate) fn steady_clock(start_ms: i64) -> Clock {
    let begun = std::time::Instant::now();
    Arc::new(move || start_ms.saturating_add(i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX)))
}

/// What can be in trouble by itself: each clears what it set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Committing records; works again when a round of all partitions went through.
    Commit,
    /// Spreading by this worker; works again when a step went through and nothing is held back.
    Spread(usize),
    /// A task that ended though nobody asked it to; only a restart helps.
    Ended(&'static str),
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
    /// For leases: [`steady_clock`].
    pub(crate) steady: Clock,
    pub(crate) lease_ms: u32,
    pub(crate) most_behind: u64,
    /// What waits to be spread.
    pub(crate) spreads: Arc<Spreads>,
    /// One change of members of a group at a time.
    pub(crate) memberships: Turnstiles,
    /// Who is to be told what was revoked.
    pub(crate) revocations: Arc<Untold>,
    /// The store's syncs.
    pub(crate) syncs: Syncs,
    /// Queue records committed: the sum of the store's marks.
    pub(crate) committed: AtomicU64,
    /// Messages in the outbox.
    pub(crate) outbox: AtomicU64,
    /// Why something cannot be done now, if so.
    pub(crate) troubles: Mutex<BTreeMap<Part, String>>,
}

impl Context {
    pub(crate) fn now(&self) -> i64 {
        (self.clock)()
    }

    /// The time for leases, which no change of the wall clock ends or prolongs.
    pub(crate) fn steady_now(&self) -> i64 {
        (self.steady)()
    }

    /// Remembers that something fails or works; logs each change once.
    pub(crate) fn note(&self, part: Part, state: Result<(), String>) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match state {
            Ok(()) => {
                if troubles.remove(&part).is_some() {
                    tracing::info!(?part, "works again");
                }
            }
            Err(reason) => {
                self.metrics.store_failures.increment(1);
                if !troubles.contains_key(&part) {
                    tracing::error!(?part, reason, "failed: messages stay in the queue until it works again");
                }
                troubles.insert(part, reason);
            }
        }
    }

    /// Makes everything applied so far survive the end of the operating system: by a sync that begins after this call,
    /// shared with whoever else waits for one.
    pub(crate) async fn sync_store(&self) -> Result<(), StoreError> {
        let sync = async {
            let begun = std::time::Instant::now();
            let synced = self.store.sync().await;
            match &synced {
                Ok(()) => self.metrics.store_sync.record(begun.elapsed().as_secs_f64()),
                Err(_) => self.doubt_the_store(),
            }
            synced
        };
        self.syncs.sync(sync).await
    }

    /// What a failed sync leaves on the disk is unknown: see [`Marker`].
    fn doubt_the_store(&self) {
        if let Some(Err(error)) = self.marker.as_ref().map(|marker| marker.doubt()) {
            tracing::error!(
                %error,
                "the store could not be synced, and that could not be marked either: if this process ends now, clients may keep cursors of rows that are gone; restart the machine before the next start"
            );
        }
    }

    /// How many accepted messages have not reached everybody, if those are too many to accept more. Computed now, not
    /// at commit's last round: commit may be waiting, for the store or for spread.
    pub(crate) fn too_far_behind(&self) -> Option<u64> {
        let accepted: u64 = self.queue.heads().iter().sum();
        let uncommitted = accepted.saturating_sub(self.committed.load(Ordering::Relaxed));
        Some(uncommitted + self.outbox.load(Ordering::Relaxed)).filter(|behind| *behind > self.most_behind)
    }

    /// Messages came into the outbox.
    pub(crate) fn outbox_gained(&self, count: usize) {
        let before = self.outbox.fetch_add(count as u64, Ordering::Relaxed);
        self.metrics.outbox.set((before + count as u64) as f64);
    }

    /// Messages left the outbox.
    pub(crate) fn outbox_lost(&self, count: usize) {
        let less = |now: u64| Some(now.saturating_sub(count as u64));
        let before = self.outbox.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        let (Ok(before) | Err(before)) = before;
        self.metrics.outbox.set(before.saturating_sub(count as u64) as f64);
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.queue.health()?;
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match troubles.values().next() {
            Some(reason) => Err(format!("not everything works: {reason}")),
            None => Ok(()),
        }
    }

    /// A row that cannot be read is somebody's trouble, not the store's: the others are served.
    pub(crate) fn store_error(&self, error: &StoreError) -> client::Error {
        if error.is_damage() {
            self.metrics.store_failures.increment(1);
            tracing::warn!(%error, "a row cannot be read: what needs it is refused");
        } else {
            self.note(Part::Store, Err(error.to_string()));
        }
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
