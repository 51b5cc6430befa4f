//! Guards of gray rules: whether clients fare worse in a rule's pool than in `stable`, by what gateways count.
//!
//! Pure: reports and the time go in, breaches come out. Every scheduler watches for itself; the first that sees a breach stops the
//! rule for all of them.

mod bound;
mod verdict;
mod window;

#[cfg(test)]
mod chance;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod untold;

use std::collections::{HashMap, HashSet};

use berth_proto::wire::GatewayReport;

use self::verdict::p99_of_enough;
pub use self::{
    verdict::{Breach, Figures, Limit, P99_FLOOR_MS, Past, Share, Told},
    window::{Counts, Window},
};
use crate::{
    fleet::{FORGET_AFTER_MS, REPORT_INTERVAL_MS, STALE_AFTER_MS},
    policy::{GrayRule, Guard, MAX_WINDOW, Policy, STABLE},
};

/// A gateway that has run for no longer counted everything while this scheduler could have heard it.
const JUST_STARTED_MS: u64 = 5_000;

/// How `stable` fared when it last had enough counts for so long, in seconds, while it has too few: through the end of a ramp, and
/// not until it was another time of the day.
const REMEMBERED: i64 = 3_600;

/// What each watched gateway said last, what their pools counted lately, and since when each rule is watched.
#[derive(Debug, Default)]
pub struct Guards {
    gateways: HashMap<String, Heard>,
    /// Of `stable` and of each pool that a guarded rule sends somebody to.
    pools: HashMap<String, Pool>,
    rules: HashMap<String, Watched>,
    /// Nobody is judged before: this scheduler stood still, and not every gateway has had time to report since.
    quiet_until_ms: i64,
}

/// What is watched of a pool.
#[derive(Debug, Default)]
struct Pool {
    counted: Window,
    /// The shortest window in which it is looked at.
    window_ms: i64,
}

/// The newest report of a gateway.
#[derive(Debug)]
struct Heard {
    boot: u64,
    pool: String,
    /// Since its boot, as it said last; none: it never did.
    counts: Option<Counts>,
    /// It says so now.
    tells: bool,
    /// When it last said so; unless it ever did, when it was first heard.
    told_ms: i64,
    heard_ms: i64,
    draining: bool,
    /// It did not say so for so long that its sessions were counted as lost, in this second.
    lost: Option<(i64, Counts)>,
}

/// A rule that is watched.
#[derive(Debug)]
struct Watched {
    rule_hash: String,
    /// Since it sends somebody, in seconds: what was counted before says nothing about it.
    since: i64,
    /// Since when its pool does not say how clients fare.
    unmeasured_ms: Option<i64>,
    /// What `stable` had when it last had enough, in which second: connects and sessions.
    before: [Option<(i64, Share)>; 2],
    /// The same of its p99, in milliseconds.
    p99_before: Option<(i64, f64)>,
}

impl Guards {
    /// Takes in a report that was believed.
    pub fn take(&mut self, report: &GatewayReport, now_ms: i64) {
        let Some(window_ms) = self.pools.get(&report.pool).map(|pool| pool.window_ms) else {
            self.gateways.remove(&report.gateway_id);
            return;
        };
        let second = now_ms / 1_000;
        let told = report.health.as_ref().map(Counts::of);
        let just_started = (report.uptime_ms <= JUST_STARTED_MS).then(Counts::default);
        let mut heard = Heard {
            boot: report.boot,
            pool: report.pool.clone(),
            counts: told,
            tells: told.is_some(),
            told_ms: now_ms,
            heard_ms: now_ms,
            draining: report.draining,
            lost: None,
        };
        let before = match self.gateways.remove(&report.gateway_id) {
            // While it does not say, what it said last stays: it may begin again, or its sessions are lost with it.
            Some(known) if known.boot == report.boot && told.is_none() => {
                (heard.counts, heard.told_ms, heard.lost) = (known.counts, known.told_ms, known.lost);
                heard.counts
            }
            Some(mut known) if known.boot == report.boot => {
                if let (Some((second, lost)), Some(pool)) =
                    (known.lost.take(), self.pools.get_mut(&known.pool))
                {
                    pool.counted.take_back(second, &lost);
                }
                // What it counted while it did not say for longer may be older than what is looked at.
                known.counts.filter(|_| now_ms - known.told_ms <= window_ms).or(told)
            }
            // Another boot: what the last one held is gone, and this one counts from nothing, some time ago.
            Some(known) => {
                self.lose(&known, now_ms);
                just_started.or(told)
            }
            None => just_started.or(told),
        };
        if let (Some(counts), Some(before), Some(pool)) = (told, before, self.pools.get_mut(&report.pool)) {
            pool.counted.add(second, &counts.minus(&before));
        }
        self.gateways.insert(report.gateway_id.clone(), heard);
    }

