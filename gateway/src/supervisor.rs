//! The gateway's one thread beside its workers: reports to schedulers, renews leases, watches that the workers come around.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex,
        atomic::Ordering::{AcqRel, Relaxed},
    },
    time::Duration,
};

use berth_proto::wire::{
    Carried, GatewayReport, Introduction, LeaseRenewed, MoveOrder, RenewLease, ToLogic, ToScheduler,
    to_logic, to_scheduler,
};

use crate::{
    carried,
    inlet::Delivery,
    lease::Spare,
    load::{Capacities, Meter, System, Totals},
    metrics::LinkRefused,
    mover::{self, Act, Mover, Phase},
    shared::{ENDED, PLACED_MARGIN_MS, Shared, lock},
};

/// Between two reports to each scheduler, in milliseconds: PEERS.md's freshness of load.
const REPORT_MS: i64 = 500;

/// A lease is renewed so often until its length is known, in milliseconds.
const FIRST_RENEWALS_MS: i64 = 1_000;

/// Messages with records of schedulers that wait for the supervisor: it comes around within milliseconds.
pub(crate) const CARRIED_WAITING: usize = 256;

/// A worker that does not come around for this long, in milliseconds, is stuck: it wakes every second with nothing to do.
const STALL_MS: i64 = 5_000;

/// What is longer than a second's sleep and half a second until it is noticed, in milliseconds, is a lag.
const WAKES_EVERY_MS: i64 = 1_500;

/// What others tell the supervisor.
#[derive(Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    bell: Condvar,
}

#[derive(Default)]
struct Mail {
    leases: Vec<(u8, LeaseRenewed)>,
    /// By scheduler.
    introductions: Vec<(usize, Introduction)>,
    order: Option<MoveOrder>,
    /// Records that schedulers told, by the scheduler's index.
    carried: Vec<(usize, Carried)>,
    /// Logics that are there again after a break.
    attached: Vec<u8>,
    poked: bool,
    stop: bool,
}

impl Mailbox {
    /// A logic renewed the lease, or says that it had run out.
    pub(crate) fn lease(&self, logic: u8, lease: &LeaseRenewed) {
        self.put(|mail| {
            let mut lease = *lease;
            // The newest renewal counts, but that it had run out must not be lost behind one that is good.
            if let Some(at) = mail.leases.iter().position(|(other, _)| *other == logic) {
                lease.forgotten |= mail.leases.swap_remove(at).1.forgotten;
            }
            mail.leases.push((logic, lease));
        });
    }

    /// A scheduler said who it is; its last word counts.
    pub(crate) fn introduced(&self, scheduler: usize, word: Introduction) {
        self.put(|mail| {
            mail.introductions.retain(|(other, _)| *other != scheduler);
            mail.introductions.push((scheduler, word));
        });
    }

    /// A rebalance is ordered; the last order counts.
    pub(crate) fn ordered(&self, order: MoveOrder) {
        self.put(|mail| mail.order = Some(order));
    }

    /// A scheduler tells records that outlive it. Beyond the bound they are left out: digests tell that they are missing.
    pub(crate) fn carried(&self, scheduler: usize, carried: Carried) {
        self.put(|mail| {
            if mail.carried.len() < CARRIED_WAITING {
                mail.carried.push((scheduler, carried));
            }
        });
    }

    /// The network to a logic is there, again or for the first time.
    pub(crate) fn attached(&self, logic: u8) {
        self.put(|mail| {
            if !mail.attached.contains(&logic) {
                mail.attached.push(logic);
            }
            // Readiness may have changed.
            mail.poked = true;
        });
    }

    /// Something that reports tell has changed.
    pub(crate) fn poke(&self) {
        self.put(|mail| mail.poked = true);
    }

    pub(crate) fn stop(&self) {
        self.put(|mail| mail.stop = true);
    }

    fn put(&self, put: impl FnOnce(&mut Mail)) {
        put(&mut lock(&self.mail));
        self.bell.notify_one();
    }

