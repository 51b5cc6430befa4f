//! The bodies of `POST /v1/schedule`. They follow proto3 JSON: 64-bit integers are strings on output and numbers too on
//! input, a field with its default value may be absent, unknown fields are ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::client;

/// What a client asks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ScheduleRequest {
    /// The device, 1 to 64 bytes. The only required field.
    pub device_id: String,
    /// `ios`, `android`, `web`, `desktop` or `server`.
    pub platform: String,
    /// The app's semantic version.
    pub app_version: String,
    /// The SDK's `name/version`.
    pub sdk: String,
    /// `ws`, `tcp`; empty: all.
    pub transports: Vec<String>,
    /// A hint where the client is.
    pub region: String,
    /// How often this client asked since it was last connected.
    pub attempt: u32,
    /// Gateways that the client could not reach.
    pub failed: Vec<String>,
    /// Round trips the client measured, by gateway id, in milliseconds.
    pub rtt_ms: BTreeMap<String, u32>,
    /// What the last OVERLOADED said: it keeps this client's place.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub queue_token: String,
    /// The client is connected and stays so: it wants a newer ticket, and comes to no gateway now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub renew: bool,
}

/// What a scheduler answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ScheduleAnswer {
    /// Names this decision in logs and metrics' exemplars: 16 hex digits.
    pub schedule_id: String,
    /// The scheduler's clock.
    #[serde(with = "int64")]
    pub server_time_ms: i64,
    /// How long the ticket is good for, at the most.
    pub ttl_seconds: u32,
    /// Where to connect, best first.
    pub endpoints: Vec<ScheduleEndpoint>,
    /// What to say in hello.
    pub ticket: String,
    /// When the ticket stops being accepted.
    #[serde(with = "int64")]
    pub ticket_expires_at_ms: i64,
    /// The heartbeats expected.
    pub heartbeat: HeartbeatParameters,
    /// How to come back after a loss.
    pub reconnect: ReconnectParameters,
    /// Why here.
    pub decision: Decision,
}

/// One way to one gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ScheduleEndpoint {
    /// The gateway.
    pub gateway_id: String,
    /// `ws` or `tcp`.
    pub transport: String,
    /// `ws://host:port/v1/ws` or `tcp://host:port`.
    pub url: String,
    /// The gateway's region.
    pub region: String,
    /// The gateway's zone.
    pub zone: String,
    /// The gateway's pool.
    pub pool: String,
}

impl From<client::Endpoint> for ScheduleEndpoint {
    fn from(endpoint: client::Endpoint) -> Self {
        let client::Endpoint { gateway_id, transport, url, region, zone, pool } = endpoint;
        Self { gateway_id, transport, url, region, zone, pool }
    }
}

impl From<ScheduleEndpoint> for client::Endpoint {
    fn from(endpoint: ScheduleEndpoint) -> Self {
        let ScheduleEndpoint { gateway_id, transport, url, region, zone, pool } = endpoint;
        Self { gateway_id, transport, url, region, zone, pool }
    }
}

/// The heartbeats expected of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeartbeatParameters {
    /// Between two heartbeats, in milliseconds.
    pub interval_ms: u32,
    /// Silence after which the gateway closes with 4003, in milliseconds.
    pub timeout_ms: u32,
}

impl Default for HeartbeatParameters {
    /// 25 s keeps the NAT bindings of most mobile networks; one and a half of it is the timeout.
    fn default() -> Self {
        Self { interval_ms: 25_000, timeout_ms: 37_500 }
    }
}

/// How a client comes back after a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReconnectParameters {
    /// The first back-off, in milliseconds.
    pub base_ms: u32,
    /// The longest back-off, in milliseconds.
    pub max_ms: u32,
    /// The first retry comes after U(0, max(spreadMs, baseMs)).
    pub spread_ms: u32,
    /// After so many failures along the list, ask a scheduler again.
    pub reschedule_after_failures: u32,
}

