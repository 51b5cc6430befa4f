//! `berth ctl drain`: empties a gateway, without losing anything of its clients.

use std::{fmt::Write, time::Duration};

use anyhow::anyhow;
use clap::Subcommand;
use serde_json::{Value, json};

use super::{for_ms, rate};
use crate::{
    commands::{
        admin_client::{AdminArgs, AdminClient, not_on_disk},
        duration::duration,
    },
    exit::Failure,
    output,
};

/// Arguments of `berth ctl drain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Empty a gateway: it is given nobody, and its clients are told, at a rate, where else a place is kept for them.
    Start(Start),
    /// Say how far the drains are.
    Status(Status),
    /// Let a gateway serve again. Clients that were told to go have gone.
    Stop(Stop),
}

#[derive(Debug, clap::Args)]
struct Start {
    /// The gateway's id.
    gateway: String,
    /// Connections told to go, a second.
    #[arg(long, value_name = "N/s", default_value = "100/s", value_parser = rate)]
    rate: u32,
    /// Each comes back after a random part of this.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    spread: Duration,
    /// From now; then the rest is told at once.
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = duration)]
    deadline: Duration,
    /// Before the first is told, so that load balancers notice that the gateway is not ready.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    wait_lb: Duration,
    /// The pool to send them to. [default: as the policy says]
    #[arg(long, value_name = "POOL")]
    to: Option<String>,
    /// Say what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    admin: AdminArgs,
    /// Print the scheduler's answer as it is.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Status {
    /// Only of this gateway. [default: all]
    gateway: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
    /// Print the scheduler's answer as it is.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Stop {
    /// The gateway's id.
    gateway: String,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Does what was asked.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.action {
        Action::Start(args) => start(args),
        Action::Status(args) => status(args),
        Action::Stop(args) => stop(args),
    }
}

fn start(args: &Start) -> Result<(), Failure> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let body = json!({
        "ratePerSecond": args.rate,
        "spreadMs": ms(args.spread),
        "deadlineMs": ms(args.deadline),
        "waitLbMs": ms(args.wait_lb),
        "toPool": args.to.as_deref().unwrap_or_default(),
        "by": by(),
        "dryRun": args.dry_run,
    });
    let answer = AdminClient::new(&args.admin)?.ask("PUT", &path(&args.gateway)?, &body)?;
    let text = match (args.json, &answer["dryRun"]) {
        (true, _) => format!("{answer:#}"),
        (false, Value::Null) => {
            let warning = warning(&answer);
            format!("{} is being drained; berth ctl drain status shows how far it is{warning}", args.gateway)
        }
        (false, plan) => planned(plan),
    };
    output::written(output::print(format_args!("{}", text.trim_end())))
}

fn status(args: &Status) -> Result<(), Failure> {
    let mut answer = AdminClient::new(&args.admin)?.ask("GET", "/drains", &Value::Null)?;
    if let (Some(gateway), Some(drains)) = (&args.gateway, answer["drains"].as_array_mut()) {
        drains.retain(|drain| drain["gatewayId"] == **gateway);
    }
    let text = if args.json { format!("{answer:#}") } else { readable(&answer, args.gateway.as_deref()) };
    output::written(output::print(format_args!("{}", text.trim_end())))
}

fn stop(args: &Stop) -> Result<(), Failure> {
    let body = json!({ "by": by() });
    let answer = AdminClient::new(&args.admin)?.ask("DELETE", &path(&args.gateway)?, &body)?;
    output::written(output::print(format_args!("{} serves again{}", args.gateway, warning(&answer))))
}

/// A line about the scheduler's disk, if it has not taken the order.
fn warning(answer: &Value) -> String {
    not_on_disk(answer).map_or(String::new(), |text| format!("\n{text}"))
}

/// Who says so, for the others who look.
fn by() -> String {
    std::env::var("USER").ok().filter(|user| berth_proto::id::check(user).is_ok()).unwrap_or_default()
}

fn path(gateway: &str) -> Result<String, Failure> {
    match berth_proto::id::check(gateway) {
        Ok(()) => Ok(format!("/drains/{gateway}")),
        Err(problem) => Err(Failure::Configuration(anyhow!("the gateway id {gateway:?} {problem}"))),
    }
}

