//! The places of a virtual queue: how many clients a rate bears at each time to come, and how many of those are promised.
//!
//! Time is cut into slots. A newcomer gets the first room there is, counted from a second ago: what was not used of that is
//! the burst. When the rate grows, the slots of those who wait have room again and newcomers fill it; when it shrinks, what
//! was promised stays promised, and newcomers come behind. So at no time is more promised than the rate of then bore.
//!
//! Who has a place sleeps until then, whatever the rate becomes meanwhile. So what lies further ahead than a low moment of the
//! rate lasts is promised at the rate that is to be expected then.

use std::collections::VecDeque;

/// How long a slot is, in milliseconds: as long as a snapshot of the fleet, from which the rate comes.
const SLOT_MS: i64 = 100;

/// Slots that lie in the past and may still be used: a second's worth at once.
const BURST_SLOTS: i64 = 10;

/// A place in the unit of slots: with thousandths, one of a second's places is a whole number in each slot.
const PLACE: u32 = 1_000;

/// Slots from now on in which the rate is that of now, and not the one expected: as long as gateways take to forget those who came
/// back by themselves, for whom they keep a part of what they take.
const NEAR_SLOTS: i64 = 40;

/// The highest rate, a second: what a slot holds stays below 2^32.
const MAX_RATE: u64 = 10_000_000;

/// How many clients a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rates {
    /// Now. 0 counts as 1: somebody must come through for anything to be found out.
    pub now: u64,
    /// To be expected for what is further ahead than the present rate says anything of; below `now` it counts as that.
    pub later: u64,
}

/// What is promised, by time.
#[derive(Debug)]
pub(super) struct Places {
    /// Which slot `promised` begins with, counted from the clock's zero.
    first: i64,
    /// Thousandths of a place, slot by slot.
    promised: VecDeque<u32>,
    /// Thousandths of a place that a slot bears, and one that is further ahead.
    bears: u32,
    bears_later: u32,
    /// So many slots from the first have no room.
    full: usize,
}

/// Where a place would end.
struct End {
    slot: usize,
    promised: u32,
    at_ms: i64,
}

impl Places {
    /// Nothing is promised.
    pub fn new(rates: Rates, now_ms: i64) -> Self {
        let promised = VecDeque::new();
        let mut places = Self { first: first(now_ms), promised, bears: 0, bears_later: 0, full: 0 };
        places.set_rates(rates);
        places
    }

    /// So many clients a second from now on.
    pub fn set_rates(&mut self, rates: Rates) {
        let (bears, bears_later) = (bears(rates.now), bears(rates.later.max(rates.now)));
        if bears > self.bears || bears_later > self.bears_later {
            self.full = 0;
        }
        (self.bears, self.bears_later) = (bears, bears_later);
    }

    /// Promises the next place, if it comes before `until_ms`: from when on it may be taken. In the past or up to a slot
    /// ahead: at once.
    pub fn take(&mut self, now_ms: i64, until_ms: i64) -> Option<i64> {
        let end = self.next(now_ms);
        if end.at_ms > until_ms {
            return None;
        }
        if self.promised.len() <= end.slot {
            self.promised.resize(end.slot + 1, 0);
        }
        for slot in self.full..end.slot {
            self.promised[slot] = self.promised[slot].max(self.bears(slot));
        }
        self.promised[end.slot] = end.promised;
        self.full = end.slot;
        Some(end.at_ms)
    }

    /// When the next place would come.
    pub fn next_ms(&mut self, now_ms: i64) -> i64 {
        self.next(now_ms).at_ms
    }

    /// Whether a place of that time is had at once: nobody is made to wait for less than a slot.
    pub fn is_now(at_ms: i64, now_ms: i64) -> bool {
        at_ms <= now_ms + SLOT_MS
    }

    /// How many places are promised for later.
    pub fn waiting(&mut self, now_ms: i64) -> u64 {
        self.turn(now_ms);
        let later = self.promised.iter().skip(BURST_SLOTS as usize + 1);
        later.map(|promised| u64::from(*promised)).sum::<u64>() / u64::from(PLACE)
    }

    fn next(&mut self, now_ms: i64) -> End {
        self.turn(now_ms);
        let mut left = PLACE;
        let mut slot = self.full;
        loop {
            let promised = self.promised.get(slot).copied().unwrap_or(0);
            let bears = self.bears(slot);
            let room = bears.saturating_sub(promised);
            if left <= room {
                let promised = promised + left;
                let into = SLOT_MS * i64::from(promised) / i64::from(bears);
                return End { slot, promised, at_ms: (self.first + slot as i64) * SLOT_MS + into };
            }
            left -= room;
            slot += 1;
        }
    }

    /// What a slot bears, by its place from the first. It is never more when it has come nearer.
    fn bears(&self, slot: usize) -> u32 {
        let near = slot < (BURST_SLOTS + NEAR_SLOTS) as usize;
        if near { self.bears } else { self.bears_later }
    }

    /// Lets go of the slots that are over.
    fn turn(&mut self, now_ms: i64) {
        let first = first(now_ms);
        let over = usize::try_from(first - self.first).unwrap_or(0);
        self.promised.drain(..over.min(self.promised.len()));
        self.full = self.full.saturating_sub(over);
        self.first = self.first.max(first);
    }
}

/// What a slot bears at a rate, in thousandths of a place.
fn bears(per_second: u64) -> u32 {
    u32::try_from(per_second.clamp(1, MAX_RATE)).unwrap_or(u32::MAX) * (PLACE / 10)
}

