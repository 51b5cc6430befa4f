//! In how many networks each user votes: a fixed table of 8 MiB, in which users may share a cell.

use std::sync::atomic::{AtomicU64, Ordering};

use super::LIFETIME_S;

/// Networks that one user's votes count in, within a vote's lifetime. A traveller changes a few times a day; there is room for those
/// who share his cell.
pub const NETWORKS: u32 = 250;

const CELLS: usize = 1 << 20;

/// Networks of a cell that are known again, so that going back to one costs nothing: votes there may have been driven out.
const KNOWN: u32 = 3;

/// How many networks each user has come with.
#[derive(Debug)]
pub(super) struct Voters(Box<[AtomicU64]>);

/// A cell: the count in 8 bits, the lifetime that it is of in 8, and [`KNOWN`] tags of 16 bits, the newest first.
#[derive(Debug, Clone, Copy)]
struct Cell(u64);

impl Cell {
    /// As it counts in the lifetime of `now_s`.
    fn at(self, now_s: u32) -> Self {
        let lifetime = u64::from((now_s / LIFETIME_S) as u8);
        if (self.0 >> 8) & 0xff == lifetime { self } else { Self(lifetime << 8) }
    }

    fn count(self) -> u32 {
        (self.0 & 0xff) as u32
    }

    fn knows(self, tag: u64) -> bool {
        (1..=KNOWN).any(|place| (self.0 >> (16 * place)) & 0xffff == tag)
    }

    fn with(self, tag: u64) -> Self {
        if self.knows(tag) {
            return self;
        }
        let older = (self.0 >> 16) << 32;
        Self(older | (tag << 16) | ((self.0 & 0xffff) + 1))
    }
}

impl Default for Voters {
    fn default() -> Self {
        Self((0..CELLS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Voters {
    /// Whether the user may vote in one more network, or in this one again.
    pub(super) fn may(&self, voter: u32, network: u64, now_s: u32) -> bool {
        let cell = Cell(self.cell(voter).load(Ordering::Relaxed)).at(now_s);
        cell.count() < NETWORKS || cell.knows(tag(network))
    }

    /// He voted in it.
    pub(super) fn took(&self, voter: u32, network: u64, now_s: u32) {
        let next = |cell| {
            let cell = Cell(cell).at(now_s);
            (cell.count() < NETWORKS).then(|| cell.with(tag(network)).0)
        };
        // Who has as many as he may is known already.
        let _ = self.cell(voter).fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    fn cell(&self, voter: u32) -> &AtomicU64 {
        &self.0[voter as usize % CELLS]
    }
}

/// Never 0, which an empty cell is full of.
fn tag(network: u64) -> u64 {
    (network >> 48) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(number: u64) -> u64 {
        (2 * number + 1) << 48
    }

    /// How many of these networks he may vote in, one after the other.
    fn taken(voters: &Voters, voter: u32, networks: impl Iterator<Item = u64>, now_s: u32) -> usize {
        let vote = |number: &u64| {
            let may = voters.may(voter, network(*number), now_s);
            if may {
                voters.took(voter, network(*number), now_s);
            }
            may
        };
        networks.filter(vote).count()
    }

    #[test]
    fn a_user_has_so_many_networks_in_a_lifetime_and_others_their_own() {
        let voters = Voters::default();
        let most = NETWORKS as usize;
        assert_eq!(taken(&voters, 1, 0..1_000, 5), most);
        assert_eq!(taken(&voters, 2, 0..1_000, 5), most);
        assert_eq!(taken(&voters, 1, 0..1_000, LIFETIME_S - 1), KNOWN as usize, "the last ones again");
        assert_eq!(taken(&voters, 1, 0..1_000, LIFETIME_S), most);
        assert_eq!(taken(&voters, 1, 0..1_000, u32::MAX), most);
    }

    #[test]
    fn going_back_and_forth_costs_nothing() {
        let voters = Voters::default();
        let commuter = (0..10_000).map(|day| day % u64::from(KNOWN));
        assert_eq!(taken(&voters, 1, commuter, 5), 10_000);
        let rest = taken(&voters, 1, 10..1_000, 5);
        assert_eq!(rest, (NETWORKS - KNOWN) as usize);
    }
}