fn planned(plan: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let mut text = format!(
        "{} has {} connections. After {} for load balancers they would be told within {}",
        plan["gatewayId"].as_str().unwrap_or_default(),
        plan["connections"],
        for_ms(number(&plan["waitLbMs"])),
        for_ms(number(&plan["movingMs"])),
    );
    match plan["withinDeadline"].as_bool() {
        Some(true) => text.push_str(", before the deadline.\n"),
        _ => {
            let _ = writeln!(
                text,
                "; at the deadline the last {} would be told at once.",
                plan["toldAtDeadline"]
            );
        }
    }
    for to in plan["to"].as_array().into_iter().flatten() {
        let (gateway, connections, room) =
            (&to["gatewayId"], number(&to["connections"]), number(&to["room"]));
        let short = if connections > room { ": too few" } else { "" };
        let gateway = gateway.as_str().unwrap_or_default();
        let _ = writeln!(text, "about {connections} to {gateway}, which has room for {room}{short}");
    }
    if number(&plan["withoutPlace"]) > 0 {
        let _ = writeln!(text, "no gateway can take about {} of them now", plan["withoutPlace"]);
    }
    text + "Nothing was changed.\n"
}

/// The drains that are told; `gateway`: only its was asked for.
fn readable(answer: &Value, gateway: Option<&str>) -> String {
    let drains = answer["drains"].as_array().map_or(&[][..], Vec::as_slice);
    if drains.is_empty() {
        return match gateway {
            Some(gateway) => format!("gateway {gateway:?} is not being drained"),
            None => "no gateway is being drained".to_owned(),
        };
    }
    let mut text = String::new();
    for drain in drains {
        let said = |field: &str| drain[field].as_str().unwrap_or_default();
        let phase = match (said("phase"), said("reason")) {
            ("paused", reason) => format!("paused: {reason}"),
            ("told", _) => "the gateway has not taken it up yet".to_owned(),
            ("absent", _) => "the gateway is not known to this scheduler".to_owned(),
            ("wait_lb", _) => "waiting for load balancers".to_owned(),
            ("overdue", _) => "the deadline has passed: the rest was told".to_owned(),
            (phase, _) => phase.to_owned(),
        };
        let _ = write!(
            text,
            "{}  {phase}\n  left {}, moved {}, failed {}, at {} a second",
            said("gatewayId"),
            drain["left"],
            drain["moved"],
            drain["failed"],
            drain["ratePerSecond"]
        );
        if let Some(eta) = drain["etaMs"].as_u64().filter(|eta| *eta > 0) {
            let _ = write!(text, ", done in about {}", for_ms(eta));
        }
        let _ =
            writeln!(text, ", deadline in {}", for_ms(drain["deadlineInMs"].as_u64().unwrap_or_default()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_is_told_in_words() {
        let status = |phase: &str, reason: &str, eta: Value| {
            readable(
                &json!({ "drains": [{
                "gatewayId": "gw-1", "phase": phase, "reason": reason, "left": 12, "moved": 30, "failed": 1,
                "ratePerSecond": 5, "etaMs": eta, "deadlineInMs": 60_000,
            }] }),
                None,
            )
        };
        let text = status("moving", "", json!(2_400));
        for part in
            ["gw-1  moving", "left 12, moved 30, failed 1, at 5 a second", "done in about 3 s", "in 1 min"]
        {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        let text = status("paused", "gw-2 is busy", Value::Null);
        assert!(text.contains("gw-1  paused: gw-2 is busy") && !text.contains("done in"), "{text}");
        assert!(status("absent", "", Value::Null).contains("not known"));
        let none = json!({ "drains": [] });
        assert_eq!(readable(&none, None), "no gateway is being drained");
        assert_eq!(readable(&none, Some("gw-9")), "gateway \"gw-9\" is not being drained");
    }

    #[test]
    fn a_plan_says_where_to_and_what_is_wrong_with_it() {
        let text = planned(&json!({
            "gatewayId": "gw-1", "connections": 500, "waitLbMs": 10_000, "movingMs": 5_000, "withinDeadline": false,
            "toldAtDeadline": 100, "withoutPlace": 20,
            "to": [{ "gatewayId": "gw-2", "connections": 480, "room": 300 }],
        }));
        for part in [
            "gw-1 has 500 connections. After 10 s",
            "within 5 s; at the deadline the last 100",
            "about 480 to gw-2, which has room for 300: too few",
            "about 20 of them",
            "Nothing was changed",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }
}
