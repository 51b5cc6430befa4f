//! The storm budget's series.

use berth_proto::metric::Registry;
use metrics::{Counter, Gauge};

use crate::admission::{AdmissionCounts, Admitted, TokenSeen};

/// The storm budget.
pub struct Admissions {
    /// `berth_scheduler_admission_budget_per_second`.
    budget: Gauge,
    /// `berth_scheduler_admission_queue_seconds`.
    wait: Gauge,
    /// `berth_scheduler_admissions_total{outcome}`.
    admitted: [Counter; Admitted::ALL.len()],
    /// `berth_scheduler_queue_tokens_total{outcome}`.
    tokens: [Counter; TokenSeen::ALL.len()],
}

impl Admissions {
    pub(super) fn register(registry: Registry<'static>) -> Self {
        Self {
            budget: registry.gauge(
                "berth_scheduler_admission_budget_per_second",
                "Clients a second that may be sent to the gateways, all pools together.",
                &[],
            ),
            wait: registry.gauge(
                "berth_scheduler_admission_queue_seconds",
                "How long a newcomer would wait in the longest pool's queue.",
                &[],
            ),
            admitted: Admitted::ALL.map(|(_, outcome)| {
                let help = "Clients who could be sent to a gateway, by whether they were let in.";
                registry.counter("berth_scheduler_admissions_total", help, &[("outcome", outcome)])
            }),
            tokens: TokenSeen::ALL.map(|(_, outcome)| {
                let help = "Queue tokens that clients showed, by what they were worth.";
                registry.counter("berth_scheduler_queue_tokens_total", help, &[("outcome", outcome)])
            }),
        }
    }

    /// The budget of all pools, the longest wait in milliseconds, and what happened since the start.
    pub fn set(&self, budget_per_second: u64, wait_ms: i64, counts: AdmissionCounts) {
        self.budget.set(budget_per_second as f64);
        self.wait.set(wait_ms as f64 / 1_000.0);
        for (counter, count) in self.admitted.iter().zip(counts.admitted) {
            counter.absolute(count);
        }
        for (counter, count) in self.tokens.iter().zip(counts.tokens) {
            counter.absolute(count);
        }
    }
}
