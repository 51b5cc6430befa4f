//! The result for people and for scripts.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{
    histogram::Histogram,
    pace::Nanos,
    tally::{Generator, Tally},
    watch::Watch,
};

/// A rate's name, what is counted, and the span it is divided by.
const RATES: [(&str, &str, &str); 7] = [
    ("connectedPerSecond", "connected", "connected"),
    ("acceptedPerSecond", "accepted", "accepted"),
    ("notifiedPerSecond", "notified", "notified"),
    ("pulledPerSecond", "pulled", "pulled"),
    ("deliveriesPerSecond", "deliveries", "deliveries"),
    ("scheduledPerSecond", "scheduled", "scheduled"),
    ("heartbeatsPerSecond", "heartbeats", "held"),
];

/// Cores that a process of the generator keeps busy on average from which on its figures are its own and not the server's: it
/// has one thread, which is never busy all the time.
const BOUND: f64 = 0.85;

/// Stages shorter than this, in seconds, say nothing about what bounds them.
const SHORT: f64 = 0.1;

/// A finished run.
pub struct Report {
    /// connect, push, group, send or schedule.
    pub bench: &'static str,
    /// The scheduler's URL.
    pub scheduler: String,
    /// ws or tcp.
    pub transport: &'static str,
    /// Everything counted, with its rounds closed.
    pub tally: Tally,
    /// The stages, and what the servers used in them.
    pub watch: Watch,
    /// Whether it was cut short by a signal.
    pub interrupted: bool,
    /// Whether it counts as good.
    pub ok: bool,
}

impl Report {
    /// One JSON object. Every key is there in every run of the same kind, except latencies of what never happened.
    pub fn json(&self) -> Value {
        let tally = &self.tally;
        let stages: Map<String, Value> =
            self.watch.stages().into_iter().map(|(name, seconds)| (name, json!(seconds))).collect();
        let latencies: Map<String, Value> =
            tally.latencies.iter().map(|(name, histogram)| (name.to_string(), latency(histogram))).collect();
        let generator = &tally.generator;
        let cpu_by_stage: Map<String, Value> =
            generator.stages.iter().map(|(stage, cpu)| (stage.to_string(), json!(seconds(*cpu)))).collect();
        json!({
            "bench": self.bench,
            "scheduler": self.scheduler,
            "transport": self.transport,
            "ok": self.ok,
            "interrupted": self.interrupted,
            "intended": tally.intended,
            "succeeded": tally.succeeded,
            "counts": tally.counts,
            "rates": self.rates().into_iter().map(|(name, rate)| (name.to_owned(), json!(rate))).collect::<Map<_, _>>(),
            "latencyMs": latencies,
            "errors": tally.errors,
            "stageSeconds": stages,
            "server": self.watch.used().iter().map(super::watch::Used::json).collect::<Vec<_>>(),
            "serverGone": self.watch.gone().iter().map(|(pid, _)| pid).collect::<Vec<_>>(),
            "generator": {
                "processes": generator.processes,
                "cpuSeconds": seconds(generator.cpu),
                "cpuSecondsByStage": cpu_by_stage,
                "boundIn": self.bound().into_iter().map(|(stage, _)| stage).collect::<Vec<_>>(),
                "residentBytes": generator.resident,
            },
        })
    }

    /// Tables.
    pub fn text(&self) -> String {
        let tally = &self.tally;
        let mut text = format!("{} {} over {}\n", self.bench, self.scheduler, self.transport);
        if self.interrupted {
            text.push_str("interrupted: what there was until then\n");
        }
        for (name, count) in &tally.counts {
            let _ = writeln!(text, "  {name:<24}{count:>14}");
        }
        for (name, rate) in self.rates() {
            let _ = writeln!(text, "  {name:<24}{rate:>14.1}");
        }
        let heads = ["p50", "p90", "p99", "max", "count"].map(|head| format!("{head:>10}"));
        let _ = writeln!(text, "  {:<24}{}", "latency, ms", heads.concat());
        for (name, histogram) in &tally.latencies {
            let times = [50.0, 90.0, 99.0].map(|percent| histogram.percentile(percent));
            let times = times.into_iter().chain([histogram.max()]);
            let times: String = times.map(|nanos| format!("{:>10.2}", millis(nanos))).collect();
            let _ = writeln!(text, "  {name:<24}{times}{:>10}", histogram.count());
        }
        for (kind, count) in &tally.errors {
            let _ = writeln!(text, "  error {kind:<32}{count:>10}");
        }
        for used in self.watch.used() {
            let _ = writeln!(
                text,
                "  server {} {:<12}{:>8.2} s{:>9.3} s CPU{:>9.1} MiB resident",
                used.pid,
                used.stage,
                used.seconds,
                used.cpu_seconds,
                used.resident_bytes as f64 / 1_048_576.0
            );
        }
        for (pid, stage) in self.watch.gone() {
            let _ = writeln!(
                text,
                "  server {pid} was not there at the end of {stage}: what it used is not known"
            );
        }
        let generator = &tally.generator;
        let _ = writeln!(
            text,
            "  generator: {} of one thread, {:.3} s CPU, {:.1} MiB resident",
            if generator.processes == 1 {
                "1 process".to_owned()
            } else {
                format!("{} processes", generator.processes)
            },
            seconds(generator.cpu),
            generator.resident as f64 / 1_048_576.0
        );
        for (stage, cores) in self.bound() {
            let _ = writeln!(
                text,
                "  generator-bound in {stage}: {cores:.2} cores a process; give it more --processes"
            );
        }
        let verdict = if self.ok { "ok" } else { "FAILED" };
        let (succeeded, intended) = (tally.succeeded, tally.intended);
        let _ = write!(text, "{verdict}: {succeeded} of {intended} succeeded");
        text
    }

