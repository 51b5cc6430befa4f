//! Rows that a database's one writer read or wrote last, so that it need not look the hot ones up again.

use std::collections::HashMap;

use prost::bytes::Bytes;

use super::Space;

/// Rows of one generation: two are kept, some ten megabytes of rows of the size that the store has.
const ROWS: usize = 16_384;

type Rows = HashMap<Vec<u8>, Option<Bytes>>;

/// Values of keys of some kinds (their first byte) in one space; `None`: there is no such row. True as long as all writes
/// to them go through transactions that know it, one at a time.
#[derive(Debug)]
pub(crate) struct Recent {
    space: Space,
    kinds: &'static [u8],
    newer: Rows,
    older: Rows,
}

impl Recent {
    pub(crate) fn new(space: Space, kinds: &'static [u8]) -> Self {
        Self { space, kinds, newer: Rows::new(), older: Rows::new() }
    }

    /// Whether it keeps rows like this one.
    pub(super) fn keeps(&self, space: Space, key: &[u8]) -> bool {
        space == self.space && key.first().is_some_and(|kind| self.kinds.contains(kind))
    }

    /// The row, if it is known.
    pub(super) fn get(&mut self, key: &[u8]) -> Option<Option<Bytes>> {
        if let Some(value) = self.newer.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.older.remove_entry(key)?;
        self.keep(key, value.clone());
        Some(value)
    }

    /// What a row is now.
    pub(super) fn keep(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        if self.newer.len() >= ROWS {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(key, value);
    }

    /// A row is not known any more: it is about to be written.
    pub(super) fn lose(&mut self, key: &[u8]) {
        self.newer.remove(key);
        self.older.remove(key);
    }

    /// Nothing is known any more: a write failed, and may or may not be there.
    pub(super) fn forget(&mut self) {
        (self.newer, self.older) = (Rows::new(), Rows::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_rows_stay_and_cold_ones_go() {
        let mut recent = Recent::new(Space(2), b"ch");
        assert!(recent.keeps(Space(2), b"c1") && !recent.keeps(Space(1), b"c1"));
        assert!(!recent.keeps(Space(2), b"o1") && !recent.keeps(Space(2), b""));
        recent.keep(b"hot".to_vec(), Some(Bytes::from_static(b"1")));
        recent.keep(b"cold".to_vec(), None);
        for n in 0..3 * ROWS as u64 {
            recent.keep(n.to_be_bytes().to_vec(), None);
            assert!(recent.newer.len() <= ROWS && recent.older.len() <= ROWS);
            if n % 1000 == 0 {
                assert_eq!(recent.get(b"hot"), Some(Some(Bytes::from_static(b"1"))));
            }
        }
        assert_eq!(recent.get(b"cold"), None);
        recent.keep(b"hot".to_vec(), None);
        assert_eq!(recent.get(b"hot"), Some(None), "gone is known, too");
        recent.forget();
        assert_eq!(recent.get(b"hot"), None);
    }
}
