//! HTTP as an outside caller: one request, the whole answer.

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::wait;

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Header names in lower case with their values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The first header of that (lower-case) name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not of the wanted shape; shows it.
    pub fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_str(&self.body).with_context(|| format!("{} {}", self.status, self.body))
    }

    /// The body as a JSON value, null when it is none.
    #[must_use]
    pub fn value(&self) -> Value {
        self.json().unwrap_or(Value::Null)
    }
}

/// `GET url`, with a bearer token where one is given.
///
/// # Errors
/// When nothing answers in time.
pub async fn get(url: &str, bearer: Option<&str>) -> anyhow::Result<Answer> {
    send("GET", url, bearer, None).await
}

/// `POST url` with a JSON body.
///
/// # Errors
/// When nothing answers in time.
pub async fn post(url: &str, bearer: Option<&str>, body: &Value) -> anyhow::Result<Answer> {
    send("POST", url, bearer, Some(body.to_string())).await
}

/// Any method, any body text.
///
/// # Errors
/// When nothing answers in time.
pub async fn send(
    method: &str,
    url: &str,
    bearer: Option<&str>,
    body: Option<String>,
) -> anyhow::Result<Answer> {
    let mut request = Request::builder().method(method).uri(url);
    if let Some(token) = bearer {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())))?;
    // One client per request: nothing is kept between tests or over a server's restart.
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let exchange = async { read(client.request(request).await?).await };
    wait::within(url, exchange).await?.with_context(|| format!("{method} {url}"))
}

async fn read(response: Response<Incoming>) -> anyhow::Result<Answer> {
    let text = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(Answer { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
}
