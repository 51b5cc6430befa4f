//! The gateway's series: typed handles, all there from the start.

use berth_proto::{
    carry::KIND_NAMES,
    client::{request::Method, server_frame::Frame},
    code::CloseCode,
    metric::Registry,
};
use metrics::{Counter, Gauge, Histogram};

use crate::{health::Health, load::Counted, mover::Phase};

/// Counters indexed by an enum that knows all its labels.
pub(crate) struct Family<L> {
    counters: Vec<Counter>,
    label: std::marker::PhantomData<L>,
}

/// A closed set of label values.
pub(crate) trait Label: Copy + Sized + 'static {
    /// Every value with its text, in the order of [`Label::index`].
    const ALL: &'static [(Self, &'static str)];
    fn index(self) -> usize;
}

impl<L: Label> Family<L> {
    fn new(registry: Registry<'_>, name: &'static str, help: &'static str, label: &'static str) -> Self {
        let counters =
            L::ALL.iter().map(|(_, value)| registry.counter(name, help, &[(label, value)])).collect();
        Self { counters, label: std::marker::PhantomData }
    }

    pub(crate) fn add(&self, label: L, count: u64) {
        self.counters[label.index()].increment(count);
    }

    pub(crate) fn one(&self, label: L) {
        self.add(label, 1);
    }
}

/// Histograms of seconds, indexed likewise.
pub(crate) struct Timings<L> {
    histograms: Vec<Histogram>,
    label: std::marker::PhantomData<L>,
}

impl<L: Label> Timings<L> {
    fn new(registry: Registry<'_>, name: &'static str, help: &'static str, label: &'static str) -> Self {
        let histograms =
            L::ALL.iter().map(|(_, value)| registry.seconds(name, help, &[(label, value)])).collect();
        Self { histograms, label: std::marker::PhantomData }
    }

    pub(crate) fn record(&self, label: L, seconds: f64) {
        self.histograms[label.index()].record(seconds);
    }
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($variant:ident => $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($variant),+ }

        impl Label for $name {
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $text)),+];
            fn index(self) -> usize { self as usize }
        }
    };
}

labels!(
    /// How a connection ended: the close code we gave, or who went without one.
    Closed {
        Internal => "4000", Draining => "4001", Moved => "4002", HeartbeatTimeout => "4003",
        SlowConsumer => "4004", TicketExpired => "4005", RateLimited => "4007", HandshakeTimeout => "4008",
        Overloaded => "4009", Unauthenticated => "4500", BadFrame => "4501", UnsupportedVersion => "4502",
        Kicked => "4503", SessionReplaced => "4504", Forbidden => "4505", ConnectionLimit => "4506",
        Client => "client", Lost => "lost", Http => "http",
    }
);

labels!(
    /// How far a connection came before it had a session. Refused: it ended before its welcome, whoever ended it;
    /// redirected: it was told with 4002 where to go.
    Handshake {
        Accepted => "accepted", Upgraded => "upgraded", Welcomed => "welcomed", Refused => "refused",
        Redirected => "redirected",
    }
);

labels!(
    /// Why a ticket was good only while no scheduler was linked.
    Grace { Expired => "expired", Elsewhere => "elsewhere" }
);

labels!(
    /// What became of a connection that was to be moved: it was told where a place is kept for it, it stays, or it was told
    /// to go without a place.
    Moved { Placed => "placed", Stayed => "stayed", Unplaced => "unplaced" }
);

labels!(
    /// Frames from clients.
    FrameIn { Hello => "hello", Heartbeat => "heartbeat", Request => "request", Ping => "ping", Bad => "bad" }
);

labels!(
    /// Frames to clients.
    FrameOut {
        Welcome => "welcome", HeartbeatAck => "heartbeat_ack", Response => "response", Notify => "notify",
        Disconnect => "disconnect",
    }
);

labels!(
    /// What became of logic's notifies on the way to a connection.
    Notified { Merged => "merged", Dropped => "dropped", Absent => "absent" }
);

