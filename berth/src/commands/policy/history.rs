//! `berth policy history`: what was put in force, when, by whom and from where; and what is in force now.

use std::fmt::Write;

use berth_scheduler::policy::rfc3339;
use serde_json::{Value, json};

use crate::{
    commands::admin_client::{AdminArgs, AdminClient, not_on_disk},
    exit::Failure,
    output,
};

/// Arguments of `berth policy history`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// So many of the newest changes.
    #[arg(long, value_name = "N", default_value_t = 20)]
    last: usize,
    #[command(flatten)]
    admin: AdminArgs,
    /// Print everything the scheduler has, as it is.
    #[arg(long)]
    json: bool,
}

/// Arguments of `berth policy resume`.
#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    /// The rule that its guard stopped.
    rule: String,
    /// Who does it, for the history; the user of this machine if it is left out.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Arguments of `berth policy status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print the scheduler's answer as it is.
    #[arg(long)]
    json: bool,
    /// Print the text of the policy in force.
    #[arg(long, conflicts_with = "json")]
    text: bool,
}

/// Asks and prints.
pub fn run(args: &Args) -> Result<(), Failure> {
    let answer = AdminClient::new(&args.admin)?.ask("GET", "/policy/history", &Value::Null)?;
    let text = if args.json { format!("{answer:#}") } else { readable(&answer, args.last) };
    output::written(output::print(format_args!("{}", text.trim_end())))
}

/// Lets a stopped rule go on.
pub fn resume(args: &ResumeArgs) -> Result<(), Failure> {
    let by = args.by.clone().unwrap_or_else(super::apply::user);
    let body = json!({ "ruleId": args.rule, "by": by });
    let answer = AdminClient::new(&args.admin)?.ask("POST", "/policy:resume", &body)?;
    output::written(output::print(format_args!("{}", resumed(&answer).trim_end())))
}

fn resumed(answer: &Value) -> String {
    let rule = text_of(&answer["ruleId"]);
    let now = if answer["resumed"] == true {
        format!("rule {rule} goes on: it takes {}% of those that match", answer["percent"])
    } else {
        format!("rule {rule} takes nobody all the same: it was stopped again, or is gone, meanwhile")
    };
    not_on_disk(answer).map_or(now.clone(), |warning| format!("{now}\n  {warning}"))
}