    /// What came, at the latest after `wait_ms`.
    fn take(&self, wait_ms: i64) -> Mail {
        let mail = lock(&self.mail);
        let wait = Duration::from_millis(wait_ms.max(0).unsigned_abs());
        let empty = |mail: &mut Mail| mail.is_empty();
        let (mut mail, _) = self
            .bell
            .wait_timeout_while(mail, wait, empty)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::take(&mut mail)
    }
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.leases.is_empty()
            && self.introductions.is_empty()
            && self.order.is_none()
            && self.carried.is_empty()
            && !self.poked
            && !self.stop
    }
}

/// The supervisor's own state.
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    leases: HashMap<usize, Lease>,
    next_report_ms: i64,
    watched: Vec<Watched>,
    /// When it last came around itself.
    turned_ms: i64,
    system: System,
    meter: Meter,
    spare: Spare,
    mover: Mover,
}

#[derive(Clone, Copy)]
struct Lease {
    length_ms: i64,
    renew_ms: i64,
}

struct Watched {
    round: u64,
    since_ms: i64,
    stalled: bool,
}

impl Supervisor {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let now = shared.clock.now().steady_ms;
        let watched =
            shared.rounds.iter().map(|_| Watched { round: 0, since_ms: now, stalled: false }).collect();
        let system = System::new();
        let capacities = Capacities {
            sent_bytes_per_second: shared.config.sent_bytes_per_second,
            cpu_millis_per_second: system.cpu_millis_per_second,
            memory_bytes: system.memory_bytes,
        };
        let meter = Meter::new(capacities, totals(&shared, &system, now));
        let spare = Spare::new(shared.config.handshakes_per_second, now);
        let mover = Mover::new(shared.inlets.len());
        Self {
            shared,
            leases: HashMap::new(),
            next_report_ms: now,
            watched,
            turned_ms: now,
            system,
            meter,
            spare,
            mover,
        }
    }

    /// Runs until [`Mailbox::stop`].
    pub(crate) fn run(mut self) {
        loop {
            let now = self.shared.clock.now().steady_ms;
            let renew = self.leases.values().map(|lease| lease.renew_ms).min().unwrap_or(i64::MAX);
            let moving = if self.mover.busy() { now + mover::TICK_MS } else { i64::MAX };
            let mail = self.shared.mailbox.take(self.next_report_ms.min(renew).min(moving) - now);
            if mail.stop {
                return report(&self.shared);
            }
            self.turn(mail);
        }
    }

    /// Does now what waits.
    #[cfg(test)]
    pub(crate) fn come_around(&mut self) {
        let mail = self.shared.mailbox.take(0);
        self.turn(mail);
    }

    fn turn(&mut self, mail: Mail) {
        let now = self.shared.clock.now().steady_ms;
        self.forgive(now);
        for (scheduler, carried) in mail.carried {
            carried::heard(&self.shared, scheduler, carried);
        }
        for (logic, lease) in mail.leases {
            self.renewed(logic, lease, now);
        }
        for logic in mail.attached {
            if let Some(lease) = self.leases.get_mut(&usize::from(logic)) {
                lease.renew_ms = now;
            }
        }
        self.renew(now);
        for (scheduler, word) in &mail.introductions {
            self.mover.introduced(*scheduler, word);
        }
        mail.order.into_iter().for_each(|order| self.mover.ordered(order));
        if let Some((version, drain)) = carried::own_drain(&self.shared) {
            self.mover.drain(version, drain);
        }
        self.move_on();
        if mail.poked || now >= self.next_report_ms {
            self.next_report_ms = now + REPORT_MS;
            self.measure(now);
            report(&self.shared);
            self.shared.forget_keys(now);
            self.count_links();
            self.watch(now);
        }
    }

    /// Does what is due of moving connections.
    fn move_on(&mut self) {
        let shared = &self.shared;
        let now = shared.clock.now();
        let rare = shared.rare();
        let up: Vec<bool> = rare.schedulers.iter().map(|link| link.connected()).collect();
        let to_pool = self.mover.to_pool();
        if *rare.to_pool != *to_pool {
            shared.change(|rare| rare.to_pool = to_pool.into());
        }
        let tell =
            |delivery: &dyn Fn() -> Delivery| shared.inlets.iter().for_each(|inlet| inlet.send(delivery()));
        for act in self.mover.turn(now, &up, shared.sessions.load(Relaxed)) {
            match act {
                Act::Serve(serves) => {
                    if shared.evacuating.swap(!serves, AcqRel) == serves {
                        tracing::info!(serves, "an operator's drain of this gateway began, or ended");
                        shared.mailbox.poke();
                    }
                }
                Act::Placed => shared.placed_ms.store(now.wall_ms + PLACED_MARGIN_MS, Relaxed),
                Act::Homes => shared.homes_ms.store(now.wall_ms + PLACED_MARGIN_MS, Relaxed),
                Act::Begin(job) => tell(&|| Delivery::Move(Arc::clone(&job))),
                Act::Grant(shares) => {
                    let shares = shared.inlets.iter().zip(shares).filter(|(_, share)| *share > 0);
                    shares.for_each(|(inlet, share)| inlet.send(Delivery::Grant(share)));
                }
                Act::End => tell(&|| Delivery::MovedEnough),
                Act::TellRest(spread_ms) => tell(&|| Delivery::TellRest(spread_ms)),
            }
        }
        shared.asking.among(self.mover.who_agree());
        *lock(&shared.moves) = self.mover.progress();
        let phase = self.mover.phase();
        for (known, gauge) in Phase::ALL.iter().zip(&shared.metrics.drain_phase) {
            gauge.set(if phase == Some(*known) { 1.0 } else { 0.0 });
        }
    }

    fn renewed(&mut self, logic: u8, lease: LeaseRenewed, now: i64) {
        let length_ms = i64::from(lease.lease_ms);
        if let Some(known) = self.leases.get_mut(&usize::from(logic))
            && length_ms > 0
        {
            known.length_ms = length_ms;
            known.renew_ms = known.renew_ms.min(now + length_ms / 3);
        }
        if lease.forgotten {
            tracing::info!(logic, "logic had forgotten this gateway's sessions; announcing them again");
            self.shared.inlets.iter().for_each(|inlet| inlet.send(Delivery::Reannounce(logic)));
        }
    }

    /// Says to each logic in time that this boot is alive.
    fn renew(&mut self, now: i64) {
        if self.shared.failure().is_some() {
            // Some of its sessions are dead: logic is to forget the routes of this boot.
            return self.leases.clear();
        }
        let connections = self.shared.connections.load(Relaxed);
        let links = self.shared.rare().logics;
        for (index, link) in links.iter().enumerate() {
            let lease = self.leases.entry(index).or_insert(Lease { length_ms: 0, renew_ms: now });
            if now < lease.renew_ms {
                continue;
            }
            let pause = if lease.length_ms > 0 { lease.length_ms / 3 } else { FIRST_RENEWALS_MS };
            lease.renew_ms = now + pause.max(1);
            let renew = to_logic::Message::Renew(RenewLease { sessions: connections, now_ms: now });
            if link.send(vec![ToLogic { message: Some(renew) }]).is_err() {
                // The lease outlives two renewals that fail; a full link may take one sooner than a third of it.
                lease.renew_ms = now + pause.clamp(1, FIRST_RENEWALS_MS);
                self.shared.metrics.links.refused.one(LinkRefused::Renew);
            }
        }
    }

    fn count_links(&self) {
        let rare = self.shared.rare();
        let up = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let metrics = &self.shared.metrics;
        metrics.links.logics.set(up(rare.logics.iter().filter(|link| link.connected()).count()));
        metrics.links.schedulers.set(up(rare.schedulers.iter().filter(|link| link.connected()).count()));
    }

    /// Measures what the next report tells of the load. A worker that does not come around is late for as long.
    fn measure(&mut self, now: i64) {
        let working =
            self.watched.iter().zip(&self.shared.rounds).filter(|(_, round)| round.load(Relaxed) != ENDED);
        let hung_ms = working.map(|(watched, _)| now - watched.since_ms - WAKES_EVERY_MS).max().unwrap_or(0);
        let mut totals = totals(&self.shared, &self.system, now);
        totals.lag_us = totals.lag_us.max(u64::try_from(hung_ms).unwrap_or(0) * 1_000);
        let load = self.meter.measure(totals);
        self.shared.metrics.loop_lag_seconds.set(load.loop_lag_us as f64 / 1e6);
        *lock(&self.shared.load) = Some(load);
        let door = &self.shared.door;
        let spare = self.spare.measure(door.returned.load(Relaxed), now);
        self.shared.spare_per_second.store(spare, Relaxed);
        self.shared.metrics.spare_handshakes.set(spare as f64);
        self.shared.metrics.handshake_queue_seconds.set(door.queue_ms(now) as f64 / 1_000.0);
    }

    /// While it stood still itself (the process was stopped, the machine slept) no worker was seen to come around: that is
    /// not held against them.
    fn forgive(&mut self, now: i64) {
        let away_ms = now - self.turned_ms - REPORT_MS;
        self.turned_ms = now;
        if away_ms > WAKES_EVERY_MS {
            self.watched.iter_mut().for_each(|watched| watched.since_ms += away_ms);
        }
    }

    fn watch(&mut self, now: i64) {
        for (worker, (watched, round)) in self.watched.iter_mut().zip(&self.shared.rounds).enumerate() {
            let round = round.load(Relaxed);
            if round == ENDED {
                watched.stalled = false;
            } else if round != watched.round {
                *watched = Watched { round, since_ms: now, stalled: false };
            } else if now - watched.since_ms > STALL_MS && !watched.stalled {
                watched.stalled = true;
                self.shared.metrics.worker_stalls.increment(1);
                tracing::warn!(
                    worker,
                    "a worker has not come around for {STALL_MS} ms; its connections hang"
                );
            }
        }
        self.shared.hangs.store(self.watched.iter().any(|watched| watched.stalled), Relaxed);
    }
}

