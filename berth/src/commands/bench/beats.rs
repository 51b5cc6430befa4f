//! Heartbeats: due at fixed times, and measured from those. Another one is due an interval after the last one was, however
//! late that was sent or answered: a server or a generator that stalls is charged with every beat that it held up.

use std::cmp::Reverse;

use super::{
    fleet::{Fleet, Step},
    pace::Nanos,
};

/// Heartbeats sent in one turn of the loop, so that answers are read between them.
const A_TURN: usize = 256;

/// The heartbeats of a connection that are not answered yet. Answers come in order.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    count: u32,
    /// When the oldest was due.
    oldest: Nanos,
}

impl Unanswered {
    /// One that was due at this time is sent; says whether there are others before it.
    fn sent(&mut self, due: Nanos) -> bool {
        if self.count == 0 {
            self.oldest = due;
        }
        self.count += 1;
        self.count > 1
    }

    /// The oldest is answered; gives the time since it was due. `None`: an answer to nothing.
    fn answered(&mut self, now: Nanos, interval: Nanos) -> Option<Nanos> {
        self.count = self.count.checked_sub(1)?;
        let due = self.oldest;
        self.oldest += interval;
        Some(now.saturating_sub(due))
    }
}

impl Fleet {
    /// A client lives from now on.
    pub(super) fn begin_beats(&mut self, who: usize, now: Nanos) {
        let peer = &mut self.peers[who];
        peer.beats = Unanswered::default();
        let who = u32::try_from(who).unwrap_or(u32::MAX);
        self.beats.push(Reverse((now + self.interval, who, peer.attempt)));
    }

    /// Sends the heartbeats that are due; gives the time of the next.
    pub(super) fn beats_due(&mut self, now: Nanos) -> Option<Nanos> {
        for _ in 0..A_TURN {
            let Reverse((due, who, attempt)) = *self.beats.peek()?;
            if due > now {
                return Some(due);
            }
            self.beats.pop();
            let peer = &mut self.peers[who as usize];
            if peer.step != Step::Live || peer.attempt != attempt {
                continue;
            }
            if peer.beats.sent(due) {
                self.tally.error("heartbeat:unanswered");
            }
            // A broken connection also becomes readable: the loss is dealt with there.
            let _ = peer.stream.as_mut().map(|stream| stream.send(&self.beat));
            self.beats.push(Reverse((due + self.interval, who, attempt)));
        }
        Some(now)
    }

    pub(super) fn beat_answered(&mut self, who: usize, now: Nanos) {
        if let Some(latency) = self.peers[who].beats.answered(now, self.interval) {
            self.latencies.heartbeat.record(latency);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_beat_counts_from_when_it_was_due() {
        let mut beats = Unanswered::default();
        assert!(!beats.sent(100));
        assert_eq!(beats.answered(103, 100), Some(3));
        // A stall from 190 to 450 holds up three; the one of 200 waited longest.
        assert_eq!([200, 300, 400].map(|due| beats.sent(due)), [false, true, true]);
        assert_eq!([250, 151, 52].map(Some), [450, 451, 452].map(|now| beats.answered(now, 100)));
        assert_eq!(beats.answered(460, 100), None);
        assert!(!beats.sent(500));
        assert_eq!(beats.answered(501, 100), Some(1));
    }
}
