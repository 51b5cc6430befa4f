//! What was counted, in a form that several processes' counts add up in.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use super::{histogram::Histogram, pace::Nanos, system::Usage};

type Name = Cow<'static, str>;

/// Counts that fail a run by themselves, however few there are: what Berth promises never happens.
const NEVER: [&str; 3] = ["duplicates", "gaps", "lostMessages"];

/// Counts, times and errors of a run or of one process's share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// What was done, by name.
    pub counts: BTreeMap<Name, u64>,
    /// Latencies by name.
    pub latencies: BTreeMap<Name, Histogram>,
    /// What went wrong, by kind: `schedule:429:RATE_LIMITED`, `closed:4001`, `send:UNAVAILABLE`.
    pub errors: BTreeMap<Name, u64>,
    /// From the first to the last of something, in nanoseconds: of several processes, the longest.
    pub spans: BTreeMap<Name, Nanos>,
    /// For each message of a group, how long it took to each member.
    pub rounds: BTreeMap<u64, Round>,
    /// Operations that were to be done.
    pub intended: u64,
    /// Those that succeeded.
    pub succeeded: u64,
    /// Whether the load could not be carried to its end, since nobody was left to carry it.
    pub aborted: bool,
    /// The generating processes' own CPU and memory.
    pub generator: Generator,
}

/// One group message on its way to the members of one process, or of all: microseconds until each member's notify, in any
/// order. Four bytes a delivery, since the median over several processes' members needs them all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Round(Vec<u32>);

/// The stages of one process, and its CPU in nanoseconds when each began.
pub type Marks = Vec<(&'static str, u64)>;

/// What the load generator itself used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Generator {
    /// Processes.
    pub processes: u32,
    /// CPU of all, in nanoseconds.
    pub cpu: u64,
    /// CPU of all by stage, in nanoseconds.
    pub stages: BTreeMap<Name, u64>,
    /// Resident anonymous memory of all at the end, in bytes.
    pub resident: u64,
}

impl Generator {
    /// What this process used, between its marks and in all.
    pub fn own(usage: Usage, marks: &Marks) -> Self {
        let stages = marks.windows(2).map(|two| (two[0].0.into(), two[1].1.saturating_sub(two[0].1)));
        Self { processes: 1, cpu: usage.cpu, stages: stages.collect(), resident: usage.anonymous }
    }

    /// Cores that one of the processes kept busy on average in a stage of so many seconds.
    pub fn cores(&self, stage: &str, seconds: f64) -> f64 {
        let cpu = self.stages.get(stage).map_or(0.0, |nanos| *nanos as f64 / 1e9);
        if seconds > 0.0 { cpu / seconds / f64::from(self.processes.max(1)) } else { 0.0 }
    }
}

impl Tally {
    /// Counts one error.
    pub fn error(&mut self, kind: impl Into<Name>) {
        *self.errors.entry(kind.into()).or_default() += 1;
    }

    /// Sets a count.
    pub fn set(&mut self, name: &'static str, count: u64) {
        self.counts.insert(name.into(), count);
    }

    /// One count; 0 if it is not there.
    pub fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// Sets a latency, if there is any.
    pub fn latency(&mut self, name: &'static str, histogram: Histogram) {
        if histogram.count() > 0 {
            self.latencies.insert(name.into(), histogram);
        }
    }

    /// Adds another process's share.
    pub fn merge(&mut self, other: Self) {
        for (name, count) in other.counts {
            *self.counts.entry(name).or_default() += count;
        }
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        for (name, histogram) in other.latencies {
            self.latencies.entry(name).or_default().merge(&histogram);
        }
        for (name, span) in other.spans {
            let longest = self.spans.entry(name).or_default();
            *longest = span.max(*longest);
        }
        for (number, round) in other.rounds {
            self.rounds.entry(number).or_default().merge(&round);
        }
        self.intended += other.intended;
        self.succeeded += other.succeeded;
        self.aborted |= other.aborted;
        self.generator.processes += other.generator.processes;
        self.generator.cpu += other.generator.cpu;
        for (stage, cpu) in other.generator.stages {
            *self.generator.stages.entry(stage).or_default() += cpu;
        }
        self.generator.resident += other.generator.resident;
    }

    /// Turns the rounds into latencies: over all messages, until the first, the median and the last member.
    pub fn close_rounds(&mut self) {
        let (mut first, mut median, mut last) = <(Histogram, Histogram, Histogram)>::default();
        for Round(mut micros) in std::mem::take(&mut self.rounds).into_values() {
            micros.sort_unstable();
            let nanos = |at: usize| micros.get(at).map_or(0, |micros| u64::from(*micros) * 1_000);
            if !micros.is_empty() {
                first.record(nanos(0));
                median.record(nanos((micros.len() - 1) / 2));
                last.record(nanos(micros.len() - 1));
            }
        }
        self.latency("firstMember", first);
        self.latency("medianMember", median);
        self.latency("lastMember", last);
    }

    /// Whether the run counts as good: it came to its end, nothing happened that never may, something succeeded, and no more
    /// than `percent` of it failed.
    pub fn good(&self, percent: f64) -> bool {
        let failed = self.intended.saturating_sub(self.succeeded);
        let broken = NEVER.iter().any(|name| self.count(name) > 0);
        !self.aborted
            && !broken
            && self.succeeded > 0
            && failed as f64 <= self.intended as f64 * percent / 100.0
    }
}

impl Round {
    /// A member was notified after this time.
    pub fn record(&mut self, nanos: Nanos) {
        self.0.push(u32::try_from(nanos / 1_000).unwrap_or(u32::MAX));
    }

    fn merge(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(accepted: u64, last: Nanos) -> Tally {
        let mut tally = Tally { intended: 10, succeeded: accepted, ..Tally::default() };
        tally.set("accepted", accepted);
        tally.error(format!("closed:{}", 4000 + accepted));
        tally.spans.insert("load".into(), last);
        let mut histogram = Histogram::default();
        histogram.record(accepted);
        tally.latency("ack", histogram);
        for nanos in [last / 2, last] {
            tally.rounds.entry(7).or_default().record(nanos);
        }
        tally
    }

    #[test]
    fn shares_add_up_over_json() {
        let mut all = share(9, 10_000_000);
        let text = serde_json::to_string(&share(10, 4_000_000)).expect("has a JSON form");
        all.merge(serde_json::from_str(&text).expect("reads back"));
        assert_eq!((all.count("accepted"), all.intended, all.succeeded), (19, 20, 19));
        assert_eq!((all.errors["closed:4009"], all.errors["closed:4010"]), (1, 1));
        assert_eq!((all.spans["load"], all.latencies["ack"].count()), (10_000_000, 2));
        all.close_rounds();
        let told = |name: &str| all.latencies[name].max();
        assert_eq!(
            (told("firstMember"), told("medianMember"), told("lastMember")),
            (2_000_000, 4_000_000, 10_000_000)
        );
    }

    #[test]
    fn nothing_done_is_not_good() {
        assert!(!Tally::default().good(100.0));
        assert!(!share(9, 1).good(1.0) && share(9, 1).good(10.0) && share(10, 1).good(0.0));
    }

    #[test]
    fn one_broken_promise_is_not_good_whatever_may_fail() {
        for name in NEVER {
            let mut tally = share(10, 1);
            tally.set(name, 0);
            assert!(tally.good(0.0));
            tally.set(name, 1);
            assert!(!tally.good(100.0), "{name}");
        }
    }
}
