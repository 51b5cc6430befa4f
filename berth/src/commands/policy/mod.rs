//! `berth policy`: check a policy, put it in force and take it back, ask a scheduler why, simulate the scheduler.

mod apply;
mod check;
mod diff;
mod explain;
mod history;
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
    /// Put a policy in force, and wait until every scheduler holds it; exit code 3 if some do not.
    Apply(apply::Args),
    /// Say what a policy would change, and which share of the users would go where.
    Diff(diff::Args),
    /// Put an older policy in force again, under the next version.
    Rollback(apply::RollbackArgs),
    /// Show what was put in force, when, by whom and from where.
    History(history::Args),
    /// Show what is in force: what each rule takes by now, what its guard compares, which policy each scheduler holds.
    Status(history::StatusArgs),
    /// Let a gray rule go on that its guard stopped.
    Resume(history::ResumeArgs),
    /// Run the scheduler on a virtual clock, against other ways to choose a gateway.
    Simulate(simulate::Args),
}

/// Does what was asked.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.action {
        Action::Check(args) => check::run(&args),
        Action::Explain(args) => explain::run(args),
        Action::Apply(args) => apply::run(&args),
        Action::Diff(args) => diff::run(&args),
        Action::Rollback(args) => apply::roll_back(&args),
        Action::History(args) => history::run(&args),
        Action::Status(args) => history::status(&args),
        Action::Resume(args) => history::resume(&args),
        Action::Simulate(args) => simulate::run(&args),
    }
}
