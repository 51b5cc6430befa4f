//! The queue as a log of our own: one sequence of segment files for all partitions, so that one sync serves them all.
//!
//! The writer (`writer`) appends batches (`frame`) to the newest segment. The folder (`folder`) makes durable rows of
//! the names in segments that are full, so that a segment may go once its records are trimmed; until then the names are
//! in memory (`names`), and in the log, from which they come again after an end of any kind (`recover`). Commit reads
//! what was just appended from memory, anything older from its place in a file (`index`).

mod files;
mod filter;
mod folder;
mod frame;
mod index;
mod names;
mod recover;
mod shared;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use async_trait::async_trait;
use prost::{Message, bytes::Bytes};
use tokio::sync::{mpsc, oneshot};

pub use self::files::{Disk, Files, InMemory, LogFile};
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use self::frame::check_segment;
use self::{
    filter::Filter,
    folder::Folder,
    frame::{Checkpoint, Encoder, Header},
    index::{Place, Slot},
    names::Names,
    shared::{Limits, Segments, Shared, create, failed, file_name},
    writer::{Active, Ask, Reply, Wanted, Writer},
};
use super::{
    Pending, Poison, Queue, QueueError, Recalled, Record, Stored,
    dedup::{self, DEDUP, Purged},
    fingerprint, partition_of,
};
use crate::{
    kv::{Batch, Durability, Kv},
    metrics::QueueMetrics,
    snowflake::Snowflake,
};

/// Asks that may wait for the writer. At 32 KiB a body, which each has twice (decoded, and as it is written), this is
/// 256 MiB at worst, and a second's work at least.
const WAITING: usize = 4096;

/// Bytes of records one read returns before it stops.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// A queue over [`Files`] and a [`Kv`] with the spaces of [`LogQueue::SPACES`].
pub struct LogQueue {
    rows: Mutex<Option<Arc<dyn Kv>>>,
    asks: Mutex<Option<mpsc::Sender<Ask>>>,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    purged: Mutex<Purged>,
}

