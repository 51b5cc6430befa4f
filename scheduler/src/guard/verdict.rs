//! From what two pools counted to what a guard says of it.

use super::Counts;
use crate::policy::{GrayRule, Guard};

/// `stable`'s p99 counts for at least this, in milliseconds: twice of almost nothing is still fast.
pub const P99_FLOOR_MS: f64 = 50.0;

/// A share is held against a pool when it lies so many standard deviations above what is allowed: what chance adds to a binomial
/// share of `n` is sqrt(p (1 - p) / n). One look of 740 exceeds three of them by chance; but each second is a look, and a small share of few
/// has a longer tail than the normal one. With five, a test computes what is left over a week: see
/// `a_week_of_looks_stops_hardly_anybody_by_chance`.
pub const MARGIN: f64 = 5.0;

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
    pub before: [Option<Past>; 2],
}

/// A share that was counted some time ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    /// What was counted.
    pub share: Share,
    /// So many seconds ago.
    pub age: i64,
}

impl Figures {
    /// Above which shares of connects that failed, and of sessions that ended as none should, the guard stops its rule now; none: it
    /// does not limit them, or they are too few.
    #[must_use]
    pub fn stops_above(&self, guard: &Guard) -> [Option<f64>; 2] {
        let [connects, closes] = self.shares();
        let [connects_before, closes_before] = self.before;
        let above =
            |allowed: Option<f64>, shares, before| Some(Bound::of(guard, allowed?, shares, before)?.share());
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
    fn of_all(&self) -> f64 {
        if self.whole == 0 { 0.0 } else { self.part as f64 / self.whole as f64 }
    }
}

/// What chance alone may add to a share of so many that is `expected` otherwise.
#[must_use]
pub fn margin(expected: f64, whole: u64) -> f64 {
    let expected = expected.clamp(0.0, 1.0);
    MARGIN * (expected * (1.0 - expected) / whole.max(1) as f64).sqrt()
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

/// What a share is held against.
struct Bound {
    /// What is known of `stable`.
    known: Option<Past>,
    base: f64,
    allowed: f64,
    chance: f64,
}

impl Bound {
    /// None: of too few nothing is said.
    fn of(
        guard: &Guard,
        allowed: f64,
        (ours, stables): (Share, Share),
        before: Option<Past>,
    ) -> Option<Self> {
        let now = Some(Past { share: stables, age: 0 }).filter(|now| now.share.enough(guard));
        let known = now.or(before);
        let base = known.map_or(0.0, |known| known.share.of_all());
        let chance = margin(base + allowed, ours.whole);
        ours.enough(guard).then_some(Self { known, base, allowed, chance })
    }

    fn share(&self) -> f64 {
        self.base + self.allowed + self.chance
    }
}

/// How a share is above `stable`'s by more than is allowed, and than chance makes it.
fn worse(guard: &Guard, allowed: f64, shares: (Share, Share), before: Option<Past>) -> Option<String> {
    let bound = Bound::of(guard, allowed, shares, before)?;
    let (ours, share) = (shares.0, shares.0.of_all());
    (share > bound.share()).then(|| {
        let stable = match bound.known {
            None => "in stable, which has too few".to_owned(),
            Some(Past { share, age: 0 }) => format!("({} of {}) in stable", share.part, share.whole),
            Some(Past { share, age }) => {
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
            bound.chance * 100.0
        )
    })
}

/// How much longer handshakes take than in `stable`: more of them than chance puts above a p99. Without one of `stable` there is
/// nothing to take a multiple of.
fn slower(guard: &Guard, Figures { pool, stable, seconds, .. }: &Figures) -> Option<String> {
    let enough = |counts: &Counts| counts.welcomed >= u64::from(guard.min_handshakes);
    let p99 = |counts: &Counts| counts.handshake_p99_ms().filter(|_| enough(counts));
    let (allowed, ours, stables) = (guard.handshake_p99?, p99(pool)?, p99(stable)?);
    let base = stables.max(P99_FLOOR_MS);
    let above = pool.slower_than(base * allowed);
    (above > SLOWEST + margin(SLOWEST, pool.welcomed)).then(|| {
        format!(
            "handshake p99: {ours:.0} ms against {base:.0} ms in stable over {seconds} s; {allowed} times as much is allowed, and {:.1}% took longer",
            above * 100.0
        )
    })
}
