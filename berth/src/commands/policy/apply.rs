//! `berth policy apply FILE` and `rollback`: puts a policy in force, and waits until every scheduler holds it.

use std::{
    fmt::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    commands::admin_client::{AdminArgs, AdminClient, not_on_disk},
    exit::Failure,
    output,
};

/// A scheduler that is up takes a policy up with its gateways' next reports, within a second or two.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Arguments of `berth policy apply`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The policy file; its version must be above the one in force.
    file: PathBuf,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    admin: AdminArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `berth policy rollback`.
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    /// The version whose text is put in force again, under the next version; the one before the one in force if it is left out.
    #[arg(long, value_name = "VERSION")]
    to: Option<u64>,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    admin: AdminArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// What the history is to say.
#[derive(Debug, clap::Args)]
struct Who {
    /// Who does it, for the history; the user of this machine if it is left out.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
}

/// The user that a command is run by.
pub fn user() -> String {
    std::env::var("USER").unwrap_or_default()
}

/// Applies a file.
pub fn run(args: &Args) -> Result<(), Failure> {
    let text = super::check::text(&args.file).map_err(Failure::Configuration)?;
    put("/policy:apply", json!({ "text": text }), &args.who, &args.admin, args.json)
}

/// Goes back to an older policy.
pub fn roll_back(args: &RollbackArgs) -> Result<(), Failure> {
    put("/policy:rollback", json!({ "toVersion": args.to }), &args.who, &args.admin, args.json)
}

fn put(path: &str, mut body: Value, who: &Who, admin: &AdminArgs, json: bool) -> Result<(), Failure> {
    let client = AdminClient::new(admin)?;
    body["by"] = json!(who.by.clone().unwrap_or_else(user));
    body["note"] = json!(who.note);
    let taken = client.ask("POST", path, &body)?;
    let deadline = Instant::now() + PATIENCE;
    let replicas = loop {
        let state = client.ask("GET", "/policy", &Value::Null)?;
        let replicas = state["replicas"].as_array().cloned().unwrap_or_default();
        if replicas.iter().all(|replica| holds(replica, &taken)) || Instant::now() > deadline {
            break replicas;
        }
        std::thread::sleep(LOOK);
    };
    let all = replicas.iter().all(|replica| holds(replica, &taken));
    let text = if json {
        format!("{:#}", json!({ "applied": taken, "replicas": replicas, "all": all }))
    } else {
        readable(&taken, &replicas)
    };
    output::written(output::print(format_args!("{}", text.trim_end())))?;
    if all { Ok(()) } else { Err(Failure::Check) }
}

fn holds(replica: &Value, taken: &Value) -> bool {
    ["policyVersion", "policyHash"].iter().all(|field| replica[field] == taken[field])
}

fn readable(taken: &Value, replicas: &[Value]) -> String {
    let identity = |of: &Value| {
        let text = |field: &str| of[field].as_str().unwrap_or_default().to_owned();
        format!("version {} ({:.12})", text("policyVersion"), text("policyHash"))
    };
    let how = if taken["taken"] == true { "is in force" } else { "was in force already" };
    let mut text = format!("{} {how}\n", identity(taken));
    if let Some(warning) = not_on_disk(taken) {
        let _ = writeln!(text, "  {warning}");
    }
    for replica in replicas {
        let id = replica["schedulerId"].as_str().unwrap_or_default();
        let word = if holds(replica, taken) { "holds it" } else { "DOES NOT HOLD IT: it has" };
        let other = if holds(replica, taken) { String::new() } else { format!(" {}", identity(replica)) };
        let _ = writeln!(text, "  {id:<24} {word}{other}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_hold_it_is_named() {
        let taken =
            json!({ "taken": true, "policyVersion": "5", "policyHash": "abcdef0123456789", "onDisk": false });
        let replica = |id: &str, version: &str, hash: &str| json!({ "schedulerId": id, "policyVersion": version, "policyHash": hash });
        let replicas = [
            replica("s-1", "5", "abcdef0123456789"),
            replica("s-2", "4", "99"),
            replica("s-3", "5", "another text"),
        ];
        let text = readable(&taken, &replicas);
        for line in [
            "version 5 (abcdef012345) is in force\n  in force, but not on the scheduler's disk",
            "s-2 ",
            "DOES NOT HOLD IT: it has version 4 (99)",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
        let held: Vec<_> = replicas.iter().map(|replica| holds(replica, &taken)).collect();
        assert_eq!(held, [true, false, false], "identity is version and hash");
    }
}
