//! Round trips that clients measured, by network and region: one vote a user, the median of which says how far a region is.
//!
//! Anybody can say anything here, so nothing of it may grow with who says it, and nobody counts more than once:
//!
//! - a user has one vote for a network and region, the latest, from however many devices; a vote is within [`MIN_MS`] and [`MAX_MS`];
//! - a vote's weight falls in a straight line to nothing over [`LIFETIME_S`]; the weighted median moves by one vote at the most to
//!   what the next of the others said;
//! - a user may vote in [`NETWORKS`] networks, in each only once. When the table is full, a new network takes the place of one that
//!   has no more weight than a single vote: networks with several votes are not driven out, and it takes a hundred accounts
//!   that work together to fill the table with such.
//!
//! Soft state of one replica: it is not written down, and replicas do not tell each other.

#[cfg(test)]
mod tests;
mod voters;

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hash},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

pub use self::voters::NETWORKS;
use self::voters::Voters;

use super::Network;

/// A vote counts for so long, in seconds: 12 hours, since networks change by the time of day.
pub const LIFETIME_S: u32 = 12 * 3_600;

/// The least that a vote counts as, in milliseconds.
pub const MIN_MS: u32 = 1;

/// The most that a vote counts as, in milliseconds: more is as good as away.
pub const MAX_MS: u32 = 2_000;

/// Votes for one network and region; another one takes the place of the oldest.
pub const VOTES: usize = 15;

/// Regions of one network.
pub const REGIONS: usize = 8;

/// The table: sets of networks, and networks of each. Full, with all votes, it holds 16,384 networks in about 30 MiB.
const SETS: usize = 2_048;
const WAYS: usize = 8;

#[derive(Debug, Clone, Copy)]
struct Vote {
    /// A hash of the user, under a key that nobody outside of this process knows.
    voter: u32,
    ms: u16,
    at_s: u32,
}

impl Vote {
    /// From [`LIFETIME_S`] when it is cast to 0.
    fn weight(self, now_s: u32) -> u32 {
        LIFETIME_S.saturating_sub(now_s.saturating_sub(self.at_s))
    }
}

/// The votes for a region.
#[derive(Debug)]
struct Poll {
    region: u32,
    votes: Vec<Vote>,
}

impl Poll {
    fn weight(&self, now_s: u32) -> u64 {
        self.votes.iter().map(|vote| u64::from(vote.weight(now_s))).sum()
    }

    fn cast(&mut self, vote: Vote) {
        let own = self.votes.iter().position(|other| other.voter == vote.voter);
        let place = own.or_else(|| {
            let oldest = || (0..self.votes.len()).min_by_key(|place| self.votes[*place].at_s);
            (self.votes.len() == VOTES).then(oldest)?
        });
        match place {
            Some(place) => self.votes[place] = vote,
            None => self.votes.push(vote),
        }
    }

    /// The lower weighted median: half of the weight is at or below it.
    fn tally(&self, now_s: u32) -> Option<Tally> {
        let mut sorted = [(0, 0); VOTES];
        let live =
            self.votes.iter().map(|vote| (vote.ms, vote.weight(now_s))).filter(|(_, weight)| *weight > 0);
        let mut votes = 0;
        for (slot, vote) in sorted.iter_mut().zip(live) {
            *slot = vote;
            votes += 1;
        }
        let sorted = &mut sorted[..votes];
        sorted.sort_unstable();
        let weight = sorted.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut below = 0;
        let median = sorted.iter().find(|(_, own)| {
            below += u64::from(*own);
            2 * below >= weight
        });
        median.map(|(ms, _)| Tally { ms: u32::from(*ms), votes, weight })
    }
}

/// A network's votes.
#[derive(Debug)]
struct Polls {
    network: u64,
    polls: Vec<Poll>,
}

impl Polls {
    /// Whether the user has a vote here.
    fn has(&self, voter: u32) -> bool {
        self.polls.iter().any(|poll| poll.votes.iter().any(|vote| vote.voter == voter))
    }

    /// What drives it out of a full table, or does not.
    fn weight(&self, now_s: u32) -> u64 {
        self.polls.iter().map(|poll| poll.weight(now_s)).max().unwrap_or(0)
    }
}

/// What a network's votes say of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// The median, in milliseconds.
    pub ms: u32,
    /// Votes that count at all.
    pub votes: usize,
    /// Their weight: [`LIFETIME_S`] for each that is fresh.
    pub weight: u64,
}

impl Tally {
    /// How many fresh votes the weight is.
    #[must_use]
    pub fn fresh(self) -> f64 {
        self.weight as f64 / f64::from(LIFETIME_S)
    }
}

