//! Syncs of the store that are shared by whoever waits, and which changes of groups no sync has covered yet.
//!
//! A message is durable when it is acknowledged; the store that would refuse or allow it is not. So nobody may speak in a
//! group because of a change that a power cut could take back: replayed without it, his message would be refused though it
//! was acknowledged.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::store::StoreError;

/// Groups with changes that are not synced. A sync a second, and one at the end of each change, keep them few; at this
/// number the disk does not sync at all, and changes are refused.
const GROUPS: usize = 65_536;

/// The syncs of one store.
#[derive(Default)]
pub(crate) struct Syncs {
    /// Held by the one who syncs: how the last sync ended that began.
    turn: tokio::sync::Mutex<Option<Ended>>,
    ledger: Arc<Mutex<Ledger>>,
}

struct Ended {
    number: u64,
    outcome: Result<(), StoreError>,
}

#[derive(Default)]
struct Ledger {
    /// Number of the newest sync that began.
    begun: u64,
    /// By group id.
    unsynced: HashMap<String, Unsynced>,
}

/// A group with changes that no sync has covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unsynced {
    /// Its newest version that is synced; 0: not even that there is such a group.
    synced: u64,
    /// A change of it is being written.
    open: bool,
    /// The first sync that covers what is written.
    covered_by: u64,
}

/// A change of a group that is being written: dropped, it is written or never will be.
pub(crate) struct Writing {
    ledger: Arc<Mutex<Ledger>>,
    group_id: String,
    /// Everything before it was synced.
    first: bool,
}

impl Writing {
    /// It turned out that there was nothing to write.
    pub(crate) fn nothing(self) {
        if self.first {
            locked(&self.ledger).unsynced.remove(&self.group_id);
        }
    }
}

fn locked(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Syncs {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        locked(&self.ledger)
    }

    /// A sync that begins after this call, shared with whoever else waits for one; `sync` makes it.
    pub(crate) async fn sync(
        &self,
        sync: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        let mine = self.ledger().begun + 1;
        let mut turn = self.turn.lock().await;
        if let Some(Ended { number, outcome }) = &*turn
            && *number >= mine
        {
            return outcome.clone();
        }
        let number = {
            let mut ledger = self.ledger();
            ledger.begun += 1;
            ledger.begun
        };
        let outcome = sync.await;
        if outcome.is_ok() {
            self.ledger().unsynced.retain(|_, group| group.open || group.covered_by > number);
        }
        *turn = Some(Ended { number, outcome: outcome.clone() });
        outcome
    }

    /// A group of this version (0: a new one) is about to be changed; one change of a group at a time. `None`: too many
    /// wait to be synced.
    pub(crate) fn write(&self, group_id: &str, version: u64) -> Option<Writing> {
        let mut ledger = self.ledger();
        let first = !ledger.unsynced.contains_key(group_id);
        if first && ledger.unsynced.len() >= GROUPS {
            return None;
        }
        let new = Unsynced { synced: version, open: true, covered_by: 0 };
        ledger.unsynced.entry(group_id.to_owned()).or_insert(new).open = true;
        Some(Writing { ledger: self.ledger.clone(), group_id: group_id.to_owned(), first })
    }

    /// Whether everything that was changed of a group is synced.
    pub(crate) fn has(&self, group_id: &str) -> bool {
        !self.ledger().unsynced.contains_key(group_id)
    }

    /// Whether a group is synced as it was at this version.
    pub(crate) fn covers(&self, group_id: &str, version: u64) -> bool {
        self.ledger().unsynced.get(group_id).is_none_or(|group| version <= group.synced)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut ledger = locked(&self.ledger);
        let covered_by = ledger.begun + 1;
        if let Some(group) = ledger.unsynced.get_mut(&self.group_id) {
            (group.open, group.covered_by) = (false, covered_by);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::poll;
    use tokio::sync::Notify;

    use super::*;
    use crate::kv::KvError;

    #[tokio::test]
    async fn whoever_waits_shares_one_sync_that_began_after_he_asked() {
        let (syncs, count, go_on) = (Syncs::default(), AtomicU64::new(0), Notify::new());
        let mut first = Box::pin(syncs.sync(async {
            count.fetch_add(1, Ordering::SeqCst);
            go_on.notified().await;
            Ok(())
        }));
        assert!(poll!(&mut first).is_pending(), "it has begun");
        // It may not cover what these wrote.
        let ask = |_| {
            Box::pin(syncs.sync(async {
                count.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }))
        };
        let mut others: Vec<_> = (0..10).map(ask).collect();
        for other in &mut others {
            assert!(poll!(other).is_pending());
        }
        go_on.notify_one();
        first.await.expect("synced");
        for other in others {
            other.await.expect("synced");
        }
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_change_is_covered_by_a_sync_that_begins_behind_it() {
        let syncs = Syncs::default();
        assert!(syncs.covers("g", 9) && syncs.has("g"));
        let writing = syncs.write("g", 3).expect("room");
        assert!(!syncs.covers("g", 4), "it may be seen before its writer knows");
        assert!(syncs.covers("g", 3));
        syncs.sync(async { Ok(()) }).await.expect("synced");
        assert!(!syncs.covers("g", 4), "it was being written");
        drop(writing);
        assert!(!syncs.has("g"));
        let full = || StoreError::Engine(KvError { action: "sync", detail: "no space".to_owned() });
        syncs.sync(async { Err(full()) }).await.expect_err("failed");
        assert!(!syncs.covers("g", 4));
        // Another change while one is synced.
        syncs
            .sync(async {
                drop(syncs.write("g", 4).expect("room"));
                drop(syncs.write("new", 0).expect("room"));
                Ok(())
            })
            .await
            .expect("synced");
        assert!(!syncs.covers("g", 5) && !syncs.covers("new", 1));
        syncs.write("g", 5).expect("room").nothing();
        assert!(!syncs.has("g"), "what was written before is not synced by that");
        syncs.sync(async { Ok(()) }).await.expect("synced");
        assert!(syncs.has("g") && syncs.covers("new", 1));
        syncs.write("g", 5).expect("room").nothing();
        assert!(syncs.has("g"));
    }
}
