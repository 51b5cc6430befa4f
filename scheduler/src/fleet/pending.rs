//! What this replica has assigned and no gateway has reported as used yet.
//!
//! Reports are half a second old on average; without this a replica would send everybody of that half second to the
//! same gateways. An assignment counts until a gateway (any: the client walks along its list) reports its ticket as
//! used, and for at most [`PENDING_MS`].

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Arc, atomic::Ordering},
};

use super::{Fleet, Profile};

/// A client that has not connected after 10 s is not coming, or will ask again.
const PENDING_MS: i64 = 10_000;

/// Most assignments remembered: 26,000 a second for ten seconds. Beyond, the oldest stops counting early.
const MAX_PENDING: usize = 262_144;

/// Assignments of one user that count at a time: a phone, a tablet and a desktop that connect together, and one to spare.
/// Without a limit, one user who asks and asks but never connects would fill gateways for everybody else.
const MAX_OF_USER: usize = 4;

/// How pending assignments ended, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PendingCounts {
    /// A gateway saw the ticket.
    pub used: u64,
    /// Nobody came.
    pub expired: u64,
    /// Stopped counting early, since too many were pending.
    pub evicted: u64,
    /// Stopped counting early, since the same user was assigned again and again.
    pub superseded: u64,
}

/// An assignment that counts.
#[derive(Debug)]
struct Open {
    profile: Arc<Profile>,
    user: u64,
}

/// The schedule ids of one user's open assignments, oldest first.
#[derive(Debug, Default)]
struct Newest {
    ids: [u64; MAX_OF_USER],
    len: usize,
}

impl Newest {
    /// The oldest, when there is no room for another.
    fn surplus(&self) -> Option<u64> {
        (self.len == MAX_OF_USER).then(|| self.ids[0])
    }

    fn push(&mut self, id: u64) {
        self.ids[self.len] = id;
        self.len += 1;
    }

    fn remove(&mut self, id: u64) {
        if let Some(place) = self.ids[..self.len].iter().position(|own| *own == id) {
            self.ids.copy_within(place + 1..self.len, place);
            self.len -= 1;
        }
    }
}

/// The ledger of pending assignments.
#[derive(Debug, Default)]
pub struct Pending {
    open: HashMap<u64, Open>,
    /// The newest assignments of each user, by a keyed hash of the id: a user id takes up to 64 bytes.
    users: HashMap<u64, Newest>,
    hasher: RandomState,
    /// In order of time: all live equally long. Holds used ones too, until their time comes.
    order: VecDeque<(i64, u64)>,
    /// Reported as used since the last snapshot; at most [`MAX_PENDING`].
    used: Vec<u64>,
    counts: PendingCounts,
}

impl Pending {
    /// Counts an assignment of a user to a gateway of `fleet`, under its schedule id. Of one user's at most
    /// `MAX_OF_USER` count: a newer one ends the oldest.
    pub fn assign(&mut self, fleet: &Fleet, gateway: u32, user_id: &str, schedule_id: u64, now_ms: i64) {
        while self.order.len() >= MAX_PENDING {
            self.drop_oldest(|counts| &mut counts.evicted);
        }
        let user = self.hasher.hash_one(user_id);
        if let Some(oldest) = self.users.get(&user).and_then(Newest::surplus)
            && let Some(profile) = self.close(oldest)
        {
            self.counts.superseded += 1;
            forget_in_groups(fleet, &profile);
        }
        // Drawn at random out of 2^64: that two are equal is not expected, but must not count twice.
        self.close(schedule_id);
        let gateway = fleet.gateway(gateway);
        gateway.profile.pending.fetch_add(1, Ordering::Relaxed);
        for group in fleet.groups_of(gateway) {
            group.pending.fetch_add(1, Ordering::Relaxed);
        }
        self.open.insert(schedule_id, Open { profile: Arc::clone(&gateway.profile), user });
        self.users.entry(user).or_default().push(schedule_id);
        self.order.push_back((now_ms + PENDING_MS, schedule_id));
    }

    /// A gateway saw these tickets: they are in the connections that it reports. Until a snapshot shows those, the
    /// assignments go on counting: see [`Pending::settle`].
    pub fn used(&mut self, schedule_ids: &[u64]) {
        // Beyond, they count until their time is over: rather too much than too little.
        let room = MAX_PENDING - self.used.len();
        self.used.extend_from_slice(&schedule_ids[..schedule_ids.len().min(room)]);
    }

    /// Stops counting what gateways saw. To be called right before a snapshot takes the loads, so that an assignment
    /// turns from pending into a connection in one step: in between it would be neither, and its place given twice.
    pub fn settle(&mut self) {
        let used = std::mem::take(&mut self.used);
        for id in &used {
            if self.close(*id).is_some() {
                self.counts.used += 1;
            }
        }
    }

    /// Stops counting what is older than ten seconds.
    pub fn expire(&mut self, now_ms: i64) {
        while self.order.front().is_some_and(|(until, _)| *until <= now_ms) {
            self.drop_oldest(|counts| &mut counts.expired);
        }
    }

    /// How many are pending now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// How they ended so far.
    #[must_use]
    pub fn counts(&self) -> PendingCounts {
        self.counts
    }

    fn drop_oldest(&mut self, counter: impl Fn(&mut PendingCounts) -> &mut u64) {
        let Some((_, id)) = self.order.pop_front() else { return };
        if self.close(id).is_some() {
            *counter(&mut self.counts) += 1;
        }
    }

    /// Ends an assignment, if it is open, and says on which gateway it was.
    fn close(&mut self, id: u64) -> Option<Arc<Profile>> {
        let Open { profile, user } = self.open.remove(&id)?;
        profile.pending.fetch_sub(1, Ordering::Relaxed);
        if let Some(newest) = self.users.get_mut(&user) {
            newest.remove(id);
            if newest.len == 0 {
                self.users.remove(&user);
            }
        }
        Some(profile)
    }
}

/// The snapshot's groups count what was assigned since it was built; the next one would be right by itself, but until then
/// a user who asks a thousand times a second would raise the mean that everybody is compared with.
fn forget_in_groups(fleet: &Fleet, profile: &Arc<Profile>) {
    let Some(index) = fleet.find(&profile.id) else { return };
    let gateway = fleet.gateway(index);
    if !Arc::ptr_eq(&gateway.profile, profile) {
        return;
    }
    for group in fleet.groups_of(gateway) {
        // Of a gateway that does not serve nothing was counted.
        let _ = group
            .pending
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |pending| pending.checked_sub(1));
    }
}
