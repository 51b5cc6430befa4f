//! The back end's side of the demo: where logic's HTTP API is, under which key, and one request to it.

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// An answer of more bytes is none of ours.
const ANSWER: u64 = 64 * 1024;

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

/// One HTTP/1.0 exchange: the answer ends with the connection. The caller bounds the time.
async fn ask(base: &str, method: &str, path: &str, key: &str, body: &Value) -> anyhow::Result<(u16, String)> {
    let host = base.strip_prefix("http://").with_context(|| format!("{base:?} is no http:// address"))?;
    let host = host.trim_end_matches('/');
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(host).await.with_context(|| format!("connecting to {base}"))?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(ANSWER).read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{base} speaks no HTTP"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("{base} speaks no HTTP"))?, body.to_owned()))
}
