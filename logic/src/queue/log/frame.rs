//! The bytes of a segment: a header, then batches, each with what proves it whole. Pure.
//!
//! A batch is what one sync made durable, so it is there or not as a whole: one that is not whole was never answered,
//! unless a whole one follows, which was only written after its sync. Checksums are seeded by a number that only the
//! segment's header has: nobody can send a body that looks like a batch.

use prost::Message;
use thiserror::Error;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::queue::dedup::{Name, Seen};

const MAGIC: [u8; 8] = *b"BERTHLOG";

/// Of everything in here.
const VERSION: u32 = 1;

/// Magic, version, length and checksum before a header's message.
const HEADER: usize = 24;

/// Length, kind, count, number, checksum of the body, checksum of these.
const BATCH: usize = 32;

/// Of a record's own facts before its payload.
pub(super) const RECORD: usize = 78;

/// What a batch may hold at most, in bytes: 512 records with bodies of 32 KiB are 17 MiB.
const MOST: usize = 64 * 1024 * 1024;

/// What a segment begins with.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    /// Its number; its file is named by it.
    #[prost(uint64, tag = "1")]
    pub(super) number: u64,
    /// How many partitions its records are of.
    #[prost(uint32, tag = "2")]
    pub(super) partitions: u32,
    /// Which logic wrote it.
    #[prost(uint32, tag = "3")]
    pub(super) node: u32,
    /// Of its checksums.
    #[prost(fixed64, tag = "4")]
    pub(super) seed: u64,
    /// The number of its first batch: they count on over segments.
    #[prost(uint64, tag = "5")]
    pub(super) first_batch: u64,
    /// What the segments before it came to, so that they may go.
    #[prost(message, required, tag = "6")]
    pub(super) checkpoint: Checkpoint,
}

/// What must outlive the records.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Checkpoint {
    /// The newest offset of each partition there ever was.
    #[prost(uint64, repeated, tag = "1")]
    pub(super) heads: Vec<u64>,
    /// Up to which offset each is trimmed.
    #[prost(uint64, repeated, tag = "2")]
    pub(super) trimmed: Vec<u64>,
    /// The highest message id given.
    #[prost(uint64, tag = "3")]
    pub(super) highest_id: u64,
    /// The queue's own time.
    #[prost(int64, tag = "4")]
    pub(super) latest_ms: i64,
    /// The names of segments up to this number are durable rows.
    #[prost(uint64, tag = "5")]
    pub(super) folded: u64,
}

/// Why bytes are no header or no batch.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Problem {
    #[error("it does not begin as a segment of the ingest log does")]
    Magic,
    #[error("its format has version {0}; this Berth reads {VERSION}")]
    Version(u32),
    #[error("it ends in the middle")]
    Short,
    #[error("a checksum does not match")]
    Checksum,
    #[error("its content is not of the form its checksum vouches for")]
    Form,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let message = self.encode_to_vec();
        let length = u32::try_from(message.len()).expect("16 bytes a partition at most");
        let mut bytes = Vec::with_capacity(HEADER + message.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&xxh3_64(&message).to_le_bytes());
        bytes.extend_from_slice(&message);
        bytes
    }

    /// The header at the beginning of `bytes`, and its length.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, usize), Problem> {
        if !bytes.starts_with(&MAGIC) {
            return Err(Problem::Magic);
        }
        let mut rest = Reader(&bytes[MAGIC.len()..]);
        let version = rest.u32()?;
        if version != VERSION {
            return Err(Problem::Version(version));
        }
        let length = rest.u32()? as usize;
        let hash = rest.u64()?;
        let message = rest.take(length)?;
        if xxh3_64(message) != hash {
            return Err(Problem::Checksum);
        }
        let header = Self::decode_message(message)?;
        Ok((header, HEADER + length))
    }

    fn decode_message(message: &[u8]) -> Result<Self, Problem> {
        Message::decode(message).map_err(|_| Problem::Form)
    }
}

/// What a batch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Records = 1,
    Trimmed = 2,
}

/// A batch in the making, in memory that is used again.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    bytes: Vec<u8>,
    count: u16,
}

impl Encoder {
    pub(super) fn begin(&mut self) {
        self.bytes.clear();
        self.bytes.resize(BATCH, 0);
        self.count = 0;
    }

    /// Adds a record; where in the batch it begins.
    pub(super) fn record(&mut self, name: &Name, seen: &Seen, payload: &[u8]) -> usize {
        let at = self.bytes.len();
        let length = u32::try_from(payload.len()).expect("a body has 32 KiB at most");
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&seen.partition.to_le_bytes());
        self.bytes.extend_from_slice(&seen.offset.to_le_bytes());
        self.bytes.extend_from_slice(&seen.message_id.to_le_bytes());
        self.bytes.extend_from_slice(&seen.conversation_id.to_le_bytes());
        self.bytes.extend_from_slice(&seen.at_ms.to_le_bytes());
        self.bytes.extend_from_slice(&seen.noted_ms.to_le_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(&seen.fingerprint);
        debug_assert_eq!(self.bytes.len(), at + RECORD);
        self.bytes.extend_from_slice(payload);
        self.count += 1;
        at
    }

