//! Message and conversation ids that grow with time: Twitter's Snowflake layout, made safe against the clock.
//!
//! 41 bits of milliseconds since [`EPOCH_MS`] (until the year 2094), 10 bits of node, 12 bits of sequence. When the
//! clock steps back, or 4,096 ids were taken in one millisecond, the generator stays on or borrows ahead of its own
//! last time; it never waits and never gives a smaller number. Whoever restarts it says the highest id it gave.

/// Milliseconds of the first possible id: 2025-01-01T00:00:00Z.
pub const EPOCH_MS: i64 = 1_735_689_600_000;

/// Nodes that may give ids at the same time.
pub const NODES: u16 = 1 << NODE_BITS;

const NODE_BITS: u32 = 10;
const SEQUENCE_BITS: u32 = 12;
const SEQUENCE_MAX: u64 = (1 << SEQUENCE_BITS) - 1;

/// Gives ids.
#[derive(Debug, Clone)]
pub struct Snowflake {
    node: u64,
    last_ms: u64,
    sequence: u64,
}

impl Snowflake {
    /// A generator of node `node` (modulo [`NODES`]) whose ids are all above `highest`, the highest id ever given
    /// (by any node whose place it takes), or 0.
    #[must_use]
    pub fn above(node: u16, highest: u64) -> Self {
        let last_ms = highest >> (NODE_BITS + SEQUENCE_BITS);
        Self { node: u64::from(node % NODES), last_ms, sequence: SEQUENCE_MAX }
    }

    /// The next id; `now_ms` is since the Unix epoch.
    pub fn next(&mut self, now_ms: i64) -> u64 {
        let now = u64::try_from(now_ms - EPOCH_MS).unwrap_or(0);
        if now > self.last_ms {
            (self.last_ms, self.sequence) = (now, 0);
        } else if self.sequence < SEQUENCE_MAX {
            self.sequence += 1;
        } else {
            (self.last_ms, self.sequence) = (self.last_ms + 1, 0);
        }
        self.last_ms << (NODE_BITS + SEQUENCE_BITS) | self.node << SEQUENCE_BITS | self.sequence
    }

    /// Raises the floor: later ids are above `highest` too.
    pub fn stay_above(&mut self, highest: u64) {
        if highest >> (NODE_BITS + SEQUENCE_BITS) >= self.last_ms {
            let raised = Self::above(0, highest);
            (self.last_ms, self.sequence) = (raised.last_ms, raised.sequence);
        }
    }
}

/// When an id was given, in milliseconds since the Unix epoch.
#[must_use]
pub fn time_ms(id: u64) -> i64 {
    i64::try_from(id >> (NODE_BITS + SEQUENCE_BITS)).expect("42 bits fit") + EPOCH_MS
}

/// The smallest id of a time in milliseconds since the Unix epoch.
#[must_use]
pub fn first_at(at_ms: i64) -> u64 {
    u64::try_from(at_ms - EPOCH_MS).unwrap_or(0) << (NODE_BITS + SEQUENCE_BITS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the clock does, and through restarts with another node, ids strictly grow.
        #[test]
        fn ids_strictly_grow(steps in prop::collection::vec((-100_000i64..100_000, 1usize..9_000, any::<u16>(), any::<bool>()), 1..12)) {
            let mut now = EPOCH_MS + 1_000_000;
            let mut generator = Snowflake::above(1, 0);
            let mut highest = 0;
            for (step, count, node, restart) in steps {
                now += step;
                if restart {
                    generator = Snowflake::above(node, highest);
                }
                for _ in 0..count {
                    let id = generator.next(now);
                    prop_assert!(id > highest, "{id} after {highest}");
                    highest = id;
                }
            }
        }

        #[test]
        fn a_calm_clock_is_told_exactly(now in EPOCH_MS..EPOCH_MS + (1 << 41), node in 0..NODES) {
            let id = Snowflake::above(node, 0).next(now);
            prop_assert!(now == EPOCH_MS || time_ms(id) == now);
            prop_assert!(first_at(now) <= id && time_ms(first_at(now)) == now);
            prop_assert_eq!(id >> 12 & 0x3ff, u64::from(node));
        }

        #[test]
        fn nodes_never_meet(now in EPOCH_MS..EPOCH_MS + 1_000_000, count in 1usize..5_000) {
            let (mut a, mut b) = (Snowflake::above(1, 0), Snowflake::above(2, 0));
            let ids: std::collections::HashSet<u64> = (0..count).flat_map(|_| [a.next(now), b.next(now)]).collect();
            prop_assert_eq!(ids.len(), 2 * count);
        }

        #[test]
        fn a_raised_floor_holds(highest in 1u64..1 << 62, now in EPOCH_MS..EPOCH_MS + 1_000_000) {
            let mut generator = Snowflake::above(7, 0);
            let before = generator.next(now);
            generator.stay_above(highest);
            let after = generator.next(now);
            prop_assert!(after > before && after > highest);
        }
    }

    #[test]
    fn more_than_a_millisecond_holds_borrows_ahead() {
        let mut generator = Snowflake::above(0, 0);
        let ids: Vec<u64> = (0..5_000).map(|_| generator.next(EPOCH_MS + 10)).collect();
        assert_eq!((time_ms(ids[0]), time_ms(ids[4_999])), (EPOCH_MS + 10, EPOCH_MS + 11));
    }
}
