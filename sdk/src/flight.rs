//! The requests of one connection that wait for their answers. Pure.

use berth_proto::limits;

/// Requests in flight, each with a purpose and a deadline.
#[derive(Debug)]
pub(crate) struct Flight<P> {
    last_id: u32,
    // At most 16: a scan is faster than a map.
    entries: Vec<Entry<P>>,
}

#[derive(Debug)]
struct Entry<P> {
    id: u32,
    deadline_ms: i64,
    purpose: P,
}

impl<P> Flight<P> {
    pub fn new() -> Self {
        Self { last_id: 0, entries: Vec::new() }
    }

    /// Whether another request may go out.
    pub fn has_room(&self) -> bool {
        self.entries.len() < limits::IN_FLIGHT
    }

    /// Registers a request and gives its id. Ask [`Flight::has_room`] first.
    pub fn start(&mut self, purpose: P, deadline_ms: i64) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1).max(1);
            // Ids grow through all of u32 before they come again; one still in flight then is passed over.
            if self.entries.iter().all(|entry| entry.id != self.last_id) {
                break;
            }
        }
        self.entries.push(Entry { id: self.last_id, deadline_ms, purpose });
        self.last_id
    }

    /// The purpose of the request that an answer belongs to; `None`: it is too late, or never was.
    pub fn finish(&mut self, id: u32) -> Option<P> {
        let at = self.entries.iter().position(|entry| entry.id == id)?;
        Some(self.entries.remove(at).purpose)
    }

    /// Takes one request whose deadline has passed.
    pub fn expired(&mut self, now_ms: i64) -> Option<P> {
        let at = self.entries.iter().position(|entry| entry.deadline_ms <= now_ms)?;
        Some(self.entries.remove(at).purpose)
    }

    /// The next deadline.
    pub fn wake_at(&self) -> i64 {
        self.entries.iter().map(|entry| entry.deadline_ms).min().unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_request_ends_once_and_ids_are_unique(
            first: u32, steps in proptest::collection::vec((any::<bool>(), 0usize..20, 0i64..50), 0..200)
        ) {
            let mut flight = Flight { last_id: first, entries: Vec::new() };
            let mut model: Vec<(u32, u32)> = Vec::new();
            let mut next_purpose = 0;
            for (now, (start, which, deadline)) in (0i64..).zip(steps) {
                if start && flight.has_room() {
                    let id = flight.start(next_purpose, now + deadline);
                    prop_assert!(id > 0 && model.iter().all(|(other, _)| *other != id));
                    model.push((id, next_purpose));
                    next_purpose += 1;
                } else if which < model.len() {
                    let (id, purpose) = model.remove(which);
                    prop_assert_eq!(flight.finish(id), Some(purpose));
                    prop_assert_eq!(flight.finish(id), None);
                }
                while let Some(purpose) = flight.expired(now) {
                    let at = model.iter().position(|(_, p)| *p == purpose);
                    prop_assert!(at.is_some());
                    model.remove(at.expect("just checked"));
                }
                prop_assert!(flight.wake_at() > now);
                prop_assert!(model.len() <= limits::IN_FLIGHT);
            }
        }
    }
}
