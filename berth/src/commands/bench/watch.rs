//! What server processes used in each stage of a run: `--watch PID`.

use std::{collections::BTreeMap, time::Instant};

use serde_json::{Value, json};

use super::system::{self, Usage};

/// The watched processes, looked at whenever a stage begins.
#[derive(Debug, Default)]
pub struct Watch {
    pids: Vec<u32>,
    marks: Vec<Mark>,
}

#[derive(Debug)]
struct Mark {
    stage: String,
    at: Instant,
    usage: Vec<Option<(Usage, BTreeMap<String, u64>)>>,
}

/// A process in a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Used {
    /// Which process.
    pub pid: u32,
    /// Which stage.
    pub stage: String,
    /// How long the stage was.
    pub seconds: f64,
    /// CPU of the process in it.
    pub cpu_seconds: f64,
    /// The same by thread name.
    pub threads: BTreeMap<String, f64>,
    /// Resident anonymous bytes at its end.
    pub resident_bytes: u64,
    /// What these were at its beginning.
    pub resident_bytes_before: u64,
}

impl Watch {
    /// Watches these.
    pub fn new(pids: Vec<u32>) -> Self {
        Self { pids, marks: Vec::new() }
    }

    /// A stage begins, and the one before ends.
    pub fn mark(&mut self, stage: &str) {
        let usage = self.pids.iter().map(|pid| system::usage(&pid.to_string())).collect();
        self.marks.push(Mark { stage: stage.to_owned(), at: Instant::now(), usage });
    }

    /// How long each stage took, in seconds.
    pub fn stages(&self) -> Vec<(String, f64)> {
        let pairs = self.marks.windows(2);
        pairs.map(|two| (two[0].stage.clone(), (two[1].at - two[0].at).as_secs_f64())).collect()
    }

    /// Processes that were not there any more when a stage ended, or never were, with the first such stage.
    pub fn gone(&self) -> Vec<(u32, &str)> {
        let stage = |nth: usize| {
            let ends = self.marks.windows(2).find(|two| two[1].usage[nth].is_none());
            ends.map(|two| two[0].stage.as_str())
        };
        self.pids.iter().enumerate().filter_map(|(nth, pid)| Some((*pid, stage(nth)?))).collect()
    }

    /// Every process in every stage; one that is gone is left out of that: see [`Watch::gone`].
    pub fn used(&self) -> Vec<Used> {
        let pairs = self.marks.windows(2);
        pairs
            .flat_map(|two| self.pids.iter().enumerate().filter_map(|(nth, pid)| used(*pid, nth, two)))
            .collect()
    }
}

fn used(pid: u32, nth: usize, two: &[Mark]) -> Option<Used> {
    let [from, to] = two else { return None };
    let ((before, threads_before), (after, threads_after)) =
        (from.usage[nth].as_ref()?, to.usage[nth].as_ref()?);
    let seconds = |after: u64, before: u64| after.saturating_sub(before) as f64 / 1e9;
    let threads = threads_after
        .iter()
        .map(|(name, cpu)| (name.clone(), seconds(*cpu, threads_before.get(name).copied().unwrap_or(0))));
    Some(Used {
        pid,
        stage: from.stage.clone(),
        seconds: (to.at - from.at).as_secs_f64(),
        cpu_seconds: seconds(after.cpu, before.cpu),
        threads: threads.collect(),
        resident_bytes: after.anonymous,
        resident_bytes_before: before.anonymous,
    })
}

impl Used {
    /// As in the report.
    pub fn json(&self) -> Value {
        json!({
            "pid": self.pid,
            "stage": self.stage,
            "seconds": self.seconds,
            "cpuSeconds": self.cpu_seconds,
            "cpuSecondsByThread": self.threads,
            "residentBytesBefore": self.resident_bytes_before,
            "residentBytes": self.resident_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_between_two_marks() {
        let mut watch = Watch::new(vec![std::process::id(), 0]);
        for stage in ["connect", "load", "end"] {
            watch.mark(stage);
        }
        let stages: Vec<_> = watch.stages().into_iter().map(|(name, _)| name).collect();
        assert_eq!(stages, ["connect", "load"]);
        let used = watch.used();
        assert_eq!(used.len(), 2, "process 0 is not there");
        assert_eq!(watch.gone(), [(0, "connect")]);
        assert!(used.iter().all(|used| used.resident_bytes > 100_000 && used.cpu_seconds >= 0.0));
    }
}
