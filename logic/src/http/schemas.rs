//! The schemas of `/v1/openapi.json`, written by hand. The road tests check them against what is really answered.

use berth_proto::{code::ErrorCode, limits};
use serde_json::{Value, json};

use super::{
    groups::{PAGE_DEFAULT, PAGE_MAX},
    users::REASON,
};

/// `components.parameters`.
pub(super) fn parameters() -> Value {
    json!({
        "IdempotencyKey": {
            "name": "Idempotency-Key", "in": "header",
            "description": "Stands in for an absent clientMsgId.",
            "schema": { "type": "string", "minLength": 1, "maxLength": limits::CLIENT_MSG_ID },
        },
        "Limit": {
            "name": "limit", "in": "query",
            "description": format!("Members of the page; 0 or absent: {PAGE_DEFAULT}."),
            "schema": { "type": "integer", "minimum": 0, "maximum": PAGE_MAX },
        },
        "Cursor": {
            "name": "cursor", "in": "query",
            "description": "What the page before ended with.",
            "schema": { "type": "string" },
        },
    })
}

/// `components.schemas`.
pub(super) fn schemas() -> Value {
    let mut all = json!({
        "Id": {
            "type": "string", "pattern": "^[A-Za-z0-9_.:@-]{1,64}$",
            "description": "Of a user, group, device or gateway.", "examples": ["alice"],
        },
        "Uint64": {
            "type": "string", "pattern": "^[0-9]+$",
            "description": "A 64-bit integer; in requests a JSON number is taken too.", "examples": ["7316039180398592"],
        },
        "Members": {
            "type": "object", "required": ["members"],
            "properties": { "members": {
                "type": "array", "items": { "$ref": "#/components/schemas/Id" },
                "description": "User ids. Absent is an error: a body that got lost must not empty a group.",
            } },
            "examples": [{ "members": ["alice", "bob"] }],
        },
        "Group": {
            "type": "object", "required": ["groupId", "conversationId", "memberCount"],
            "properties": {
                "groupId": { "$ref": "#/components/schemas/Id" },
                "conversationId": { "$ref": "#/components/schemas/Uint64" },
                "memberCount": { "type": "integer", "minimum": 0 },
            },
        },
        "GroupPage": {
            "type": "object", "required": ["groupId", "conversationId", "memberCount", "members", "cursor"],
            "properties": {
                "groupId": { "$ref": "#/components/schemas/Id" },
                "conversationId": { "$ref": "#/components/schemas/Uint64" },
                "memberCount": { "type": "integer", "minimum": 0 },
                "members": { "type": "array", "items": { "$ref": "#/components/schemas/Id" } },
                "cursor": { "type": "string", "description": "Empty: there are no more." },
            },
        },
        "Disconnect": {
            "type": "object",
            "properties": { "reason": {
                "type": "string", "maxLength": REASON, "description": "Told to the client; bytes of UTF-8 are counted.",
            } },
            "examples": [{ "reason": "account closed" }, {}],
        },
        "Disconnected": {
            "type": "object", "required": ["sessions"],
            "properties": { "sessions": {
                "type": "integer", "minimum": 0, "description": "Connections that were told to close.",
            } },
        },
        "Document": { "type": "object", "required": ["openapi", "info", "paths", "components"] },
        "Problem": problem(),
    });
    merge(&mut all, messages());
    merge(&mut all, presence());
    merge(&mut all, revocations());
    all
}

fn messages() -> Value {
    json!({
        "Target": {
            "type": "object", "description": "One of these.",
            "oneOf": [
                { "required": ["userId"] }, { "required": ["groupId"] }, { "required": ["conversationId"] },
            ],
            "properties": {
                "userId": { "$ref": "#/components/schemas/Id" },
                "groupId": { "$ref": "#/components/schemas/Id" },
                "conversationId": { "$ref": "#/components/schemas/Uint64" },
            },
        },
        "SendMessage": {
            "type": "object", "required": ["to"],
            "properties": {
                "from": {
                    "$ref": "#/components/schemas/Id", "description": "Absent: system, which clients cannot be.",
                },
                "to": { "$ref": "#/components/schemas/Target" },
                "clientMsgId": {
                    "type": "string", "minLength": 1, "maxLength": limits::CLIENT_MSG_ID,
                    "description": "Or the header Idempotency-Key. What is repeated under it is sent once.",
                },
                "type": {
                    "type": "string", "maxLength": limits::MESSAGE_TYPE, "description": "Absent: text.",
                },
                "body": {
                    "type": "string", "contentEncoding": "base64",
                    "description": format!("Base64 of at most {} bytes.", limits::BODY),
                },
            },
            "examples": [{
                "from": "system", "to": { "userId": "alice" }, "clientMsgId": "welcome-1", "type": "text",
                "body": "aGVsbG8=",
            }],
        },
        "MessageSent": {
            "type": "object", "required": ["messageId", "conversationId", "serverTimeMs"],
            "properties": {
                "messageId": { "$ref": "#/components/schemas/Uint64" },
                "conversationId": { "$ref": "#/components/schemas/Uint64" },
                "serverTimeMs": { "$ref": "#/components/schemas/Uint64" },
                "duplicate": { "type": "boolean", "description": "True: it had been accepted before." },
            },
        },
    })
}

