//! Beside the writer: the names of segments that are full become durable rows, segments that nobody needs are removed.

use std::{ops::ControlFlow, sync::Arc};

use super::{
    filter::Filter,
    recover,
    shared::{Segment, Segments, Shared, failed, file_name},
};
use crate::{
    kv::{Batch, Direction, Durability, Kv, KvError},
    queue::{
        QueueError,
        dedup::{self, DEDUP, KEY, Name},
    },
};

/// Rows written in a batch: the engine's other writers, and its readers' caches, have a pause between two.
const ROWS: usize = 4096;

/// Rows that one view of the engine is read for.
const LOADED: usize = 16 * 1024;

pub(super) struct Folder {
    pub(super) shared: Arc<Shared>,
    pub(super) filter: Arc<Filter>,
    pub(super) rows: Arc<dyn Kv>,
}

impl Folder {
    /// Until the queue closes.
    pub(super) fn run(self) {
        loop {
            let mut segments = self.shared.segments();
            while !segments.closing && !self.work(&segments) {
                segments = self.shared.wait(segments);
            }
            if segments.closing {
                return;
            }
            drop(segments);
            if let Err(error) = self.step() {
                // A row that cannot be written is a name that would be forgotten.
                self.shared.fail(&error);
                return;
            }
        }
    }

    fn work(&self, segments: &Segments) -> bool {
        segments.unfolded().is_some() || segments.removable(&self.shared.index().trimmed()).is_some()
    }

    /// Folds one segment and removes all that are done with.
    pub(super) fn step(&self) -> Result<(), QueueError> {
        let next = self.shared.segments().unfolded().cloned();
        if let Some(segment) = next {
            let names = self.fold(&segment)?;
            let mut segments = self.shared.segments();
            segments.folded = segment.number;
            segments.forget.extend(names);
            self.shared.changed.notify_all();
        }
        loop {
            let trimmed = self.shared.index().trimmed();
            let Some(oldest) = self.shared.segments().removable(&trimmed).map(|oldest| oldest.number) else {
                return Ok(());
            };
            self.remove(oldest)?;
        }
    }

    /// One after the other, so that a power cut never leaves a gap.
    fn remove(&self, number: u64) -> Result<(), QueueError> {
        let (files, name) = (&self.shared.files, file_name(number));
        let removed = files.remove(&name).and_then(|()| files.sync());
        removed.map_err(|error| failed("remove", &name, &error))?;
        let mut segments = self.shared.segments();
        segments.list.pop_front();
        self.shared.measure(&segments);
        Ok(())
    }

    /// Makes rows of a segment's names, durable and known to the filter; which those are.
    fn fold(&self, segment: &Segment) -> Result<Vec<(Name, u64)>, QueueError> {
        let names = recover::names(segment.number, &segment.file)?;
        let oldest = self.filter.present().saturating_sub(1);
        // Nothing looks at rows of older windows, and purging is past them.
        let looked_at = names.iter().filter(|(_, seen)| seen.window() >= oldest);
        let mut rows: Vec<_> =
            looked_at.map(|(name, seen)| (dedup::key(seen.window(), name), seen)).collect();
        // Rows that are neighbours in the engine one after the other: each finds its place in the cache.
        rows.sort_unstable_by_key(|(key, _)| *key);
        for some in rows.chunks(ROWS) {
            let mut batch = Batch::default();
            for (key, seen) in some {
                batch.put(DEDUP, *key, seen.row());
            }
            self.rows.write(batch, Durability::Buffered)?;
        }
        if !rows.is_empty() {
            self.rows.sync()?;
        }
        for (name, seen) in &names {
            self.filter.add(seen.window(), name);
        }
        Ok(names.into_iter().map(|(name, seen)| (name, seen.message_id)).collect())
    }

    /// Tells the filter of the rows that are there, until the queue closes.
    pub(super) fn load(self) {
        match self.try_load() {
            Ok(()) => {}
            Err(error) => {
                // The filter says "perhaps" of every name then: the writer asks the rows, and refuses what it cannot tell.
                tracing::warn!(%error, "the dedup rows could not be read through: each new message is looked up in them until a restart");
            }
        }
    }

    pub(super) fn try_load(&self) -> Result<(), KvError> {
        let oldest = self.filter.present().saturating_sub(1);
        let mut from = oldest.to_be_bytes().to_vec();
        let end = [u8::MAX; KEY];
        loop {
            let mut seen = 0;
            let mut last = None;
            self.rows.view().scan(DEDUP, &from, &end, Direction::Forward, &mut |key, _| {
                if let Some((window, name)) = dedup::parts(key) {
                    self.filter.add(window, &name);
                }
                seen += 1;
                if seen < LOADED {
                    return ControlFlow::Continue(());
                }
                last = Some(key.to_vec());
                ControlFlow::Break(())
            })?;
            let Some(mut next) = last else {
                self.filter.loaded();
                return Ok(());
            };
            if self.shared.segments().closing {
                return Ok(());
            }
            // The first key after it.
            next.push(0);
            from = next;
        }
    }
}
