//! Notifies: merged into what each connection is still to be told, then written from this loop, a part at each wake-up.
//!
//! On this road nothing is locked and nothing allocated for a connection: the frame is written to its socket from bytes that
//! are encoded once for all that are told the same, and a socket that takes it leaves nothing behind.

use berth_proto::{client::ConversationSeq, wire::NotifyConnection};

use super::Worker;
use crate::{
    connection::Told,
    inlet::{Reached, Waiting},
    metrics::{FrameOut, Notified},
    session::Cx,
};

/// Notifies merged and written at one wake-up before the others have their turn: some 4 ms of writes on a machine where
/// one costs 8 us, so that a fan-out to everybody holds up no heartbeat and no accept for longer.
pub(super) const NOTIFIES_PER_TURN: usize = 512;

/// What was written, for the metrics: counted once for a wake-up, not once for a connection.
#[derive(Default)]
struct Tally {
    frames: u64,
    bytes: u64,
    blocked: u64,
}

impl Worker {
    /// Whether notifies are left for the next wake-up, which then follows at once.
    pub(super) fn has_notifies(&self) -> bool {
        let Waiting { notifies, refreshed, others, .. } = &self.waiting;
        self.more_waits || !(notifies.is_empty() && refreshed.is_empty() && others.is_empty())
    }

    /// Merges a turn's worth of notifies. The answer to a heartbeat batch says the same thing as a notify.
    pub(super) fn merge_some(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        let Waiting { notifies, refreshed, others, .. } = &mut waiting;
        let [ours, repairs, rest] =
            shares([notifies.len(), refreshed.len(), others.len()], NOTIFIES_PER_TURN);
        // The newest first: in which order notifies are merged does not matter.
        for (list, share) in [(notifies, ours), (refreshed, repairs)] {
            for Reached { handle, inbox_seq } in std::iter::from_fn(|| list.pop()).take(share) {
                self.merge(handle, inbox_seq, &[]);
            }
        }
        let rest = std::iter::from_fn(|| others.pop()).take(rest);
        for NotifyConnection { handle, inbox_seq, conversations } in rest {
            self.merge(handle, inbox_seq, &conversations);
        }
        self.waiting = waiting;
    }

    /// The write follows when all of this turn is merged.
    fn merge(&mut self, handle: u64, inbox_seq: u64, conversations: &[ConversationSeq]) {
        let found = self.place(handle).and_then(|place| Some((place, self.table.get_mut(place)?)));
        let Some((place, connection)) = found else {
            return self.shared.metrics.traffic.notifies.one(Notified::Absent);
        };
        let (env, rng) = (&self.env, &mut self.rng);
        let cx = Cx { now: self.now, handle, env, rng, out: &mut self.out, ups: &mut self.ups };
        let pending = connection.session.notify(&cx, inbox_seq, conversations);
        if pending && !connection.dirty {
            connection.dirty = true;
            self.dirty.push(place);
        }
    }

    /// Writes what is pending to those who were told something new.
    pub(super) fn tell_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        let mut tally = Tally::default();
        for place in dirty.drain(..) {
            let Some(connection) = self.table.get_mut(place) else { continue };
            connection.dirty = false;
            match connection.tell(&mut self.frames) {
                Told::All(bytes) => tally.wrote(bytes),
                Told::Later => {}
                Told::Otherwise => drop(self.with(place, |_, _| {})),
                Told::Part(bytes) => {
                    tally.wrote(bytes);
                    tally.blocked += 1;
                    self.with(place, |session, cx| session.blocked(cx));
                }
                Told::Full => {
                    tally.blocked += 1;
                    self.with(place, |session, cx| session.blocked(cx));
                }
            }
        }
        self.dirty = dirty;
        let traffic = &self.shared.metrics.traffic;
        if tally.frames > 0 {
            traffic.frames_out.add(FrameOut::Notify, tally.frames);
            traffic.bytes_out.increment(tally.bytes);
        }
        if tally.blocked > 0 {
            traffic.writes_blocked.increment(tally.blocked);
        }
    }
}

impl Tally {
    fn wrote(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }
}

/// What each of three lists has of a turn: an equal share, and what the others leave. However long one is, always, the
/// others go on: what repairs a lost notify is needed most when notifies come faster than they are written.
fn shares(lengths: [usize; 3], turn: usize) -> [usize; 3] {
    let mut shares = lengths.map(|length| length.min(turn / 3));
    let mut left = turn - shares.iter().sum::<usize>();
    for (share, length) in shares.iter_mut().zip(lengths) {
        let more = (length - *share).min(left);
        *share += more;
        left -= more;
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_turn_is_used_and_nobody_is_left_out(lengths in prop::array::uniform3(0usize..700), turn in 3usize..600) {
            let shares = shares(lengths, turn);
            prop_assert_eq!(shares.iter().sum::<usize>(), turn.min(lengths.iter().sum()));
            for (share, length) in shares.into_iter().zip(lengths) {
                prop_assert!(share <= length && share >= length.min(turn / 3));
            }
        }
    }
}
