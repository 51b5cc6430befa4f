//! The store: conversation timelines, inboxes, unread counts, and the outbox that spread works from.
//!
//! A backend implements [`Store`] and passes `conformance::store`. Not found is `None`, clocks are arguments, errors
//! carry no transport types.
//!
//! The spread queue of the architecture is a transactional outbox here: [`Store::commit`] writes the outbox row in the
//! same atomic step as the timeline row and the partition's mark, so there is no second queue that could disagree with
//! the store.

mod kv;

use async_trait::async_trait;
use berth_proto::client;
use thiserror::Error;

pub use self::kv::{Epoch, KvStore};
use crate::{kv::KvError, queue::Stored};

/// Why the store could not do it.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// The engine below failed.
    #[error(transparent)]
    Engine(#[from] KvError),
    /// Records were skipped: the queue was trimmed ahead of the store, or the store is older than the queue.
    #[error(
        "partition {partition} is applied up to {mark}, but its next record is {offset}: records between are gone; restore the store that belongs to this queue"
    )]
    Gap {
        /// The ingest partition.
        partition: u16,
        /// Applied up to here.
        mark: u64,
        /// What came instead of mark + 1.
        offset: u64,
    },
    /// The queue was lost, or put back from an older copy than the store: what it would accept next, the store would
    /// take for done.
    #[error(
        "partition {partition} is applied up to {mark}, but the queue's newest record is {head}: the queue is older than the store or was lost; put back the queue directory that belongs to this store, or queue and store from copies of one moment"
    )]
    Ahead {
        /// The ingest partition.
        partition: u16,
        /// Applied up to here.
        mark: u64,
        /// The queue's newest offset.
        head: u64,
    },
    /// A row that must be there is not.
    #[error("{0}; the store is damaged, restore it from a copy")]
    Damaged(String),
}

impl StoreError {
    /// Whether it is about rows that will never be right again: trying once more cannot help.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Engine(error) => error.action == KvError::DECODE,
            Self::Damaged(_) => true,
            Self::Gap { .. } | Self::Ahead { .. } => false,
        }
    }
}

/// What a conversation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of two users, or of one with himself.
    Direct,
}

impl Kind {
    /// As it stands on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
        }
    }
}

/// A conversation, as ingest must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// What it is.
    pub kind: Kind,
    /// Its members in order of their ids; the same one twice in a conversation with oneself.
    pub members: [String; 2],
}

impl Conversation {
    /// The other member than `user`; himself in a conversation with himself; `None`: he is no member.
    #[must_use]
    pub fn peer_of(&self, user: &str) -> Option<&str> {
        match &self.members {
            [a, b] if a == user => Some(b),
            [a, b] if b == user => Some(a),
            _ => None,
        }
    }
}

/// A message that others than its sender have yet to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unspread {
    /// Where it is.
    pub conversation_id: u64,
    /// Its seq there.
    pub seq: u64,
}

/// An inbox reached a seq: worth a notify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Whose.
    pub user: String,
    /// Its newest row.
    pub inbox_seq: u64,
}

/// What a commit did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// The senders' own inboxes.
    pub moved: Vec<Moved>,
    /// What is left to spread, in order.
    pub unspread: Vec<Unspread>,
    /// Records that could not be used and were set aside.
    pub poisoned: u64,
    /// The partition's mark now.
    pub mark: u64,
}

/// What a spread did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spread {
    /// The recipients' inboxes.
    pub moved: Vec<Moved>,
    /// Inbox rows written to recipients.
    pub delivered: u64,
}

/// What marking a conversation read did.
#[derive(Debug, Clone, PartialEq)]
pub struct Marked {
    /// The counts after it.
    pub response: client::MarkReadResponse,
    /// The user's own inbox, if the mark moved: his other devices should learn of it.
    pub moved: Option<Moved>,
}

/// Where a page of conversations goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Activity of the last conversation seen: its newest message id.
    pub activity: u64,
    /// The last conversation seen.
    pub conversation_id: u64,
}

