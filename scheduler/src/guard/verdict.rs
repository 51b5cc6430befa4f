//! From what two pools counted to what a guard says of it.

use super::{
    Counts,
    bound::{Bound, margin},
};
use crate::policy::{GrayRule, Guard};

/// `stable`'s p99 counts for at least this, in milliseconds: twice of almost nothing is still fast.
pub const P99_FLOOR_MS: f64 = 50.0;

/// Of handshakes, those that may be slower than the p99.
const SLOWEST: f64 = 0.01;

/// What a guard compares.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Counted in the rule's pool.
    pub pool: Counts,
    /// Sessions that are open there.
    pub pool_open: u64,
    /// Counted in `stable`.
    pub stable: Counts,
    /// Sessions that are open there.
    pub stable_open: u64,
    /// In so many seconds.
    pub seconds: i64,
    /// What `stable` had when it last had enough: connects and sessions. It counts while it has too few.
    pub before: [Option<Past<Share>>; 2],
    /// Its p99 when it last had enough, in milliseconds.
    pub p99_before: Option<Past<f64>>,
    /// Whether it says how clients fare.
    pub told: Told,
}

/// What was counted some time ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past<T> {
    /// What was counted.
    pub what: T,
    /// So many seconds ago.
    pub age: i64,
}

/// Whether `stable` says how its clients fare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Told {
    /// One of its gateways at least does.
    #[default]
    Now,
    /// It did, and does not now: a worker hangs, or it is gone. What it had before counts.
    Before,
    /// None that is heard ever did: it is of an older release. Nothing is compared.
    Never,
}

impl Figures {
    /// Above which shares of connects that failed, and of sessions that ended as none should, the guard stops its rule now; none: it
    /// does not limit them, they are too few, or even all of them would be allowed.
    #[must_use]
    pub fn stops_above(&self, guard: &Guard) -> [Option<f64>; 2] {
        if self.told == Told::Never {
            return [None; 2];
        }
        let [connects, closes] = self.shares();
        let [connects_before, closes_before] = self.before;
        let above =
            |allowed: Option<f64>, shares, before| Some(Bound::of(guard, allowed?, shares, before)?.above);
        [
            above(guard.connect_failures, connects, connects_before),
            above(guard.abnormal_closes, closes, closes_before),
        ]
    }

    /// Connects that failed, and sessions that ended as none should: of the rule's pool and of `stable`.
    #[must_use]
    pub fn shares(&self) -> [(Share, Share); 2] {
        let connects = |counts: &Counts| Share { part: counts.failed, whole: counts.attempts() };
        let closes = |counts: &Counts, open: u64| Share {
            part: counts.abnormal,
            whole: counts.ended.saturating_add(open),
        };
        let Self { pool, pool_open, stable, stable_open, .. } = self;
        [(connects(pool), connects(stable)), (closes(pool, *pool_open), closes(stable, *stable_open))]
    }
}

/// What was not kept to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// `connect_failures`
    ConnectFailures,
    /// `abnormal_closes`
    AbnormalCloses,
    /// `handshake_p99`
    HandshakeP99,
    /// Nothing was reported.
    NoData,
}

impl Limit {
    /// Every limit with its name in metrics.
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::ConnectFailures, "connect_failures"),
        (Self::AbnormalCloses, "abnormal_closes"),
        (Self::HandshakeP99, "handshake_p99"),
        (Self::NoData, "no_data"),
    ];
}

/// A rule whose pool does worse than its guard allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// The rule.
    pub rule_id: String,
    /// As it is defined.
    pub rule_hash: String,
    /// Which limit.
    pub limit: Limit,
    /// With the figures.
    pub reason: String,
}

/// A part of a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// How many of them.
    pub part: u64,
    /// All.
    pub whole: u64,
}

impl Share {
    /// Whether they are as many as a guard wants.
    #[must_use]
    pub fn enough(&self, guard: &Guard) -> bool {
        self.whole >= u64::from(guard.min_handshakes)
    }

