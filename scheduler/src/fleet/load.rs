//! Load as a vector: each dimension is a share of what the gateway can do, and the worst one decides.
//!
//! Everything is counted in connections: a gateway for 10,000 whose CPU is three quarters used counts as one with 5,000, so
//! that its load, its pool's sums, the bound and the spill speak of one unit. What a gateway does not report, or has half of
//! left, counts for nothing.

use berth_proto::wire::GatewayReport;

use super::health::REPORT_INTERVAL_MS;

/// A gateway's connections and capacity count up to here, so that sums over a fleet cannot overflow.
pub(super) const MAX_COUNT: u64 = 1 << 32;

/// A dimension counts up to four times its capacity: enough to tell the overloaded apart, and a bound on what one can claim.
pub const MAX_UTILISATION: f64 = 4.0;

/// A dimension other than connections begins to count here. Below, there is enough of it for whoever comes, and its noise
/// must not outweigh connections: one millisecond of lag would be a hundred of them.
const PRESSURE_FROM: f64 = 0.5;

/// Of the distance between the connections and the worst dimension, this part is not counted: where another dimension is
/// much the same everywhere (memory that does not shrink, say), connections go on to be evened out.
const CONNECTIONS_SHARE: f64 = 0.125;

/// A strain that rises from nothing to a full capacity counts in full after this long: ten reports. Moving all at once
/// would send everybody elsewhere within one report, and back with the next.
const SLOW_STOP_MS: f64 = 5_000.0;

/// One that falls stops counting no sooner than this: as long as a new gateway needs to count in full.
const RECOVERY_MS: f64 = 30_000.0;

/// A report is as good as new until the next one is due and late by as much again.
const FRESH_MS: i64 = 2 * REPORT_INTERVAL_MS;

/// From then on half of what a load says is left after each so long.
const HALF_LIFE_MS: f64 = 5_000.0;

/// What a gateway can run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// Connections it holds.
    Connections,
    /// Connections it accepts, a second.
    Handshakes,
    /// Bytes it sends to clients, a second.
    SentBytes,
    /// CPU time, in milliseconds a second.
    Cpu,
    /// Resident memory, in bytes.
    Memory,
    /// How late its workers wake, in microseconds.
    LoopLag,
}

impl Dimension {
    /// Every dimension, in the order of [`Usage::measures`].
    pub const ALL: [Self; 6] =
        [Self::Connections, Self::Handshakes, Self::SentBytes, Self::Cpu, Self::Memory, Self::LoopLag];

    /// Its name in metrics and explanations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Handshakes => "handshakes",
            Self::SentBytes => "sent_bytes",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::LoopLag => "loop_lag",
        }
    }
}

/// A figure and what it may be; a capacity of 0: not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measure {
    /// As reported.
    pub used: u64,
    /// As reported.
    pub capacity: u64,
}

impl Measure {
    /// Used over capacity, at most [`MAX_UTILISATION`]; none: not told.
    #[must_use]
    pub fn utilisation(self) -> Option<f64> {
        (self.capacity > 0).then(|| (self.used as f64 / self.capacity as f64).min(MAX_UTILISATION))
    }
}

/// What one report says of every dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage([Measure; Dimension::ALL.len()]);

impl Usage {
    pub(super) fn of(report: &GatewayReport) -> Self {
        let load = report.load.unwrap_or_default();
        // Without a load there is no rate to compare with the budget.
        let handshakes = report.load.map_or(0, |_| report.handshakes_per_second_capacity);
        let measure = |used, capacity| Measure { used, capacity };
        Self([
            measure(report.connections.min(MAX_COUNT), report.capacity.min(MAX_COUNT)),
            measure(load.handshakes_per_second, handshakes),
            measure(load.sent_bytes_per_second, load.sent_bytes_per_second_capacity),
            measure(load.cpu_millis_per_second, load.cpu_millis_per_second_capacity),
            measure(load.resident_bytes, load.resident_bytes_capacity),
            measure(load.loop_lag_us, load.loop_lag_us_capacity),
        ])
    }