    /// Makes the standstill of this scheduler count for nothing: nobody could be heard meanwhile, and so nobody was silent.
    pub fn forgive(&mut self, away_ms: i64, now_ms: i64) {
        let later = |at_ms: i64| at_ms.saturating_add(away_ms).min(now_ms);
        for heard in self.gateways.values_mut() {
            heard.heard_ms = later(heard.heard_ms);
            heard.told_ms = later(heard.told_ms);
        }
        for watched in self.rules.values_mut() {
            watched.unmeasured_ms = watched.unmeasured_ms.map(later);
        }
        self.quiet_until_ms = now_ms.saturating_add(REPORT_INTERVAL_MS);
    }

    /// The sessions of a gateway that is gone, unless it left in good order, they were counted already, or nobody knows when it went.
    fn lose(&mut self, gone: &Heard, now_ms: i64) {
        let Some(pool) = self.pools.get_mut(&gone.pool) else { return };
        let lately = now_ms - gone.heard_ms <= pool.window_ms;
        let left = gone.draining || gone.lost.is_some() || !lately;
        let open = gone.counts.filter(|_| !left).map_or(0, |counts| counts.open());
        if open > 0 {
            pool.counted.add(now_ms / 1_000, &Counts::lost(open));
        }
    }

    /// The rules whose pools do worse than their guards allow. `deaf`: most of the fleet fell silent at once, so nobody's silence
    /// is held against him. Called about once a second.
    pub fn judge(&mut self, policy: &Policy, now_ms: i64, deaf: bool) -> Vec<Breach> {
        self.follow(policy, now_ms / 1_000);
        if now_ms < self.quiet_until_ms {
            return Vec::new();
        }
        if !deaf {
            self.bury(now_ms);
        }
        let hears_others = |rule: &GrayRule| {
            self.gateways.values().any(|heard| heard.pool != rule.pool && heard.lives(now_ms))
        };
        let guarded = policy.gray.iter().filter_map(|rule| Some((rule, rule.guard?)));
        let mut breaches = Vec::new();
        for (rule, guard) in guarded.filter(|(rule, _)| rule.sends()) {
            let unheard = if deaf || !hears_others(rule) { None } else { self.unmeasured(rule, now_ms) };
            let figures = self.figures(rule, &guard, now_ms);
            let Some(watched) = self.rules.get_mut(&rule.id) else { continue };
            if figures.told == Told::Now {
                watched.remember(&figures, &guard, now_ms / 1_000);
            }
            let since_ms = match unheard {
                None => {
                    watched.unmeasured_ms = None;
                    None
                }
                Some(why) => Some((*watched.unmeasured_ms.get_or_insert(now_ms), why)),
            };
            let missing =
                since_ms.filter(|(since_ms, _)| now_ms - since_ms >= i64::from(guard.window_seconds) * 1_000);
            let breach = match missing {
                Some((_, why)) => Some(Breach::no_data(rule, &guard, why)),
                // Of stable nothing is heard, as of most of the fleet.
                None if deaf && figures.told != Told::Now => None,
                None => Breach::of(rule, &guard, &figures),
            };
            breaches.extend(breach);
        }
        breaches
    }

    /// What is compared for a rule now.
    #[must_use]
    pub fn figures(&self, rule: &GrayRule, guard: &Guard, now_ms: i64) -> Figures {
        let (watched, second) = (self.rules.get(&rule.id), now_ms / 1_000);
        let since = watched.map_or(second, |watched| watched.since);
        let from = since.max(second - i64::from(guard.window_seconds));
        let counted =
            |pool: &str| self.pools.get(pool).map(|pool| pool.counted.since(from)).unwrap_or_default();
        let told = self.told(now_ms);
        // While it does not tell it has too few, so that what it had before counts.
        let (stable, stable_open) =
            if told == Told::Now { (counted(STABLE), self.open(STABLE)) } else { (Counts::default(), 0) };
        let before = watched.map_or([None; 2], |watched| watched.before);
        let p99_before = watched.and_then(|watched| watched.p99_before);
        Figures {
            pool: counted(&rule.pool),
            pool_open: self.open(&rule.pool),
            stable,
            stable_open,
            seconds: second - from,
            before: before.map(|before| remembered(before, second)),
            p99_before: remembered(p99_before, second),
            told,
        }
    }

    /// Sessions that are open in a pool, without those that count as lost.
    fn open(&self, pool: &str) -> u64 {
        let gateways = self.gateways.values().filter(|heard| heard.pool == pool && heard.lost.is_none());
        gateways
            .filter_map(|heard| heard.counts)
            .fold(0, |sum: u64, counts| sum.saturating_add(counts.open()))
    }

