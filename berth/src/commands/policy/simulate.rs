//! `berth policy simulate`: the real decisions on a virtual clock, beside other ways to choose a gateway.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, anyhow};
use berth_scheduler::{
    policy::Policy,
    simulate::{Outcome, Sample, Scenario, Strategy, run as simulate},
};
use serde_json::json;

use super::{
    check,
    plot::{Chart, Line},
};
use crate::{exit::Failure, output};

/// Arguments of `berth policy simulate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// steady, lose (one gateway of ten is killed), stale (most reports are lost), ramp (a gray rule of 5, 25, 5 percent),
    /// storm (every connection breaks), or a file: docs/scheduling.md says what it holds.
    #[arg(default_value = "steady")]
    scenario: String,
    /// Gateways.
    #[arg(long)]
    gateways: Option<u32>,
    /// Clients, connected or away.
    #[arg(long)]
    clients: Option<u32>,
    /// Scheduler replicas.
    #[arg(long)]
    schedulers: Option<u32>,
    /// Virtual seconds.
    #[arg(long)]
    seconds: Option<u32>,
    /// How old reports are when they are taken, in seconds; one run for each.
    #[arg(long, value_delimiter = ',')]
    delays: Option<Vec<f64>>,
    /// How gateways are chosen: random, least (fewest reported connections), two (better of two), berth.
    #[arg(long, value_delimiter = ',', value_parser = strategy, default_value = "random,least,two,berth")]
    strategies: Vec<Strategy>,
    /// The policy to decide by; none: the built-in one.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// Same seed, same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Write SVG plots into this folder.
    #[arg(long)]
    plots: Option<PathBuf>,
}

/// Reports of one interval (0.5 s), and older ones up to a minute.
const DELAYS: [f64; 4] = [0.5, 2.0, 10.0, 60.0];

/// Runs everything asked for, one row as each is done.
pub fn run(args: &Args) -> Result<(), Failure> {
    let scenarios = scenarios(args).map_err(Failure::Configuration)?;
    let policy = args.policy.as_deref().map_or_else(|| Ok(Policy::default()), check::read);
    let policy = policy.map_err(Failure::Configuration)?;
    if let Some(folder) = &args.plots {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("the folder {} cannot be made", folder.display()))
            .map_err(Failure::Start)?;
    }
    let (first, mut outcomes) = (&scenarios[0], Vec::new());
    let row =
        |row: String| if args.json { Ok(()) } else { output::written(output::print(format_args!("{row}"))) };
    row(format!("{}, seed {}\n{HEAD}", described(first), args.seed))?;
    for scenario in &scenarios {
        for strategy in &args.strategies {
            let began = Instant::now();
            let outcome = simulate(scenario, *strategy, &policy, args.seed);
            row(self::row(&outcome, began.elapsed().as_secs_f64()))?;
            outcomes.push(outcome);
        }
    }
    if args.json {
        let result = json!({ "scenario": described(first), "seed": args.seed, "runs": outcomes });
        output::written(output::print(format_args!("{result:#}")))?;
    }
    match &args.plots {
        Some(folder) => plot(folder, first, &outcomes).map_err(Failure::Start),
        None => Ok(()),
    }
}

fn strategy(name: &str) -> Result<Strategy, String> {
    let names = Strategy::ALL.map(Strategy::name).join(", ");
    Strategy::named(name).ok_or_else(|| format!("{name:?} is none of {names}"))
}

/// The scenario, once for each delay.
fn scenarios(args: &Args) -> anyhow::Result<Vec<Scenario>> {
    let base = match Scenario::named(&args.scenario) {
        Some(scenario) => scenario,
        None => {
            let names = Scenario::NAMES.join(", ");
            let text = std::fs::read_to_string(&args.scenario).with_context(|| {
                format!("{:?} is none of {names}, and no file that can be read", args.scenario)
            })?;
            Scenario::parse(&text).with_context(|| args.scenario.clone())?
        }
    };
    let base = Scenario {
        gateways: args.gateways.unwrap_or(base.gateways),
        clients: args.clients.unwrap_or(base.clients),
        schedulers: args.schedulers.unwrap_or(base.schedulers),
        seconds: args.seconds.unwrap_or(base.seconds),
        ..base
    };
    // A file says its own delay.
    let own = vec![f64::from(base.report_delay_ms) / 1_000.0];
    let default = if Scenario::named(&args.scenario).is_some() { DELAYS.to_vec() } else { own };
    let mut scenarios = Vec::new();
    for delay in args.delays.as_ref().unwrap_or(&default) {
        if !(0.0..=3_600.0).contains(delay) {
            return Err(anyhow!("--delays: {delay} is no delay in seconds"));
        }
        let report_delay_ms = (delay * 1_000.0) as u32;
        scenarios.push(Scenario { report_delay_ms, ..base.clone() }.checked()?);
    }
    if scenarios.is_empty() {
        return Err(anyhow!("--delays: give at least one"));
    }
    Ok(scenarios)
}

fn described(scenario: &Scenario) -> String {
    let Scenario { name, gateways, clients, schedulers, seconds, .. } = scenario;
    format!("{name}: {gateways} gateways, {clients} clients, {schedulers} schedulers, {seconds} s")
}

const HEAD: &str = " reports  strategy |   max/mean    mean     end |      moves   connects | wait p50    p99    max, ms | most waiting  back, s | run, s";

