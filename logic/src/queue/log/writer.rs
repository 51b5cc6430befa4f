//! The one thread that appends: it takes what waits, writes it as one synced batch, then answers all of it.
//!
//! Group commit by nature: while a batch syncs the next one gathers. A failed write ends accepting for good: the
//! records may or may not be on the disk, and a later success would prove nothing about them. A failed read costs only
//! whoever asked.

use std::{sync::Arc, time::Instant};

use prost::bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{
    files::LogFile,
    frame::{Checkpoint, Encoder, Header, RECORD},
    index::Place,
    names::Names,
    shared::{Segment, Shared, create, failed, file_name},
};
use crate::{
    kv::KvError,
    queue::{Appended, Fingerprint, QueueError, Record, dedup::Name, dedup::Seen},
    snowflake::Snowflake,
};

/// Appends one sync may carry: enough that the sync is amortised, small enough that the first of them does not wait for
/// long.
const BATCH: usize = 512;

/// What is asked about a record.
pub(super) enum Wanted {
    /// That it be entered; as it is written, but for its id.
    Append(Bytes),
    /// Whether it was.
    Recall,
}

/// Whoever waits hears what was accepted; None: nothing was, and nothing was asked to be.
pub(super) type Reply = Result<Option<Appended>, QueueError>;

/// What waits for the writer, and who waits for it.
pub(super) struct Ask {
    pub(super) record: Record,
    pub(super) wanted: Wanted,
    /// Computed by the caller, like the next two: hashing is not the writer's time.
    pub(super) fingerprint: Fingerprint,
    pub(super) name: Name,
    pub(super) partition: u16,
    pub(super) answer: oneshot::Sender<Reply>,
    pub(super) asked: Instant,
}

/// The segment that is written to.
pub(super) struct Active {
    pub(super) number: u64,
    pub(super) file: Arc<dyn LogFile>,
    pub(super) seed: u64,
    /// Where the next batch goes.
    pub(super) at: u64,
    pub(super) records: u64,
}

/// The writer's own state.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) names: Names,
    pub(super) snowflake: Snowflake,
    pub(super) node: u16,
    /// Where the log stands; `latest_ms` never goes back with the clock, so neither do dedup windows.
    pub(super) checkpoint: Checkpoint,
    pub(super) active: Active,
    pub(super) next_batch: u64,
    pub(super) encoder: Encoder,
    /// Asks that were refused since a dedup row could not be read.
    pub(super) unreadable: u64,
}

type Answer = (oneshot::Sender<Reply>, Instant, Reply);

/// What a batch adds to the index once it is durable: a partition, where in the batch, and the record.
type Entered = (u16, usize, u32, Arc<Record>);

