//! The handshake rate: who says hello is let in at it, one second's worth at once, and who comes above it is told when to come.
//!
//! The wait is a place in a virtual queue: behind everybody who was told one before, so that those who were sent away come
//! back at the rate. Nobody waits in here, and whoever comes while there is room is let in: a place is a time, not a slot.
//! Clients go to the next gateway of their lists with it, so there is room for them as far as gateways that send away alike
//! have the same rate; one that sends nobody away has room anyhow. Whose ticket ends before such a place gets none: he is to
//! ask a scheduler then.
//!
//! Who is let go with 4005, since his ticket or his token has ended, asks a scheduler next and takes nobody's place here. Many of them at one
//! time (all connections were cut, or all tokens end at midnight) have a line of their own, at the same rate.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use berth_proto::{lateness::Lateness, limits::LONGEST_WAIT_MS};
use rand::Rng;

use crate::{guard::Rate, shared::lock};

/// Who shows a ticket older than this, in milliseconds, comes back with it: no scheduler counted him this time. As long as a
/// scheduler waits for the one it gave a ticket to.
const RETURNING_AFTER_MS: i64 = 10_000;

/// A scheduler's clock is believed to be behind this gateway's by so much at the most, in milliseconds. What looks further behind is an
/// old ticket, also where no fresh one came lately.
const CLOCKS_APART_MS: i64 = 60_000;

/// A ticket is of use for so much less than it is good, in milliseconds: clients add up to half a second to their wait, drop a ticket a
/// second before its end, and take their time to say hello.
const UNUSABLE_MS: i64 = 2_000;

/// Who has no place may be told to wait for so long even if his ticket ends sooner, in milliseconds: it costs him little to ask a
/// scheduler then, and schedulers are not asked by all such clients at once.
const SHORTEST_WAIT_MS: u32 = 5_000;

/// Who is to ask a scheduler waits for so long at the most, in milliseconds: as long as those spread themselves at the most whose gateway
/// has died.
const LONGEST_SPREAD_MS: u32 = LONGEST_WAIT_MS / 5;

/// Why somebody is not let in now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shut {
    /// He has the place in so many milliseconds.
    Place(u32),
    /// There is no place for him; any would be further away than so many milliseconds.
    Beyond(u32),
}

/// The gateway's, shared by its workers. The default lets everybody in.
#[derive(Debug, Default)]
pub(crate) struct Door {
    queue: Mutex<Queue>,
    /// Of those who are to ask a scheduler.
    expired: Mutex<Queue>,
    /// How old tickets look, by this gateway's clock.
    ages: Mutex<Lateness>,
    /// Let in since the start.
    pub(crate) let_in: AtomicU64,
    /// Those of them who came back with a ticket that they had.
    pub(crate) returned: AtomicU64,
}

impl Door {
    /// So many a second.
    pub(crate) fn new(per_second: u32) -> Self {
        let queue = || Mutex::new(Queue { rate: Rate::new(per_second), ..Queue::default() });
        Self { queue: queue(), expired: queue(), ..Self::default() }
    }

