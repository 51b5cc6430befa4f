//! Every operation of the API: what is served and what is documented are both read from here.

use axum::http::Method;
use berth_proto::{client, limits};
use futures_util::future::BoxFuture;

use super::{call::Call, groups, messages, presence, problem::Problem, users};
use crate::metrics::Route;

/// What a handler gives: the body of a 200, or why there is none.
pub(super) type Answer = Result<Vec<u8>, client::Error>;

/// Longest body of a group's members, in bytes: some 15,000 of the longest ids.
const MEMBERS: usize = 1024 * 1024;

/// Longest body otherwise, in bytes: a message as large as a client's.
const BODY: usize = limits::CLIENT_FRAME;

/// One operation.
pub(super) struct Operation {
    /// Its label in metrics, and its operationId.
    pub(super) route: Route,
    pub(super) method: Method,
    /// As PROTOCOL.md writes it: a name in braces stands for a segment, or for one up to the action after it.
    pub(super) path: &'static str,
    /// Longest body, in bytes; 0: it takes none.
    pub(super) body: usize,
    /// Whether it is answered without the service key.
    pub(super) open: bool,
    pub(super) handle: fn(Call) -> BoxFuture<'static, Answer>,
    pub(super) words: Words,
}

/// What the document says of an operation.
pub(super) struct Words {
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    /// Schema of the body; empty: it takes none.
    pub(super) request: &'static str,
    /// Whether it may be left out.
    pub(super) optional: bool,
    /// Schema of the answer.
    pub(super) response: &'static str,
    /// Parameters beside those of the path, as `components.parameters` names them.
    pub(super) parameters: &'static [&'static str],
    /// The statuses it may have beside 200.
    pub(super) errors: &'static [u16],
}