impl Default for ReconnectParameters {
    fn default() -> Self {
        Self { base_ms: 500, max_ms: 20_000, spread_ms: 0, reschedule_after_failures: 3 }
    }
}

/// Why a client was sent where it was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Decision {
    /// The policy decided on.
    #[serde(with = "int64")]
    pub policy_version: u64,
    /// The gray rule that applied, or none.
    pub rule_id: String,
    /// DEFAULT, TARGETING_MATCH, SPLIT, FALLBACK or STALE.
    pub reason: Reason,
    /// The pool decided on.
    pub pool: String,
}

/// The closed set of reasons.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// No rule applied.
    #[default]
    Default,
    /// A rule names the user, or takes all that match.
    TargetingMatch,
    /// A rule takes the user by percentage.
    Split,
    /// The rule's pool has no gateway with room: stable instead.
    Fallback,
    /// Decided on old load reports.
    Stale,
}

impl Reason {
    /// Every reason, for metrics that exist from the start.
    pub const ALL: [Self; 5] =
        [Self::Default, Self::TargetingMatch, Self::Split, Self::Fallback, Self::Stale];

    /// As it stands on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "DEFAULT",
            Self::TargetingMatch => "TARGETING_MATCH",
            Self::Split => "SPLIT",
            Self::Fallback => "FALLBACK",
            Self::Stale => "STALE",
        }
    }
}

/// `application/problem+json`: every HTTP error of the scheduler and of logic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Problem {
    /// `about:blank`: the reason says which problem.
    pub r#type: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What failed, with which value, what to do.
    pub detail: String,
    /// For programs: INVALID_ARGUMENT, UNAUTHENTICATED, NO_GATEWAY, …
    pub reason: String,
    /// To find the request in the log.
    pub request_id: String,
    /// With 429 and 503: when to try again, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u32>,
    /// With OVERLOADED: keeps the place in the queue that `retryAfterMs` tells. Send it with the next request.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub queue_token: String,
}

/// 64-bit integers of proto3 JSON: strings on output, numbers too on input.
pub mod int64 {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the number as a string.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads a string or a number.
    ///
    /// # Errors
    /// When it is neither, or out of range.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display> + Deserialize<'de>,
        D: Deserializer<'de>,
    {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<T> {
            Number(T),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(number),
            Either::Text(text) => text.parse().map_err(|e| D::Error::custom(format!("{text:?}: {e}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_answer_reads_and_its_integers_are_strings() {
        let text = r#"{"scheduleId":"x","serverTimeMs":"1795000000000","ttlSeconds":300,
         "endpoints":[{"gatewayId":"gw-1","transport":"ws","url":"ws://127.0.0.1:7710/v1/ws","region":"eu","zone":"a","pool":"stable"}],
         "ticket":"t","ticketExpiresAtMs":"1795000300000","heartbeat":{"intervalMs":25000,"timeoutMs":37500},
         "reconnect":{"baseMs":500,"maxMs":20000,"spreadMs":0,"rescheduleAfterFailures":3},
         "decision":{"policyVersion":"1","ruleId":"canary-ios","reason":"SPLIT","pool":"canary"}}"#;
        let answer: ScheduleAnswer = serde_json::from_str(text).expect("the document's example");
        assert_eq!(answer.server_time_ms, 1_795_000_000_000);
        assert_eq!(answer.decision.reason, Reason::Split);
        let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(serde_json::to_value(&answer).expect("serializes"), value);
    }

    #[test]
    fn a_request_needs_little_and_ignores_the_unknown() {
        let request: ScheduleRequest =
            serde_json::from_str(r#"{"deviceId":"d","later":[1],"rttMs":{"gw-1":23}}"#).expect("reads");
        assert_eq!(request.device_id, "d");
        assert_eq!(request.rtt_ms["gw-1"], 23);
    }

    #[test]
    fn reasons_agree_with_their_json() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).expect("serializes"), reason.as_str());
        }
    }
}
