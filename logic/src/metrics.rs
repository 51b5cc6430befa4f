//! Every series of this role: all there from the start, none with a user in a label.

mod http;

use std::{collections::HashMap, time::Duration};

use berth_proto::{code::ErrorCode, metric::Registry};
use metrics::{Counter, Gauge, Histogram};

pub use http::{HttpMetrics, Route};

/// Of the ingest queue.
#[derive(Clone)]
pub struct QueueMetrics {
    /// From the call to the answer.
    pub append: Histogram,
    /// Of the synced write alone.
    pub sync: Histogram,
    /// Synced batches; appended / batches is the mean batch.
    pub batches: Counter,
    /// Files of the log.
    pub segments: Gauge,
    /// What they hold.
    pub bytes: Gauge,
    /// Names of accepted messages that are not durable rows yet.
    pub recent_names: Gauge,
}

impl QueueMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(registry: Registry<'_>) -> Self {
        Self {
            append: registry.seconds(
                "berth_logic_queue_append_seconds",
                "From an append to its answer: waiting, writing and syncing.",
                &[],
            ),
            sync: registry.seconds(
                "berth_logic_queue_sync_seconds",
                "One synced write of the ingest queue.",
                &[],
            ),
            batches: registry.counter(
                "berth_logic_queue_batches_total",
                "Synced writes of the ingest queue; accepted messages over this is the mean group commit.",
                &[],
            ),
            segments: registry.gauge("berth_logic_queue_segments", "Segment files of the ingest queue.", &[]),
            bytes: registry.gauge(
                "berth_logic_queue_bytes",
                "Bytes of the ingest queue's segment files.",
                &[],
            ),
            recent_names: registry.gauge(
                "berth_logic_queue_recent_names",
                "Names of accepted messages that are in memory because their rows are not durable yet.",
                &[],
            ),
        }
    }
}

/// A link's other side did not take something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lost {
    /// A notify: the next heartbeat repairs it.
    Notify,
    /// Anything that somebody waits for.
    Answer,
}

/// What clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of PROTOCOL.md's methods")]
pub enum Asked {
    Send,
    Pull,
    Ack,
    History,
    Conversations,
    MarkRead,
    Presence,
}

impl Asked {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Send, "send"),
        (Self::Pull, "pull"),
        (Self::Ack, "ack"),
        (Self::History, "history"),
        (Self::Conversations, "conversations"),
        (Self::MarkRead, "mark_read"),
        (Self::Presence, "presence"),
    ];
}

/// Of this role.
#[derive(Clone)]
#[expect(missing_docs, reason = "the registered help texts document them")]
pub struct Metrics {
    pub queue: QueueMetrics,
    pub accepted: Counter,
    pub duplicates: Counter,
    pub delivered: Counter,
    pub group_delivered: Counter,
    pub groups_created: Counter,
    pub members_joined: Counter,
    pub members_left: Counter,
    pub failed: Counter,
    pub spread_slice: Histogram,
    pub outbox_age: Gauge,
    pub committed: Counter,
    pub poisoned: Counter,
    pub set_aside: Counter,
    pub commit_lag: Gauge,
    pub outbox: Gauge,
    pub store_sync: Histogram,
    pub store_failures: Counter,
    pub expired_rows: Counter,
    pub sessions_opened: Counter,
    pub sessions_replaced: Counter,
    pub sessions_refused: Counter,
    pub sessions_revoked: Counter,
    pub revocations: Counter,
    pub leases_expired: Counter,
    pub gateways: Gauge,
    pub gateway_sessions: Gauge,
    pub notifies: Counter,
    pub refreshes: Counter,
    pub lane_full: Counter,
    pub http: HttpMetrics,
    refused: HashMap<ErrorCode, Counter>,
    requests: HashMap<Asked, Counter>,
    seconds: HashMap<Asked, Histogram>,
    lost: HashMap<Lost, Counter>,
}

const MEMBERSHIPS: &str = "berth_logic_memberships_changed_total";
const MEMBERSHIPS_HELP: &str = "Users who joined a group or left one.";

