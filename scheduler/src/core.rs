//! What the HTTP API, the gateways' links and the background tasks share.

mod silence;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use berth_proto::{
    limits,
    schedule::{HeartbeatParameters, ReconnectParameters},
    ticket::{PUBLIC_KEY, TicketSigner},
    wire::{GatewayReport, Revocation},
};
use tokio::sync::Notify;

use self::silence::Silence;
use crate::{
    admission::{self, Admission, Now, Owner, QueueSeen, QueueTokens, Showing, Turn},
    carried::Carrier,
    clock::Clock,
    fleet::{Fleet, Pending, Place, REPORT_INTERVAL_MS, ReportError, SNAPSHOT_INTERVAL_MS, Table},
    guard::Guards,
    history::History,
    jwt::JwtStore,
    limit::RateLimiter,
    locate::Locator,
    metrics::Metrics,
    moving::Moving,
    policy::PolicyStore,
    replicas::Replicas,
};

/// Places in the queue that one user may take at once, and again in each second: a phone, a tablet and a desktop that come
/// together, and one to spare. Without a limit, one user who asks and asks would make everybody else wait.
const PLACES_PER_USER: u32 = 4;

/// Ramps and guards are looked at this often, in milliseconds: they count in seconds.
const RULES_EVERY_MS: i64 = 1_000;

/// The state of a scheduler. Decisions read `fleet` and `policy` without a lock.
pub(crate) struct Core {
    pub clock: Clock,
    /// What outlives this scheduler.
    pub carried: Carrier,
    /// Of connections that are moved.
    pub moving: Moving,
    pub policy: PolicyStore,
    pub locator: Locator,
    pub fleet: ArcSwap<Fleet>,
    pub metrics: Metrics,
    pub jwt: JwtStore,
    pub signer: TicketSigner,
    pub queue_tokens: QueueTokens,
    /// The public halves of every key that any scheduler may sign with now, our own first.
    pub ticket_keys: Vec<[u8; PUBLIC_KEY]>,
    /// Each lets operators in; one that is empty nobody has.
    pub admin_keys: Vec<String>,
    /// Good for nothing, since they leaked.
    pub void_ticket_keys: Vec<[u8; PUBLIC_KEY]>,
    pub ticket_ttl_ms: i64,
    pub heartbeat: HeartbeatParameters,
    pub reconnect: ReconnectParameters,
    pub spread_max_ms: u32,
    pub limiter: RateLimiter,
    /// Places in the queue that one user may take.
    places: RateLimiter,
    admission: Mutex<Admission>,
    /// Wakes the policy watch: somebody asked to look at the file now.
    pub reload: Notify,
    /// Wakes the publisher: the next snapshot should not wait.
    pub urgent: Notify,
    /// When the first report came, on the monotonic clock.
    first_report_ms: OnceLock<i64>,
    table: Mutex<Table>,
    pending: Mutex<Pending>,
    /// Names this scheduler among the replicas.
    pub id: String,
    /// What was put in force.
    pub history: History,
    /// The other schedulers.
    pub replicas: Mutex<Replicas>,
    /// What gray rules' guards compare.
    pub guards: Mutex<Guards>,
    /// Held by whoever takes up what is carried: the last one takes up the newest.
    pub agreeing: Mutex<()>,
}

/// What [`Core::new`] needs besides its own parts.
pub(crate) struct Parts {
    pub id: String,
    pub history: History,
    pub carried: Carrier,
    pub policy: PolicyStore,
    pub locator: Locator,
    pub metrics: Metrics,
    pub jwt: JwtStore,
    pub signer: TicketSigner,
    pub queue_tokens: QueueTokens,
    pub ticket_keys: Vec<[u8; PUBLIC_KEY]>,
    pub admin_keys: Vec<String>,
    /// Good for nothing, since they leaked.
    pub void_ticket_keys: Vec<[u8; PUBLIC_KEY]>,
    pub ticket_ttl_ms: i64,
    pub heartbeat: HeartbeatParameters,
    pub reconnect: ReconnectParameters,
    pub spread_max_ms: u32,
    pub limiter: RateLimiter,
}

