//! Requests that wait for a connection, for their turn, or for their answer, in the order in which they were made. Pure.

use std::collections::VecDeque;

/// Requests in order. At most `window` of them are in flight, and none overtakes one that waits.
#[derive(Debug)]
pub(crate) struct Outbox<T> {
    entries: VecDeque<Entry<T>>,
    window: usize,
    bound: usize,
    last_key: u64,
}

#[derive(Debug)]
struct Entry<T> {
    key: u64,
    item: T,
    /// How often it was refused for now.
    refusals: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { not_before_ms: i64 },
    InFlight,
}

impl<T> Outbox<T> {
    /// Holds at most `bound` requests, `window` of them in flight.
    pub fn new(window: usize, bound: usize) -> Self {
        Self { entries: VecDeque::new(), window, bound: bound.max(window), last_key: 0 }
    }

    /// Whether another request may come in.
    pub fn has_room(&self) -> bool {
        self.entries.len() < self.bound
    }

    /// Takes a request; ask [`Outbox::has_room`] first.
    pub fn push(&mut self, item: T) {
        self.last_key += 1;
        let state = State::Waiting { not_before_ms: i64::MIN };
        self.entries.push_back(Entry { key: self.last_key, item, refusals: 0, state });
    }

    /// The request whose turn it is, which counts as in flight from now on.
    pub fn next(&mut self, now_ms: i64) -> Option<(u64, &T)> {
        let at = self.turn()?;
        let entry = self.entries.get_mut(at)?;
        match entry.state {
            State::Waiting { not_before_ms } if not_before_ms <= now_ms => {
                entry.state = State::InFlight;
                Some((entry.key, &entry.item))
            }
            _ => None,
        }
    }

    /// The first that waits, if the window is open.
    fn turn(&self) -> Option<usize> {
        let in_flight = self.entries.iter().filter(|entry| entry.state == State::InFlight).count();
        if in_flight >= self.window {
            return None;
        }
        self.entries.iter().position(|entry| entry.state != State::InFlight)
    }

    /// It was refused for now: it waits until `not_before_ms`, and those behind it with it.
    pub fn retry(&mut self, key: u64, not_before_ms: i64) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.key == key) {
            entry.state = State::Waiting { not_before_ms };
            entry.refusals = entry.refusals.saturating_add(1);
        }
    }

    /// How often it was refused for now.
    pub fn refusals(&self, key: u64) -> u32 {
        self.entries.iter().find(|entry| entry.key == key).map_or(0, |entry| entry.refusals)
    }

    /// It is done with.
    pub fn remove(&mut self, key: u64) -> Option<T> {
        let at = self.entries.iter().position(|entry| entry.key == key)?;
        self.entries.remove(at).map(|entry| entry.item)
    }

    /// The connection is lost: what was in flight waits for the next one.
    pub fn connection_lost(&mut self) {
        for entry in &mut self.entries {
            if entry.state == State::InFlight {
                entry.state = State::Waiting { not_before_ms: i64::MIN };
            }
        }
    }

    /// Drops what nobody waits for any more.
    pub fn retain(&mut self, wanted: impl Fn(&T) -> bool) {
        self.entries.retain(|entry| wanted(&entry.item));
    }

    /// Takes everything.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        self.entries.drain(..).map(|entry| entry.item)
    }

    /// When [`Outbox::next`] has something.
    pub fn wake_at(&self) -> i64 {
        match self.turn().and_then(|at| self.entries.get(at)).map(|entry| entry.state) {
            Some(State::Waiting { not_before_ms }) => not_before_ms,
            _ => i64::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push,
        Next,
        Answer(usize),
        Refuse(usize, i64),
        Lose,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Push),
            4 => Just(Step::Next),
            3 => (0usize..8).prop_map(Step::Answer),
            1 => (0usize..8, 0i64..20).prop_map(|(at, wait)| Step::Refuse(at, wait)),
            1 => Just(Step::Lose),
        ]
    }

    proptest! {
        /// With a window of 1 requests are answered exactly in the order in which they came in, whatever is refused or
        /// lost; with any window never more than it are in flight, and none is lost.
        #[test]
        fn order_and_window_hold(window in 1usize..4, steps in proptest::collection::vec(step(), 0..300)) {
            let mut outbox = Outbox::new(window, 16);
            let (mut pushed, mut flying, mut answered) = (0u32, Vec::new(), Vec::new());
            for (now, step) in (0i64..).zip(steps) {
                match step {
                    Step::Push if outbox.has_room() => {
                        outbox.push(pushed);
                        pushed += 1;
                    }
                    Step::Push => {}
                    Step::Next => {
                        let due = outbox.wake_at() <= now;
                        let next = outbox.next(now).map(|(key, item)| (key, *item));
                        prop_assert_eq!(next.is_some(), due);
                        flying.extend(next);
                        prop_assert!(flying.len() <= window);
                    }
                    Step::Answer(at) if at < flying.len() => {
                        let (key, item) = flying.remove(at);
                        prop_assert_eq!(outbox.remove(key), Some(item));
                        answered.push(item);
                    }
                    Step::Refuse(at, wait) if at < flying.len() => {
                        let (key, _) = flying.remove(at);
                        outbox.retry(key, now + wait);
                    }
                    Step::Answer(_) | Step::Refuse(..) => {}
                    Step::Lose => {
                        flying.clear();
                        outbox.connection_lost();
                    }
                }
            }
            if window == 1 {
                prop_assert!(answered.is_sorted());
            }
            let mut all: Vec<u32> = answered.into_iter().chain(outbox.drain()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..pushed).collect::<Vec<_>>());
        }
    }
}
