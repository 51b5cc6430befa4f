//! The requests of one connection that wait for logic.
//!
//! Upwards a request travels under a number of our own, never used twice on a connection: an answer that comes after its
//! deadline cannot be taken for that of a later request to which the client gave the same id.

use berth_proto::{
    client::{Request, request::Method},
    limits,
};

use crate::metrics::Asked;

/// Requests with large answers that are at logic at a time, of one connection; those behind them wait here. An answer may
/// have [`limits::SERVER_FRAME`] bytes, so this is what bounds the answers of a peer that does not take them: two, where
/// [`limits::IN_FLIGHT`] of them would be 16 MiB. Two, so that one is fetched while the other is written.
const LARGE: usize = 2;

/// A request that waits.
#[derive(Debug, PartialEq)]
pub(super) struct Waiting {
    /// Ours, on the link.
    pub(super) number: u32,
    /// The client's.
    pub(super) id: u32,
    /// On the steady scale.
    pub(super) since_ms: i64,
    /// What for.
    pub(super) asked: Asked,
    /// Its answer may be large.
    large: bool,
    /// It is still here.
    parked: Option<Box<Request>>,
}

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// The id is in flight already.
    Duplicate,
    /// There are [`limits::IN_FLIGHT`] already.
    TooMany,
}

/// At most [`limits::IN_FLIGHT`] requests, oldest first. Empty it holds no memory.
#[derive(Debug, Default)]
#[expect(clippy::box_collection, reason = "8 bytes instead of 24 in every idle connection")]
pub(super) struct InFlight {
    waiting: Option<Box<Vec<Waiting>>>,
    last_number: u32,
}

impl InFlight {
    pub(super) fn len(&self) -> usize {
        self.waiting.as_ref().map_or(0, |waiting| waiting.len())
    }

    /// Takes a request in; returns its number on the link.
    pub(super) fn insert(&mut self, id: u32, asked: Asked, now_ms: i64) -> Result<u32, NotTaken> {
        let waiting = self.waiting.get_or_insert_default();
        if waiting.iter().any(|one| one.id == id) {
            return Err(NotTaken::Duplicate);
        }
        if waiting.len() >= limits::IN_FLIGHT {
            return Err(NotTaken::TooMany);
        }
        // After 2^32 requests the numbers begin again; what waits is at most seconds old by then.
        self.last_number = self.last_number.wrapping_add(1);
        waiting.push(Waiting {
            number: self.last_number,
            id,
            since_ms: now_ms,
            asked,
            large: false,
            parked: None,
        });
        Ok(self.last_number)
    }

    /// Whether a request that was taken in, under its number, goes to logic now; if not it is kept for
    /// [`InFlight::unpark`]. Only those with large answers ever wait, so that nothing a client says waits for what it reads.
    pub(super) fn admit(&mut self, request: Request) -> Option<Request> {
        if !is_large(&request) {
            return Some(request);
        }
        let room = self.room();
        let one = self.waiting.as_mut()?.iter_mut().find(|one| one.number == request.id)?;
        one.large = true;
        if room {
            return Some(request);
        }
        one.parked = Some(Box::new(request));
        None
    }

    /// The next request that was kept, if it may go now.
    pub(super) fn unpark(&mut self) -> Option<Request> {
        if !self.room() {
            return None;
        }
        self.waiting.as_mut()?.iter_mut().find_map(|one| one.parked.take()).map(|request| *request)
    }

    /// The peer took what was unsent: the time of those that were kept for its sake begins now.
    pub(super) fn restart_parked(&mut self, now_ms: i64) {
        let waiting = self.waiting.iter_mut().flat_map(|waiting| waiting.iter_mut());
        waiting.filter(|one| one.parked.is_some()).for_each(|one| one.since_ms = now_ms);
    }

    fn room(&self) -> bool {
        let at_logic = |one: &&Waiting| one.large && one.parked.is_none();
        self.waiting.as_ref().is_none_or(|waiting| waiting.iter().filter(at_logic).count() < LARGE)
    }

