//! What an application decides about its client.

use std::{fmt, sync::Arc, time::Duration};

use berth_proto::{frame::Encoding, id, limits};
use thiserror::Error;

use crate::{
    bootstrap,
    cursor::{CursorStore, MemoryCursor},
    http,
    store::{MemorySchedule, ScheduleStore},
    token::TokenProvider,
    transport::Transport,
};

/// What an application decides about its client. Made by [`Options::new`]; change the fields you care about.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// Schedulers, `http://host:port` (TLS is not supported yet), asked in turn: the next one when one fails, or does not
    /// answer within 3 s (10 s where there is only one).
    pub schedulers: Vec<String>,
    /// Which of them to ask first, counted from 0. `None`: any, so that not all clients ask the same one first.
    pub first_scheduler: Option<usize>,
    /// Gateways to go to when no scheduler answers and the last schedule's ticket has expired or its list failed:
    /// `ws://host:port/v1/ws` or `tcp://host:port`. Each device goes through them in an order of its own, and then through those
    /// of the last list.
    pub bootstrap_gateways: Vec<String>,
    /// Where user tokens come from.
    pub token: Arc<dyn TokenProvider>,
    /// Who the user is, so that a stored schedule is used before there is a token. Empty: its owner is told by the token.
    pub user_id: String,
    /// This device: an id that stays the same across runs. A second connection of the same device ends the first.
    pub device_id: String,
    /// `ios`, `android`, `web`, `desktop` or `server`.
    pub platform: String,
    /// The application's semantic version, for gray releases.
    pub app_version: String,
    /// A hint where this device is; empty: the scheduler finds out.
    pub region: String,
    /// The transports to ask for.
    pub transports: Vec<Transport>,
    /// How frames are written on a WebSocket; on TCP they are always protobuf.
    pub encoding: Encoding,
    /// Where the cursor is kept.
    pub cursor: Arc<dyn CursorStore>,
    /// Where the last schedule is kept. A client begins with it, if it is its user's and its ticket has not expired.
    pub schedule: Arc<dyn ScheduleStore>,
    /// How much is held and in flight.
    pub limits: Limits,
    /// How long [`crate::Client::connect`] waits for the first welcome.
    pub connect_timeout: Duration,
    /// How long one attempt to reach a gateway may take, from the TCP connect to the welcome.
    pub attempt_timeout: Duration,
    /// How long a request other than a send may take, waiting for a connection included. Also how long one attempt of a
    /// send waits for its answer before it is repeated: longer than the gateway's own 10 s.
    pub request_timeout: Duration,
    /// How long [`crate::Client::send`] tries.
    pub send_timeout: Duration,
    /// While connected, a scheduler is asked again about so often (a random part of a sixth more or less), so that whoever
    /// loses a long session while no scheduler answers has a ticket that gateways still take. Well below the gateways'
    /// grace; 30 minutes go with its hour. `Duration::MAX`: never.
    pub renew_every: Duration,
    /// How long the token provider may take; past it the token counts as not to be had for now, and the client tries again.
    pub token_timeout: Duration,
}

/// How much a client holds and has in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Sends in flight. 1, the default, keeps the order across retryable errors; more is faster and keeps the order only
    /// while nothing fails.
    pub sends_in_flight: usize,
    /// Sends waiting inside the client; further calls wait.
    pub queued_sends: usize,
    /// Requests other than sends in flight. With the sends and one pull at most 16.
    pub requests_in_flight: usize,
    /// Rows the application has not taken yet; at that number pulling stops.
    pub buffered_rows: usize,
    /// Rows of one pull, at most 200.
    pub page: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sends_in_flight: 1,
            queued_sends: 256,
            requests_in_flight: 8,
            buffered_rows: 400,
            page: limits::PAGE_DEFAULT,
        }
    }
}