labels!(
    /// Why the gateway itself answered a request with an error.
    RequestRefused {
        Invalid => "invalid", Unimplemented => "unimplemented", TooMany => "too_many", Unavailable => "unavailable",
        Deadline => "deadline", Oversize => "oversize", RateLimited => "rate_limited",
    }
);

labels!(
    /// A limit that somebody met. The first six cost a connection before it had a session, frames costs it afterwards,
    /// user_requests costs the answer.
    Limited {
        Capacity => "capacity", AddressConnections => "address_connections", AddressRate => "address_rate",
        Handshakes => "handshakes", PendingHandshakes => "pending_handshakes", Origin => "origin", Frames => "frames",
        UserRequests => "user_requests",
    }
);

labels!(
    /// What clients ask logic for.
    Asked {
        Send => "send", Pull => "pull", Ack => "ack", History => "history", Conversations => "conversations",
        MarkRead => "mark_read", Presence => "presence",
    }
);

labels!(
    /// What a link did not take.
    LinkRefused { Open => "open", Close => "close", Request => "request", Refresh => "refresh", Renew => "renew",
        Report => "report", Redirect => "redirect", Carried => "carried" }
);

impl From<CloseCode> for Closed {
    fn from(code: CloseCode) -> Self {
        match code {
            CloseCode::Internal => Self::Internal,
            CloseCode::Draining => Self::Draining,
            CloseCode::Moved => Self::Moved,
            CloseCode::HeartbeatTimeout => Self::HeartbeatTimeout,
            CloseCode::SlowConsumer => Self::SlowConsumer,
            CloseCode::TicketExpired => Self::TicketExpired,
            CloseCode::RateLimited => Self::RateLimited,
            CloseCode::HandshakeTimeout => Self::HandshakeTimeout,
            CloseCode::Overloaded => Self::Overloaded,
            CloseCode::Unauthenticated => Self::Unauthenticated,
            CloseCode::BadFrame => Self::BadFrame,
            CloseCode::UnsupportedVersion => Self::UnsupportedVersion,
            CloseCode::Kicked => Self::Kicked,
            CloseCode::SessionReplaced => Self::SessionReplaced,
            CloseCode::Forbidden => Self::Forbidden,
            CloseCode::ConnectionLimit => Self::ConnectionLimit,
        }
    }
}

impl From<&Method> for Asked {
    fn from(method: &Method) -> Self {
        match method {
            Method::Send(_) => Self::Send,
            Method::Pull(_) => Self::Pull,
            Method::Ack(_) => Self::Ack,
            Method::History(_) => Self::History,
            Method::Conversations(_) => Self::Conversations,
            Method::MarkRead(_) => Self::MarkRead,
            Method::Presence(_) => Self::Presence,
        }
    }
}

impl From<&Frame> for FrameOut {
    fn from(frame: &Frame) -> Self {
        match frame {
            Frame::Welcome(_) => Self::Welcome,
            Frame::HeartbeatAck(_) => Self::HeartbeatAck,
            Frame::Response(_) => Self::Response,
            Frame::Notify(_) => Self::Notify,
            Frame::Disconnect(_) => Self::Disconnect,
        }
    }
}

/// Every series of a gateway.
pub(crate) struct Metrics {
    pub(crate) connections: Gauge,
    pub(crate) sessions: Gauge,
    pub(crate) closed: Family<Closed>,
    pub(crate) heartbeat_timeouts: Counter,
    pub(crate) handshakes: Family<Handshake>,
    pub(crate) handshakes_failed: Family<Closed>,
    pub(crate) handshake_seconds: Histogram,
    pub(crate) handshake_queue_seconds: Gauge,
    pub(crate) spare_handshakes: Gauge,
    pub(crate) grace_sessions: Family<Grace>,
    pub(crate) accept_errors: Counter,
    pub(crate) limited: Family<Limited>,
    pub(crate) sessions_revoked: Counter,
    pub(crate) sessions_key_void: Counter,
    pub(crate) void_keys_in_use: Gauge,
    carried_evicted: [Counter; KIND_NAMES.len()],
    pub(crate) pending: Gauge,
    pub(crate) worker_stalls: Counter,
    pub(crate) worker_turn_seconds: Histogram,
    pub(crate) loop_lag_seconds: Gauge,
    pub(crate) traffic: Traffic,
    pub(crate) requests: Requests,
    pub(crate) links: Links,
    pub(crate) moves: Family<Moved>,
    /// `berth_gateway_drain_phase{phase}`: 1 for the phase that an operator's drain is in.
    pub(crate) drain_phase: [Gauge; Phase::ALL.len()],
    /// No series: what reports tell of the same events.
    pub(crate) health: Health,
}