    /// Every dimension with its figures.
    pub fn measures(&self) -> impl Iterator<Item = (Dimension, Measure)> + '_ {
        Dimension::ALL.into_iter().zip(self.0)
    }

    /// Connections and how many there may be.
    #[must_use]
    pub fn connections(&self) -> Measure {
        self.0[0]
    }

    /// The worst dimension beside connections, of equals the first. Connections and 0: nothing is told, or enough is left.
    fn strain(&self) -> Strain {
        let others = self.measures().skip(1);
        let none = Strain { dimension: Dimension::Connections, pressure: 0.0 };
        others.fold(none, |worst, (dimension, measure)| {
            let pressure = pressure(dimension, measure);
            if pressure > worst.pressure { Strain { dimension, pressure } } else { worst }
        })
    }

    /// What it adds to how full its tier is: its connections or its CPU, the worse of them in connections, and no more than
    /// it can hold. Others could not take over its memory, and its rates and lag swing: clients would cross regions for
    /// nothing.
    pub(super) fn used(&self) -> u64 {
        let Measure { used, capacity } = self.connections();
        let cpu = pressure(Dimension::Cpu, self.0[Dimension::Cpu as usize]);
        used.max(in_connections(cpu, capacity)).min(capacity)
    }
}

/// How much of a gateway a dimension takes up: for connections their utilisation, for others what of theirs is above
/// a half, as a share of what there is above it. At most [`MAX_UTILISATION`]; 0 of what is not told.
#[must_use]
pub fn pressure(dimension: Dimension, measure: Measure) -> f64 {
    let utilisation = measure.utilisation().unwrap_or(0.0);
    match dimension {
        Dimension::Connections => utilisation,
        _ => ((utilisation - PRESSURE_FROM) / (1.0 - PRESSURE_FROM)).clamp(0.0, MAX_UTILISATION),
    }
}

fn in_connections(utilisation: f64, capacity: u64) -> u64 {
    // Within 2^34: see the two bounds above.
    (utilisation * capacity as f64).round() as u64
}

/// How far the worst dimension beside connections counts: it follows the reports, quickly up and slowly down. That is the slow stop of a
/// gateway that degrades, and what keeps one from swinging that recovers only because it gets nobody.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Strain {
    /// The dimension that it comes from: while it falls, the one that made it rise. Connections: there is none.
    dimension: Dimension,
    /// As far as it counts.
    pub pressure: f64,
}

impl Strain {
    /// Of a gateway that nothing else is known of, what it says.
    pub(super) fn first(usage: &Usage) -> Self {
        usage.strain()
    }

    /// The same under another pressure.
    pub(super) fn at(self, pressure: f64) -> Self {
        Self { pressure, ..self }
    }

    /// After a report that came `elapsed_ms` after the one before.
    pub(super) fn follow(self, usage: &Usage, elapsed_ms: i64) -> Self {
        let (said, elapsed) = (usage.strain(), elapsed_ms.max(0) as f64);
        let least = self.pressure - elapsed / RECOVERY_MS;
        let pressure = said.pressure.clamp(least, self.pressure + elapsed / SLOW_STOP_MS);
        let dimension = if pressure > said.pressure { self.dimension } else { said.dimension };
        Self { dimension, pressure }
    }

    /// The dimension that decides the load: connections, unless the strain is worse.
    pub(super) fn decides(self, usage: &Usage) -> Dimension {
        let connections = pressure(Dimension::Connections, usage.connections());
        if self.pressure > connections { self.dimension } else { Dimension::Connections }
    }
}

/// What a gateway counts for, in connections: those it has, and most of what its worst dimension is above them. Connections
/// that came or went count at once: they are exact.
pub(super) fn load(usage: &Usage, strain: Strain) -> u64 {
    let Measure { used, capacity } = usage.connections();
    let above = in_connections(strain.pressure, capacity).saturating_sub(used) as f64;
    used + (above * (1.0 - CONNECTIONS_SHARE)).round() as u64
}

