//! Notifies for many connections as one message of two columns.

use crate::wire::{NotifyConnection, NotifyConnections};

impl NotifyConnections {
    /// An empty batch with room for so many inboxes.
    #[must_use]
    pub fn with_capacity(inboxes: usize) -> Self {
        Self {
            handles: Vec::with_capacity(inboxes),
            inbox_seqs: Vec::with_capacity(inboxes),
            others: Vec::new(),
        }
    }

    /// Adds: the inbox of the user on this connection reached `inbox_seq`.
    pub fn push(&mut self, handle: u64, inbox_seq: u64) {
        self.handles.push(handle);
        self.inbox_seqs.push(inbox_seq);
    }

    /// Adds a notify that may be about conversations too.
    pub fn add(&mut self, notify: NotifyConnection) {
        if notify.conversations.is_empty() {
            self.push(notify.handle, notify.inbox_seq);
        } else {
            self.others.push(notify);
        }
    }

    /// How many notifies. Where a sender gave columns of different length, the longer one's end has no meaning.
    #[must_use]
    pub fn len(&self) -> usize {
        self.handles.len().min(self.inbox_seqs.len()) + self.others.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The handle and inbox seq of each that is about an inbox only.
    pub fn inboxes(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.handles.iter().copied().zip(self.inbox_seqs.iter().copied())
    }

    /// The newest inbox seq of a connection, if the batch is about it.
    #[must_use]
    pub fn inbox_seq(&self, handle: u64) -> Option<u64> {
        let others = self.others.iter().map(|other| (other.handle, other.inbox_seq));
        self.inboxes().chain(others).filter(|(of, _)| *of == handle).map(|(_, seq)| seq).max()
    }
}

impl FromIterator<NotifyConnection> for NotifyConnections {
    fn from_iter<I: IntoIterator<Item = NotifyConnection>>(notifies: I) -> Self {
        let mut batch = Self::default();
        notifies.into_iter().for_each(|notify| batch.add(notify));
        batch
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::client::ConversationSeq;

    #[test]
    fn what_goes_in_comes_out_over_the_wire_too() {
        let conversations = vec![ConversationSeq { conversation_id: 9, seq: 3 }];
        let batch: NotifyConnections = [
            NotifyConnection { handle: 1 << 56, inbox_seq: 7, conversations: Vec::new() },
            NotifyConnection { handle: 5, inbox_seq: 1 << 40, conversations: Vec::new() },
            NotifyConnection { handle: 5, inbox_seq: 8, conversations },
        ]
        .into_iter()
        .collect();
        let decoded = NotifyConnections::decode(&batch.encode_to_vec()[..]).expect("its own bytes");
        assert_eq!(decoded, batch);
        assert_eq!((decoded.len(), decoded.others.len()), (3, 1));
        assert_eq!(decoded.inboxes().collect::<Vec<_>>(), [(1 << 56, 7), (5, 1 << 40)]);
        assert_eq!((decoded.inbox_seq(5), decoded.inbox_seq(6)), (Some(1 << 40), None));
    }

    #[test]
    fn a_notify_in_a_large_batch_costs_about_ten_bytes() {
        let mut batch = NotifyConnections::with_capacity(10_000);
        (0..10_000).for_each(|n| batch.push(n << 32, 100 + n % 20));
        assert!(batch.encoded_len() < 10_000 * 10);
    }
}
