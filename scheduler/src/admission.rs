//! The storm budget: how many clients a second may be sent to a pool's gateways, and the virtual queue of those above it.
//!
//! The gateways lease their spare handshake rate in shares to the schedulers ([`crate::fleet`] sums them up). Below the
//! budget nobody waits. Above it a client is told his own place in time, with a token that keeps it: his place was counted
//! when it was given, so who shows a token that is due is let in ahead of newcomers and counted no more. Nobody waits in
//! here; all there is of the queue is how much of each moment to come is promised.
//!
//! A lease is of a moment: in the tail of a storm gateways keep nearly all for those who come back by themselves, and next to
//! nothing for a scheduler that asked for nothing so far. What is further ahead than that lasts is promised at what the pool
//! takes, shared by the schedulers. Where that was too much, the gateways hold their rate.
//!
//! Pure: times are arguments. A token's times are of the wall clock, so that any replica honours it; places are of the
//! monotonic clock, which never jumps.

mod places;
mod spread;
mod token;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};

use berth_proto::limits::LONGEST_WAIT_MS;
use rand::Rng;
use serde::Serialize;

use self::places::Places;
pub use self::spread::LONGEST_SPREAD_MS;
pub(crate) use self::{
    places::Rates,
    spread::spread_ms,
    token::{Owner, Place, QueueTokens, Shown, TOKEN},
};

/// So long after its time a place is kept at the least, in milliseconds: the SDK's jitter, a round trip over a bad network, and a
/// client whose first scheduler did not answer. So many seconds' worth may come at once, if all who were told dawdle alike.
const KEPT_MS: i64 = 5_000;

/// Who waited for long has it kept for this part of his wait: timers of phones that sleep are late.
const KEPT_PART: i64 = 10;

/// Tokens that were used are remembered until they are too late, at most so many: 52,000 a second after short waits, 8,700 after the
/// longest. Beyond, the oldest is forgotten early.
const MAX_USED: usize = 262_144;

/// The part of what they take that gateways lease at the most: see `gateway/src/lease.rs`.
const LEASED: (u64, u64) = (7, 8);

/// Demand follows those who ask with this time constant, in milliseconds.
const SMOOTH_MS: f64 = 1_000.0;

/// Demand asks for as much as would let those who wait in within so long, in seconds.
const WAITED_OUT_SECONDS: u64 = 2;

/// Now, on both clocks, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub monotonic_ms: i64,
    pub wall_ms: i64,
}

/// What a client showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Showing {
    Nothing,
    /// A token that is not of this pool, user and device, or of no scheduler of ours.
    Forged,
    Place(Shown),
    /// The same, given by a start of a scheduler that is over: nobody counts it any more.
    Orphan(Shown),
}

impl Showing {
    /// The place, if it is genuine.
    pub fn shown(self) -> Option<Shown> {
        match self {
            Self::Nothing | Self::Forged => None,
            Self::Place(shown) | Self::Orphan(shown) => Some(shown),
        }
    }
}

/// What becomes of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Let in.
    Now,
    /// Has this place.
    At(Place),
    /// Is to come again after so long, in milliseconds. No place is kept.
    Later(u32),
}

/// What became of the tokens that clients showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenSeen {
    /// Let in on it.
    Honoured,
    /// Let in on it a second time: the answer may have been lost.
    Again,
    /// Before its time; it is as good as before, unless there was room for anybody.
    Early,
    /// After the time for which its place was kept.
    Late,
    /// Let in on it before, as often as may be.
    Used,
    /// Not of this pool, user and device, or of no scheduler of ours.
    Forged,
}

impl TokenSeen {
    /// Every outcome with its label.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Honoured, "honoured"),
        (Self::Again, "again"),
        (Self::Early, "early"),
        (Self::Late, "late"),
        (Self::Used, "used"),
        (Self::Forged, "forged"),
    ];
}

/// What became of clients who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Admitted {
    /// Let in.
    Now,
    /// Told to wait, with a place that is kept.
    Queued,
    /// Told to wait, without one: the queue is as long as it may be, or the user has taken more places than one needs.
    Unplaced,
}

impl Admitted {
    /// Every outcome with its label.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Now, "admitted"), (Self::Queued, "queued"), (Self::Unplaced, "unplaced")];
}

/// What happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AdmissionCounts {
    /// By [`Admitted::ALL`].
    pub admitted: [u64; Admitted::ALL.len()],
    /// By [`TokenSeen::ALL`].
    pub tokens: [u64; TokenSeen::ALL.len()],
}

/// A pool's budget and queue, for the operator's eye.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueSeen {
    /// Clients a second that this scheduler may send to the pool's gateways.
    pub budget_per_second: u64,
    /// Clients a second that it would send, with those who wait.
    pub wanted_per_second: u64,
    /// Places promised for later.
    pub waiting: u64,
    /// For how long a newcomer would wait, in milliseconds.
    pub wait_ms: i64,
}

/// A pool's.
#[derive(Debug)]
struct Queue {
    places: Places,
    per_second: u64,
    /// Newcomers since `measured_ms`, and those a second, smoothed.
    came: u32,
    coming: f64,
    measured_ms: i64,
}