/// What passes between clients and the gateway.
pub(crate) struct Traffic {
    pub(crate) frames_in: Family<FrameIn>,
    pub(crate) frames_out: Family<FrameOut>,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counted,
    pub(crate) writes_blocked: Counter,
    pub(crate) notifies: Family<Notified>,
}

/// What becomes of requests.
pub(crate) struct Requests {
    pub(crate) in_flight: Gauge,
    pub(crate) refused: Family<RequestRefused>,
    pub(crate) seconds: Timings<Asked>,
    pub(crate) late_responses: Counter,
}

/// What passes between the gateway and the other roles.
pub(crate) struct Links {
    pub(crate) logics: Gauge,
    pub(crate) schedulers: Gauge,
    pub(crate) refused: Family<LinkRefused>,
    pub(crate) reannounced: Counter,
}

impl Metrics {
    /// So many carried records were let go of for lack of room since the start, as in [`KIND_NAMES`].
    pub(crate) fn carried_evicted(&self, evicted: [u64; KIND_NAMES.len()]) {
        for (counter, evicted) in self.carried_evicted.iter().zip(evicted) {
            counter.absolute(evicted);
        }
    }

    pub(crate) fn new(r: Registry<'_>) -> Self {
        let closed =
            "Connections ended, by close code; client: it left; lost: reset; http: it opened no WebSocket.";
        let stalls = "Times a worker did not come around for 5 s.";
        let turns = "What a worker does at one wake-up: so long everybody else of that worker waits.";
        let lag = "How late the latest worker wakes, over the last seconds.";
        let errors = "Failed accepts: descriptors or kernel memory ran out.";
        let limited = "Times a peer met a limit, by the limit.";
        let revoked = "Sessions that a revocation ended, with 4500.";
        let steps = "Connections that came so far on their way to a session.";
        let failed =
            "Connections that ended before they were welcomed, by close code as in connections_closed.";
        let timeouts = "Connections closed for silence.";
        let grace =
            "Sessions opened while no scheduler was linked, by a ticket past its time or of other gateways.";
        let moves = "Connections that were to be moved, by what became of them.";
        Self {
            connections: r.gauge("berth_gateway_connections", "Sockets held, whatever their state.", &[]),
            sessions: r.gauge("berth_gateway_sessions", "Connections that were welcomed.", &[]),
            closed: Family::new(r, "berth_gateway_connections_closed_total", closed, "code"),
            heartbeat_timeouts: r.counter("berth_gateway_heartbeat_timeouts_total", timeouts, &[]),
            handshakes: Family::new(r, "berth_gateway_handshakes_total", steps, "result"),
            handshakes_failed: Family::new(r, "berth_gateway_handshakes_failed_total", failed, "code"),
            handshake_seconds: r.seconds("berth_gateway_handshake_seconds", "From accept to welcome.", &[]),
            handshake_queue_seconds: r.gauge(
                "berth_gateway_handshake_queue_seconds",
                "How long those who came above the handshake rate were told to wait last.",
                &[],
            ),
            spare_handshakes: r.gauge(
                "berth_gateway_spare_handshakes_per_second",
                "What of the handshake rate is leased to schedulers.",
                &[],
            ),
            grace_sessions: Family::new(r, "berth_gateway_grace_sessions_total", grace, "ticket"),
            accept_errors: r.counter("berth_gateway_accept_errors_total", errors, &[]),
            limited: Family::new(r, "berth_gateway_limited_total", limited, "limit"),
            sessions_revoked: r.counter("berth_gateway_sessions_revoked_total", revoked, &[]),
            carried_evicted: KIND_NAMES.map(|kind| {
                let help = "Carried records that were let go of for lack of room.";
                r.counter("berth_gateway_carried_evicted_total", help, &[("kind", kind)])
            }),
            sessions_key_void: r.counter(
                "berth_gateway_sessions_key_void_total",
                "Sessions ended because the key of their ticket is void.",
                &[],
            ),
            void_keys_in_use: r.gauge(
                "berth_gateway_void_keys_in_use",
                "Ticket keys that are void and that a linked scheduler signs with.",
                &[],
            ),
            pending: r.gauge(
                "berth_gateway_pending_handshakes",
                "Connections without a hello that was accepted.",
                &[],
            ),
            worker_stalls: r.counter("berth_gateway_worker_stalls_total", stalls, &[]),
            worker_turn_seconds: r.seconds("berth_gateway_worker_turn_seconds", turns, &[]),
            loop_lag_seconds: r.gauge("berth_gateway_loop_lag_seconds", lag, &[]),
            traffic: Traffic::new(r),
            requests: Requests::new(r),
            links: Links::new(r),
            moves: Family::new(r, "berth_gateway_moves_total", moves, "outcome"),
            drain_phase: Phase::ALL.map(|phase| {
                let help = "1 for the phase that an operator's drain of this gateway is in.";
                r.gauge("berth_gateway_drain_phase", help, &[("phase", phase.name())])
            }),
            health: Health::default(),
        }
    }
}