    /// Somebody says hello, with a ticket that is good for so long, in milliseconds.
    ///
    /// # Errors
    /// When he is to come again.
    pub(crate) fn enter(&self, now_ms: i64, good_for_ms: i64) -> Result<(), Shut> {
        lock(&self.queue).enter(now_ms, good_for_ms)?;
        self.let_in.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Somebody whose ticket or token was good once is told to ask a scheduler: after so many milliseconds; 0: at once. One second's worth
    /// may at once, the others one after the other, and whoever has no place in the longest wait anywhere in it.
    pub(crate) fn expired(&self, now_ms: i64, rng: &mut impl Rng) -> u32 {
        let good_for_ms = i64::from(LONGEST_SPREAD_MS) + UNUSABLE_MS;
        match lock(&self.expired).enter(now_ms, good_for_ms) {
            Ok(()) => 0,
            Err(Shut::Place(wait_ms)) => wait_ms,
            Err(Shut::Beyond(_)) => rng.random_range(1..=LONGEST_SPREAD_MS),
        }
    }

    /// Who was let in has a good ticket of that time. The newest ones of late are the measure of what is old: schedulers' clocks are
    /// others than ours.
    pub(crate) fn shown(&self, issued_at_ms: i64, wall_ms: i64) {
        let oldest_ms = wall_ms.saturating_sub(CLOCKS_APART_MS);
        let late_ms = lock(&self.ages).heard(issued_at_ms.max(oldest_ms), wall_ms);
        if late_ms + oldest_ms.saturating_sub(issued_at_ms).max(0) > RETURNING_AFTER_MS {
            self.returned.fetch_add(1, Relaxed);
        }
    }

    /// How long those who are sent away last have to wait, in milliseconds.
    pub(crate) fn queue_ms(&self, now_ms: i64) -> i64 {
        lock(&self.queue).length_ms(now_ms)
    }
}

/// The rate, and how far into the future waits were told. Pure.
#[derive(Debug, Default)]
struct Queue {
    rate: Rate,
    /// Of those let in: see [`Rate::take`].
    due_us: i64,
    /// The place told last.
    told_us: i64,
}

impl Queue {
    fn enter(&mut self, now_ms: i64, good_for_ms: i64) -> Result<(), Shut> {
        let wait_ms = match self.rate.take(self.due_us, now_ms) {
            Ok(due_us) => {
                self.due_us = due_us;
                return Ok(());
            }
            Err(wait_ms) => wait_ms,
        };
        let now_us = now_ms * 1_000;
        let first_us = now_us + i64::from(wait_ms) * 1_000;
        let next_us = first_us.max(self.told_us + self.rate.interval_us());
        let wait_ms = (next_us - now_us + 999) / 1_000;
        let usable_ms = good_for_ms.saturating_sub(UNUSABLE_MS).min(LONGEST_WAIT_MS.into());
        match u32::try_from(wait_ms) {
            Ok(told_ms) if wait_ms <= usable_ms => {
                self.told_us = next_us;
                Err(Shut::Place(told_ms))
            }
            _ => {
                let good_for_ms = u32::try_from(good_for_ms.max(0)).unwrap_or(u32::MAX);
                Err(Shut::Beyond(good_for_ms.clamp(SHORTEST_WAIT_MS, LONGEST_WAIT_MS)))
            }
        }
    }

