//! What the writer, the folder and whoever reads or trims know of each other.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use super::{
    files::{Files, LogFile},
    frame::Header,
    index::Index,
};
use crate::{ingest::ACK_DEADLINE, metrics::QueueMetrics, queue::QueueError, queue::dedup::Name};

/// How much of what the log keeps, and where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// A segment of this many bytes, or records, is followed by another. Both bound what folding reads at once, and how
    /// much of the log waits for its oldest record.
    pub(super) segment_bytes: u64,
    pub(super) segment_records: u64,
    /// Names in memory, at some 100 bytes each, above which the writer waits for the folder: seven segments' worth, and
    /// as many as a table of 2^20 slots takes.
    pub(super) recent_names: usize,
    /// Bytes of records that are kept ready for commit, which is rarely a second behind.
    pub(super) ready_bytes: usize,
    /// Of each of the filter's two windows, 64 bytes each: 16 MiB. With 13 million names in a day 1 in 100 new names asks
    /// the rows in vain, with 50 million 1 in 3, and without an end every name does, as if there were no filter.
    pub(super) filter_blocks: usize,
}

impl Limits {
    pub(super) const DEFAULT: Self = Self {
        segment_bytes: 32 * 1024 * 1024,
        segment_records: 128 * 1024,
        recent_names: 7 * 128 * 1024,
        ready_bytes: 32 * 1024 * 1024,
        filter_blocks: 1 << 18,
    };
}

/// A segment of the log.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) file: Arc<dyn LogFile>,
    pub(super) bytes: u64,
    /// The newest offset of each partition at its end, once nothing is written to it any more.
    pub(super) sealed: Option<Vec<u64>>,
}

/// The segments there are, oldest first.
pub(super) struct Segments {
    pub(super) list: VecDeque<Segment>,
    /// The names of segments up to this number are durable rows.
    pub(super) folded: u64,
    /// Names that have rows now, and the message each had: the writer need not know them any more.
    pub(super) forget: Vec<(Name, u64)>,
    /// The folder is to end.
    pub(super) closing: bool,
}

impl Segments {
    /// The one of this number, if it is there: they count on without a gap.
    pub(super) fn get(&self, number: u64) -> Option<&Segment> {
        let first = self.list.front()?.number;
        self.list.get(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    /// The next one to fold.
    pub(super) fn unfolded(&self) -> Option<&Segment> {
        self.list.iter().find(|segment| segment.number > self.folded && segment.sealed.is_some())
    }

    /// The oldest, if nobody needs it any more.
    pub(super) fn removable(&self, trimmed: &[u64]) -> Option<&Segment> {
        self.list.front().filter(|oldest| {
            let ends = oldest.sealed.as_ref();
            oldest.number <= self.folded
                && ends.is_some_and(|ends| ends.iter().zip(trimmed).all(|(end, mark)| end <= mark))
        })
    }
}

/// Shared by all of them.
pub(super) struct Shared {
    pub(super) files: Arc<dyn Files>,
    pub(super) limits: Limits,
    pub(super) metrics: QueueMetrics,
    pub(super) moved: Notify,
    pub(super) partitions: u16,
    /// Told of every change of the segments, of a trim, and of a failure.
    pub(super) changed: Condvar,
    heads: Mutex<Vec<u64>>,
    failed: Mutex<Option<String>>,
    /// When the oldest was asked of what the writer has taken up and not answered.
    taken_up: Mutex<Option<Instant>>,
    index: Mutex<Index>,
    segments: Mutex<Segments>,
}

impl Shared {
    pub(super) fn new(
        files: Arc<dyn Files>,
        limits: Limits,
        metrics: QueueMetrics,
        partitions: u16,
        heads: &[u64],
        index: Index,
        segments: Segments,
    ) -> Self {
        Self {
            files,
            limits,
            metrics,
            moved: Notify::new(),
            partitions,
            changed: Condvar::new(),
            heads: Mutex::new(heads[..usize::from(partitions)].to_vec()),
            failed: Mutex::default(),
            taken_up: Mutex::default(),
            index: Mutex::new(index),
            segments: Mutex::new(segments),
        }
    }

    pub(super) fn heads(&self) -> MutexGuard<'_, Vec<u64>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index may be taken while this is held, never the other way around.
    pub(super) fn segments(&self) -> MutexGuard<'_, Segments> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait<'s>(&self, segments: MutexGuard<'s, Segments>) -> MutexGuard<'s, Segments> {
        self.changed.wait(segments).unwrap_or_else(PoisonError::into_inner)
    }

    /// Why nothing is accepted any more, if so.
    pub(super) fn failed(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The writer takes up what was asked then, or has answered all.
    pub(super) fn take_up(&self, oldest: Option<Instant>) {
        *self.taken_up.lock().unwrap_or_else(PoisonError::into_inner) = oldest;
    }

    /// Says so, if the writer does not come to an answer: the disk hangs, or the folder is behind.
    pub(super) fn stuck(&self, now: Instant) -> Option<String> {
        let oldest = (*self.taken_up.lock().unwrap_or_else(PoisonError::into_inner))?;
        let waited = now.saturating_duration_since(oldest);
        (waited > ACK_DEADLINE).then(|| {
            format!("a message has waited for {} s to be written; is the disk alive?", waited.as_secs())
        })
    }

    /// Ends accepting for good.
    pub(super) fn fail(&self, error: &QueueError) -> String {
        let reason = error.to_string();
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.is_none() {
            tracing::error!(%error, "the ingest queue accepts nothing more until its disk is repaired and this process restarts");
        }
        let reason = failed.get_or_insert(reason).clone();
        drop(failed);
        // Under its lock, so that nobody who is about to wait misses it.
        let _segments = self.segments();
        self.changed.notify_all();
        reason
    }

    /// Shows how much there is.
    pub(super) fn measure(&self, segments: &Segments) {
        self.metrics.segments.set(segments.list.len() as f64);
        self.metrics.bytes.set(segments.list.iter().map(|segment| segment.bytes).sum::<u64>() as f64);
    }
}

/// The file of a segment.
pub(super) fn file_name(number: u64) -> String {
    format!("{number:020}{SUFFIX}")
}

/// What the names of segments end with.
pub(super) const SUFFIX: &str = ".log";

/// What a segment's name ends with until its header is durable: what has the other name is never without.
pub(super) const FRESH: &str = ".new";

/// Makes the file of a segment, durable with its name.
pub(super) fn create(files: &dyn Files, header: &Header) -> Result<Segment, QueueError> {
    let name = file_name(header.number);
    let fresh = format!("{name}{FRESH}");
    let bytes = header.encode();
    let make = || {
        let file = files.create(&fresh)?;
        file.write_at(&bytes, 0)?;
        file.sync()?;
        files.rename(&fresh, &name)?;
        files.sync()?;
        Ok(file)
    };
    let file = make().map_err(|error| failed("make", &name, &error))?;
    Ok(Segment { number: header.number, file, bytes: bytes.len() as u64, sealed: None })
}

/// A file call failed.
pub(super) fn failed(action: &'static str, file: &str, error: &std::io::Error) -> QueueError {
    QueueError::File { action, file: file.to_owned(), detail: error.to_string() }
}
