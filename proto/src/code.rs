//! The closed sets of error codes and close codes, mapped once to every transport.

use std::fmt;

use crate::client;

/// The error codes of PROTOCOL.md. Closed: a new failure is one of these with its own message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the documentation: gRPC's canonical codes")]
pub enum ErrorCode {
    InvalidArgument,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    AlreadyExists,
    ResourceExhausted,
    FailedPrecondition,
    Unavailable,
    DeadlineExceeded,
    Internal,
    Unimplemented,
}

impl ErrorCode {
    /// Every code, for metrics that exist from the start.
    pub const ALL: [Self; 11] = [
        Self::InvalidArgument,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::NotFound,
        Self::AlreadyExists,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::Internal,
        Self::Unimplemented,
    ];

    /// As it stands on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Unavailable => "UNAVAILABLE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Internal => "INTERNAL",
            Self::Unimplemented => "UNIMPLEMENTED",
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::DeadlineExceeded | Self::ResourceExhausted)
    }

    /// The HTTP status of the same failure.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists => 409,
            Self::ResourceExhausted => 429,
            Self::Internal => 500,
            Self::Unimplemented => 501,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    /// As the error of a response, with a message for the person who must act.
    #[must_use]
    pub fn error(self, message: impl Into<String>) -> client::Error {
        client::Error {
            code: self.as_str().to_owned(),
            message: message.into(),
            retryable: self.retryable(),
            retry_after_ms: 0,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a gateway closes a connection. 4000-4499: reconnect; 4500-4999: stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names are the documentation: PROTOCOL.md's table")]
pub enum CloseCode {
    Internal = 4000,
    Draining = 4001,
    Moved = 4002,
    HeartbeatTimeout = 4003,
    SlowConsumer = 4004,
    TicketExpired = 4005,
    RateLimited = 4007,
    HandshakeTimeout = 4008,
    Overloaded = 4009,
    Unauthenticated = 4500,
    BadFrame = 4501,
    UnsupportedVersion = 4502,
    Kicked = 4503,
    SessionReplaced = 4504,
    Forbidden = 4505,
    ConnectionLimit = 4506,
}

impl CloseCode {
    /// Every code, for metrics that exist from the start.
    pub const ALL: [Self; 16] = [
        Self::Internal,
        Self::Draining,
        Self::Moved,
        Self::HeartbeatTimeout,
        Self::SlowConsumer,
        Self::TicketExpired,
        Self::RateLimited,
        Self::HandshakeTimeout,
        Self::Overloaded,
        Self::Unauthenticated,
        Self::BadFrame,
        Self::UnsupportedVersion,
        Self::Kicked,
        Self::SessionReplaced,
        Self::Forbidden,
        Self::ConnectionLimit,
    ];

    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The code of a number, if it is one of ours.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|code| u32::from(code.number()) == number)
    }

    /// Its name in PROTOCOL.md, metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Draining => "draining",
            Self::Moved => "moved",
            Self::HeartbeatTimeout => "heartbeat_timeout",
            Self::SlowConsumer => "slow_consumer",
            Self::TicketExpired => "ticket_expired",
            Self::RateLimited => "rate_limited",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Overloaded => "overloaded",
            Self::Unauthenticated => "unauthenticated",
            Self::BadFrame => "bad_frame",
            Self::UnsupportedVersion => "unsupported_version",
            Self::Kicked => "kicked",
            Self::SessionReplaced => "session_replaced",
            Self::Forbidden => "forbidden",
            Self::ConnectionLimit => "connection_limit",
        }
    }

    /// Whether a client may come back by itself.
    #[must_use]
    pub fn reconnect(self) -> bool {
        self.number() < 4500
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_know_themselves() {
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_number(u32::from(code.number())), Some(code));
        }
        assert_eq!(CloseCode::from_number(4006), None);
        assert!(CloseCode::Overloaded.reconnect());
        assert!(!CloseCode::Unauthenticated.reconnect());
    }

    #[test]
    fn only_three_codes_are_retryable() {
        let retryable: Vec<_> = ErrorCode::ALL.into_iter().filter(|c| c.retryable()).collect();
        assert_eq!(
            retryable,
            [ErrorCode::ResourceExhausted, ErrorCode::Unavailable, ErrorCode::DeadlineExceeded]
        );
    }
}
