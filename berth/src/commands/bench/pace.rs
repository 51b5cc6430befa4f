//! When things are to be done: fixed in advance for an open loop, as soon as there is room for a closed one. Pure.

use std::collections::VecDeque;

/// Nanoseconds on the run's own clock.
pub type Nanos = u64;

/// Nanoseconds of a second.
pub const SECOND: Nanos = 1_000_000_000;

/// After the load, what is still on its way is waited for as long as something comes within this.
pub const QUIET: Nanos = 5 * SECOND;

/// `seconds` in nanoseconds; below zero is zero.
pub fn nanos(seconds: f64) -> Nanos {
    (seconds * SECOND as f64) as Nanos
}

/// A fixed schedule: the k-th thing is due at `start + k / rate`, however late the ones before it were done. What is
/// measured from there does not forget the time that a stalled server kept the next ones from being sent.
#[derive(Debug, Clone)]
pub struct Pace {
    start: Nanos,
    per_second: f64,
    next: u64,
}

impl Pace {
    /// `per_second` is above zero.
    pub fn new(start: Nanos, per_second: f64) -> Self {
        Self { start, per_second, next: 0 }
    }

    /// When the k-th is due.
    pub fn at(&self, k: u64) -> Nanos {
        self.start + nanos(k as f64 / self.per_second)
    }

    /// When the next one is due.
    pub fn next_at(&self) -> Nanos {
        self.at(self.next)
    }

    /// How many are due before `until`.
    pub fn before(&self, until: Nanos) -> u64 {
        let span = until.saturating_sub(self.start) as f64 / SECOND as f64;
        // `at` rounds: the last one may be on either side of the estimate.
        let mut count = (span * self.per_second) as u64;
        while count > 0 && self.at(count - 1) >= until {
            count -= 1;
        }
        while self.at(count) < until {
            count += 1;
        }
        count
    }

    /// The next one's intended time, if it has come.
    pub fn take(&mut self, now: Nanos) -> Option<Nanos> {
        let at = self.next_at();
        (at <= now).then(|| {
            self.next += 1;
            at
        })
    }
}

/// A place for one thing in flight: one of a lane's few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which lane: a sender's connection, an HTTP connection.
    pub lane: usize,
    /// Which of the lane's places, from 1: a request id.
    pub id: u32,
}

/// Something in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flight {
    /// Counts from 0 over the whole run.
    pub number: u64,
    /// When it was to be sent: what latency counts from.
    pub intended: Nanos,
}

/// Things sent over lanes with a bounded number of places, in an open loop (a rate) or a closed one (whenever a place is
/// free). In an open loop what finds no place waits, and its latency counts from its intended time all the same.
#[derive(Debug)]
pub struct Flights {
    free: VecDeque<Place>,
    open: Vec<Vec<Option<Flight>>>,
    pace: Option<Pace>,
    until: Nanos,
    next: u64,
    in_flight: usize,
}

impl Flights {
    /// Of `lanes` lanes with room for `places` in all, at most `per_lane` on each. Nothing is intended from `until` on.
    pub fn new(lanes: usize, per_lane: usize, places: usize, pace: Option<Pace>, until: Nanos) -> Self {
        // Round the lanes, so that neighbours in time travel by different ones.
        let ids = 1..=u32::try_from(per_lane).unwrap_or(u32::MAX);
        let all = ids.flat_map(|id| (0..lanes).map(move |lane| Place { lane, id }));
        let open = vec![vec![None; per_lane]; lanes];
        Self { free: all.take(places).collect(), open, pace, until, next: 0, in_flight: 0 }
    }

    /// The next thing to send now, and where.
    pub fn launch(&mut self, now: Nanos) -> Option<(Place, Flight)> {
        if self.free.is_empty() || self.ended(now) {
            return None;
        }
        let intended = match &mut self.pace {
            Some(pace) => pace.take(now)?,
            None => now,
        };
        let place = self.free.pop_front()?;
        let flight = Flight { number: self.next, intended };
        self.next += 1;
        self.in_flight += 1;
        *self.slot(place)? = Some(flight);
        Some((place, flight))
    }

    /// What had this place, which is free again; `None` if nothing had it.
    pub fn land(&mut self, place: Place) -> Option<Flight> {
        let flight = self.slot(place)?.take()?;
        self.in_flight -= 1;
        self.free.push_back(place);
        Some(flight)
    }

