//! How loaded this gateway is, as reports tell it: each figure smoothed, beside what there is of it.
//!
//! The gateway smooths, not the scheduler: so every replica, however long it has run, is told the same.

mod system;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use berth_proto::wire::GatewayLoad;
use metrics::Counter;

pub(crate) use self::system::System;

/// Figures follow what is measured with this time constant, in milliseconds: a turn of eight reports. Shorter than a storm
/// takes to be felt, longer than one batch of notifies.
const SMOOTH_MS: f64 = 4_000.0;

/// A worker that wakes so late, in microseconds, is as late as may be: a round trip to another continent.
const LOOP_LAG_CAPACITY_US: u64 = 200_000;

/// A counter that can be read back.
pub(crate) struct Counted {
    counter: Counter,
    total: AtomicU64,
}

impl Counted {
    pub(crate) fn new(counter: Counter) -> Self {
        Self { counter, total: AtomicU64::new(0) }
    }

    pub(crate) fn increment(&self, count: u64) {
        self.counter.increment(count);
        self.total.fetch_add(count, Relaxed);
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }
}

/// What was counted since the start, at one time; and the memory held then.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    pub(crate) at_ms: i64,
    pub(crate) handshakes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) cpu_us: u64,
    pub(crate) resident_bytes: u64,
    /// The latest that any worker woke since the last time.
    pub(crate) lag_us: u64,
}

/// What there is of each; 0: not known, so that figure counts for nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Capacities {
    pub(crate) sent_bytes_per_second: u64,
    pub(crate) cpu_millis_per_second: u64,
    pub(crate) memory_bytes: u64,
}

/// Turns totals into smoothed rates.
#[derive(Debug)]
pub(crate) struct Meter {
    capacities: Capacities,
    last: Totals,
    handshakes: f64,
    sent_bytes: f64,
    cpu_millis: f64,
    lag_us: f64,
}

impl Meter {
    pub(crate) fn new(capacities: Capacities, now: Totals) -> Self {
        Self { capacities, last: now, handshakes: 0.0, sent_bytes: 0.0, cpu_millis: 0.0, lag_us: 0.0 }
    }

    /// What to report now.
    pub(crate) fn measure(&mut self, now: Totals) -> GatewayLoad {
        let passed_ms = now.at_ms - self.last.at_ms;
        // Two reports within a millisecond: nothing can be said of what happened between.
        if passed_ms > 0 {
            let passed = passed_ms as f64;
            let follow = 1.0 - (-passed / SMOOTH_MS).exp();
            let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 * 1_000.0 / passed;
            let smooth = |figure: &mut f64, value: f64| *figure += (value - *figure) * follow;
            smooth(&mut self.handshakes, rate(now.handshakes, self.last.handshakes));
            smooth(&mut self.sent_bytes, rate(now.sent_bytes, self.last.sent_bytes));
            smooth(&mut self.cpu_millis, rate(now.cpu_us, self.last.cpu_us) / 1_000.0);
            smooth(&mut self.lag_us, now.lag_us as f64);
            self.last = now;
        }
        GatewayLoad {
            handshakes_per_second: self.handshakes.round() as u64,
            sent_bytes_per_second: self.sent_bytes.round() as u64,
            sent_bytes_per_second_capacity: self.capacities.sent_bytes_per_second,
            cpu_millis_per_second: self.cpu_millis.round() as u64,
            cpu_millis_per_second_capacity: self.capacities.cpu_millis_per_second,
            resident_bytes: now.resident_bytes,
            resident_bytes_capacity: self.capacities.memory_bytes,
            loop_lag_us: self.lag_us.round() as u64,
            loop_lag_us_capacity: LOOP_LAG_CAPACITY_US,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meter() -> Meter {
        let capacities =
            Capacities { sent_bytes_per_second: 0, cpu_millis_per_second: 2_000, memory_bytes: 1_000 };
        Meter::new(capacities, Totals::default())
    }

    /// Totals after `count` reports of a steady load: 100 handshakes, 5,000 bytes, 1.5 cores a second, 3 ms late.
    fn steady(count: i64) -> Totals {
        let halves = count.unsigned_abs();
        Totals {
            at_ms: count * 500,
            handshakes: halves * 50,
            sent_bytes: halves * 2_500,
            cpu_us: halves * 750_000,
            resident_bytes: 400,
            lag_us: 3_000,
        }
    }

    #[test]
    fn a_steady_load_is_told_as_it_is() {
        let mut meter = meter();
        let first = meter.measure(steady(1));
        assert!(first.cpu_millis_per_second < 300, "one report is not believed at once: {first:?}");
        let last = (2..100).map(|count| meter.measure(steady(count))).last().expect("98");
        let expected = GatewayLoad {
            handshakes_per_second: 100,
            sent_bytes_per_second: 5_000,
            sent_bytes_per_second_capacity: 0,
            cpu_millis_per_second: 1_500,
            cpu_millis_per_second_capacity: 2_000,
            resident_bytes: 400,
            resident_bytes_capacity: 1_000,
            loop_lag_us: 3_000,
            loop_lag_us_capacity: 200_000,
        };
        assert_eq!(last, expected);
        assert_eq!(meter.measure(steady(99)), expected, "no time has passed");
    }

    proptest! {
        #[test]
        fn how_often_is_asked_changes_little(steps in prop::collection::vec(1..800i64, 20..60)) {
            // One core, asked at any times: after ten seconds at least it is told within 10%.
            let (mut meter, mut at_ms, mut load) = (meter(), 0, GatewayLoad::default());
            while at_ms < 10_000 {
                for step in &steps {
                    at_ms += step;
                    load = meter.measure(Totals { at_ms, cpu_us: at_ms.unsigned_abs() * 1_000, ..Totals::default() });
                }
            }
            prop_assert!((900..=1_000).contains(&load.cpu_millis_per_second), "{load:?}");
        }
    }
}
