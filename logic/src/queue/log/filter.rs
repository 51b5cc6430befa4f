//! Which names may have rows: a lookup of a new name, which nearly all are, then ends in memory.
//!
//! A blocked Bloom filter for each of the two windows that matter. A name sets seven bits in one block of 64 bytes, a
//! cache line. It says "no" only of names that were never added; of others it may say "perhaps", and then the rows are
//! asked, which is all that a wrong "perhaps" costs.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::queue::dedup::Name;

/// Words of a block.
const WORDS: usize = 8;

/// Bits a name sets, 9 bits of the name each.
const BITS: u32 = 7;

/// Filters of the present window and of the one before.
pub(super) struct Filter {
    /// By whether the window's number is even.
    windows: [Box<[AtomicU64]>; 2],
    present: Mutex<u16>,
    loaded: AtomicBool,
}

impl Filter {
    /// An empty one of so many blocks; until it is [loaded](Self::loaded) it says "perhaps" of every name.
    pub(super) fn new(present: u16, blocks: usize) -> Self {
        let window = || vec![0u64; blocks * WORDS].into_iter().map(AtomicU64::new).collect();
        Self { windows: [window(), window()], present: Mutex::new(present), loaded: AtomicBool::new(false) }
    }

    /// Everything that had rows was added.
    pub(super) fn loaded(&self) {
        self.loaded.store(true, Ordering::Release);
    }

    /// The window that time last came to.
    pub(super) fn present(&self) -> u16 {
        *self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time came to this window, before any name was accepted in it: the filter of the window before the last becomes
    /// its own.
    pub(super) fn turn(&self, window: u16) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        for next in (*present..window).map(|before| before + 1).rev().take(2) {
            self.words(next).iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        *present = window.max(*present);
    }

    /// A name has a row in this window, or is about to. Who asks the filter after hearing of it finds it.
    pub(super) fn add(&self, window: u16, name: &Name) {
        for (word, bit) in self.bits(window, name) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Whether a name may have a row in this window, which is the present one or the one before it.
    pub(super) fn may_have(&self, window: u16, name: &Name) -> bool {
        !self.loaded.load(Ordering::Acquire)
            || self.bits(window, name).all(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    fn words(&self, window: u16) -> &[AtomicU64] {
        &self.windows[usize::from(window % 2)]
    }

    fn bits(&self, window: u16, name: &Name) -> impl Iterator<Item = (&AtomicU64, u64)> {
        // A name is a part of a hash: its bytes are as good as random.
        let (block, places) = name.split_at(8);
        let block = u64::from_le_bytes(*block.first_chunk().expect("8 of 16 bytes"));
        let places = u64::from_le_bytes(*places.first_chunk().expect("8 of 16 bytes"));
        let words = self.words(window);
        let first = (block % (words.len() / WORDS) as u64) as usize * WORDS;
        (0..BITS).map(move |n| {
            let place = places >> (9 * n);
            (&words[first + (place >> 6) as usize % WORDS], 1 << (place % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: u64) -> Name {
        *ring::digest::digest(&ring::digest::SHA256, &n.to_le_bytes())
            .as_ref()
            .first_chunk()
            .expect("32 bytes")
    }

    #[test]
    fn what_was_added_is_never_denied_and_little_else_is_affirmed() {
        let filter = Filter::new(7, 1 << 8);
        assert!(filter.may_have(7, &name(1)), "not loaded yet");
        filter.loaded();
        let in_window = |n: u64| 6 + (n % 2) as u16;
        // 12 bits a name, as 11 million names in the 16 MiB of a window have.
        (0..20_000).for_each(|n| filter.add(in_window(n), &name(n)));
        assert!((0..20_000).all(|n| filter.may_have(in_window(n), &name(n))));
        let wrong = (20_000..40_000).filter(|n| filter.may_have(7, &name(*n))).count();
        assert!((1..400).contains(&wrong), "{wrong} of 20,000");
    }

    #[test]
    fn a_window_that_passed_gives_its_place_to_the_next() {
        let filter = Filter::new(7, 4);
        filter.loaded();
        filter.add(6, &name(1));
        filter.add(7, &name(2));
        filter.turn(8);
        assert!(!filter.may_have(8, &name(1)) && filter.may_have(7, &name(2)));
        filter.add(8, &name(3));
        filter.turn(8);
        filter.turn(7);
        assert!(filter.may_have(8, &name(3)), "it turns forward, once");
        filter.turn(20);
        let all = |n| filter.may_have(19, &name(n)) || filter.may_have(20, &name(n));
        assert!(![1, 2, 3].into_iter().any(all));
    }
}