    /// The lane is gone, its places too; gives what was in flight there, whose fate is unknown.
    pub fn close(&mut self, lane: usize) -> Vec<Flight> {
        self.free.retain(|place| place.lane != lane);
        let Some(open) = self.open.get_mut(lane) else { return Vec::new() };
        let gone: Vec<Flight> = open.iter_mut().filter_map(Option::take).collect();
        self.in_flight -= gone.len();
        gone
    }

    /// Puts back what just landed, to be tried again in its place.
    pub fn keep(&mut self, place: Place, flight: Flight) {
        self.free.retain(|free| *free != place);
        if let Some(slot) = self.slot(place) {
            *slot = Some(flight);
            self.in_flight += 1;
        }
    }

    /// Whether every lane is gone: nothing can be launched, ever. Without lanes from the start there was nothing to launch.
    pub fn stuck(&self) -> bool {
        !self.open.is_empty() && self.free.is_empty() && self.in_flight == 0
    }

    /// Whether the launching is over: everything was launched, or nothing can be, or the end has come and nothing has moved
    /// since `moved` for [`QUIET`]: a server that answers nothing any more keeps every place.
    pub fn over(&self, now: Nanos, moved: Nanos) -> bool {
        let given_up = now >= self.until && now.saturating_sub(moved) > QUIET;
        self.open.is_empty() || self.ended(now) || self.stuck() || given_up
    }

    /// How many were intended and not launched: an open loop owes them all by its end.
    pub fn never_launched(&self) -> u64 {
        let pace = self.pace.as_ref().filter(|_| !self.open.is_empty());
        pace.map_or(0, |pace| pace.before(self.until).saturating_sub(self.next))
    }

    /// Whether the load was not carried to its end by those who had to: it is over, and something was never launched or
    /// nobody is left.
    pub fn aborted(&self) -> bool {
        self.stuck() || self.never_launched() > 0
    }

    /// How many are in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many were launched.
    pub fn launched(&self) -> u64 {
        self.next
    }

    /// Whether nothing will be launched any more. In an open loop what was intended before the end is still sent.
    pub fn ended(&self, now: Nanos) -> bool {
        match &self.pace {
            Some(pace) => pace.next_at() >= self.until,
            None => now >= self.until,
        }
    }

    /// When to look again by itself: only an open loop with room waits for a time.
    pub fn next_at(&self) -> Option<Nanos> {
        let at = self.pace.as_ref()?.next_at();
        (!self.free.is_empty() && at < self.until).then_some(at)
    }

    /// Stops launching.
    pub fn stop(&mut self) {
        self.until = 0;
    }

