//! What the threads of a gateway share: settings, links, keys and counts.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{
            AtomicBool, AtomicI64, AtomicU32, AtomicU64,
            Ordering::{Relaxed, Release},
        },
    },
    time::Duration,
};

use berth_proto::{
    carry,
    client::Endpoint,
    limits,
    link::Link,
    ticket::TicketVerifier,
    wire::{GatewayLoad, Introduction, MoveProgress, SchedulerSeen, TicketKeys, ToLogic, ToScheduler},
};

use crate::{
    asking::Asking,
    clock::Clock,
    config::Config,
    door::Door,
    guard::{Guard, Spell},
    inlet::{Delivery, Inlet},
    keyring::{Keyring, VoidInUse},
    lease,
    metrics::Metrics,
    supervisor::Mailbox,
};

/// Ticket ids kept for the next report: several reports' worth. Those above are left out; a scheduler forgets its pending
/// assignments after 10 s in any case.
const USED_TICKETS_KEPT: usize = 4 * limits::USED_TICKETS;

/// Connections above the capacity that are let in only to be told so; more are dropped at once.
pub(crate) const SURPLUS: u64 = 64;

/// The spread of a stop that no drain came before, in milliseconds.
const STOP_SPREAD_MS: u32 = 2_000;

/// Tickets issued so shortly before word of another placement came are doubted as well: clocks differ, and the word travels.
pub(crate) const PLACED_MARGIN_MS: i64 = 2_000;

/// A worker's count of wake-ups once it has ended: there is nothing to watch any more.
pub(crate) const ENDED: u64 = u64::MAX;

/// Locks without caring for a panic elsewhere: every critical section here leaves the value whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Links up, in the order they were attached.
pub(crate) type LogicLinks = Vec<Arc<dyn Link<ToLogic>>>;
/// Links up, in the order they were attached.
pub(crate) type SchedulerLinks = Vec<Arc<dyn Link<ToScheduler>>>;

/// What changes rarely and is read at every wake-up: workers keep a copy and look at the version.
#[derive(Clone)]
pub(crate) struct Rare {
    pub(crate) logics: Arc<LogicLinks>,
    pub(crate) schedulers: Arc<SchedulerLinks>,
    pub(crate) verifier: Arc<TicketVerifier>,
    /// Where an operator's drain sends clients; empty: as the policy says.
    pub(crate) to_pool: Arc<str>,
}