fn presence() -> Value {
    json!({
        "PresenceQuery": {
            "type": "object",
            "properties": { "userIds": {
                "type": "array", "maxItems": limits::PRESENCE_USERS, "items": { "$ref": "#/components/schemas/Id" },
            } },
            "examples": [{ "userIds": ["alice", "bob"] }],
        },
        "Presence": {
            "type": "object",
            "properties": { "users": { "type": "array", "items": { "$ref": "#/components/schemas/UserPresence" } } },
        },
        "UserPresence": {
            "type": "object", "required": ["userId"],
            "properties": {
                "userId": { "$ref": "#/components/schemas/Id" },
                "online": { "type": "boolean" },
                "devices": { "type": "array", "items": { "$ref": "#/components/schemas/DevicePresence" } },
            },
        },
        "DevicePresence": {
            "type": "object", "required": ["deviceId"],
            "properties": {
                "deviceId": { "$ref": "#/components/schemas/Id" },
                "platform": { "type": "string", "maxLength": limits::CLIENT_TEXT },
            },
        },
    })
}

fn revocations() -> Value {
    json!({
        "Revoke": {
            "type": "object",
            "properties": {
                "deviceId": {
                    "$ref": "#/components/schemas/Id", "description": "Absent: all devices of the user. A thief whose token has no \
                    claim `device` can come as another device: then leave it out.",
                },
                "reason": {
                    "type": "string", "maxLength": REASON, "description": "Told to the client; bytes of UTF-8 are counted.",
                },
                "notBeforeMs": {
                    "$ref": "#/components/schemas/Uint64",
                    "description": "What was issued earlier is void, in milliseconds since the Unix epoch; at most a minute ahead. \
                                    Absent: the next whole second.",
                },
            },
            "examples": [{ "deviceId": "phone", "reason": "lost phone" }, {}],
        },
        "Revoked": {
            "type": "object", "required": ["notBeforeMs", "closed"],
            "properties": {
                "notBeforeMs": {
                    "$ref": "#/components/schemas/Uint64",
                    "description": "In force: later than asked for where an earlier revocation voids more.",
                },
                "closed": {
                    "type": "integer", "minimum": 0, "description": "Sessions that were told to close.",
                },
            },
        },
        "Restore": {
            "type": "object",
            "properties": {
                "deviceId": {
                    "$ref": "#/components/schemas/Id", "description": "Absent: what was revoked of the user himself.",
                },
                "devices": {
                    "type": "boolean", "description": "Everything: of the user and of all his devices. Absent: false.",
                },
            },
            "examples": [{ "deviceId": "phone" }, {}, { "devices": true }],
        },
        "Restored": {
            "type": "object", "required": ["restored"],
            "properties": { "restored": {
                "type": "integer", "minimum": 0, "description": "Revocations that were in force and are not any more.",
            } },
        },
        "Revocations": {
            "type": "object", "required": ["revocations"],
            "properties": { "revocations": {
                "type": "array", "items": { "$ref": "#/components/schemas/Revocation" },
            } },
        },
        "Revocation": {
            "type": "object", "required": ["deviceId", "notBeforeMs", "reason", "changedMs"],
            "properties": {
                "deviceId": { "type": "string", "maxLength": 64, "description": "Empty: all devices of the user." },
                "notBeforeMs": { "$ref": "#/components/schemas/Uint64" },
                "reason": { "type": "string" },
                "changedMs": { "$ref": "#/components/schemas/Uint64" },
            },
        },
    })
}

fn problem() -> Value {
    json!({
        "type": "object", "description": "RFC 9457.",
        "required": ["type", "title", "status", "detail", "reason", "requestId"],
        "properties": {
            "type": { "type": "string" },
            "title": { "type": "string" },
            "status": { "type": "integer", "minimum": 400, "maximum": 599 },
            "detail": { "type": "string", "minLength": 1, "description": "What failed, with which value, what to do." },
            "reason": { "type": "string", "enum": ErrorCode::ALL.map(ErrorCode::as_str) },
            "requestId": {
                "type": "string", "description": "Yours (X-Request-Id) or the server's; finds the request in the log.",
            },
            "retryAfterMs": { "type": "integer", "minimum": 1, "description": "With 429 and 503." },
        },
    })
}

fn merge(all: &mut Value, more: Value) {
    if let (Value::Object(all), Value::Object(more)) = (all, more) {
        all.extend(more);
    }
}