/// The budgets and queues of a scheduler, by pool.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    queues: HashMap<String, Queue>,
    used: Used,
    counts: AdmissionCounts,
}

impl Admission {
    /// These are the pools now, and what may be sent to each in a second.
    pub fn budgets<'a>(&mut self, pools: impl Iterator<Item = (&'a str, Rates)> + Clone, now_ms: i64) {
        // Seldom, and pools are few.
        self.queues.retain(|name, _| pools.clone().any(|(pool, _)| pool == name));
        for (pool, rates) in pools {
            match self.queues.get_mut(pool) {
                Some(queue) => queue.turn(rates, now_ms),
                None => drop(self.queues.insert(pool.to_owned(), Queue::new(rates, now_ms))),
            }
        }
    }

    /// A client who is to be sent to a pool asks to be let in. Who has to wait gets a place only if `may_hold` says that he
    /// has not taken more than his share.
    pub fn ask(&mut self, pool: &str, showing: Showing, now: Now, may_hold: impl FnOnce() -> bool) -> Turn {
        // Its gateways went between the decision and this: whoever was decided for them finds out by himself.
        let Some(queue) = self.queues.get_mut(pool) else { return self.counts.turn(Turn::Now) };
        let seen = self.used.look(showing, now.wall_ms);
        if let Some(seen) = seen {
            self.counts.tokens[seen as usize] += 1;
        }
        let turn = match (seen, showing.shown()) {
            (Some(TokenSeen::Honoured | TokenSeen::Again), Some(shown)) => {
                if seen == Some(TokenSeen::Honoured) && matches!(showing, Showing::Orphan(_)) {
                    queue.comes(now.monotonic_ms);
                }
                self.used.insert(shown, now.wall_ms);
                Turn::Now
            }
            // Room may have come up that anybody would get.
            (Some(TokenSeen::Early), Some(shown)) if queue.wait_ms(now.monotonic_ms) > 0 => {
                Turn::At(shown.place)
            }
            (Some(TokenSeen::Early), Some(shown)) => {
                self.used.insert(shown, now.wall_ms);
                queue.newcomer(now, || true)
            }
            _ => queue.newcomer(now, may_hold),
        };
        self.counts.turn(turn)
    }

    /// A client who is connected asks for a newer ticket. He comes to no gateway, so he takes no place; while others wait he is
    /// to come again.
    pub fn renew(&mut self, pool: &str, now_ms: i64) -> Turn {
        let left_ms = self.queues.get_mut(pool).map_or(0, |queue| queue.wait_ms(now_ms));
        self.counts.turn(if left_ms > 0 { Turn::Later(wait_ms(left_ms)) } else { Turn::Now })
    }

    /// A client is sent to a pool who did not ask: a gateway sends it on. It is counted, and comes whatever the queue is.
    pub fn sent(&mut self, pool: &str, now_ms: i64) {
        if let Some(queue) = self.queues.get_mut(pool) {
            queue.comes(now_ms);
        }
    }

    /// What to ask the gateways of a pool for, in clients a second.
    pub fn wanted(&mut self, pool: &str, now_ms: i64) -> u64 {
        self.queues.get_mut(pool).map_or(0, |queue| queue.wanted(now_ms))
    }

    /// How a pool's queue is.
    pub fn seen(&mut self, pool: &str, now_ms: i64) -> Option<QueueSeen> {
        self.queues.get_mut(pool).map(|queue| queue.seen(now_ms))
    }

    /// The budgets of all pools, and the wait of the longest queue, in milliseconds.
    pub fn all(&mut self, now_ms: i64) -> (u64, i64) {
        let budget = self.queues.values().map(|queue| queue.per_second).sum();
        let wait = self.queues.values_mut().map(|queue| queue.wait_ms(now_ms)).max();
        (budget, wait.unwrap_or(0))
    }

    /// What happened since the start.
    pub fn counts(&self) -> AdmissionCounts {
        self.counts
    }
}

impl AdmissionCounts {
    fn turn(&mut self, turn: Turn) -> Turn {
        let admitted = match turn {
            Turn::Now => Admitted::Now,
            Turn::At(_) => Admitted::Queued,
            Turn::Later(_) => Admitted::Unplaced,
        };
        self.admitted[admitted as usize] += 1;
        turn
    }
}

impl Queue {
    fn new(rates: Rates, now_ms: i64) -> Self {
        let places = Places::new(rates, now_ms);
        Self { places, per_second: rates.now, came: 0, coming: 0.0, measured_ms: now_ms }
    }

    fn turn(&mut self, rates: Rates, now_ms: i64) {
        self.per_second = rates.now;
        self.places.set_rates(rates);
        let passed_ms = now_ms - self.measured_ms;
        if passed_ms > 0 {
            let passed = passed_ms as f64;
            let rate = f64::from(std::mem::take(&mut self.came)) * 1_000.0 / passed;
            self.coming += (rate - self.coming) * (1.0 - (-passed / SMOOTH_MS).exp());
            self.measured_ms = now_ms;
        }
    }

