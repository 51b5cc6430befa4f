//! `/v1/openapi.json`: the operations' table as an OpenAPI 3.1 document.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{
    schemas,
    table::{OPERATIONS, Operation},
};

/// Error statuses, each with the name of its response and when it is given.
const ERRORS: [(u16, &str, &str); 11] = [
    (400, "BadRequest", "A field cannot be; `detail` names it."),
    (401, "Unauthorized", "The service key is missing or wrong."),
    (403, "Forbidden", "The sender may not send there."),
    (404, "NotFound", "The group does not exist."),
    (409, "Conflict", "The clientMsgId was used for another target or body within 24 h."),
    (413, "TooLarge", "The body is too long."),
    (415, "NotJson", "The body calls itself something else than JSON."),
    (429, "TooMany", "Too much waits to be delivered; wait as long as Retry-After says."),
    (500, "Internal", "A fault of the server."),
    (
        503,
        "Unavailable",
        "The queue or the store cannot be read or written now; wait as long as Retry-After says.",
    ),
    (
        504,
        "DeadlineExceeded",
        "Not done in time; the outcome is unknown: repeat it, a message under its clientMsgId.",
    ),
];

/// The whole document.
pub(super) fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Berth back-end API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What other servers ask of Berth's logic tier. 64-bit integers are strings in answers; a field with \
                            its default value may be absent; unknown fields are ignored.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "serviceKey": [] }],
        "paths": paths(),
        "components": {
            "securitySchemes": {
                "serviceKey": { "type": "http", "scheme": "bearer", "description": "auth.service_key" },
            },
            "parameters": schemas::parameters(),
            "responses": responses(),
            "schemas": schemas::schemas(),
        },
    })
}

fn paths() -> Value {
    let mut paths = Map::new();
    for operation in &OPERATIONS {
        let at = paths.entry(operation.path).or_insert_with(|| json!({}));
        at[operation.method.as_str().to_ascii_lowercase()] = described(operation);
    }
    paths.into()
}

fn described(operation: &Operation) -> Value {
    let words = &operation.words;
    let mut described = json!({
        "operationId": camel(operation.route.name()),
        "summary": words.summary,
        "description": words.description,
        "responses": { "200": {
            "description": "Done.",
            "content": { "application/json": { "schema": schema(words.response) } },
        } },
    });
    let named = operation.path.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
    let in_path = named.map(|(name, _)| {
        json!({
            "name": name, "in": "path", "required": true, "schema": schema("Id"),
            "description": "Percent-encoded where it has to be.",
        })
    });
    let others =
        words.parameters.iter().map(|name| json!({ "$ref": format!("#/components/parameters/{name}") }));
    let parameters: Vec<Value> = in_path.chain(others).collect();
    if !parameters.is_empty() {
        described["parameters"] = parameters.into();
    }
    if !words.request.is_empty() {
        described["requestBody"] = json!({
            "required": !words.optional,
            "description": format!("At most {} bytes.", operation.body),
            "content": { "application/json": { "schema": schema(words.request) } },
        });
    }
    if operation.open {
        described["security"] = json!([]);
    }
    for (status, name, _) in ERRORS.iter().filter(|(status, ..)| words.errors.contains(status)) {
        described["responses"][status.to_string()] =
            json!({ "$ref": format!("#/components/responses/{name}") });
    }
    described
}

/// The error responses that some operation has.
fn responses() -> Value {
    let used: BTreeSet<u16> =
        OPERATIONS.iter().flat_map(|operation| operation.words.errors).copied().collect();
    let mut responses = Map::new();
    for (status, name, description) in ERRORS.iter().filter(|(status, ..)| used.contains(status)) {
        let mut response = json!({
            "description": description,
            "content": { "application/problem+json": { "schema": schema("Problem") } },
        });
        if [429, 503].contains(status) {
            response["headers"] = json!({
                "Retry-After": { "description": "In seconds.", "required": true, "schema": { "type": "integer" } },
            });
        }
        responses.insert((*name).to_owned(), response);
    }
    responses.into()
}

fn schema(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// `send_message` as `sendMessage`.
fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut text, word| {
        let (head, tail) = word.split_at(word.len().min(1));
        text.push_str(&head.to_ascii_uppercase());
        text.push_str(tail);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` of the document.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, field)| match field.as_str() {
                Some(text) if name == "$ref" => found.push(text),
                _ => references(field, found),
            }),
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_component_is_used() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        for reference in &found {
            let pointer = reference.strip_prefix('#').expect("within the document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for kind in ["parameters", "responses", "schemas"] {
            for name in document["components"][kind].as_object().expect("is there").keys() {
                let reference = format!("#/components/{kind}/{name}");
                assert!(found.contains(&reference.as_str()), "{reference} is used by nothing");
            }
        }
    }

    #[test]
    fn errors_of_operations_are_described() {
        for operation in &OPERATIONS {
            for status in operation.words.errors {
                assert!(ERRORS.iter().any(|(known, ..)| known == status), "{status} of {}", operation.path);
            }
        }
        assert_eq!(camel("batch_get_presence"), "batchGetPresence");
    }
}
