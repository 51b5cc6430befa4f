//! What makes a client's request valid in itself: known before anything is read or written.

use std::fmt;

use crate::{
    client::{self, request::Method, target::To},
    id, limits,
};

/// A field of a request that cannot be, with its JSON name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidField {
    /// As in PROTOCOL.md: `send.clientMsgId`.
    pub field: &'static str,
    /// What is wrong, with the value where it is short.
    pub problem: String,
}

impl fmt::Display for InvalidField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.problem)
    }
}

impl std::error::Error for InvalidField {}

fn invalid<T>(field: &'static str, problem: impl Into<String>) -> Result<T, InvalidField> {
    Err(InvalidField { field, problem: problem.into() })
}

/// Checks every field of a method's request.
///
/// # Errors
/// Names the first field that cannot be.
pub fn method(method: &Method) -> Result<(), InvalidField> {
    match method {
        Method::Send(request) => send(request),
        Method::Pull(request) => page("pull.limit", request.limit),
        Method::Ack(_) => Ok(()),
        Method::History(request) => history(request),
        Method::Conversations(request) => {
            length("conversations.cursor", request.cursor.len(), 0, limits::CONVERSATIONS_CURSOR)?;
            page("conversations.limit", request.limit)
        }
        Method::MarkRead(request) => conversation("markRead.conversationId", request.conversation_id),
        Method::Presence(request) => presence(request),
    }
}

/// Checks a send, whether it came from a client or from the back-end API.
///
/// # Errors
/// Names the first field that cannot be.
pub fn send(request: &client::SendRequest) -> Result<(), InvalidField> {
    length("send.clientMsgId", request.client_msg_id.len(), 1, limits::CLIENT_MSG_ID)?;
    match request.to.as_ref().and_then(|target| target.to.as_ref()) {
        None => invalid("send.to", "is missing; give userId, groupId or conversationId")?,
        Some(To::UserId(user)) => name("send.to.userId", user)?,
        Some(To::GroupId(group)) => name("send.to.groupId", group)?,
        Some(To::ConversationId(id)) => conversation("send.to.conversationId", *id)?,
    }
    length("send.type", request.r#type.len(), 0, limits::MESSAGE_TYPE)?;
    length("send.body", request.body.len(), 0, limits::BODY)
}

fn history(request: &client::HistoryRequest) -> Result<(), InvalidField> {
    conversation("history.conversationId", request.conversation_id)?;
    if request.after_seq > 0 && request.before_seq > 0 {
        return invalid("history.beforeSeq", "and afterSeq are both set; give one of them");
    }
    page("history.limit", request.limit)
}

fn presence(request: &client::PresenceRequest) -> Result<(), InvalidField> {
    length_in("presence.userIds", request.user_ids.len(), 0, limits::PRESENCE_USERS, "users")?;
    request.user_ids.iter().try_for_each(|user| name("presence.userIds", user))
}

fn name(field: &'static str, text: &str) -> Result<(), InvalidField> {
    id::check(text).or_else(|problem| invalid(field, problem.to_string()))
}

fn conversation(field: &'static str, id: u64) -> Result<(), InvalidField> {
    if id == 0 { invalid(field, "is missing or 0") } else { Ok(()) }
}

fn page(field: &'static str, limit: u32) -> Result<(), InvalidField> {
    length_in(field, limit as usize, 0, limits::PAGE_MAX as usize, "rows")
}

fn length(field: &'static str, length: usize, least: usize, most: usize) -> Result<(), InvalidField> {
    length_in(field, length, least, most, "bytes")
}

fn length_in(
    field: &'static str,
    length: usize,
    least: usize,
    most: usize,
    unit: &str,
) -> Result<(), InvalidField> {
    if (least..=most).contains(&length) {
        return Ok(());
    }
    invalid(field, format!("is {length} {unit}; {least} to {most} are allowed"))
}

/// The rows a page asks for: 0 means [`limits::PAGE_DEFAULT`].
#[must_use]
pub fn page_size(limit: u32) -> usize {
    if limit == 0 { limits::PAGE_DEFAULT as usize } else { limit.min(limits::PAGE_MAX) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> client::SendRequest {
        client::SendRequest {
            client_msg_id: "c".into(),
            to: Some(client::Target { to: Some(To::UserId("bob".into())) }),
            ..Default::default()
        }
    }

    /// A change that makes [`good`] bad, and the field that must be named.
    type Spoil = (fn(&mut client::SendRequest), &'static str);

    #[test]
    fn each_bad_field_of_a_send_is_named() {
        assert_eq!(send(&good()), Ok(()));
        let cases: [Spoil; 8] = [
            (|s| s.client_msg_id.clear(), "send.clientMsgId"),
            (|s| s.client_msg_id = "x".repeat(65), "send.clientMsgId"),
            (|s| s.to = None, "send.to"),
            (|s| s.to = Some(client::Target { to: None }), "send.to"),
            (|s| s.to = Some(client::Target { to: Some(To::UserId("no spaces".into())) }), "send.to.userId"),
            (|s| s.to = Some(client::Target { to: Some(To::ConversationId(0)) }), "send.to.conversationId"),
            (|s| s.r#type = "t".repeat(33), "send.type"),
            (|s| s.body = vec![0; limits::BODY + 1].into(), "send.body"),
        ];
        for (spoil, field) in cases {
            let mut request = good();
            spoil(&mut request);
            assert_eq!(send(&request).map_err(|e| e.field), Err(field));
        }
    }

    #[test]
    fn pages_and_presence_are_bounded() {
        let field = |m: Method| method(&m).map_err(|e| e.field);
        assert_eq!(field(Method::Pull(client::PullRequest { after_seq: 0, limit: 201 })), Err("pull.limit"));
        assert_eq!(field(Method::Pull(client::PullRequest { after_seq: 0, limit: 200 })), Ok(()));
        let both = client::HistoryRequest { conversation_id: 1, after_seq: 1, before_seq: 1, limit: 0 };
        assert_eq!(field(Method::History(both)), Err("history.beforeSeq"));
        let many = client::PresenceRequest { user_ids: vec!["a".into(); 201] };
        assert_eq!(field(Method::Presence(many)), Err("presence.userIds"));
        assert_eq!((page_size(0), page_size(7), page_size(900)), (100, 7, 200));
    }
}