/// What a sweep of expired inbox rows did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Rows removed.
    pub rows: u64,
    /// The user to go on after; `None`: all were seen.
    pub next: Option<String>,
}

/// How much one answer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Rows, at most.
    pub rows: usize,
    /// Bytes of protobuf: the row that passes them is left out, unless it is the first.
    pub bytes: usize,
}

/// A message store.
#[async_trait]
pub trait Store: Send + Sync {
    /// Changes only when inboxes may have been rolled back.
    fn inbox_epoch(&self) -> u64;

    /// The conversation of two users (or of one with himself): the one there is, or a new one.
    async fn direct(&self, a: &str, b: &str, now_ms: i64) -> Result<u64, StoreError>;

    /// A conversation.
    async fn conversation(&self, id: u64) -> Result<Option<Conversation>, StoreError>;

    /// Up to which offset each ingest partition is applied.
    async fn marks(&self, partitions: u16) -> Result<Vec<u64>, StoreError>;

    /// Applies records of one ingest partition in order, in one atomic step: each gets its conversation seq, its place in
    /// the timeline and its row in the sender's own inbox, and an outbox row where somebody else must get it. Records at
    /// or below the mark change nothing. Costs the same whatever a conversation's size.
    async fn commit(
        &self,
        partition: u16,
        records: Vec<Stored>,
        now_ms: i64,
    ) -> Result<Committed, StoreError>;

    /// Everything in the outbox after `after`, in order, at most `limit`: for the start.
    async fn outbox(&self, after: Option<Unspread>, limit: usize) -> Result<Vec<Unspread>, StoreError>;

    /// Gives messages to the other members, in the order given (ascending within a conversation), in one atomic step.
    /// A message already given changes nothing.
    async fn spread(&self, work: Vec<Unspread>, now_ms: i64) -> Result<Spread, StoreError>;

    /// Takes a message off the outbox that [`Store::spread`] can never give ([`StoreError::is_damage`]), and keeps its
    /// outbox row with the reason for the operator; the messages behind it can be given then.
    async fn set_aside(&self, work: Unspread, reason: String, now_ms: i64) -> Result<(), StoreError>;

    /// The newest seq of each user's inbox, in order; 0: it never had a row.
    async fn inbox_seqs(&self, users: &[String]) -> Result<Vec<u64>, StoreError>;

    /// The inbox after a seq. Where rows after `after` have expired it begins with the oldest still held.
    async fn pull(&self, user: &str, after: u64, page: Page) -> Result<client::PullResponse, StoreError>;

    /// Part of a timeline; `None`: there is no such conversation, or the user is no member.
    async fn history(
        &self,
        user: &str,
        request: &client::HistoryRequest,
        page: Page,
    ) -> Result<Option<client::HistoryResponse>, StoreError>;

    /// The user's conversations, newest activity first, with unread counts that agree with the total.
    async fn conversations(
        &self,
        user: &str,
        after: Option<Cursor>,
        page: Page,
    ) -> Result<(client::ConversationsResponse, Option<Cursor>), StoreError>;

    /// The user has read up to `seq` (bounded by the newest; never back); `None`: he is no member.
    async fn mark_read(
        &self,
        user: &str,
        conversation_id: u64,
        seq: u64,
        now_ms: i64,
    ) -> Result<Option<Marked>, StoreError>;

    /// A device has everything up to `seq`; never goes back. For receipts: nothing else reads it.
    async fn ack(&self, user: &str, device: &str, seq: u64) -> Result<(), StoreError>;

    /// Removes inbox rows written before `before_ms` of users after `after` and moves their floors: looks at up to
    /// `users` users and removes at most `rows` rows a user. Timelines keep the bodies.
    async fn sweep(
        &self,
        after: Option<String>,
        before_ms: i64,
        users: usize,
        rows: usize,
    ) -> Result<Swept, StoreError>;

    /// Makes everything applied so far survive the end of the operating system.
    async fn sync(&self) -> Result<(), StoreError>;
}
