//! What the scheduler counts. Every series exists from the start, but those of pools: they come with the pool.

mod admission;
mod proximity;
mod rules;

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use berth_proto::{carry::KIND_NAMES, metric::Registry, schedule::Reason, wire::RedirectAnswer};
use metrics::{Counter, Gauge, Histogram};

pub use self::{
    admission::Admissions,
    proximity::{GeoipLoad, Proximity, Vote},
    rules::Rules,
};
use crate::{
    fleet::{Dimension, DimensionCounts, PendingCounts, State},
    policy::STABLE,
};

/// Pools with series of their own; those after them are counted under `other`.
const MAX_POOLS: usize = 64;

/// How a request was answered, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// 200.
    Ok,
    /// 400.
    InvalidArgument,
    /// 401.
    Unauthenticated,
    /// 403.
    Forbidden,
    /// 429.
    RateLimited,
    /// 503.
    NoGateway,
    /// 503, with a place in the queue.
    Overloaded,
    /// 404, on any path.
    NotFound,
    /// 405, on any path.
    Method,
    /// 409, of the admin API.
    Conflict,
}

impl Outcome {
    const ALL: [(Self, &'static str); 10] = [
        (Self::Ok, "ok"),
        (Self::InvalidArgument, "invalid_argument"),
        (Self::Unauthenticated, "unauthenticated"),
        (Self::Forbidden, "forbidden"),
        (Self::RateLimited, "rate_limited"),
        (Self::NoGateway, "no_gateway"),
        (Self::Overloaded, "overloaded"),
        (Self::NotFound, "not_found"),
        (Self::Method, "method_not_allowed"),
        (Self::Conflict, "conflict"),
    ];
}

/// What became of a policy text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyLoad {
    /// In force now.
    Taken,
    /// Not a policy.
    Broken,
    /// Older than the one in force.
    Older,
    /// Another text under the version in force.
    OtherText,
    /// So far above the one in force that it must be a slip.
    Leap,
    /// The file cannot be read.
    Unreadable,
}

impl PolicyLoad {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Taken, "taken"),
        (Self::Broken, "broken"),
        (Self::Older, "older"),
        (Self::OtherText, "other_text"),
        (Self::Leap, "leap"),
        (Self::Unreadable, "unreadable"),
    ];
}

/// What became of a gateway's question where a client belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Redirect {
    /// With endpoints and a ticket.
    Answered,
    /// With nothing: no gateway, or the user's token has expired.
    Nowhere,
    /// Not at all: too many were waiting, or the gateway's link was full.
    Lost,
    /// It belongs where it is.
    Stays,
    /// Nobody should be moved now.
    Held,
}

impl Redirect {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Answered, "answered"),
        (Self::Nowhere, "nowhere"),
        (Self::Lost, "lost"),
        (Self::Stays, "stays"),
        (Self::Held, "held"),
    ];

    /// Of an answer.
    #[must_use]
    pub fn of(answer: &RedirectAnswer) -> Self {
        match () {
            () if answer.stay => Self::Stays,
            () if !answer.hold.is_empty() => Self::Held,
            () if answer.endpoints.is_empty() => Self::Nowhere,
            () => Self::Answered,
        }
    }
}

/// How a pending assignment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PendingEnd {
    /// A gateway saw the ticket.
    Used,
    /// Nobody came within ten seconds.
    Expired,
    /// Too many were pending.
    Evicted,
    /// The same user was assigned again and again, or a device that was moved was assigned anew.
    Superseded,
}

impl PendingEnd {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Used, "used"),
        (Self::Expired, "expired"),
        (Self::Evicted, "evicted"),
        (Self::Superseded, "superseded"),
    ];
}

/// The scheduler's metrics.
pub struct Metrics {
    /// `berth_scheduler_requests_total{outcome}`.
    requests: [Counter; Outcome::ALL.len()],
    /// `berth_scheduler_request_seconds`: a schedule request from its complete body to the answer, or from its head to
    /// the refusal when its body was not read.
    pub request_seconds: Histogram,
    /// `berth_scheduler_explains_total{outcome}`.
    explains: [Counter; Outcome::ALL.len()],
    /// `berth_scheduler_admin_requests_total{outcome}`.
    admin: [Counter; Outcome::ALL.len()],
    /// `berth_scheduler_http_connections`.
    pub http_connections: Gauge,
    /// `berth_scheduler_gateways{state}`.
    gateways: [Gauge; State::ALL.len()],
    /// `berth_scheduler_gateways_decided_by{dimension}`: gateways whose load each dimension decides.
    decided_by: [Gauge; Dimension::ALL.len()],
    /// `berth_scheduler_gateway_utilisation_max{dimension}`: of the gateway that is nearest to its end.
    utilisation_max: [Gauge; Dimension::ALL.len()],
    /// `berth_scheduler_gateways_distrusted`: 1 while the fleet's silence is not believed.
    pub distrusted: Gauge,
    /// `berth_scheduler_snapshot_seconds`.
    pub snapshot_seconds: Histogram,
    /// `berth_scheduler_reports_total`.
    pub reports: Counter,
    /// `berth_scheduler_reports_refused_total`.
    pub reports_refused: Counter,
    /// `berth_scheduler_move_targets_strained`: gateways that nobody is moved to because clients fare badly there.
    pub targets_strained: Gauge,
    /// `berth_scheduler_redirects_total{outcome}`.
    redirects: [Counter; Redirect::ALL.len()],
    /// The storm budget.
    pub admission: Admissions,
    /// What this replica has assigned and nobody has seen.
    pub pending: Pending,
    /// The policy.
    pub policy: Policies,
    /// What its gray rules do.
    pub rules: Rules,
    decisions: Decisions,
    /// `berth_scheduler_carried_evicted_total{kind}`.
    carried_evicted: [Counter; KIND_NAMES.len()],
}

