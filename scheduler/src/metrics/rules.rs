//! What gray rules do by now. Their series come with the policy that names them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use berth_proto::metric::Registry;
use metrics::{Counter, Gauge};

use crate::{
    guard::Limit,
    policy::{PolicyStore, Takes},
};

/// Rules with series of their own since the start: those after them have none.
const MOST: usize = 512;

/// Gray rules.
pub struct Rules {
    registry: Registry<'static>,
    /// `berth_scheduler_rule_stopped{rule}` and `berth_scheduler_rule_percent{rule}`.
    rules: Mutex<HashMap<String, [Gauge; 2]>>,
    /// `berth_scheduler_guard_breaches_total{limit}`.
    breaches: [Counter; Limit::ALL.len()],
}

impl Rules {
    pub(super) fn register(registry: Registry<'static>) -> Self {
        let breaches = Limit::ALL.map(|(_, name)| {
            let help =
                "Gray rules that this scheduler stopped, by the limit that their pool did not keep to.";
            registry.counter("berth_scheduler_guard_breaches_total", help, &[("limit", name)])
        });
        Self { registry, rules: Mutex::default(), breaches }
    }

    /// A guard stopped its rule.
    pub fn breached(&self, limit: Limit) {
        self.breaches[limit as usize].increment(1);
    }

    /// Another policy is in force now. It is read under the lock: of two who come at once, the later one tells the newer.
    pub fn set(&self, in_force: &PolicyStore, version: &Gauge) {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let policy = in_force.load();
        version.set(policy.version as f64);
        for rule in &policy.gray {
            if !rules.contains_key(&rule.id) && rules.len() < MOST {
                rules.insert(rule.id.clone(), self.series(&rule.id));
            }
        }
        // Each once: who reads them meanwhile sees no rule that is stopped go on for a moment.
        for (id, [stopped, percent]) in rules.iter() {
            let takes = policy.gray.iter().find(|rule| rule.id == *id).map(|rule| &rule.takes);
            let (stop, share) = match takes {
                None => (0.0, 0.0),
                Some(Takes::Nobody(_)) => (1.0, 0.0),
                Some(Takes::Percent { percent, .. }) => (0.0, *percent),
            };
            stopped.set(stop);
            percent.set(share);
        }
    }

    fn series(&self, rule: &str) -> [Gauge; 2] {
        let stopped = "1 while the gray rule is stopped: it takes nobody.";
        let percent = "What the gray rule takes of those that match, by its ramp.";
        [("berth_scheduler_rule_stopped", stopped), ("berth_scheduler_rule_percent", percent)]
            .map(|(name, help)| self.registry.gauge_of(name, help, ("rule", rule)))
    }
}