    /// Of none: 0.
    pub(super) fn of_all(&self) -> f64 {
        if self.whole == 0 { 0.0 } else { self.part as f64 / self.whole as f64 }
    }
}

impl Breach {
    /// The pool did not say how clients fare for a whole window.
    #[must_use]
    pub fn no_data(rule: &GrayRule, guard: &Guard, why: &str) -> Self {
        let reason = format!("{why}, for {} s; missing data counts as failure", guard.window_seconds);
        Self::by(rule, Limit::NoData, reason)
    }

    /// The first limit that the pool does not keep to.
    #[must_use]
    pub fn of(rule: &GrayRule, guard: &Guard, figures: &Figures) -> Option<Self> {
        // Shares are above stable's, which are not known.
        if figures.told == Told::Never {
            return None;
        }
        let limits = [
            (Limit::ConnectFailures, guard.connect_failures, "connect failures"),
            (Limit::AbnormalCloses, guard.abnormal_closes, "abnormal closes"),
        ];
        let shares = figures.shares().into_iter().zip(figures.before);
        let worse = limits.into_iter().zip(shares).find_map(|((limit, allowed, name), (shares, before))| {
            let reason = worse(guard, allowed?, shares, before)?;
            Some(Self::by(rule, limit, format!("{name}: {reason} over {} s", figures.seconds)))
        });
        worse.or_else(|| Some(Self::by(rule, Limit::HandshakeP99, slower(guard, figures)?)))
    }

    fn by(rule: &GrayRule, limit: Limit, reason: String) -> Self {
        Self { rule_id: rule.id.clone(), rule_hash: rule.hash.clone(), limit, reason }
    }
}

/// How a share is above `stable`'s by more than is allowed, and than chance makes it.
fn worse(guard: &Guard, allowed: f64, shares: (Share, Share), before: Option<Past<Share>>) -> Option<String> {
    let bound = Bound::of(guard, allowed, shares, before)?;
    let (ours, share) = (shares.0, shares.0.of_all());
    (share > bound.above).then(|| {
        let stable = match bound.known {
            None => "in stable, which has too few".to_owned(),
            Some(Past { what: share, age: 0 }) => format!("({} of {}) in stable", share.part, share.whole),
            Some(Past { what: share, age }) => {
                format!("({} of {}, {age} s ago) in stable, which has too few now", share.part, share.whole)
            }
        };
        format!(
            "{:.2}% ({} of {}) against {:.2}% {stable}; {:.2} points above it are allowed, and {:.2} for chance,",
            share * 100.0,
            ours.part,
            ours.whole,
            bound.base * 100.0,
            allowed * 100.0,
            bound.chance() * 100.0
        )
    })
}

/// How much longer handshakes take than in `stable`: more of them than chance puts above a p99. Without one of `stable`, now or
/// before, there is nothing to take a multiple of.
fn slower(guard: &Guard, Figures { pool, stable, seconds, p99_before, .. }: &Figures) -> Option<String> {
    let (allowed, ours) = (guard.handshake_p99?, p99_of_enough(pool, guard)?);
    let now = p99_of_enough(stable, guard).map(|what| Past { what, age: 0 });
    let stables = now.or(*p99_before)?;
    let base = stables.what.max(P99_FLOOR_MS);
    let above = pool.slower_than(base * allowed);
    (above > SLOWEST + margin(SLOWEST, pool.welcomed)).then(|| {
        let ago = match stables.age {
            0 => String::new(),
            age => format!(" {age} s ago, which has too few now,"),
        };
        format!(
            "handshake p99: {ours:.0} ms against {base:.0} ms in stable{ago} over {seconds} s; {allowed} times as much is allowed, and {:.1}% took longer",
            above * 100.0
        )
    })
}

/// A p99 in milliseconds, of as many handshakes as a guard wants.
pub(super) fn p99_of_enough(counts: &Counts, guard: &Guard) -> Option<f64> {
    counts.handshake_p99_ms().filter(|_| counts.welcomed >= u64::from(guard.min_handshakes))
}
