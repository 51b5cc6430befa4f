//! In how many networks each user votes: a fixed table, in which users may share a cell.

use std::sync::atomic::{AtomicU32, Ordering};

use super::LIFETIME_S;

/// Networks that one user's votes count in, within a vote's lifetime: a traveller changes a few times a day.
pub const NETWORKS: u32 = 64;

/// Two users share a cell by chance once in so many, and their networks with it.
const CELLS: usize = 65_536;

/// The count takes the low bits, the lifetime that it is of those above.
const COUNT_BITS: u32 = 8;

/// How many networks each user has come with.
#[derive(Debug)]
pub(super) struct Voters(Box<[AtomicU32]>);

impl Default for Voters {
    fn default() -> Self {
        Self((0..CELLS).map(|_| AtomicU32::new(0)).collect())
    }
}

impl Voters {
    /// Counts one more network of a user; whether he may.
    pub(super) fn take(&self, voter: u32, now_s: u32) -> bool {
        let lifetime = now_s / LIFETIME_S;
        let next = |cell: u32| {
            let count = if cell >> COUNT_BITS == lifetime { cell & ((1 << COUNT_BITS) - 1) } else { 0 };
            (count < NETWORKS).then_some(lifetime << COUNT_BITS | (count + 1))
        };
        self.0[voter as usize % CELLS].fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_networks_in_a_lifetime_and_others_their_own() {
        let voters = Voters::default();
        let taken = |voter, now_s| (0..1_000).filter(|_| voters.take(voter, now_s)).count();
        assert_eq!((taken(1, 5), taken(2, 5)), (NETWORKS as usize, NETWORKS as usize));
        assert_eq!((taken(1, LIFETIME_S - 1), taken(1, LIFETIME_S)), (0, NETWORKS as usize));
        assert_eq!(taken(1, u32::MAX), NETWORKS as usize);
    }
}
