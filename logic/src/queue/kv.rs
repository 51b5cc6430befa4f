//! The queue over an ordered key-value engine: `embedded` on fjall, `memory` on maps.

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use async_trait::async_trait;
use prost::{Message, bytes::Bytes};
use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    Pending, Poison, Queue, QueueError, Record, Stored,
    dedup::{self, DEDUP, Purged},
    fingerprint, partition_of,
    writer::{Ask, Shown, Writer},
};
use crate::{
    kv::{Batch, Direction, Durability, Key, Kv, KvError, Space, View, last_number},
    metrics::QueueMetrics,
    snowflake::{self, Snowflake},
};

/// The space of records and of the queue's own facts.
pub(super) const LOG: Space = Space(0);

/// Key of the highest message id given.
pub(super) const HIGHEST_ID: &[u8] = b"i";

const PARTITIONS: &[u8] = b"c";

/// Appends that may wait for the writer. At 32 KiB a body this is 128 MiB at worst, and a second's work at least.
const WAITING: usize = 4096;

/// Records one trim removes in a batch, so that the writer waits for it for milliseconds at most.
const TRIM_STEP: u64 = 4096;

/// Bytes of records one read returns before it stops.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// A queue over a [`Kv`] with the spaces of [`KvQueue::SPACES`].
pub struct KvQueue {
    kv: Mutex<Option<Arc<dyn Kv>>>,
    partitions: u16,
    asks: Mutex<Option<mpsc::Sender<Ask>>>,
    shown: Arc<Shown>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// The lowest offset that may still be there, by partition.
    tails: tokio::sync::Mutex<Vec<u64>>,
    purged: Mutex<Purged>,
}

