//! A worker's connections by slot and generation: a slot is used again under the next generation.

/// What is in the table, by slot. An idle slot costs 16 bytes, a connection its own box.
#[derive(Debug)]
pub(crate) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    limit: u32,
    len: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    entry: Option<Box<T>>,
}

/// A place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl<T> Table<T> {
    /// An empty table for at most `limit` entries.
    pub(crate) fn new(limit: u32) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), limit, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The place the next [`Table::insert`] will take; none when the table is full.
    pub(crate) fn vacant(&mut self) -> Option<Place> {
        if self.free.is_empty() {
            let slot = u32::try_from(self.slots.len()).ok().filter(|slot| *slot < self.limit)?;
            self.slots.push(Slot { generation: 0, entry: None });
            self.free.push(slot);
        }
        let slot = *self.free.last()?;
        Some(Place { slot, generation: self.slots[slot as usize].generation })
    }

    /// Fills the place that [`Table::vacant`] gave.
    pub(crate) fn insert(&mut self, place: Place, entry: Box<T>) {
        let slot = self.free.pop();
        debug_assert_eq!(slot, Some(place.slot), "insert follows vacant");
        self.slots[place.slot as usize].entry = Some(entry);
        self.len += 1;
    }

    /// Who is at the place, if anybody.
    pub(crate) fn get(&self, place: Place) -> Option<&T> {
        let slot = self.slots.get(place.slot as usize)?;
        slot.entry.as_deref().filter(|_| slot.generation == place.generation)
    }

    /// Lends the entry out, so that the table's owner can work on it and on itself; [`Table::put_back`] or
    /// [`Table::remove`] follows. None when the place is empty or of another generation.
    pub(crate) fn take(&mut self, place: Place) -> Option<Box<T>> {
        self.slots
            .get_mut(place.slot as usize)
            .filter(|slot| slot.generation == place.generation)?
            .entry
            .take()
    }

    /// The entry, where it is.
    pub(crate) fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        let slot =
            self.slots.get_mut(place.slot as usize).filter(|slot| slot.generation == place.generation)?;
        slot.entry.as_deref_mut()
    }

    pub(crate) fn put_back(&mut self, place: Place, entry: Box<T>) {
        self.slots[place.slot as usize].entry = Some(entry);
    }

    /// Frees a place whose entry was taken.
    pub(crate) fn remove(&mut self, place: Place) {
        let slot = &mut self.slots[place.slot as usize];
        debug_assert!(
            slot.entry.is_none() && slot.generation == place.generation,
            "removed once, after take"
        );
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(place.slot);
        self.len -= 1;
    }

    /// Who is in the table, by slot, with the entry.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Place, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let place = Place { slot: u32::try_from(index).ok()?, generation: slot.generation };
            Some((place, slot.entry.as_deref()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_place_finds_nobody() {
        let mut table = Table::new(10);
        let first = table.vacant().expect("room");
        table.insert(first, Box::new("a"));
        assert_eq!(table.take(first).as_deref(), Some(&"a"));
        table.remove(first);
        let second = table.vacant().expect("room");
        table.insert(second, Box::new("b"));
        assert_eq!((second.slot, table.len()), (first.slot, 1));
        assert!(table.take(first).is_none());
        assert_eq!(table.iter().map(|(place, _)| place).collect::<Vec<_>>(), [second]);
    }

    #[test]
    fn it_is_bounded() {
        let mut table = Table::new(2);
        for _ in 0..2 {
            let place = table.vacant().expect("room");
            table.insert(place, Box::new(()));
        }
        assert_eq!(table.vacant(), None);
    }
}
