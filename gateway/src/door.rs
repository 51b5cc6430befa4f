//! The handshake rate: who says hello is let in at it, one second's worth at once, and who comes above it is told when to come.
//!
//! The wait is a place in a virtual queue: behind everybody who was told one before, so that those who were sent away come
//! back at the rate, here or at the other gateways of their lists, which send them here alike. Nobody waits in here, and
//! whoever comes while there is room is let in: the queue is a promise to come back to a gateway that has room, not a slot.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use berth_proto::limits::LONGEST_WAIT_MS;

use crate::{guard::Rate, shared::lock};

/// Who shows a ticket older than this, in milliseconds, comes back with it: no scheduler counted him this time. As long as a
/// scheduler waits for the one it gave a ticket to.
const RETURNING_AFTER_MS: i64 = 10_000;

/// The gateway's, shared by its workers. The default lets everybody in.
#[derive(Debug, Default)]
pub(crate) struct Door {
    queue: Mutex<Queue>,
    /// Let in since the start.
    pub(crate) let_in: AtomicU64,
    /// Those of them who came back with a ticket that they had.
    pub(crate) returned: AtomicU64,
}

impl Door {
    /// So many a second.
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            queue: Mutex::new(Queue { rate: Rate::new(per_second), ..Queue::default() }),
            ..Self::default()
        }
    }

    /// Somebody says hello.
    ///
    /// # Errors
    /// When he is to come again, in milliseconds from now.
    pub(crate) fn enter(&self, now_ms: i64) -> Result<(), u32> {
        lock(&self.queue).enter(now_ms)?;
        self.let_in.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Who was let in has a good ticket of that time.
    pub(crate) fn shown(&self, issued_at_ms: i64, wall_ms: i64) {
        if wall_ms - issued_at_ms > RETURNING_AFTER_MS {
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
    fn enter(&mut self, now_ms: i64) -> Result<(), u32> {
        let wait_ms = match self.rate.take(self.due_us, now_ms) {
            Ok(due_us) => {
                self.due_us = due_us;
                return Ok(());
            }
            Err(wait_ms) => wait_ms,
        };
        let (now_us, longest_us) = (now_ms * 1_000, i64::from(LONGEST_WAIT_MS) * 1_000);
        let first_us = now_us + i64::from(wait_ms) * 1_000;
        let next_us = first_us.max(self.told_us + self.rate.interval_us());
        self.told_us = next_us.min(now_us + longest_us);
        Err(u32::try_from((self.told_us - now_us + 999) / 1_000).unwrap_or(LONGEST_WAIT_MS))
    }

    fn length_ms(&self, now_ms: i64) -> i64 {
        (self.told_us / 1_000 - now_ms).max(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queue(per_second: u32) -> Queue {
        Queue { rate: Rate::new(per_second), ..Queue::default() }
    }

    #[test]
    fn a_crowd_gets_one_place_after_the_other() {
        let mut queue = queue(100);
        let now = 50_000;
        let told: Vec<_> = (0..300).map(|_| queue.enter(now)).collect();
        assert!(told[..100].iter().all(Result::is_ok), "a second's worth at once");
        let waits: Vec<u32> = told[100..].iter().filter_map(|told| told.err()).collect();
        assert_eq!(waits.len(), 200);
        assert_eq!((waits[0], waits[1], waits[199]), (10, 20, 2_000));
        assert_eq!(queue.length_ms(now), 2_000);
        assert_eq!(queue.length_ms(now + 3_000), 0);
        assert_eq!(queue.enter(now + 10), Ok(()));
    }

    #[test]
    fn nobody_is_told_more_than_the_longest_wait() {
        let mut queue = queue(1);
        let most = (0..1_000).filter_map(|_| queue.enter(0).err()).max();
        assert_eq!(most, Some(LONGEST_WAIT_MS));
    }

    #[test]
    fn without_a_rate_everybody_is_let_in() {
        let door = Door::default();
        assert!((0..10_000).all(|_| door.enter(5).is_ok()));
        assert_eq!(door.queue_ms(5), 0);
    }

    proptest! {
        /// A crowd that comes back as told is let in as told, one after the other, whenever nobody else comes; and over any
        /// time no more than the rate and one burst.
        #[test]
        fn who_comes_as_told_finds_room(rate in 10u32..1_000, crowd in 1usize..2_000) {
            let mut queue = queue(rate);
            let start = 1_000_000;
            let mut told: Vec<i64> =
                (0..crowd).filter_map(|_| queue.enter(start).err()).map(|wait| start + i64::from(wait)).collect();
            told.sort_unstable();
            for (nth, at) in told.iter().enumerate() {
                let entered = queue.enter(*at);
                prop_assert!(entered.is_ok(), "number {nth} of {}, at {at}: {entered:?}", told.len());
            }
        }
    }
}
