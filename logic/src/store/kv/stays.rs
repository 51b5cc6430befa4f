//! When a user was in a group: what he may see of it. Pure.

use super::row::{Interval, MemberRow};

/// Stays of one user in one group that are kept. Stays without a message between them, or in them, are one or none, so
/// only a group that talks while he comes and goes makes them many; the oldest is forgotten then.
pub(super) const STAYS: usize = 16;

impl MemberRow {
    /// Whether he is in the group.
    pub(super) fn is_member(&self) -> bool {
        self.intervals.last().is_some_and(|stay| stay.left_seq.is_none())
    }

    /// Begins a stay after `last_seq`, the newest message.
    pub(super) fn join(&mut self, last_seq: u64) {
        match self.intervals.last_mut() {
            Some(Interval { left_seq: None, .. }) => {}
            // Nothing was said while he was away.
            Some(stay) if stay.left_seq == Some(last_seq) => stay.left_seq = None,
            _ => self.intervals.push(Interval { joined_seq: last_seq, left_seq: None }),
        }
    }

    /// Ends his stay with `last_seq`, the newest message.
    pub(super) fn leave(&mut self, last_seq: u64) {
        match self.intervals.last_mut() {
            // Nothing was said while he was there.
            Some(Interval { joined_seq, left_seq: None }) if *joined_seq == last_seq => {
                self.intervals.pop();
            }
            Some(stay @ Interval { left_seq: None, .. }) => stay.left_seq = Some(last_seq),
            _ => {}
        }
    }

    /// The stay that must be forgotten before he may join after `last_seq`, if so.
    pub(super) fn too_many_to_join(&self, last_seq: u64) -> Option<Interval> {
        let goes_on =
            self.intervals.last().is_none_or(|stay| stay.left_seq.is_none_or(|left| left == last_seq));
        if self.intervals.len() < STAYS || goes_on { None } else { self.intervals.first().copied() }
    }

    /// Forgets the oldest stay.
    pub(super) fn forget_oldest(&mut self) {
        if !self.intervals.is_empty() {
            self.intervals.remove(0);
        }
    }

    /// The parts of `after + 1..=through` that are his, ascending: first and last seq of each.
    pub(super) fn visible(
        &self,
        after: u64,
        through: u64,
    ) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        let part = move |stay: &Interval| {
            let first = stay.joined_seq.max(after).saturating_add(1);
            let last = stay.left_seq.unwrap_or(u64::MAX).min(through);
            (first <= last).then_some((first, last))
        };
        self.intervals.iter().filter_map(part)
    }

    /// Whether a message is his.
    pub(super) fn sees(&self, seq: u64) -> bool {
        seq > 0 && self.visible(seq - 1, seq).next().is_some()
    }

    /// How far the conversation goes for him, whose newest message is `last_seq`.
    pub(super) fn end(&self, last_seq: u64) -> u64 {
        self.intervals.last().map_or(0, |stay| stay.left_seq.unwrap_or(last_seq))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Say,
        Join,
        Leave,
    }

    proptest! {
        /// Whatever he does: he sees exactly what was said while he was in, for stays that are kept.
        #[test]
        fn a_member_sees_what_was_said_while_he_was_in(
            steps in prop::collection::vec(prop_oneof![3 => Just(Step::Say), 1 => Just(Step::Join), 1 => Just(Step::Leave)], 0..60),
            after in 0u64..40, through in 0u64..40,
        ) {
            let (mut row, mut inside, mut said) = (MemberRow::default(), false, Vec::new());
            for step in steps {
                let last = said.len() as u64;
                match step {
                    Step::Say => said.push(inside),
                    Step::Join => {
                        if let Some(forgotten) = row.too_many_to_join(last).filter(|_| !inside) {
                            row.forget_oldest();
                            (0..forgotten.left_seq.expect("ended") as usize).for_each(|n| said[n] = false);
                        }
                        row.join(last);
                        inside = true;
                    }
                    Step::Leave => {
                        row.leave(last);
                        inside = false;
                    }
                }
                prop_assert_eq!(row.is_member(), inside);
                prop_assert!(row.intervals.len() <= STAYS);
            }
            for (seq, his) in (1..).zip(&said) {
                prop_assert_eq!(row.sees(seq), *his, "seq {} of {:?}", seq, &row.intervals);
            }
            let last = said.len() as u64;
            let through = through.min(last);
            let counted: u64 = row.visible(after, through).map(|(first, last)| last - first + 1).sum();
            let expected = (1..).zip(&said).filter(|(seq, his)| **his && *seq > after && *seq <= through).count();
            prop_assert_eq!(counted, expected as u64);
            let end = row.end(last);
            prop_assert!(end <= last && said.iter().skip(end as usize).all(|his| !his));
        }
    }
}