    fn slot(&mut self, place: Place) -> Option<&mut Option<Flight>> {
        self.open.get_mut(place.lane)?.get_mut((place.id as usize).checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::histogram::Histogram, *};

    /// A server that answers after `service`, except that whatever reaches it during its stall waits for the end of that.
    struct Fake {
        stall: std::ops::Range<Nanos>,
        service: Nanos,
    }

    impl Fake {
        fn answers_at(&self, sent: Nanos) -> Nanos {
            if self.stall.contains(&sent) { self.stall.end + self.service } else { sent + self.service }
        }
    }

    const MS: Nanos = 1_000_000;

    /// Ten seconds of load in steps of a millisecond; the latencies from intended to answered.
    fn ten_seconds(mut flights: Flights, fake: &Fake) -> Histogram {
        let (mut latencies, mut open) = (Histogram::default(), Vec::<(Nanos, Place)>::new());
        for now in (0..).map(|step| step * MS) {
            open.retain(|(answered, place)| {
                if *answered <= now {
                    let flight = flights.land(*place).expect("was in flight");
                    latencies.record(now - flight.intended);
                }
                *answered > now
            });
            while let Some((place, _)) = flights.launch(now) {
                open.push((fake.answers_at(now), place));
            }
            if open.is_empty() && flights.ended(now) {
                return latencies;
            }
        }
        latencies
    }

    #[test]
    fn a_stall_of_a_second_shows_in_proportion() {
        let fake = Fake { stall: 5 * SECOND..6 * SECOND, service: MS };
        let quiet = Fake { stall: 0..0, service: MS };
        let flights = |rate| Flights::new(4, 16, 64, Some(Pace::new(0, rate)), 10 * SECOND);
        for rate in [100.0, 1_000.0] {
            let stalled = ten_seconds(flights(rate), &fake);
            assert_eq!(stalled.count(), 10 * rate as u64, "as many as intended, stall or not");
            // A tenth of the run was stalled: a tenth of the latencies spread evenly from 1 s down to nothing.
            assert!(stalled.max() >= 990 * MS, "max {}", stalled.max());
            let p99 = stalled.percentile(99.0);
            assert!((850 * MS..=1_000 * MS).contains(&p99), "p99 {p99}");
            let p95 = stalled.percentile(95.0);
            assert!((400 * MS..=600 * MS).contains(&p95), "p95 {p95}");
            assert!(stalled.percentile(50.0) <= 2 * MS);
            assert!(ten_seconds(flights(rate), &quiet).max() <= 2 * MS);
        }
    }

    #[test]
    fn a_closed_loop_keeps_exactly_its_places_busy() {
        let fake = Fake { stall: 0..0, service: 10 * MS };
        let latencies = ten_seconds(Flights::new(2, 16, 20, None, 10 * SECOND), &fake);
        assert_eq!(latencies.count(), 20 * 1_000);
        assert_eq!(latencies.max(), 10 * MS);
    }

    #[test]
    fn a_closed_lane_gives_up_what_it_had() {
        let mut flights = Flights::new(2, 2, 4, None, SECOND);
        let launched: Vec<_> = std::iter::from_fn(|| flights.launch(0)).collect();
        assert_eq!(launched.len(), 4);
        assert_eq!(flights.close(1).len(), 2);
        assert_eq!(flights.in_flight(), 2);
        assert!(
            launched.iter().filter(|(place, _)| place.lane == 1).all(|(p, _)| flights.land(*p).is_none())
        );
        let left = launched.iter().find(|(place, _)| place.lane == 0).expect("two of them");
        assert_eq!(flights.land(left.0), Some(left.1));
        assert_eq!(flights.launch(1).map(|(place, _)| place.lane), Some(0));
        assert_eq!(flights.launch(1), None);
    }

    #[test]
    fn a_server_that_answers_nothing_ends_an_open_loop_and_leaves_it_owing() {
        let mut flights = Flights::new(1, 1, 1, Some(Pace::new(0, 10.0)), SECOND);
        assert!(flights.launch(0).is_some() && flights.launch(SECOND).is_none());
        assert!(!flights.over(SECOND + QUIET, SECOND) && !flights.over(SECOND - 1, 0));
        assert!(flights.over(SECOND + QUIET + 1, SECOND));
        assert_eq!((flights.launched(), flights.never_launched(), flights.aborted()), (1, 9, true));
        flights.stop();
        assert_eq!((flights.never_launched(), flights.aborted()), (0, false), "nothing is owed to who stops");
    }

    #[test]
    fn without_lanes_there_is_nothing_to_do_and_nothing_failed() {
        for pace in [None, Some(Pace::new(0, 10.0))] {
            let flights = Flights::new(0, 16, 32, pace, SECOND);
            assert!(flights.over(0, 0) && !flights.aborted());
        }
    }

    proptest! {
        #[test]
        fn what_is_due_before_a_time_is_counted_exactly(rate in 0.5..100_000.0f64, span in 0..5 * SECOND) {
            let (pace, until) = (Pace::new(7, rate), 7 + span);
            let count = pace.before(until);
            prop_assert!(pace.at(count) >= until && (count == 0 || pace.at(count - 1) < until));
        }

        #[test]
        fn the_schedule_does_not_depend_on_when_it_is_looked_at(
            rate in 0.5..100_000.0f64,
            looks in proptest::collection::vec(0..50 * MS, 1..200),
        ) {
            let (mut pace, mut now, mut k) = (Pace::new(7, rate), 0, 0u64);
            for step in looks {
                now += step;
                while let Some(intended) = pace.take(now) {
                    prop_assert_eq!(intended, 7 + nanos(k as f64 / rate));
                    k += 1;
                }
                prop_assert!(pace.next_at() > now);
            }
        }
    }
}
