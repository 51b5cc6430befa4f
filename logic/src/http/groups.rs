//! Groups: `PUT` and `GET /v1/groups/{groupId}`, `POST …/members:add`, `POST …/members:remove`.

use berth_proto::{client, code::ErrorCode, id};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    call::{self, Call},
    table::Answer,
};
use crate::group::{self, Group};

/// Members of a page when the caller names no limit, and at most: some 70 KB of JSON.
pub(super) const PAGE_DEFAULT: usize = 100;
pub(super) const PAGE_MAX: usize = group::PAGE;

#[derive(Deserialize)]
struct Members {
    #[serde(default)]
    members: Option<Vec<String>>,
}

/// Creates a group, or gives it these members and no others.
pub(super) async fn put(call: Call) -> Answer {
    let (group, members) = (group_id(&call)?, members(&call)?);
    told(&group::put(&call.api.context, group, members).await?)
}

/// Adds members.
pub(super) async fn add(call: Call) -> Answer {
    let (group, members) = (group_id(&call)?, members(&call)?);
    told(&group::add(&call.api.context, group, members).await?)
}

/// Removes members.
pub(super) async fn remove(call: Call) -> Answer {
    let (group, members) = (group_id(&call)?, members(&call)?);
    told(&group::remove(&call.api.context, group, members).await?)
}

/// The group and a page of its members.
pub(super) async fn get(call: Call) -> Answer {
    let group = group_id(&call)?;
    let limit = limit(call.query("limit")?)?;
    let after = call.query("cursor")?.filter(|cursor| !cursor.is_empty());
    if let Some(Err(problem)) = after.as_deref().map(id::check) {
        return Err(invalid(format!("cursor {problem}; give one that a page ended with")));
    }
    // One more than asked for: it says whether there is another page.
    let asked = (limit + 1).min(PAGE_MAX);
    let mut found = group::get(&call.api.context, group, after, asked).await?;
    let more = found.members.len() > limit || (limit == asked && found.members.len() == limit);
    found.members.truncate(limit);
    let cursor = found.members.last().filter(|_| more).cloned().unwrap_or_default();
    let mut body = body(&found);
    body["cursor"] = cursor.into();
    body["members"] = found.members.into();
    call::json(&body)
}

fn told(group: &Group) -> Answer {
    call::json(&body(group))
}

/// A 64-bit id is a string, a count that stays small is a number: proto3's JSON.
fn body(group: &Group) -> Value {
    json!({
        "groupId": group.group_id,
        "conversationId": group.conversation_id.to_string(),
        "memberCount": group.member_count,
    })
}

fn group_id(call: &Call) -> Result<&str, client::Error> {
    let id = call.parameters.first().map(String::as_str).unwrap_or_default();
    id::check(id).map_err(|problem| invalid(format!("groupId {problem}")))?;
    Ok(id)
}

/// Absent members are not the same as none: a body that got lost must not empty a group.
fn members(call: &Call) -> Result<Vec<String>, client::Error> {
    let Members { members } = call.json()?;
    let members =
        members.ok_or_else(|| invalid("members is missing; give a list of user ids, [] for nobody"))?;
    for (n, member) in members.iter().enumerate() {
        id::check(member).map_err(|problem| invalid(format!("members[{n}] {problem}")))?;
        if member == id::SYSTEM_USER {
            return Err(invalid(format!("members[{n}] is {member}, which belongs to the server")));
        }
    }
    Ok(members)
}

fn limit(given: Option<String>) -> Result<usize, client::Error> {
    let Some(text) = given.filter(|text| !text.is_empty()) else { return Ok(PAGE_DEFAULT) };
    match text.parse() {
        Ok(0) => Ok(PAGE_DEFAULT),
        Ok(limit) if limit <= PAGE_MAX => Ok(limit),
        _ => Err(invalid(format!("limit is {text:.20}; 0 to {PAGE_MAX} members are allowed"))),
    }
}

fn invalid(detail: impl Into<String>) -> client::Error {
    ErrorCode::InvalidArgument.error(detail)
}