    /// The bytes of a batch of records.
    pub(super) fn finish(&mut self, number: u64, seed: u64) -> &[u8] {
        self.seal(Kind::Records, number, seed)
    }

    /// The bytes of a batch that says how far each partition is trimmed.
    pub(super) fn trimmed(&mut self, trimmed: &[u64], number: u64, seed: u64) -> &[u8] {
        self.begin();
        trimmed.iter().for_each(|mark| self.bytes.extend_from_slice(&mark.to_le_bytes()));
        self.seal(Kind::Trimmed, number, seed)
    }

    fn seal(&mut self, kind: Kind, number: u64, seed: u64) -> &[u8] {
        let (head, body) = self.bytes.split_at_mut(BATCH);
        let length = u32::try_from(body.len()).expect("64 MiB at most");
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..6].copy_from_slice(&(kind as u16).to_le_bytes());
        head[6..8].copy_from_slice(&self.count.to_le_bytes());
        head[8..16].copy_from_slice(&number.to_le_bytes());
        head[16..24].copy_from_slice(&xxh3_64_with_seed(body, seed).to_le_bytes());
        let hash = xxh3_64_with_seed(&head[..24], seed);
        head[24..].copy_from_slice(&hash.to_le_bytes());
        &self.bytes
    }
}

/// A whole batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch<'a> {
    pub(super) number: u64,
    pub(super) content: Content<'a>,
    /// Its length in bytes.
    pub(super) length: usize,
}

/// What is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content<'a> {
    Records(Vec<Entry<'a>>),
    Trimmed(Vec<u64>),
}

/// A record as it lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// Where in its batch it begins.
    pub(super) at: usize,
    pub(super) name: Name,
    pub(super) seen: Seen,
    pub(super) payload: &'a [u8],
}

/// The batch at the beginning of `bytes`, which are not empty.
pub(super) fn batch(bytes: &[u8], seed: u64) -> Result<Batch<'_>, Problem> {
    let head = bytes.get(..BATCH).ok_or(Problem::Short)?;
    let mut fields = Reader(head);
    let length = fields.u32()? as usize;
    let (kind, count) = (fields.u16()?, fields.u16()?);
    let (number, body_hash) = (fields.u64()?, fields.u64()?);
    if fields.u64()? != xxh3_64_with_seed(&head[..24], seed) || length > MOST {
        return Err(Problem::Checksum);
    }
    let body = bytes[BATCH..].get(..length).ok_or(Problem::Short)?;
    if xxh3_64_with_seed(body, seed) != body_hash {
        return Err(Problem::Checksum);
    }
    let content = match kind {
        kind if kind == Kind::Records as u16 => Content::Records(entries(body, count)?),
        kind if kind == Kind::Trimmed as u16 && length.is_multiple_of(8) => {
            let marks = body.chunks_exact(8).map(|mark| Reader(mark).u64());
            Content::Trimmed(marks.collect::<Result<_, _>>()?)
        }
        _ => return Err(Problem::Form),
    };
    Ok(Batch { number, content, length: BATCH + length })
}

/// Whether a whole batch begins anywhere in `bytes`, and where.
pub(super) fn find(bytes: &[u8], seed: u64) -> Option<usize> {
    (0..bytes.len().saturating_sub(BATCH - 1)).find(|at| batch(&bytes[*at..], seed).is_ok())
}

fn entries(body: &[u8], count: u16) -> Result<Vec<Entry<'_>>, Problem> {
    let mut rest = body;
    let mut entries = Vec::with_capacity(count.into());
    for _ in 0..count {
        let mut entry = entry(rest).map_err(|_| Problem::Form)?;
        entry.at = BATCH + body.len() - rest.len();
        rest = &rest[RECORD + entry.payload.len()..];
        entries.push(entry);
    }
    if rest.is_empty() { Ok(entries) } else { Err(Problem::Form) }
}

/// The record at the beginning of `bytes`, unproven.
pub(super) fn entry(bytes: &[u8]) -> Result<Entry<'_>, Problem> {
    let mut rest = Reader(bytes);
    let length = rest.u32()? as usize;
    let seen = Seen {
        partition: rest.u16()?,
        offset: rest.u64()?,
        message_id: rest.u64()?,
        conversation_id: rest.u64()?,
        at_ms: rest.u64()?.cast_signed(),
        noted_ms: rest.u64()?.cast_signed(),
        fingerprint: [0; 16],
    };
    let (name, fingerprint) = (rest.array()?, rest.array()?);
    Ok(Entry { at: 0, name, seen: Seen { fingerprint, ..seen }, payload: rest.take(length)? })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Problem::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Problem::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, Problem> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Problem> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Problem> {
        self.array().map(u64::from_le_bytes)
    }
}