impl Traffic {
    fn new(r: Registry<'_>) -> Self {
        let blocked = "Writes that a full socket cut short.";
        let notifies = "Notifies from logic that were not written as they came: merged into another or old, dropped at \
                        the bound, or for a connection that is gone.";
        Self {
            frames_in: Family::new(r, "berth_gateway_frames_received_total", "Frames from clients.", "kind"),
            frames_out: Family::new(r, "berth_gateway_frames_sent_total", "Frames to clients.", "kind"),
            bytes_in: r.counter("berth_gateway_received_bytes_total", "Bytes read from clients.", &[]),
            bytes_out: Counted::new(r.counter(
                "berth_gateway_sent_bytes_total",
                "Bytes written to clients.",
                &[],
            )),
            writes_blocked: r.counter("berth_gateway_writes_blocked_total", blocked, &[]),
            notifies: Family::new(r, "berth_gateway_notifies_total", notifies, "outcome"),
        }
    }
}

impl Requests {
    fn new(r: Registry<'_>) -> Self {
        let refused = "Requests the gateway answered with an error itself.";
        let answer = "From a request to logic's answer, by method.";
        let late = "Answers of logic that nobody waited for any more.";
        Self {
            in_flight: r.gauge("berth_gateway_requests_in_flight", "Requests waiting for logic.", &[]),
            refused: Family::new(r, "berth_gateway_requests_refused_total", refused, "reason"),
            seconds: Timings::new(r, "berth_gateway_request_seconds", answer, "method"),
            late_responses: r.counter("berth_gateway_late_responses_total", late, &[]),
        }
    }
}

impl Links {
    fn new(r: Registry<'_>) -> Self {
        let link = |peer| r.gauge("berth_gateway_links", "Links that are up.", &[("peer", peer)]);
        let refused = "Messages that a link to logic or a scheduler did not take.";
        let again = "Sessions announced again to a logic that had forgotten them.";
        Self {
            logics: link("logic"),
            schedulers: link("scheduler"),
            refused: Family::new(r, "berth_gateway_link_refused_total", refused, "message"),
            reannounced: r.counter("berth_gateway_sessions_reannounced_total", again, &[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_are_counted_under_the_number_of_their_code() {
        for code in CloseCode::ALL {
            let (label, text) = Closed::ALL[Closed::from(code).index()];
            assert_eq!((label, text), (Closed::from(code), code.number().to_string().as_str()));
        }
    }
}
