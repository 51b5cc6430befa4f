//! Of the back-end API: requests by operation and status, and how long they took.

use std::time::Duration;

use berth_proto::metric::Registry;
use metrics::{Counter, Histogram};

/// The operations, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// `POST /v1/messages`.
    SendMessage,
    /// `PUT /v1/groups/{groupId}`.
    PutGroup,
    /// `GET /v1/groups/{groupId}`.
    GetGroup,
    /// `POST /v1/groups/{groupId}/members:add`.
    AddMembers,
    /// `POST /v1/groups/{groupId}/members:remove`.
    RemoveMembers,
    /// `POST /v1/presence:batchGet`.
    BatchGetPresence,
    /// `POST /v1/users/{userId}:disconnect`.
    DisconnectUser,
    /// `POST /v1/users/{userId}:revoke`.
    RevokeUser,
    /// `POST /v1/users/{userId}:restore`.
    RestoreUser,
    /// `GET /v1/users/{userId}/revocations`.
    GetRevocations,
    /// `GET /v1/openapi.json`.
    GetDocument,
    /// No operation of this API.
    Other,
}

impl Route {
    const ALL: [Self; 12] = [
        Self::SendMessage,
        Self::PutGroup,
        Self::GetGroup,
        Self::AddMembers,
        Self::RemoveMembers,
        Self::BatchGetPresence,
        Self::DisconnectUser,
        Self::RevokeUser,
        Self::RestoreUser,
        Self::GetRevocations,
        Self::GetDocument,
        Self::Other,
    ];

    /// Its label value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SendMessage => "send_message",
            Self::PutGroup => "put_group",
            Self::GetGroup => "get_group",
            Self::AddMembers => "add_members",
            Self::RemoveMembers => "remove_members",
            Self::BatchGetPresence => "batch_get_presence",
            Self::DisconnectUser => "disconnect_user",
            Self::RevokeUser => "revoke_user",
            Self::RestoreUser => "restore_user",
            Self::GetRevocations => "get_revocations",
            Self::GetDocument => "get_document",
            Self::Other => "other",
        }
    }
}

/// Every status that is given, with its label value.
const STATUSES: [(u16, &str); 14] = [
    (200, "200"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (409, "409"),
    (413, "413"),
    (415, "415"),
    (429, "429"),
    (500, "500"),
    (501, "501"),
    (503, "503"),
    (504, "504"),
];

/// Series of the back-end API.
#[derive(Clone)]
pub struct HttpMetrics {
    /// By route, then by status.
    requests: Vec<Vec<Counter>>,
    seconds: Vec<Histogram>,
}

impl HttpMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(registry: Registry<'_>) -> Self {
        let requests = |route: Route| {
            let help =
                "Requests of the back-end API by operation and HTTP status; other: no operation of it.";
            let labels = |status| [("route", route.name()), ("status", status)];
            let counter =
                |(_, status)| registry.counter("berth_logic_http_requests_total", help, &labels(status));
            STATUSES.into_iter().map(counter).collect()
        };
        let seconds = |route: Route| {
            let help = "From a request's head to its answer, the wait for its body included.";
            registry.seconds("berth_logic_http_request_seconds", help, &[("route", route.name())])
        };
        Self { requests: Route::ALL.map(requests).into(), seconds: Route::ALL.map(seconds).into() }
    }

    /// A request was answered.
    pub fn answered(&self, route: Route, status: u16, took: Duration) {
        if let Some(at) = STATUSES.iter().position(|(known, _)| *known == status) {
            self.requests[route as usize][at].increment(1);
        }
        self.seconds[route as usize].record(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::code::ErrorCode;

    use super::*;

    #[test]
    fn labels_stand_at_their_variants_numbers_and_no_status_is_missing() {
        assert!(Route::ALL.iter().enumerate().all(|(n, route)| *route as usize == n));
        for code in ErrorCode::ALL {
            assert!(STATUSES.iter().any(|(known, _)| *known == code.http_status()), "{code}");
        }
    }
}
