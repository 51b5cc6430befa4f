//! What waits for one spread worker, and whose turn it is. Pure.
//!
//! Direct conversations and groups take turns apart: a worker gives what waits in direct conversations, which costs one
//! row a message, and between two such steps one slice of one group. So whoever writes to one person waits for one slice
//! at most, however large the groups that share his worker are.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use crate::{
    snowflake,
    store::{Cut, Unspread},
};

/// Conversations a worker may have waiting: above it commit waits, and the queue on disk takes the rest.
pub(super) const WAITING: usize = 65_536;

/// Messages one step gives, over all its conversations.
pub(super) const STEP: usize = 512;

/// Messages of one conversation in one step, so that a busy one does not starve the others.
const STEP_CONVERSATION: u64 = 64;

/// Messages of a group in one batch: rows of one member are written together, which costs a third of the same rows one
/// by one (measured: `examples/fanout`).
const BATCH: u64 = 32;

/// Members of one slice, and inbox rows of one slice: some milliseconds of the store's writer, which is what a commit
/// that comes in between has to wait.
const SLICE_MEMBERS: u64 = 128;
const SLICE_ROWS: u64 = 512;

/// How the messages of a group that wait are cut: few members get many messages, or many members few.
pub(super) fn cut(waiting: u64) -> Cut {
    let messages = waiting.clamp(1, BATCH);
    let members = (SLICE_ROWS / messages).clamp(1, SLICE_MEMBERS);
    Cut { messages: messages as usize, members: members as usize }
}

/// Between two notes of how old what waits is, in milliseconds: as exact as a gauge of seconds has to be.
const AGE_STEP_MS: i64 = 1000;

/// Notes of one conversation's ages: above it later ones are left out, and it looks older than it is.
const AGES: usize = 64;

/// What waits of one conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    first: u64,
    last: u64,
    group: bool,
    /// (seq, when it was accepted), the oldest first: one a second.
    ages: VecDeque<(u64, i64)>,
}

impl Range {
    fn of(work: &Unspread) -> Self {
        let ages = VecDeque::from([(work.seq, snowflake::time_ms(work.message_id))]);
        Self { first: work.seq, last: work.seq, group: work.group, ages }
    }

    fn add(&mut self, work: &Unspread) {
        let at_ms = snowflake::time_ms(work.message_id);
        if work.seq < self.first {
            self.ages.push_front((work.seq, at_ms));
        } else if self.ages.len() < AGES
            && self.ages.back().is_none_or(|(_, last)| at_ms - last >= AGE_STEP_MS)
        {
            self.ages.push_back((work.seq, at_ms));
        }
        (self.first, self.last) = (self.first.min(work.seq), self.last.max(work.seq));
    }

    /// Forgets what is before `first`; whether something is left.
    fn advance(&mut self, first: u64) -> bool {
        self.first = self.first.max(first);
        while self.ages.get(1).is_some_and(|(seq, _)| *seq <= self.first) {
            self.ages.pop_front();
        }
        self.first <= self.last
    }
}

/// One group's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) conversation_id: u64,
    pub(super) first: u64,
    pub(super) last: u64,
}

/// What waits.
#[derive(Default)]
pub(super) struct Waiting {
    direct: VecDeque<u64>,
    groups: VecDeque<u64>,
    /// What waits by conversation: those in `direct` and `groups`, and a group whose turn it is.
    ranges: HashMap<u64, Range>,
    /// The same of conversations that failed: nothing of them is given before the first of it, or the order is lost.
    held: HashMap<u64, Range>,
    /// When those are tried again.
    pub(super) retry: Option<Instant>,
}

impl Waiting {
    pub(super) fn add(&mut self, work: Unspread) {
        let id = work.conversation_id;
        let known = match self.held.get_mut(&id) {
            None => self.ranges.get_mut(&id),
            held => held,
        };
        match known {
            Some(range) => range.add(&work),
            None => self.enter(id, Range::of(&work)),
        }
    }

    fn enter(&mut self, id: u64, range: Range) {
        let turns = if range.group { &mut self.groups } else { &mut self.direct };
        turns.push_back(id);
        self.ranges.insert(id, range);
    }

    /// Whether there is room for something of this conversation.
    pub(super) fn takes(&self, conversation_id: u64) -> bool {
        let known = self.held.contains_key(&conversation_id) || self.ranges.contains_key(&conversation_id);
        known || self.ranges.len() + self.held.len() < WAITING
    }

