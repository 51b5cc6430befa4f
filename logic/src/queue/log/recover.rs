//! What the log holds when it is opened: every segment is read, and what cannot be is told from what was never answered.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    files::{self, Files, LogFile},
    frame::{self, Batch, Checkpoint, Content, Entry, Header, Problem},
    index::{Index, Place},
    shared::{FRESH, SUFFIX, Segment, failed, file_name},
};
use crate::queue::{
    QueueError,
    dedup::{Name, Seen},
};

/// What was found.
pub(super) struct Recovered {
    pub(super) checkpoint: Checkpoint,
    pub(super) segments: VecDeque<Segment>,
    pub(super) index: Index,
    /// The names of records that may have no durable rows yet, by segment.
    names: Vec<(u64, Vec<(Name, Seen)>)>,
    pub(super) next_segment: u64,
    pub(super) next_batch: u64,
    /// The partition count of the last segment, if there is one.
    pub(super) partitions: Option<u32>,
}

/// Reads the log; `ready_bytes` is the index's.
///
/// # Errors
/// [`QueueError::Damaged`], or when files cannot be read or mended.
pub(super) fn recover(files: &dyn Files, ready_bytes: usize) -> Result<Recovered, QueueError> {
    let numbers = tidy(files)?;
    let mut found = Recovered {
        checkpoint: Checkpoint::default(),
        segments: VecDeque::new(),
        index: Index::new(&[], ready_bytes),
        names: Vec::new(),
        next_segment: 1,
        next_batch: 1,
        partitions: None,
    };
    for number in &numbers {
        found.segment(files, *number, Some(number) == numbers.last())?;
    }
    for (partition, mark) in (0..).zip(&found.checkpoint.trimmed) {
        found.index.trim(partition, *mark);
    }
    Ok(found)
}