/// All of them.
pub(super) static OPERATIONS: [Operation; 11] = [
    Operation {
        route: Route::SendMessage,
        method: Method::POST,
        path: "/v1/messages",
        body: BODY,
        open: false,
        handle: |call| Box::pin(messages::send(call)),
        words: Words {
            summary: "Send a message to a user, a group or a conversation",
            description: "Answers when the message is on disk. The same `clientMsgId` of the same sender within 24 h is \
                          answered as before and sent once; with another target or body it is refused with 409.",
            request: "SendMessage",
            optional: false,
            response: "MessageSent",
            parameters: &["IdempotencyKey"],
            errors: &[400, 401, 403, 404, 409, 413, 415, 429, 503, 504],
        },
    },
    Operation {
        route: Route::PutGroup,
        method: Method::PUT,
        path: "/v1/groups/{groupId}",
        body: MEMBERS,
        open: false,
        handle: |call| Box::pin(groups::put(call)),
        words: Words {
            summary: "Create a group, or replace its members",
            description: "The same again changes nothing. A call whose outcome is unknown is repeated.",
            request: "Members",
            optional: false,
            response: "Group",
            parameters: &[],
            errors: &[400, 401, 413, 415, 429, 503, 504],
        },
    },
    Operation {
        route: Route::GetGroup,
        method: Method::GET,
        path: "/v1/groups/{groupId}",
        body: 0,
        open: false,
        handle: |call| Box::pin(groups::get(call)),
        words: Words {
            summary: "Read a group and a page of its members",
            description: "Members come in order of their ids. `cursor` is empty at the end; otherwise it gets the next page.",
            request: "",
            optional: false,
            response: "GroupPage",
            parameters: &["Limit", "Cursor"],
            errors: &[400, 401, 404, 503, 504],
        },
    },
    Operation {
        route: Route::AddMembers,
        method: Method::POST,
        path: "/v1/groups/{groupId}/members:add",
        body: MEMBERS,
        open: false,
        handle: |call| Box::pin(groups::add(call)),
        words: Words {
            summary: "Add members to a group",
            description: "Those who are in it already stay as they are.",
            request: "Members",
            optional: false,
            response: "Group",
            parameters: &[],
            errors: &[400, 401, 404, 413, 415, 429, 503, 504],
        },
    },
    Operation {
        route: Route::RemoveMembers,
        method: Method::POST,
        path: "/v1/groups/{groupId}/members:remove",
        body: MEMBERS,
        open: false,
        handle: |call| Box::pin(groups::remove(call)),
        words: Words {
            summary: "Remove members from a group",
            description: "Those who are not in it are passed over. They keep the history up to the moment they left.",
            request: "Members",
            optional: false,
            response: "Group",
            parameters: &[],
            errors: &[400, 401, 404, 413, 415, 503, 504],
        },
    },
    Operation {
        route: Route::BatchGetPresence,
        method: Method::POST,
        path: "/v1/presence:batchGet",
        body: BODY,
        open: false,
        handle: |call| Box::pin(presence::batch_get(call)),
        words: Words {
            summary: "Who of these users is connected, and with what",
            description: "In the order asked for. `online` and `devices` are absent for who is offline.",
            request: "PresenceQuery",
            optional: false,
            response: "Presence",
            parameters: &[],
            errors: &[400, 401, 413, 415, 503, 504],
        },
    },
    Operation {
        route: Route::DisconnectUser,
        method: Method::POST,
        path: "/v1/users/{userId}:disconnect",
        body: BODY,
        open: false,
        handle: |call| Box::pin(users::disconnect(call)),
        words: Words {
            summary: "Close every connection of a user with 4503",
            description: "Clients do not come back by themselves after 4503, but they may: what they hold stays good. \
                          `:revoke` makes it void.",
            request: "Disconnect",
            optional: true,
            response: "Disconnected",
            parameters: &[],
            errors: &[400, 401, 413, 415, 503, 504],
        },
    },
    Operation {
        route: Route::RevokeUser,
        method: Method::POST,
        path: "/v1/users/{userId}:revoke",
        body: BODY,
        open: false,
        handle: |call| Box::pin(users::revoke(call)),
        words: Words {
            summary: "Void what was issued to a user or a device, and close who is connected with it with 4500",
            description: "Tokens with an `iat` before `notBeforeMs`, those without one, and tickets made from them are void from \
                          the moment of the answer, for ever. Without `notBeforeMs` it is the next whole second, and the \
                          answer comes when that has begun: who signs in after it is welcome. A repeat with the same \
                          `notBeforeMs` changes nothing.",
            request: "Revoke",
            optional: true,
            response: "Revoked",
            parameters: &[],
            errors: &[400, 401, 413, 415, 503, 504],
        },
    },
    Operation {
        route: Route::RestoreUser,
        method: Method::POST,
        path: "/v1/users/{userId}:restore",
        body: BODY,
        open: false,
        handle: |call| Box::pin(users::restore(call)),
        words: Words {
            summary: "Take back what was revoked of a user, or of one device",
            description: "With `deviceId` that of the device; without it the user's own, and those of his devices stay; with \
                          `devices` everything of the user and of all his devices.",
            request: "Restore",
            optional: true,
            response: "Restored",
            parameters: &[],
            errors: &[400, 401, 413, 415, 503, 504],
        },
    },
    Operation {
        route: Route::GetRevocations,
        method: Method::GET,
        path: "/v1/users/{userId}/revocations",
        body: 0,
        open: false,
        handle: |call| Box::pin(users::revocations(call)),
        words: Words {
            summary: "What is revoked of a user",
            description: "The user's own first, with an empty `deviceId`, then those of devices in order of their ids.",
            request: "",
            optional: false,
            response: "Revocations",
            parameters: &[],
            errors: &[400, 401, 503, 504],
        },
    },
    Operation {
        route: Route::GetDocument,
        method: Method::GET,
        path: "/v1/openapi.json",
        body: 0,
        open: true,
        handle: |call| Box::pin(async move { Ok(call.api.document.clone()) }),
        words: Words {
            summary: "This document",
            description: "Needs no key.",
            request: "",
            optional: false,
            response: "Document",
            parameters: &[],
            errors: &[],
        },
    },
];