/// What is in force.
pub fn status(args: &StatusArgs) -> Result<(), Failure> {
    let answer = AdminClient::new(&args.admin)?.ask("GET", "/policy", &Value::Null)?;
    let text = match (args.json, args.text) {
        (true, _) => format!("{answer:#}"),
        (_, true) => text_of(&answer["text"]).to_owned(),
        _ => state(&answer),
    };
    output::written(output::print(format_args!("{}", text.trim_end())))
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn readable(answer: &Value, last: usize) -> String {
    let changes = list(&answer["changes"]);
    if changes.is_empty() {
        return "nothing was put in force at this scheduler".to_owned();
    }
    let mut text = String::new();
    for change in changes.iter().take(last) {
        let at = text_of(&change["atMs"]).parse().map_or_else(|_| String::new(), rfc3339);
        let what = match (text_of(&change["what"]), text_of(&change["ruleId"])) {
            ("policy", _) => format!("policy version {}", text_of(&change["policyVersion"])),
            (what, rule) => format!("{what} of rule {rule}"),
        };
        let (from, by) = (text_of(&change["from"]), text_of(&change["by"]));
        let by = if by.is_empty() { String::new() } else { format!(" by {by}") };
        let _ = writeln!(text, "{at}  {what} ({:.12}), {from}{by}", text_of(&change["policyHash"]));
        let note = text_of(&change["note"]);
        let lines = list(&change["changed"]).iter().map(text_of);
        for line in std::iter::once(note).filter(|note| !note.is_empty()).chain(lines) {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

fn state(answer: &Value) -> String {
    let identity = |of: &Value| {
        format!("version {} ({:.12})", text_of(&of["policyVersion"]), text_of(&of["policyHash"]))
    };
    let mut text = format!("{} at {}\n", identity(answer), text_of(&answer["schedulerId"]));
    for rule in list(&answer["rules"]) {
        let (id, pool) = (text_of(&rule["ruleId"]), text_of(&rule["pool"]));
        let takes = match &rule["stopped"] {
            Value::Null => format!("{}%, and {} named users", rule["percent"], rule["named"]),
            stopped => format!("STOPPED since {}: {}", text_of(&stopped["at"]), text_of(&stopped["reason"])),
        };
        let next = match &rule["nextStep"] {
            Value::Null => String::new(),
            step => format!(", {}% from {}", step["percent"], text_of(&step["at"])),
        };
        let _ = writeln!(text, "rule {id} -> {pool}: {takes}{next}");
        let guard = &rule["guard"];
        for side in ["pool", "stable"].iter().filter(|_| !guard.is_null()) {
            let told = &guard[side];
            let p99 = told["handshakeP99Ms"].as_f64().map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
            let _ = writeln!(
                text,
                "    {side:<6} in {} s: {} of {} connects failed, {} of {} sessions ended badly, handshake p99 {p99}",
                guard["seconds"], told["failed"], told["attempts"], told["abnormal"], told["sessions"]
            );
        }
        let stables = match text_of(&guard["stableCounts"]) {
            "before" => {
                "does not say how clients fare now: what it had when it last had enough, up to an hour ago, counts"
            }
            "nothing" => "does not say how clients fare (an older release): nothing is compared",
            _ => "",
        };
        if !stables.is_empty() {
            let _ = writeln!(text, "    stable {stables}");
        }
        let limits =
            [("connectFailures", "of connects that fail"), ("abnormalCloses", "of sessions that end badly")];
        let above = |(key, what): (&str, &str)| {
            Some(format!("{:.2}% {what}", guard["stopsAbove"][key].as_f64()? * 100.0))
        };
        let above: Vec<_> = limits.into_iter().filter_map(above).collect();
        if !above.is_empty() {
            let _ = writeln!(
                text,
                "    stops above {}: stable's share, what is allowed, and chance",
                above.join(", ")
            );
        }
    }
    for replica in list(&answer["replicas"]) {
        let _ = writeln!(text, "scheduler {} holds {}", text_of(&replica["schedulerId"]), identity(replica));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_when_and_what_is_told() {
        let answer = json!({ "changes": [
            { "atMs": "1796119200000", "what": "stop", "ruleId": "ios", "from": "guard", "by": "guard",
              "note": "connect failures: 20%", "policyVersion": "3", "policyHash": "abc", "changed": [] },
            { "atMs": "1796119100000", "what": "policy", "ruleId": "", "from": "api", "by": "alice", "note": "",
              "policyVersion": "3", "policyHash": "abc", "changed": ["rule ios added"] },
        ] });
        let text = readable(&answer, 20);
        for line in [
            "2026-12-01T10:00:00Z  stop of rule ios (abc), guard by guard\n    connect failures: 20%\n",
            "policy version 3 (abc), api by alice\n    rule ios added\n",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
        assert!(!readable(&answer, 1).contains("alice"));
    }

    #[test]
    fn a_rule_that_goes_on_is_told_with_what_it_takes() {
        let going = json!({ "ruleId": "a", "resumed": true, "percent": 25.0, "onDisk": true });
        assert_eq!(resumed(&going), "rule a goes on: it takes 25.0% of those that match");
        let stopped = json!({ "ruleId": "a", "resumed": false, "percent": null, "onDisk": false });
        let text = resumed(&stopped);
        assert!(
            text.contains("takes nobody all the same") && text.contains("not on the scheduler's disk"),
            "{text}"
        );
    }

    #[test]
    fn every_rule_is_told_with_its_next_step_and_why_it_is_stopped() {
        let side =
            json!({ "attempts": 300, "failed": 60, "sessions": 240, "abnormal": 0, "handshakeP99Ms": 12.5 });
        let answer = json!({
            "schedulerId": "s-1", "policyVersion": "3", "policyHash": "abc",
            "rules": [
                { "ruleId": "a", "pool": "canary", "percent": 5.0, "named": 1,
                  "nextStep": { "at": "2026-12-01T10:00:00Z", "percent": 25.0 },
                  "guard": { "seconds": 60, "pool": side, "stable": side, "stableCounts": "before",
                             "stopsAbove": { "connectFailures": 0.0722, "abnormalCloses": null } } },
                { "ruleId": "b", "pool": "next", "percent": 0.0, "named": 0,
                  "stopped": { "at": "2026-12-01T09:00:00Z", "reason": "no data" } },
            ],
            "replicas": [{ "schedulerId": "s-2", "policyVersion": "2", "policyHash": "x" }],
        });
        let text = state(&answer);
        for line in [
            "version 3 (abc) at s-1\n",
            "rule a -> canary: 5.0%, and 1 named users, 25.0% from 2026-12-01T10:00:00Z\n",
            "pool   in 60 s: 60 of 300 connects failed, 0 of 240 sessions ended badly, handshake p99 12 ms\n",
            "stops above 7.22% of connects that fail: stable's share, what is allowed, and chance\n",
            "    stable does not say how clients fare now: what it had",
            "rule b -> next: STOPPED since 2026-12-01T09:00:00Z: no data\n",
            "scheduler s-2 holds version 2 (x)\n",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
    }
}