/// The numbers of the segments, in order. Half-made ones are removed: nothing was ever written to them.
fn tidy(files: &dyn Files) -> Result<Vec<u64>, QueueError> {
    let names = files.list().map_err(|error| failed("list", "its directory", &error))?;
    for name in names.iter().filter(|name| name.ends_with(&format!("{SUFFIX}{FRESH}"))) {
        files.remove(name).map_err(|error| failed("remove", name, &error))?;
    }
    let number = |name: &String| name.strip_suffix(SUFFIX).and_then(|number| number.parse().ok());
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

impl Recovered {
    fn segment(&mut self, files: &dyn Files, number: u64, last: bool) -> Result<(), QueueError> {
        let name = file_name(number);
        let file = files.open(&name).map_err(|error| failed("open", &name, &error))?;
        let bytes = files::content(&*file).map_err(|error| failed("read", &name, &error))?;
        let damaged = |position: usize, problem: String| QueueError::Damaged {
            file: name.clone(),
            position: position as u64,
            problem,
        };
        let (header, length) = Header::decode(&bytes).map_err(|problem| damaged(0, problem.to_string()))?;
        self.follow(number, &header).map_err(|problem| damaged(0, problem))?;
        self.names.push((number, Vec::new()));
        let mut scan = Scan { bytes: &bytes, at: length, seed: header.seed };
        let mut before = length;
        while let Some((at, batch)) = scan.next_batch() {
            match batch {
                Ok(batch) => self.batch(number, at, &batch).map_err(|problem| damaged(at, problem))?,
                Err(problem) => {
                    let next = frame::find(&bytes[at + 1..], header.seed);
                    if !last || next.is_some() {
                        return Err(damaged(at, problem.to_string()));
                    }
                    tracing::info!(
                        file = name,
                        position = at,
                        bytes = bytes.len() - at,
                        "the last batch of the ingest log was not synced as a whole, so nothing in it was acknowledged; it is cut off"
                    );
                    break;
                }
            }
            before = at;
        }
        if last {
            let whole = &bytes[before..scan.at];
            settle(files, &*file, before, whole).map_err(|error| failed("write", &name, &error))?;
        }
        let sealed = Some(self.checkpoint.heads.clone());
        self.segments.push_back(Segment { number, file, bytes: scan.at as u64, sealed });
        self.next_segment = number + 1;
        Ok(())
    }

    /// Takes over what a segment begins with, which is what those before it came to.
    fn follow(&mut self, number: u64, header: &Header) -> Result<(), String> {
        if header.number != number {
            return Err(format!("it says it is segment {}", header.number));
        }
        let (own, theirs) = (&mut self.checkpoint, &header.checkpoint);
        if self.segments.is_empty() {
            *own = theirs.clone();
            // What came before the first segment there is was trimmed, or it would not be the first.
            own.trimmed.clone_from(&own.heads);
            self.next_batch = header.first_batch;
        } else {
            if self.next_segment != number {
                return Err(format!("{} is missing before it", file_name(self.next_segment)));
            }
            let grown = theirs.heads.get(..own.heads.len()) == Some(&own.heads)
                && theirs.heads[own.heads.len()..].iter().all(|head| *head == 0);
            if header.first_batch != self.next_batch || !grown {
                let batch = self.next_batch;
                return Err(format!("it begins with batch {}, but {batch} is missing", header.first_batch));
            }
            own.heads.clone_from(&theirs.heads);
            own.trimmed.resize(theirs.heads.len(), 0);
            raise(&mut own.trimmed, &theirs.trimmed);
            own.highest_id = own.highest_id.max(theirs.highest_id);
            own.latest_ms = own.latest_ms.max(theirs.latest_ms);
            own.folded = own.folded.max(theirs.folded);
        }
        // They have rows: a log that waits for one partition is long, and not all of it need be in memory at once.
        let folded = own.folded;
        self.names.retain(|(segment, _)| *segment > folded);
        self.index.grow(&own.trimmed);
        self.partitions = Some(header.partitions);
        Ok(())
    }

    fn batch(&mut self, segment: u64, at: usize, batch: &Batch<'_>) -> Result<(), String> {
        if batch.number != self.next_batch {
            return Err(format!("batch {} is there, {} should be", batch.number, self.next_batch));
        }
        self.next_batch += 1;
        match &batch.content {
            Content::Records(entries) => entries.iter().try_for_each(|entry| self.entry(segment, at, entry)),
            Content::Trimmed(marks) => {
                raise(&mut self.checkpoint.trimmed, marks);
                Ok(())
            }
        }
    }

    fn entry(&mut self, segment: u64, batch: usize, entry: &Entry<'_>) -> Result<(), String> {
        let Seen { partition, offset, message_id, noted_ms, .. } = entry.seen;
        let head = self.checkpoint.heads.get_mut(usize::from(partition));
        let head = head.ok_or_else(|| format!("a record is of partition {partition}, which is not there"))?;
        if offset != *head + 1 {
            return Err(format!("record {offset} of partition {partition} follows record {head}"));
        }
        *head = offset;
        let length = u32::try_from(frame::RECORD + entry.payload.len()).expect("64 MiB at most");
        self.index.push(partition, Place { segment, at: (batch + entry.at) as u64, length }, None);
        self.checkpoint.highest_id = self.checkpoint.highest_id.max(message_id);
        self.checkpoint.latest_ms = self.checkpoint.latest_ms.max(noted_ms);
        if let Some((_, names)) = self.names.last_mut() {
            names.push((entry.name, entry.seen));
        }
        Ok(())
    }
}

impl Recovered {
    /// Names that may have no durable rows yet; of two messages under one, the later.
    pub(super) fn recent(&mut self) -> HashMap<Name, Seen> {
        std::mem::take(&mut self.names).into_iter().flat_map(|(_, names)| names).collect()
    }
}

/// Cuts off what is not whole, and writes the last whole batch once more: should its sync have failed, the kernel may
/// show it and never write it, and it is about to be relied on.
fn settle(files: &dyn Files, file: &dyn LogFile, at: usize, batch: &[u8]) -> std::io::Result<()> {
    file.set_length((at + batch.len()) as u64)?;
    file.write_at(batch, at as u64)?;
    file.sync()?;
    files.sync()
}

fn raise(marks: &mut [u64], to: &[u64]) {
    for (mark, to) in marks.iter_mut().zip(to) {
        *mark = (*mark).max(*to);
    }
}

/// Batch after batch of a segment.
struct Scan<'a> {
    bytes: &'a [u8],
    /// Where the whole ones end.
    at: usize,
    seed: u64,
}

impl<'a> Scan<'a> {
    fn next_batch(&mut self) -> Option<(usize, Result<Batch<'a>, Problem>)> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let at = self.at;
        let batch = frame::batch(rest, self.seed);
        if let Ok(batch) = &batch {
            self.at += batch.length;
        }
        Some((at, batch))
    }
}

/// The names of a segment's records, and what was accepted under them.
///
/// # Errors
/// [`QueueError::Damaged`], or when it cannot be read.
pub(super) fn names(number: u64, file: &Arc<dyn LogFile>) -> Result<Vec<(Name, Seen)>, QueueError> {
    let name = file_name(number);
    let bytes = files::content(&**file).map_err(|error| failed("read", &name, &error))?;
    let damaged = |position: usize, problem: Problem| QueueError::Damaged {
        file: name.clone(),
        position: position as u64,
        problem: problem.to_string(),
    };
    let (header, length) = Header::decode(&bytes).map_err(|problem| damaged(0, problem))?;
    let mut scan = Scan { bytes: &bytes, at: length, seed: header.seed };
    let mut names = Vec::new();
    while let Some((at, batch)) = scan.next_batch() {
        if let Content::Records(entries) = batch.map_err(|problem| damaged(at, problem))?.content {
            names.extend(entries.into_iter().map(|entry| (entry.name, entry.seen)));
        }
    }
    Ok(names)
}
