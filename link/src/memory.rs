//! What was said lately and must not be lost: a link that breaks may have swallowed it, so it is said again on the next one.
//!
//! A link keeps the order of what is said. So the answer to a renewal proves that the role has heard all that was said before
//! that renewal; whatever is not proven yet is remembered, however long ago it was said.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// A message that was heard is remembered for this much longer: it may still wait in the role, which may end before it is
/// done. A lane that is full holds 1,024 messages, seconds of work at the very worst.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Messages remembered at the most, some 10 MB; the oldest go first. Renewals come each 5 s with the usual lease, so these
/// are the closes of 4,300 connections a second.
const MOST: usize = 65_536;

/// Messages in the order in which they were said.
pub(crate) struct Memory<M> {
    /// Heard, and since when that is known.
    heard: VecDeque<(Instant, M)>,
    /// Not known to have been heard.
    said: VecDeque<M>,
    /// How many messages have left `said`, to wherever.
    left: u64,
    /// Renewals that are not answered: their time, and how many messages had been said before.
    renewals: VecDeque<(i64, u64)>,
}

impl<M> Memory<M> {
    pub(crate) fn new() -> Self {
        Self { heard: VecDeque::new(), said: VecDeque::new(), left: 0, renewals: VecDeque::new() }
    }

    /// Whether one that nobody is known to have heard is forgotten for it.
    pub(crate) fn remember(&mut self, message: M) -> bool {
        self.said.push_back(message);
        let forgets = self.heard.len() + self.said.len() > MOST && self.heard.pop_front().is_none();
        if forgets {
            self.said.pop_front();
            self.left += 1;
        }
        forgets
    }

    /// A renewal is said that is answered with this time.
    pub(crate) fn renewal(&mut self, said_ms: i64) {
        // With nothing to prove it is of no use. So there are never more than messages.
        let before = self.left + self.said.len() as u64;
        if !self.said.is_empty() && self.renewals.back().is_none_or(|(_, known)| *known < before) {
            self.renewals.push_back((said_ms, before));
        }
    }

    /// The newest renewal that was answered. What was heard long ago is forgotten.
    pub(crate) fn proven(&mut self, said_ms: i64, now: Instant) {
        while let Some(&(renewal, before)) = self.renewals.front()
            && renewal <= said_ms
        {
            self.renewals.pop_front();
            while self.left < before
                && let Some(message) = self.said.pop_front()
            {
                self.left += 1;
                self.heard.push_back((now, message));
            }
        }
        self.forget(now);
    }

    /// The link broke: everything that may not have been done, in the order it was said.
    pub(crate) fn take(&mut self, broke: Instant) -> Vec<M> {
        self.forget(broke);
        self.renewals.clear();
        self.left += self.said.len() as u64;
        self.heard.drain(..).map(|(_, message)| message).chain(self.said.drain(..)).collect()
    }

    fn forget(&mut self, now: Instant) {
        let old = |since: &Instant| now.saturating_duration_since(*since) > REMEMBERED;
        while self.heard.front().is_some_and(|(since, _)| old(since)) {
            self.heard.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_answered_for_is_never_forgotten() {
        let start = Instant::now();
        let mut memory = Memory::new();
        memory.remember(1);
        memory.renewal(100);
        memory.remember(2);
        memory.proven(99, start + 100 * REMEMBERED);
        assert_eq!(memory.take(start + 200 * REMEMBERED), [1, 2]);
        // That renewal was said over the link that broke.
        memory.remember(3);
        memory.proven(100, start);
        assert_eq!(memory.take(start + 300 * REMEMBERED), [3]);
        assert!(memory.take(start).is_empty());
    }

    #[test]
    fn what_was_answered_for_is_forgotten_after_a_while() {
        let start = Instant::now();
        let mut memory = Memory::new();
        for (message, renewal) in [(1, 100), (2, 200), (3, 300)] {
            memory.remember(message);
            memory.renewal(renewal);
        }
        memory.remember(4);
        memory.proven(100, start);
        memory.proven(300, start + REMEMBERED);
        assert_eq!(memory.take(start + REMEMBERED + Duration::from_millis(1)), [2, 3, 4]);
    }

    #[test]
    fn it_is_bounded() {
        let mut memory = Memory::new();
        let some = MOST as u64 / 2;
        for message in 0..some {
            memory.remember(message);
        }
        for renewal in 0..10 {
            memory.renewal(renewal);
        }
        assert_eq!(memory.renewals.len(), 1);
        memory.proven(0, Instant::now());
        let forgotten = (some..3 * some).filter(|message| memory.remember(*message)).count();
        assert!(forgotten == 0 && memory.heard.is_empty(), "what was heard goes first");
        memory.renewal(20);
        assert!(memory.remember(3 * some), "one that was not is told of");
        memory.proven(20, Instant::now());
        assert_eq!(memory.said, [3 * some], "the count goes on");
        let kept = memory.take(Instant::now());
        assert_eq!((kept.len(), kept[0]), (MOST, some + 1));
    }
}
