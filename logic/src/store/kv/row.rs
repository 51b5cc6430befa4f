//! The rows of the store and their keys.

use berth_proto::client;
use prost::bytes::Bytes;

use crate::kv::{Key, Space};

/// Conversation timelines: bodies, kept for ever.
pub(super) const TIMELINE: Space = Space(0);
/// Inbox rows: small, with a lifetime.
pub(super) const INBOX: Space = Space(1);
/// Everything else: small and hot.
pub(super) const STATE: Space = Space(2);

/// A message in its timeline.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TimelineRow {
    #[prost(message, optional, tag = "1")]
    pub message: Option<client::Message>,
    /// How many messages up to and including this one the conversation's first member sent. The other's are the rest,
    /// so unread counts between any two seqs cost two reads, however many messages lie between.
    #[prost(uint64, tag = "2")]
    pub by_first: u64,
}

/// A row of an inbox.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct InboxRow {
    /// When it was written, in milliseconds since the Unix epoch: its lifetime counts from here.
    #[prost(int64, tag = "1")]
    pub at_ms: i64,
    /// A message of this conversation ...
    #[prost(uint64, tag = "2")]
    pub conversation_id: u64,
    /// ... at this seq; or
    #[prost(uint64, tag = "3")]
    pub conversation_seq: u64,
    /// an event that is kept whole.
    #[prost(message, optional, tag = "4")]
    pub event: Option<client::Event>,
}

/// A user's inbox.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Head {
    #[prost(uint64, tag = "1")]
    pub latest_seq: u64,
    /// Rows below are gone; 0 before the first sweep, which means 1.
    #[prost(uint64, tag = "2")]
    pub floor_seq: u64,
    #[prost(uint64, tag = "3")]
    pub total_unread: u64,
    /// Groups he is in.
    #[prost(uint64, tag = "4")]
    pub groups: u64,
}

impl Head {
    pub(super) fn floor(&self) -> u64 {
        self.floor_seq.max(1)
    }
}

/// A user in a conversation.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MemberRow {
    #[prost(uint64, tag = "1")]
    pub read_seq: u64,
    /// Other people's messages in `read_seq..=applied_seq`.
    #[prost(uint64, tag = "2")]
    pub unread: u64,
    /// Spread's mark: the newest message of others that this user has.
    #[prost(uint64, tag = "3")]
    pub applied_seq: u64,
    /// The newest message id he has of it: his conversations are ordered by it. In a group, when he joined, too.
    #[prost(uint64, tag = "4")]
    pub activity: u64,
    /// Of a group: when he was in it, ascending, with messages between any two. Only the last one may be open.
    #[prost(message, repeated, tag = "5")]
    pub intervals: Vec<Interval>,
    /// Of a group: its version when he last joined or left.
    #[prost(uint64, tag = "6")]
    pub version: u64,
    /// Of a group: how many messages he sent to it.
    #[prost(uint64, tag = "7")]
    pub own: u64,
}

/// A stay in a group: its member gets the messages after `joined_seq` up to and including `left_seq`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct Interval {
    #[prost(uint64, tag = "1")]
    pub joined_seq: u64,
    /// `None`: he is in it.
    #[prost(uint64, optional, tag = "2")]
    pub left_seq: Option<u64>,
}

/// A conversation.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ConversationRow {
    /// The members of a direct conversation, in order of their ids.
    #[prost(string, tag = "1")]
    pub first: String,
    #[prost(string, tag = "2")]
    pub second: String,
    #[prost(uint64, tag = "3")]
    pub last_seq: u64,
    /// As in [`TimelineRow`], at `last_seq`.
    #[prost(uint64, tag = "4")]
    pub by_first: u64,
    /// Not empty: a group, and `first`, `second` and `by_first` mean nothing.
    #[prost(string, tag = "5")]
    pub group_id: String,
    /// Members of a group now.
    #[prost(uint64, tag = "6")]
    pub member_count: u64,
    /// Grows with each step that changes who is in the group.
    #[prost(uint64, tag = "7")]
    pub version: u64,
}

impl ConversationRow {
    pub(super) fn is_group(&self) -> bool {
        !self.group_id.is_empty()
    }

    /// Whether these are the two of a direct conversation.
    pub(super) fn is_between(&self, user: &str) -> bool {
        !self.is_group() && (self.first == user || self.second == user)
    }
}

/// A message that waits for spread: what spread needs of it, so that the body stays unread.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OutboxRow {
    #[prost(string, tag = "1")]
    pub sender: String,
    #[prost(uint64, tag = "2")]
    pub message_id: u64,
    /// It goes to a group.
    #[prost(bool, tag = "3")]
    pub group: bool,
    /// In the first row of a batch that is being given to a group: the batch's last seq; 0: not begun.
    #[prost(uint64, tag = "4")]
    pub through: u64,
    /// In the same row: members up to and including this one have the batch.
    #[prost(string, tag = "5")]
    pub after: String,
}

/// What was issued to a user, or to one of his devices, before a moment is void.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RevokedRow {
    #[prost(string, tag = "1")]
    pub user: String,
    /// Empty: all.
    #[prost(string, tag = "2")]
    pub device: String,
    #[prost(int64, tag = "3")]
    pub not_before_ms: i64,
    #[prost(string, tag = "4")]
    pub reason: String,
    #[prost(int64, tag = "5")]
    pub changed_ms: i64,
}

