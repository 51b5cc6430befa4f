//! Which schedulers there are, and which policy each holds: gateways hear it from each and tell it to all.

use std::collections::HashMap;

use berth_proto::{id, wire::SchedulerSeen};
use serde::Serialize;

/// Schedulers that are remembered: a site has a few.
const MOST: usize = 64;

/// Longest hash that is kept, in characters: SHA-256 in hex.
const HASH: usize = 64;

/// Who has not been heard of for this long, in milliseconds, is gone: gateways tell it twice a second.
const GONE_AFTER_MS: i64 = 5_000;

/// A start of a scheduler that no gateway has told of for this long, in milliseconds, is not believed to count any more: three reports.
const LIVES_MS: i64 = 1_500;

/// A scheduler and the identity of its policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Replica {
    pub scheduler_id: String,
    #[serde(with = "berth_proto::schedule::int64")]
    pub policy_version: u64,
    pub policy_hash: String,
}

/// The other schedulers.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    seen: HashMap<String, (i64, Replica)>,
    /// When their starts were told of last.
    boots: HashMap<u64, i64>,
}

impl Replicas {
    /// A gateway told which schedulers it has links to.
    pub fn hear(&mut self, seen: &[SchedulerSeen], now_ms: i64) {
        for one in seen.iter().take(MOST).filter(|one| one.boot != 0) {
            if self.boots.len() >= MOST {
                self.boots.retain(|_, at_ms| now_ms - *at_ms <= LIVES_MS);
            }
            if self.boots.len() < MOST || self.boots.contains_key(&one.boot) {
                self.boots.insert(one.boot, now_ms);
            }
        }
        for one in seen.iter().take(MOST).filter(|one| id::check(&one.scheduler_id).is_ok()) {
            if self.seen.len() >= MOST && !self.seen.contains_key(&one.scheduler_id) {
                self.seen.retain(|_, (at_ms, _)| now_ms - *at_ms <= GONE_AFTER_MS);
                if self.seen.len() >= MOST {
                    continue;
                }
            }
            let replica = Replica {
                scheduler_id: one.scheduler_id.clone(),
                policy_version: one.policy_version,
                policy_hash: one.policy_hash.chars().take(HASH).collect(),
            };
            self.seen.insert(one.scheduler_id.clone(), (now_ms, replica));
        }
    }

    /// Whether this start of a scheduler is heard of.
    pub fn lives(&self, boot: u64, now_ms: i64) -> bool {
        self.boots.get(&boot).is_some_and(|at_ms| now_ms - at_ms <= LIVES_MS)
    }

    /// How many schedulers there are, that of the id `own` among them: those that gateways have told of lately.
    pub fn count(&self, own: &str, now_ms: i64) -> u64 {
        let lives = |(id, (at_ms, _)): &(&String, &(i64, Replica))| *id != own && now_ms - at_ms <= LIVES_MS;
        self.seen.iter().filter(lives).count() as u64 + 1
    }

    /// The newest policy that any other scheduler holds that is there; 0: there is none.
    pub fn newest(&self, now_ms: i64) -> u64 {
        let here = self.seen.values().filter(|(at_ms, _)| now_ms - at_ms <= GONE_AFTER_MS);
        here.map(|(_, replica)| replica.policy_version).max().unwrap_or(0)
    }

    /// Those that are there, with `own` as it is now, by id.
    pub fn list(&self, own: Replica, now_ms: i64) -> Vec<Replica> {
        let here = self.seen.values().filter(|(at_ms, _)| now_ms - at_ms <= GONE_AFTER_MS);
        let others = here.map(|(_, replica)| replica).filter(|other| other.scheduler_id != own.scheduler_id);
        let mut list: Vec<_> = others.cloned().collect();
        list.push(own);
        list.sort_by(|a, b| a.scheduler_id.cmp(&b.scheduler_id));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: &str, version: u64) -> SchedulerSeen {
        let policy_hash = "h".repeat(100);
        SchedulerSeen { scheduler_id: id.to_owned(), policy_version: version, policy_hash, boot: 0 }
    }

    fn own() -> Replica {
        Replica { scheduler_id: "b".to_owned(), policy_version: 9, policy_hash: String::new() }
    }

    fn listed(replicas: &Replicas, now_ms: i64) -> Vec<(String, u64)> {
        replicas.list(own(), now_ms).into_iter().map(|one| (one.scheduler_id, one.policy_version)).collect()
    }

    #[test]
    fn the_newest_word_of_each_counts_for_as_long_as_it_is_heard() {
        let mut replicas = Replicas::default();
        replicas.hear(&[seen("c", 1), seen("b", 3)], 0);
        replicas.hear(&[seen("c", 2), seen("a", 1), seen("no id", 1)], 4_000);
        let all = [("a".to_owned(), 1), ("b".to_owned(), 9), ("c".to_owned(), 2)];
        assert_eq!(listed(&replicas, 5_000), all, "this one as it is now, not as it was heard of");
        assert_eq!([5_500, 5_501].map(|now_ms| replicas.count("b", now_ms)), [3, 1], "lately, and this one");
        assert_eq!(replicas.count("c", 5_500), 2, "it counts itself once, and who is silent not at all");
        assert_eq!(listed(&replicas, 9_001), [("b".to_owned(), 9)], "the others are gone");
        replicas.hear(&[seen("a", 1)], 5_000);
        assert_eq!((replicas.newest(5_000), replicas.newest(9_001)), (3, 1), "not only of the last gateway");
        assert!(replicas.seen.values().all(|(_, one)| one.policy_hash.len() == HASH));
    }

    #[test]
    fn a_start_lives_for_as_long_as_it_is_told_of() {
        let mut replicas = Replicas::default();
        let start = |boot| SchedulerSeen { boot, ..seen("a", 1) };
        replicas.hear(&[start(1)], 0);
        replicas.hear(&[start(2), seen("old", 1)], 1_000);
        let lives = |now_ms| [0, 1, 2].map(|boot| replicas.lives(boot, now_ms));
        assert_eq!((lives(1_500), lives(1_501)), ([false, true, true], [false, false, true]));
        (10..1_000).for_each(|boot| replicas.hear(&[start(boot)], 2_000));
        assert_eq!(replicas.boots.len(), MOST);
        replicas.hear(&[start(3)], 9_000);
        assert_eq!(replicas.boots.len(), 1);
    }

    #[test]
    fn no_more_are_remembered_than_a_site_has() {
        let mut replicas = Replicas::default();
        (0..1_000).for_each(|n| replicas.hear(&[seen(&format!("s{n}"), 1)], 0));
        assert_eq!(replicas.seen.len(), MOST);
        replicas.hear(&[seen("new", 1)], 10_000);
        assert_eq!(replicas.seen.len(), 1, "those that are gone make room");
    }
}