impl KvQueue {
    /// The spaces it needs, in order.
    pub const SPACES: [&'static str; 2] = ["log", "dedup"];

    /// Opens what the engine holds, or begins anew; `node` goes into message ids.
    ///
    /// # Errors
    /// [`QueueError::Partitions`] when another count is stored and records remain; or when the engine fails.
    pub fn open(
        kv: Arc<dyn Kv>,
        partitions: u16,
        node: u16,
        metrics: QueueMetrics,
    ) -> Result<Self, QueueError> {
        let (heads, tails, highest) = {
            let view = kv.view();
            check_partitions(&*view, partitions)?;
            let heads =
                (0..partitions).map(|p| number(&*view, &head_key(p))).collect::<Result<Vec<_>, _>>()?;
            let tails = (0..partitions)
                .zip(&heads)
                .map(|(partition, head)| first_offset(&*view, partition, *head))
                .collect::<Result<Vec<_>, _>>()?;
            (heads, tails, number(&*view, HIGHEST_ID)?)
        };
        let mut batch = Batch::default();
        batch.put(LOG, PARTITIONS, u64::from(partitions).to_be_bytes().to_vec());
        kv.write(batch, Durability::Synced)?;

        let shown = Arc::new(Shown {
            heads: Mutex::new(heads.clone()),
            moved: Notify::new(),
            failed: Mutex::default(),
        });
        let (asks, waiting) = mpsc::channel(WAITING);
        let writer = Writer {
            kv: kv.clone(),
            shown: shown.clone(),
            metrics,
            snowflake: Snowflake::above(node, highest),
            heads,
            // Dedup windows do not go back with the clock across a restart either.
            latest_ms: snowflake::time_ms(highest),
        };
        let writer = std::thread::Builder::new()
            .name("queue-writer".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(|error| KvError { action: "start its writer thread", detail: error.to_string() })?;
        Ok(Self {
            kv: Mutex::new(Some(kv)),
            partitions,
            asks: Mutex::new(Some(asks)),
            shown,
            writer: Mutex::new(Some(writer)),
            tails: tokio::sync::Mutex::new(tails),
            purged: Mutex::default(),
        })
    }

    fn kv(&self) -> Result<Arc<dyn Kv>, QueueError> {
        self.kv.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(QueueError::Closed)
    }
}

#[async_trait]
impl Queue for KvQueue {
    fn partitions(&self) -> u16 {
        self.partitions
    }

    fn append(&self, record: Record) -> Result<Pending, QueueError> {
        let (answer, answered) = oneshot::channel();
        let ask = Ask {
            fingerprint: fingerprint(&record.r#type, &record.body),
            name: dedup::name(&record),
            partition: partition_of(&record.sender, self.partitions),
            record,
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
        Ok(Box::pin(async move { answered.await.unwrap_or(Err(QueueError::Closed)) }))
    }

    async fn read(&self, partition: u16, after: u64, limit: usize) -> Result<Vec<Stored>, QueueError> {
        let kv = self.kv()?;
        let mut records = Vec::new();
        let mut bytes = 0;
        let (from, to) = (record_key(partition, after + 1), partition_key(partition).after_prefix());
        kv.view().scan(LOG, &from, &to, Direction::Forward, &mut |key, value| {
            records.push(stored(last_number(key), value));
            bytes += value.len();
            if records.len() < limit && bytes < READ_BYTES {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(records)
    }

    fn heads(&self) -> Vec<u64> {
        self.shown.heads()
    }

    async fn wait(&self, marks: &[u64]) {
        loop {
            let mut moved = std::pin::pin!(self.shown.moved.notified());
            // Before looking: a move between looking and waiting must wake us.
            moved.as_mut().enable();
            if self.shown.heads().iter().zip(marks).any(|(head, mark)| head > mark) {
                return;
            }
            moved.await;
        }
    }

    async fn trim(&self, partition: u16, through: u64) -> Result<(), QueueError> {
        let kv = self.kv()?;
        let mut tails = self.tails.lock().await;
        let tail = &mut tails[usize::from(partition)];
        while *tail <= through {
            let last = through.min(*tail + TRIM_STEP - 1);
            let mut batch = Batch::default();
            for offset in *tail..=last {
                batch.remove(LOG, record_key(partition, offset));
            }
            kv.write(batch, Durability::Buffered)?;
            *tail = last + 1;
        }
        Ok(())
    }

    async fn purge(&self, now_ms: i64, limit: usize) -> Result<usize, QueueError> {
        let kv = self.kv()?;
        let mut purged = self.purged.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = dedup::expired(&*kv.view(), now_ms, limit, &mut purged)?;
        let gone = keys.len();
        let mut batch = Batch::default();
        for key in keys {
            batch.remove(DEDUP, key);
        }
        kv.write(batch, Durability::Buffered)?;
        Ok(gone)
    }

    fn health(&self) -> Result<(), String> {
        if let Some(reason) = self.shown.failed() {
            return Err(format!("the ingest queue stopped accepting: {reason}"));
        }
        match &*self.asks.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(asks) if asks.is_closed() => {
                Err("the ingest queue's writer thread ended; restart this process".to_owned())
            }
            _ => Ok(()),
        }
    }

    async fn close(&self) {
        drop(self.asks.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let joined = tokio::task::spawn_blocking(|| writer.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the queue's writer thread had panicked");
            }
        }
        drop(self.kv.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// A queue that is dropped unclosed (a crash, in tests) still lets its thread end: the channel closes with it.
impl Drop for KvQueue {
    fn drop(&mut self) {
        drop(self.asks.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(writer) = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take()
            && writer.join().is_err()
        {
            tracing::error!("the queue's writer thread had panicked");
        }
    }
}

fn partition_key(partition: u16) -> Key {
    Key::new(b'l').tail(&partition.to_be_bytes())
}

/// The key of a record.
pub(super) fn record_key(partition: u16, offset: u64) -> Vec<u8> {
    partition_key(partition).number(offset).into()
}

/// The key of a partition's newest offset.
pub(super) fn head_key(partition: u16) -> Vec<u8> {
    Key::new(b'h').tail(&partition.to_be_bytes()).into()
}

fn number(view: &dyn View, key: &[u8]) -> Result<u64, KvError> {
    Ok(view.get(LOG, key)?.map_or(0, |value| last_number(&value)))
}

fn first_offset(view: &dyn View, partition: u16, head: u64) -> Result<u64, KvError> {
    let prefix = partition_key(partition);
    let mut first = head + 1;
    view.scan(LOG, prefix.bytes(), &prefix.after_prefix(), Direction::Forward, &mut |key, _| {
        first = last_number(key);
        ControlFlow::Break(())
    })?;
    Ok(first)
}

/// Another count moves senders to other partitions: only allowed when no record waits in its old one.
fn check_partitions(view: &dyn View, asked: u16) -> Result<(), QueueError> {
    let stored = u16::try_from(number(view, PARTITIONS)?).unwrap_or(0);
    if stored == 0 || stored == asked {
        return Ok(());
    }
    let mut records = 0;
    let log = Key::new(b'l');
    view.scan(LOG, log.bytes(), &log.after_prefix(), Direction::Forward, &mut |_, _| {
        records += 1;
        ControlFlow::Break(())
    })?;
    if records == 0 { Ok(()) } else { Err(QueueError::Partitions { stored, asked }) }
}

fn stored(offset: u64, value: &[u8]) -> Stored {
    let bytes = Bytes::copy_from_slice(value);
    let record = Record::decode(bytes.clone())
        .map_err(|error| error.to_string())
        .and_then(|record| {
            // A torn or foreign record decodes to nonsense that must not reach the store.
            if record.sender.is_empty() || record.conversation_id == 0 {
                return Err("it has no sender or conversation".to_owned());
            }
            Ok(record)
        })
        .map_err(|reason| Poison { bytes, reason });
    Stored { offset, record }
}
