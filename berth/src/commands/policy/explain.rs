//! `berth policy explain USER`: what `:explain` of a running scheduler says, for reading.

use std::{fmt::Write, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, ensure};
use serde_json::{Value, json};

use crate::{
    commands::{admin_client::configured_key, http::ask},
    exit::Failure,
    output,
};

/// A scheduler answers in milliseconds, or not at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Gateways shown; the answer has up to 1,000.
const SHOWN: usize = 40;

/// Arguments of `berth policy explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The user to decide for.
    user: String,
    /// His device.
    #[arg(long, default_value = "d1")]
    device: String,
    /// What it runs on: ios, android, web, desktop or server.
    #[arg(long)]
    platform: Option<String>,
    /// His app's version.
    #[arg(long)]
    app_version: Option<String>,
    /// Where he is.
    #[arg(long)]
    region: Option<String>,
    /// His address.
    #[arg(long)]
    client_ip: Option<String>,
    /// Gateways that he could not reach.
    #[arg(long, value_delimiter = ',')]
    failed: Vec<String>,
    /// The scheduler to ask.
    #[arg(long, default_value = "http://127.0.0.1:7700")]
    scheduler: String,
    /// Configuration file with auth.admin_key (or set BERTH_AUTH__ADMIN_KEY).
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print the scheduler's answer as it is.
    #[arg(long)]
    json: bool,
}

