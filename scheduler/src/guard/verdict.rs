//! From what two pools counted to what a guard says of it.

use super::Counts;
use crate::policy::{GrayRule, Guard};

/// `stable`'s p99 counts for at least this, in milliseconds: twice of almost nothing is still fast.
pub const P99_FLOOR_MS: f64 = 50.0;

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
#[derive(Clone, Copy)]
struct Share {
    part: u64,
    whole: u64,
}

impl Share {
    /// Of too few nothing is known: 0.
    fn of_enough(self, enough: u32) -> f64 {
        if self.whole < u64::from(enough) { 0.0 } else { self.part as f64 / self.whole as f64 }
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
        let Figures { pool, pool_open, stable, stable_open, seconds } = figures;
        let connects = |counts: &Counts| Share { part: counts.failed, whole: counts.attempts() };
        let closes = |counts: &Counts, open: u64| Share {
            part: counts.abnormal,
            whole: counts.ended.saturating_add(open),
        };
        let shares = [
            (
                Limit::ConnectFailures,
                guard.connect_failures,
                "connect failures",
                connects(pool),
                connects(stable),
            ),
            (
                Limit::AbnormalCloses,
                guard.abnormal_closes,
                "abnormal closes",
                closes(pool, *pool_open),
                closes(stable, *stable_open),
            ),
        ];
        for (limit, allowed, name, ours, stables) in shares {
            let (share, base) =
                (ours.of_enough(guard.min_handshakes), stables.of_enough(guard.min_handshakes));
            if let Some(allowed) = allowed.filter(|allowed| share - base > *allowed) {
                let reason = format!(
                    "{name}: {:.2}% ({} of {}) against {:.2}% ({} of {}) in stable over {seconds} s; {:.2} points above it are allowed",
                    share * 100.0,
                    ours.part,
                    ours.whole,
                    base * 100.0,
                    stables.part,
                    stables.whole,
                    allowed * 100.0
                );
                return Some(Self::by(rule, limit, reason));
            }
        }
        let p99 = |counts: &Counts| {
            counts.handshake_p99_ms().filter(|_| counts.welcomed >= u64::from(guard.min_handshakes))
        };
        let (allowed, ours) = (guard.handshake_p99?, p99(pool)?);
        let base = p99(stable).unwrap_or(0.0).max(P99_FLOOR_MS);
        let reason = || {
            let took = format!("handshake p99: {ours:.0} ms against {base:.0} ms in stable over {seconds} s");
            format!("{took}; {allowed} times as much is allowed")
        };
        (ours > base * allowed).then(|| Self::by(rule, Limit::HandshakeP99, reason()))
    }

    fn by(rule: &GrayRule, limit: Limit, reason: String) -> Self {
        Self { rule_id: rule.id.clone(), rule_hash: rule.hash.clone(), limit, reason }
    }
}
