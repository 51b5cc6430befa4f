//! `berth policy`: check a policy, ask a scheduler why, simulate the scheduler.

mod check;
mod explain;
mod plot;
mod simulate;

use clap::Subcommand;

use crate::exit::Failure;

/// Arguments of `berth policy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say whether a policy file is valid; exit code 1, with line, key and reason, if it is not.
    Check(check::Args),
    /// Ask a running scheduler where it would send a user, and why.
    Explain(explain::Args),
    /// Run the scheduler on a virtual clock, against other ways to choose a gateway.
    Simulate(simulate::Args),
}

/// Does what was asked.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.action {
        Action::Check(args) => check::run(&args),
        Action::Explain(args) => explain::run(args),
        Action::Simulate(args) => simulate::run(&args),
    }
}