impl Core {
    pub fn new(parts: Parts) -> Self {
        let Parts {
            id,
            history,
            carried,
            policy,
            locator,
            metrics,
            jwt,
            signer,
            queue_tokens,
            ticket_keys,
            admin_keys,
            void_ticket_keys,
            ticket_ttl_ms,
            heartbeat,
            reconnect,
            spread_max_ms,
            limiter,
        } = parts;
        metrics.rules.set(&policy, &metrics.policy.version);
        Self {
            clock: Clock::start(),
            fleet: ArcSwap::default(),
            reload: Notify::new(),
            urgent: Notify::new(),
            first_report_ms: OnceLock::new(),
            table: Mutex::default(),
            places: RateLimiter::new(PLACES_PER_USER),
            admission: Mutex::default(),
            pending: Mutex::default(),
            replicas: Mutex::default(),
            guards: Mutex::default(),
            agreeing: Mutex::default(),
            id,
            history,
            moving: Moving::default(),
            carried,
            policy,
            locator,
            metrics,
            jwt,
            signer,
            queue_tokens,
            ticket_keys,
            admin_keys,
            void_ticket_keys,
            ticket_ttl_ms,
            heartbeat,
            reconnect,
            spread_max_ms,
            limiter,
        }
    }

    /// Takes a gateway's report in.
    pub fn report(&self, attachment: u64, report: &GatewayReport) -> Result<(), ReportError> {
        let now_ms = self.clock.monotonic_ms();
        let taken = lock(&self.table).take(attachment, report, now_ms);
        let urgent = taken.inspect_err(|_| self.metrics.reports_refused.increment(1))?;
        self.first_report_ms.get_or_init(|| now_ms);
        self.metrics.reports.increment(1);
        let used = &report.used_tickets[..report.used_tickets.len().min(limits::USED_TICKETS)];
        lock(&self.pending).used(used);
        self.moving.reported(report, now_ms);
        lock(&self.guards).take(report, now_ms);
        self.heard_of_replicas(report, now_ms);
        if urgent {
            self.urgent.notify_one();
        }
        Ok(())
    }

    /// A gateway tells which policy each scheduler holds.
    fn heard_of_replicas(&self, report: &GatewayReport, now_ms: i64) {
        let own = self.policy.load().version;
        let newest = {
            let mut replicas = lock(&self.replicas);
            replicas.hear(&report.schedulers, now_ms);
            // Not what this gateway tells: each has links of its own.
            replicas.newest(now_ms)
        };
        self.metrics.policy.version_seen.set(newest.max(own) as f64);
    }

    /// Whether that user and device may be sent anywhere with what was issued then: not if it was revoked.
    ///
    /// # Errors
    /// The revocation.
    pub fn check_revoked(&self, user_id: &str, device_id: &str, issued_at_ms: i64) -> Result<(), Revocation> {
        self.carried.revoked.find(user_id, device_id, issued_at_ms).map_or(Ok(()), Err)
    }

    /// Counts an assignment until a gateway sees its ticket.
    pub fn assigned(&self, fleet: &Fleet, place: Place<'_>) {
        lock(&self.pending).assign(fleet, place, self.clock.monotonic_ms());
    }

    /// Lets a client in to a pool, or tells when to come again. Of a client that a gateway sends on, nothing is asked: it is
    /// counted.
    ///
    /// # Errors
    /// The wait, and the token that keeps the place.
    pub fn admit(&self, owner: Owner<'_>, ask: Ask<'_>, wall_ms: i64) -> Result<(), Wait> {
        let now = Now { monotonic_ms: self.clock.monotonic_ms(), wall_ms };
        let queue_token = match ask {
            Ask::SentOn => {
                lock(&self.admission).sent(owner.pool, now.monotonic_ms);
                return Ok(());
            }
            Ask::Renew => "",
            Ask::LetIn { queue_token } => queue_token,
        };
        let showing = self.showing(queue_token, owner, now.monotonic_ms);
        let shown = showing.shown();
        let may_hold = || self.places.take(owner.user, now.monotonic_ms).is_ok();
        let turn = match ask {
            Ask::Renew => lock(&self.admission).renew(owner.pool, now.monotonic_ms),
            _ => lock(&self.admission).ask(owner.pool, showing, now, may_hold),
        };
        match turn {
            Turn::Now => Ok(()),
            Turn::At(place) => Err(Wait {
                ms: admission::wait_ms(place.due_ms - wall_ms),
                // The place that was shown is still counted by who gave it, and the token says who that is.
                queue_token: match shown {
                    Some(shown) if shown.place == place => queue_token.to_owned(),
                    _ => self.queue_tokens.make(place, owner),
                },
            }),
            Turn::Later(ms) => {
                let ms = admission::anywhere_up_to(ms, &mut rand::rng());
                Err(Wait { ms, queue_token: String::new() })
            }
        }
    }

