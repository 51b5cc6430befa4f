//! Reads and checks the bodies of requests.

use std::{net::IpAddr, time::Duration};

use axum::body::{Body, Bytes};
use berth_proto::{id, limits, schedule::ScheduleRequest};
use futures_util::StreamExt;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::problem::Refusal;
use crate::{
    admission::TOKEN,
    decide::Request,
    policy::{Client, Platform, app_version},
    transport::Transports,
};

/// Largest body of a schedule request, in bytes: [`MAX_RTTS`] measurements of the longest ids, and room around them.
pub(super) const MAX_BODY: usize = 32 * 1024;

/// Of a body that is too long so much is read and thrown away, in bytes: whoever is cut off while he writes reads a reset
/// instead of the answer.
const THROWN_AWAY: usize = 2 * 1024 * 1024;

/// A body must be complete this long after its head.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Entries of `rttMs`: an SDK measures the gateways it was given, not the fleet.
const MAX_RTTS: usize = 256;

/// Entries of `failed`; the decision counts the first 32 that it knows.
pub(super) const MAX_FAILED: usize = 64;

/// Longest `queueToken`: as ours are, and room for those of a newer scheduler.
pub(super) const MAX_QUEUE_TOKEN: usize = 4 * TOKEN;

/// Entries of `transports`.
pub(super) const MAX_TRANSPORTS: usize = 8;

/// The body of `:explain`: a schedule request, and for whom it is pretended to be.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ExplainRequest {
    #[serde(flatten)]
    pub schedule: ScheduleRequest,
    pub user_id: String,
    pub client_ip: String,
}

/// Reads a body of at most so many bytes in bounded time.
pub(crate) async fn body(body: Body, most: usize) -> Result<Bytes, Refusal> {
    let late = |_| {
        let seconds = BODY_TIMEOUT.as_secs();
        Refusal::InvalidArgument(format!("the body was not complete within {seconds} s"))
    };
    tokio::time::timeout(BODY_TIMEOUT, read(body, most)).await.map_err(late)?
}

async fn read(body: Body, most: usize) -> Result<Bytes, Refusal> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut length: usize = 0;
    while let Some(chunk) = chunks.next().await {
        let cut = |error| Refusal::InvalidArgument(format!("the body was cut short: {error}"));
        let chunk = chunk.map_err(cut)?;
        length += chunk.len();
        if length > most + THROWN_AWAY {
            break;
        }
        if length <= most {
            bytes.extend_from_slice(&chunk);
        }
    }
    if length > most {
        return Err(Refusal::InvalidArgument(format!("the body is longer than {most} bytes")));
    }
    Ok(bytes.into())
}

/// Reads JSON as proto3 does: a field that is null is as if it were absent.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let invalid = |problem: String| Refusal::InvalidArgument(format!("the body: {problem}"));
    let mut value: Value = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
    let Value::Object(fields) = &mut value else {
        return Err(invalid("is no JSON object".to_owned()));
    };
    fields.retain(|_, field| !field.is_null());
    serde_path_to_error::deserialize(value).map_err(|e| invalid(e.to_string()))
}

/// Checks every field of a request.
pub(crate) fn check(request: &ScheduleRequest) -> Result<(), Refusal> {
    id::check(&request.device_id).map_err(|e| field("deviceId", &e.to_string()))?;
    let texts = [
        ("platform", &request.platform),
        ("appVersion", &request.app_version),
        ("sdk", &request.sdk),
        ("region", &request.region),
    ];
    for (name, text) in texts {
        at_most(name, text.len(), limits::CLIENT_TEXT, "bytes")?;
    }
    at_most("queueToken", request.queue_token.len(), MAX_QUEUE_TOKEN, "bytes")?;
    at_most("transports", request.transports.len(), MAX_TRANSPORTS, "entries")?;
    at_most("failed", request.failed.len(), MAX_FAILED, "entries")?;
    at_most("rttMs", request.rtt_ms.len(), MAX_RTTS, "entries")?;
    if transports(&request.transports) == Transports::NONE {
        return Err(field("transports", "names none of ws, tcp"));
    }
    Ok(())
}

/// The pretended address of `:explain`; empty: none.
pub(crate) fn address(text: &str) -> Result<Option<IpAddr>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let ip: IpAddr = text.parse().map_err(|_| field("clientIp", "is no IP address"))?;
    Ok(Some(ip.to_canonical()))
}

/// A checked request as the decision wants it, before it is located: the region is the client's own hint.
pub(crate) fn decision_request<'a>(
    request: &'a ScheduleRequest,
    user_id: &'a str,
    ip: Option<IpAddr>,
) -> Request<'a> {
    Request {
        user_id,
        client: Client {
            platform: Platform::named(&request.platform),
            app_version: app_version(&request.app_version),
            region: &request.region,
            origin: "",
            zone: "",
            ip,
            device_id: &request.device_id,
        },
        transports: transports(&request.transports),
        failed: &request.failed,
        near: &[],
        pool: None,
    }
}

/// Those of the names that are known; a newer SDK may ask for more. No name asks for all.
fn transports(names: &[String]) -> Transports {
    if names.is_empty() {
        return Transports::ALL;
    }
    let known = names.iter().filter_map(|name| Transports::named(name));
    known.fold(Transports::NONE, Transports::with)
}

fn field(name: &str, problem: &str) -> Refusal {
    Refusal::InvalidArgument(format!("{name} {problem}"))
}

fn at_most(name: &str, length: usize, most: usize, unit: &str) -> Result<(), Refusal> {
    if length <= most { Ok(()) } else { Err(field(name, &format!("has {length} {unit}; at most {most}"))) }
}
