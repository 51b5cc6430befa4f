//! The store: conversation timelines, inboxes, unread counts, and the outbox that spread works from.
//!
//! A backend implements [`Store`] and passes `conformance::store`. Not found is `None`, clocks are arguments, errors
//! carry no transport types.
//!
//! The spread queue of the architecture is a transactional outbox here: [`Store::commit`] writes the outbox row in the
//! same atomic step as the timeline row and the partition's mark, so there is no second queue that could disagree with
//! the store.

mod kv;
mod revocation;

use async_trait::async_trait;
use berth_proto::client;
use thiserror::Error;

pub use self::{
    kv::{Epoch, KvStore},
    revocation::{CARRIED_MS, RecentRevocations, Restored, Revocation},
};
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
    /// A group's message was to be given as one of two: nothing was changed.
    #[error(
        "message {seq} of conversation {conversation_id} belongs to a group and cannot be given to one user; restart this process and report it"
    )]
    NotDirect {
        /// Where it is.
        conversation_id: u64,
        /// Its seq there.
        seq: u64,
    },
}

impl StoreError {
    /// Whether it is about rows that will never be right again: trying once more cannot help.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Engine(error) => error.action == KvError::DECODE,
            Self::Damaged(_) => true,
            Self::Gap { .. } | Self::Ahead { .. } | Self::NotDirect { .. } => false,
        }
    }
}

/// What a conversation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of two users, or of one with himself.
    Direct,
    /// Of any number of users, who join and leave.
    Group,
}

impl Kind {
    /// As it stands on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Group => "group",
        }
    }
}

/// A conversation, as ingest must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conversation {
    /// Of two: in order of their ids; the same one twice in a conversation with oneself.
    Direct([String; 2]),
    /// Of a group.
    Group(Group),
}

impl Conversation {
    /// The other member of a direct conversation than `user`; himself in a conversation with himself; `None`: he is no
    /// member, or it is a group's.
    #[must_use]
    pub fn peer_of(&self, user: &str) -> Option<&str> {
        match self {
            Self::Direct([a, b]) if a == user => Some(b),
            Self::Direct([a, b]) if b == user => Some(a),
            Self::Direct(_) | Self::Group(_) => None,
        }
    }
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name at the back-end.
    pub group_id: String,
    /// Its conversation, for ever.
    pub conversation_id: u64,
    /// Members now.
    pub member_count: u64,
    /// Grows with each step that changes who is in it.
    pub version: u64,
}

/// How many of what there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Members of a group.
    pub members: u64,
    /// Groups that one user is in.
    pub groups: u64,
}

/// Why a change of members was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The group has [`Limits::members`].
    GroupFull,
    /// This user is in [`Limits::groups`].
    TooManyGroups(String),
    /// This user came and went so often that an old stay of his would have to be forgotten, which is not yet spread.
    TooOften(String),
}

/// What one step of a change of members did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// The inboxes of those who joined or left.
    pub moved: Vec<Moved>,
    /// Who was not in the group before.
    pub joined: u64,
    /// Who was in it before.
    pub left: u64,
    /// Members now.
    pub member_count: u64,
    /// Set: nothing of this step was done.
    pub refused: Option<Refusal>,
}

/// A message that others than its sender have yet to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unspread {
    /// Where it is.
    pub conversation_id: u64,
    /// Its seq there.
    pub seq: u64,
    /// Its id: says when it was accepted.
    pub message_id: u64,
    /// It goes to a group, in slices ([`Store::spread_groups`]): its members when this was told.
    pub members: Option<u64>,
}

/// Messages of a group that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The group's conversation.
    pub conversation_id: u64,
    /// The first that waits.
    pub first: u64,
    /// The last.
    pub last: u64,
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
    /// Messages to a group that their senders had left by then: they are told.
    pub failed: u64,
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

/// How much of groups' messages one step gives to how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Messages of a batch, at most; one that was begun stays as it was begun.
    pub messages: usize,
    /// Members of one group, at most.
    pub members: usize,
    /// Inbox rows, at most, over all groups: a batch of many messages goes to few members, one of few to many. At
    /// least one member gets the whole batch.
    pub rows: usize,
}

/// What a step did of one group's spread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sliced {
    /// The recipients' inboxes.
    pub moved: Vec<Moved>,
    /// Inbox rows written to recipients.
    pub delivered: u64,
    /// Every member has this one and those before it; `None`: members are left.
    pub through: Option<u64>,
    /// Messages taken off the outbox.
    pub finished: u64,
    /// Members whose rows are damaged: they were passed over.
    pub damaged: u64,
}

