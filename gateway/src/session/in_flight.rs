//! The requests of one connection that wait for logic.
//!
//! Upwards a request travels under a number of our own, never used twice on a connection: an answer that comes after its
//! deadline cannot be taken for that of a later request to which the client gave the same id.

use berth_proto::limits;

use crate::metrics::Asked;

/// A request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Ours, on the link.
    pub(super) number: u32,
    /// The client's.
    pub(super) id: u32,
    /// On the steady scale.
    pub(super) since_ms: i64,
    /// What for.
    pub(super) asked: Asked,
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
        waiting.push(Waiting { number: self.last_number, id, since_ms: now_ms, asked });
        Ok(self.last_number)
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

    /// Since when the oldest waits.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        self.waiting.as_ref()?.first().map(|one| one.since_ms)
    }

    /// Takes out the oldest, if it came at or before `ms`.
    pub(super) fn remove_older(&mut self, ms: i64) -> Option<Waiting> {
        let oldest = *self.waiting.as_ref()?.first()?;
        if oldest.since_ms > ms { None } else { self.remove(oldest.number) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_does_not_meet_a_reused_id() {
        let mut in_flight = InFlight::default();
        let first = in_flight.insert(7, Asked::Pull, 0).expect("room");
        assert_eq!(in_flight.insert(7, Asked::Pull, 1), Err(NotTaken::Duplicate));
        assert_eq!(in_flight.remove_older(0).map(|w| w.id), Some(7));
        let second = in_flight.insert(7, Asked::Pull, 2).expect("room");
        assert_eq!(in_flight.remove(first), None);
        assert_eq!(in_flight.remove(second).map(|w| w.id), Some(7));
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
        assert_eq!(in_flight.oldest_ms(), None);
    }
}
