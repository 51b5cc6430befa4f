//! What a connection is still to be told: a state, not a queue. Telling it twice as much does not make it bigger.

use berth_proto::{
    client::{ConversationSeq, Notify},
    limits,
};

/// How far a connection's inbox and large conversations are known to have moved, and what of it the client was told.
///
/// Merging is commutative, associative and idempotent: notifies may come twice, late or in any order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outlook {
    known: u64,
    told: u64,
    /// Only while there is something to tell beside the inbox.
    rest: Option<Box<Rest>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rest {
    /// Sorted by conversation, at most [`limits::NOTIFY_CONVERSATIONS`].
    Moved(Vec<ConversationSeq>),
    /// More than the list may hold: look at everything.
    All,
}

impl Outlook {
    /// The inbox is at `inbox_seq`, and the client is being told so.
    #[must_use]
    pub fn told(inbox_seq: u64) -> Self {
        Self { known: inbox_seq, told: inbox_seq, rest: None }
    }

    /// The newest seq of the inbox known here.
    #[must_use]
    pub fn inbox_seq(&self) -> u64 {
        self.known
    }

    /// Whether there is something to tell.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.known > self.told || self.rest.is_some()
    }

    /// The inbox and these conversations moved at least this far.
    pub fn merge(&mut self, inbox_seq: u64, conversations: &[ConversationSeq]) {
        self.known = self.known.max(inbox_seq);
        for moved in conversations {
            self.merge_conversation(*moved);
        }
    }

    /// Takes over what another outlook on the same inbox knows.
    pub fn absorb(&mut self, other: Self) {
        self.known = self.known.max(other.known);
        match other.rest.map(|rest| *rest) {
            None => {}
            Some(Rest::All) => self.rest = Some(Box::new(Rest::All)),
            Some(Rest::Moved(moved)) => {
                moved.into_iter().for_each(|moved| self.merge_conversation(moved));
            }
        }
    }

    /// Everything may have moved, back as well: the inbox is now at `inbox_seq`.
    pub fn restart(&mut self, inbox_seq: u64) {
        *self = Self { known: inbox_seq, told: 0, rest: Some(Box::new(Rest::All)) };
    }

    /// The inbox seq to tell, if that is all there is to tell.
    #[must_use]
    pub fn inbox_to_tell(&self) -> Option<u64> {
        (self.known > self.told && self.rest.is_none()).then_some(self.known)
    }

    /// What [`Outlook::inbox_to_tell`] gave is told.
    pub fn told_inbox(&mut self) {
        self.told = self.known;
    }

    /// Takes what there is to tell.
    pub fn take(&mut self) -> Option<Notify> {
        if !self.pending() {
            return None;
        }
        self.told = self.known;
        let mut notify = Notify { inbox_seq: self.known, ..Notify::default() };
        match self.rest.take().map(|rest| *rest) {
            None => {}
            Some(Rest::All) => notify.sync_all = true,
            Some(Rest::Moved(moved)) => notify.conversations = moved,
        }
        Some(notify)
    }

    fn merge_conversation(&mut self, newer: ConversationSeq) {
        let rest = self.rest.get_or_insert_with(|| Box::new(Rest::Moved(Vec::new())));
        let Rest::Moved(moved) = &mut **rest else { return };
        match moved.binary_search_by_key(&newer.conversation_id, |one| one.conversation_id) {
            Ok(at) => moved[at].seq = moved[at].seq.max(newer.seq),
            Err(_) if moved.len() == limits::NOTIFY_CONVERSATIONS => **rest = Rest::All,
            Err(at) => moved.insert(at, newer),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Moves = (u64, Vec<(u64, u64)>);

    fn moves() -> impl Strategy<Value = Moves> {
        (0u64..50, proptest::collection::vec((0u64..40, 0u64..9), 0..30))
    }

    fn merged(all: &[&Moves]) -> Outlook {
        let mut outlook = Outlook::default();
        for (inbox_seq, conversations) in all {
            let list: Vec<_> = conversations
                .iter()
                .map(|(conversation_id, seq)| ConversationSeq {
                    conversation_id: *conversation_id,
                    seq: *seq,
                })
                .collect();
            outlook.merge(*inbox_seq, &list);
        }
        outlook
    }

    proptest! {
        #[test]
        fn order_and_repetition_do_not_matter(a in moves(), b in moves(), c in moves()) {
            let once = merged(&[&a, &b, &c]);
            for again in [&[&c, &b, &a][..], &[&b, &a, &c], &[&a, &a, &b, &c, &b], &[&b, &c, &a, &c]] {
                prop_assert_eq!(&merged(again), &once);
            }
        }

        #[test]
        fn what_is_told_covers_everything_and_is_bounded(all in proptest::collection::vec(moves(), 1..6)) {
            let mut outlook = merged(&all.iter().collect::<Vec<_>>());
            let notify = outlook.take();
            let newest = all.iter().map(|(seq, _)| *seq).max().unwrap_or(0);
            let mut expected = std::collections::BTreeMap::new();
            for (conversation, seq) in all.iter().flat_map(|(_, list)| list) {
                let at: &mut u64 = expected.entry(*conversation).or_default();
                *at = (*at).max(*seq);
            }
            match notify {
                None => prop_assert!(newest == 0 && expected.is_empty()),
                Some(notify) => {
                    prop_assert_eq!(notify.inbox_seq, newest);
                    prop_assert_eq!(notify.sync_all, expected.len() > limits::NOTIFY_CONVERSATIONS);
                    if !notify.sync_all {
                        let told: Vec<_> = notify.conversations.iter().map(|c| (c.conversation_id, c.seq)).collect();
                        prop_assert_eq!(told, expected.into_iter().collect::<Vec<_>>());
                    }
                }
            }
            prop_assert_eq!(outlook.take(), None);
        }
    }

    #[test]
    fn what_was_told_is_not_told_again() {
        let mut outlook = Outlook::told(5);
        outlook.merge(5, &[]);
        assert_eq!(outlook.take(), None);
        outlook.merge(6, &[]);
        assert_eq!(outlook.take().map(|n| n.inbox_seq), Some(6));
        outlook.merge(4, &[]);
        assert_eq!((outlook.take(), outlook.inbox_seq()), (None, 6));
    }

    #[test]
    fn after_a_restart_a_smaller_seq_is_told() {
        let mut outlook = Outlook::told(50);
        outlook.restart(3);
        let told = outlook.take().expect("something to tell");
        assert_eq!((told.inbox_seq, told.sync_all), (3, true));
        outlook.merge(4, &[]);
        assert_eq!(outlook.take().map(|n| n.inbox_seq), Some(4));
    }
}
