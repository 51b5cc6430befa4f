//! The back end's side of the demo: where logic's HTTP API is, under which key, and one request to it.

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::commands::http::ask;

/// Where the back-end API is, and what opens it.
#[derive(Debug, clap::Args)]
pub struct BackEndArgs {
    /// Logic's HTTP API; without it, the scheduler of a `berth dev` says where it is.
    #[arg(long, value_name = "URL")]
    logic: Option<String>,
    /// The service key; without it, the scheduler of a `berth dev` gives it.
    #[arg(long, env = "BERTH_AUTH__SERVICE_KEY", hide_env_values = true)]
    service_key: Option<String>,
}

/// A back end that may make groups.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackEnd {
    logic: String,
    service_key: String,
}

impl BackEndArgs {
    /// As given, or as a `berth dev` at `scheduler` says.
    ///
    /// # Errors
    /// Why neither is to be had.
    pub async fn find(&self, scheduler: &str) -> anyhow::Result<BackEnd> {
        if let (Some(logic), Some(service_key)) = (&self.logic, &self.service_key) {
            return Ok(BackEnd { logic: logic.clone(), service_key: service_key.clone() });
        }
        let (status, body) = ask(scheduler, "POST", "/v1/dev/back-end", "", &Value::Null).await?;
        ensure!(status == 200, "the scheduler is no `berth dev`: give --logic and --service-key");
        let told: BackEnd = serde_json::from_str(&body).context("the scheduler's word on the back end")?;
        Ok(BackEnd {
            logic: self.logic.clone().unwrap_or(told.logic),
            service_key: self.service_key.clone().unwrap_or(told.service_key),
        })
    }
}

impl BackEnd {
    /// A request under the service key, which must be answered with 200.
    ///
    /// # Errors
    /// What was answered otherwise, or that nothing was.
    pub async fn call(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let (status, answer) = ask(&self.logic, method, path, &self.service_key, body).await?;
        ensure!(status == 200, "{method} {path} was answered with {status}: {answer}");
        serde_json::from_str(&answer).with_context(|| format!("{method} {path} was answered with {answer}"))
    }
}
