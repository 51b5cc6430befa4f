//! Checks JSON against the subset of JSON Schema that our OpenAPI documents use. A keyword that is not of that subset is an
//! error: nothing is passed over that might not hold.

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// Keywords that say nothing about what is valid.
const SILENT: [&str; 4] = ["description", "examples", "contentEncoding", "title"];

/// What `reference` (`#/components/…`) leads to.
///
/// # Errors
/// When that is nowhere.
pub fn resolve<'a>(document: &'a Value, reference: &str) -> anyhow::Result<&'a Value> {
    let pointer =
        reference.strip_prefix('#').with_context(|| format!("{reference} leads out of the document"))?;
    document.pointer(pointer).with_context(|| format!("{reference} leads nowhere"))
}

/// Follows the `$ref` of a parameter or response, where it is one.
///
/// # Errors
/// When it leads nowhere.
pub fn follow<'a>(document: &'a Value, value: &'a Value) -> anyhow::Result<&'a Value> {
    match value["$ref"].as_str() {
        Some(reference) => resolve(document, reference),
        None => Ok(value),
    }
}

/// Whether `value` is what `schema` says.
///
/// # Errors
/// Names the place and the keyword that does not hold.
pub fn check(document: &Value, schema: &Value, value: &Value) -> anyhow::Result<()> {
    let keywords = schema.as_object().with_context(|| format!("no schema: {schema}"))?;
    for (keyword, rule) in keywords.iter().filter(|(keyword, _)| !SILENT.contains(&keyword.as_str())) {
        holds(document, keyword, rule, value)
            .with_context(|| format!("{keyword} {rule:.200} of {value:.200}"))?;
    }
    Ok(())
}

fn holds(document: &Value, keyword: &str, rule: &Value, value: &Value) -> anyhow::Result<()> {
    let wrong = |holds: bool| {
        ensure!(holds, "does not hold");
        Ok(())
    };
    let limit = || rule.as_u64().context("is no count");
    match keyword {
        "$ref" => check(document, resolve(document, rule.as_str().context("is no reference")?)?, value),
        "type" => wrong(is_of(rule.as_str().context("is no name")?, value)?),
        "enum" => wrong(rule.as_array().context("is no list")?.contains(value)),
        "properties" => {
            for (name, schema) in rule.as_object().context("is no object")? {
                if let Some(field) = value.get(name) {
                    check(document, schema, field).with_context(|| name.clone())?;
                }
            }
            Ok(())
        }
        "required" => {
            let names = rule.as_array().context("is no list")?;
            wrong(names.iter().all(|name| name.as_str().is_some_and(|name| value.get(name).is_some())))
        }
        "oneOf" => {
            let schemas = rule.as_array().context("is no list")?;
            wrong(schemas.iter().filter(|schema| check(document, schema, value).is_ok()).count() == 1)
        }
        "items" => value.as_array().into_iter().flatten().try_for_each(|item| check(document, rule, item)),
        "maxItems" => wrong(value.as_array().is_none_or(|items| items.len() as u64 <= limit().unwrap_or(0))),
        "minLength" => {
            wrong(value.as_str().is_none_or(|text| text.chars().count() as u64 >= limit().unwrap_or(0)))
        }
        "maxLength" => {
            wrong(value.as_str().is_none_or(|text| text.chars().count() as u64 <= limit().unwrap_or(0)))
        }
        "minimum" => {
            wrong(value.as_f64().is_none_or(|number| rule.as_f64().is_some_and(|least| number >= least)))
        }
        "maximum" => {
            wrong(value.as_f64().is_none_or(|number| rule.as_f64().is_some_and(|most| number <= most)))
        }
        "pattern" => {
            wrong(matches(rule.as_str().context("is no pattern")?, value.as_str().unwrap_or_default())?)
        }
        other => bail!("the checker does not know {other}"),
    }
}

fn is_of(kind: &str, value: &Value) -> anyhow::Result<bool> {
    Ok(match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        other => bail!("the checker does not know the type {other}"),
    })
}

/// The two patterns there are.
fn matches(pattern: &str, text: &str) -> anyhow::Result<bool> {
    match pattern {
        "^[0-9]+$" => Ok(!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())),
        "^[A-Za-z0-9_.:@-]{1,64}$" => Ok(berth_proto::id::check(text).is_ok()),
        other => bail!("the checker does not know the pattern {other}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_holds_and_what_does_not_are_told_apart() {
        let document = json!({ "components": { "schemas": {
            "Id": { "type": "string", "pattern": "^[A-Za-z0-9_.:@-]{1,64}$" },
            "A": {
                "type": "object", "required": ["id"], "description": "x",
                "properties": {
                    "id": { "$ref": "#/components/schemas/Id" },
                    "count": { "type": "integer", "minimum": 1, "maximum": 3 },
                    "list": { "type": "array", "maxItems": 1, "items": { "type": "boolean" } },
                    "text": { "type": "string", "minLength": 1, "maxLength": 2, "enum": ["a", "bc"] },
                },
                "oneOf": [{ "required": ["count"] }, { "required": ["list"] }],
            },
        } } });
        let schema = json!({ "$ref": "#/components/schemas/A" });
        let good = json!({ "id": "a", "count": 2, "text": "bc", "more": 1 });
        check(&document, &schema, &good).expect("holds");
        let bad = [
            json!([]),
            json!({ "count": 1 }),
            json!({ "id": "a b", "count": 1 }),
            json!({ "id": "a" }),
            json!({ "id": "a", "count": 1, "list": [] }),
            json!({ "id": "a", "count": 4 }),
            json!({ "id": "a", "count": 0 }),
            json!({ "id": "a", "count": 1.5 }),
            json!({ "id": "a", "list": [1] }),
            json!({ "id": "a", "list": [true, false] }),
            json!({ "id": "a", "count": 1, "text": "x" }),
        ];
        for value in bad {
            assert!(check(&document, &schema, &value).is_err(), "{value}");
        }
        assert!(check(&document, &json!({ "multipleOf": 2 }), &json!(2)).is_err(), "an unknown keyword");
        assert!(check(&document, &json!({ "$ref": "#/nowhere" }), &json!(2)).is_err());
    }
}
