//! Moving live connections: an operator's drain, a rebalance, and the sweep after a change of what decides where users belong.
//!
//! The supervisor's thread decides when how many may be begun with ([`Mover`]: time is an argument, and what is to be done comes out as
//! [`Act`]s); each worker picks them, asks a scheduler for each and tells it where to go (`worker/moving.rs`). One thing
//! at a time: a drain before a rebalance before a sweep.

mod job;
mod pacer;
mod sweep;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use berth_proto::wire::{Drain, Introduction, MoveOrder, MoveProgress, MovePurpose};

pub(crate) use self::job::{Job, Order};
use self::{
    pacer::{Pacer, shares},
    sweep::{Due, Sweep, Sweeps, Word},
};
use crate::clock::Now;

/// Between two looks while something is moved, in milliseconds.
pub(crate) const TICK_MS: i64 = 50;

/// After word that nobody should be moved now, so long nobody is, in milliseconds; then one, to see whether that has passed.
const HOLD_MS: i64 = 2_000;

/// Between two looks for who has come since, or is still there, in milliseconds.
const RELIST_MS: i64 = 2_000;

/// What reports say of what was ended before it was through.
const STOPPED: &str = "stopped";

/// Orders that are known again: a scheduler repeats its last one whenever a link is made anew.
const ORDERS: usize = 16;

/// What the supervisor is to do.
#[derive(Debug)]
pub(crate) enum Act {
    /// Take new clients, or send those who come away.
    Serve(bool),
    /// Every worker lists whom the job is about.
    Begin(Arc<Job>),
    /// The workers begin with so many more, each with its share.
    Grant(Vec<u64>),
    /// The workers drop what is left of the job.
    End,
    /// Everybody who is still here is told to go, and to come back within so many milliseconds.
    TellRest(u32),
    /// Where users belong may be another place than tickets say.
    Placed,
    /// Homes came or went: whom a ticket sent elsewhere on purpose may be better off at home.
    Homes,
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Load balancers are given time to notice.
    WaitLb,
    /// Connections are moved.
    Moving,
    /// Nobody should be moved now.
    Paused,
    /// The deadline has passed: the rest was told to go.
    Overdue,
    /// Nobody is left.
    Done,
}

impl Phase {
    pub(crate) const ALL: [Self; 5] = [Self::WaitLb, Self::Moving, Self::Paused, Self::Overdue, Self::Done];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WaitLb => "wait_lb",
            Self::Moving => "moving",
            Self::Paused => "paused",
            Self::Overdue => "overdue",
            Self::Done => "done",
        }
    }
}

/// What a drain does at that time of the wall clock.
fn phase(drain: &Drain, wall_ms: i64, sessions: u64, paused: bool) -> Phase {
    let waits = wall_ms < drain.started_at_ms.saturating_add(drain.wait_lb_ms.into());
    match () {
        () if drain.deadline_ms > 0 && wall_ms >= drain.deadline_ms && sessions > 0 => Phase::Overdue,
        () if waits => Phase::WaitLb,
        () if sessions == 0 => Phase::Done,
        () if paused => Phase::Paused,
        () => Phase::Moving,
    }
}

/// An operator's drain of this gateway.
#[derive(Debug)]
struct Draining {
    version: u64,
    drain: Drain,
    phase: Phase,
    told_rest_ms: Option<i64>,
}

/// Why nobody is moved now.
#[derive(Debug)]
struct Held {
    reason: String,
    until_ms: i64,
    /// How many answers there were when one was let go on, to see.
    probe: Option<u64>,
}

/// A job under way.
#[derive(Debug)]
struct Running {
    job: Arc<Job>,
    pacer: Pacer,
    /// Moved, at the most.
    most: u64,
    listed_ms: i64,
    held: Option<Held>,
}

impl Running {
    fn sweeps(&self) -> bool {
        self.job.order.purpose == MovePurpose::Sweep
    }

    /// To be asked about yet.
    fn left(&self) -> u64 {
        let count = self.job.count();
        count.left.min(self.most.saturating_sub(count.moved))
    }
}

/// What this gateway moves.
#[derive(Debug)]
pub(crate) struct Mover {
    workers: usize,
    draining: Option<Draining>,
    running: Option<Running>,
    rebalance: Option<MoveOrder>,
    /// The ids of the last orders.
    orders: VecDeque<u64>,
    sweep: Option<Sweep>,
    sweeps: Sweeps,
    progress: BTreeMap<i32, MoveProgress>,
}

