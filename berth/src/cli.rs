//! The command line. Each command's arguments and work are in `commands/`.

use clap::{Parser, Subcommand};

use crate::{
    commands::{bench, chat, config, ctl, demo, dev, gateway, logic, policy, scheduler, token},
    exit::Failure,
};

/// Access layer for instant messaging: schedules clients onto gateways, holds their connections, stores and
/// delivers their messages.
#[derive(Debug, Parser)]
#[command(name = "berth", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scheduler, gateway and logic in one process, to try Berth or to develop against it.
    Dev(dev::Args),
    /// Run a scheduler: tells clients which gateways to connect to.
    Scheduler(scheduler::Args),
    /// Run a gateway: holds clients' connections.
    Gateway(gateway::Args),
    /// Run logic: stores messages and delivers them.
    Logic(logic::Args),
    /// Make a user's token, signed with auth.jwt_secret.
    Token(token::Args),
    /// Chat in the terminal, through the scheduler like every client.
    Chat(chat::ChatArgs),
    /// Walk the whole road once, with checks: schedule, connect, send, notify, pull, catch up.
    Demo(demo::DemoArgs),
    /// Put load on a running deployment and measure it.
    Bench(bench::Args),
    /// Check a policy, ask why a user goes where he goes, or simulate the scheduler.
    Policy(policy::Args),
    /// Operate a running deployment: look at its gateways, empty one, even them out.
    Ctl(ctl::Args),
    /// Check or print the configuration.
    Config(config::Args),
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Dev(args) => dev::run(args),
            Command::Scheduler(args) => scheduler::run(args),
            Command::Gateway(args) => gateway::run(args),
            Command::Logic(args) => logic::run(args),
            Command::Token(args) => token::run(args),
            Command::Chat(args) => chat::run(args),
            Command::Demo(args) => demo::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Policy(args) => policy::run(args),
            Command::Ctl(args) => ctl::run(args),
            Command::Config(args) => config::run(args),
        }
    }
}
