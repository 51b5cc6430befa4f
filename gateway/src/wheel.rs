//! A hashed timer wheel with one-second slots, re-armed lazily: it says which connections to look at, not which are due.
//!
//! A connection always has an entry that comes out at most one slot after its real deadline. A deadline that moves away,
//! as life moves it, leaves the wheel alone: when the entry comes out, the deadline is compared and the connection goes in
//! again. One that comes nearer adds an entry; the one it overtakes stays, and its owner knows it by its second as an old
//! one. After Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (1987), scheme 6.

use crate::pieces::Pieces;

/// Slots of the wheel: a deadline further away than so many seconds is looked at early and goes in again. 64 s hold the
/// default heartbeat timeout (37.5 s), so the wheel looks at an idle connection that beats no oftener than that.
const SLOTS: i64 = 64;

/// Milliseconds of one slot.
const SLOT_MS: i64 = 1_000;

/// Entries of one piece of a slot: the pieces of a second that is over serve the next ones. A slot that grew as a whole would
/// have up to as much again unused.
const PIECE: usize = 64;

/// The wheel. `T` names what is to be looked at.
#[derive(Debug)]
pub struct Wheel<T> {
    slots: Vec<Pieces<T, PIECE>>,
    /// The last second that was handed out.
    second: i64,
    entries: usize,
}

impl<T> Wheel<T> {
    /// An empty wheel that starts at `now_ms`.
    #[must_use]
    pub fn new(now_ms: i64) -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Pieces::default()).collect(),
            second: now_ms.div_euclid(SLOT_MS),
            entries: 0,
        }
    }

    /// Puts `entry` in, to come out in the first second that begins at or after `deadline_ms` (earlier if that is beyond
    /// the wheel's horizon, never later). Returns that second: whoever is in the wheel remembers it, and takes an entry
    /// of another second for an old one.
    pub fn arm(&mut self, deadline_ms: i64, entry: T) -> i64 {
        let second = self.second_for(deadline_ms);
        self.slot(second).push(entry);
        self.entries += 1;
        second
    }

    /// The second [`Wheel::arm`] would choose.
    #[must_use]
    pub fn second_for(&self, deadline_ms: i64) -> i64 {
        let wanted = deadline_ms.saturating_add(SLOT_MS - 1).div_euclid(SLOT_MS);
        wanted.clamp(self.second + 1, self.second + SLOTS)
    }

    /// Takes out what was armed for the seconds up to `now_ms`, in pieces with their second, into `out`.
    pub fn advance(&mut self, now_ms: i64, out: &mut Vec<(i64, Vec<T>)>) {
        let now = now_ms.div_euclid(SLOT_MS);
        for second in self.second + 1..=now.min(self.second + SLOTS) {
            // The slot's memory goes with it: it comes back as connections are armed there again.
            let slot = std::mem::take(self.slot(second));
            self.entries -= slot.len();
            out.extend(slot.into_pieces().into_iter().map(|piece| (second, piece)));
        }
        self.second = self.second.max(now);
    }

    /// When [`Wheel::advance`] has something to do next, in milliseconds since the epoch, if anything is armed.
    #[must_use]
    pub fn next_ms(&self) -> Option<i64> {
        (self.entries > 0).then_some((self.second + 1) * SLOT_MS)
    }

    fn slot(&mut self, second: i64) -> &mut Pieces<T, PIECE> {
        let index = usize::try_from(second.rem_euclid(SLOTS)).expect("a remainder of 64 is below 64");
        &mut self.slots[index]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An owner that re-arms lazily as a worker does.
    struct Lazy {
        deadlines: Vec<i64>,
        armed: Vec<i64>,
        wheel: Wheel<usize>,
    }

    impl Lazy {
        fn set(&mut self, who: usize, deadline: i64) {
            self.deadlines[who] = deadline;
            if self.wheel.second_for(deadline) < self.armed[who] {
                self.armed[who] = self.wheel.arm(deadline, who);
            }
        }

        /// Everybody who is due at `now`; they leave.
        fn advance(&mut self, now: i64) -> Vec<usize> {
            let (mut out, mut due) = (Vec::new(), Vec::new());
            self.wheel.advance(now, &mut out);
            let entries =
                out.into_iter().flat_map(|(second, piece)| piece.into_iter().map(move |who| (second, who)));
            for (second, who) in entries {
                if self.armed[who] != second {
                    continue;
                }
                self.armed[who] = i64::MAX;
                if self.deadlines[who] <= now {
                    self.deadlines[who] = i64::MAX;
                    due.push(who);
                } else if self.deadlines[who] < i64::MAX {
                    self.armed[who] = self.wheel.arm(self.deadlines[who], who);
                }
            }
            due
        }
    }

    #[test]
    fn a_slot_has_room_for_no_more_than_a_piece_beyond_what_is_in_it() {
        let mut wheel = Wheel::new(0);
        for count in 1..1_000 {
            let second = wheel.arm(5_000, count);
            let room = wheel.slot(second).capacity();
            assert!(room < count + PIECE, "room for {room}, {count} are in it");
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set { who: usize, after_ms: i64 },
        Pass { ms: i64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0usize..5, 0i64..200_000).prop_map(|(who, after_ms)| Step::Set { who, after_ms }),
            (0i64..5_000).prop_map(|ms| Step::Pass { ms }),
            (0i64..300_000).prop_map(|ms| Step::Pass { ms }),
        ]
    }

    proptest! {
        #[test]
        fn nobody_is_early_and_nobody_is_later_than_a_slot(start in -5_000i64..1_000_000, steps in proptest::collection::vec(step(), 1..80)) {
            let mut now = start;
            let mut lazy = Lazy { deadlines: vec![i64::MAX; 5], armed: vec![i64::MAX; 5], wheel: Wheel::new(now) };
            for step in steps {
                match step {
                    Step::Set { who, after_ms } => lazy.set(who, now + after_ms),
                    Step::Pass { ms } => {
                        now += ms;
                        let before = lazy.deadlines.clone();
                        for who in lazy.advance(now) {
                            prop_assert!(before[who] <= now);
                        }
                        for deadline in &lazy.deadlines {
                            prop_assert!(*deadline > now - SLOT_MS, "{deadline} was missed at {now}");
                        }
                        let armed = lazy.armed.iter().filter(|second| **second < i64::MAX).count();
                        prop_assert!(lazy.wheel.entries >= armed);
                    }
                }
            }
            while let Some(next) = lazy.wheel.next_ms() {
                lazy.advance(next);
            }
            prop_assert!(lazy.deadlines.iter().all(|deadline| *deadline == i64::MAX), "somebody fell out of the wheel");
        }
    }
}