    fn bound(&self) -> Vec<(String, f64)> {
        bound(self.watch.stages(), &self.tally.generator)
    }

    fn rates(&self) -> Vec<(&'static str, f64)> {
        let held = self.watch.stages().iter().filter(|(name, _)| name == "load").map(|(_, s)| s).sum::<f64>();
        let span = |name: &str| match name {
            "held" => held,
            name => self.tally.spans.get(name).map_or(0.0, |nanos| *nanos as f64 / 1e9),
        };
        RATES
            .into_iter()
            .filter_map(|(rate, count, over)| {
                let count = *self.tally.counts.get(count)?;
                let seconds = span(over);
                Some((rate, if seconds > 0.0 { count as f64 / seconds } else { 0.0 }))
            })
            .collect()
    }
}

/// Stages in which the generator was the limit, with the cores that each of its processes kept busy.
fn bound(stages: Vec<(String, f64)>, generator: &Generator) -> Vec<(String, f64)> {
    let long = stages.into_iter().filter(|(_, seconds)| *seconds >= SHORT);
    let cores = long.map(|(stage, seconds)| {
        let cores = generator.cores(&stage, seconds);
        (stage, cores)
    });
    cores.filter(|(_, cores)| *cores > BOUND).collect()
}

fn latency(histogram: &Histogram) -> Value {
    json!({
        "count": histogram.count(),
        "mean": millis(histogram.mean()),
        "p50": millis(histogram.percentile(50.0)),
        "p90": millis(histogram.percentile(90.0)),
        "p99": millis(histogram.percentile(99.0)),
        "max": millis(histogram.max()),
    })
}

fn millis(nanos: Nanos) -> f64 {
    nanos as f64 / 1e6
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let generator = Generator { processes: 1, ..Generator::default() };
        let mut tally = Tally { intended: 10, succeeded: 10, generator, ..Tally::default() };
        tally.set("accepted", 10);
        tally.spans.insert("accepted".into(), 2_000_000_000);
        let mut ack = Histogram::default();
        (1..=100).for_each(|millis| ack.record(millis * 1_000_000));
        tally.latency("ack", ack);
        tally.error("send:UNAVAILABLE");
        // There is no process 0.
        let mut watch = Watch::new(vec![std::process::id(), 0]);
        watch.mark("load");
        watch.mark("end");
        Report {
            bench: "send",
            scheduler: "http://s".into(),
            transport: "ws",
            tally,
            watch,
            interrupted: false,
            ok: true,
        }
    }

    #[test]
    fn the_keys_of_json_are_a_contract() {
        let json = report().json();
        let keys: Vec<_> = json.as_object().expect("an object").keys().cloned().collect();
        let documented = [
            "bench",
            "counts",
            "errors",
            "generator",
            "intended",
            "interrupted",
            "latencyMs",
            "ok",
            "rates",
            "scheduler",
            "server",
            "serverGone",
            "stageSeconds",
            "succeeded",
            "transport",
        ];
        assert_eq!(keys, documented);
        assert_eq!(json["counts"]["accepted"], 10);
        assert_eq!(json["rates"]["acceptedPerSecond"], 5.0);
        assert_eq!(json["errors"]["send:UNAVAILABLE"], 1);
        let near = |value: &Value, expected: f64| (value.as_f64().expect("a number") - expected).abs() < 0.1;
        let ack = &json["latencyMs"]["ack"];
        assert!(
            near(&ack["p50"], 50.0)
                && near(&ack["p90"], 90.0)
                && near(&ack["p99"], 99.0)
                && near(&ack["max"], 100.0)
        );
        assert_eq!(json["server"][0]["stage"], "load");
        assert_eq!((json["server"].as_array().map(Vec::len), &json["serverGone"]), (Some(1), &json!([0])));
    }

    #[test]
    fn a_generator_that_is_busy_all_the_time_says_so() {
        let stages = [("connect", 4_000_000_000), ("settle", 9_000_000), ("load", 1_500_000_000)];
        let stages = stages.map(|(stage, cpu)| (stage.into(), cpu));
        let generator = Generator { processes: 2, stages: stages.into(), ..Generator::default() };
        let took = |connect: f64| {
            let took = [("connect", connect), ("settle", 0.01), ("load", 1.0)];
            took.map(|(stage, seconds)| (stage.to_owned(), seconds)).to_vec()
        };
        assert_eq!(bound(took(2.0), &generator), [("connect".to_owned(), 1.0)]);
        assert!(bound(took(2.5), &generator).is_empty(), "two processes of 0.8 and 0.75 cores");
    }

    #[test]
    fn the_tables_say_the_same() {
        let text = report().text();
        let parts = ["acceptedPerSecond", "5.0", "error send:UNAVAILABLE", "ok: 10 of 10 succeeded", "p99"];
        for part in parts.into_iter().chain(["generator: 1 process", "server 0 was not there"]) {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