    /// Keeps back what failed, and what of its conversation is behind it, until `retry`.
    pub(super) fn hold(&mut self, work: Unspread, retry: Instant) {
        let id = work.conversation_id;
        let mut range = self.ranges.remove(&id).unwrap_or_else(|| Range::of(&work));
        range.first = range.first.min(work.seq);
        match self.held.get_mut(&id) {
            Some(held) => {
                (held.first, held.last) = (held.first.min(range.first), held.last.max(range.last));
            }
            None => drop(self.held.insert(id, range)),
        }
        self.retry.get_or_insert(retry);
    }

    pub(super) fn holds(&self, conversation_id: u64) -> bool {
        self.held.contains_key(&conversation_id)
    }

    pub(super) fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// Lets what was held back have its turn again, when it is time.
    pub(super) fn release(&mut self, now: Instant) {
        if self.retry.is_some_and(|retry| retry <= now) {
            self.retry = None;
            for (id, range) in std::mem::take(&mut self.held) {
                self.enter(id, range);
            }
        }
    }

    /// The next step's work in direct conversations; those with more than their part go to the back.
    pub(super) fn take(&mut self) -> Vec<Unspread> {
        let mut work = Vec::new();
        while work.len() < STEP
            && let Some(conversation_id) = self.direct.pop_front()
        {
            let Some(mut range) = self.ranges.remove(&conversation_id) else { continue };
            let part = STEP_CONVERSATION.min((STEP - work.len()) as u64);
            let end = range.last.min(range.first + part - 1);
            // When it was accepted is all that a message that comes back must still tell.
            let message_id = range.ages.front().map_or(0, |(_, at_ms)| snowflake::first_at(*at_ms));
            let one = |seq| Unspread { conversation_id, seq, message_id, group: false };
            work.extend((range.first..=end).map(one));
            if range.advance(end + 1) {
                self.enter(conversation_id, range);
            }
        }
        work
    }

    /// The group whose turn it is; it comes back with [`Waiting::gave`] or [`Waiting::hold`].
    pub(super) fn turn(&mut self) -> Option<Turn> {
        while let Some(conversation_id) = self.groups.pop_front() {
            if let Some(Range { first, last, .. }) = self.ranges.get(&conversation_id) {
                return Some(Turn { conversation_id, first: *first, last: *last });
            }
        }
        None
    }

    /// A group had its turn: everything through this seq is given; `None`: the batch goes on.
    pub(super) fn gave(&mut self, conversation_id: u64, through: Option<u64>) {
        let Some(range) = self.ranges.get_mut(&conversation_id) else { return };
        if through.is_none_or(|through| range.advance(through + 1)) {
            self.groups.push_back(conversation_id);
        } else {
            self.ranges.remove(&conversation_id);
        }
    }

    /// Messages of a conversation that wait.
    pub(super) fn backlog(&self, conversation_id: u64) -> u64 {
        let range = self.held.get(&conversation_id).or_else(|| self.ranges.get(&conversation_id));
        range.map_or(0, |range| range.last - range.first + 1)
    }

    /// When the oldest message that waits was accepted, in milliseconds since the Unix epoch.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        let ranges = self.ranges.values().chain(self.held.values());
        ranges.filter_map(|range| range.ages.front()).map(|(_, at_ms)| *at_ms).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn direct(conversation_id: u64, seq: u64) -> Unspread {
        Unspread { conversation_id, seq, message_id: 0, group: false }
    }

