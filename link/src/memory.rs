//! What was said lately and must not be lost: a link that breaks may have swallowed it, so it is said again on the next one.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// For how long a message may have been swallowed by a link that is dead without our knowing: more than twice the bound
/// within which that is found out.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Messages remembered at the most, some 10 MB; the oldest go first. The closes of 6,500 connections a second for all of
/// [`REMEMBERED`].
const MOST: usize = 65_536;

/// Messages with the time they were said.
pub(crate) struct Memory<M> {
    said: VecDeque<(Instant, M)>,
}

impl<M> Memory<M> {
    pub(crate) fn new() -> Self {
        Self { said: VecDeque::new() }
    }

    pub(crate) fn remember(&mut self, now: Instant, messages: impl Iterator<Item = M>) {
        let old = |said: &Instant| now.saturating_duration_since(*said) > REMEMBERED;
        while self.said.front().is_some_and(|(said, _)| old(said)) {
            self.said.pop_front();
        }
        self.said.extend(messages.map(|message| (now, message)));
        let over = self.said.len().saturating_sub(MOST);
        self.said.drain(..over);
    }

    /// The link broke: everything that may not have arrived, in the order it was said. What was said too long before
    /// that arrived.
    pub(crate) fn take(&mut self, broke: Instant) -> Vec<M> {
        self.remember(broke, std::iter::empty());
        self.said.drain(..).map(|(_, message)| message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_is_forgotten_and_the_rest_keeps_its_order() {
        let start = Instant::now();
        let mut memory = Memory::new();
        memory.remember(start, [1, 2].into_iter());
        memory.remember(start + REMEMBERED / 2, [3].into_iter());
        memory.remember(start + REMEMBERED, [4].into_iter());
        assert_eq!(memory.take(start + REMEMBERED + Duration::from_millis(1)), [3, 4]);
        assert!(memory.take(start + REMEMBERED).is_empty());
    }

    #[test]
    fn it_is_bounded() {
        let mut memory = Memory::new();
        memory.remember(Instant::now(), 0..MOST + 10);
        let kept = memory.take(Instant::now());
        assert_eq!((kept.len(), kept[0]), (MOST, 10));
    }
}
