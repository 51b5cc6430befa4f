//! Every operation of the HTTP API, and `/v1/openapi.json`: the router and the document are both made from one table.

use std::sync::{Arc, LazyLock};

use axum::{
    http::{HeaderValue, Response, header},
    routing::{MethodRouter, get, post},
};
use berth_proto::{limits, schedule::Reason};
use serde_json::{Map, Value, json};

use crate::core::Core;

/// One operation.
pub(super) struct Operation {
    pub(super) path: &'static str,
    pub(super) route: fn() -> MethodRouter<Arc<Core>>,
    method: &'static str,
    id: &'static str,
    summary: &'static str,
    description: &'static str,
    /// Schema of the body; empty: it takes none.
    request: &'static str,
    response: &'static str,
    /// Whose key it wants; empty: nobody's.
    security: &'static str,
    /// The statuses it may have beside 200.
    errors: &'static [u16],
}

/// All of them.
pub(super) static OPERATIONS: [Operation; 3] = [
    Operation {
        path: "/v1/schedule",
        route: || post(super::schedule),
        method: "post",
        id: "schedule",
        summary: "Where this user's device is to connect",
        description: "Endpoints come best first; the ticket is good for all of them until it expires. Wait as long as \
                      retryAfterMs says after 429 and 503: everybody else was told another number. With OVERLOADED that is your place \
                      in a queue; send its queueToken with the next request, to whichever scheduler, and the place is kept.",
        request: "ScheduleRequest",
        response: "ScheduleAnswer",
        security: "userToken",
        errors: &[400, 401, 403, 429, 503],
    },
    Operation {
        path: "/v1/schedule:explain",
        route: || post(super::explain_schedule),
        method: "post",
        id: "explainSchedule",
        summary: "Where a user would be sent, and why",
        description: "Every stage of the decision, who was dropped there and why, each candidate's score. No ticket is \
                      made and nothing is counted.",
        request: "ExplainRequest",
        response: "Explanation",
        security: "adminKey",
        errors: &[400, 401],
    },
    Operation {
        path: "/v1/openapi.json",
        route: || get(answer),
        method: "get",
        id: "getDocument",
        summary: "This document",
        description: "Needs no key.",
        request: "",
        response: "Document",
        security: "",
        errors: &[],
    },
];

/// Error statuses, each with the name of its response and when it is given.
const ERRORS: [(u16, &str, &str); 5] = [
    (400, "BadRequest", "A field cannot be; `detail` names it."),
    (401, "Unauthorized", "The token or key is missing, wrong or expired."),
    (403, "Forbidden", "The user id system belongs to the server, or the token is of another device."),
    (429, "RateLimited", "This user asks too often; wait as long as Retry-After says."),
    (
        503,
        "Unavailable",
        "No gateway can be assigned (NO_GATEWAY), or more clients ask than the gateways can take (OVERLOADED); wait as long \
         as Retry-After says.",
    ),
];

async fn answer() -> Response<axum::body::Body> {
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        serde_json::to_vec(&document()).expect("strings, lists and objects have a JSON form")
    });
    let mut response = Response::new(BYTES.as_slice().into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn document() -> Value {
    let mut paths = Map::new();
    for operation in &OPERATIONS {
        let at = paths.entry(operation.path).or_insert_with(|| json!({}));
        at[operation.method] = described(operation);
    }
    let bearer = |of: &str| json!({ "type": "http", "scheme": "bearer", "description": of });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Berth Access Schedule Service",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Tells clients where to connect. 64-bit integers are strings in answers; a field with its default \
                            value may be absent; unknown fields are ignored.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "userToken": bearer("The user's JWT: sub is the user id, exp is required."),
                "adminKey": bearer("auth.admin_key"),
            },
            "responses": Value::Object(ERRORS.iter().map(response).collect()),
            "schemas": schemas(),
        },
    })
}

fn described(operation: &Operation) -> Value {
    let security =
        if operation.security.is_empty() { json!([]) } else { json!([{ operation.security: [] }]) };
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "description": operation.description,
        "security": security,
        "responses": { "200": {
            "description": "Done.",
            "content": { "application/json": { "schema": schema(operation.response) } },
        } },
    });
    if !operation.request.is_empty() {
        described["requestBody"] = json!({
            "required": true, "content": { "application/json": { "schema": schema(operation.request) } },
        });
    }
    for (status, name, _) in ERRORS.iter().filter(|(status, ..)| operation.errors.contains(status)) {
        described["responses"][status.to_string()] =
            json!({ "$ref": format!("#/components/responses/{name}") });
    }
    described
}

fn response((status, name, description): &(u16, &str, &str)) -> (String, Value) {
    let mut response = json!({
        "description": description,
        "content": { "application/problem+json": { "schema": schema("Problem") } },
    });
    if [429, 503].contains(status) {
        response["headers"] = json!({
            "Retry-After": { "description": "In seconds.", "required": true, "schema": { "type": "integer" } },
        });
    }
    ((*name).to_owned(), response)
}

