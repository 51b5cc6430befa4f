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
    /// The newest message id he has of it: his conversations are ordered by it.
    #[prost(uint64, tag = "4")]
    pub activity: u64,
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
}

/// A message that waits for spread: what spread needs of it, so that the body stays unread.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OutboxRow {
    #[prost(string, tag = "1")]
    pub sender: String,
    #[prost(uint64, tag = "2")]
    pub message_id: u64,
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

pub(super) fn acked(user: &str, device: &str) -> Key {
    Key::new(b'u').text(user).text(device)
}
