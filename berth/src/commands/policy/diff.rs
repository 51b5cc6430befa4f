//! `berth policy diff FILE`: what a policy would change, against the one in force.

use std::{fmt::Write, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    commands::admin_client::{AdminArgs, AdminClient},
    exit::Failure,
    output,
};

/// Arguments of `berth policy diff`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The policy file.
    file: PathBuf,
    #[command(flatten)]
    admin: AdminArgs,
    /// Print the scheduler's answer as it is.
    #[arg(long)]
    json: bool,
}

/// Asks and prints.
pub fn run(args: &Args) -> Result<(), Failure> {
    let text = super::check::text(&args.file).map_err(Failure::Configuration)?;
    let answer = AdminClient::new(&args.admin)?.ask("POST", "/policy:diff", &json!({ "text": text }))?;
    let text = if args.json { format!("{answer:#}") } else { readable(&answer) };
    output::written(output::print(format_args!("{}", text.trim_end())))
}

fn readable(answer: &Value) -> String {
    let text_of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let identity = |of: &Value| format!("version {} ({:.12})", text_of(&of["version"]), text_of(&of["hash"]));
    let diff = &answer["diff"];
    let mut text =
        format!("in force: {}\nthis file: {}\n", identity(&answer["inForce"]), identity(&answer["offered"]));
    for rule in list(&diff["rules"]) {
        let share =
            |value: &Value| value.as_f64().map_or("nobody".to_owned(), |percent| format!("{percent}%"));
        let keys: Vec<_> = list(&rule["keys"]).iter().map(&text_of).collect();
        let keys = if keys.is_empty() { String::new() } else { format!(" ({})", keys.join(", ")) };
        let (id, change) = (text_of(&rule["ruleId"]), text_of(&rule["change"]));
        let (before, after) = (share(&rule["percentBefore"]), share(&rule["percentAfter"]));
        let _ = writeln!(text, "rule {id} {change}{keys}: takes {before} now, {after} by this file");
    }
    for part in list(&diff["also"]) {
        let _ = writeln!(text, "{} changed", text_of(&part));
    }
    for moved in list(&diff["moves"]) {
        let percent = moved["percent"].as_f64().unwrap_or_default();
        let (of, from, to) = (text_of(&moved["of"]), text_of(&moved["from"]), text_of(&moved["to"]));
        let _ = writeln!(text, "{percent:.2}% of {of}: {from} -> {to}");
    }
    if list(&diff["moves"]).is_empty() {
        text.push_str("nobody goes to another pool, but for users that rules name\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_where_is_told() {
        let answer = json!({
            "inForce": { "version": "3", "hash": "aaaa" }, "offered": { "version": "4", "hash": "bbbb" },
            "diff": {
                "rules": [{ "ruleId": "ios", "change": "changed", "keys": ["percent"],
                    "percentBefore": 5.0, "percentAfter": 25.0 },
                    { "ruleId": "new", "change": "added", "keys": [], "percentBefore": null, "percentAfter": 1.0 }],
                "also": ["load"],
                "moves": [{ "of": "clients with platforms ios", "from": "stable", "to": "canary", "percent": 20.0 }],
            },
        });
        let text = readable(&answer);
        for line in [
            "in force: version 3 (aaaa)\nthis file: version 4 (bbbb)\n",
            "rule ios changed (percent): takes 5% now, 25% by this file\n",
            "rule new added: takes nobody now, 1% by this file\n",
            "load changed\n",
            "20.00% of clients with platforms ios: stable -> canary\n",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
        assert!(readable(&json!({ "diff": {} })).contains("nobody goes to another pool"));
    }
}