/// What a device has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Whose it is.
    pub user: String,
    /// Which of his.
    pub device: String,
    /// It has everything up to this row of the inbox.
    pub seq: u64,
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

    /// The group of this name.
    async fn group(&self, group_id: &str) -> Result<Option<Group>, StoreError>;

    /// The group of this name: the one there is, or a new one without members.
    async fn create_group(&self, group_id: &str, now_ms: i64) -> Result<Group, StoreError>;

    /// The group's version when the user joined; `None`: he is not in it now.
    async fn joined(&self, conversation_id: u64, user: &str) -> Result<Option<u64>, StoreError>;

    /// Members of a group in order of their ids: at most `limit` after `after`.
    async fn members(
        &self,
        conversation_id: u64,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StoreError>;

    /// Lets users join and leave a group in one atomic step, which is decided against the conversation's newest seq of
    /// that moment: who joins gets what comes later, who leaves gets everything so far, however far spread has come.
    /// Who is in already, or is not in, is passed over; the others get a `conversation` event.
    async fn change_members(
        &self,
        conversation_id: u64,
        joins: &[String],
        leaves: &[String],
        limits: Limits,
        now_ms: i64,
    ) -> Result<Changed, StoreError>;

    /// Up to which offset each ingest partition is applied.
    async fn marks(&self, partitions: u16) -> Result<Vec<u64>, StoreError>;

    /// Applies records of ingest partitions, each partition's in order, in one atomic step: each gets its conversation
    /// seq, its place in the timeline and its row in the sender's own inbox, and an outbox row where somebody else must get
    /// it. Records at or below a partition's mark change nothing. Costs the same whatever a conversation's size. Answers
    /// for each partition, in order: one that has a [`StoreError::Gap`] is left as it was and does not hold up the others.
    async fn commit_round(
        &self,
        round: Vec<(u16, Vec<Stored>)>,
        now_ms: i64,
    ) -> Result<Vec<Result<Committed, StoreError>>, StoreError>;

    /// The same of one partition.
    async fn commit(
        &self,
        partition: u16,
        records: Vec<Stored>,
        now_ms: i64,
    ) -> Result<Committed, StoreError> {
        let answers = self.commit_round(vec![(partition, records)], now_ms).await?;
        answers.into_iter().next().unwrap_or_else(|| Ok(Committed::default()))
    }

    /// Everything in the outbox after `after`, in order, at most `limit`: for the start.
    async fn outbox(&self, after: Option<Unspread>, limit: usize) -> Result<Vec<Unspread>, StoreError>;

    /// Gives messages to the other members, in the order given (ascending within a conversation), in one atomic step.
    /// A message already given changes nothing; one of a group is an error, and nothing is given then.
    async fn spread(&self, work: Vec<Unspread>, now_ms: i64) -> Result<Spread, StoreError>;

    /// Gives the oldest messages that wait in groups, group after group, to some members of each, in one atomic step
    /// that remembers where each stood: the next call goes on there. Answers for those that had their turn before
    /// [`Cut::rows`] were used up, in order: the first always. Called until [`Sliced::through`] reaches [`Due::last`]; a
    /// repeat after a crash gives nothing twice.
    async fn spread_groups(&self, due: &[Due], cut: Cut, now_ms: i64) -> Result<Vec<Sliced>, StoreError>;

    /// Takes a message off the outbox that [`Store::spread`] can never give ([`StoreError::is_damage`]), and keeps its
    /// outbox row with the reason for the operator; the messages behind it can be given then.
    async fn set_aside(&self, work: Unspread, reason: String, now_ms: i64) -> Result<(), StoreError>;

    /// The newest seq of each user's inbox, in order; 0: it never had a row. One that cannot be read costs the others
    /// nothing.
    async fn inbox_seqs(&self, users: &[String]) -> Vec<Result<u64, StoreError>>;

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

    /// Devices have everything up to a seq, in one step; none goes back. For receipts: nothing else reads it.
    async fn ack(&self, acks: &[Ack]) -> Result<(), StoreError>;

    /// Makes what was issued before a moment void. One that is there already and voids more stays, but for its reason and time;
    /// one that cannot be read is as if it were not there.
    /// Answers with what there is now.
    async fn revoke(&self, revocation: Revocation) -> Result<Revocation, StoreError>;

    /// Takes a user's revocations back: that of one device (empty: his own), there or not, or all of them.
    async fn restore(&self, user: &str, device: Option<&str>, now_ms: i64) -> Result<Restored, StoreError>;

    /// A user's revocations in force, his own first, then those of devices in order of their ids.
    async fn revocations(&self, user: &str) -> Result<Vec<Revocation>, StoreError>;

    /// For each user and device the revocation that voids most, if there is one: read before a session opens, many at a time.
    async fn revoked(&self, who: &[(&str, &str)]) -> Vec<Result<Option<Revocation>, StoreError>>;

    /// Revocations that were made or changed at `since_ms` or later, restored ones too: the newest of them, at most `limit`,
    /// newest first. One that cannot be read keeps none of the others.
    async fn recent_revocations(&self, since_ms: i64, limit: usize) -> Result<RecentRevocations, StoreError>;

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
