//! Where each record is, by partition and offset; and the newest of them, ready to be read.

use std::{collections::VecDeque, sync::Arc};

use crate::queue::Record;

/// Where a record is in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The number of the segment.
    pub(super) segment: u64,
    /// Where in its file the record begins, its own facts first.
    pub(super) at: u64,
    /// Bytes from there on.
    pub(super) length: u32,
}

/// A record that is not trimmed. What is not ready any more has to be read at its place.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) place: Place,
    pub(super) ready: Option<Arc<Record>>,
}

/// What one record that is ready costs beside its bytes: the struct, its allocations, its slot.
const OVERHEAD: usize = 320;

/// The records of all partitions that are not trimmed: 32 bytes each. How many there can be is bounded by what logic
/// accepts ahead of commit (`Config::most_behind`).
#[derive(Debug)]
pub(super) struct Index {
    partitions: Vec<Partition>,
    /// Those that are ready, oldest first; trimmed ones among them until their turn comes.
    ready: VecDeque<(u16, u64, usize)>,
    bytes: usize,
    most_bytes: usize,
}

#[derive(Debug, Default)]
struct Partition {
    /// The offset of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
}

impl Index {
    /// Of partitions trimmed up to these offsets; at most `most_bytes` of records are kept ready.
    pub(super) fn new(trimmed: &[u64], most_bytes: usize) -> Self {
        let mut index = Self { partitions: Vec::new(), ready: VecDeque::new(), bytes: 0, most_bytes };
        index.grow(trimmed);
        index
    }

    /// Takes in those that it does not have yet of these partitions.
    pub(super) fn grow(&mut self, trimmed: &[u64]) {
        let more = trimmed.iter().skip(self.partitions.len());
        self.partitions.extend(more.map(|mark| Partition { first: mark + 1, slots: VecDeque::new() }));
    }

    /// The next record of a partition.
    pub(super) fn push(&mut self, partition: u16, place: Place, ready: Option<Arc<Record>>) {
        let of = &mut self.partitions[usize::from(partition)];
        if ready.is_some() {
            let bytes = place.length as usize + OVERHEAD;
            self.ready.push_back((partition, of.first + of.slots.len() as u64, bytes));
            self.bytes += bytes;
        }
        of.slots.push_back(Slot { place, ready });
        while self.bytes > self.most_bytes
            && let Some((partition, offset, bytes)) = self.ready.pop_front()
        {
            self.bytes -= bytes;
            let of = &mut self.partitions[usize::from(partition)];
            if let Some(at) = offset.checked_sub(of.first) {
                of.slots[at as usize].ready = None;
            }
        }
    }

    /// At most `limit` records after `after`, with their offsets, until they have `bytes`.
    pub(super) fn after(&self, partition: u16, after: u64, limit: usize, bytes: usize) -> Vec<(u64, Slot)> {
        let of = &self.partitions[usize::from(partition)];
        let from = (after + 1).max(of.first);
        let skip = usize::try_from(from - of.first).unwrap_or(usize::MAX).min(of.slots.len());
        let mut sum = 0;
        (from..)
            .zip(of.slots.range(skip..))
            .take(limit)
            .take_while(|(_, slot)| {
                let before = sum;
                sum += slot.place.length as usize;
                before < bytes
            })
            .map(|(offset, slot)| (offset, slot.clone()))
            .collect()
    }

    /// Takes out the records of a partition up to `through`: dropping them is the caller's time, not that of whoever
    /// waits for the index.
    pub(super) fn trim(&mut self, partition: u16, through: u64) -> VecDeque<Slot> {
        let of = &mut self.partitions[usize::from(partition)];
        let count = (through + 1).saturating_sub(of.first).min(of.slots.len() as u64);
        of.first += count;
        let rest = of.slots.split_off(count as usize);
        std::mem::replace(&mut of.slots, rest)
    }

    /// Up to which offset each partition is trimmed.
    pub(super) fn trimmed(&self) -> Vec<u64> {
        self.partitions.iter().map(|partition| partition.first - 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(at: u64) -> Place {
        Place { segment: 1, at, length: 80 }
    }

    fn offsets(index: &Index, partition: u16, after: u64) -> Vec<(u64, bool)> {
        let found = index.after(partition, after, 100, 1 << 20);
        found.into_iter().map(|(offset, slot)| (offset, slot.ready.is_some())).collect()
    }

    #[test]
    fn only_the_newest_are_ready_whichever_partition_they_are_of() {
        let mut index = Index::new(&[4, 0], 3 * (80 + OVERHEAD));
        for at in 0..4 {
            index.push(at as u16 % 2, place(at), Some(Arc::default()));
        }
        assert_eq!(offsets(&index, 0, 0), [(5, false), (6, true)]);
        assert_eq!(offsets(&index, 1, 1), [(2, true)]);
        let gone = index.trim(1, 1);
        assert_eq!(gone.len(), 1);
        assert_eq!((index.trim(1, 0).len(), index.trimmed()), (0, vec![4, 1]));
        // The trimmed one is still counted until its turn comes: now.
        index.push(0, place(9), Some(Arc::default()));
        assert_eq!(offsets(&index, 0, 5), [(6, true), (7, true)]);
        assert_eq!(index.trim(0, 99).len(), 3);
        assert_eq!(index.trimmed(), [7, 1]);
        index.push(0, place(10), None);
        assert_eq!(offsets(&index, 0, 0), [(8, false)]);
    }

    #[test]
    fn a_read_ends_at_its_limits_and_gives_at_least_one() {
        let mut index = Index::new(&[0], 0);
        (0..9).for_each(|at| index.push(0, place(at), None));
        assert_eq!(index.after(0, 2, 3, 1 << 20).len(), 3);
        assert_eq!(index.after(0, 2, 9, 100).len(), 2, "the second passes the bytes");
        assert_eq!(index.after(0, 8, 9, 1).len(), 1);
        assert!(index.after(0, 9, 9, 1).is_empty());
        assert!(index.after(0, 99, 9, 1).is_empty());
    }
}
