//! What waits for one spread worker, and whose turn it is. Pure.
//!
//! Direct conversations and groups take turns apart: a worker gives what waits in direct conversations, which costs one
//! row a message, and between two such steps one step of groups: a slice of a large one, or several small ones. So whoever
//! writes to one person waits for one step at most, however large or many the groups that share his worker are.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use super::backlog::Backlog;
use crate::{
    snowflake,
    store::{Cut, Due, Unspread},
};

/// Conversations a worker may have waiting: above it commit waits, and the queue on disk takes the rest.
pub(super) const WAITING: usize = 65_536;

/// Messages one step gives, over all its conversations.
pub(super) const STEP: usize = 512;

/// Messages of one conversation in one step, so that a busy one does not starve the others.
const STEP_CONVERSATION: u64 = 64;

/// Groups that one step may come to: each costs some reads before its first row.
const GROUPS: usize = 64;

/// One step of groups. Messages of a batch: rows of one member are written together, which costs a third of the same rows
/// one by one (measured: `examples/fanout`). Members and rows: some milliseconds of the store's writer, which is what a
/// commit that comes in between has to wait.
pub(super) const CUT: Cut = Cut { messages: 32, members: 128, rows: 512 };

/// Between two notes of how old what waits is, in milliseconds: as exact as a gauge of seconds has to be.
const AGE_STEP_MS: i64 = 1000;

/// Notes of one conversation's ages: above it later ones are left out, and it looks older than it is.
const AGES: usize = 64;

/// What waits of one conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    first: u64,
    last: u64,
    /// Of a group: its members, as last heard.
    members: Option<u64>,
    /// (seq, when it was accepted), the oldest first: one a second.
    ages: VecDeque<(u64, i64)>,
}

impl Range {
    fn of(work: &Unspread) -> Self {
        let ages = VecDeque::from([(work.seq, snowflake::time_ms(work.message_id))]);
        Self { first: work.seq, last: work.seq, members: work.members, ages }
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
        self.members = work.members.or(self.members);
    }

    fn count(&self) -> u64 {
        self.last - self.first + 1
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

/// What waits.
#[derive(Default)]
pub(super) struct Waiting {
    direct: VecDeque<u64>,
    groups: VecDeque<u64>,
    /// What waits by conversation: those in `direct` and `groups`, and groups whose turn it is.
    ranges: HashMap<u64, Range>,
    /// The same of conversations that failed: nothing of them is given before the first of it, or the order is lost.
    held: HashMap<u64, Range>,
    /// When those are tried again.
    pub(super) retry: Option<Instant>,
    /// What groups are still owed.
    pub(super) backlog: Backlog,
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
        if work.members.is_some() {
            self.count(id);
        }
    }

    /// Tells the backlog how many messages of a group wait now.
    fn count(&mut self, id: u64) {
        let range = self.held.get(&id).or_else(|| self.ranges.get(&id));
        let (count, members) = range.map_or((0, None), |range| (range.count(), range.members));
        self.backlog.committed(id, count, members);
    }

    fn enter(&mut self, id: u64, range: Range) {
        let turns = if range.members.is_some() { &mut self.groups } else { &mut self.direct };
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
            let one = |seq| Unspread { conversation_id, seq, message_id, members: None };
            work.extend((range.first..=end).map(one));
            if range.advance(end + 1) {
                self.enter(conversation_id, range);
            }
        }
        work
    }

    /// The groups whose turn it is; each comes back with [`Waiting::gave`], [`Waiting::missed`] or [`Waiting::hold`].
    pub(super) fn turns(&mut self) -> Vec<Due> {
        let mut due = Vec::new();
        while due.len() < GROUPS
            && let Some(conversation_id) = self.groups.pop_front()
        {
            if let Some(Range { first, last, .. }) = self.ranges.get(&conversation_id) {
                due.push(Due { conversation_id, first: *first, last: *last });
            }
        }
        due
    }

    /// A group had its turn: everything through this seq is given; `None`: the batch goes on.
    pub(super) fn gave(&mut self, conversation_id: u64, through: Option<u64>) {
        let Some(range) = self.ranges.get_mut(&conversation_id) else { return };
        if through.is_none_or(|through| range.advance(through + 1)) {
            self.groups.push_back(conversation_id);
        } else {
            self.ranges.remove(&conversation_id);
        }
        self.count(conversation_id);
    }

