//! `/admin/v1/policy*`: what is in force and who holds it, and putting another one in force.

use berth_proto::wire::CarriedRecord;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{super::problem::Refusal, Asked};
use crate::{
    core::{Core, lock},
    guard::{Figures, Told},
    policy::{Diff, GrayRule, Guard, Policy, Refused, Taken, Takes, rfc3339, with_version},
    release::Source,
};

/// Longest name and note, in bytes.
const MAX_WORDS: usize = 1_024;

/// A request with a policy's text: as JSON at most twice as long, and room for the rest.
pub(super) const LARGEST: usize = 2 * crate::policy::MAX_TEXT + 8 * MAX_WORDS;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Apply {
    text: String,
    #[serde(default)]
    by: String,
    #[serde(default)]
    note: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rollback {
    to_version: Option<u64>,
    #[serde(default)]
    by: String,
    #[serde(default)]
    note: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resume {
    rule_id: String,
    #[serde(default)]
    by: String,
}

/// A gray rule as it is now.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RuleShown<'a> {
    rule_id: &'a str,
    pool: &'a str,
    /// Of those that match; 0 when it is stopped.
    percent: f64,
    /// Users that it names.
    named: usize,
    /// When its ramp takes the next step, and to what.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_step: Option<Value>,
    /// Why, since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<Value>,
    /// What its guard compares now.
    #[serde(skip_serializing_if = "Option::is_none")]
    guard: Option<Value>,
}

/// `GET /policy`
pub(super) fn show(core: &Core) -> Value {
    let policy = core.policy.load();
    let rules: Vec<_> = policy.gray.iter().map(|rule| rule_shown(core, rule)).collect();
    json!({
        "schedulerId": core.id,
        "policyVersion": policy.version.to_string(),
        "policyHash": policy.hash,
        "text": policy.text,
        "rules": rules,
        "replicas": core.replicas(),
    })
}

fn rule_shown<'a>(core: &Core, rule: &'a GrayRule) -> RuleShown<'a> {
    let step = rule.next_step(core.clock.wall_ms());
    let (percent, stopped) = match &rule.takes {
        Takes::Percent { percent, .. } => (*percent, None),
        Takes::Nobody(stop) => (0.0, Some(json!({ "reason": stop.reason, "at": rfc3339(stop.at_ms) }))),
    };
    let guard = rule.guard.filter(|_| rule.sends()).map(|guard| {
        let figures = lock(&core.guards).figures(rule, &guard, core.clock.monotonic_ms());
        compared(&figures, &guard)
    });
    RuleShown {
        rule_id: &rule.id,
        pool: &rule.pool,
        percent,
        named: rule.users.len(),
        next_step: step.map(|step| json!({ "at": rfc3339(step.at_ms), "percent": step.percent })),
        stopped,
        guard,
    }
}

fn compared(figures: &Figures, guard: &Guard) -> Value {
    let side = |counts: &crate::guard::Counts, open: u64| {
        json!({
            "attempts": counts.attempts(),
            "failed": counts.failed,
            "sessions": counts.ended.saturating_add(open),
            "abnormal": counts.abnormal,
            "handshakeP99Ms": counts.handshake_p99_ms(),
        })
    };
    let [connects, closes] = figures.stops_above(guard);
    let stables = match figures.told {
        Told::Now => "now",
        Told::Before => "before",
        Told::Never => "nothing",
    };
    json!({
        "seconds": figures.seconds,
        "pool": side(&figures.pool, figures.pool_open),
        "stable": side(&figures.stable, figures.stable_open),
        "stableCounts": stables,
        "stopsAbove": { "connectFailures": connects, "abnormalCloses": closes },
    })
}

/// `POST /policy:apply`
pub(super) async fn apply(core: &Core, asked: &Asked) -> Result<Value, Refusal> {
    let Apply { text, by, note } = asked.json()?;
    put(core, &text, &by, &note).await
}