    /// What a client shows. A place that another start of a scheduler gave is counted there for as long as that one lives.
    fn showing(&self, queue_token: &str, owner: Owner<'_>, now_ms: i64) -> Showing {
        if queue_token.is_empty() {
            return Showing::Nothing;
        }
        let Some(shown) = self.queue_tokens.read(queue_token, owner) else { return Showing::Forged };
        let own = shown.issuer == self.queue_tokens.issuer();
        if own || lock(&self.replicas).lives(shown.issuer, now_ms) {
            Showing::Place(shown)
        } else {
            Showing::Orphan(shown)
        }
    }

    /// How the queue of a pool is.
    pub fn queue(&self, pool: &str) -> Option<QueueSeen> {
        lock(&self.admission).seen(pool, self.clock.monotonic_ms())
    }

    /// What to ask the gateways of a pool for, in clients a second.
    pub fn wanted(&self, pool: &str) -> u64 {
        lock(&self.admission).wanted(pool, self.clock.monotonic_ms())
    }

    /// How many assignments are pending.
    #[cfg(test)]
    pub fn pending_len(&self) -> usize {
        lock(&self.pending).len()
    }

    /// These gateways are being emptied by an operator.
    pub fn drained(&self, gateways: HashSet<String>) {
        lock(&self.table).drain(gateways);
        self.urgent.notify_one();
    }

    /// Whether the gateways had a report interval's time since the first of them reported: before, only those that
    /// happened to come first are known, and they would get everybody. Without any report there is nothing to wait for.
    ///
    /// # Errors
    /// How many milliseconds are left.
    pub fn settled(&self) -> Result<(), u32> {
        settled(self.first_report_ms.get().copied(), self.clock.monotonic_ms())
    }

    /// Whether gateways have had time to say what they carry: before, this scheduler may not know of a rule that is stopped.
    pub fn caught_up(&self) -> bool {
        self.first_report_ms.get().is_some() && self.settled().is_ok()
    }

    /// Whether a client can be sent anywhere.
    pub fn ready(&self) -> Result<(), String> {
        if self.settled().is_err() {
            return Err("starting: not every gateway has had time to report".to_owned());
        }
        let fleet = self.fleet.load();
        if fleet.candidates.is_empty() {
            return Err(format!("no assignable gateway ({} known)", fleet.gateways.len()));
        }
        Ok(())
    }

    /// Builds snapshots until dropped: every [`SNAPSHOT_INTERVAL_MS`], sooner when a gateway came, left or changed. Many
    /// may do so at once, so after each snapshot comes a pause of at least nine times what it took.
    pub async fn publish(self: Arc<Self>) {
        let interval = Duration::from_millis(SNAPSHOT_INTERVAL_MS);
        let mut silence = Silence::default();
        let mut looked_ms = i64::MIN;
        loop {
            if self.clock.monotonic_ms() - RULES_EVERY_MS >= looked_ms {
                looked_ms = self.clock.monotonic_ms();
                self.look_after_rules();
            }
            self.agree_on_file();
            let took = self.snapshot(&mut silence);
            let pause = (took * 9).max(interval / 10);
            let due_ms = self.clock.monotonic_ms() + millis(pause.max(interval));
            tokio::time::sleep(pause).await;
            tokio::select! {
                () = self.urgent.notified() => {}
                () = tokio::time::sleep(interval.saturating_sub(pause)) => {}
            }
            let now_ms = self.clock.monotonic_ms();
            if let Some(away_ms) = away(due_ms, now_ms) {
                tracing::info!(
                    away_ms,
                    "this scheduler stood still; the gateways' silence meanwhile is not held against them"
                );
                lock(&self.table).forgive(away_ms, now_ms);
                lock(&self.guards).forgive(away_ms, now_ms);
            }
        }
    }

    fn snapshot(&self, silence: &mut Silence) -> Duration {
        let started = Instant::now();
        let now_ms = self.clock.monotonic_ms();
        let slow_start_ms = self.policy.load().slow_start_ms;
        let (pending, ended) = {
            let mut pending = lock(&self.pending);
            // Reports queue used tickets after their load: what is settled here is in the loads taken below.
            pending.settle();
            pending.expire(now_ms);
            (pending.len(), pending.counts())
        };
        let fleet = lock(&self.table).snapshot(now_ms, slow_start_ms);
        self.metrics.gateways(fleet.counts());
        self.metrics.dimensions(fleet.dimensions());
        self.metrics.distrusted.set(if fleet.distrusted { 1.0 } else { 0.0 });
        silence.tell(&fleet);
        self.budgets(&fleet, now_ms);
        let strained = self.moving.look(&fleet, &self.policy.load(), ended, now_ms);
        self.metrics.targets_strained.set(strained as f64);
        self.fleet.store(Arc::new(fleet));
        self.metrics.pending.set(pending, ended);
        let took = started.elapsed();
        self.metrics.snapshot_seconds.record(took);
        took
    }