/// What became of a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cast {
    /// It counts.
    Taken,
    /// There is no room, and what is there has more weight.
    Full,
    /// The user votes in as many networks as he may.
    Spent,
}

/// The votes of all networks. Each set has a lock of its own, held while one vote is put in or a network's medians are
/// taken: clients of different networks do not wait for each other.
#[derive(Debug)]
pub struct Votes {
    sets: Box<[Mutex<Vec<Polls>>]>,
    voters: Voters,
    hasher: RandomState,
    networks: AtomicUsize,
}

impl Default for Votes {
    fn default() -> Self {
        let sets = (0..SETS).map(|_| Mutex::default()).collect();
        Self { sets, voters: Voters::default(), hasher: RandomState::new(), networks: AtomicUsize::new(0) }
    }
}

impl Votes {
    /// Networks that have votes, or had.
    #[must_use]
    pub fn networks(&self) -> usize {
        self.networks.load(Ordering::Relaxed)
    }

    /// Casts a user's vote: `ms` from his network to the region.
    pub fn cast(&self, network: &Network, region: &str, voter: &str, ms: u32, now_s: u32) -> Cast {
        let voter = self.hash(voter) as u32;
        let vote =
            Vote { voter, ms: u16::try_from(ms.clamp(MIN_MS, MAX_MS)).unwrap_or(u16::MAX), at_s: now_s };
        let (network, region) = (self.hash(network), self.hash(region) as u32);
        let set = &mut *self.set(network);
        let known = set.len();
        let of_network = |polls: &Polls| polls.network == network;
        let votes_here = set.iter().find(|polls| of_network(polls)).is_some_and(|polls| polls.has(voter));
        if !votes_here && !self.voters.may(voter, network, now_s) {
            return Cast::Spent;
        }
        let new = || Polls { network, polls: Vec::new() };
        let Some(polls) = find_or_make(set, WAYS, of_network, |polls| polls.weight(now_s), new) else {
            return Cast::Full;
        };
        let of_region = |poll: &Poll| poll.region == region;
        let new = || Poll { region, votes: Vec::new() };
        let poll = find_or_make(&mut polls.polls, REGIONS, of_region, |poll| poll.weight(now_s), new);
        let cast = poll.map_or(Cast::Full, |poll| {
            poll.cast(vote);
            Cast::Taken
        });
        self.networks.fetch_add(set.len() - known, Ordering::Relaxed);
        if cast == Cast::Taken && !votes_here {
            self.voters.took(voter, network, now_s);
        }
        cast
    }

    /// What a network's clients said, as far as it still counts; none: nothing.
    #[must_use]
    pub fn polled(&self, network: &Network, now_s: u32) -> Option<Polled<'_>> {
        let network = self.hash(network);
        let set = self.set(network);
        let polls = &set.iter().find(|polls| polls.network == network)?.polls;
        let mut tallies = [None; REGIONS];
        for (slot, poll) in tallies.iter_mut().zip(polls) {
            *slot = poll.tally(now_s).map(|tally| (poll.region, tally));
        }
        Some(Polled { votes: self, tallies })
    }

    /// Found by the low bits: the votes compare the whole hash. Nothing panics while it holds a lock halfway through a change.
    fn set(&self, network: u64) -> MutexGuard<'_, Vec<Polls>> {
        self.sets[network as usize % SETS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hash(&self, what: impl Hash) -> u64 {
        self.hasher.hash_one(what)
    }
}

/// What one network's clients said.
#[derive(Debug, Clone, Copy)]
pub struct Polled<'a> {
    votes: &'a Votes,
    tallies: [Option<(u32, Tally)>; REGIONS],
}

impl Polled<'_> {
    /// What they said of a region; none: nothing that still counts.
    #[must_use]
    pub fn tally(&self, region: &str) -> Option<Tally> {
        let region = self.votes.hash(region) as u32;
        self.tallies.iter().flatten().find(|(of, _)| *of == region).map(|(_, tally)| *tally)
    }
}

/// The entry looked for, or a new one in a free place, or in that of the one with the least weight, if that is no more than a
/// single vote's.
fn find_or_make<T>(
    entries: &mut Vec<T>,
    most: usize,
    wanted: impl Fn(&T) -> bool,
    weight: impl Fn(&T) -> u64,
    new: impl Fn() -> T,
) -> Option<&mut T> {
    if let Some(known) = entries.iter().position(wanted) {
        return Some(&mut entries[known]);
    }
    if entries.len() < most {
        entries.push(new());
        return entries.last_mut();
    }
    let least = entries.iter_mut().min_by_key(|entry| weight(entry))?;
    if weight(least) > u64::from(LIFETIME_S) {
        return None;
    }
    *least = new();
    Some(least)
}
