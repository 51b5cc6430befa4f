//! Which rows to pull next, and whether those that came are the ones that had to. Pure.

use berth_proto::{
    client::{InboxItem, PullRequest, PullResponse},
    limits::LONGEST_WAIT_MS,
};
use rand::Rng;

use crate::{
    cursor::Cursor,
    event::{Gap, Resync},
    reconnect::full_jitter,
};

/// First and longest wait after a refused pull, in milliseconds: as the default reconnect parameters.
const BACKOFF_MS: (u32, u32) = (500, 20_000);

/// What a pull's answer gives. The rows come first, then what stopped them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pulled {
    /// New rows, contiguous.
    pub rows: Vec<InboxItem>,
    /// Rows are not to be had any more.
    pub resync: Option<Resync>,
    /// A row is missing, and was not said to be missing before.
    pub gap: Option<Gap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No connection yet, or none any more.
    Offline,
    Idle,
    InFlight,
    /// Refused for now, or a row was missing.
    Waiting {
        until_ms: i64,
    },
}

/// The inbox as far as it was pulled.
#[derive(Debug, Clone)]
pub struct Puller {
    position: Option<Cursor>,
    page: u32,
    phase: Phase,
    /// The newest row told of.
    known: u64,
    /// The newest row told of since the pull in flight was asked.
    told_meanwhile: u64,
    /// Pull although nothing newer is known of.
    look: bool,
    refusals: u32,
    /// The missing row told of last.
    gap_told: Option<u64>,
}

impl Puller {
    /// Goes on from a stored cursor, in pages of `page` rows.
    #[must_use]
    pub fn new(cursor: Option<Cursor>, page: u32) -> Self {
        Self {
            position: cursor,
            page,
            phase: Phase::Offline,
            known: 0,
            told_meanwhile: 0,
            look: false,
            refusals: 0,
            gap_told: None,
        }
    }

    /// Up to where rows were pulled; `None` before the first welcome ever.
    #[must_use]
    pub fn position(&self) -> Option<&Cursor> {
        self.position.as_ref()
    }

    fn seq(&self) -> u64 {
        self.position.as_ref().map_or(0, |position| position.seq)
    }

    /// A gateway welcomed us. A changed epoch, or another user than the cursor's, means to begin again at 0.
    pub fn welcomed(&mut self, user_id: &str, inbox_epoch: u64, inbox_seq: u64) -> Option<Resync> {
        let resync = match &self.position {
            Some(position) if position.user_id != user_id => Some(Resync::OtherUser),
            Some(position) if position.inbox_epoch != inbox_epoch => {
                Some(Resync::EpochChanged { before: position.inbox_epoch, now: inbox_epoch })
            }
            _ => None,
        };
        if self.position.is_none() || resync.is_some() {
            self.position = Some(Cursor { user_id: user_id.to_owned(), inbox_epoch, seq: 0 });
            self.gap_told = None;
        }
        self.phase = Phase::Idle;
        self.known = inbox_seq;
        self.told_meanwhile = 0;
        self.refusals = 0;
        // A newest row before our own would be a fault: the pull will say so.
        self.look = inbox_seq != self.seq();
        resync
    }

    /// A notify or a heartbeat's answer told of a row. `look_anyway`: too much moved to say.
    pub fn told(&mut self, inbox_seq: u64, look_anyway: bool) {
        self.known = self.known.max(inbox_seq);
        self.told_meanwhile = self.told_meanwhile.max(inbox_seq);
        self.look |= look_anyway;
    }

    /// Whether there is something to pull, when nothing keeps from it.
    #[must_use]
    pub fn wants(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::Waiting { .. }) && (self.look || self.known > self.seq())
    }

    /// The pull to send now, which counts as in flight. Ask only while a page of rows can be held.
    pub fn next(&mut self, now_ms: i64) -> Option<PullRequest> {
        if !self.wants() || self.wake_at() > now_ms {
            return None;
        }
        self.phase = Phase::InFlight;
        self.look = false;
        self.told_meanwhile = 0;
        Some(PullRequest { after_seq: self.seq(), limit: self.page })
    }

    /// When [`Puller::next`] has something.
    #[must_use]
    pub fn wake_at(&self) -> i64 {
        match self.phase {
            Phase::Waiting { until_ms } if self.wants() => until_ms,
            Phase::Idle if self.wants() => i64::MIN,
            _ => i64::MAX,
        }
    }

    /// The answer to the pull in flight. A missing row is pulled again, later and later, as after a refusal: the server may
    /// repair itself, and the connection is good for everything else.
    pub fn answered(&mut self, answer: PullResponse, now_ms: i64, rng: &mut impl Rng) -> Pulled {
        let Some(position) = self.position.as_mut().filter(|_| self.phase == Phase::InFlight) else {
            return Pulled::default();
        };
        self.phase = Phase::Idle;
        let refusals = std::mem::take(&mut self.refusals);
        // What was told before the pull was asked is in its answer, or was not true.
        self.known = answer.latest_seq.max(self.told_meanwhile);
        let mut pulled = Pulled::default();
        if answer.inbox_epoch != position.inbox_epoch {
            let resync = Resync::EpochChanged { before: position.inbox_epoch, now: answer.inbox_epoch };
            position.inbox_epoch = answer.inbox_epoch;
            position.seq = 0;
            self.gap_told = None;
            pulled.resync = Some(resync);
        } else if position.seq.saturating_add(1) < answer.floor_seq {
            pulled.resync = Some(Resync::Expired { after_seq: position.seq, floor_seq: answer.floor_seq });
            position.seq = answer.floor_seq - 1;
        } else {
            take_rows(position, answer, &mut pulled);
        }
        if let Some(Gap { expected, .. }) = pulled.gap {
            // Rows before the gap are progress: the waits begin anew.
            self.refusals = if pulled.rows.is_empty() { refusals } else { 0 };
            self.refused(now_ms, 0, rng);
            if self.gap_told.replace(expected) == Some(expected) {
                pulled.gap = None;
            }
        }
        pulled
    }

    /// The pull in flight was refused, or not answered in time. It is asked again, later and later.
    pub fn refused(&mut self, now_ms: i64, retry_after_ms: u32, rng: &mut impl Rng) {
        let (base_ms, max_ms) = BACKOFF_MS;
        let asked = i64::from(retry_after_ms.min(LONGEST_WAIT_MS));
        let until_ms = now_ms + asked + full_jitter(base_ms, max_ms, self.refusals, rng);
        self.refusals = self.refusals.saturating_add(1);
        self.look = true;
        self.phase = Phase::Waiting { until_ms };
    }

    /// The connection is lost.
    pub fn connection_lost(&mut self) {
        self.phase = Phase::Offline;
    }
}

/// Takes rows as long as each is the next.
fn take_rows(position: &mut Cursor, answer: PullResponse, pulled: &mut Pulled) {
    let latest = answer.latest_seq;
    for row in answer.items {
        let expected = position.seq.saturating_add(1);
        if row.seq != expected {
            pulled.gap = Some(Gap { expected, found: row.seq });
            return;
        }
        position.seq = expected;
        pulled.rows.push(row);
    }
    let none_though_some_exist = pulled.rows.is_empty() && latest > position.seq;
    // Fewer rows than we have taken, in the same epoch: those to come would have numbers that we believe to know.
    let went_back = latest < position.seq;
    if none_though_some_exist || went_back {
        pulled.gap = Some(Gap { expected: position.seq.saturating_add(1), found: latest });
    }
}

#[cfg(test)]
mod tests;
