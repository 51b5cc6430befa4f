//! Who still has to say hello: bounded in number and in bytes kept, the oldest gives way. Pure.
//!
//! A peer that connects and dawdles costs a slot until its deadline. With the bound it costs that only while there is
//! room: an honest client says hello within a round trip or two, so the oldest of thousands is the least likely to be one.
//! Who keeps no more than his share of the bytes goes only for his slot, never for what others keep.

use std::collections::VecDeque;

/// Entries of peers that have said hello since are cleared out at this many more than are pending.
const STALE: usize = 1_024;

/// The pending peers of one worker. `T` names them.
#[derive(Debug)]
pub struct Pending<T> {
    /// Oldest first; some of them may have said hello since.
    order: VecDeque<T>,
    /// Who keeps more than his share, in the order in which they began to; some may have said hello since.
    heavy: VecDeque<T>,
    count: usize,
    bytes: usize,
    most: usize,
    most_bytes: usize,
}

/// What is kept of one pending peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    bytes: u32,
    /// It is listed among those who keep more than their share.
    heavy: bool,
}

impl<T: Copy> Pending<T> {
    /// At most so many peers, which made us keep at most so many bytes of theirs.
    #[must_use]
    pub fn new(most: usize, most_bytes: usize) -> Self {
        Self { order: VecDeque::new(), heavy: VecDeque::new(), count: 0, bytes: 0, most, most_bytes }
    }

    /// Somebody came.
    pub fn enter(&mut self, who: T) -> Kept {
        self.order.push_back(who);
        self.count += 1;
        Kept::default()
    }

    /// Somebody who came said hello or is gone; so much was kept of his.
    pub fn leave(&mut self, kept: Kept) {
        self.count -= 1;
        self.bytes -= kept.bytes();
    }

    /// So many bytes are kept now of somebody who is pending.
    pub fn resize(&mut self, who: T, kept: &mut Kept, bytes: usize) {
        self.bytes -= kept.bytes();
        kept.bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.bytes += kept.bytes();
        if kept.bytes() > self.share() && !kept.heavy {
            kept.heavy = true;
            self.heavy.push_back(who);
        }
    }

    /// The next to give way, while there are too many, or too many bytes: the oldest, or of those who keep more than their
    /// share whoever began with that first. He may have said hello since; then he is left alone, and this is asked again.
    pub fn give_way(&mut self) -> Option<T> {
        if self.count > self.most {
            self.order.pop_front()
        } else if self.bytes > self.most_bytes {
            // There is one: no more than `most` who keep no more than their share keep no more than `most_bytes`.
            self.heavy.pop_front()
        } else {
            None
        }
    }

    /// Clears out who is not pending any more, now and then: what is listed stays in proportion to what is pending.
    pub fn tidy(&mut self, still: impl Fn(T) -> bool) {
        let most = 2 * self.count + STALE;
        for list in [&mut self.order, &mut self.heavy].into_iter().filter(|list| list.len() > most) {
            list.retain(|who| still(*who));
            list.shrink_to(most);
        }
    }

    fn share(&self) -> usize {
        self.most_bytes / self.most
    }
}

impl Kept {
    fn bytes(self) -> usize {
        usize::try_from(self.bytes).expect("usize has 64 bits here")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 10;
    const SHARE: usize = 100;

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

    /// Of one peer: what is kept, how many bytes that is, and when it first was more than the share.
    #[derive(Default)]
    struct Peer {
        kept: Kept,
        bytes: usize,
        heavy_since: Option<usize>,
    }

    /// Lets them give way until the bounds hold.
    fn give_way(pending: &mut Pending<u32>, model: &mut BTreeMap<u32, Peer>) -> Result<(), TestCaseError> {
        loop {
            let too_many = model.len() > MOST;
            let Some(who) = pending.give_way() else { return Ok(()) };
            let Some(gone) = model.remove(&who) else { continue };
            if too_many {
                prop_assert!(model.keys().all(|other| *other > who), "the oldest");
            } else {
                let since = gone.heavy_since;
                prop_assert!(since.is_some(), "who keeps no more than his share stays");
                let first = model.values().filter_map(|other| other.heavy_since).min();
                prop_assert!(first.is_none_or(|first| since < Some(first)), "who began with it first");
            }
            pending.leave(gone.kept);
        }
    }

    proptest! {
        #[test]
        fn never_more_than_the_bounds_and_who_keeps_little_goes_only_as_the_oldest(
            steps in proptest::collection::vec(step(), 0..300),
        ) {
            let mut pending = Pending::new(MOST, MOST * SHARE);
            // By the order in which they came.
            let mut model: BTreeMap<u32, Peer> = BTreeMap::new();
            let mut next = 0;
            for (at, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Comes => {
                        let peer = Peer { kept: pending.enter(next), ..Peer::default() };
                        model.insert(next, peer);
                        next += 1;
                    }
                    Step::Hello(n) => {
                        if let Some(who) = model.keys().nth(n).copied() {
                            pending.leave(model.remove(&who).expect("it is there").kept);
                        }
                    }
                    Step::Keeps(n, bytes) => {
                        if let Some((who, peer)) = model.iter_mut().nth(n) {
                            pending.resize(*who, &mut peer.kept, bytes);
                            peer.bytes = bytes;
                            if bytes > SHARE {
                                peer.heavy_since.get_or_insert(at);
                            }
                        }
                    }
                }
                give_way(&mut pending, &mut model)?;
                pending.tidy(|who| model.contains_key(&who));
                prop_assert_eq!(pending.count, model.len());
                let bytes: usize = model.values().map(|peer| peer.bytes).sum();
                prop_assert!(model.len() <= MOST && bytes <= MOST * SHARE);
                prop_assert!(pending.order.len().max(pending.heavy.len()) <= 2 * model.len() + STALE);
            }
        }
    }

    #[test]
    fn those_who_said_hello_behind_one_who_dawdles_are_cleared_out() {
        let mut pending = Pending::new(100, 1_000);
        pending.enter(0);
        for who in 1..100_000u32 {
            let mut kept = pending.enter(who);
            pending.resize(who, &mut kept, 500);
            pending.leave(kept);
            pending.tidy(|who| who == 0);
        }
        let listed = pending.order.len().max(pending.heavy.len());
        assert!(listed <= STALE + 2 && pending.count == 1, "{listed}");
    }
}
