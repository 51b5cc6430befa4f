//! What the HTTP API, the gateways' links and the background tasks share.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use berth_proto::{
    limits,
    schedule::{HeartbeatParameters, ReconnectParameters},
    ticket::TicketSigner,
    wire::GatewayReport,
};
use tokio::sync::Notify;

use crate::{
    clock::Clock,
    fleet::{Fleet, Pending, REPORT_INTERVAL_MS, ReportError, SNAPSHOT_INTERVAL_MS, Table},
    jwt::JwtKeys,
    limit::RateLimiter,
    metrics::{Metrics, PendingEnd},
    policy::PolicyStore,
};

/// The state of a scheduler. Decisions read `fleet` and `policy` without a lock.
pub(crate) struct Core {
    pub clock: Clock,
    pub policy: PolicyStore,
    pub fleet: ArcSwap<Fleet>,
    pub metrics: Metrics,
    pub jwt: JwtKeys,
    pub signer: TicketSigner,
    pub admin_key: String,
    pub ticket_ttl_ms: i64,
    pub heartbeat: HeartbeatParameters,
    pub reconnect: ReconnectParameters,
    pub limiter: RateLimiter,
    /// Wakes the policy watch: somebody asked to look at the file now.
    pub reload: Notify,
    /// Wakes the publisher: the next snapshot should not wait.
    urgent: Notify,
    table: Mutex<Table>,
    pending: Mutex<Pending>,
    /// The newest policy version that any gateway has seen.
    policy_seen: AtomicU64,
}

/// What [`Core::new`] needs besides its own parts.
pub(crate) struct Parts {
    pub policy: PolicyStore,
    pub metrics: Metrics,
    pub jwt: JwtKeys,
    pub signer: TicketSigner,
    pub admin_key: String,
    pub ticket_ttl_ms: i64,
    pub heartbeat: HeartbeatParameters,
    pub reconnect: ReconnectParameters,
    pub limiter: RateLimiter,
}

impl Core {
    pub fn new(parts: Parts) -> Self {
        let Parts { policy, metrics, jwt, signer, admin_key, ticket_ttl_ms, heartbeat, reconnect, limiter } =
            parts;
        metrics.policy_version.set(policy.load().version as f64);
        Self {
            clock: Clock::start(),
            fleet: ArcSwap::default(),
            reload: Notify::new(),
            urgent: Notify::new(),
            table: Mutex::default(),
            pending: Mutex::default(),
            policy_seen: AtomicU64::new(0),
            policy,
            metrics,
            jwt,
            signer,
            admin_key,
            ticket_ttl_ms,
            heartbeat,
            reconnect,
            limiter,
        }
    }

    /// Takes a gateway's report in.
    pub fn report(&self, attachment: u64, report: &GatewayReport) -> Result<(), ReportError> {
        let taken = lock(&self.table).take(attachment, report, self.clock.monotonic_ms());
        let urgent = taken.inspect_err(|_| self.metrics.reports_refused.increment(1))?;
        self.metrics.reports.increment(1);
        let used = &report.used_tickets[..report.used_tickets.len().min(limits::USED_TICKETS)];
        lock(&self.pending).used(used);
        let seen = self.policy_seen.fetch_max(report.policy_version, Ordering::Relaxed);
        self.metrics.policy_version_seen.set(seen.max(report.policy_version) as f64);
        if urgent {
            self.urgent.notify_one();
        }
        Ok(())
    }

    /// Counts an assignment until a gateway sees its ticket.
    pub fn assigned(&self, fleet: &Fleet, gateway: u32, schedule_id: u64) {
        lock(&self.pending).assign(fleet, gateway, schedule_id, self.clock.monotonic_ms());
    }

    /// Another policy is in force: slow start may be another.
    pub fn policy_changed(&self) {
        self.metrics.policy_version.set(self.policy.load().version as f64);
        self.urgent.notify_one();
    }

    /// Whether a client can be sent anywhere, after one report interval: before, only those gateways that happened to
    /// report first are known, and they would get everybody.
    pub fn ready(&self) -> Result<(), String> {
        if self.clock.monotonic_ms() < REPORT_INTERVAL_MS {
            return Err("starting: not every gateway has had time to report".to_owned());
        }
        let fleet = self.fleet.load();
        if fleet.candidates.is_empty() {
            return Err(format!("no assignable gateway ({} known)", fleet.gateways.len()));
        }
        Ok(())
    }

    /// Builds snapshots until dropped: every [`SNAPSHOT_INTERVAL_MS`], sooner when a gateway came, left or changed.
    pub async fn publish(self: Arc<Self>) {
        // Many gateways may change at once; this far apart, they cost a tenth of a core at the most.
        let least = tokio::time::Duration::from_millis(SNAPSHOT_INTERVAL_MS / 10);
        let most = tokio::time::Duration::from_millis(SNAPSHOT_INTERVAL_MS) - least;
        loop {
            self.snapshot();
            tokio::time::sleep(least).await;
            tokio::select! {
                () = self.urgent.notified() => {}
                () = tokio::time::sleep(most) => {}
            }
        }
    }

    fn snapshot(&self) {
        let started = std::time::Instant::now();
        let now_ms = self.clock.monotonic_ms();
        let slow_start_ms = self.policy.load().slow_start_ms;
        let (pending, ended) = {
            let mut pending = lock(&self.pending);
            pending.expire(now_ms);
            (pending.len(), pending.counts())
        };
        let fleet = lock(&self.table).snapshot(now_ms, slow_start_ms);
        self.metrics.gateways(fleet.counts());
        self.metrics.distrusted.set(if fleet.distrusted { 1.0 } else { 0.0 });
        let before = self.fleet.swap(Arc::new(fleet));
        if before.distrusted != self.fleet.load().distrusted {
            self.tell_distrust(before.distrusted);
        }
        self.metrics.pending.set(pending as f64);
        self.metrics.pending_ended(PendingEnd::Used, ended.used);
        self.metrics.pending_ended(PendingEnd::Expired, ended.expired);
        self.metrics.pending_ended(PendingEnd::Evicted, ended.evicted);
        self.metrics.snapshot_seconds.record(started.elapsed());
    }

    fn tell_distrust(&self, was_distrusted: bool) {
        if was_distrusted {
            tracing::info!("gateways are heard again, or are believed to be gone");
            return;
        }
        let counts = self.fleet.load().gateways.iter().filter(|gateway| gateway.old_load).count();
        tracing::warn!(
            gateways = counts,
            "most of the fleet fell silent at once: assigning on its last known load; check this scheduler's network"
        );
    }
}

/// Nothing panics while it holds one of these locks halfway through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
