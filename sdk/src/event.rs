//! What a client tells its application.

use std::{fmt, time::Duration};

use berth_proto::{
    client::{self, event},
    code::CloseCode,
};
use thiserror::Error;

use crate::transport::Transport;

/// What happened, in the order in which this device learns of it. Each conversation is in its own order of seqs, but for the
/// user's own messages: their rows come at once, so one may precede a message of the other side with a lower seq.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A gateway welcomed this device. After a redirect no [`Event::Disconnected`] comes before it.
    Connected(Connected),
    /// The connection is lost, or an attempt failed; the client goes on trying.
    Disconnected(Disconnected),
    /// A message for this user, or one that the user sent from any device.
    Message {
        /// The inbox row.
        seq: u64,
        /// The message.
        message: client::Message,
    },
    /// Another device of this user read a conversation.
    Read {
        /// The inbox row.
        seq: u64,
        /// How far.
        read: client::ReadEvent,
    },
    /// A send that was accepted could not be delivered.
    Failure {
        /// The inbox row.
        seq: u64,
        /// Which send, and why.
        failure: client::Failure,
    },
    /// The user joined or left a conversation, or it changed.
    Conversation {
        /// The inbox row.
        seq: u64,
        /// What changed.
        change: client::ConversationEvent,
    },
    /// A row of a kind that a newer server knows. The cursor passes it.
    Unknown {
        /// The inbox row.
        seq: u64,
    },
    /// Rows are not to be had any more: read `conversations` and `history` again. Rows go on by themselves.
    Resync(Resync),
    /// The server left a row out, which is a fault of the server. The cursor stays before it, and the client asks for it
    /// again, later and later. Said once for a row.
    Gap(Gap),
    /// The client has ended. No event follows.
    Stopped(StopReason),
}

impl Event {
    /// The event of an inbox row.
    #[must_use]
    pub fn of_row(row: client::InboxItem) -> Self {
        let seq = row.seq;
        match row.event.and_then(|event| event.event) {
            Some(event::Event::Message(message)) => Self::Message { seq, message },
            Some(event::Event::Read(read)) => Self::Read { seq, read },
            Some(event::Event::Failure(failure)) => Self::Failure { seq, failure },
            Some(event::Event::Conversation(change)) => Self::Conversation { seq, change },
            None => Self::Unknown { seq },
        }
    }
}

/// A gateway's welcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Who the ticket says we are.
    pub user_id: String,
    /// The session's name in the server's logs.
    pub session_id: String,
    /// The gateway.
    pub gateway_id: String,
    /// How we reached it.
    pub transport: Transport,
    /// The newest row of the inbox.
    pub inbox_seq: u64,
    /// The inbox's epoch.
    pub inbox_epoch: u64,
    /// The gateway's clock, in milliseconds since the Unix epoch.
    pub server_time_ms: i64,
}

/// A lost connection or a failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnected {
    /// The gateway's close code, if it said one.
    pub code: Option<u16>,
    /// What happened, for a person.
    pub reason: String,
    /// When the client tries again.
    pub retry_in: Duration,
}

/// Why rows are not to be had any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resync {
    /// The inbox was rolled back; rows go on from 0.
    EpochChanged {
        /// The epoch the cursor belonged to.
        before: u64,
        /// The epoch now.
        now: u64,
    },
    /// The rows after `after_seq` and before `floor_seq` outlived the inbox; rows go on from `floor_seq`.
    Expired {
        /// Where the cursor stood.
        after_seq: u64,
        /// The oldest row still held.
        floor_seq: u64,
    },
    /// The stored cursor belongs to another user; rows go on from 0.
    OtherUser,
}

impl fmt::Display for Resync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EpochChanged { before, now } => {
                write!(f, "the inbox was rolled back (epoch {before} became {now})")
            }
            Self::Expired { after_seq, floor_seq } => {
                write!(f, "the inbox rows after {after_seq} and before {floor_seq} have expired")
            }
            Self::OtherUser => f.write_str("the stored cursor belongs to another user"),
        }
    }
}

/// A row that must be there and is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The row that must come next.
    pub expected: u64,
    /// The row that came instead, or, when none came, the newest row the server says there is.
    pub found: u64,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected inbox row {}, found {}", self.expected, self.found)
    }
}

/// Where a client stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not connected, trying.
    Connecting {
        /// What the last attempt failed on.
        last_failure: Option<String>,
    },
    /// Welcomed by a gateway.
    Connected,
    /// Ended for good.
    Stopped(StopReason),
}

/// Why a client has ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StopReason {
    /// [`crate::Client::close`] was called, or the client was dropped.
    #[error("closed by the application")]
    Closed,
    /// A gateway closed with a code of 4500 or above.
    #[error("the gateway closed with {code} ({}): {reason}", close_name(*code))]
    Gateway {
        /// The close code.
        code: u16,
        /// What the gateway said.
        reason: String,
    },
    /// A scheduler answered 400, 401 or 403, and no newer token was to be had.
    #[error("the scheduler refused with {status} {reason}: {detail}")]
    Scheduler {
        /// The HTTP status.
        status: u16,
        /// The problem's reason: UNAUTHENTICATED, FORBIDDEN, INVALID_ARGUMENT.
        reason: String,
        /// What the scheduler said.
        detail: String,
    },
    /// The token provider says that there will be no token.
    #[error("no user token: {0}")]
    Token(String),
}

impl StopReason {
    /// Whether a new sign-in is what it takes to go on: the user or this device was signed out or disconnected by the back end (4500,
    /// 4503), or his token is good for nothing (401). Start another client with the new token then.
    #[must_use]
    pub fn wants_sign_in(&self) -> bool {
        match self {
            Self::Gateway { code, .. } => {
                let code = CloseCode::from_number(u32::from(*code));
                matches!(code, Some(CloseCode::Unauthenticated | CloseCode::Kicked))
            }
            Self::Scheduler { status, .. } => *status == 401,
            Self::Token(_) => true,
            Self::Closed => false,
        }
    }
}

fn close_name(code: u16) -> &'static str {
    CloseCode::from_number(u32::from(code)).map_or("unknown", CloseCode::name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_signed_out_is_told_from_who_has_a_fault_or_was_replaced() {
        let closed = |code| StopReason::Gateway { code, reason: String::new() };
        let refused = |status| StopReason::Scheduler { status, reason: String::new(), detail: String::new() };
        for stop in [closed(4500), closed(4503), refused(401), StopReason::Token("signed out".to_owned())] {
            assert!(stop.wants_sign_in(), "{stop}");
        }
        for stop in [closed(4501), closed(4504), closed(4999), refused(400), refused(403), StopReason::Closed]
        {
            assert!(!stop.wants_sign_in(), "{stop}");
        }
    }
}