/// A record that could not be used, for the operator.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PoisonRow {
    #[prost(bytes = "bytes", tag = "1")]
    pub bytes: Bytes,
    #[prost(string, tag = "2")]
    pub reason: String,
    #[prost(int64, tag = "3")]
    pub at_ms: i64,
}

/// Kinds of rows that are read for each message: conversations, heads, members of direct conversations.
pub(super) const HOT: &[u8] = b"chm";

/// Key of the inbox epoch.
pub(super) const EPOCH: &[u8] = b"e";
/// Key of the highest conversation id given.
pub(super) const HIGHEST_CONVERSATION: &[u8] = b"g";

pub(super) fn timeline(conversation_id: u64, seq: u64) -> Key {
    Key::new(b't').number(conversation_id).number(seq)
}

pub(super) fn inbox(user: &str, seq: u64) -> Key {
    Key::new(b'i').text(user).number(seq)
}

pub(super) fn heads() -> Key {
    Key::new(b'h')
}

pub(super) fn head(user: &str) -> Key {
    heads().text(user)
}

/// The user of a head's key.
pub(super) fn user_of_head(key: &[u8]) -> String {
    let user = key.get(1..key.len().saturating_sub(1)).unwrap_or_default();
    String::from_utf8_lossy(user).into_owned()
}

pub(super) fn member(user: &str, conversation_id: u64) -> Key {
    Key::new(b'm').text(user).number(conversation_id)
}

/// The user's conversations, newest activity first.
pub(super) fn activities(user: &str) -> Key {
    Key::new(b'a').text(user)
}

pub(super) fn activity(user: &str, activity: u64, conversation_id: u64) -> Key {
    activities(user).number(!activity).number(conversation_id)
}

pub(super) fn pair(first: &str, second: &str) -> Key {
    Key::new(b'p').text(first).text(second)
}

pub(super) fn conversation(id: u64) -> Key {
    Key::new(b'c').number(id)
}

/// The conversation of a group.
pub(super) fn group(group_id: &str) -> Key {
    Key::new(b'n').text(group_id)
}

/// Who is in a group, and who left it but may still have to be given messages from before.
pub(super) fn roster(conversation_id: u64) -> Key {
    Key::new(b'r').number(conversation_id)
}

pub(super) fn roster_member(conversation_id: u64, user: &str) -> Key {
    roster(conversation_id).text(user)
}

/// The user of a key of a roster.
pub(super) fn user_of_roster(key: &[u8]) -> String {
    let user = key.get(9..key.len().saturating_sub(1)).unwrap_or_default();
    String::from_utf8_lossy(user).into_owned()
}

/// Who left a group and has all that is his: apart, so that spread does not walk over them for ever.
pub(super) fn former_member(conversation_id: u64, user: &str) -> Key {
    Key::new(b'f').number(conversation_id).text(user)
}

/// A message a user sent to a group, among the timelines: its value says which of his it is, so that counts of other
/// people's messages between any two seqs cost two reads, however many messages lie between.
pub(super) fn own(conversation_id: u64, user: &str, seq: u64) -> Key {
    Key::new(b'w').number(conversation_id).text(user).number(seq)
}

pub(super) fn mark(partition: u16) -> Key {
    Key::new(b'k').number(partition.into())
}

pub(super) fn outboxes() -> Key {
    Key::new(b'o')
}

pub(super) fn outbox(conversation_id: u64, seq: u64) -> Key {
    outboxes().number(conversation_id).number(seq)
}

pub(super) fn poison(partition: u16, offset: u64) -> Key {
    Key::new(b'x').number(partition.into()).number(offset)
}

pub(super) fn poison_unspread(conversation_id: u64, seq: u64) -> Key {
    Key::new(b'y').number(conversation_id).number(seq)
}

/// A member who could not be given a batch of a group: several of one batch are told apart.
pub(super) fn poison_member(conversation_id: u64, seq: u64, user: &str) -> Key {
    poison_unspread(conversation_id, seq).text(user)
}

/// A row of an inbox that could not be read.
pub(super) fn poison_inbox(user: &str, seq: u64) -> Key {
    Key::new(b'z').text(user).number(seq)
}

/// What is revoked of a user.
pub(super) fn revoked_of(user: &str) -> Key {
    Key::new(b'v').text(user)
}

/// Without a device: all of his.
pub(super) fn revoked(user: &str, device: &str) -> Key {
    revoked_of(user).text(device)
}

/// Keys of [`revoked`] by the time of their last change.
pub(super) fn revoked_changes() -> Key {
    Key::new(b'q')
}

pub(super) fn revoked_since(at_ms: i64) -> Key {
    revoked_changes().number(u64::try_from(at_ms).unwrap_or(0))
}

pub(super) fn revoked_change(at_ms: i64, user: &str, device: &str) -> Key {
    revoked_since(at_ms).text(user).text(device)
}

pub(super) fn acked(user: &str, device: &str) -> Key {
    Key::new(b'u').text(user).text(device)
}