/// The body of `fuzz::segment`.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn check_segment(bytes: &[u8]) {
    if let Ok((header, length)) = Header::decode(bytes) {
        assert!(length <= bytes.len());
        assert_eq!(Header::decode(&header.encode()).map(|(again, _)| again), Ok(header));
    }
    // Bytes that are no part of a segment are no batch, whoever chose them: he does not know the seed.
    assert_eq!(find(bytes, SEED), None);
    if let Ok(entry) = entry(bytes) {
        assert_eq!(bytes[RECORD..].get(..entry.payload.len()), Some(entry.payload));
        let mut encoder = Encoder::default();
        encoder.begin();
        encoder.record(&entry.name, &entry.seen, entry.payload);
        let again = encoder.finish(7, SEED);
        let Ok(Batch { number: 7, content: Content::Records(entries), length }) = batch(again, SEED) else {
            panic!("what was written is not read");
        };
        assert_eq!((entries.as_slice(), length), ([Entry { at: BATCH, ..entry }].as_slice(), again.len()));
        assert!(batch(again, !SEED).is_err(), "it belongs to its own segment");
        check_changed(again.to_vec(), bytes);
    }
}

/// A genuine batch, shorter, or changed in one place, is none.
#[cfg(any(test, feature = "fuzz"))]
fn check_changed(mut genuine: Vec<u8>, bytes: &[u8]) {
    let [a, b, with, ..] = *bytes else { return };
    let at = usize::from(u16::from_le_bytes([a, b])) % genuine.len();
    assert!(batch(&genuine[..at], SEED).is_err(), "cut at {at}");
    if genuine[at] != with {
        genuine[at] = with;
        assert!(batch(&genuine, SEED).is_err(), "byte {at} is {with}");
    }
}

#[cfg(any(test, feature = "fuzz"))]
const SEED: u64 = 0x5eed_0f5e_6d7e_17a5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen() -> impl Strategy<Value = (Name, Seen)> {
        let numbers = (any::<u16>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<i64>(), any::<i64>());
        (any::<Name>(), numbers, any::<[u8; 16]>()).prop_map(|(name, numbers, fingerprint)| {
            let (partition, offset, message_id, conversation_id, at_ms, noted_ms) = numbers;
            let seen = Seen { partition, offset, message_id, conversation_id, at_ms, fingerprint, noted_ms };
            (name, seen)
        })
    }

    type Records = Vec<((Name, Seen), Vec<u8>)>;

    fn records() -> impl Strategy<Value = Records> {
        prop::collection::vec((seen(), prop::collection::vec(any::<u8>(), 0..60)), 0..6)
    }

    fn encoded(records: &Records, number: u64, seed: u64) -> Vec<u8> {
        let mut encoder = Encoder::default();
        encoder.begin();
        for ((name, seen), payload) in records {
            encoder.record(name, seen, payload);
        }
        encoder.finish(number, seed).to_vec()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_less(records in records(), number: u64, seed: u64) {
            let bytes = encoded(&records, number, seed);
            let read = batch(&bytes, seed).expect("whole");
            prop_assert_eq!((read.number, read.length), (number, bytes.len()));
            let Content::Records(entries) = read.content else { panic!("records") };
            let entries: Records =
                entries.into_iter().map(|e| ((e.name, e.seen), e.payload.to_vec())).collect();
            prop_assert_eq!(entries, records);
            for end in 0..bytes.len() {
                prop_assert!(batch(&bytes[..end], seed).is_err(), "cut at {}", end);
            }
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                prop_assert!(batch(&changed, seed).is_err(), "changed at {}", at);
            }
        }

        #[test]
        fn a_whole_batch_is_found_behind_anything(
            before in prop::collection::vec(any::<u8>(), 0..100), records in records(), seed: u64,
        ) {
            let whole = encoded(&records, 1, seed);
            let mut bytes = before.clone();
            bytes.extend_from_slice(&whole);
            prop_assert_eq!(find(&bytes, seed), Some(before.len()));
            prop_assert_eq!(find(&bytes[..bytes.len() - 1], seed), None);
        }

        #[test]
        fn marks_and_headers_come_back(marks: Vec<u64>, number: u64, seed: u64) {
            let mut encoder = Encoder::default();
            let bytes = encoder.trimmed(&marks, number, seed).to_vec();
            let content = batch(&bytes, seed).expect("whole").content;
            prop_assert_eq!(content, Content::Trimmed(marks.clone()));
            let checkpoint = Checkpoint { heads: marks, highest_id: seed, ..Checkpoint::default() };
            let header = Header { number, seed, checkpoint, ..Header::default() };
            let bytes = header.encode();
            prop_assert_eq!(Header::decode(&bytes), Ok((header, bytes.len())));
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                prop_assert!(Header::decode(&changed).is_err(), "changed at {}", at);
                prop_assert!(Header::decode(&bytes[..at]).is_err(), "cut at {}", at);
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), length in 0u32..100) {
            check_segment(&bytes);
            // Nearly a record: a length that fits.
            check_segment(&[&length.to_le_bytes(), bytes.as_slice()].concat());
            check_segment(&[MAGIC.as_slice(), &VERSION.to_le_bytes(), &length.to_le_bytes(), &bytes].concat());
        }
    }
}
