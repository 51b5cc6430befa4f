//! A scheduler's admin API, for commands that operate a deployment: which scheduler, which key, and what a refusal means.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, anyhow};
use serde_json::Value;

use super::http::ask;
use crate::{config::Layers, exit::Failure};

/// A scheduler answers in milliseconds; an operation that waits for others says how long it may.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which scheduler is asked, and the key.
#[derive(Debug, clap::Args)]
pub struct AdminArgs {
    /// A scheduler's admin port.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7702")]
    admin: String,
    /// The admin key; rather set BERTH_AUTH__ADMIN_KEY or auth.admin_key: other users of this machine see flags.
    #[arg(long, value_name = "KEY")]
    admin_key: Option<String>,
    /// Configuration file with auth.admin_key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Asks one scheduler.
pub struct AdminClient {
    base: String,
    key: String,
    runtime: tokio::runtime::Runtime,
}

impl AdminClient {
    /// Of what the person gave.
    ///
    /// # Errors
    /// Without a key, or when the configuration cannot be read.
    pub fn new(args: &AdminArgs) -> Result<Self, Failure> {
        let key = match &args.admin_key {
            Some(key) => key.clone(),
            None => configured_key(args.config.as_deref())?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("the runtime cannot be built").map_err(Failure::Start)?;
        Ok(Self { base: args.admin.clone(), key, runtime })
    }

    /// One request, `path` below /admin/v1; `body` null: none.
    ///
    /// # Errors
    /// What the scheduler refuses because of what was asked is the person's to mend; all else is a failed start.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, Failure> {
        let base = &self.base;
        let path = format!("/admin/v1{path}");
        let asked = async { tokio::time::timeout(PATIENCE, ask(base, method, &path, &self.key, body)).await };
        let late = |_| anyhow!("{base} did not answer within {PATIENCE:?}");
        let (status, text) = self
            .runtime
            .block_on(asked)
            .map_err(late)
            .and_then(|answered| answered)
            .map_err(Failure::Start)?;
        let answer: Result<Value, _> = serde_json::from_str(&text);
        match (status, answer) {
            (200, Ok(answer)) => Ok(answer),
            (200, Err(_)) => Err(Failure::Start(anyhow!("{base} answered no JSON"))),
            (400..500, answer) => Err(Failure::Configuration(refusal(base, status, &text, answer.ok()))),
            (_, answer) => Err(Failure::Start(refusal(base, status, &text, answer.ok()))),
        }
    }
}

/// What to say of an order that is in force though the scheduler's disk has not taken it; none: it has.
pub fn not_on_disk(answer: &Value) -> Option<&'static str> {
    let words = "in force, but not on the scheduler's disk (no scheduler.data_dir, or see its log): the gateways carry it";
    (answer["onDisk"] == false).then_some(words)
}

/// The problem's own words, where it has some.
fn refusal(base: &str, status: u16, text: &str, problem: Option<Value>) -> anyhow::Error {
    match problem.as_ref().and_then(|problem| problem["detail"].as_str()) {
        Some(detail) => anyhow!("{base} answered {status}: {detail}"),
        None => anyhow!("{base} answered {status}: {text}; is it a scheduler's admin port?"),
    }
}

/// `auth.admin_key` of the configuration.
///
/// # Errors
/// When it is not set, or the configuration cannot be read.
pub fn configured_key(config: Option<&std::path::Path>) -> Result<String, Failure> {
    let effective = Layers::defaults()
        .file(config)
        .environment(std::env::vars_os())
        .finish()
        .map_err(|problem| Failure::Configuration(problem.into()))?;
    let key = effective.config.auth.admin_key;
    if key.is_empty() {
        let missing = "auth.admin_key is not set: give --config FILE or BERTH_AUTH__ADMIN_KEY; `berth dev` prints its own";
        return Err(Failure::Configuration(anyhow!(missing)));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_an_order_that_is_not_on_disk_is_said_to_be() {
        assert_eq!(not_on_disk(&json!({ "onDisk": true })), None);
        assert_eq!(not_on_disk(&json!({})), None);
        assert!(not_on_disk(&json!({ "onDisk": false })).is_some());
    }
}
