//! `berth bench`: load against a running deployment, measured.
//!
//! | file | |
//! |---|---|
//! | `options` | the arguments |
//! | `run` | one process's share: which clients, which load, the stages in order |
//! | `conductor`, `workers` | when a stage begins; several processes by itself where one has too few descriptors |
//! | `fleet`, `arrive`, `beats` | the clients under one event loop; how they get in; their heartbeats |
//! | `exchange`, `group`, `asking` | the loads: direct messages, a group, schedules, holding |
//! | `pace` | when something is to be sent: fixed in advance for a rate (open loop), by free places otherwise |
//! | `latencies`, `histogram`, `tally`, `watch`, `report` | what was measured, of several processes together, and how it is told |
//! | `wire`, `stream`, `http`, `system` | frames, sockets, HTTP, the operating system |

mod arrive;
mod asking;
mod beats;
mod clock;
mod conductor;
mod exchange;
mod fleet;
mod group;
mod histogram;
mod http;
mod latencies;
mod options;
mod pace;
mod report;
mod run;
mod stream;
mod system;
mod tally;
mod watch;
mod wire;
mod workers;

use anyhow::anyhow;

pub use options::Args;
use options::What;

use self::{
    conductor::{Alone, Interrupt, Line, Worker},
    report::Report,
    tally::Tally,
    watch::Watch,
    workers::{Place, Workers},
};
use crate::{exit::Failure, output::print};

/// Descriptors of a process that are no client's: the HTTP connections, epoll, timer, pipes, and some to spare.
const OTHER_DESCRIPTORS: usize = arrive::WINDOW + 128;

/// Puts the load on, and tells what was measured. Exit code 3 when nothing succeeded, too much failed, or the load could not
/// be carried to its end.
pub fn run(args: Args) -> Result<(), Failure> {
    let what = args.what;
    let common = what.common();
    for url in [&common.access.scheduler].into_iter().chain(match &what {
        What::Group(group) => Some(&group.logic),
        _ => None,
    }) {
        run::resolve(url).map_err(Failure::Configuration)?;
    }
    if what.connections() == 0 {
        return Err(Failure::Configuration(anyhow!("--connections 0: at least one is needed")));
    }
    let descriptors = system::raise_descriptor_limit().map_err(|error| Failure::Start(error.into()))?;
    if let Some(worker) = &common.worker {
        let place = Place::parse(worker).ok_or_else(|| {
            Failure::Configuration(anyhow!("--worker {worker:?} is for berth bench itself"))
        })?;
        return work(&what, &place).map_err(Failure::Start);
    }
    let place = Place::alone();
    run::prepare(&what, &place.run)?;
    let interrupt = Interrupt::listen().map_err(Failure::Start)?;
    let watch = Watch::new(common.watch.clone());
    let (tally, watch) = match processes(&what, descriptors) {
        1 => alone(&what, &place, watch, &interrupt),
        of => several(of, &place, watch, &interrupt),
    }
    .map_err(Failure::Start)?;
    tell(&what, tally, watch, interrupt.came())
}

/// As many as were asked for, or as hold all connections.
fn processes(what: &What, descriptors: u64) -> usize {
    let asked = what.common().processes.map(usize::from);
    let each = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(OTHER_DESCRIPTORS).max(1);
    let needed = (what.connections() + what.senders()).div_ceil(each);
    // More processes than connections would have nothing to do.
    asked.unwrap_or(needed).clamp(1, what.connections().max(1))
}

fn alone(
    what: &What,
    place: &Place,
    watch: Watch,
    interrupt: &std::sync::Arc<Interrupt>,
) -> anyhow::Result<(Tally, Watch)> {
    let mut alone = Alone::new(watch, std::sync::Arc::clone(interrupt));
    let tally = run::drive(what, place, &mut alone);
    alone.clear();
    Ok((tally?, alone.watch))
}

fn several(
    of: usize,
    place: &Place,
    mut watch: Watch,
    interrupt: &std::sync::Arc<Interrupt>,
) -> anyhow::Result<(Tally, Watch)> {
    let tally = Workers::start(of, &place.run)?.run(&mut watch, interrupt);
    Ok((tally, watch))
}

/// One of several: the first process prints the result.
fn work(what: &What, place: &Place) -> anyhow::Result<()> {
    // SIGINT reaches every process of the terminal; the first one tells the others when to stop.
    let _interrupt = Interrupt::listen()?;
    let mut worker = Worker::new()?;
    let tally = run::drive(what, place, &mut worker)?;
    worker.say(&Line::Done(Box::new(tally)));
    Ok(())
}

fn tell(what: &What, mut tally: Tally, watch: Watch, interrupted: bool) -> Result<(), Failure> {
    tally.close_rounds();
    let common = what.common();
    let ok = tally.good(common.max_errors);
    let (scheduler, transport) = (common.access.scheduler.clone(), common.transport.name());
    let report = Report { bench: what.name(), scheduler, transport, tally, watch, interrupted, ok };
    let printed = if common.json {
        print(format_args!("{}", report.json()))
    } else {
        print(format_args!("{}", report.text()))
    };
    printed.map_err(|error| Failure::Start(anyhow!(error).context("writing the result")))?;
    if ok { Ok(()) } else { Err(Failure::Check) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn what(arguments: &str) -> What {
        Cli::try_parse_from(std::iter::once("bench").chain(arguments.split(' '))).expect("valid").args.what
    }

    #[test]
    fn processes_are_as_many_as_the_descriptors_ask_for() {
        assert_eq!(processes(&what("connect --connections 15000"), 20_000), 1);
        assert_eq!(processes(&what("connect --connections 50000"), 20_000), 3);
        assert_eq!(processes(&what("push --connections 1016 --senders 8"), 1_024), 2);
        assert_eq!(processes(&what("connect --connections 10 --processes 4"), 20_000), 4);
        assert_eq!(processes(&what("connect --connections 2 --processes 4"), 20_000), 2);
    }

    #[test]
    fn senders_have_16_in_flight_each() {
        assert_eq!(what("send --in-flight 1").senders(), 1);
        assert_eq!(what("send --in-flight 512").senders(), 32);
        assert_eq!(what("group").senders(), 1);
    }
}