impl LogQueue {
    /// The spaces it needs, in order.
    pub const SPACES: [&'static str; 1] = ["dedup"];

    /// Opens what is there, or begins anew; `node` goes into message ids. Nobody else may have the files open: who
    /// opened `rows` first knows that.
    ///
    /// # Errors
    /// [`QueueError::Partitions`] when another count is stored and records remain; [`QueueError::Damaged`]; or when files
    /// or the engine fail.
    pub fn open(
        files: Arc<dyn Files>,
        rows: Arc<dyn Kv>,
        partitions: u16,
        node: u16,
        metrics: QueueMetrics,
    ) -> Result<Self, QueueError> {
        let parts = Parts::open(files, &rows, partitions, node, metrics, Limits::DEFAULT)?;
        Self::start(parts, rows)
    }

    fn start(parts: Parts, rows: Arc<dyn Kv>) -> Result<Self, QueueError> {
        let Parts { shared, writer, folder, loader } = parts;
        let (asks, waiting) = mpsc::channel(WAITING);
        let queue = Self {
            rows: Mutex::new(Some(rows)),
            asks: Mutex::new(Some(asks)),
            shared,
            threads: Mutex::default(),
            purged: Mutex::default(),
        };
        queue.spawn("queue-writer", move || writer.run(waiting))?;
        queue.spawn("queue-folder", move || folder.run())?;
        queue.spawn("queue-loader", move || loader.load())?;
        Ok(queue)
    }

    fn spawn(&self, name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), QueueError> {
        let watch = Watch { shared: self.shared.clone(), name };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _watch = watch;
            body();
        });
        let thread = thread.map_err(|error| failed("start the thread", name, &error))?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    fn ask(&self, record: Record, wanted: Wanted) -> Result<oneshot::Receiver<Reply>, QueueError> {
        let (answer, answered) = oneshot::channel();
        let ask = Ask {
            fingerprint: fingerprint(&record.r#type, &record.body),
            name: dedup::name(&record),
            partition: partition_of(&record.sender, self.shared.partitions),
            record,
            wanted,
            answer,
            asked: Instant::now(),
        };
        let asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        let asks = asks.as_ref().ok_or(QueueError::Closed)?;
        asks.try_send(ask).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => QueueError::Full(WAITING),
            mpsc::error::TrySendError::Closed(_) => {
                QueueError::Failed("its writer thread ended; restart this process".to_owned())
            }
        })?;
        Ok(answered)
    }

    fn rows(&self) -> Result<Arc<dyn Kv>, QueueError> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(QueueError::Closed)
    }

    /// Has the threads end, once the writer answered what waits.
    fn end(&self) -> Vec<JoinHandle<()>> {
        drop(self.asks.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.shared.segments().closing = true;
        self.shared.changed.notify_all();
        std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Queue for LogQueue {
    fn partitions(&self) -> u16 {
        self.shared.partitions
    }

    fn append(&self, mut record: Record) -> Result<Pending, QueueError> {
        // The id is beside what is written here, where the writer puts it.
        record.message_id = 0;
        let payload = record.encode_to_vec().into();
        // It may stay ready for long, and must not keep the buffer that it was received in.
        record.body = Bytes::copy_from_slice(&record.body);
        let answered = self.ask(record, Wanted::Append(payload))?;
        Ok(Box::pin(async move { answered.await.ok().transpose()?.flatten().ok_or(QueueError::Closed) }))
    }

    fn recall(&self, record: Record) -> Result<Recalled, QueueError> {
        let answered = self.ask(record, Wanted::Recall)?;
        Ok(Box::pin(async move { answered.await.unwrap_or(Err(QueueError::Closed)) }))
    }

    async fn read(&self, partition: u16, after: u64, limit: usize) -> Result<Vec<Stored>, QueueError> {
        self.rows()?;
        let found = self.shared.index().after(partition, after, limit, READ_BYTES);
        found.into_iter().map(|(offset, slot)| self.shared.stored(partition, offset, slot)).collect()
    }

    fn heads(&self) -> Vec<u64> {
        self.shared.heads().clone()
    }

    async fn wait(&self, marks: &[u64]) {
        loop {
            let mut moved = std::pin::pin!(self.shared.moved.notified());
            // Before looking: a move between looking and waiting must wake us.
            moved.as_mut().enable();
            if self.shared.heads().iter().zip(marks).any(|(head, mark)| head > mark) {
                return;
            }
            moved.await;
        }
    }

    async fn trim(&self, partition: u16, through: u64) -> Result<(), QueueError> {
        self.rows()?;
        let gone = self.shared.index().trim(partition, through);
        if !gone.is_empty() {
            drop(gone);
            // Under its lock, so that a folder that is about to wait does not miss it.
            let _segments = self.shared.segments();
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    async fn purge(&self, now_ms: i64, limit: usize) -> Result<usize, QueueError> {
        let rows = self.rows()?;
        let mut purged = self.purged.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = dedup::expired(&*rows.view(), now_ms, limit, &mut purged)?;
        let gone = keys.len();
        let mut batch = Batch::default();
        for key in keys {
            batch.remove(DEDUP, key);
        }
        rows.write(batch, Durability::Buffered)?;
        Ok(gone)
    }

    fn health(&self) -> Result<(), String> {
        if let Some(reason) = self.shared.failed() {
            return Err(format!("the ingest queue stopped accepting: {reason}"));
        }
        if let Some(stuck) = self.shared.stuck(Instant::now()) {
            return Err(stuck);
        }
        match &*self.asks.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(asks) if asks.is_closed() => {
                Err("the ingest queue's writer thread ended; restart this process".to_owned())
            }
            _ => Ok(()),
        }
    }

    async fn close(&self) {
        let threads = self.end();
        let joined = tokio::task::spawn_blocking(|| threads.into_iter().for_each(join)).await;
        if joined.is_err() {
            tracing::error!("the queue's threads could not be waited for");
        }
        drop(self.rows.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// A queue that is dropped unclosed (a crash, in tests) still lets its threads end.
impl Drop for LogQueue {
    fn drop(&mut self) {
        self.end().into_iter().for_each(join);
    }
}

/// Has whoever waits for a thread that panicked hear of it.
struct Watch {
    shared: Arc<Shared>,
    name: &'static str,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail(&QueueError::Failed(format!("its thread {} panicked", self.name)));
        }
    }
}

fn join(thread: JoinHandle<()>) {
    let name = thread.thread().name().unwrap_or_default().to_owned();
    if thread.join().is_err() {
        tracing::error!(thread = name, "a thread of the queue had panicked");
    }
}

impl Shared {
    /// A record of the index as its reader wants it.
    fn stored(&self, partition: u16, offset: u64, slot: Slot) -> Result<Stored, QueueError> {
        if let Some(record) = slot.ready {
            return Ok(Stored { offset, record: Ok(Arc::unwrap_or_clone(record)) });
        }
        let (bytes, message_id) = self.payload(partition, offset, slot.place)?;
        let record = Record::decode(bytes.clone())
            .map_err(|error| error.to_string())
            .and_then(|record| {
                // A foreign record decodes to nonsense that must not reach the store.
                if record.sender.is_empty() || record.conversation_id == 0 {
                    return Err("it has no sender or conversation".to_owned());
                }
                Ok(Record { message_id, ..record })
            })
            .map_err(|reason| Poison { bytes, reason });
        Ok(Stored { offset, record })
    }

    fn payload(&self, partition: u16, offset: u64, place: Place) -> Result<(Bytes, u64), QueueError> {
        let file = file_name(place.segment);
        let segment = self.segments().get(place.segment).cloned();
        let segment = segment.ok_or_else(|| QueueError::Failed(format!("{file} is not there any more")))?;
        let mut bytes = vec![0; place.length as usize];
        segment.file.read_at(&mut bytes, place.at).map_err(|error| failed("read", &file, &error))?;
        let entry = frame::entry(&bytes).ok();
        let entry = entry.filter(|entry| (entry.seen.partition, entry.seen.offset) == (partition, offset));
        let entry = entry.ok_or_else(|| QueueError::Damaged {
            file,
            position: place.at,
            problem: format!("record {offset} of partition {partition} is not there any more"),
        })?;
        let message_id = entry.seen.message_id;
        Ok((Bytes::copy_from_slice(entry.payload), message_id))
    }
}

/// A queue taken apart: what runs on threads, for tests without them too.
struct Parts {
    shared: Arc<Shared>,
    writer: Writer,
    folder: Folder,
    /// What tells the filter of the rows that are there.
    loader: Folder,
}

impl Parts {
    fn open(
        files: Arc<dyn Files>,
        rows: &Arc<dyn Kv>,
        partitions: u16,
        node: u16,
        metrics: QueueMetrics,
        limits: Limits,
    ) -> Result<Self, QueueError> {
        let mut found = recover::recover(&*files, limits.ready_bytes)?;
        let recent = found.recent();
        let (mut checkpoint, mut index) = (found.checkpoint, found.index);
        checkpoint.trimmed = index.trimmed();
        check_partitions(found.partitions, partitions, &checkpoint)?;
        // Those of an earlier count stay: a queue must never give an offset again.
        let count = checkpoint.heads.len().max(partitions.into());
        checkpoint.heads.resize(count, 0);
        checkpoint.trimmed.resize(count, 0);
        index.grow(&checkpoint.trimmed);

        let header = Header {
            number: found.next_segment,
            partitions: partitions.into(),
            node: node.into(),
            seed: rand::random(),
            first_batch: found.next_batch,
            checkpoint: checkpoint.clone(),
        };
        let newest = create(&*files, &header)?;
        let active = Active::new(&newest, header.seed);
        let mut list = found.segments;
        list.push_back(newest);
        let segments = Segments { list, folded: checkpoint.folded, forget: Vec::new(), closing: false };
        let heads = checkpoint.heads.clone();
        let shared = Arc::new(Shared::new(files, limits, metrics, partitions, &heads, index, segments));
        let [present, _] = dedup::windows(checkpoint.latest_ms);
        let filter = Arc::new(Filter::new(present, limits.filter_blocks));
        let folder = || Folder { shared: shared.clone(), filter: filter.clone(), rows: rows.clone() };
        Ok(Self {
            writer: Writer {
                names: Names::new(recent, filter.clone(), rows.clone()),
                snowflake: Snowflake::above(node, checkpoint.highest_id),
                node,
                checkpoint,
                active,
                next_batch: found.next_batch,
                encoder: Encoder::default(),
                unreadable: 0,
                shared: shared.clone(),
            },
            folder: folder(),
            loader: folder(),
            shared,
        })
    }
}

/// Another count moves senders to other partitions: only allowed when no record waits in its old one.
fn check_partitions(stored: Option<u32>, asked: u16, checkpoint: &Checkpoint) -> Result<(), QueueError> {
    let stored = stored.map_or(asked, |stored| u16::try_from(stored).unwrap_or(0));
    let done = checkpoint.heads.iter().zip(&checkpoint.trimmed).all(|(head, mark)| head <= mark);
    if stored == asked || done { Ok(()) } else { Err(QueueError::Partitions { stored, asked }) }
}