    /// Takes out the request with that number, unless it is gone.
    pub(super) fn remove(&mut self, number: u32) -> Option<Waiting> {
        let waiting = self.waiting.as_mut()?;
        let at = waiting.iter().position(|one| one.number == number)?;
        let found = waiting.remove(at);
        if waiting.is_empty() {
            self.waiting = None;
        }
        Some(found)
    }

    /// Since when the oldest waits. `blocked`: the peer takes nothing, so those kept here wait for it and are not counted.
    pub(super) fn oldest_ms(&self, blocked: bool) -> Option<i64> {
        let waiting = self.waiting.iter().flat_map(|waiting| waiting.iter());
        waiting.filter(|one| one.counts(blocked)).map(|one| one.since_ms).min()
    }

    /// Takes out one that came at or before `ms`, of those that [`InFlight::oldest_ms`] looks at.
    pub(super) fn remove_older(&mut self, ms: i64, blocked: bool) -> Option<Waiting> {
        let old = |one: &&Waiting| one.counts(blocked) && one.since_ms <= ms;
        let number = self.waiting.as_ref()?.iter().find(old)?.number;
        self.remove(number)
    }
}

impl Waiting {
    fn counts(&self, blocked: bool) -> bool {
        !blocked || self.parked.is_none()
    }
}

fn is_large(request: &Request) -> bool {
    matches!(request.method, Some(Method::Pull(_) | Method::History(_) | Method::Conversations(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_does_not_meet_a_reused_id() {
        let mut in_flight = InFlight::default();
        let first = in_flight.insert(7, Asked::Pull, 0).expect("room");
        assert_eq!(in_flight.insert(7, Asked::Pull, 1), Err(NotTaken::Duplicate));
        assert_eq!(in_flight.remove_older(0, false).map(|w| w.id), Some(7));
        let second = in_flight.insert(7, Asked::Pull, 2).expect("room");
        assert_eq!(in_flight.remove(first), None);
        assert_eq!(in_flight.remove(second).map(|w| w.id), Some(7));
    }

    #[test]
    fn two_large_answers_are_fetched_at_a_time_and_nothing_else_waits() {
        let mut in_flight = InFlight::default();
        let pull = Method::Pull(berth_proto::client::PullRequest::default());
        let ack = Method::Ack(berth_proto::client::AckRequest::default());
        let mut goes = Vec::new();
        for (id, method) in (1..).zip([&pull, &pull, &pull, &ack, &pull]) {
            let number = in_flight.insert(id, Asked::Pull, 0).expect("room");
            goes.push(in_flight.admit(Request { id: number, method: Some(method.clone()) }).is_some());
        }
        assert_eq!(goes, [true, true, false, true, false]);
        assert_eq!(in_flight.unpark(), None);
        in_flight.remove(4);
        assert_eq!(in_flight.unpark(), None, "an ack makes no room");
        in_flight.restart_parked(7);
        // Nobody is told that logic was slow because he is.
        assert_eq!((in_flight.oldest_ms(true), in_flight.oldest_ms(false)), (Some(0), Some(0)));
        assert_eq!(in_flight.remove_older(4, true).map(|one| one.number), Some(1));
        assert_eq!(in_flight.remove_older(9, true).map(|one| one.number), Some(2));
        assert_eq!((in_flight.oldest_ms(true), in_flight.oldest_ms(false)), (None, Some(7)));
        assert_eq!(in_flight.unpark().map(|request| request.id), Some(3), "in order");
        assert_eq!(in_flight.unpark().map(|request| request.id), Some(5));
        assert_eq!(in_flight.unpark(), None);
        assert_eq!(in_flight.remove_older(i64::MAX, false).map(|one| one.number), Some(3));
    }

    #[test]
    fn sixteen_wait_and_empty_costs_nothing() {
        let mut in_flight = InFlight::default();
        let numbers: Vec<_> =
            (1..=16).map(|id| in_flight.insert(id, Asked::Pull, 0).expect("room")).collect();
        assert_eq!(in_flight.insert(17, Asked::Pull, 0), Err(NotTaken::TooMany));
        for number in numbers {
            assert!(in_flight.remove(number).is_some());
        }
        assert!(in_flight.waiting.is_none());
        assert_eq!(in_flight.oldest_ms(false), None);
    }
}
