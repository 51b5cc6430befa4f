//! `berth ctl rebalance`: lets the fullest gateways shed connections until each is within a share of the mean.

use std::{fmt::Write, time::Duration};

use anyhow::anyhow;
use serde_json::{Value, json};

use super::rate;
use crate::{
    commands::{
        admin_client::{AdminArgs, AdminClient},
        duration::duration,
    },
    exit::Failure,
    output,
};

/// Arguments of `berth ctl rebalance`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How far from the mean of its pool and region a gateway may be, as a share of it.
    #[arg(long, value_name = "SHARE", default_value = "0.10")]
    within: f64,
    /// Connections that each gateway sheds, a second.
    #[arg(long, value_name = "N/s", default_value = "50/s", value_parser = rate)]
    rate: u32,
    /// Each comes back after a random part of this.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    spread: Duration,
    /// Only this pool. [default: all]
    #[arg(long)]
    pool: Option<String>,
    /// Say how many would be shed, and change nothing.
    #[arg(long, conflicts_with_all = ["stop", "status"])]
    dry_run: bool,
    /// End the rebalance, whichever scheduler it was begun at.
    #[arg(long, conflicts_with = "status")]
    stop: bool,
    /// Say how far every gateway is with what it moves.
    #[arg(long)]
    status: bool,
    #[command(flatten)]
    admin: AdminArgs,
    /// Print the scheduler's answer as it is.
    #[arg(long)]
    json: bool,
}

/// Asks and prints.
pub fn run(args: &Args) -> Result<(), Failure> {
    let client = AdminClient::new(&args.admin)?;
    let (answer, text) = if args.status {
        let answer = client.ask("GET", "/moves", &Value::Null)?;
        let text = moves(&answer);
        (answer, text)
    } else if args.stop {
        let answer = client.ask("DELETE", "/rebalance", &Value::Null)?;
        let text = ended(&answer)?;
        (answer, text)
    } else {
        let body = json!({
            "within": args.within,
            "ratePerSecond": args.rate,
            "spreadMs": u64::try_from(args.spread.as_millis()).unwrap_or(u64::MAX),
            "pool": args.pool.as_deref().unwrap_or_default(),
            "dryRun": args.dry_run,
        });
        let answer = client.ask("PUT", "/rebalance", &body)?;
        let text = plan(&answer);
        (answer, text)
    };
    let text = if args.json { format!("{answer:#}") } else { text };
    output::written(output::print(format_args!("{}", text.trim_end())))
}

/// Which gateways it ends at.
fn ended(answer: &Value) -> Result<String, Failure> {
    let gateways = answer["gateways"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let gateways = gateways.collect::<Vec<_>>().join(", ");
    if gateways.is_empty() {
        let nothing = "there is no rebalance that could be ended: this scheduler hears of no gateway that sheds connections for one";
        return Err(Failure::Configuration(anyhow!(nothing)));
    }
    Ok(format!("the rebalance ends at {gateways}; who was told to go has gone"))
}

fn plan(answer: &Value) -> String {
    let mut text = String::new();
    for gateway in answer["gateways"].as_array().into_iter().flatten() {
        let said = |field: &str| gateway[field].as_str().unwrap_or_default();
        let _ = writeln!(
            text,
            "{:<16}{:<10}{:<12}{:>9}/{:<9} sheds {}",
            said("gatewayId"),
            said("pool"),
            said("region"),
            gateway["connections"],
            gateway["capacity"],
            gateway["sheds"]
        );
    }
    let ends = match (answer["connections"].as_u64(), answer["dryRun"].as_bool()) {
        (Some(0), _) => "every gateway is within that share of the mean",
        (_, Some(true)) => "Nothing was changed.",
        _ => "berth ctl rebalance --status shows how far they are",
    };
    text + ends
}

fn moves(answer: &Value) -> String {
    let mut text = String::new();
    for gateway in answer["moves"].as_array().into_iter().flatten() {
        let said = |field: &str| gateway[field].as_str().unwrap_or_default();
        let reason = if said("reason").is_empty() { String::new() } else { format!(": {}", said("reason")) };
        let _ = writeln!(
            text,
            "{:<16}{:<10} {}{reason}, left {}, moved {}, stayed {}, failed {}",
            said("gatewayId"),
            said("what"),
            said("phase"),
            gateway["left"],
            gateway["moved"],
            gateway["stayed"],
            gateway["failed"]
        );
    }
    if text.is_empty() { "no gateway has moved anybody".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_and_progress_are_told() {
        let answer = json!({ "dryRun": true, "connections": 270, "gateways": [
            { "gatewayId": "gw-1", "pool": "stable", "region": "eu", "connections": 600, "capacity": 1_000, "sheds": 270 },
        ] });
        let text = plan(&answer);
        assert!(
            text.contains("600/1000") && text.contains("sheds 270") && text.ends_with("Nothing was changed."),
            "{text}"
        );
        let answer = json!({ "moves": [
            { "gatewayId": "gw-1", "what": "rebalance", "phase": "paused", "reason": "gw-2 is busy", "left": 3, "moved": 4,
              "stayed": 5, "failed": 0 },
        ] });
        let text = moves(&answer);
        assert!(text.contains("rebalance  paused: gw-2 is busy, left 3, moved 4, stayed 5"), "{text}");
        let text = ended(&json!({ "gateways": ["gw-1", "gw-2"] })).expect("it ends");
        assert!(text.contains("ends at gw-1, gw-2;"), "{text}");
        assert!(ended(&json!({ "gateways": [] })).is_err());
    }
}