/// The earliest slot that may still be used.
fn first(now_ms: i64) -> i64 {
    now_ms.div_euclid(SLOT_MS) - BURST_SLOTS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FAR: i64 = i64::MAX;

    fn at_rate(per_second: u64, now_ms: i64) -> Places {
        Places::new(Rates { now: per_second, later: 0 }, now_ms)
    }

    #[test]
    fn a_second_s_worth_at_once_then_one_after_the_other() {
        let mut places = at_rate(10, 50_000);
        let at: Vec<i64> = (0..20).map(|_| places.take(50_000, FAR).expect("no end") - 50_000).collect();
        assert_eq!(at[..11], [-900, -800, -700, -600, -500, -400, -300, -200, -100, 0, 100]);
        assert_eq!(at[11..], [200, 300, 400, 500, 600, 700, 800, 900, 1_000]);
        assert_eq!(places.waiting(50_000), 9, "what is promised beyond the present slot");
        assert_eq!(places.waiting(51_000), 0);
    }

    #[test]
    fn slow_rates_take_several_slots_for_a_place() {
        let mut places = at_rate(3, 0);
        let at: Vec<i64> = (0..6).map(|_| places.take(0, FAR).expect("no end")).collect();
        let gaps: Vec<i64> = at.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(gaps.iter().all(|gap| (332..=335).contains(gap)), "{at:?}");
        assert_eq!(at_rate(0, 0).next_ms(0), 0, "nobody is promised never");
    }

    #[test]
    fn the_last_place_is_the_last() {
        let mut places = at_rate(10, 0);
        let promised = (0..1_000).filter(|_| places.take(0, 5_000).is_some()).count();
        assert_eq!(promised, 60);
        assert_eq!(places.take(0, 5_000), None);
        assert!(places.take(1_000, 6_000).is_some());
    }

    #[test]
    fn a_rate_that_grows_makes_room_before_those_who_wait_and_one_that_shrinks_keeps_its_promises() {
        let mut places = at_rate(10, 0);
        assert_eq!((0..110).filter_map(|_| places.take(0, FAR)).count(), 110);
        assert_eq!(places.next_ms(0), 10_100);
        places.set_rates(Rates { now: 100, later: 0 });
        assert!(places.take(0, FAR).expect("no end") <= 0, "nine tenths of each slot are free");
        places.set_rates(Rates { now: 1, later: 0 });
        let at = places.take(0, FAR).expect("no end");
        assert!(at > 10_000, "behind all that is promised: {at}");
    }

    #[test]
    fn what_is_further_ahead_than_a_low_moment_lasts_is_promised_at_the_rate_that_is_expected() {
        let mut places = Places::new(Rates { now: 1, later: 15 }, 0);
        let at: Vec<i64> = (0..31).map(|_| places.take(0, FAR).expect("no end")).collect();
        assert_eq!(at.iter().filter(|at| **at <= 4_000).count(), 5, "one at once, and one a second: {at:?}");
        assert!(at[30] <= 4_000 + 30 * 1_000 / 15, "{at:?}");
        // The rate stays low after all: newcomers come behind those who were told a time, at the rate of then.
        assert!(places.take(3_000, FAR).expect("no end") >= at[30]);
        assert!(places.next_ms(20_000) <= 20_000 && places.waiting(20_000) == 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Pass(i64),
        Take(usize),
        Rate(u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0i64..3_000).prop_map(Step::Pass),
            (1usize..200).prop_map(Step::Take),
            (1u64..300, 0u64..300).prop_map(|(now, later)| Step::Rate(now, later)),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        /// Over any span, no more places are promised than the highest rate bears in it, and a burst.
        #[test]
        fn no_span_is_promised_more_than_the_rate_bears(steps in steps()) {
            let (mut now, mut most) = (1_000_000, 50);
            let mut places = at_rate(most, now);
            let mut promised = Vec::new();
            for step in steps {
                match step {
                    Step::Pass(ms) => now += ms,
                    Step::Rate(rate, later) => {
                        most = most.max(rate).max(later);
                        places.set_rates(Rates { now: rate, later });
                    }
                    Step::Take(count) => {
                        promised.extend((0..count).filter_map(|_| places.take(now, now + 300_000)));
                    }
                }
            }
            promised.sort_unstable();
            for (place, from) in promised.iter().enumerate() {
                for span in [SLOT_MS, 1_000, 10_000] {
                    let count = promised[place..].iter().take_while(|at| **at < from + span).count() as i64;
                    // A slot at either end may lie outside of the span.
                    let bears = most as i64 * (span + 2 * SLOT_MS) / 1_000 + 2;
                    prop_assert!(count <= bears, "{count} of {bears} within {span} ms from {from}");
                }
            }
        }

        /// At one rate: who comes later is not before who came first, and no place is left out.
        #[test]
        fn at_one_rate_who_comes_first_is_first(
            rate in 1u64..500, later in 0u64..500, waits in prop::collection::vec(0i64..40, 1..400)
        ) {
            let (mut now, mut last) = (0, i64::MIN);
            let mut places = Places::new(Rates { now: rate, later }, now);
            for wait in waits {
                now += wait;
                let next = places.next_ms(now);
                let at = places.take(now, FAR).expect("no end");
                prop_assert_eq!(at, next);
                prop_assert!(at >= last.max(now - SLOT_MS * (BURST_SLOTS + 1)));
                // What was promised of a slot at a higher rate is a larger part of it when it has come near.
                let gap = 1_000 / rate as i64 + 1 + if later > rate { SLOT_MS } else { 0 };
                prop_assert!(at <= last.max(now) + gap, "{at} after {last}, now {now}");
                last = at;
            }
        }
    }
}
