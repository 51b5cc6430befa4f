//! What a run is judged by: imbalance, moves, waiting and recovery.

use serde::Serialize;

use super::{Strategy, gateway::Gateway};

/// Connected again is who lacks at most this share of those before.
const RECOVERED: f64 = 0.99;

/// A pool whose gateways have fewer connections than this on average has no imbalance: one client more would be a tenth.
const ENOUGH: f64 = 10.0;

/// The state at one second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Virtual seconds from the beginning.
    pub second: u32,
    /// The fullest gateway over the mean of its pool, for the pool where that is most; of a pool that is nearly empty, 1.
    pub imbalance: f64,
    /// Clients connected.
    pub connected: u32,
    /// Clients that want a connection and have none.
    pub waiting: u32,
    /// Of those connected, the share in pool `canary`.
    pub canary: f64,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// How gateways were chosen.
    pub strategy: &'static str,
    /// How old reports were, in milliseconds.
    pub report_delay_ms: u32,
    /// The largest imbalance after the warm-up, or, where something happens, from the first event on.
    pub imbalance_max: f64,
    /// Its mean over the same time.
    pub imbalance_mean: f64,
    /// At the end.
    pub imbalance_end: f64,
    /// Connections made to another gateway than the client had before.
    pub moves: u64,
    /// Connections made.
    pub connects: u64,
    /// Decisions.
    pub decisions: u64,
    /// Decisions that found no gateway.
    pub no_gateway: u64,
    /// From wanting a connection to having it, in milliseconds: the median, the 99th of a hundred, the longest.
    pub wait_ms: [u32; 3],
    /// The most clients that waited at a time.
    pub waiting_max: u32,
    /// From the first event until as many are connected as before it, but for one in a hundred. None: no event, or not
    /// within the run.
    pub recovery_seconds: Option<u32>,
    /// Second by second.
    pub samples: Vec<Sample>,
}

/// Counts while a run goes on.
pub(super) struct Measure {
    /// Nothing before this counts.
    from_ms: u32,
    first_event: Option<u32>,
    pub moves: u64,
    pub connects: u64,
    pub decisions: u64,
    pub no_gateway: u64,
    waits_ms: Vec<u32>,
    samples: Vec<Sample>,
}

impl Measure {
    pub fn new(warm_up_seconds: u32, first_event: Option<u32>) -> Self {
        Self {
            from_ms: first_event.unwrap_or(warm_up_seconds) * 1_000,
            first_event,
            moves: 0,
            connects: 0,
            decisions: 0,
            no_gateway: 0,
            waits_ms: Vec::new(),
            samples: Vec::new(),
        }
    }

    pub fn counts(&self, now_ms: u32) -> bool {
        now_ms >= self.from_ms
    }

    /// A client has what it wanted since `wanted_ms`.
    pub fn connected(&mut self, wanted_ms: u32, now_ms: u32, moved: bool) {
        if self.counts(now_ms) {
            self.connects += 1;
            self.moves += u64::from(moved);
            self.waits_ms.push(now_ms - wanted_ms);
        }
    }

    pub fn sample(&mut self, second: u32, gateways: &[Gateway], connected: usize, waiting: u32) {
        let canaries = gateways.iter().filter(|gateway| gateway.canary());
        let in_canary: u64 = canaries.map(|gateway| gateway.connections).sum();
        self.samples.push(Sample {
            second,
            imbalance: imbalance(gateways, false).max(imbalance(gateways, true)),
            connected: u32::try_from(connected).unwrap_or(u32::MAX),
            waiting,
            canary: in_canary as f64 / (connected.max(1)) as f64,
        });
    }