impl Metrics {
    /// Registers every series.
    #[must_use]
    pub fn register(registry: Registry<'static>) -> Self {
        let gauge = |name, help| registry.gauge(name, help, &[]);
        let counter = |name, help| registry.counter(name, help, &[]);
        Self {
            requests: Outcome::ALL.map(|(_, name)| {
                let help = "Requests by how they were answered, without those for explanations.";
                registry.counter("berth_scheduler_requests_total", help, &[("outcome", name)])
            }),
            request_seconds: registry.seconds(
                "berth_scheduler_request_seconds",
                "Answering or refusing a schedule request, without the wait for its body.",
                &[],
            ),
            explains: Outcome::ALL.map(|(_, name)| {
                let help = "Explanations asked for, by how they were answered.";
                registry.counter("berth_scheduler_explains_total", help, &[("outcome", name)])
            }),
            admin: Outcome::ALL.map(|(_, name)| {
                let help = "Requests to the admin API, by how they were answered.";
                registry.counter("berth_scheduler_admin_requests_total", help, &[("outcome", name)])
            }),
            http_connections: gauge("berth_scheduler_http_connections", "Open HTTP connections."),
            gateways: State::ALL.map(|state| {
                let labels = [("state", state.name())];
                registry.gauge("berth_scheduler_gateways", "Gateways by state.", &labels)
            }),
            decided_by: Dimension::ALL.map(|dimension| {
                let help = "Serving gateways by the dimension that decides their load.";
                registry.gauge(
                    "berth_scheduler_gateways_decided_by",
                    help,
                    &[("dimension", dimension.name())],
                )
            }),
            utilisation_max: Dimension::ALL.map(|dimension| {
                let help =
                    "The highest utilisation that a serving gateway reports, as a share of its capacity.";
                registry.gauge(
                    "berth_scheduler_gateway_utilisation_max",
                    help,
                    &[("dimension", dimension.name())],
                )
            }),
            distrusted: gauge(
                "berth_scheduler_gateways_distrusted",
                "1 while most of the fleet is silent and assigned on its last known load.",
            ),
            snapshot_seconds: registry.seconds(
                "berth_scheduler_snapshot_seconds",
                "Building a snapshot of the fleet.",
                &[],
            ),
            reports: counter("berth_scheduler_reports_total", "Gateway reports taken."),
            reports_refused: counter(
                "berth_scheduler_reports_refused_total",
                "Gateway reports that were not valid or of a superseded link.",
            ),
            targets_strained: gauge(
                "berth_scheduler_move_targets_strained",
                "Gateways that no connection is moved to: handshakes there are slow or fail.",
            ),
            redirects: Redirect::ALL.map(|(_, name)| {
                let help = "Gateways' questions where a client belongs.";
                registry.counter("berth_scheduler_redirects_total", help, &[("outcome", name)])
            }),
            decisions: Decisions::register(registry),
            admission: Admissions::register(registry),
            pending: Pending::register(registry),
            policy: Policies::register(registry),
            rules: Rules::register(registry),
            carried_evicted: KIND_NAMES.map(|kind| {
                let help = "Carried records that were let go of for lack of room.";
                registry.counter("berth_scheduler_carried_evicted_total", help, &[("kind", kind)])
            }),
        }
    }

    /// A request was answered.
    pub fn request(&self, outcome: Outcome) {
        self.requests[outcome as usize].increment(1);
    }

    /// An explanation was asked for and answered.
    pub fn explain(&self, outcome: Outcome) {
        self.explains[outcome as usize].increment(1);
    }

    /// An operator asked for something.
    pub fn admin(&self, outcome: Outcome) {
        self.admin[outcome as usize].increment(1);
    }

    /// A decision was made.
    pub fn decision(&self, pool: &str, reason: Reason) {
        self.decisions.count(pool, reason);
    }

    /// The fleet's gateways by state, in the order of [`State::ALL`].
    pub fn gateways(&self, counts: [u64; State::ALL.len()]) {
        for (gauge, count) in self.gateways.iter().zip(counts) {
            gauge.set(count as f64);
        }
    }

    /// The fleet's dimensions, in the order of [`Dimension::ALL`].
    pub fn dimensions(&self, counts: [DimensionCounts; Dimension::ALL.len()]) {
        for ((decided_by, most), count) in self.decided_by.iter().zip(&self.utilisation_max).zip(counts) {
            decided_by.set(count.decides as f64);
            most.set(count.most);
        }
    }