/// Shared by all threads of one gateway.
pub(crate) struct Shared {
    pub(crate) config: Config,
    /// New for each start: a route belongs to (gateway, boot).
    pub(crate) boot: u64,
    pub(crate) clock: Clock,
    pub(crate) metrics: Arc<Metrics>,
    /// What one peer may cost.
    pub(crate) guard: Arc<Guard>,
    /// Sessions opened by tickets that are good only while no scheduler is linked.
    pub(crate) outage: Arc<Spell>,
    pub(crate) inlets: Vec<Arc<Inlet>>,
    pub(crate) mailbox: Mailbox,
    /// One per transport, as clients reach this gateway.
    pub(crate) endpoints: Vec<Endpoint>,
    /// Connections, at the most.
    pub(crate) capacity: u64,
    pub(crate) draining: AtomicBool,
    /// An operator empties this gateway; that may end.
    pub(crate) evacuating: AtomicBool,
    /// A scheduler said what decides where users belong.
    pub(crate) placed: AtomicBool,
    /// Tickets issued before, by the wall clock, may lead where their user no longer belongs.
    pub(crate) placed_ms: AtomicI64,
    /// Tickets issued before, by the wall clock, may keep their user from a home that is back.
    pub(crate) homes_ms: AtomicI64,
    /// Which scheduler is asked where who comes belongs.
    pub(crate) asking: Asking,
    /// How far what is moved is, for reports.
    pub(crate) moves: Mutex<Vec<MoveProgress>>,
    /// The waits of those who are sent away are spread over so many milliseconds.
    pub(crate) spread_ms: AtomicU32,
    pub(crate) connections: AtomicU64,
    /// Of those, clients that were welcomed and have not been told to go.
    pub(crate) sessions: Arc<AtomicU64>,
    /// The handshake rate.
    pub(crate) door: Arc<Door>,
    /// What of it may be leased to schedulers, a second.
    pub(crate) spare_per_second: AtomicU64,
    /// What each scheduler last said that it wants of that, by its index.
    demands: Mutex<Vec<u64>>,
    /// Each worker counts its wake-ups, for the watchdog; [`ENDED`] at last.
    pub(crate) rounds: Vec<AtomicU64>,
    /// A worker does not come around: what is counted tells nothing of the connections that hang there.
    pub(crate) hangs: AtomicBool,
    /// The latest that each worker woke since this was last taken, in microseconds.
    lags_us: Vec<AtomicU64>,
    /// As it was last measured: what the next report tells.
    pub(crate) load: Mutex<Option<GatewayLoad>>,
    /// One report is made and sent at a time, so that an older one never comes after a newer one.
    pub(crate) reporting: Mutex<()>,
    failure: OnceLock<String>,
    version: AtomicU64,
    rare: Mutex<Rare>,
    used_tickets: Mutex<Vec<u64>>,
    keyring: Mutex<Keyring>,
    /// What outlives schedulers.
    pub(crate) carried: Mutex<carry::Store>,
    /// What of that is revoked.
    pub(crate) revoked: Arc<carry::Revoked>,
    /// How each scheduler introduced itself, by its index.
    introductions: Mutex<HashMap<usize, Introduction>>,
}

