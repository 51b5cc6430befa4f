//! Something that is said once when it begins and once when it is over, however often it happens meanwhile. Pure.

use std::sync::atomic::{
    AtomicI64, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

/// What has not happened for so long is over, in milliseconds.
const OVER_MS: i64 = 60_000;

/// A spell of something that any thread may see happen.
#[derive(Debug, Default)]
pub(crate) struct Spell {
    /// When it happened last; 0: there is no spell.
    last_ms: AtomicI64,
    count: AtomicU64,
}

impl Spell {
    /// It happened at `now_ms` (above 0); whether a spell begins with it.
    pub(crate) fn happens(&self, now_ms: i64) -> bool {
        self.count.fetch_add(1, Relaxed);
        self.last_ms.swap(now_ms, AcqRel) == 0
    }

    /// Ends the spell if it is over at `now_ms`: how often it happened. One thread is told.
    pub(crate) fn ends(&self, now_ms: i64) -> Option<u64> {
        let last_ms = self.last_ms.load(Acquire);
        if last_ms == 0 || now_ms - last_ms < OVER_MS {
            return None;
        }
        self.last_ms.compare_exchange(last_ms, 0, AcqRel, Acquire).ok()?;
        Some(self.count.swap(0, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_beginning_and_its_end_are_told_once() {
        let spell = Spell::default();
        assert_eq!(spell.ends(1), None);
        assert!(spell.happens(1));
        assert!(!spell.happens(2) && !spell.happens(50_000));
        assert_eq!(spell.ends(50_000 + OVER_MS - 1), None);
        assert_eq!(spell.ends(50_000 + OVER_MS), Some(3));
        assert_eq!(spell.ends(60_000 + OVER_MS), None);
        assert!(spell.happens(200_000));
    }
}