    #[test]
    fn a_busy_conversation_takes_turns_and_keeps_its_order() {
        let mut waiting = Waiting::default();
        for seq in 1..=1000 {
            waiting.add(direct(1, seq));
        }
        waiting.add(direct(2, 7));
        let mut given = Vec::new();
        loop {
            let step = waiting.take();
            if step.is_empty() {
                break;
            }
            assert!(step.len() <= STEP);
            given.extend(step);
        }
        let place = given.iter().position(|work| work.conversation_id == 2).expect("it had its turn");
        assert_eq!(place as u64, STEP_CONVERSATION, "it had its turn after one step of the busy one");
        let busy: Vec<u64> =
            given.iter().filter(|work| work.conversation_id == 1).map(|work| work.seq).collect();
        assert_eq!(busy, (1..=1000).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_behind_a_failure_waits_with_it() {
        const PAUSE: Duration = Duration::from_secs(1);
        let mut waiting = Waiting::default();
        let now = Instant::now();
        for seq in 1..=100 {
            waiting.add(direct(1, seq));
        }
        let step = waiting.take();
        waiting.hold(step[9], now + PAUSE);
        for later in &step[10..] {
            waiting.hold(*later, now + PAUSE);
        }
        waiting.add(direct(1, 101));
        waiting.add(direct(2, 1));
        waiting.release(now);
        assert_eq!(waiting.take(), [direct(2, 1)], "others go on");
        waiting.release(now + PAUSE);
        let mut given = Vec::new();
        while let step = waiting.take()
            && !step.is_empty()
        {
            given.extend(step.into_iter().map(|work| work.seq));
        }
        assert_eq!(given, (10..=101).collect::<Vec<_>>(), "all of it, in order");
    }

    #[test]
    fn groups_take_turns_by_slices_and_direct_conversations_do_not_wait_for_them() {
        let mut waiting = Waiting::default();
        let group = |conversation_id, seq| Unspread { group: true, ..direct(conversation_id, seq) };
        for seq in 1..=3 {
            waiting.add(group(1, seq));
        }
        waiting.add(group(2, 1));
        let first = waiting.turn().expect("one waits");
        assert_eq!(first, Turn { conversation_id: 1, first: 1, last: 3 });
        waiting.add(direct(3, 1));
        waiting.add(group(1, 4));
        assert_eq!(waiting.take(), [direct(3, 1)]);
        waiting.gave(1, None);
        assert_eq!(waiting.turn().map(|turn| turn.conversation_id), Some(2), "they take turns");
        waiting.gave(2, Some(1));
        let again = waiting.turn().expect("its batch goes on, and more came");
        assert_eq!(again, Turn { conversation_id: 1, first: 1, last: 4 });
        waiting.gave(1, Some(3));
        assert_eq!(waiting.turn(), Some(Turn { conversation_id: 1, first: 4, last: 4 }));
        assert_eq!(waiting.backlog(1), 1);
        waiting.gave(1, Some(4));
        assert_eq!((waiting.turn(), waiting.oldest_ms(), waiting.backlog(1)), (None, None, 0));
    }

    #[test]
    fn a_group_that_fails_is_held_and_goes_on_where_it_was() {
        let mut waiting = Waiting::default();
        let group = |seq| Unspread { group: true, ..direct(1, seq) };
        let now = Instant::now();
        (1..=5).for_each(|seq| waiting.add(group(seq)));
        let turn = waiting.turn().expect("one waits");
        waiting.hold(group(turn.first), now);
        waiting.add(group(6));
        assert_eq!((waiting.turn(), waiting.backlog(1)), (None, 6));
        waiting.release(now);
        assert_eq!(waiting.turn(), Some(Turn { conversation_id: 1, first: 1, last: 6 }));
    }

    #[test]
    fn the_oldest_that_waits_is_known_to_the_second() {
        let mut waiting = Waiting::default();
        let at = |seq, ms: u64| Unspread { message_id: ms << 22, ..direct(1, seq) };
        for seq in 1..=1000 {
            waiting.add(at(seq, seq * 10));
        }
        let age = |waiting: &Waiting| waiting.oldest_ms().expect("something waits") - snowflake::EPOCH_MS;
        assert_eq!(age(&waiting), 10);
        let seq = 1 + waiting.take().len() as i64;
        assert!((seq * 10 - age(&waiting)).abs() <= AGE_STEP_MS, "{} for seq {seq}", age(&waiting));
    }

    proptest! {
        /// Whatever waits: a cut is never empty and never more than a slice may be.
        #[test]
        fn cuts_are_bounded(waiting in any::<u64>()) {
            let Cut { messages, members } = cut(waiting);
            prop_assert!(messages >= 1 && members >= 1 && members as u64 <= SLICE_MEMBERS);
            prop_assert!((messages * members) as u64 <= SLICE_ROWS);
            prop_assert!(messages as u64 <= waiting.max(1));
        }

        /// Groups in turns, however they are cut: each message of each group is given once and in order.
        #[test]
        fn turns_give_everything_in_order(
            adds in prop::collection::vec((1u64..4, 1usize..20), 1..30),
            gives in prop::collection::vec((0u64..9, any::<bool>()), 200),
        ) {
            let mut waiting = Waiting::default();
            let (mut said, mut given) = ([0u64; 4], [0u64; 4]);
            let mut gives = gives.into_iter().cycle();
            let mut adds = adds.into_iter();
            loop {
                let added = adds.next();
                if let Some((id, count)) = added {
                    for _ in 0..count {
                        said[id as usize] += 1;
                        waiting.add(Unspread { group: true, ..direct(id, said[id as usize]) });
                    }
                }
                let turn = waiting.turn();
                if let Some(Turn { conversation_id: id, first, last }) = turn {
                    prop_assert_eq!(first, given[id as usize] + 1);
                    let (most, goes_on) = gives.next().expect("endless");
                    let through = last.min(first + most);
                    if goes_on && added.is_some() {
                        waiting.gave(id, None);
                    } else {
                        given[id as usize] = through;
                        waiting.gave(id, Some(through));
                    }
                }
                if added.is_none() && turn.is_none() {
                    break;
                }
            }
            prop_assert_eq!(given, said);
        }
    }
}