impl Metrics {
    /// Registers them.
    #[must_use]
    pub fn new(registry: Registry<'_>) -> Self {
        let counter = |name, help| registry.counter(name, help, &[]);
        let gauge = |name, help| registry.gauge(name, help, &[]);
        Self {
            queue: QueueMetrics::new(registry),
            accepted: counter(
                "berth_logic_messages_accepted_total",
                "Messages made durable, repeats not counted.",
            ),
            duplicates: counter("berth_logic_messages_duplicate_total", "Sends answered as accepted before."),
            delivered: counter(
                "berth_logic_messages_delivered_total",
                "Inbox rows written to recipients; the sender's own row is not counted.",
            ),
            group_delivered: counter(
                "berth_logic_group_messages_delivered_total",
                "Those of berth_logic_messages_delivered_total that were written for messages to groups.",
            ),
            groups_created: counter("berth_logic_groups_created_total", "Groups created."),
            members_joined: registry.counter(MEMBERSHIPS, MEMBERSHIPS_HELP, &[("kind", "joined")]),
            members_left: registry.counter(MEMBERSHIPS, MEMBERSHIPS_HELP, &[("kind", "left")]),
            failed: counter(
                "berth_logic_messages_failed_total",
                "Accepted messages to groups whose senders had left by the time of the commit: each has a failure in his inbox.",
            ),
            spread_slice: registry.seconds(
                "berth_logic_spread_slice_seconds",
                "One slice of a group's messages to some of its members: as long as the store's writer is held.",
                &[],
            ),
            outbox_age: gauge(
                "berth_logic_outbox_oldest_age_seconds",
                "Age of the oldest accepted message that somebody has yet to get; 0: nothing waits. Read each second.",
            ),
            committed: counter("berth_logic_messages_committed_total", "Messages put into their timelines."),
            poisoned: counter(
                "berth_logic_records_poisoned_total",
                "Queue records set aside because unusable.",
            ),
            set_aside: counter(
                "berth_logic_spread_set_aside_total",
                "Messages that could not be given to a recipient because a row is damaged, and were set aside.",
            ),
            commit_lag: gauge("berth_logic_commit_lag_records", "Queue records not yet committed."),
            outbox: gauge(
                "berth_logic_outbox_messages",
                "Committed messages not yet spread to other members.",
            ),
            store_sync: registry.seconds("berth_logic_store_sync_seconds", "One sync of the store.", &[]),
            store_failures: counter(
                "berth_logic_store_failures_total",
                "Store or route operations that failed.",
            ),
            expired_rows: counter(
                "berth_logic_inbox_rows_expired_total",
                "Inbox rows past their lifetime, removed.",
            ),
            sessions_opened: counter("berth_logic_sessions_opened_total", "Sessions registered."),
            sessions_replaced: counter(
                "berth_logic_sessions_replaced_total",
                "Sessions replaced by a newer one.",
            ),
            sessions_revoked: counter(
                "berth_logic_sessions_revoked_total",
                "Sessions that were not opened because what their users identified themselves with was revoked.",
            ),
            revocations: counter(
                "berth_logic_revocations_total",
                "Revocations of a user or a device that the back end made.",
            ),
            sessions_refused: counter(
                "berth_logic_sessions_refused_total",
                "Sessions not opened because the user had as many devices connected as he may.",
            ),
            leases_expired: counter("berth_logic_leases_expired_total", "Gateway boots whose lease ran out."),
            gateways: gauge("berth_logic_gateways", "Gateways attached."),
            gateway_sessions: gauge(
                "berth_logic_gateway_sessions",
                "Sessions that attached gateways last said they hold.",
            ),
            notifies: counter("berth_logic_notifies_total", "Notifies handed to gateways."),
            refreshes: counter("berth_logic_inbox_refreshes_total", "Inboxes asked for by heartbeats."),
            lane_full: counter(
                "berth_logic_lane_full_total",
                "Messages of gateways refused because a lane was full.",
            ),
            http: HttpMetrics::new(registry),
            refused: refused(registry),
            requests: requests(registry),
            seconds: seconds(registry),
            lost: lost(registry),
        }
    }

    /// Counts a refused request.
    pub fn refused(&self, code: &str) {
        if let Some((_, counter)) = self.refused.iter().find(|(known, _)| known.as_str() == code) {
            counter.increment(1);
        }
    }

    /// Counts a request.
    pub fn asked(&self, asked: Asked) {
        self.requests[&asked].increment(1);
    }

    /// A request was answered.
    pub fn took(&self, asked: Asked, time: Duration) {
        self.seconds[&asked].record(time.as_secs_f64());
    }

    /// Counts messages that a gateway's link did not take.
    pub fn lost(&self, lost: Lost, count: u64) {
        self.lost[&lost].increment(count);
    }
}

fn refused(registry: Registry<'_>) -> HashMap<ErrorCode, Counter> {
    let name = "berth_logic_requests_refused_total";
    let help = "Requests answered with an error, by its code.";
    ErrorCode::ALL
        .into_iter()
        .map(|code| (code, registry.counter(name, help, &[("code", code.as_str())])))
        .collect()
}

fn requests(registry: Registry<'_>) -> HashMap<Asked, Counter> {
    let name = "berth_logic_requests_total";
    let help = "Requests of clients, by method.";
    Asked::ALL
        .into_iter()
        .map(|(asked, method)| (asked, registry.counter(name, help, &[("method", method)])))
        .collect()
}

fn seconds(registry: Registry<'_>) -> HashMap<Asked, Histogram> {
    let name = "berth_logic_request_seconds";
    let help =
        "From taking up a client's request to its answer, by method; a send waits for the queue's disk.";
    Asked::ALL
        .into_iter()
        .map(|(asked, method)| (asked, registry.seconds(name, help, &[("method", method)])))
        .collect()
}

fn lost(registry: Registry<'_>) -> HashMap<Lost, Counter> {
    let name = "berth_logic_gateway_messages_lost_total";
    let help = "Messages that a gateway's link did not take.";
    [(Lost::Notify, "notify"), (Lost::Answer, "answer")]
        .into_iter()
        .map(|(lost, kind)| (lost, registry.counter(name, help, &[("kind", kind)])))
        .collect()
}
