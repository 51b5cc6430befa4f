//! The ingest queue: where an accepted message becomes durable, in partitions that keep each sender's order.
//!
//! A backend implements [`Queue`] and passes `conformance::queue`. Clocks are arguments; errors carry no transport
//! types.

mod dedup;
mod log;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use prost::bytes::Bytes;
use ring::digest::{SHA256, digest};
use thiserror::Error;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use self::log::check_segment;
pub use self::log::{Disk, Files, InMemory, LogFile, LogQueue};
use crate::kv::KvError;

/// For how long the same `client_msg_id` of a sender means the same message: 24 h, in milliseconds (PROTOCOL.md).
pub const DEDUP_MS: i64 = 24 * 60 * 60 * 1000;

/// A message as the queue keeps it: everything that commit and spread need, so that both can be done again.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// Given by the queue; grows with time over the whole system.
    #[prost(uint64, tag = "1")]
    pub message_id: u64,
    /// Where it goes.
    #[prost(uint64, tag = "2")]
    pub conversation_id: u64,
    /// Who sent it.
    #[prost(string, tag = "3")]
    pub sender: String,
    /// The other member of a direct conversation; the sender himself in a conversation with himself.
    #[prost(string, tag = "4")]
    pub peer: String,
    /// The sender's name for it.
    #[prost(string, tag = "5")]
    pub client_msg_id: String,
    /// What kind of body.
    #[prost(string, tag = "6")]
    pub r#type: String,
    /// Opaque.
    #[prost(bytes = "bytes", tag = "7")]
    pub body: Bytes,
    /// When it was accepted, in milliseconds since the Unix epoch.
    #[prost(int64, tag = "8")]
    pub at_ms: i64,
}

/// What identifies a message for dedup besides (sender, `client_msg_id`): a hash of type and body.
pub type Fingerprint = [u8; 16];

/// The [`Fingerprint`] of a message.
#[must_use]
pub fn fingerprint(r#type: &str, body: &[u8]) -> Fingerprint {
    let mut text = Vec::with_capacity(r#type.len() + 1 + body.len());
    text.extend_from_slice(r#type.as_bytes());
    text.push(0);
    text.extend_from_slice(body);
    let hash = digest(&SHA256, &text);
    *hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes")
}

/// What the queue answers once a message is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The partition of the sender.
    pub partition: u16,
    /// Its place in the partition: contiguous from 1.
    pub offset: u64,
    /// Its id.
    pub message_id: u64,
    /// Where it goes.
    pub conversation_id: u64,
    /// When it was first accepted, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// It had been accepted before; the above is what was said then.
    pub duplicate: bool,
}

/// Why the queue did not take a message, or could not be read.
#[derive(Debug, Clone, Error)]
pub enum QueueError {
    /// As many appends wait as may wait; later may do.
    #[error("the ingest queue has {0} appends waiting, which is its bound")]
    Full(usize),
    /// The sender used this `client_msg_id` for something else within [`DEDUP_MS`].
    #[error("the clientMsgId was used for another message within 24 h")]
    Conflict,
    /// Nothing is accepted any more; what was in flight may or may not be there after a restart.
    #[error("the ingest queue stopped accepting: {0}")]
    Failed(String),
    /// The queue was closed.
    #[error("the ingest queue is closed")]
    Closed,
    /// Another partition count than the stored one, while records of the stored one are not yet processed.
    #[error(
        "the queue was made with {stored} partitions and still holds records; start with partitions = {stored} once, stop cleanly, then change to {asked}"
    )]
    Partitions {
        /// What it was made with.
        stored: u16,
        /// What was asked for.
        asked: u16,
    },
    /// A segment of the log is not what was written. Nothing is cut off or left out: what is behind it was acknowledged.
    #[error(
        "{file} of the ingest queue is damaged at byte {position}: {problem}; acknowledged messages are in it or behind it, so restore the whole data directory from a backup"
    )]
    Damaged {
        /// Which file of the queue's directory.
        file: String,
        /// Where in it.
        position: u64,
        /// What is wrong there.
        problem: String,
    },
    /// The directory holds a queue that an earlier version wrote.
    #[error(
        "{directory} holds an ingest queue of an earlier version's format, which this version does not read; begin with another data directory"
    )]
    OldFormat {
        /// Which.
        directory: String,
    },
    /// A file cannot be used.
    #[error("the ingest queue could not {action} {file}: {detail}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file or directory.
        file: String,
        /// What the operating system says.
        detail: String,
    },
    /// The engine below failed.
    #[error(transparent)]
    Engine(#[from] KvError),
}