    /// Somebody comes now, whatever the queue is, and takes the next place.
    fn comes(&mut self, now_ms: i64) {
        self.came = self.came.saturating_add(1);
        // Beyond the last place the queue is no shorter without this one.
        let _ = self.places.take(now_ms, now_ms + i64::from(LONGEST_WAIT_MS));
    }

    fn newcomer(&mut self, now: Now, may_hold: impl FnOnce() -> bool) -> Turn {
        self.came = self.came.saturating_add(1);
        let Now { monotonic_ms, wall_ms } = now;
        let last_ms = monotonic_ms + i64::from(LONGEST_WAIT_MS);
        let next_ms = self.places.next_ms(monotonic_ms);
        if !Places::is_now(next_ms, monotonic_ms) && (next_ms > last_ms || !may_hold()) {
            return Turn::Later(wait_ms(next_ms - monotonic_ms));
        }
        match self.places.take(monotonic_ms, last_ms) {
            Some(at_ms) if !Places::is_now(at_ms, monotonic_ms) => {
                Turn::At(Place { due_ms: wall_ms + (at_ms - monotonic_ms), issued_ms: wall_ms })
            }
            _ => Turn::Now,
        }
    }

    fn wait_ms(&mut self, now_ms: i64) -> i64 {
        let next_ms = self.places.next_ms(now_ms);
        if Places::is_now(next_ms, now_ms) { 0 } else { next_ms - now_ms }
    }

    fn wanted(&mut self, now_ms: i64) -> u64 {
        self.coming.round() as u64 + self.places.waiting(now_ms) / WAITED_OUT_SECONDS
    }

    fn seen(&mut self, now_ms: i64) -> QueueSeen {
        QueueSeen {
            budget_per_second: self.per_second,
            wanted_per_second: self.wanted(now_ms),
            waiting: self.places.waiting(now_ms),
            wait_ms: self.wait_ms(now_ms),
        }
    }
}

/// What a pool whose gateways take so many handshakes a second bears: what they lease now, and later an equal part of all that
/// gateways lease when few come back by themselves ([`LEASED`]).
pub(crate) fn rates(leased: u64, handshakes: u64, schedulers: u64) -> Rates {
    let (part, whole) = LEASED;
    Rates { now: leased, later: handshakes * part / whole / schedulers.max(1) }
}

/// A wait as clients are told it: above 0, and at most as long as they may be told to wait.
pub(crate) fn wait_ms(ms: i64) -> u32 {
    u32::try_from(ms.clamp(1, LONGEST_WAIT_MS.into())).unwrap_or(LONGEST_WAIT_MS)
}

/// When to come again for who is told a wait and has no place: not at one time with all the others who have none.
pub(crate) fn anywhere_up_to(wait_ms: u32, rng: &mut impl Rng) -> u32 {
    rng.random_range(wait_ms.div_ceil(2)..=wait_ms)
}

/// For how long after its time a place is kept, in milliseconds.
fn kept_ms(place: Place) -> i64 {
    KEPT_MS.max(place.due_ms.saturating_sub(place.issued_ms) / KEPT_PART)
}

/// The tokens that somebody was let in on, for as long as they are good: once, and once more if the answer was lost.
///
/// Another replica does not know of them, nor does this one after a restart or beyond [`MAX_USED`]. What that is worth to
/// who shows a token again: within [`kept_ms`] of its time one more ticket of the user and device that he has one of, past
/// the queue; a second connection of a device ends the first.
#[derive(Debug, Default)]
struct Used {
    /// And whether it was shown again.
    ids: HashMap<u64, bool>,
    /// With the time until which they are good.
    order: VecDeque<(i64, u64)>,
}

impl Used {
    /// What a token is worth now, if one was shown.
    fn look(&self, showing: Showing, wall_ms: i64) -> Option<TokenSeen> {
        let shown = match showing {
            Showing::Nothing => return None,
            Showing::Forged => return Some(TokenSeen::Forged),
            Showing::Place(shown) | Showing::Orphan(shown) => shown,
        };
        let early = !Places::is_now(shown.place.due_ms, wall_ms);
        let late = wall_ms.saturating_sub(shown.place.due_ms) > kept_ms(shown.place);
        Some(match self.ids.get(&shown.id) {
            Some(false) if !early && !late => TokenSeen::Again,
            Some(_) => TokenSeen::Used,
            None if early => TokenSeen::Early,
            None if late => TokenSeen::Late,
            None => TokenSeen::Honoured,
        })
    }

    fn insert(&mut self, shown: Shown, wall_ms: i64) {
        while let Some((until_ms, id)) = self.order.front().copied()
            && (until_ms < wall_ms || self.order.len() >= MAX_USED)
        {
            self.order.pop_front();
            self.ids.remove(&id);
        }
        if let Some(again) = self.ids.get_mut(&shown.id) {
            *again = true;
            return;
        }
        self.ids.insert(shown.id, false);
        self.order.push_back((shown.place.due_ms.saturating_add(kept_ms(shown.place)), shown.id));
    }
}