fn row(outcome: &Outcome, took: f64) -> String {
    let Outcome { imbalance_max, imbalance_mean, imbalance_end, moves, connects, waiting_max, .. } = outcome;
    let [median, high, longest] = outcome.wait_ms;
    let back = outcome.recovery_seconds.map_or("-".to_owned(), |seconds| seconds.to_string());
    format!(
        "{:>6.1} s {:>9} | {imbalance_max:>10.3} {imbalance_mean:>7.3} {imbalance_end:>7.3} | {moves:>10} {connects:>10} | \
         {median:>8} {high:>6} {longest:>11} | {waiting_max:>12} {back:>8} | {took:>6.2}",
        f64::from(outcome.report_delay_ms) / 1_000.0,
        outcome.strategy
    )
}

/// Imbalance by delay; and over time, for each delay, what the scenario is about.
fn plot(folder: &Path, scenario: &Scenario, outcomes: &[Outcome]) -> anyhow::Result<()> {
    let write = |name: String, chart: &Chart| {
        let path = folder.join(format!("{}-{name}.svg", scenario.name));
        std::fs::write(&path, chart.svg()).with_context(|| format!("{} cannot be written", path.display()))
    };
    let mut delays: Vec<u32> = outcomes.iter().map(|outcome| outcome.report_delay_ms).collect();
    delays.dedup();
    if delays.len() > 1 {
        write("by-delay".to_owned(), &by_delay(scenario, outcomes))?;
    }
    type Of = fn(&Sample) -> f64;
    let mut about: Vec<(&str, &'static str, f64, Of)> = vec![
        ("imbalance", "fullest gateway / mean", 1.0, |sample| sample.imbalance),
        ("waiting", "clients that wait", 0.0, |sample| f64::from(sample.waiting)),
    ];
    if scenario.canary > 0.0 {
        about.push(("canary", "share of the connected in canary, %", 0.0, |sample| 100.0 * sample.canary));
    }
    for delay in delays {
        for (name, y, from, of) in &about {
            let of_delay = outcomes.iter().filter(|outcome| outcome.report_delay_ms == delay);
            let line = |outcome: &Outcome| Line {
                name: outcome.strategy.to_owned(),
                points: outcome.samples.iter().map(|sample| (f64::from(sample.second), of(sample))).collect(),
            };
            let seconds = f64::from(delay) / 1_000.0;
            let title = format!("{}: reports {seconds} s old", scenario.name);
            let lines = of_delay.map(line).collect();
            write(
                format!("{name}-{delay}ms"),
                &Chart { title, x: "seconds", y, from: *from, few: false, lines },
            )?;
        }
    }
    Ok(())
}

fn by_delay(scenario: &Scenario, outcomes: &[Outcome]) -> Chart {
    // In the order they ran, so that each has its colour of the other charts.
    let first_delay =
        outcomes.iter().take_while(|outcome| outcome.report_delay_ms == outcomes[0].report_delay_ms);
    let strategies: Vec<&str> = first_delay.map(|outcome| outcome.strategy).collect();
    let line = |strategy: &str| Line {
        name: strategy.to_owned(),
        points: outcomes
            .iter()
            .filter(|outcome| outcome.strategy == strategy)
            .map(|outcome| (f64::from(outcome.report_delay_ms) / 1_000.0, outcome.imbalance_max))
            .collect(),
    };
    Chart {
        title: format!("{}: the fullest gateway / the mean, at worst", scenario.name),
        x: "age of reports, seconds",
        y: "max / mean",
        from: 1.0,
        few: true,
        lines: strategies.into_iter().map(line).collect(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line1 {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Args {
        Line1::try_parse_from([&["simulate"], line].concat()).expect("a command line").args
    }

    #[test]
    fn flags_go_over_the_scenario_and_each_delay_is_a_run() {
        let found = scenarios(&args(&["lose", "--gateways", "10", "--delays", "0.5,60"])).expect("valid");
        assert_eq!(found.iter().map(|s| s.report_delay_ms).collect::<Vec<_>>(), [500, 60_000]);
        assert_eq!((found[0].gateways, found[0].clients), (10, 100_000));
        assert_eq!(scenarios(&args(&[])).expect("valid").len(), DELAYS.len());
        for (bad, says) in [
            (&["nothing"][..], "steady, lose"),
            (&["--gateways", "0"], "gateways: 0"),
            (&["--delays", "90000"], "90000"),
        ] {
            let error = format!("{:#}", scenarios(&args(bad)).expect_err("cannot be"));
            assert!(error.contains(says), "{error}");
        }
        assert!(Line1::try_parse_from(["simulate", "--strategies", "best"]).is_err());
    }

    #[test]
    fn a_file_is_run_and_plotted() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("small.toml");
        let text = "name = \"small\"\ngateways = 4\nclients = 400\nseconds = 20\nwarm_up_seconds = 5\ncanary = 0.5\n[[event]]\nat = 8\npercent = 50.0\n";
        std::fs::write(&path, text).expect("written");
        let plots = directory.path().join("plots");
        let [file, plots] = [&path, &plots].map(|path| path.to_str().expect("a text"));
        run(&args(&[file, "--delays", "0.5,2", "--strategies", "berth,random", "--json", "--plots", plots]))
            .expect("runs");
        let mut names: Vec<_> = std::fs::read_dir(plots)
            .expect("made")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a text"))
            .collect();
        names.sort();
        assert_eq!(names.len(), 7, "{names:?}");
        assert_eq!(names[0], "small-by-delay.svg");
    }
}