/// How much a load still says, from 1 to 0.
pub(super) fn freshness(age_ms: i64) -> f64 {
    let late_ms = age_ms - FRESH_MS;
    if late_ms <= 0 { 1.0 } else { (-late_ms as f64 / HALF_LIFE_MS).exp2() }
}

/// A load as far as it is still known. What is not known is taken for the pool's mean, and for no less than what was said:
/// a gateway that nobody hears from must never look better for it.
pub(super) fn aged(load: u64, mean: u64, freshness: f64) -> u64 {
    let missing = mean.saturating_sub(load) as f64;
    load + (missing * (1.0 - freshness)).round() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arb_measure() -> impl Strategy<Value = Measure> {
        let figure = || prop_oneof![4 => 0..10_000u64, 1 => Just(0), 1 => Just(MAX_COUNT)];
        (figure(), figure()).prop_map(|(used, capacity)| Measure { used, capacity })
    }

    fn arb_usage() -> impl Strategy<Value = Usage> {
        prop::array::uniform6(arb_measure()).prop_map(Usage)
    }

    fn strained(pressure: f64) -> Strain {
        Strain { dimension: Dimension::LoopLag, pressure }
    }

    fn full(usage: &Usage) -> u64 {
        load(usage, Strain::first(usage))
    }

    proptest! {
        #[test]
        fn more_of_anything_is_never_less_load(usage in arb_usage(), which in 0..6usize, more in 0..20_000u64) {
            let mut heavier = usage;
            heavier.0[which].used = (heavier.0[which].used + more).min(MAX_COUNT);
            prop_assert!(full(&heavier) >= full(&usage));
            prop_assert!(heavier.used() >= usage.used());
            prop_assert!(heavier.strain().pressure >= usage.strain().pressure);
        }

        #[test]
        fn a_load_is_bounded_and_never_below_the_connections(usage in arb_usage(), strain in 0.0..=MAX_UTILISATION) {
            let Measure { used, capacity } = usage.connections();
            let most = used.max((capacity as f64 * MAX_UTILISATION) as u64);
            for load in [full(&usage), load(&usage, strained(strain))] {
                prop_assert!((used..=most).contains(&load), "{load} of {used} to {most}");
            }
            prop_assert!(usage.strain().pressure <= MAX_UTILISATION);
            prop_assert!(usage.used() <= capacity, "one gateway fills no more of its tier than itself");
        }

        #[test]
        fn what_is_not_told_changes_nothing(usage in arb_usage(), which in 1..6usize, used: u64) {
            let mut less = usage;
            less.0[which] = Measure::default();
            let mut untold = usage;
            untold.0[which] = Measure { used, capacity: 0 };
            prop_assert_eq!(full(&less), full(&untold));
            prop_assert_eq!(less.strain(), untold.strain());
            prop_assert!(full(&usage) >= full(&untold));
        }

        #[test]
        fn what_there_is_enough_of_changes_nothing(usage in arb_usage(), which in 1..6usize, used in 0..=500u64) {
            let mut idle = usage;
            idle.0[which] = Measure { used, capacity: 1_000 };
            let mut untold = usage;
            untold.0[which] = Measure::default();
            prop_assert_eq!(full(&idle), full(&untold));
            prop_assert_eq!(idle.strain(), untold.strain());
        }

        #[test]
        fn connections_alone_are_the_load(connections in 0..20_000u64, capacity in 1..10_000u64) {
            let report = GatewayReport { connections, capacity, ..GatewayReport::default() };
            let usage = Usage::of(&report);
            prop_assert_eq!(full(&usage), connections);
            prop_assert_eq!(usage.used(), connections.min(capacity));
            prop_assert_eq!(usage.strain().decides(&usage), Dimension::Connections);
        }

        #[test]
        fn a_strain_stays_between_what_it_was_and_what_is_said(was in 0.0..=MAX_UTILISATION, usage in arb_usage(), elapsed in 0..100_000i64) {
            let said = usage.strain().pressure;
            let now = strained(was).follow(&usage, elapsed).pressure;
            prop_assert!((was.min(said)..=was.max(said)).contains(&now), "{was} -> {now}, said {said}");
            let later = strained(was).follow(&usage, elapsed + 1_000).pressure;
            prop_assert!((later - said).abs() <= (now - said).abs(), "time brings it nearer");
        }

        #[test]
        fn with_age_a_load_only_grows_towards_the_mean(load in 0..20_000u64, mean in 0..20_000u64, age in 0..400_000i64) {
            let now = aged(load, mean, freshness(age));
            prop_assert!((load..=load.max(mean)).contains(&now));
            prop_assert!(aged(load, mean, freshness(age + 500)) >= now);
        }
    }

    #[test]
    fn slow_up_slower_down() {
        let busy = |used| {
            Usage([
                Measure { used: 0, capacity: 100 },
                Measure { used, capacity: 100 },
                Measure::default(),
                Measure::default(),
                Measure::default(),
                Measure::default(),
            ])
        };
        let mut strain = Strain::first(&busy(10));
        strain = strain.follow(&busy(90), 500);
        assert!((strain.pressure - 0.1).abs() < 1e-9, "a tenth a report: {strain:?}");
        for _ in 0..10 {
            strain = strain.follow(&busy(90), 500);
        }
        assert!((strain.pressure - 0.8).abs() < 1e-9, "and no further: {strain:?}");
        strain = strain.follow(&busy(0), 3_000);
        assert!((strain.pressure - 0.7).abs() < 1e-9, "a tenth in three seconds: {strain:?}");
        assert_eq!(strain.decides(&busy(0)), Dimension::Handshakes, "what made it rise, until it is over");
        strain = strain.follow(&busy(0), 30_000);
        assert_eq!(strain.decides(&busy(0)), Dimension::Connections);
    }

    #[test]
    fn the_worst_decides_and_connections_break_ties() {
        let of = |connections, cpu| {
            let load = berth_proto::wire::GatewayLoad {
                cpu_millis_per_second: cpu,
                cpu_millis_per_second_capacity: 2_000,
                ..Default::default()
            };
            Usage::of(&GatewayReport {
                connections,
                capacity: 1_000,
                load: Some(load),
                ..GatewayReport::default()
            })
        };
        let decides = |usage: Usage| usage.strain().decides(&usage);
        assert_eq!(decides(of(100, 1_500)), Dimension::Cpu);
        assert_eq!((of(100, 1_500).used(), full(&of(100, 1_500))), (500, 450));
        assert_eq!(decides(of(600, 1_500)), Dimension::Connections);
        assert_eq!(of(100, 8_000).used(), 1_000, "no more than the whole of it");
        assert!(full(&of(100, 1_500)) < full(&of(200, 1_500)), "CPU alike: fewer connections are less load");
    }

    #[test]
    fn only_connections_and_cpu_fill_a_tier() {
        let mut usage = Usage::default();
        usage.0[0] = Measure { used: 100, capacity: 1_000 };
        for other in [Dimension::Handshakes, Dimension::SentBytes, Dimension::Memory, Dimension::LoopLag] {
            usage.0[other as usize] = Measure { used: 400, capacity: 100 };
        }
        assert_eq!((usage.used(), full(&usage)), (100, 3_513));
    }

    #[test]
    fn between_two_reports_a_load_is_as_good_as_new() {
        assert_eq!(freshness(FRESH_MS), 1.0);
        assert!((freshness(FRESH_MS + 5_000) - 0.5).abs() < 1e-9);
        assert!(freshness(60_000) < 0.001);
    }
}
