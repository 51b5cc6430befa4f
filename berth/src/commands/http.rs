//! One request to a role's HTTP API, for commands that make a few.

use anyhow::Context;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// An answer of more bytes is none of ours: an explanation lists at most 1,000 gateways, below 2 KiB each.
const ANSWER: u64 = 4 * 1024 * 1024;

/// One HTTP/1.0 exchange: the answer ends with the connection. The caller bounds the time.
///
/// # Errors
/// When nobody answers, or not in HTTP.
pub async fn ask(
    base: &str,
    method: &str,
    path: &str,
    key: &str,
    body: &Value,
) -> anyhow::Result<(u16, String)> {
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