    fn length_ms(&self, now_ms: i64) -> i64 {
        (self.told_us / 1_000 - now_ms).max(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    fn queue(per_second: u32) -> Queue {
        Queue { rate: Rate::new(per_second), ..Queue::default() }
    }

    /// Of a ticket that outlives every wait.
    const LONG_MS: i64 = i64::MAX;

    fn place(told: &Result<(), Shut>) -> Option<u32> {
        match told {
            Err(Shut::Place(wait_ms)) => Some(*wait_ms),
            _ => None,
        }
    }

    #[test]
    fn a_crowd_gets_one_place_after_the_other() {
        let mut queue = queue(100);
        let now = 50_000;
        let told: Vec<_> = (0..300).map(|_| queue.enter(now, LONG_MS)).collect();
        assert!(told[..100].iter().all(Result::is_ok), "a second's worth at once");
        let waits: Vec<u32> = told[100..].iter().filter_map(place).collect();
        assert_eq!(waits.len(), 200);
        assert_eq!((waits[0], waits[1], waits[199]), (10, 20, 2_000));
        assert_eq!(queue.length_ms(now), 2_000);
        assert_eq!(queue.length_ms(now + 3_000), 0);
        assert_eq!(queue.enter(now + 10, LONG_MS), Ok(()));
    }

    #[test]
    fn beyond_the_longest_wait_there_is_no_place() {
        let mut queue = queue(1);
        let told: Vec<_> = (0..1_000).map(|_| queue.enter(0, LONG_MS)).collect();
        assert_eq!(told.iter().filter_map(place).max(), Some(LONGEST_WAIT_MS));
        assert_eq!(told[999], Err(Shut::Beyond(LONGEST_WAIT_MS)));
    }

    #[test]
    fn whose_ticket_ends_before_takes_no_place_from_those_behind() {
        let mut queue = queue(10);
        let told: Vec<_> = (0..60).map(|_| queue.enter(0, LONG_MS)).collect();
        assert_eq!(told[59], Err(Shut::Place(5_000)));
        for _ in 0..100 {
            assert_eq!(queue.enter(0, 4_000), Err(Shut::Beyond(5_000)));
            assert_eq!(queue.enter(0, 7_099), Err(Shut::Beyond(7_099)), "too late to be of use");
        }
        assert_eq!(queue.enter(0, 7_100), Err(Shut::Place(5_100)));
        assert_eq!(queue.enter(0, LONG_MS), Err(Shut::Place(5_200)));
        assert_eq!(queue.enter(1_500, 0), Ok(()), "while there is room it does not matter");
    }

    #[test]
    fn without_a_rate_everybody_is_let_in() {
        let door = Door::default();
        assert!((0..10_000).all(|_| door.enter(5, 0).is_ok()));
        assert_eq!(door.queue_ms(5), 0);
    }

    #[test]
    fn those_whose_tickets_have_ended_ask_schedulers_at_the_rate() {
        let mut rng = SmallRng::seed_from_u64(1);
        let door = Door::new(1_000);
        let waits: Vec<u32> = (0..5_000).map(|_| door.expired(7_000, &mut rng)).collect();
        assert!(waits[..1_000].iter().all(|wait| *wait == 0), "a second's worth at once");
        for second in 0..4u32 {
            let within = |wait: &&u32| (second * 1_000 + 1..=second * 1_000 + 1_000).contains(*wait);
            assert_eq!(waits[1_000..].iter().filter(within).count(), 1_000, "second {second}");
        }
        assert!(door.enter(7_000, LONG_MS).is_ok(), "they take nobody's place");
        assert_eq!(door.queue_ms(7_000), 0);
        let honest = (0..100).map(|nth| door.expired(20_000 + 10 * nth, &mut rng));
        assert_eq!(honest.max(), Some(0), "a few ask at once");
    }

    #[test]
    fn no_scheduler_is_asked_later_than_the_longest_spread() {
        let mut rng = SmallRng::seed_from_u64(1);
        let door = Door::new(10);
        let waits: Vec<u32> = (0..20_610).map(|_| door.expired(0, &mut rng)).collect();
        assert_eq!(waits[..610].iter().max(), Some(&LONGEST_SPREAD_MS));
        let beyond = &waits[610..];
        assert!(beyond.iter().all(|wait| (1..=LONGEST_SPREAD_MS).contains(wait)));
        let early = beyond.iter().filter(|wait| **wait <= LONGEST_SPREAD_MS / 2).count();
        assert!((9_000..11_000).contains(&early), "evenly: {early} of 20,000 in the first half");
    }

    /// How many of these tickets, by their age, are taken for old where the gateway's clock is ahead of the scheduler's.
    fn returned(ahead_ms: i64, ages_ms: &[i64]) -> u64 {
        let door = Door::default();
        let wall_ms = 1_795_000_000_000;
        ages_ms.iter().for_each(|age_ms| door.shown(wall_ms - age_ms - ahead_ms, wall_ms));
        door.returned.load(Relaxed)
    }

    #[test]
    fn old_tickets_are_told_from_fresh_ones_whatever_the_clocks() {
        for ahead_ms in [-25_000, 0, 25_000] {
            assert_eq!(returned(ahead_ms, &[0, 500, 3_000, 9_000]), 0, "{ahead_ms}");
            assert_eq!(returned(ahead_ms, &[0, 11_000, 200_000]), 2, "{ahead_ms}");
        }
        assert_eq!(returned(0, &[80_000; 5]), 5, "where nobody is sent, and all come back");
    }

    proptest! {
        /// A crowd that comes back as told is let in as told, one after the other, whenever nobody else comes; and over any
        /// time no more than the rate and one burst.
        #[test]
        fn who_comes_as_told_finds_room(rate in 10u32..1_000, crowd in 1usize..2_000) {
            let mut queue = queue(rate);
            let start = 1_000_000;
            let told = (0..crowd).map(|_| queue.enter(start, LONG_MS));
            let mut told: Vec<i64> = told.filter_map(|told| place(&told)).map(|wait| start + i64::from(wait)).collect();
            told.sort_unstable();
            for (nth, at) in told.iter().enumerate() {
                let entered = queue.enter(*at, LONG_MS);
                prop_assert!(entered.is_ok(), "number {nth} of {}, at {at}: {entered:?}", told.len());
            }
        }
    }
}