/// `POST /policy:rollback`
pub(super) async fn rollback(core: &Core, asked: &Asked) -> Result<Value, Refusal> {
    let Rollback { to_version, by, note } = asked.json()?;
    let in_force = core.policy.load().version;
    let Some((version, text)) = core.history.text(to_version, in_force) else {
        let wanted =
            to_version.map_or("before the one in force".to_owned(), |version| format!("version {version}"));
        let known: Vec<_> = core
            .history
            .list()
            .iter()
            .filter(|change| change.what == "policy")
            .map(|change| change.policy_version.to_string())
            .collect();
        let detail = format!("policy {wanted}: this scheduler's history has {}", known.join(", "));
        return Err(Refusal::NotFound(detail));
    };
    let text =
        with_version(&text, in_force + 1).map_err(|error| Refusal::InvalidArgument(error.to_string()))?;
    let note = if note.is_empty() { format!("back to version {version}") } else { note };
    put(core, &text, &by, &note).await
}

/// Answers once it is on disk, where there is one that takes it.
async fn put(core: &Core, text: &str, by: &str, note: &str) -> Result<Value, Refusal> {
    words("by", by)?;
    words("note", note)?;
    let taken = core.put_policy(text, by, note, Source::Api).map_err(|refused| match refused {
        Refused::Broken(error) => Refusal::InvalidArgument(error.to_string()),
        refused => Refusal::Conflict(refused.to_string()),
    })?;
    let on_disk = kept(core, Vec::new()).await?;
    let policy = taken.policy();
    Ok(json!({
        "taken": matches!(taken, Taken::New(_)),
        "onDisk": on_disk,
        "policyVersion": policy.version.to_string(),
        "policyHash": policy.hash,
    }))
}

/// `POST /policy:diff`
pub(super) async fn diff(core: &Core, asked: &Asked) -> Result<Value, Refusal> {
    let Apply { text, .. } = asked.json()?;
    let old = core.policy.load_full();
    let new = core.policy.preview(&text, core.clock.wall_ms());
    let new = new.map_err(|error| Refusal::InvalidArgument(error.to_string()))?;
    let identity = |policy: &Policy| json!({ "version": policy.version.to_string(), "hash": policy.hash });
    let (in_force, offered) = (identity(&old), identity(&new));
    // Walking through all buckets takes a moment, and others are served on this thread.
    let diff = tokio::task::spawn_blocking(move || Diff::between(&old, &new)).await;
    let diff = diff.map_err(|error| Refusal::InvalidArgument(format!("text: {error}")))?;
    Ok(json!({ "inForce": in_force, "offered": offered, "diff": diff }))
}

/// `GET /policy/history`
pub(super) fn history(core: &Core) -> Value {
    json!({ "changes": core.history.list() })
}

/// `POST /policy:resume`
pub(super) async fn resume(core: &Core, asked: &Asked) -> Result<Value, Refusal> {
    let Resume { rule_id, by } = asked.json()?;
    words("by", &by)?;
    let record = core.resumption(&rule_id, &by).map_err(Refusal::Conflict)?;
    let on_disk = kept(core, vec![record]).await?;
    let policy = core.policy.load();
    // Somebody may have been faster: its guard again, or another policy.
    let percent = policy.gray.iter().find(|rule| rule.id == rule_id).and_then(|rule| match rule.takes {
        Takes::Percent { percent, .. } => Some(percent),
        Takes::Nobody(_) => None,
    });
    Ok(json!({ "ruleId": rule_id, "resumed": percent.is_some(), "percent": percent, "onDisk": on_disk }))
}

/// Whether everything that is carried, these records too, is on this scheduler's disk, and in its history there.
pub(super) async fn kept(core: &Core, records: Vec<CarriedRecord>) -> Result<bool, Refusal> {
    let kept = core.carry_durably(records).await.map_err(|error| Refusal::Conflict(error.to_string()))?;
    Ok(kept && core.history.on_disk())
}

fn words(field: &str, text: &str) -> Result<(), Refusal> {
    if text.len() <= MAX_WORDS {
        return Ok(());
    }
    Err(Refusal::InvalidArgument(format!("{field} has {} bytes; at most {MAX_WORDS}", text.len())))
}