/// Options that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field} {problem}")]
pub struct OptionsError {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Options {
    /// One scheduler, WebSocket before TCP, protobuf, the cursor and the schedule in memory.
    #[must_use]
    pub fn new(
        scheduler: impl Into<String>,
        device_id: impl Into<String>,
        token: impl TokenProvider + 'static,
    ) -> Self {
        Self {
            schedulers: vec![scheduler.into()],
            first_scheduler: None,
            bootstrap_gateways: Vec::new(),
            token: Arc::new(token),
            user_id: String::new(),
            device_id: device_id.into(),
            platform: "server".to_owned(),
            app_version: String::new(),
            region: String::new(),
            transports: vec![Transport::WebSocket, Transport::Tcp],
            encoding: Encoding::Proto,
            cursor: Arc::new(MemoryCursor::new()),
            schedule: Arc::new(MemorySchedule::new()),
            limits: Limits::default(),
            connect_timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(15),
            send_timeout: Duration::from_secs(60),
            renew_every: Duration::from_secs(30 * 60),
            token_timeout: Duration::from_secs(15),
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that cannot be.
    pub fn check(&self) -> Result<(), OptionsError> {
        let bad =
            |field, problem: &dyn fmt::Display| Err(OptionsError { field, problem: problem.to_string() });
        if self.schedulers.is_empty() {
            return bad("schedulers", &"is empty; give at least one http://host:port");
        }
        for scheduler in &self.schedulers {
            http::check_base(scheduler)
                .or_else(|problem| bad("schedulers", &format!("has a bad one: {problem}")))?;
        }
        if let Some(first) = self.first_scheduler.filter(|first| *first >= self.schedulers.len()) {
            let count = self.schedulers.len();
            return bad("first_scheduler", &format!("is {first}; there are {count}, counted from 0"));
        }
        id::check(&self.device_id).or_else(|problem| bad("device_id", &problem))?;
        if !self.user_id.is_empty() {
            id::check(&self.user_id).or_else(|problem| bad("user_id", &problem))?;
        }
        if self.transports.is_empty() {
            return bad("transports", &"is empty; give at least one");
        }
        for gateway in &self.bootstrap_gateways {
            let endpoint = match bootstrap::endpoint(gateway) {
                Ok(endpoint) => endpoint,
                Err(problem) => return bad("bootstrap_gateways", &format!("has a bad one: {problem}")),
            };
            if !self.transports.iter().any(|transport| transport.as_str() == endpoint.transport) {
                return bad("bootstrap_gateways", &format!("has {gateway:?}, a transport not to be used"));
            }
        }
        for (field, value) in [
            ("connect_timeout", self.connect_timeout),
            ("attempt_timeout", self.attempt_timeout),
            ("request_timeout", self.request_timeout),
            ("send_timeout", self.send_timeout),
            ("renew_every", self.renew_every),
            ("token_timeout", self.token_timeout),
        ] {
            if value.is_zero() {
                return bad(field, &"is 0; give some seconds");
            }
        }
        self.limits.check()
    }
}

impl Limits {
    fn check(&self) -> Result<(), OptionsError> {
        let bad = |field, problem: String| Err(OptionsError { field, problem });
        if self.page == 0 || self.page > limits::PAGE_MAX {
            return bad("limits.page", format!("is {}; 1 to {} are allowed", self.page, limits::PAGE_MAX));
        }
        if self.buffered_rows < self.page as usize {
            let Self { buffered_rows, page, .. } = self;
            return bad("limits.buffered_rows", format!("is {buffered_rows}; a page of {page} must fit"));
        }
        for (field, value) in [
            ("limits.sends_in_flight", self.sends_in_flight),
            ("limits.queued_sends", self.queued_sends),
            ("limits.requests_in_flight", self.requests_in_flight),
        ] {
            if value == 0 {
                return bad(field, "is 0; at least 1 is needed".to_owned());
            }
        }
        // One more for the pull.
        let in_flight = self.sends_in_flight + self.requests_in_flight + 1;
        if in_flight > limits::IN_FLIGHT {
            let most = limits::IN_FLIGHT;
            return bad(
                "limits",
                format!("allow {in_flight} requests in flight, the pull included; {most} are allowed"),
            );
        }
        Ok(())
    }
}