fn totals(shared: &Shared, system: &System, now: i64) -> Totals {
    Totals {
        at_ms: now,
        handshakes: shared.door.let_in.load(Relaxed),
        sent_bytes: shared.metrics.traffic.bytes_out.total(),
        cpu_us: system.cpu_us(),
        resident_bytes: system.resident_bytes(),
        lag_us: shared.take_lag_us(),
    }
}

/// Tells every scheduler how this gateway is. Links never wait, so any thread may.
pub(crate) fn report(shared: &Shared) {
    let schedulers = shared.rare().schedulers;
    if schedulers.is_empty() {
        return;
    }
    let _turn = lock(&shared.reporting);
    let report = build_report(shared);
    for (link, lease) in schedulers.iter().zip(shared.leases(&schedulers)) {
        let report = GatewayReport { admit_per_second: Some(lease), ..report.clone() };
        let message = Some(to_scheduler::Message::Report(report));
        if link.send(vec![ToScheduler { message }]).is_err() {
            shared.metrics.links.refused.one(LinkRefused::Report);
        }
    }
}

fn build_report(shared: &Shared) -> GatewayReport {
    let config = &shared.config;
    GatewayReport {
        gateway_id: config.id.clone(),
        boot: shared.boot,
        region: config.region.clone(),
        zone: config.zone.clone(),
        pool: config.pool.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        endpoints: shared.endpoints.clone(),
        ready: shared.ready().is_ok(),
        draining: shared.drains(),
        capacity: shared.capacity,
        connections: shared.connections.load(Relaxed),
        handshakes_per_second_capacity: config.handshakes_per_second.into(),
        handshakes: shared.door.let_in.load(Relaxed),
        used_tickets: shared.take_used_tickets(),
        uptime_ms: shared.clock.uptime_ms().unsigned_abs(),
        load: *lock(&shared.load),
        admit_per_second: None,
        schedulers: shared.schedulers_seen(),
        // Missing data counts as failure: clients of a worker that hangs are counted nowhere.
        health: (!shared.hangs.load(Relaxed)).then(|| shared.metrics.health.report()),
        moves: lock(&shared.moves).clone(),
        carried_digests: carried::digests(shared),
    }
}

#[cfg(test)]
mod tests;
