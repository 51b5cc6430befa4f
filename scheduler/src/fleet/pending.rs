//! What this replica has assigned and no gateway has reported as used yet.
//!
//! Reports are half a second old on average; without this a replica would send everybody of that half second to the
//! same gateways. An assignment counts until a gateway (any: the client walks along its list) reports its ticket as
//! used, and for at most [`PENDING_MS`]; one whose client was told to wait first, for so much longer.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    hash::{BuildHasher, RandomState},
    sync::{Arc, atomic::Ordering},
};

use super::{Fleet, Profile};

/// A client that has not connected after 10 s is not coming, or will ask again.
pub(crate) const PENDING_MS: i64 = 10_000;

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
    /// Stopped counting early, since the same user was assigned again and again, or a device that was moved was assigned anew.
    pub superseded: u64,
    /// Of those used: places kept for clients that were moved.
    pub arrived: u64,
    /// Places kept for clients that were moved, and that expired, or whose clients ask anew since they could not connect there.
    pub lost: u64,
}

/// An assignment that counts.
#[derive(Debug)]
struct Open {
    profile: Arc<Profile>,
    user: u64,
    /// By a keyed hash of the id.
    device: u64,
    moved: bool,
}

/// An assignment of a user to a gateway.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The gateway, an index into the fleet.
    pub gateway: u32,
    /// The user.
    pub user_id: &'a str,
    /// The user's device; may be empty.
    pub device_id: &'a str,
    /// Its schedule id.
    pub schedule_id: u64,
    /// The client is told to come only after so many milliseconds.
    pub wait_ms: u32,
    /// The client was connected elsewhere, and moved.
    pub moved: bool,
    /// The gateways that the client could not reach.
    pub failed: &'a [String],
}

impl<'a> Place<'a> {
    /// For a client that comes at once.
    #[must_use]
    pub fn at_once(gateway: u32, user_id: &'a str, schedule_id: u64) -> Self {
        Self { gateway, user_id, device_id: "", schedule_id, wait_ms: 0, moved: false, failed: &[] }
    }
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
    /// By the end of their time, the next one first. Holds used ones too, until their time comes.
    order: BinaryHeap<Reverse<(i64, u64)>>,
    /// Reported as used since the last snapshot; at most [`MAX_PENDING`].
    used: Vec<u64>,
    counts: PendingCounts,
}

impl Pending {
    /// Counts an assignment of a user to a gateway of `fleet`, under its schedule id. Of one user's at most
    /// `MAX_OF_USER` count: a newer one ends the oldest. And a newer one of the same device ends the one that was kept for it when it
    /// was moved: the client asked anew instead of going there, and is not lost, unless it could not connect there.
    pub fn assign(&mut self, fleet: &Fleet, place: Place<'_>, now_ms: i64) {
        let Place { gateway, user_id, device_id, schedule_id, wait_ms, moved, failed } = place;
        while self.order.len() >= MAX_PENDING {
            self.counts.evicted += u64::from(self.drop_oldest().is_some());
        }
        let (user, device) = (self.hasher.hash_one(user_id), self.hasher.hash_one(device_id));
        if let Some(kept) = self.kept_for(user, device) {
            let lost = |open: &Open| failed.iter().any(|id| **id == *open.profile.id);
            self.counts.lost += u64::from(self.open.get(&kept).is_some_and(lost));
            self.supersede(fleet, kept);
        }
        if let Some(oldest) = self.users.get(&user).and_then(Newest::surplus) {
            self.supersede(fleet, oldest);
        }
        // Drawn at random out of 2^64: that two are equal is not expected, but must not count twice.
        self.close(schedule_id);
        let gateway = fleet.gateway(gateway);
        gateway.profile.pending.fetch_add(1, Ordering::Relaxed);
        for group in fleet.groups_of(gateway) {
            group.pending.fetch_add(1, Ordering::Relaxed);
        }
        self.open.insert(schedule_id, Open { profile: Arc::clone(&gateway.profile), user, device, moved });
        self.users.entry(user).or_default().push(schedule_id);
        self.order.push(Reverse((now_ms + PENDING_MS + i64::from(wait_ms), schedule_id)));
    }

    /// The assignment that waits for a device that was moved.
    fn kept_for(&self, user: u64, device: u64) -> Option<u64> {
        let Newest { ids, len } = self.users.get(&user)?;
        let kept = |id: &&u64| self.open.get(id).is_some_and(|open| open.moved && open.device == device);
        ids[..*len].iter().find(kept).copied()
    }

    /// A newer one takes its place.
    fn supersede(&mut self, fleet: &Fleet, id: u64) {
        if let Some(Open { profile, .. }) = self.close(id) {
            self.counts.superseded += 1;
            forget_in_groups(fleet, &profile);
        }
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
            if let Some(open) = self.close(*id) {
                self.counts.used += 1;
                self.counts.arrived += u64::from(open.moved);
            }
        }
    }

    /// Stops counting what nobody used in its time.
    pub fn expire(&mut self, now_ms: i64) {
        while self.order.peek().is_some_and(|Reverse((until, _))| *until <= now_ms) {
            if let Some(open) = self.drop_oldest() {
                self.counts.expired += 1;
                self.counts.lost += u64::from(open.moved);
            }
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

    fn drop_oldest(&mut self) -> Option<Open> {
        let Reverse((_, id)) = self.order.pop()?;
        self.close(id)
    }

    /// Ends an assignment, if it is open, and says what it was.
    fn close(&mut self, id: u64) -> Option<Open> {
        let open = self.open.remove(&id)?;
        open.profile.pending.fetch_sub(1, Ordering::Relaxed);
        if let Some(newest) = self.users.get_mut(&open.user) {
            newest.remove(id);
            if newest.len == 0 {
                self.users.remove(&open.user);
            }
        }
        Some(open)
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