/// Resolves when the message is durable, or was not accepted.
pub type Pending = BoxFuture<'static, Result<Appended, QueueError>>;

/// Resolves to what was accepted, or to None.
pub type Recalled = BoxFuture<'static, Result<Option<Appended>, QueueError>>;

/// A record as it was read back.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its place in its partition.
    pub offset: u64,
    /// The record; or, when it cannot be decoded, its bytes and the reason: whoever reads sets it aside and goes on.
    pub record: Result<Record, Poison>,
}

/// A record that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poison {
    /// As stored.
    pub bytes: Bytes,
    /// What is wrong with it.
    pub reason: String,
}

/// An ingest queue.
#[async_trait]
pub trait Queue: Send + Sync {
    /// How many partitions; a sender's is a stable hash of his id.
    fn partitions(&self) -> u16;

    /// Enters a message; those of one sender are appended in the order of these calls. `message_id` of the record is
    /// ignored and given by the queue. Does not wait.
    ///
    /// # Errors
    /// [`QueueError::Full`] at the bound of waiting appends; [`QueueError::Closed`].
    fn append(&self, record: Record) -> Result<Pending, QueueError>;

    /// Asks whether a message was accepted before, and enters nothing: resolves to what an append of it would answer as a
    /// repeat, or to None where it would be new. It sees every append that was called before it. Does not wait.
    ///
    /// # Errors
    /// As [`Queue::append`]; the answer is [`QueueError::Conflict`] where the name means another message.
    fn recall(&self, record: Record) -> Result<Recalled, QueueError>;

    /// The records after `after`, in order: at most `limit`, at least one if there is one.
    ///
    /// # Errors
    /// When the queue cannot be read.
    async fn read(&self, partition: u16, after: u64, limit: usize) -> Result<Vec<Stored>, QueueError>;

    /// The newest offset of each partition; 0: it never had one.
    fn heads(&self) -> Vec<u64>;

    /// Waits until some partition's head is above its mark.
    async fn wait(&self, marks: &[u64]);

    /// Forgets the records of a partition up to `through`, which nobody will need again.
    ///
    /// # Errors
    /// When the queue cannot be written.
    async fn trim(&self, partition: u16, through: u64) -> Result<(), QueueError>;

    /// Forgets what [`DEDUP_MS`] made useless, at most `limit` rows; how many went.
    ///
    /// # Errors
    /// When the queue cannot be written.
    async fn purge(&self, now_ms: i64, limit: usize) -> Result<usize, QueueError>;

    /// Whether messages are accepted; Err says why not.
    ///
    /// # Errors
    /// The reason, for the operator.
    fn health(&self) -> Result<(), String>;

    /// Answers what is in flight, then stops accepting and lets go of everything.
    async fn close(&self);
}

/// The partition of a sender: the first 8 bytes of SHA-256 of his id, modulo the count. Stable for ever.
#[must_use]
pub fn partition_of(sender: &str, partitions: u16) -> u16 {
    let hash = digest(&SHA256, sender.as_bytes());
    let head = u64::from_be_bytes(*hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes"));
    u16::try_from(head % u64::from(partitions.max(1))).expect("below a u16")
}
