//! The arguments of `berth bench`.

use std::time::Duration;

use super::wire::Transport;
use crate::commands::chat::Access;

/// Arguments of `berth bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub what: What,
}

/// What is put under load.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum What {
    /// Open connections as real clients do (schedule, connect, hello), and hold them with heartbeats.
    Connect(Connect),
    /// Send messages to random connected users at a rate; measure until the notify reaches them.
    Push(Push),
    /// Send messages to one group of all connections at a rate; measure the first, the median and the last member.
    Group(Group),
    /// Send direct messages, so many in flight or at a rate; the receivers pull, and each must come exactly once.
    Send(Send),
    /// Ask for schedules over keep-alive connections.
    Schedule(Schedule),
}

/// What every kind of load takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    #[command(flatten)]
    pub access: Access,
    /// Connections (for `schedule`: keep-alive HTTP connections). Senders come on top.
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// How long the connections are held, from the last connect; with other load than `connect`: before it begins.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub hold: Option<Duration>,
    /// How long the load lasts.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub duration: Option<Duration>,
    /// Connects, messages or requests a second, intended at fixed times: latency counts from those.
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,
    /// How to connect: ws or tcp.
    #[arg(long, default_value = "ws", value_parser = Transport::from_name)]
    pub transport: Transport,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    pub json: bool,
    /// Seconds between two heartbeats of a connection, instead of what the server asks for.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub heartbeat: Option<Duration>,
    /// Ask for all schedules first, then connect: so that the two can be told apart.
    #[arg(long)]
    pub schedule_first: bool,
    /// Connect again what was lost (it is counted all the same).
    #[arg(long)]
    pub reconnect: bool,
    /// Show CPU and memory of this server process in each stage. May be given several times.
    #[arg(long, value_name = "PID")]
    pub watch: Vec<u32>,
    /// Percent of operations that may fail before the exit code is 3.
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    pub max_errors: f64,
    /// Load-generating processes. Default: as many as the descriptor limit asks for.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub processes: Option<u16>,
    /// One of several processes, started by the first: INDEX/COUNT/RUN.
    #[arg(long, hide = true)]
    pub worker: Option<String>,
}

/// `berth bench connect`.
#[derive(Debug, Clone, clap::Args)]
pub struct Connect {
    #[command(flatten)]
    pub common: Common,
}

/// `berth bench push`.
#[derive(Debug, Clone, clap::Args)]
pub struct Push {
    #[command(flatten)]
    pub common: Common,
    /// Connections that send.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub senders: usize,
    /// Bytes of a message's body.
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = body)]
    pub size: usize,
    /// Receivers pull when they are notified.
    #[arg(long)]
    pub pull: bool,
}

/// `berth bench group`.
#[derive(Debug, Clone, clap::Args)]
pub struct Group {
    #[command(flatten)]
    pub common: Common,
    /// Bytes of a message's body.
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = body)]
    pub size: usize,
    /// Logic's back-end API, where the group is made.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7720")]
    pub logic: String,
    /// Service key of the back-end API.
    #[arg(long, env = "BERTH_AUTH__SERVICE_KEY", hide_env_values = true, default_value = "")]
    pub service_key: String,
}

/// `berth bench send`.
#[derive(Debug, Clone, clap::Args)]
pub struct Send {
    #[command(flatten)]
    pub common: Common,
    /// Messages in flight at any time, at most 16 on a sender's connection. Ignored with --rate.
    #[arg(long, value_name = "K", default_value_t = 64, value_parser = in_flight)]
    pub in_flight: usize,
    /// Bytes of a message's body.
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = body)]
    pub size: usize,
}

/// `berth bench schedule`.
#[derive(Debug, Clone, clap::Args)]
pub struct Schedule {
    #[command(flatten)]
    pub common: Common,
    /// Different users that ask in turn.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub users: usize,
}

impl What {
    /// What this load has in common with the others.
    pub fn common(&self) -> &Common {
        match self {
            Self::Connect(connect) => &connect.common,
            Self::Push(push) => &push.common,
            Self::Group(group) => &group.common,
            Self::Send(send) => &send.common,
            Self::Schedule(schedule) => &schedule.common,
        }
    }

    /// As on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Push(_) => "push",
            Self::Group(_) => "group",
            Self::Send(_) => "send",
            Self::Schedule(_) => "schedule",
        }
    }

    /// Connections that receive, or HTTP connections; over all processes.
    pub fn connections(&self) -> usize {
        let default = match self {
            Self::Connect(_) | Self::Push(_) => 1_000,
            Self::Group(_) => 100,
            Self::Send(_) => 64,
            Self::Schedule(_) => 16,
        };
        self.common().connections.unwrap_or(default)
    }

    /// Connections that send, in all.
    pub fn senders(&self) -> usize {
        match self {
            Self::Connect(_) | Self::Schedule(_) => 0,
            Self::Push(push) => push.senders.max(1),
            Self::Group(_) => 1,
            Self::Send(Send { common: Common { rate: Some(_), .. }, .. }) => 16,
            Self::Send(send) => send.in_flight.div_ceil(berth_proto::limits::IN_FLIGHT),
        }
    }
}

/// A day is longer than anybody measures.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    let possible = (0.0..=86_400.0).contains(&seconds);
    if possible {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("{text} s; 0 to 86400 are possible"))
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    let possible = (0.001..=10_000_000.0).contains(&rate);
    if possible { Ok(rate) } else { Err(format!("{text} a second; 0.001 to 10,000,000 are possible")) }
}

fn body(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|_| format!("{text:?} is no number of bytes"))?;
    let most = berth_proto::limits::BODY;
    if bytes <= most { Ok(bytes) } else { Err(format!("{bytes} bytes; a body has at most {most}")) }
}

fn in_flight(text: &str) -> Result<usize, String> {
    let count: usize = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (1..=65_536).contains(&count) { Ok(count) } else { Err(format!("{count}; 1 to 65,536 are possible")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_ranges() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("-1").is_err() && seconds("NaN").is_err() && seconds("x").is_err());
        assert!(rate("0").is_err() && rate("inf").is_err() && rate("0.5") == Ok(0.5));
        assert!(body("32769").is_err() && body("32768") == Ok(32_768));
        assert!(in_flight("0").is_err() && in_flight("512") == Ok(512));
    }
}
