//! What groups of a worker are still owed, in inbox rows, and whether one may have more. Pure.

use std::collections::HashMap;

/// Inbox rows that the accepted messages of a worker's groups may still have to become before sends to groups are refused:
/// some ten seconds of spread on two cores, so that what is accepted arrives in seconds, whatever groups are flooded with.
const ROWS: u64 = 1_000_000;

/// Messages of one group that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Owed {
    /// Accepted, or about to be, and not yet committed.
    entered: u64,
    /// Committed and not yet spread.
    committed: u64,
    /// Members, as last heard.
    members: u64,
}

impl Owed {
    fn rows(&self) -> u64 {
        (self.entered + self.committed).saturating_mul(self.members)
    }
}

/// Of all groups of a worker.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    groups: HashMap<u64, Owed>,
    /// The sum of their rows.
    total: u64,
}

impl Backlog {
    /// Counts one more message to a group of so many members, if there is room for it. Below the limit there is; above
    /// it, for groups that have less than their part: who floods one group stops himself, not the others. Above twice the
    /// limit, which only many groups reach that have one large message each, there is none.
    pub(super) fn enter(&mut self, id: u64, members: u64) -> bool {
        let part = ROWS / (self.groups.len() as u64).max(1);
        if self.total > 2 * ROWS || (self.total > ROWS && self.rows(id) > part) {
            return false;
        }
        self.change(id, |owed| {
            owed.entered += 1;
            owed.members = members;
        });
        true
    }

    /// One of those was committed, or was not accepted after all. Of some both is said (nobody waited for the answer):
    /// the group looks better then than it is, by one.
    pub(super) fn left_the_queue(&mut self, id: u64) {
        self.change(id, |owed| owed.entered = owed.entered.saturating_sub(1));
    }

    /// So many committed messages of a group wait, which has so many members; `None`: as many as last heard.
    pub(super) fn committed(&mut self, id: u64, count: u64, members: Option<u64>) {
        self.change(id, |owed| {
            owed.committed = count;
            owed.members = members.unwrap_or(owed.members);
        });
    }

    fn change(&mut self, id: u64, change: impl FnOnce(&mut Owed)) {
        let owed = self.groups.entry(id).or_default();
        let before = owed.rows();
        change(owed);
        self.total = self.total.saturating_sub(before).saturating_add(owed.rows());
        if owed.entered + owed.committed == 0 {
            self.groups.remove(&id);
        }
    }

    /// Inbox rows that a group is owed.
    pub(super) fn rows(&self, id: u64) -> u64 {
        self.groups.get(&id).map_or(0, Owed::rows)
    }

    /// The same of all.
    #[cfg(test)]
    pub(super) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_floods_one_group_stops_himself_and_not_the_others() {
        let mut backlog = Backlog::default();
        let flood =
            |backlog: &mut Backlog, id| (0..ROWS).take_while(|_| backlog.enter(id, 1000)).count() as u64;
        let first = flood(&mut backlog, 1);
        assert_eq!(first, ROWS / 1000 + 1, "not committed is not arrived");
        assert!(backlog.enter(2, 5000), "it has nothing waiting");
        assert_eq!(flood(&mut backlog, 3), ROWS / 1000 / 3 + 1, "a second one has its part");
        assert!(backlog.total() < 2 * ROWS);
        (0..first).for_each(|_| backlog.left_the_queue(1));
        backlog.committed(1, first, Some(1000));
        assert!(!backlog.enter(1, 1000), "committed is not arrived either");
        backlog.committed(1, 0, None);
        assert!(backlog.enter(1, 1000));
    }

    #[test]
    fn many_large_groups_with_one_message_each_are_bounded_too() {
        let mut backlog = Backlog::default();
        let entered = (0..1000).filter(|id| backlog.enter(*id, 100_000)).count() as u64;
        assert_eq!(entered, 2 * ROWS / 100_000 + 1);
        assert!(!backlog.enter(5000, 3), "nobody has room then");
        backlog.left_the_queue(0);
        assert!(backlog.enter(5000, 3));
    }

    #[test]
    fn what_is_not_yet_committed_counts_when_everything_else_is_spread() {
        let mut backlog = Backlog::default();
        assert!(backlog.enter(1, 1000) && backlog.enter(1, 1000));
        backlog.committed(1, 1, Some(1000));
        backlog.left_the_queue(1);
        backlog.committed(1, 0, None);
        assert_eq!(backlog.rows(1), 1000, "the other one");
    }

    proptest! {
        /// Whatever is said in whatever order: the sum is the sum, and who is owed nothing is forgotten.
        #[test]
        fn the_sum_is_the_sum(steps in prop::collection::vec((0u64..4, 0u8..3, 0u64..2000), 0..200)) {
            let mut backlog = Backlog::default();
            for (id, what, number) in steps {
                match what {
                    0 => drop(backlog.enter(id, number)),
                    1 => backlog.left_the_queue(id),
                    _ => backlog.committed(id, number, (number % 3 > 0).then_some(2000 - number)),
                }
                prop_assert_eq!(backlog.total, backlog.groups.values().map(Owed::rows).sum::<u64>());
                prop_assert!(backlog.groups.values().all(|owed| owed.entered + owed.committed > 0));
            }
        }
    }
}
