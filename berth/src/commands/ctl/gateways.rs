//! `berth ctl gateways`: the fleet as one scheduler sees it.

use std::fmt::Write;

use serde_json::Value;

use crate::{
    commands::admin_client::{AdminArgs, AdminClient},
    exit::Failure,
    output,
};

/// Arguments of `berth ctl gateways`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print the scheduler's answer as it is.
    #[arg(long)]
    json: bool,
}

/// Asks and prints.
pub fn run(args: &Args) -> Result<(), Failure> {
    let answer = AdminClient::new(&args.admin)?.ask("GET", "/gateways", &Value::Null)?;
    let text = if args.json { format!("{answer:#}") } else { readable(&answer) };
    output::written(output::print(format_args!("{}", text.trim_end())))
}

fn readable(answer: &Value) -> String {
    let gateways = answer["gateways"].as_array().map_or(&[][..], Vec::as_slice);
    if gateways.is_empty() {
        return "this scheduler knows no gateway".to_owned();
    }
    let mut text = String::new();
    let mut row = |cells: [&str; 7]| {
        let [id, pool, place, state, connections, share, by] = cells;
        let _ = writeln!(text, "{id:<16}{pool:<10}{place:<16}{state:<12}{connections:>16}{share:>7}  {by}");
    };
    row(["gateway", "pool", "region/zone", "state", "connections", "share", "decided by"]);
    for gateway in gateways {
        let said = |field: &str| gateway[field].as_str().unwrap_or_default();
        let number = |field: &str| gateway[field].as_u64().unwrap_or_default();
        let (connections, capacity) = (number("connections"), number("capacity"));
        row([
            said("gatewayId"),
            said("pool"),
            &format!("{}/{}", said("region"), said("zone")),
            said("state"),
            &format!("{connections}/{capacity}"),
            &format!("{:.0}%", connections as f64 / capacity.max(1) as f64 * 100.0),
            said("decidedBy"),
        ]);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_for_each_gateway() {
        let answer = json!({ "gateways": [
            { "gatewayId": "gw-1", "pool": "stable", "region": "eu", "zone": "a", "state": "draining",
              "connections": 25, "capacity": 100, "decidedBy": "cpu" },
        ] });
        let text = readable(&answer);
        for part in ["gw-1 ", "stable ", "eu/a ", "draining ", "25/100", "25%", "cpu"] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert_eq!(readable(&json!({ "gateways": [] })), "this scheduler knows no gateway");
    }
}