impl Mover {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers,
            draining: None,
            running: None,
            rebalance: None,
            orders: VecDeque::with_capacity(ORDERS),
            sweep: None,
            sweeps: Sweeps::default(),
            progress: BTreeMap::new(),
        }
    }

    /// A scheduler said who it is, and what decides where users belong.
    pub(crate) fn introduced(&mut self, scheduler: usize, word: &Introduction) {
        let word = Word {
            policy_version: word.policy_version,
            placement: word.placement,
            homes: word.homes,
            per_second: word.moves_per_second,
        };
        self.sweeps.hear(scheduler, word);
    }

    /// A rebalance is ordered; one of nobody ends the one before. One that was heard already changes nothing.
    pub(crate) fn ordered(&mut self, order: MoveOrder) {
        if self.orders.contains(&order.id) {
            return;
        }
        if self.orders.len() == ORDERS {
            self.orders.pop_front();
        }
        self.orders.push_back(order.id);
        self.rebalance = Some(order);
    }

    /// An operator's word about this gateway. An older one than is known, or the same again, changes nothing.
    pub(crate) fn drain(&mut self, version: u64, drain: Drain) {
        if self.draining.as_ref().is_none_or(|known| version > known.version) {
            self.draining = Some(Draining { version, drain, phase: Phase::WaitLb, told_rest_ms: None });
        }
    }

    /// Whether [`Mover::turn`] should come soon.
    pub(crate) fn busy(&self) -> bool {
        let drains = self.phase().is_some_and(|phase| phase != Phase::Done);
        self.rebalance.is_some() || drains || (self.running.is_some() && self.phase().is_none())
    }

    /// The drain's phase, while there is one.
    pub(crate) fn phase(&self) -> Option<Phase> {
        self.draining.as_ref().filter(|draining| draining.drain.active).map(|draining| draining.phase)
    }

    /// Where the drain sends clients; empty: as the policy says, or there is none.
    pub(crate) fn to_pool(&self) -> &str {
        let drain = self.draining.as_ref().map(|draining| &draining.drain).filter(|drain| drain.active);
        drain.map_or("", |drain| &drain.to_pool)
    }

    /// For reports: what is moved, or was last.
    pub(crate) fn progress(&self) -> Vec<MoveProgress> {
        self.progress.values().cloned().collect()
    }

    /// The schedulers that may be asked where users belong, a bit each by their index.
    pub(crate) fn who_agree(&self) -> u64 {
        self.sweeps.who_agree()
    }

    /// What is due now; `up`: which schedulers' links are. `sessions` were welcomed and not told to go: who only comes with an old
    /// ticket, or a load balancer that looks, makes no drain begin again.
    pub(crate) fn turn(&mut self, now: Now, up: &[bool], sessions: u64) -> Vec<Act> {
        let mut acts = vec![];
        match self.sweeps.due(up, now.steady_ms) {
            Some(Due::First) => acts.push(Act::Placed),
            Some(Due::Sweep(sweep)) => self.sweep = Some(sweep.after(self.sweep.take())),
            None => {}
        }
        match self.draining.take() {
            Some(mut draining) if draining.drain.active => {
                acts.push(Act::Serve(false));
                // It would even out an empty gateway, whenever that serves again.
                self.rebalance = None;
                self.empty(&mut draining, now, sessions, &mut acts);
                self.draining = Some(draining);
            }
            stopped => {
                acts.push(Act::Serve(true));
                self.draining = stopped;
                self.end(MovePurpose::Drain, now, &mut acts);
                self.even_out(now, up, &mut acts);
            }
        }
        acts
    }

    fn empty(&mut self, draining: &mut Draining, now: Now, sessions: u64, acts: &mut Vec<Act>) {
        let Draining { version, drain, told_rest_ms, .. } = &mut *draining;
        let ours = |running: &Running| {
            (running.job.order.purpose, running.job.order.id) == (MovePurpose::Drain, *version)
        };
        if self.running.as_ref().is_some_and(|running| !ours(running)) {
            self.put_off("a drain goes first", now, acts);
        }
        let paused = self.running.as_ref().is_some_and(|running| running.held.is_some());
        let phase = phase(drain, now.wall_ms, sessions, paused);
        match phase {
            Phase::WaitLb => {}
            Phase::Moving | Phase::Paused => {
                let order = Order {
                    purpose: MovePurpose::Drain,
                    id: *version,
                    spread_ms: drain.spread_ms,
                    pool: drain.to_pool.clone(),
                    within_permille: 0,
                    only_away: false,
                };
                self.begin(order, drain.rate_per_second, u64::MAX, now, acts);
                self.step(now, acts);
            }
            Phase::Overdue => {
                if told_rest_ms.is_none_or(|told| now.steady_ms - told >= RELIST_MS) {
                    *told_rest_ms = Some(now.steady_ms);
                    acts.push(Act::TellRest(drain.spread_ms));
                }
            }
            Phase::Done => {}
        }
        if phase != draining.phase {
            tracing::info!(
                phase = phase.name(),
                sessions,
                "an operator's drain of this gateway is in its next phase"
            );
            draining.phase = phase;
        }
        let reason = self.running.as_ref().and_then(|running| running.held.as_ref()).map(|held| &held.reason);
        let reason = reason.filter(|_| phase == Phase::Paused).cloned().unwrap_or_default();
        let count = self.running.as_ref().map(|running| running.job.count()).unwrap_or_default();
        let progress = MoveProgress {
            purpose: MovePurpose::Drain.into(),
            order: draining.version,
            phase: phase.name().to_owned(),
            reason,
            left: sessions,
            moved: count.moved,
            stayed: count.stayed,
            unplaced: count.unplaced,
            phase_since_ms: 0,
        };
        self.tell(progress, now);
    }

    /// Rebalances and sweeps.
    fn even_out(&mut self, now: Now, up: &[bool], acts: &mut Vec<Act>) {
        if let Some(order) = self.rebalance.take() {
            self.end(MovePurpose::Rebalance, now, acts);
            if order.count > 0 {
                self.put_off("a rebalance goes first", now, acts);
                let MoveOrder { id, count, per_second, within_permille, spread_ms } = order;
                let order = Order {
                    purpose: MovePurpose::Rebalance,
                    id,
                    spread_ms,
                    pool: String::new(),
                    within_permille,
                    only_away: false,
                };
                self.begin(order, per_second, count, now, acts);
            }
        }
        self.sweep(now, up, acts);
        self.step(now, acts);
        self.look(now, acts);
    }

    /// Begins a sweep that waits, and keeps the one under way to what the policy says now.
    fn sweep(&mut self, now: Now, up: &[bool], acts: &mut Vec<Act>) {
        let per_second = self.sweeps.per_second(up);
        if self.moves(MovePurpose::Sweep) {
            if per_second == Some(0) {
                self.put_off("the policy's [move] per_second is 0", now, acts);
            } else if self.sweep.is_some() {
                self.put_off("where users belong has changed again", now, acts);
            }
        }
        let waits = self.running.is_none();
        if let Some(per_second) = per_second.filter(|per_second| waits && *per_second > 0)
            && let Some(Sweep { placement, only_away }) = self.sweep.take()
        {
            acts.push(if only_away { Act::Homes } else { Act::Placed });
            let order = Order {
                purpose: MovePurpose::Sweep,
                id: placement,
                spread_ms: 0,
                pool: String::new(),
                within_permille: 0,
                only_away,
            };
            self.begin(order, per_second, u64::MAX, now, acts);
        }
        if let Some(running) = self.running.as_mut().filter(|running| running.sweeps()) {
            running.job.ask_among(self.sweeps.who_place_by(running.job.order.id));
            per_second.into_iter().for_each(|per_second| running.pacer.set(per_second));
        }
    }

    /// Tells how far the rebalance or sweep is, and ends it when it is over.
    fn look(&mut self, now: Now, acts: &mut Vec<Act>) {
        let Some(running) = &self.running else { return };
        let count = running.job.count();
        let over = count.listed && count.asked == 0 && (count.left == 0 || count.moved >= running.most);
        let progress = MoveProgress {
            purpose: running.job.order.purpose.into(),
            order: running.job.order.id,
            phase: match (over, &running.held) {
                (true, _) => Phase::Done,
                (false, Some(_)) => Phase::Paused,
                (false, None) => Phase::Moving,
            }
            .name()
            .to_owned(),
            reason: running.held.as_ref().map_or_else(String::new, |held| held.reason.clone()),
            left: running.left(),
            moved: count.moved,
            stayed: count.stayed,
            unplaced: count.unplaced,
            phase_since_ms: 0,
        };
        self.tell(progress, now);
        if over {
            self.running = None;
            acts.push(Act::End);
        }
    }

    fn moves(&self, purpose: MovePurpose) -> bool {
        self.running.as_ref().is_some_and(|running| running.job.order.purpose == purpose)
    }

    /// Nobody is moved for that any more; those told already are on their way.
    fn end(&mut self, purpose: MovePurpose, now: Now, acts: &mut Vec<Act>) {
        let ended = self.running.take_if(|running| running.job.order.purpose == purpose);
        if ended.is_some() {
            acts.push(Act::End);
        }
        if let Some(progress) = self.progress.get_mut(&purpose.into()) {
            if let Some(running) = ended {
                let count = running.job.count();
                (progress.moved, progress.stayed, progress.unplaced) =
                    (count.moved, count.stayed, count.unplaced);
                progress.left = running.left();
            }
            // Those who are left stay.
            if ![Phase::Done.name(), STOPPED].contains(&progress.phase.as_str()) {
                STOPPED.clone_into(&mut progress.phase);
                progress.phase_since_ms = now.wall_ms.max(0).unsigned_abs();
            }
            progress.reason.clear();
        }
    }

    /// Something else goes before what is under way. A sweep goes on later; a rebalance ends.
    fn put_off(&mut self, why: &str, now: Now, acts: &mut Vec<Act>) {
        let Some(running) = &self.running else { return };
        let Order { purpose, id: placement, only_away, .. } = running.job.order;
        if purpose != MovePurpose::Sweep {
            return self.end(purpose, now, acts);
        }
        let older = Sweep { placement, only_away };
        self.sweep = Some(self.sweep.take().map_or(older, |newer| newer.after(Some(older))));
        self.running = None;
        acts.push(Act::End);
        if let Some(progress) = self.progress.get_mut(&MovePurpose::Sweep.into()) {
            progress.phase = Phase::Paused.name().to_owned();
            progress.reason = why.to_owned();
        }
    }

    /// Begins a job, unless it is the one under way. Of a drain those are listed again who came while it went on.
    fn begin(&mut self, order: Order, per_second: u32, most: u64, now: Now, acts: &mut Vec<Act>) {
        if let Some(running) = &mut self.running {
            let count = running.job.count();
            let through = count.listed && count.left == 0 && count.asked == 0;
            if through && now.steady_ms - running.listed_ms >= RELIST_MS {
                running.listed_ms = now.steady_ms;
                acts.push(Act::Begin(Arc::clone(&running.job)));
            }
            return;
        }
        let job = Arc::new(Job::new(order, self.workers));
        acts.push(Act::Begin(Arc::clone(&job)));
        let pacer = Pacer::new(per_second, now.steady_ms);
        self.running = Some(Running { job, pacer, most, listed_ms: now.steady_ms, held: None });
    }

    /// Lets the workers go on as far as the pace allows.
    fn step(&mut self, now: Now, acts: &mut Vec<Act>) {
        let Some(running) = &mut self.running else { return };
        let count = running.job.count();
        let answers = count.moved + count.stayed;
        if let Some(reason) = running.job.take_hold() {
            if running.held.is_none() {
                tracing::info!(purpose = ?running.job.order.purpose, reason, "moving connections pauses");
            }
            running.held = Some(Held { reason, until_ms: now.steady_ms + HOLD_MS, probe: None });
        }
        let room = count.left.min(running.most.saturating_sub(count.moved + count.asked));
        let granted = match &mut running.held {
            None => running.pacer.take(now.steady_ms, room),
            Some(held) if now.steady_ms < held.until_ms => 0,
            Some(Held { probe: Some(before), .. }) if answers > *before => {
                tracing::info!(purpose = ?running.job.order.purpose, "moving connections goes on");
                running.held = None;
                running.pacer.restart(now.steady_ms);
                0
            }
            Some(held) if count.asked == 0 => {
                held.probe = Some(answers);
                1
            }
            Some(_) => 0,
        };
        if granted > 0 {
            acts.push(Act::Grant(shares(granted, &running.job.lefts())));
        }
    }

    fn tell(&mut self, mut progress: MoveProgress, now: Now) {
        let known = self.progress.get(&progress.purpose);
        let same = known.filter(|known| (known.order, &known.phase) == (progress.order, &progress.phase));
        progress.phase_since_ms =
            same.map_or(now.wall_ms.max(0).unsigned_abs(), |known| known.phase_since_ms);
        self.progress.insert(progress.purpose, progress);
    }
}