    pub fn outcome(mut self, strategy: Strategy, report_delay_ms: u32) -> Outcome {
        let from = self.from_ms / 1_000;
        let counted: Vec<f64> = self
            .samples
            .iter()
            .filter(|sample| sample.second >= from)
            .map(|sample| sample.imbalance)
            .collect();
        self.waits_ms.sort_unstable();
        let wait = |share: f64| {
            let place = (share * self.waits_ms.len() as f64).ceil() as usize;
            self.waits_ms.get(place.saturating_sub(1)).copied().unwrap_or(0)
        };
        let counting = self.samples.iter().filter(|sample| sample.second >= from);
        Outcome {
            strategy: strategy.name(),
            report_delay_ms,
            imbalance_max: counted.iter().copied().fold(0.0, f64::max),
            imbalance_mean: counted.iter().sum::<f64>() / counted.len().max(1) as f64,
            imbalance_end: counted.last().copied().unwrap_or(0.0),
            moves: self.moves,
            connects: self.connects,
            decisions: self.decisions,
            no_gateway: self.no_gateway,
            wait_ms: [wait(0.5), wait(0.99), wait(1.0)],
            waiting_max: counting.map(|sample| sample.waiting).max().unwrap_or(0),
            recovery_seconds: self.recovery(),
            samples: self.samples,
        }
    }

    /// From the last second in which too few were connected.
    fn recovery(&self) -> Option<u32> {
        let event = self.first_event?;
        let before = self.samples.iter().rev().find(|sample| sample.second < event)?.connected;
        let after = self.samples.iter().filter(|sample| sample.second >= event);
        let missing = |sample: &&Sample| f64::from(sample.connected) < RECOVERED * f64::from(before);
        let last_missing = after.filter(missing).map(|sample| sample.second).max();
        let recovered = last_missing.map_or(event, |second| second + 1);
        let end = self.samples.last()?.second;
        (recovered <= end).then_some(recovered - event)
    }
}

/// The fullest of the living gateways of a pool over their mean, each as a share of its capacity.
fn imbalance(gateways: &[Gateway], canary: bool) -> f64 {
    let pool = || gateways.iter().filter(|gateway| gateway.alive && gateway.canary() == canary);
    let most =
        pool().map(|gateway| gateway.connections as f64 / gateway.capacity() as f64).fold(0.0, f64::max);
    let connections: u64 = pool().map(|gateway| gateway.connections).sum();
    let capacity: u64 = pool().map(Gateway::capacity).sum();
    if (connections as f64) < ENOUGH * pool().count().max(1) as f64 {
        return 1.0;
    }
    most / (connections as f64 / capacity as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateways(connections: &[u64]) -> Vec<Gateway> {
        let gateway = |(number, connections): (u32, &u64)| {
            let mut gateway = Gateway::new(number, false, 100, 10);
            gateway.connections = *connections;
            gateway
        };
        (0..).zip(connections).map(gateway).collect()
    }

    #[test]
    fn imbalance_is_of_the_living_of_each_pool() {
        let mut fleet = gateways(&[30, 10, 20]);
        assert!((imbalance(&fleet, false) - 1.5).abs() < 1e-9);
        fleet[0].alive = false;
        assert!((imbalance(&fleet, false) - 20.0 / 15.0).abs() < 1e-9);
        assert_eq!(imbalance(&fleet, true), 1.0);
    }

    #[test]
    fn recovery_is_from_the_event_to_the_last_second_that_lacked_somebody() {
        let mut measure = Measure::new(0, Some(2));
        for (second, connected) in (0..).zip([100, 100, 40, 99, 90, 99, 100]) {
            measure.sample(second, &gateways(&[1]), connected, 0);
        }
        measure.connected(2_000, 2_100, true);
        measure.connected(2_000, 2_300, false);
        measure.connected(1_000, 1_900, true);
        let outcome = measure.outcome(Strategy::Berth, 500);
        assert_eq!(outcome.recovery_seconds, Some(3));
        assert_eq!(
            (outcome.connects, outcome.moves, outcome.wait_ms),
            (2, 1, [100, 300, 300]),
            "before the event nothing counts"
        );
    }
}