fn schema(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn schemas() -> Value {
    let mut explain = request();
    explain["required"] = json!(["userId", "deviceId"]);
    explain["properties"]["userId"] = schema("Id");
    explain["properties"]["clientIp"] =
        json!({ "type": "string", "description": "Pretended; absent: unknown." });
    explain["examples"] = json!([{ "userId": "alice", "deviceId": "d1", "clientIp": "10.0.0.7" }]);
    json!({
        "Id": { "type": "string", "pattern": "^[A-Za-z0-9_.:@-]{1,64}$" },
        "Uint64": { "type": "string", "pattern": "^[0-9]+$", "description": "A 64-bit integer." },
        "ScheduleRequest": request(),
        "ScheduleAnswer": schedule_answer(),
        "Endpoint": {
            "type": "object", "required": ["gatewayId", "transport", "url"],
            "properties": {
                "gatewayId": schema("Id"),
                "transport": { "type": "string", "enum": ["ws", "tcp"] },
                "url": { "type": "string", "examples": ["ws://127.0.0.1:7710/v1/ws", "tcp://127.0.0.1:7710"] },
                "region": { "type": "string" }, "zone": { "type": "string" }, "pool": { "type": "string" },
            },
        },
        "Decision": {
            "type": "object", "required": ["reason", "pool"],
            "properties": {
                "policyVersion": schema("Uint64"), "ruleId": { "type": "string" }, "pool": { "type": "string" },
                "reason": { "type": "string", "enum": Reason::ALL.map(Reason::as_str) },
            },
        },
        "ExplainRequest": explain,
        "Explanation": {
            "type": "object", "required": ["client", "elsewhere", "endpoints", "policyHash", "stages"],
            "properties": {
                "decision": schema("Decision"), "problem": schema("Problem"), "tier": { "type": "string" },
                "elsewhere": { "type": "boolean", "description": "The user's home cannot take him now." },
                "endpoints": { "type": "array", "items": schema("Endpoint") },
                "client": {
                    "type": "object", "description": "Where the client is thought to be, and what told it; its form may change.",
                },
                "policyHash": { "type": "string" },
                "stages": { "description": "For people; its form may change." },
            },
        },
        "Document": { "type": "object", "required": ["openapi", "info", "paths", "components"] },
        "Problem": {
            "type": "object", "description": "RFC 9457.",
            "required": ["type", "title", "status", "detail", "reason", "requestId"],
            "properties": {
                "type": { "type": "string" }, "title": { "type": "string" },
                "status": { "type": "integer", "minimum": 400, "maximum": 599 },
                "detail": { "type": "string", "minLength": 1 },
                "reason": { "type": "string", "enum": [
                    "INVALID_ARGUMENT", "UNAUTHENTICATED", "FORBIDDEN", "NOT_FOUND", "RATE_LIMITED", "NO_GATEWAY", "OVERLOADED",
                ] },
                "requestId": { "type": "string", "description": "Yours (X-Request-Id) or the server's." },
                "retryAfterMs": { "type": "integer", "minimum": 0, "description": "With 429 and 503." },
                "queueToken": {
                    "type": "string", "description": "With OVERLOADED: keeps the place that retryAfterMs tells.",
                },
            },
        },
    })
}

fn request() -> Value {
    let text = json!({ "type": "string", "maxLength": limits::CLIENT_TEXT });
    json!({
        "type": "object", "required": ["deviceId"],
        "properties": {
            "deviceId": {
                "$ref": "#/components/schemas/Id", "description": "Where the token has the claim `device`: that one.",
            },
            "platform": text, "appVersion": text, "sdk": text, "region": text,
            "transports": { "type": "array", "items": { "type": "string" }, "maxItems": super::input::MAX_TRANSPORTS },
            "attempt": { "type": "integer", "minimum": 0 },
            "failed": { "type": "array", "items": { "type": "string" }, "maxItems": super::input::MAX_FAILED },
            "queueToken": {
                "type": "string", "maxLength": super::input::MAX_QUEUE_TOKEN,
                "description": "What the last OVERLOADED said; good once, for this user and device.",
            },
            "renew": {
                "type": "boolean",
                "description": "The device is connected and wants a newer ticket: this takes nobody's place. While others wait it is \
                                OVERLOADED without a queueToken; ask again at the next time.",
            },
            "rttMs": {
                "type": "object", "description": "Measured round trips by gateway id, in milliseconds.",
            },
        },
        "examples": [
            { "deviceId": "d1" },
            { "deviceId": "d1", "platform": "ios", "appVersion": "7.3.1", "transports": ["ws"], "rttMs": { "gw-1": 23 } },
        ],
    })
}

fn schedule_answer() -> Value {
    let integer = json!({ "type": "integer", "minimum": 0 });
    json!({
        "type": "object",
        "required": [
            "scheduleId", "serverTimeMs", "ttlSeconds", "endpoints", "ticket", "ticketExpiresAtMs", "heartbeat", "reconnect",
            "decision",
        ],
        "properties": {
            "scheduleId": { "type": "string" },
            "serverTimeMs": schema("Uint64"),
            "ttlSeconds": integer,
            "endpoints": { "type": "array", "items": schema("Endpoint") },
            "ticket": { "type": "string", "maxLength": limits::TICKET },
            "ticketExpiresAtMs": schema("Uint64"),
            "heartbeat": {
                "type": "object", "required": ["intervalMs", "timeoutMs"],
                "properties": { "intervalMs": integer, "timeoutMs": integer },
            },
            "reconnect": {
                "type": "object", "required": ["baseMs", "maxMs", "spreadMs", "rescheduleAfterFailures"],
                "properties": {
                    "baseMs": integer, "maxMs": integer, "spreadMs": integer, "rescheduleAfterFailures": integer,
                },
            },
            "decision": schema("Decision"),
        },
    })
}
