//! The last frame of a connection: why it ends and what the client is to do.

use std::borrow::Cow;

use berth_proto::{
    client::{Disconnect, Endpoint, server_frame::Frame},
    code::CloseCode,
};
use rand::{Rng, rngs::SmallRng};

use super::{Cx, wire::Wire};
use crate::{metrics::Closed, ws};

/// An overloaded gateway's clients come back over this span, in milliseconds: long enough for a scheduler to see the load,
/// spread so that they do not come together.
const OVERLOADED_RETRY_MS: std::ops::Range<u32> = 500..3_000;

/// How a connection ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    pub(super) how: Closed,
    /// Its client is to come again when it is its turn.
    pub(super) in_line: bool,
}

impl From<Closed> for Ending {
    fn from(how: Closed) -> Self {
        Self { how, in_line: false }
    }
}

/// What is said at the end.
#[derive(Debug)]
pub(crate) struct Goodbye {
    code: CloseCode,
    detail: Cow<'static, str>,
    retry_after_ms: u32,
    /// The client waits for its turn: nothing failed.
    in_line: bool,
    redirect: Vec<Endpoint>,
    ticket: String,
    ticket_expires_at_ms: i64,
}

impl Goodbye {
    pub(crate) fn new(code: CloseCode) -> Self {
        Self {
            code,
            detail: Cow::Borrowed(""),
            retry_after_ms: 0,
            in_line: false,
            redirect: Vec::new(),
            ticket: String::new(),
            ticket_expires_at_ms: 0,
        }
    }

    /// 4009 with a random wait.
    pub(crate) fn overloaded(rng: &mut SmallRng) -> Self {
        Self::new(CloseCode::Overloaded).retry_after(rng.random_range(OVERLOADED_RETRY_MS))
    }

    /// 4009 with the client's turn: it comes above the rate, and nothing is wrong with this gateway.
    pub(crate) fn in_line(wait_ms: u32) -> Self {
        Self { in_line: true, ..Self::new(CloseCode::Overloaded).retry_after(wait_ms) }
    }

    /// 4005 for somebody whose ticket or token was good once: he asks a scheduler, and when many do, in his turn.
    pub(crate) fn expired(cx: &mut Cx<'_>, detail: impl Into<Cow<'static, str>>) -> Self {
        let wait_ms = cx.env.door.expired(cx.now.steady_ms, cx.rng);
        Self::new(CloseCode::TicketExpired).because(detail).retry_after(wait_ms)
    }

    /// For the person who reads it; never a ticket.
    pub(crate) fn because(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = detail.into();
        self
    }

    pub(crate) fn retry_after(mut self, ms: u32) -> Self {
        self.retry_after_ms = ms;
        self
    }

    /// Where to go, with the ticket for it.
    pub(crate) fn redirect(mut self, to: Vec<Endpoint>, ticket: String, expires_at_ms: i64) -> Self {
        (self.redirect, self.ticket, self.ticket_expires_at_ms) = (to, ticket, expires_at_ms);
        self
    }

    pub(crate) fn code(&self) -> CloseCode {
        self.code
    }

    /// How its connection is counted.
    pub(super) fn ending(&self) -> Ending {
        Ending { how: Closed::from(self.code), in_line: self.in_line }
    }

    /// Appends the `disconnect` frame and, on a WebSocket, a close frame with the same code.
    pub(super) fn write(self, cx: &mut Cx<'_>, wire: Wire) {
        if wire == Wire::Unknown {
            return;
        }
        let reason = if self.detail.is_empty() {
            self.code.name().to_owned()
        } else {
            format!("{}: {}", self.code.name(), self.detail)
        };
        let code = self.code.number();
        let disconnect = Disconnect {
            code: code.into(),
            reason: reason.clone(),
            retry_after_ms: self.retry_after_ms,
            redirect: self.redirect,
            ticket: self.ticket,
            ticket_expires_at_ms: self.ticket_expires_at_ms,
        };
        super::write(cx, wire, Frame::Disconnect(disconnect));
        if let Wire::WebSocket(_) = wire {
            ws::write_close(code, &reason, cx.out);
        }
    }
}