/// What stands at a path.
pub(super) enum Found {
    /// An operation, and what stands for the names in its path.
    Operation(&'static Operation, Vec<String>),
    /// Operations of these methods only.
    OtherMethods(String),
    /// None.
    Nothing,
}

/// Looks for the operation of that method and path.
pub(super) fn find(method: &Method, path: &str) -> Found {
    let mut others = Vec::new();
    for operation in &OPERATIONS {
        let Some(parameters) = parameters(operation.path, path) else { continue };
        if operation.method == *method {
            return Found::Operation(operation, parameters);
        }
        others.push(operation.method.as_str());
    }
    if others.is_empty() { Found::Nothing } else { Found::OtherMethods(others.join(", ")) }
}

impl Found {
    pub(super) fn route(&self) -> Route {
        match self {
            Self::Operation(operation, _) => operation.route,
            Self::OtherMethods(_) | Self::Nothing => Route::Other,
        }
    }

    pub(super) fn open(&self) -> bool {
        matches!(self, Self::Operation(operation, _) if operation.open)
    }

    pub(super) fn operation(self) -> Result<(&'static Operation, Vec<String>), Problem> {
        match self {
            Self::Operation(operation, parameters) => Ok((operation, parameters)),
            Self::OtherMethods(allow) => Err(Problem::method(allow)),
            Self::Nothing => Err(Problem::nothing()),
        }
    }
}

/// What stands in `path` for the names of `template`, if it has that form. An id may contain colons: an action is what
/// stands at the end.
fn parameters(template: &str, path: &str) -> Option<Vec<String>> {
    let (mut templates, mut segments) = (template.split('/'), path.split('/'));
    let mut found = Vec::new();
    loop {
        let (template, segment) = match (templates.next(), segments.next()) {
            (None, None) => return Some(found),
            (Some(template), Some(segment)) => (template, decode(segment)?),
            _ => return None,
        };
        match template.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some((_, action)) => found.push(segment.strip_suffix(action)?.to_owned()),
            None if template == segment => {}
            None => return None,
        }
    }
}

/// Undoes percent-encoding; none: it is broken, or what comes out is no UTF-8.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        rest = others;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, others) = rest.split_at_checked(2)?;
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        bytes.push(u8::try_from(digit(0)? * 16 + digit(1)?).ok()?);
        rest = others;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(text: &str) -> String {
        text.bytes().map(|byte| format!("%{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn every_id_comes_out_of_its_path_as_it_went_in(id in "[A-Za-z0-9_.:@-]{1,64}", coded in any::<bool>()) {
            let shown = if coded { encode(&id) } else { id.clone() };
            for operation in OPERATIONS.iter().filter(|operation| operation.path.contains('{')) {
                let (before, rest) = operation.path.split_once('{').expect("has a name");
                let (_, after) = rest.split_once('}').expect("is closed");
                let path = format!("{before}{shown}{after}");
                match find(&operation.method, &path) {
                    Found::Operation(found, parameters) => {
                        prop_assert_eq!(found.route, operation.route, "{}", path);
                        prop_assert_eq!(parameters, vec![id.clone()]);
                    }
                    _ => prop_assert!(false, "{} {}", operation.method, path),
                }
            }
        }

        #[test]
        fn nothing_a_caller_writes_panics(path in ".{0,80}", coded in "(%[0-9a-fA-F]{0,2}|/|:add){0,20}") {
            find(&Method::GET, &path);
            find(&Method::POST, &format!("/v1/groups/{coded}"));
        }
    }

    #[test]
    fn paths_are_told_apart() {
        let found = |method: Method, path: &str| match find(&method, path) {
            Found::Operation(operation, _) => operation.route.name().to_owned(),
            Found::OtherMethods(allow) => allow,
            Found::Nothing => "nothing".to_owned(),
        };
        assert_eq!(found(Method::DELETE, "/v1/groups/g"), "PUT, GET");
        assert_eq!(found(Method::GET, "/v1/messages"), "POST");
        for path in [
            "/",
            "/v1",
            "/v1/groups",
            "/v1/groups/g/",
            "/v1/groups/g/members",
            "/v1/users/alice",
            "/v1/groups/%zz",
        ] {
            assert_eq!(found(Method::GET, path), "nothing", "{path}");
        }
        assert_eq!(found(Method::POST, "/v1/groups/g/members%3Aadd"), "add_members");
    }
}
