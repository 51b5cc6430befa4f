//! What a session is given and what it gives: its surroundings as values.

use std::sync::Arc;

use berth_proto::{carry, schedule::HeartbeatParameters, ticket::TicketVerifier, wire as link};
use link::to_logic;
use rand::rngs::SmallRng;

use crate::{
    clock::Now,
    config::Timeouts,
    door::Door,
    guard::{Guard, Spell},
    level::Levels,
    metrics::Metrics,
};

/// What every session of a worker sees, as of this wake-up.
pub(crate) struct Env {
    pub(crate) gateway_id: String,
    /// Names this start of the process.
    pub(crate) boot: u64,
    pub(crate) heartbeat: HeartbeatParameters,
    pub(crate) timeouts: Timeouts,
    pub(crate) verifier: Arc<TicketVerifier>,
    pub(crate) draining: bool,
    /// An operator empties this gateway: who comes is sent elsewhere.
    pub(crate) evacuating: bool,
    /// The pool that the operator sends them to; empty: as the policy says.
    pub(crate) to_pool: Arc<str>,
    /// Its region; may be empty.
    pub(crate) region: String,
    /// Whether any scheduler said that it decides where users belong: one that does not would send them to and fro.
    pub(crate) placed: bool,
    /// Tickets issued before, by the wall clock, may lead where their user no longer belongs.
    pub(crate) placed_ms: i64,
    /// Tickets issued before, by the wall clock, may keep their user from a home that is back.
    pub(crate) homes_ms: i64,
    /// Who is sent away by a drain or a stop comes back within so many milliseconds.
    pub(crate) spread_ms: u32,
    /// The worker ends soon: nobody lingers.
    pub(crate) stopping: bool,
    /// Whether any scheduler link is up.
    pub(crate) scheduled: bool,
    /// While none is, a genuine ticket is good for so many milliseconds past its time, and at any gateway; 0: never.
    pub(crate) grace_ms: i64,
    /// Told once of a row of sessions that were opened so.
    pub(crate) outage: Arc<Spell>,
    /// Which logic links are up.
    pub(crate) logics: Vec<bool>,
    /// Which credentials are void.
    pub(crate) revoked: Arc<carry::Revoked>,
    /// What one peer may cost.
    pub(crate) guard: Arc<Guard>,
    /// The handshake rate.
    pub(crate) door: Arc<Door>,
    pub(crate) metrics: Arc<Metrics>,
    /// What this worker adds to the gauges.
    pub(crate) levels: Levels,
}

/// What a peer is given to close its half once the goodbye is written, while the gateway stops, in milliseconds: a round
/// trip. The wheel may add up to a second.
const STOP_LINGER_MS: i64 = 300;

impl Env {
    /// For the peer's end of stream, in milliseconds. `written`: nothing is unsent, so only the peer's own end is missing.
    pub(super) fn linger_ms(&self, written: bool) -> i64 {
        let linger = i64::try_from(self.timeouts.linger.as_millis()).unwrap_or(i64::MAX);
        if self.stopping && written { linger.min(STOP_LINGER_MS) } else { linger }
    }

    pub(super) fn request_timeout_ms(&self) -> i64 {
        i64::try_from(self.timeouts.request.as_millis()).unwrap_or(i64::MAX)
    }
}

/// What sessions want sent to the other roles, collected over one wake-up.
#[derive(Default)]
pub(crate) struct Ups {
    /// To the logic of that index.
    pub(crate) logic: Vec<(u8, to_logic::Message)>,
    /// The heartbeat batch, to the logic of that index.
    pub(crate) refresh: Vec<(u8, link::InboxQuery)>,
    pub(crate) redirects: Vec<link::RedirectAsk>,
    /// The schedulers that did not answer those in time, by their index.
    pub(crate) silent: Vec<usize>,
    /// Schedule ids of tickets that passed.
    pub(crate) used_tickets: Vec<u64>,
}

/// What a session is given with each event.
pub(crate) struct Cx<'a> {
    pub(crate) now: Now,
    /// The connection's packed handle.
    pub(crate) handle: u64,
    pub(crate) env: &'a Env,
    pub(crate) rng: &'a mut SmallRng,
    /// Bytes for the peer are appended here.
    pub(crate) out: &'a mut Vec<u8>,
    pub(crate) ups: &'a mut Ups,
}