    /// So many records were let go of for lack of room since the start, as in [`KIND_NAMES`].
    pub fn carried_evicted(&self, evicted: [u64; KIND_NAMES.len()]) {
        for (counter, evicted) in self.carried_evicted.iter().zip(evicted) {
            counter.absolute(evicted);
        }
    }

    /// A redirect was asked for.
    pub fn redirect(&self, outcome: Redirect) {
        self.redirects[outcome as usize].increment(1);
    }
}

/// Pending assignments.
pub struct Pending {
    /// `berth_scheduler_pending_assignments`.
    open: Gauge,
    /// `berth_scheduler_pending_ended_total{how}`.
    ended: [Counter; PendingEnd::ALL.len()],
}

impl Pending {
    fn register(registry: Registry<'static>) -> Self {
        let help = "Own assignments that no gateway has seen yet.";
        let open = registry.gauge("berth_scheduler_pending_assignments", help, &[]);
        let ended = PendingEnd::ALL.map(|(_, name)| {
            let help = "Pending assignments by how they ended.";
            registry.counter("berth_scheduler_pending_ended_total", help, &[("how", name)])
        });
        Self { open, ended }
    }

    /// So many are open now, and so many have ended in each way since the start.
    pub fn set(&self, open: usize, ended: PendingCounts) {
        self.open.set(open as f64);
        self.ended[PendingEnd::Used as usize].absolute(ended.used);
        self.ended[PendingEnd::Expired as usize].absolute(ended.expired);
        self.ended[PendingEnd::Evicted as usize].absolute(ended.evicted);
        self.ended[PendingEnd::Superseded as usize].absolute(ended.superseded);
    }
}

/// The policy in force, and what was offered.
pub struct Policies {
    /// `berth_scheduler_policy_version`.
    pub version: Gauge,
    /// `berth_scheduler_policy_version_seen`: the newest that any scheduler holds.
    pub version_seen: Gauge,
    /// `berth_scheduler_policy_file_refused`: 1 while the file is not what is in force.
    pub file_refused: Gauge,
    /// `berth_scheduler_policy_loads_total{outcome}`.
    loads: [Counter; PolicyLoad::ALL.len()],
}

impl Policies {
    fn register(registry: Registry<'static>) -> Self {
        let gauge = |name, help| registry.gauge(name, help, &[]);
        Self {
            version: gauge("berth_scheduler_policy_version", "The policy in force."),
            version_seen: gauge(
                "berth_scheduler_policy_version_seen",
                "The newest policy that any scheduler holds; above the version in force: this replica is behind.",
            ),
            file_refused: gauge(
                "berth_scheduler_policy_file_refused",
                "1 while the policy file is not what is in force.",
            ),
            loads: PolicyLoad::ALL.map(|(_, name)| {
                let help = "Policy texts offered, by what became of them.";
                registry.counter("berth_scheduler_policy_loads_total", help, &[("outcome", name)])
            }),
        }
    }

    /// A text was offered.
    pub fn load(&self, outcome: PolicyLoad) {
        self.loads[outcome as usize].increment(1);
    }
}

/// `berth_scheduler_decisions_total{pool,reason}`: pools are named by policies and gateways, so only at run time.
struct Decisions {
    registry: Registry<'static>,
    pools: Mutex<HashMap<String, [Counter; Reason::ALL.len()]>>,
    other: [Counter; Reason::ALL.len()],
}

const DECISIONS: &str = "berth_scheduler_decisions_total";

impl Decisions {
    fn register(registry: Registry<'static>) -> Self {
        let pools = HashMap::from([(STABLE.to_owned(), series(registry, STABLE))]);
        Self { registry, pools: Mutex::new(pools), other: series(registry, "other") }
    }

    fn count(&self, pool: &str, reason: Reason) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if !pools.contains_key(pool) && pools.len() < MAX_POOLS {
            pools.insert(pool.to_owned(), series(self.registry, pool));
        }
        pools.get(pool).unwrap_or(&self.other)[reason as usize].increment(1);
    }
}

fn series(registry: Registry<'static>, pool: &str) -> [Counter; Reason::ALL.len()] {
    let help = "Decisions by pool and reason.";
    Reason::ALL
        .map(|reason| registry.counter_of(DECISIONS, help, ("pool", pool), &[("reason", reason.as_str())]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_at_their_variants_numbers() {
        assert!(Outcome::ALL.iter().enumerate().all(|(n, (variant, _))| *variant as usize == n));
        assert!(PolicyLoad::ALL.iter().enumerate().all(|(n, (variant, _))| *variant as usize == n));
        assert!(Redirect::ALL.iter().enumerate().all(|(n, (variant, _))| *variant as usize == n));
        assert!(PendingEnd::ALL.iter().enumerate().all(|(n, (variant, _))| *variant as usize == n));
        assert!(State::ALL.iter().enumerate().all(|(n, state)| *state as usize == n));
        assert!(Reason::ALL.iter().enumerate().all(|(n, reason)| *reason as usize == n));
    }
}
