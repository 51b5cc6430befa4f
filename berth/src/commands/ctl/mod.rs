//! `berth ctl`: operates a running deployment through a scheduler's admin API.

mod drain;
mod gateways;
mod rebalance;

use clap::Subcommand;

use crate::exit::Failure;

/// Arguments of `berth ctl`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Empty a gateway, look how far that is, or let it serve again.
    Drain(drain::Args),
    /// Let the fullest gateways shed connections until each is within a share of the mean.
    Rebalance(rebalance::Args),
    /// List the gateways that a scheduler knows.
    Gateways(gateways::Args),
}

/// Does what was asked.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.action {
        Action::Drain(args) => drain::run(&args),
        Action::Rebalance(args) => rebalance::run(&args),
        Action::Gateways(args) => gateways::run(&args),
    }
}

/// `100/s`, or only the number.
fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).parse().ok().filter(|rate| *rate > 0);
    number.ok_or_else(|| format!("{text:?} is no rate; write 100/s"))
}

/// A span for reading, rounded up.
fn for_ms(ms: u64) -> String {
    match ms.div_ceil(1_000) {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..7_200 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{} h", seconds.div_ceil(3_600)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_spans() {
        assert_eq!((rate("100/s"), rate("7")), (Ok(100), Ok(7)));
        for bad in ["", "0", "0/s", "-1/s", "10/m", "1.5/s"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
        assert_eq!([1, 59_001, 60_001, 7_200_000].map(for_ms), ["1 s", "1 min", "2 min", "2 h"]);
    }
}