    /// What each pool's gateways lease is this scheduler's budget for it, from now on.
    fn budgets(&self, fleet: &Fleet, now_ms: i64) {
        let schedulers = lock(&self.replicas).count(&self.id, now_ms);
        let pools = fleet.pools.iter().map(|pool| {
            let rates = admission::rates(pool.admit_per_second, pool.handshakes_per_second, schedulers);
            (&*fleet.labels(pool).pool, rates)
        });
        let mut admission = lock(&self.admission);
        admission.budgets(pools, now_ms);
        let (budget, wait_ms) = admission.all(now_ms);
        self.metrics.admission.set(budget, wait_ms, admission.counts());
    }
}

/// How a client comes to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask<'a> {
    /// It asks, perhaps with what keeps its place.
    LetIn { queue_token: &'a str },
    /// It is connected and wants a newer ticket: it comes to no gateway now, and waits for nobody else's turn.
    Renew,
    /// A gateway sends it on.
    SentOn,
}

/// More clients ask than can be let in: when to come again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wait {
    /// In milliseconds.
    pub ms: u32,
    /// Keeps the place; empty: none is kept.
    pub queue_token: String,
}

/// For how long this process stood still, if it did: stopped, swapped out, on a machine that slept. What is shorter than a
/// report interval makes nobody look silent.
fn away(due_ms: i64, now_ms: i64) -> Option<i64> {
    let late_ms = now_ms - due_ms;
    (late_ms > REPORT_INTERVAL_MS).then_some(late_ms)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn settled(first_report_ms: Option<i64>, now_ms: i64) -> Result<(), u32> {
    let left = first_report_ms.map_or(0, |first| first + REPORT_INTERVAL_MS - now_ms);
    if left <= 0 { Ok(()) } else { Err(u32::try_from(left).unwrap_or(u32::MAX)) }
}

/// Nothing panics while it holds one of these locks halfway through a change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use berth_proto::wire::SchedulerSeen;

    use super::*;
    use crate::testing::{Fixture, config, report};

    #[tokio::test]
    async fn what_another_start_of_a_scheduler_gave_is_counted_there_while_gateways_hear_of_it() {
        let (giver, other) = (Fixture::start(config()).await, Fixture::start(config()).await);
        let owner = Owner { pool: "stable", user: "alice", device: "d" };
        let place = admission::Place { due_ms: 2_000, issued_ms: 1_000 };
        let token = giver.scheduler.core.queue_tokens.make(place, owner);
        let is_orphan = |fixture: &Fixture, later_ms: i64| {
            let core = &fixture.scheduler.core;
            match core.showing(&token, owner, core.clock.monotonic_ms() + later_ms) {
                Showing::Place(_) => false,
                Showing::Orphan(_) => true,
                other => panic!("{other:?}"),
            }
        };
        assert!(!is_orphan(&giver, 60_000) && is_orphan(&other, 0));
        let boot = giver.scheduler.core.introduction().boot;
        let seen = SchedulerSeen { scheduler_id: "giver".to_owned(), boot, ..SchedulerSeen::default() };
        other.gateway(GatewayReport { schedulers: vec![seen], ..report("gw-1") }).await;
        assert!(!is_orphan(&other, 0));
        assert!(is_orphan(&other, 60_000), "not heard of any more");
        let elsewhere = Owner { pool: "canary", ..owner };
        assert_eq!(giver.scheduler.core.showing(&token, elsewhere, 0), Showing::Forged, "of another pool");
    }

    #[test]
    fn a_slow_moment_is_no_absence() {
        assert_eq!(away(1_000, 900), None, "woken before");
        assert_eq!(away(1_000, 1_500), None);
        assert_eq!(away(1_000, 11_000), Some(10_000));
    }

    #[test]
    fn settled_one_interval_after_the_first_report() {
        assert_eq!(settled(None, 0), Ok(()), "nobody to wait for");
        assert_eq!(settled(Some(90_000), 90_000), Err(500), "however long ago this scheduler started");
        assert_eq!(settled(Some(90_000), 90_499), Err(1));
        assert_eq!(settled(Some(90_000), 90_500), Ok(()));
    }
}