impl Writer {
    /// Until every sender is gone.
    pub(super) fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        let mut batch = Vec::with_capacity(BATCH);
        while asks.blocking_recv_many(&mut batch, BATCH) > 0 {
            self.shared.take_up(batch.first().map(|ask| ask.asked));
            for (answer, asked, result) in self.answer(&mut batch) {
                self.shared.metrics.append.record(asked.elapsed().as_secs_f64());
                // A caller that stopped waiting is no error: the message is durable all the same.
                let _ = answer.send(result);
            }
            self.shared.take_up(None);
        }
        self.note_trimmed();
    }

    /// Answers everything, once what must be durable is.
    pub(super) fn answer(&mut self, asks: &mut Vec<Ask>) -> Vec<Answer> {
        self.make_room(asks.len());
        if let Some(reason) = self.shared.failed() {
            return fail(asks.drain(..).map(|ask| (ask.answer, ask.asked)), &reason);
        }
        let mut answers = Vec::with_capacity(asks.len());
        match self.enter(asks, &mut answers) {
            Ok(()) => answers,
            // Answers of asks that were not reached are dropped with them and read as `QueueError::Closed`.
            Err(error) => {
                let reason = self.shared.fail(&error);
                fail(answers.into_iter().map(|(answer, asked, _)| (answer, asked)), &reason)
            }
        }
    }

    /// Waits for the folder while there are too many names in memory.
    fn make_room(&mut self, coming: usize) {
        let most = self.shared.limits.recent_names;
        let mut segments = self.shared.segments();
        if let Some(active) = segments.list.back_mut() {
            active.bytes = self.active.at;
        }
        self.shared.measure(&segments);
        loop {
            if !segments.forget.is_empty() {
                self.names.folded(std::mem::take(&mut segments.forget));
            }
            let more = self.names.forget_some();
            if self.names.recent() + coming <= most {
                break;
            }
            if more || !segments.forget.is_empty() {
                continue;
            }
            if segments.closing || segments.unfolded().is_none() || self.shared.failed().is_some() {
                break;
            }
            segments = self.shared.wait(segments);
        }
        drop(segments);
        self.shared.metrics.recent_names.set(self.names.recent() as f64);
    }

    fn enter(&mut self, asks: &mut Vec<Ask>, answers: &mut Vec<Answer>) -> Result<(), QueueError> {
        let limits = self.shared.limits;
        if self.active.at >= limits.segment_bytes || self.active.records >= limits.segment_records {
            self.roll()?;
        }
        self.encoder.begin();
        let mut entered = Vec::with_capacity(asks.len());
        for Ask { record, wanted, fingerprint, name, partition, answer, asked } in asks.drain(..) {
            let result = self.decide(record, wanted, fingerprint, name, partition, &mut entered);
            answers.push((answer, asked, result));
        }
        if entered.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let at = self.write()?;
        self.shared.metrics.sync.record(begun.elapsed().as_secs_f64());
        self.shared.metrics.batches.increment(1);
        self.active.records += entered.len() as u64;
        self.show(at, entered);
        Ok(())
    }

    /// One ask's answer, and what must be written before it is given.
    fn decide(
        &mut self,
        mut record: Record,
        wanted: Wanted,
        fingerprint: Fingerprint,
        name: Name,
        partition: u16,
        entered: &mut Vec<Entered>,
    ) -> Reply {
        let latest = &mut self.checkpoint.latest_ms;
        *latest = record.at_ms.max(*latest);
        let seen = match self.names.find(&name, *latest) {
            Ok(seen) => seen,
            Err(error) => return Err(self.unreadable(error)),
        };
        let payload = match (seen, wanted) {
            (Some(seen), _) => return seen.answer(record.conversation_id, fingerprint).map(Some),
            (None, Wanted::Recall) => return Ok(None),
            (None, Wanted::Append(payload)) => payload,
        };
        record.message_id = self.snowflake.next(record.at_ms);
        self.checkpoint.highest_id = record.message_id;
        let head = &mut self.checkpoint.heads[usize::from(partition)];
        *head += 1;
        let seen = Seen {
            partition,
            offset: *head,
            message_id: record.message_id,
            conversation_id: record.conversation_id,
            at_ms: record.at_ms,
            fingerprint,
            noted_ms: *latest,
        };
        let at = self.encoder.record(&name, &seen, &payload);
        let length = u32::try_from(RECORD + payload.len()).expect("a body has 32 KiB at most");
        entered.push((partition, at, length, Arc::new(record)));
        self.names.enter(name, seen);
        Ok(Some(seen.appended(false)))
    }

    /// A name that cannot be looked up is refused, since it may have been accepted before: it alone, nothing was entered.
    fn unreadable(&mut self, error: KvError) -> QueueError {
        self.unreadable += 1;
        // Each doubling, so that a client that goes on trying does not fill the log.
        if self.unreadable.is_power_of_two() {
            tracing::error!(%error, refused = self.unreadable, "dedup rows cannot be read: messages under names that may be in them are refused; restore the data directory from a backup");
        }
        error.into()
    }

    /// Writes the batch that was encoded; where it is.
    fn write(&mut self) -> Result<u64, QueueError> {
        let Active { number, file, seed, at, .. } = &mut self.active;
        let bytes = self.encoder.finish(self.next_batch, *seed);
        let place = *at;
        file.write_at(bytes, place).map_err(|error| failed("write", &file_name(*number), &error))?;
        file.sync().map_err(|error| failed("sync", &file_name(*number), &error))?;
        *at += bytes.len() as u64;
        self.next_batch += 1;
        Ok(place)
    }

    /// What is durable is there to be read.
    fn show(&self, batch: u64, entered: Vec<Entered>) {
        let segment = self.active.number;
        let mut index = self.shared.index();
        for (partition, at, length, record) in entered {
            let place = Place { segment, at: batch + at as u64, length };
            index.push(partition, place, Some(record));
        }
        drop(index);
        let shown = &self.checkpoint.heads[..usize::from(self.shared.partitions)];
        self.shared.heads().copy_from_slice(shown);
        self.shared.moved.notify_waiters();
    }

    /// Begins the next segment; the folder may have this one.
    fn roll(&mut self) -> Result<(), QueueError> {
        let header = self.header();
        let next = create(&*self.shared.files, &header)?;
        let active = Active::new(&next, header.seed);
        let mut segments = self.shared.segments();
        let heads = self.checkpoint.heads.clone();
        if let Some(last) = segments.list.back_mut() {
            (last.sealed, last.bytes) = (Some(heads), self.active.at);
        }
        segments.list.push_back(next);
        self.shared.changed.notify_all();
        drop(segments);
        self.active = active;
        Ok(())
    }

    /// Of the next segment.
    fn header(&self) -> Header {
        let trimmed = self.shared.index().trimmed();
        let folded = self.shared.segments().folded;
        Header {
            number: self.active.number + 1,
            partitions: self.shared.partitions.into(),
            node: self.node.into(),
            seed: rand::random(),
            first_batch: self.next_batch,
            checkpoint: Checkpoint { trimmed, folded, ..self.checkpoint.clone() },
        }
    }

    /// The last words of a clean end: what is trimmed need not be counted as waiting after the next start.
    pub(super) fn note_trimmed(&mut self) {
        if self.shared.failed().is_some() {
            return;
        }
        let trimmed = self.shared.index().trimmed();
        let Active { file, seed, at, .. } = &self.active;
        let bytes = self.encoder.trimmed(&trimmed, self.next_batch, *seed);
        if let Err(error) = file.write_at(bytes, *at).and_then(|()| file.sync()) {
            tracing::warn!(%error, "the ingest log could not be ended: the next start finds records it had trimmed, and trims them again");
        }
    }
}

impl Active {
    pub(super) fn new(segment: &Segment, seed: u64) -> Self {
        Self { number: segment.number, file: segment.file.clone(), seed, at: segment.bytes, records: 0 }
    }
}

fn fail(waiting: impl Iterator<Item = (oneshot::Sender<Reply>, Instant)>, reason: &str) -> Vec<Answer> {
    waiting.map(|(answer, asked)| (answer, asked, Err(QueueError::Failed(reason.to_owned())))).collect()
}
