//! What a link tells an operator: the same series for each role, under the role's name.

use berth_proto::metric::Registry;
use metrics::{Counter, Gauge};

/// The series of one role's links. The gateway has them for each kind of peer it dials; scheduler and logic for the
/// gateways that dial them.
#[derive(Clone)]
pub struct LinkMetrics {
    /// Links that are up.
    attached: Gauge,
    /// Times a link came up, the first time included.
    attaches: Counter,
    /// Times a link that was up broke.
    pub(crate) breaks: Counter,
    /// Attempts that were turned away: a wrong cluster key, or no valid gateway.
    pub(crate) refused: Counter,
    /// Batches handed to the network.
    pub(crate) batches_out: Counter,
    /// Their bytes, before HTTP/2 frames.
    pub(crate) bytes_out: Counter,
    /// Batches taken from the network.
    pub(crate) batches_in: Counter,
    /// Batches that found the link's queue full.
    pub(crate) full: Counter,
    /// Messages that would be said again after a break and were too many to be remembered.
    pub(crate) forgotten: Counter,
}

/// Counts a link as up until it is dropped, however its task ends.
pub(crate) struct Up(Gauge);

impl Drop for Up {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// The names of one role's series.
struct Names {
    attached: &'static str,
    attaches: &'static str,
    breaks: &'static str,
    refused: &'static str,
    batches: &'static str,
    bytes: &'static str,
    full: &'static str,
    forgotten: &'static str,
}

macro_rules! names {
    ($role:literal) => {
        Names {
            attached: concat!("berth_", $role, "_link_attached"),
            attaches: concat!("berth_", $role, "_link_attaches_total"),
            breaks: concat!("berth_", $role, "_link_breaks_total"),
            refused: concat!("berth_", $role, "_link_attempts_refused_total"),
            batches: concat!("berth_", $role, "_link_batches_total"),
            bytes: concat!("berth_", $role, "_link_sent_bytes_total"),
            full: concat!("berth_", $role, "_link_full_total"),
            forgotten: concat!("berth_", $role, "_link_forgotten_total"),
        }
    };
}

impl LinkMetrics {
    /// A gateway's links to logic.
    #[must_use]
    pub fn gateway_to_logic(registry: Registry<'_>) -> Self {
        Self::new(registry, &names!("gateway"), "logic")
    }

    /// A gateway's links to schedulers.
    #[must_use]
    pub fn gateway_to_scheduler(registry: Registry<'_>) -> Self {
        Self::new(registry, &names!("gateway"), "scheduler")
    }

    /// Logic's links from gateways.
    #[must_use]
    pub fn logic(registry: Registry<'_>) -> Self {
        Self::new(registry, &names!("logic"), "gateway")
    }

    /// A scheduler's links from gateways.
    #[must_use]
    pub fn scheduler(registry: Registry<'_>) -> Self {
        Self::new(registry, &names!("scheduler"), "gateway")
    }

    fn new(r: Registry<'_>, names: &Names, peer: &'static str) -> Self {
        let peer = ("peer", peer);
        let counter = |name, help| r.counter(name, help, &[peer]);
        let batches = |direction| {
            let help = "Batches of messages that passed a link.";
            r.counter(names.batches, help, &[peer, ("direction", direction)])
        };
        Self {
            attached: r.gauge(names.attached, "Links to other processes that are up.", &[peer]),
            attaches: counter(names.attaches, "Times a link came up, the first time included."),
            breaks: counter(names.breaks, "Times a link broke that was up."),
            refused: counter(names.refused, "Attempts to attach that were turned away."),
            batches_out: batches("out"),
            batches_in: batches("in"),
            bytes_out: counter(names.bytes, "Bytes of messages handed to the network."),
            full: counter(names.full, "Batches that a link had no room for."),
            forgotten: counter(
                names.forgotten,
                "Messages that would be said again after a break and were too many to be remembered.",
            ),
        }
    }

    /// A link came up.
    pub(crate) fn up(&self) -> Up {
        self.attaches.increment(1);
        self.attached.increment(1.0);
        Up(self.attached.clone())
    }
}