    /// These groups' step was full before it came to them: they are the first of the next one.
    pub(super) fn missed(&mut self, due: &[Due]) {
        due.iter().rev().for_each(|group| self.groups.push_front(group.conversation_id));
    }

    /// Messages of a conversation that wait.
    #[cfg(test)]
    pub(super) fn count_of(&self, conversation_id: u64) -> u64 {
        let range = self.held.get(&conversation_id).or_else(|| self.ranges.get(&conversation_id));
        range.map_or(0, Range::count)
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
        Unspread { conversation_id, seq, message_id: 0, members: None }
    }

    fn group(conversation_id: u64, seq: u64) -> Unspread {
        Unspread { members: Some(3), ..direct(conversation_id, seq) }
    }

    fn due(conversation_id: u64, first: u64, last: u64) -> Due {
        Due { conversation_id, first, last }
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
        for seq in 1..=3 {
            waiting.add(group(1, seq));
        }
        waiting.add(group(2, 1));
        assert_eq!(waiting.turns(), [due(1, 1, 3), due(2, 1, 1)], "one step for both");
        waiting.add(direct(3, 1));
        waiting.add(group(1, 4));
        assert_eq!(waiting.take(), [direct(3, 1)]);
        assert_eq!(waiting.turns(), [], "their turn is not over");
        waiting.gave(1, None);
        waiting.missed(&[due(2, 1, 1)]);
        assert_eq!(waiting.turns(), [due(2, 1, 1), due(1, 1, 4)], "who was missed is first");
        waiting.gave(2, Some(1));
        waiting.gave(1, Some(3));
        assert_eq!(waiting.turns(), [due(1, 4, 4)]);
        assert_eq!((waiting.count_of(1), waiting.backlog.rows(1)), (1, 3));
        waiting.gave(1, Some(4));
        assert_eq!((waiting.turns(), waiting.oldest_ms(), waiting.backlog.rows(1)), (vec![], None, 0));
    }

    #[test]
    fn a_step_comes_to_so_many_groups_and_no_more() {
        let mut waiting = Waiting::default();
        (0..=GROUPS as u64).for_each(|id| waiting.add(group(id, 1)));
        assert_eq!(waiting.turns().len(), GROUPS);
        assert_eq!(waiting.turns(), [due(GROUPS as u64, 1, 1)]);
    }

    #[test]
    fn a_group_that_fails_is_held_and_goes_on_where_it_was() {
        let mut waiting = Waiting::default();
        let now = Instant::now();
        (1..=5).for_each(|seq| waiting.add(group(1, seq)));
        let turns = waiting.turns();
        waiting.hold(group(1, turns[0].first), now);
        waiting.add(group(1, 6));
        assert_eq!((waiting.turns(), waiting.count_of(1), waiting.backlog.rows(1)), (vec![], 6, 18));
        waiting.release(now);
        assert_eq!(waiting.turns(), [due(1, 1, 6)]);
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
        /// Groups in turns, however they are cut: each message of each group is given once and in order.
        #[test]
        fn turns_give_everything_in_order(
            adds in prop::collection::vec((1u64..4, 1usize..20), 1..30),
            gives in prop::collection::vec((0u64..9, 0u8..3), 200),
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
                        waiting.add(group(id, said[id as usize]));
                    }
                }
                let turns = waiting.turns();
                for (place, Due { conversation_id: id, first, last }) in turns.iter().copied().enumerate() {
                    prop_assert_eq!(first, given[id as usize] + 1);
                    let (most, how) = gives.next().expect("endless");
                    let through = last.min(first + most);
                    match how {
                        0 if added.is_some() => waiting.gave(id, None),
                        1 if place > 0 => {
                            waiting.missed(&turns[place..]);
                            break;
                        }
                        _ => {
                            given[id as usize] = through;
                            waiting.gave(id, Some(through));
                        }
                    }
                }
                let owed: u64 = said.iter().zip(&given).map(|(said, given)| 3 * (said - given)).sum();
                prop_assert_eq!(waiting.backlog.total(), owed);
                if added.is_none() && turns.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(given, said);
        }
    }
}
