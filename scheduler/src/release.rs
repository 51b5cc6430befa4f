//! What is in force: puts policies in force from wherever they come, and stops rules whose pools do worse than their guards allow.
//!
//! A policy that is in force here is carried, so that replicas that were down, or have an older file, take it up; so is the stop of
//! a rule. Everything goes into the history.

mod file;

use berth_proto::{
    carry::{self, Record, kind},
    wire::{CarriedRecord, PolicyText, RuleStop},
};
use tracing::{info, warn};

use crate::{
    core::{Core, lock},
    guard::Breach,
    history::Change,
    metrics::PolicyLoad,
    policy::{Diff, GrayRule, Offered, Policy, Refused, Replaced, Stop, Taken, Takes},
    replicas::Replica,
};

/// Where a change came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    File,
    Api,
    Guard,
    /// By another scheduler, through gateways, or from this one's own disk.
    Carried,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Api => "api",
            Self::Guard => "guard",
            Self::Carried => "carried",
        }
    }
}

impl Core {
    /// Puts a text in force if it may replace the one that is, and has it carried, unless it is already.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn put_policy(&self, text: &str, by: &str, note: &str, from: Source) -> Result<Taken, Refused> {
        let offered = if from == Source::Carried { Offered::Agreed } else { Offered::Here };
        let taken = self.policy.offer(text, offered, self.clock.wall_ms());
        self.metrics.policy.load(match &taken {
            Ok(Taken::Same(_)) => return taken,
            Ok(Taken::New(_)) => PolicyLoad::Taken,
            Err(refused) => refused.into(),
        });
        if let Ok(Taken::New(replaced)) = &taken {
            info!(policy = %replaced.policy, from = from.name(), by, "policy taken up");
            self.remember(replaced, by, note, from);
            self.remember_stops(replaced, "");
            self.policy_changed();
            // An operator knows what he gives; what a file has is agreed on once others could say what they have.
            if from == Source::Api {
                self.policy.agree();
            }
            if from != Source::Carried && self.policy.agreed() {
                self.carry(vec![record(&replaced.policy, by, note, self.clock.wall_ms())]);
            }
        }
        taken
    }

    /// A policy comes from another scheduler, or from this one's disk. Of two texts under one version everybody keeps the one that
    /// everybody carries.
    pub fn policy_carried(&self) {
        let newer_file = {
            let _turn = lock(&self.agreeing);
            let told = self.carried.read(|store| store.get(kind::POLICY, "").and_then(Record::read));
            let Some(Record::Policy(told)) = told else { return };
            if self.policy.agreed() {
                self.take_up(&told);
                return;
            }
            self.compare_file(&told)
        };
        self.carry(newer_file.into_iter().collect());
    }

    fn take_up(&self, told: &PolicyText) {
        let in_force = self.policy.load_full();
        if told.version < in_force.version {
            return;
        }
        match self.put_policy(&told.text, &told.by, &told.note, Source::Carried) {
            Ok(Taken::New(Replaced { before, policy })) if before.version == policy.version => warn!(
                %before,
                %policy,
                "another text under this version is carried, and replaces the one that was in force here; raise the version with every change"
            ),
            Ok(_) | Err(Refused::Older { .. }) => {}
            Err(refused) => not_taken(told, &in_force, &refused),
        }
    }

    /// A definition of a rule was stopped, or goes on: by this scheduler or another.
    pub fn stop_carried(&self, told: &RuleStop) {
        let _turn = lock(&self.agreeing);
        let key = carry::stop_key(&told.rule_id, &told.rule_hash);
        let newest = self.carried.read(|store| store.get(kind::RULE_STOP, &key).and_then(Record::read));
        let Some(Record::RuleStop(RuleStop { rule_hash, stopped, reason, at_ms, by, .. })) = newest else {
            return;
        };
        let stop = stopped.then(|| Stop { reason, by: by.clone(), at_ms });
        if let Some(replaced) = self.policy.put_stop(&rule_hash, stop, self.clock.wall_ms()) {
            self.remember_stops(&replaced, &by);
            self.policy_changed();
        }
    }

    /// Lets a stopped rule go on; the record to carry.
    ///
    /// # Errors
    /// When the policy has no such rule, or it was not stopped.
    pub fn resumption(&self, rule_id: &str, by: &str) -> Result<CarriedRecord, String> {
        let policy = self.policy.load();
        let Some(rule) = policy.gray.iter().find(|rule| rule.id == rule_id) else {
            let ids: Vec<_> = policy.gray.iter().map(|rule| rule.id.as_str()).collect();
            return Err(format!("the policy in force has no rule {rule_id:?}; it has: {}", ids.join(", ")));
        };
        match &rule.takes {
            Takes::Nobody(_) => Ok(self.stop_record(rule, false, String::new(), by)),
            Takes::Percent { percent, .. } => {
                Err(format!("the rule {rule_id:?} is not stopped; it takes {percent}% of those that match"))
            }
        }
    }

    /// Time passed: ramps may be at another step, and pools may do worse than their guards allow. About once a second.
    pub fn look_after_rules(&self) {
        if let Some(Replaced { before, policy }) = self.policy.pass(self.clock.wall_ms()) {
            for (was, is) in before.gray.iter().zip(&policy.gray).filter(|(was, is)| was.takes != is.takes) {
                info!(rule = is.id, was = %was.takes, is = %is.takes, "a gray rule takes another share by now");
            }
            self.policy_changed();
        }
        let policy = self.policy.load_full();
        let (now_ms, deaf) = (self.clock.monotonic_ms(), self.fleet.load().distrusted);
        let breaches = lock(&self.guards).judge(&policy, now_ms, deaf);
        for breach in breaches {
            self.breached(&policy, &breach);
        }
    }

    fn breached(&self, policy: &Policy, breach: &Breach) {
        let Some(rule) = policy.gray.iter().find(|rule| rule.id == breach.rule_id) else { return };
        self.metrics.rules.breached(breach.limit);
        warn!(
            rule = breach.rule_id,
            pool = rule.pool,
            reason = breach.reason,
            "a gray rule's guard stops it: it takes nobody until its text changes or somebody resumes it"
        );
        self.carry(vec![self.stop_record(rule, true, breach.reason.clone(), "guard")]);
    }

    /// Newer than what is carried of the rule, whatever its clock said.
    fn stop_record(&self, rule: &GrayRule, stopped: bool, reason: String, by: &str) -> CarriedRecord {
        let (at_ms, key) = (self.clock.wall_ms(), carry::stop_key(&rule.id, &rule.hash));
        let before =
            self.carried.read(|store| store.get(kind::RULE_STOP, &key).map_or(0, |record| record.version));
        let stop = RuleStop {
            rule_id: rule.id.clone(),
            rule_hash: rule.hash.clone(),
            stopped,
            reason,
            at_ms,
            by: by.to_owned(),
        };
        Record::RuleStop(stop).carried(before.saturating_add(1).max(at_ms.unsigned_abs()), 0)
    }

    /// Another policy is in force, or it does something else by now: slow start may be another, and gateways are told.
    pub fn policy_changed(&self) {
        self.metrics.rules.set(&self.policy, &self.metrics.policy.version);
        self.urgent.notify_one();
    }

    fn remember(&self, replaced: &Replaced, by: &str, note: &str, from: Source) {
        let Replaced { before, policy } = replaced;
        self.history.add(Change {
            at_ms: self.clock.wall_ms(),
            what: "policy".to_owned(),
            from: from.name().to_owned(),
            by: by.to_owned(),
            note: note.to_owned(),
            policy_version: policy.version,
            policy_hash: policy.hash.clone(),
            rule_id: String::new(),
            rule_hash: String::new(),
            changed: Diff::lines(before, policy),
            text: policy.text.clone(),
        });
    }

    /// Tells and remembers which rules are stopped that were not, and which go on: by what they do, so that a stop that came before
    /// its policy is told with that, and one of a definition that is not in force is not.
    fn remember_stops(&self, replaced: &Replaced, resumed_by: &str) {
        let Replaced { before, policy } = replaced;
        for rule in &policy.gray {
            let was = before.gray.iter().find(|was| was.hash == rule.hash).and_then(GrayRule::stop);
            let (what, from, by, note) = match (was, rule.stop()) {
                (None, Some(stop)) => {
                    let Stop { reason, by, .. } = &**stop;
                    info!(rule = rule.id, by, reason, "a gray rule is stopped: it takes nobody");
                    ("stop", Source::Guard, by.as_str(), reason.as_str())
                }
                (Some(_), None) => {
                    info!(rule = rule.id, by = resumed_by, takes = %rule.takes, "a gray rule goes on");
                    ("resume", Source::Api, resumed_by, "")
                }
                _ => continue,
            };
            self.history.add(Change {
                at_ms: self.clock.wall_ms(),
                what: what.to_owned(),
                from: from.name().to_owned(),
                by: by.to_owned(),
                note: note.to_owned(),
                policy_version: policy.version,
                policy_hash: policy.hash.clone(),
                rule_id: rule.id.clone(),
                rule_hash: rule.hash.clone(),
                changed: Vec::new(),
                text: String::new(),
            });
        }
    }

    /// Every scheduler, this one among them, with the policy it holds.
    pub fn replicas(&self) -> Vec<Replica> {
        let policy = self.policy.load();
        let own = Replica {
            scheduler_id: self.id.clone(),
            policy_version: policy.version,
            policy_hash: policy.hash.clone(),
        };
        lock(&self.replicas).list(own, self.clock.monotonic_ms())
    }
}

impl From<&Refused> for PolicyLoad {
    fn from(refused: &Refused) -> Self {
        match refused {
            Refused::Broken(_) => Self::Broken,
            Refused::Older { .. } => Self::Older,
            Refused::OtherText(_) => Self::OtherText,
            Refused::Leap { .. } => Self::Leap,
        }
    }
}

fn not_taken(told: &PolicyText, in_force: &Policy, refused: &Refused) {
    warn!(
        version = told.version,
        hash = %format_args!("{:.64}", told.hash),
        %in_force,
        error = %refused,
        "another scheduler has a policy that this one does not take; the policy in force stays"
    );
}

fn record(policy: &Policy, by: &str, note: &str, at_ms: i64) -> CarriedRecord {
    let text = PolicyText {
        version: policy.version,
        hash: policy.hash.clone(),
        text: policy.text.clone(),
        by: by.to_owned(),
        at_ms,
        note: note.to_owned(),
    };
    Record::Policy(text).carried(policy.version, 0)
}

#[cfg(test)]
mod tests;
