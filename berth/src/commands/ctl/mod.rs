//! `berth ctl`: operates a running deployment through a scheduler's admin API.

mod gateways;

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
    /// List the gateways that a scheduler knows.
    Gateways(gateways::Args),
}

/// Does what was asked.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.action {
        Action::Gateways(args) => gateways::run(&args),
    }
}