    /// Watches what the policy guards, and nothing else.
    fn follow(&mut self, policy: &Policy, second: i64) {
        let guarded: Vec<_> =
            policy.gray.iter().filter(|rule| rule.guard.is_some() && rule.sends()).collect();
        let watched = guarded.iter().map(|rule| rule.pool.as_str());
        let pools: HashSet<&str> = watched.chain((!guarded.is_empty()).then_some(STABLE)).collect();
        self.pools.retain(|pool, _| pools.contains(pool.as_str()));
        self.gateways.retain(|_, heard| pools.contains(heard.pool.as_str()));
        for pool in pools {
            self.pools.entry(pool.to_owned()).or_default().window_ms = window_ms(policy, pool);
        }
        let mut known = std::mem::take(&mut self.rules);
        for rule in guarded {
            let anew = Watched {
                rule_hash: rule.hash.clone(),
                since: second,
                unmeasured_ms: None,
                before: [None; 2],
                p99_before: None,
            };
            let watched = match known.remove(&rule.id) {
                Some(same) if same.rule_hash == rule.hash => same,
                // Of another definition; how `stable` fared has nothing to do with that.
                Some(Watched { before, p99_before, .. }) => Watched { before, p99_before, ..anew },
                None => anew,
            };
            self.rules.insert(rule.id.clone(), watched);
        }
    }

    /// Counts the sessions of gateways that did not say how clients fare for a whole window of their pool, while others of it or of
    /// `stable` were heard: a shorter silence may be the path between it and this scheduler alone. One whose worker hangs is heard, and
    /// does not say it. A gateway that restarts tells by its boot.
    fn bury(&mut self, now_ms: i64) {
        let forgotten_ms = FORGET_AFTER_MS + i64::from(MAX_WINDOW) * 1_000;
        self.gateways.retain(|_, heard| now_ms - heard.heard_ms <= forgotten_ms);
        let live: HashSet<String> = self
            .gateways
            .values()
            .filter(|heard| heard.lives(now_ms))
            .map(|heard| heard.pool.clone())
            .collect();
        let waiting = self.gateways.values_mut().filter(|heard| !heard.draining && heard.lost.is_none());
        for heard in waiting {
            let others = live.contains(&heard.pool) || live.contains(STABLE);
            let Some(pool) = self.pools.get_mut(&heard.pool) else { continue };
            if !others || now_ms - heard.told_ms < pool.window_ms {
                continue;
            }
            let lost = Counts::lost(heard.counts.map_or(0, |counts| counts.open()));
            pool.counted.add(now_ms / 1_000, &lost);
            heard.lost = Some((now_ms / 1_000, lost));
        }
    }

    /// Whether `stable` says how clients fare. One that is heard and never did is of an older release; of one that is not heard at all,
    /// what it said before counts.
    fn told(&self, now_ms: i64) -> Told {
        let stable = || self.gateways.values().filter(|heard| heard.pool == STABLE);
        let living = || stable().filter(|heard| heard.lives(now_ms));
        if living().any(|heard| heard.tells) {
            return Told::Now;
        }
        let nobody_is_heard = living().next().is_none();
        let told = stable().any(|heard| heard.counts.is_some() && (nobody_is_heard || heard.lives(now_ms)));
        if told { Told::Before } else { Told::Never }
    }

    /// Why nobody of a rule's pool says how clients fare; none: somebody does. One of several that does not any more is not the whole
    /// pool, where the guard looks at its sessions: those are lost, see `bury`.
    fn unmeasured(&self, rule: &GrayRule, now_ms: i64) -> Option<&'static str> {
        let mut living =
            self.gateways.values().filter(|heard| heard.pool == rule.pool && heard.lives(now_ms)).peekable();
        if living.peek().is_none() {
            return Some("no gateway of the pool reports");
        }
        let by_sessions = rule.guard.is_some_and(|guard| guard.abnormal_closes.is_some());
        let (mut told, mut fell_silent) = (false, false);
        for heard in living {
            told |= heard.tells;
            fell_silent |= heard.counts.is_some() && !heard.tells;
        }
        match (told, fell_silent && !by_sessions) {
            (false, _) => Some("no gateway of the pool reports how clients fare"),
            (true, true) => Some("a gateway of the pool reports no more how clients fare"),
            (true, false) => None,
        }
    }
}

impl Watched {
    fn remember(&mut self, figures: &Figures, guard: &Guard, second: i64) {
        for (before, (_, stables)) in self.before.iter_mut().zip(figures.shares()) {
            if stables.enough(guard) {
                *before = Some((second, stables));
            }
        }
        let p99 = p99_of_enough(&figures.stable, guard);
        self.p99_before = p99.map(|p99| (second, p99)).or(self.p99_before);
    }
}

impl Heard {
    fn lives(&self, now_ms: i64) -> bool {
        now_ms - self.heard_ms <= STALE_AFTER_MS
    }
}

/// What was counted in a second, unless that is too long ago.
fn remembered<T>(before: Option<(i64, T)>, second: i64) -> Option<Past<T>> {
    let past = before.map(|(at, what)| Past { what, age: second - at });
    past.filter(|past| past.age <= REMEMBERED)
}

/// The shortest window in which a pool is looked at; `stable` is looked at for every rule.
fn window_ms(policy: &Policy, pool: &str) -> i64 {
    let rules = policy.gray.iter().filter(|rule| rule.sends() && (rule.pool == pool || pool == STABLE));
    let shortest = rules.filter_map(|rule| rule.guard).map(|guard| guard.window_seconds).min();
    i64::from(shortest.unwrap_or(MAX_WINDOW)) * 1_000
}
