//! One JSON request over HTTP/1.1. No pool and no background task: the connection lives as long as the call.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

/// A scheduler answers in milliseconds; past this it is as good as down.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// The same where another one can be asked.
pub(crate) const DEADLINE_OF_SEVERAL: Duration = Duration::from_secs(3);

/// Largest answer read, in bytes: five endpoints and a ticket are below 8 KiB.
const ANSWER: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(crate) enum HttpError {
    #[error("{url:?} is no scheduler address: {problem}; write http://host:port")]
    Url { url: String, problem: String },
    #[error("cannot reach {url}: {problem}")]
    Unreachable { url: String, problem: String },
    #[error("{url} did not answer within {within:?}")]
    Deadline { url: String, within: Duration },
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
    pub body: Bytes,
}

/// Posts `body` to `base` + `path`, and awaits the answer for so long.
pub(crate) async fn post_json(
    base: &str,
    path: &str,
    bearer: Option<&str>,
    body: Vec<u8>,
    within: Duration,
) -> Result<Answer, HttpError> {
    let url = format!("{}{path}", base.trim_end_matches('/'));
    let exchange = exchange(&url, bearer, body);
    timeout(within, exchange).await.unwrap_or_else(|_| Err(HttpError::Deadline { url: url.clone(), within }))
}

/// Checks that a scheduler's address can be used.
pub(crate) fn check_base(base: &str) -> Result<(), HttpError> {
    parse(base).map(drop)
}

fn parse(url: &str) -> Result<(Uri, String), HttpError> {
    let bad = |problem: &str| HttpError::Url { url: url.to_owned(), problem: problem.to_owned() };
    let uri: Uri = url.parse().map_err(|e: hyper::http::uri::InvalidUri| bad(&e.to_string()))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(bad("https is not supported yet")),
        _ => return Err(bad("it has no http://")),
    }
    let authority = uri.authority().ok_or_else(|| bad("it has no host"))?.as_str().to_owned();
    let port = uri.port_u16();
    Ok((uri, if port.is_some() { authority } else { format!("{authority}:80") }))
}

async fn exchange(url: &str, bearer: Option<&str>, body: Vec<u8>) -> Result<Answer, HttpError> {
    let unreachable =
        |e: &dyn std::fmt::Display| HttpError::Unreachable { url: url.to_owned(), problem: e.to_string() };
    let (uri, address) = parse(url)?;
    let mut request = Request::post(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(token) = bearer {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|e| HttpError::Url {
        url: url.to_owned(),
        problem: format!("the request cannot be written ({e}); is the token one line of text?"),
    })?;

    let stream = TcpStream::connect(&address).await.map_err(|e| unreachable(&e))?;
    stream.set_nodelay(true).map_err(|e| unreachable(&e))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(&e))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| unreachable(&e))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Limited::new(response.into_body(), ANSWER).collect().await.map_err(|e| unreachable(&e))?;
        Ok(Answer { status, retry_after, body: body.to_bytes() })
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection's end, good or bad, leaves the answer ready or failed.
        _ = connection => answer.await,
    }
}
