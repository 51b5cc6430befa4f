//! Who still has to say hello: bounded in number and in bytes kept, the oldest gives way. Pure.
//!
//! A peer that connects and dawdles costs a slot until its deadline. With the bound it costs that only while there is
//! room: an honest client says hello within a round trip or two, so the oldest of thousands is the least likely to be one.

use std::collections::VecDeque;

/// Entries of peers that have said hello since are cleared out at this many more than are pending.
const STALE: usize = 1_024;

/// The pending peers of one worker. `T` names them.
#[derive(Debug)]
pub struct Pending<T> {
    /// Oldest first; some of them may have said hello since.
    order: VecDeque<T>,
    count: usize,
    bytes: usize,
    most: usize,
    most_bytes: usize,
}

impl<T: Copy> Pending<T> {
    /// At most so many peers, which made us keep at most so many bytes of theirs.
    #[must_use]
    pub fn new(most: usize, most_bytes: usize) -> Self {
        Self { order: VecDeque::new(), count: 0, bytes: 0, most, most_bytes }
    }

    /// Somebody came.
    pub fn enter(&mut self, who: T) {
        self.order.push_back(who);
        self.count += 1;
    }

    /// Somebody who came said hello or is gone; `bytes` were kept of theirs.
    pub fn leave(&mut self, bytes: usize) {
        self.count -= 1;
        self.bytes -= bytes;
    }

    /// Of somebody pending not `before` but `after` bytes are kept.
    pub fn resize(&mut self, before: usize, after: usize) {
        self.bytes = self.bytes - before + after;
    }

    /// The next to give way, while there are too many: the oldest. It may have said hello since; then it is left alone,
    /// and this is asked again.
    pub fn give_way(&mut self) -> Option<T> {
        let over = self.count > self.most || self.bytes > self.most_bytes;
        if over { self.order.pop_front() } else { None }
    }

    /// Clears out who is not pending any more, now and then: what is listed stays in proportion to what is pending.
    pub fn tidy(&mut self, still: impl Fn(T) -> bool) {
        if self.order.len() > 2 * self.count + STALE {
            self.order.retain(|who| still(*who));
            self.order.shrink_to(2 * self.count + STALE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Comes,
        /// The n-th of those pending says hello.
        Hello(usize),
        /// Of the n-th so many bytes are kept.
        Keeps(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Comes),
            2 => (0usize..50).prop_map(Step::Hello),
            2 => (0usize..50, 0usize..400).prop_map(|(n, bytes)| Step::Keeps(n, bytes)),
        ]
    }

    proptest! {
        #[test]
        fn never_more_than_the_bounds_and_the_oldest_goes_first(steps in proptest::collection::vec(step(), 0..300)) {
            let mut pending = Pending::new(10, 1_000);
            // By the order in which they came.
            let mut model: BTreeMap<u32, usize> = BTreeMap::new();
            let mut next = 0;
            for step in steps {
                match step {
                    Step::Comes => {
                        pending.enter(next);
                        model.insert(next, 0);
                        next += 1;
                    }
                    Step::Hello(n) => {
                        if let Some((who, bytes)) = model.iter().nth(n).map(|(who, bytes)| (*who, *bytes)) {
                            model.remove(&who);
                            pending.leave(bytes);
                        }
                    }
                    Step::Keeps(n, bytes) => {
                        if let Some((_, kept)) = model.iter_mut().nth(n) {
                            pending.resize(*kept, bytes);
                            *kept = bytes;
                        }
                    }
                }
                while let Some(who) = pending.give_way() {
                    if let Some(bytes) = model.remove(&who) {
                        prop_assert!(model.keys().all(|other| *other > who), "the oldest");
                        pending.leave(bytes);
                    }
                }
                pending.tidy(|who| model.contains_key(&who));
                prop_assert_eq!(pending.count, model.len());
                prop_assert!(model.len() <= 10 && model.values().sum::<usize>() <= 1_000);
                prop_assert!(pending.order.len() <= 2 * model.len() + STALE);
            }
        }
    }

    #[test]
    fn those_who_said_hello_behind_one_who_dawdles_are_cleared_out() {
        let mut pending = Pending::new(100, 1_000);
        pending.enter(0);
        for who in 1..100_000u32 {
            pending.enter(who);
            pending.leave(0);
            pending.tidy(|who| who == 0);
        }
        assert!(pending.order.len() <= STALE + 2 && pending.count == 1, "{}", pending.order.len());
    }
}