/// Asks and prints.
pub fn run(args: Args) -> Result<(), Failure> {
    let key = configured_key(args.config.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("the runtime cannot be built").map_err(Failure::Start)?;
    let answer = runtime.block_on(explanation(&args, &key)).map_err(Failure::Start)?;
    let text = if args.json { format!("{answer:#}") } else { readable(&answer) };
    output::written(output::print(format_args!("{}", text.trim_end())))
}

async fn explanation(args: &Args, key: &str) -> anyhow::Result<Value> {
    let mut body = json!({ "userId": args.user, "deviceId": args.device, "failed": args.failed });
    let optional = [
        ("platform", &args.platform),
        ("appVersion", &args.app_version),
        ("region", &args.region),
        ("clientIp", &args.client_ip),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    let asked = ask(&args.scheduler, "POST", "/v1/schedule:explain", key, &body);
    let answered = tokio::time::timeout(PATIENCE, asked).await;
    let (status, text) =
        answered.map_err(|_| anyhow!("{} did not answer within {PATIENCE:?}", args.scheduler))??;
    ensure!(status == 200, "{} answered {status}: {text}", args.scheduler);
    serde_json::from_str(&text).with_context(|| format!("{} answered no JSON", args.scheduler))
}

/// The stages in their order, and every gateway with its score and why it lost.
fn readable(answer: &Value) -> String {
    let stages = &answer["stages"];
    let mut text = String::new();
    let mut say = |what: &str, said: String| {
        let _ = writeln!(text, "{what:<11}{said}");
    };
    match answer["decision"].as_object() {
        Some(decision) => say("decision", fields(decision)),
        None => say("decision", format!("none: {}", plain(&answer["problem"]["detail"]))),
    }
    if !answer["tier"].is_null() {
        say("tier", plain(&answer["tier"]));
    }
    let client = &answer["client"];
    let place = client.as_object().map(|client| client.iter().filter(|(name, _)| *name != "distances"));
    say("client", fields(place.into_iter().flatten()));
    client["distances"].as_array().into_iter().flatten().for_each(|near| say("distance", distance(near)));
    let admission = stages["admission"].as_object();
    let fleet = admission.map(|seen| seen.iter().filter(|(name, _)| *name != "queue"));
    say("admission", fields(fleet.into_iter().flatten()));
    if let Some(queue) = stages["admission"]["queue"].as_object() {
        say("queue", fields(queue));
    }
    let away = if answer["elsewhere"] == true { ", which cannot take him now" } else { "" };
    say("home", if stages["home"] == "" { "none".to_owned() } else { plain(&stages["home"]) + away });
    for (stage, word) in
        [("rules", "rule"), ("pools", "pool"), ("tiers", "tier"), ("draws", "drawn"), ("ranked", "ranked")]
    {
        stages[stage].as_array().into_iter().flatten().for_each(|entry| say(word, fields_of(entry)));
    }
    let gateways = stages["gateways"].as_array().map_or(&[][..], Vec::as_slice);
    let _ = writeln!(
        text,
        "{:<16}{:<10}{:<14}{:>8}  {:<12}{:>14}{:>12}{:>9}  {:<12}dimensions",
        "gateway",
        "pool",
        "region/zone",
        "score",
        "decided by",
        "load/weight",
        "connections",
        "pending",
        "dropped"
    );
    gateways.iter().take(SHOWN).for_each(|gateway| text.push_str(&row(gateway)));
    let hidden =
        gateways.len().saturating_sub(SHOWN) as u64 + stages["gatewaysNotListed"].as_u64().unwrap_or(0);
    if hidden > 0 {
        let _ = writeln!(text, "and {hidden} more");
    }
    text
}

fn row(gateway: &Value) -> String {
    let place = format!("{}/{}", plain(&gateway["region"]), plain(&gateway["zone"]));
    let dimension = |seen: &Value| {
        format!("{} {:.0}%", plain(&seen["dimension"]), seen["utilisation"].as_f64().unwrap_or(0.0) * 100.0)
    };
    let dimensions: Vec<_> = gateway["dimensions"].as_array().into_iter().flatten().map(dimension).collect();
    format!(
        "{:<16}{:<10}{place:<14}{:>8.4}  {:<12}{:>14}{:>12}{:>9}  {:<12}{}\n",
        plain(&gateway["gatewayId"]),
        plain(&gateway["pool"]),
        gateway["score"].as_f64().unwrap_or(0.0),
        plain(&gateway["worst"]),
        format!("{}/{:.0}", gateway["load"], gateway["weight"].as_f64().unwrap_or(0.0)),
        format!("{}/{}", gateway["connections"], gateway["capacity"]),
        plain(&gateway["pending"]),
        if gateway["dropped"].is_null() { "-".to_owned() } else { plain(&gateway["dropped"]) },
        dimensions.join(", ")
    )
}

/// How far a region is, and the votes behind that.
fn distance(near: &Value) -> String {
    let place = near.as_object().map(|near| near.iter().filter(|(name, _)| *name != "votes"));
    let votes =
        near["votes"].as_object().map_or_else(String::new, |votes| format!(", votes: {}", fields(votes)));
    fields(place.into_iter().flatten()) + &votes
}

fn fields_of(entry: &Value) -> String {
    entry.as_object().map_or_else(String::new, fields)
}

/// `name value, name value`, without what says nothing.
fn fields<'a>(entries: impl IntoIterator<Item = (&'a String, &'a Value)>) -> String {
    let said = entries.into_iter().filter(|(_, value)| **value != json!(false) && **value != json!(""));
    said.map(|(name, value)| format!("{name} {}", plain(value))).collect::<Vec<_>>().join(", ")
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => format!("{:.4}", number.as_f64().unwrap_or(0.0)),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_and_every_loser_is_told() {
        let answer = json!({
            "decision": { "policyVersion": "3", "reason": "SPLIT", "pool": "canary", "ruleId": "" },
            "tier": "region",
            "elsewhere": true,
            "client": {
                "region": "eu", "regionBy": "place", "place": 0, "network": "203.0.113.0/24",
                "distances": [{ "region": "eu", "ms": 12, "by": "votes",
                    "votes": { "count": 4, "weight": 3.5, "medianMs": 11 } }],
            },
            "stages": {
                "admission": { "known": 2, "assignable": 2, "distrusted": false,
                    "queue": { "budgetPerSecond": 1750, "waitMs": 12 } },
                "home": "eu",
                "rules": [{ "ruleId": "ios", "verdict": "in", "bucket": 12 }],
                "tiers": [{ "kind": "region", "region": "eu", "meanScore": 0.25 }],
                "gateways": [
                    { "gatewayId": "g1", "pool": "canary", "region": "eu", "zone": "a", "score": 0.5, "worst": "cpu",
                      "load": 48, "weight": 100.0,
                      "connections": 5, "capacity": 100, "pending": 2,
                      "dimensions": [{ "dimension": "cpu", "utilisation": 0.57 }] },
                    { "gatewayId": "g2", "dropped": "draining" },
                ],
                "gatewaysNotListed": 3,
            },
        });
        let text = readable(&answer);
        for part in [
            "decision   policyVersion 3, pool canary, reason SPLIT",
            "tier       region\n",
            "client     network 203.0.113.0/24, place 0, region eu, regionBy place\n",
            "distance   by votes, ms 12, region eu, votes: count 4, medianMs 11, weight 3.5000\n",
            "admission  assignable 2, known 2\n",
            "queue      budgetPerSecond 1750, waitMs 12\n",
            "home       eu, which cannot take him now",
            "rule       bucket 12, ruleId ios, verdict in",
            "meanScore 0.2500",
            "0.5000  cpu",
            "48/100",
            "5/100",
            "cpu 57%",
            "draining",
            "and 3 more",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        let nowhere = json!({ "problem": { "detail": "no gateway" }, "stages": {} });
        assert!(readable(&nowhere).starts_with("decision   none: no gateway"));
    }
}