/// What [`Shared::new`] is made of.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) boot: u64,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) inlets: Vec<Arc<Inlet>>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) capacity: u64,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { config, boot, clock, metrics, inlets, endpoints, capacity } = parts;
        let rare = Rare {
            logics: Arc::default(),
            schedulers: Arc::default(),
            verifier: Arc::default(),
            to_pool: Arc::default(),
        };
        let carried = carry::Store::default();
        let grace_ms = i64::try_from(config.ticket_grace.as_millis()).unwrap_or(i64::MAX);
        Self {
            rounds: inlets.iter().map(|_| AtomicU64::new(0)).collect(),
            lags_us: inlets.iter().map(|_| AtomicU64::new(0)).collect(),
            hangs: AtomicBool::new(false),
            load: Mutex::default(),
            guard: Arc::new(Guard::new(&config.limits)),
            door: Arc::new(Door::new(config.handshakes_per_second)),
            outage: Arc::default(),
            config,
            boot,
            clock,
            metrics: Arc::new(metrics),
            inlets,
            mailbox: Mailbox::default(),
            endpoints,
            capacity,
            draining: AtomicBool::new(false),
            evacuating: AtomicBool::new(false),
            placed: AtomicBool::new(false),
            // What changed while this gateway was away nobody tells it.
            placed_ms: AtomicI64::new(clock.now().wall_ms + PLACED_MARGIN_MS),
            homes_ms: AtomicI64::new(0),
            asking: Asking::new(boot),
            moves: Mutex::default(),
            spread_ms: AtomicU32::new(STOP_SPREAD_MS),
            connections: AtomicU64::new(0),
            sessions: Arc::default(),
            spare_per_second: AtomicU64::new(0),
            demands: Mutex::default(),
            reporting: Mutex::default(),
            failure: OnceLock::new(),
            version: AtomicU64::new(1),
            rare: Mutex::new(rare),
            used_tickets: Mutex::default(),
            keyring: Mutex::new(Keyring::new(grace_ms)),
            revoked: carried.revoked(),
            carried: Mutex::new(carried),
            introductions: Mutex::default(),
        }
    }

    /// A worker came so late to what it had to do.
    pub(crate) fn late(&self, worker: u8, lag: Duration) {
        let lag_us = u64::try_from(lag.as_micros()).unwrap_or(u64::MAX);
        self.lags_us[usize::from(worker)].fetch_max(lag_us, Relaxed);
    }

    /// The latest of any worker since this was last asked, in microseconds.
    pub(crate) fn take_lag_us(&self) -> u64 {
        self.lags_us.iter().map(|lag| lag.swap(0, Relaxed)).max().unwrap_or(0)
    }

    /// Grows with every change of [`Shared::rare`].
    pub(crate) fn version(&self) -> u64 {
        self.version.load(std::sync::atomic::Ordering::Acquire)
    }

    pub(crate) fn rare(&self) -> Rare {
        lock(&self.rare).clone()
    }

    /// Changes what is rare; the workers see it at their next wake-up, the supervisor at once.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Rare) -> R) -> R {
        let result = change(&mut lock(&self.rare));
        self.version.fetch_add(1, std::sync::atomic::Ordering::Release);
        self.mailbox.poke();
        result
    }

    /// The keys a scheduler signs with, beside those of the others; returns whether there was a usable one.
    pub(crate) fn ticket_keys(&self, scheduler: usize, keys: &TicketKeys) -> bool {
        // Links are attached before they are listed: who speaks is linked.
        let mut linked = self.linked_schedulers();
        linked.push(scheduler);
        let mut keyring = lock(&self.keyring);
        let void_before = keyring.void_tags();
        let usable = keyring.told(scheduler, keys, self.clock.now().steady_ms);
        if usable {
            self.change(|rare| rare.verifier = Arc::new(keyring.verifier()));
        }
        let void = keyring.void_tags();
        if void.iter().any(|tag| !void_before.contains(tag)) {
            tracing::info!("a ticket key is void: sessions that it let in are closed with 4005");
            // Behind the change: who is let in by a worker that has not seen it is found by what it does after.
            let void: Arc<[u32]> = void.into();
            self.inlets.iter().for_each(|inlet| inlet.send(Delivery::KeysVoid(Arc::clone(&void))));
        }
        self.watch_void(&mut keyring, &linked);
        usable
    }

    /// Says which schedulers sign with a void key: for a moment that is part of a change; later it is a slip.
    fn watch_void(&self, keyring: &mut Keyring, linked: &[usize]) {
        let (in_use, news) = keyring.void_in_use(linked);
        let mut keys: Vec<u32> = in_use.iter().map(|one| one.key).collect();
        keys.sort_unstable();
        keys.dedup();
        self.metrics.void_keys_in_use.set(keys.len() as f64);
        for VoidInUse { scheduler, key } in news {
            let introductions = lock(&self.introductions);
            let id = introductions.get(&scheduler).map_or("", |known| &known.scheduler_id);
            tracing::warn!(
                scheduler,
                id,
                key = format!("{key:08x}"),
                "a scheduler signs tickets with a key that is void: all of them are refused; if the key leaked, change it there as well, \
                 else take it out of auth.ticket_key_void"
            );
        }
    }

    /// The schedulers whose links are up.
    fn linked_schedulers(&self) -> Vec<usize> {
        let schedulers = self.rare().schedulers;
        let linked = schedulers.iter().enumerate().filter(|(_, link)| link.connected());
        linked.map(|(index, _)| index).collect()
    }

    /// A scheduler wants so many clients a second. One that wants much more than before is leased it at once.
    pub(crate) fn demand(&self, scheduler: usize, wanted_per_second: u64) {
        let mut demands = lock(&self.demands);
        if demands.len() <= scheduler {
            demands.resize(scheduler + 1, 0);
        }
        let before = std::mem::replace(&mut demands[scheduler], wanted_per_second);
        if wanted_per_second > 2 * before {
            self.mailbox.poke();
        }
    }

    /// What each of these schedulers is leased, a second. One that is not there has no use for a share.
    pub(crate) fn leases(&self, schedulers: &SchedulerLinks) -> Vec<u64> {
        let demands = lock(&self.demands);
        let wanted = |(index, link): (usize, &Arc<dyn Link<ToScheduler>>)| {
            link.connected().then(|| demands.get(index).copied().unwrap_or(0))
        };
        let wanted: Vec<_> = schedulers.iter().enumerate().map(wanted).collect();
        lease::split(self.spare_per_second.load(Relaxed), &wanted)
    }

    /// Lets go of replaced keys whose time is up, and of those of schedulers that are gone; of none while no scheduler is linked, whose clients come with what they have.
    pub(crate) fn forget_keys(&self, now_ms: i64) {
        let linked = self.linked_schedulers();
        let mut keyring = lock(&self.keyring);
        self.watch_void(&mut keyring, &linked);
        if linked.is_empty() {
            return;
        }
        if keyring.forget(&linked, now_ms) {
            self.change(|rare| rare.verifier = Arc::new(keyring.verifier()));
        }
    }

    pub(crate) fn ticket_used(&self, ids: &mut Vec<u64>) {
        let mut used = lock(&self.used_tickets);
        let room = USED_TICKETS_KEPT.saturating_sub(used.len());
        used.extend(ids.drain(..).take(room));
    }

    /// At most one report's worth of ticket ids; they are not given again.
    pub(crate) fn take_used_tickets(&self) -> Vec<u64> {
        let mut used = lock(&self.used_tickets);
        let count = used.len().min(limits::USED_TICKETS);
        used.drain(..count).collect()
    }

    /// A scheduler says who it is and which policy it holds. The others are told with the next report.
    pub(crate) fn introduced(&self, scheduler: usize, introduction: Introduction) {
        self.placed.fetch_or(introduction.placement != 0, Relaxed);
        lock(&self.introductions).insert(scheduler, introduction);
        self.mailbox.poke();
    }

    /// The schedulers whose links are up, for those that ask which policy the others hold.
    pub(crate) fn schedulers_seen(&self) -> Vec<SchedulerSeen> {
        let links = self.rare().schedulers;
        let introductions = lock(&self.introductions);
        let up = links.iter().enumerate().filter(|(_, link)| link.connected());
        let known = up.filter_map(|(index, _)| introductions.get(&index));
        known
            .map(|known| SchedulerSeen {
                scheduler_id: known.scheduler_id.clone(),
                policy_version: known.policy_version,
                policy_hash: known.policy_hash.clone(),
                boot: known.boot,
            })
            .collect()
    }

    /// A worker ended though nobody stopped it: this gateway serves nobody well any more. Its clients are sent elsewhere,
    /// and whoever asks is told why. The first failure is the one that is told.
    pub(crate) fn fail(&self, worker: u8, problem: &str) {
        let reason = format!("worker {worker} ended: {problem}; restart the gateway");
        tracing::error!(worker, problem, "a worker of the gateway ended; restart the gateway");
        // Only the first one counts.
        let _ = self.failure.set(reason);
        self.draining.store(true, Release);
        let spread_ms = self.spread_ms.load(Relaxed);
        self.inlets.iter().for_each(|inlet| inlet.send(Delivery::Evict(spread_ms)));
        self.mailbox.poke();
    }

    /// Why a worker ended though nobody stopped it.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Whether its clients are sent elsewhere.
    pub(crate) fn drains(&self) -> bool {
        self.draining.load(Relaxed) || self.evacuating.load(Relaxed)
    }

    /// Whether clients can be served, or what is missing.
    pub(crate) fn ready(&self) -> Result<(), String> {
        if let Some(failure) = self.failure() {
            return Err(failure.to_owned());
        }
        let rare = self.rare();
        if self.drains() {
            return Err("draining".to_owned());
        }
        if !rare.logics.iter().any(|link| link.connected()) {
            return Err("no logic is attached".to_owned());
        }
        if rare.verifier.is_empty() {
            return Err("no scheduler has told its ticket keys yet".to_owned());
        }
        Ok(())
    }
}
