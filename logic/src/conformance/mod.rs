//! What every backend must do: generic functions over the traits, one macro line per backend.

mod queue;
mod routes;
mod routes_model;
mod store;
mod store_groups;
mod store_groups_model;
mod store_model;
mod store_pages;
mod store_revocations;

use std::{path::PathBuf, sync::Arc};

use berth_proto::metric::Registry;

use crate::{
    backend::ROUTES,
    kv::{Embedded, Kv, Memory, Tail},
    metrics::Metrics,
    queue::{Disk, Files, LogQueue, Queue, QueueError},
    routes::{KvRoutes, Routes},
    store::{Epoch, KvStore, Store},
};

/// 2026-01-01T00:00:00Z, in milliseconds: when these tests begin.
pub(crate) const NOW: i64 = 1_767_225_600_000;

/// How long a lease lasts in these tests, in milliseconds.
pub(crate) const LEASE_MS: i64 = 15_000;

/// Metrics that nobody reads.
pub(crate) fn no_metrics() -> Metrics {
    Metrics::new(Registry::new(&metrics::NoopRecorder))
}

/// A place where a backend keeps what it keeps, opened again and again as after a restart: whoever opens has dropped
/// what he opened before.
pub(crate) trait Place: Send + Sync {
    fn queue(&self, partitions: u16) -> Result<Arc<dyn Queue>, QueueError>;
    fn store(&self) -> Arc<dyn Store>;
    fn routes(&self, now_ms: i64) -> Arc<dyn Routes>;
}

/// Backends over an engine.
pub(crate) trait Engines: Send + Sync {
    fn queue_parts(&self) -> (Arc<dyn Files>, Arc<dyn Kv>);
    fn store_engine(&self) -> Arc<dyn Kv>;
}

impl<E: Engines> Place for E {
    fn queue(&self, partitions: u16) -> Result<Arc<dyn Queue>, QueueError> {
        let (files, names) = self.queue_parts();
        let queue = LogQueue::open(files, names, partitions, 7, no_metrics().queue)?;
        Ok(Arc::new(queue))
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(KvStore::open(self.store_engine(), 7, Epoch::Keep).expect("the store opens"))
    }

    fn routes(&self, now_ms: i64) -> Arc<dyn Routes> {
        Arc::new(KvRoutes::open(self.store_engine(), ROUTES, LEASE_MS, now_ms).expect("the routes open"))
    }
}

/// The memory engine: what it holds lives as long as the place.
pub(crate) struct InMemory {
    files: Arc<crate::queue::InMemory>,
    names: Arc<Memory>,
    store: Arc<Memory>,
}

impl InMemory {
    pub(crate) fn new() -> Self {
        Self { files: Arc::default(), names: Arc::new(Memory::new(1)), store: Arc::new(Memory::new(4)) }
    }
}

impl Engines for InMemory {
    fn queue_parts(&self) -> (Arc<dyn Files>, Arc<dyn Kv>) {
        (self.files.clone(), self.names.clone())
    }

    fn store_engine(&self) -> Arc<dyn Kv> {
        self.store.clone()
    }
}

/// fjall in a directory of its own.
pub(crate) struct OnDisk {
    directory: tempfile::TempDir,
}

impl OnDisk {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    fn open(&self, name: &str, spaces: &[&str]) -> Arc<dyn Kv> {
        let path: PathBuf = self.directory.path().join(name);
        Arc::new(Embedded::open(&path, spaces, 1 << 20, Tail::Whole).expect("the database opens"))
    }
}

impl Engines for OnDisk {
    fn queue_parts(&self) -> (Arc<dyn Files>, Arc<dyn Kv>) {
        let files = Disk::open(&self.directory.path().join("queue")).expect("the directory can be used");
        (Arc::new(files), self.open("queue/names", &LogQueue::SPACES))
    }

    fn store_engine(&self) -> Arc<dyn Kv> {
        self.open("store", &["timeline", "inbox", "state", "routes"])
    }
}

/// Every function of a suite as a test of one backend.
macro_rules! conformance {
    ($backend:ident, $place:expr, { $($suite:ident: [$($check:ident),+ $(,)?]),+ $(,)? }) => {
        mod $backend {
            $(mod $suite {
                use super::super::*;
                $(#[tokio::test]
                async fn $check() {
                    super::super::$suite::$check(&$place).await;
                })+
            })+
        }
    };
}

/// The lists, once; then a line per backend.
macro_rules! every_check {
    ($backend:ident, $place:expr) => {
        conformance!($backend, $place, {
            queue: [
                check_offsets_ids_and_reads,
                check_a_repeat_is_answered_as_before,
                check_repeats_in_one_batch,
                check_the_same_name_for_another_message_is_refused,
                check_a_name_is_free_again_after_a_day,
                check_a_clock_that_steps_back,
                check_reopening_goes_on,
                check_trim_and_reopening,
                check_another_partition_count,
                check_wait,
                check_purge_forgets_only_old_names,
                check_recall_enters_nothing,
                check_close,
            ],
            store: [
                check_the_road_of_a_message,
                check_commit_twice_changes_nothing,
                check_a_gap_is_refused,
                check_spread_twice_changes_nothing,
                check_a_message_to_oneself,
                check_direct_conversations,
                check_a_lost_conversation_comes_back_with_its_record,
                check_poison_is_set_aside,
                check_reopening_keeps_everything,
                check_the_system_has_no_inbox,
                check_mark_read,
                check_reading_ahead_of_spread,
            ],
            store_pages: [
                check_pull_pages,
                check_history_pages,
                check_conversation_pages,
                check_sweep,
            ],
            store_groups: [
                check_create_join_and_leave,
                check_a_message_to_a_group,
                check_slices_and_a_crash_between,
                check_a_step_of_several_groups,
                check_a_group_is_never_given_as_one_of_two,
                check_joining_and_leaving_while_spread_lags,
                check_history_of_stays,
                check_a_sender_who_left_is_told,
                check_limits,
                check_coming_and_going_too_often,
                check_a_stay_that_saw_nothing_leaves_nothing,
                check_group_unread,
                check_the_system_may_speak_to_groups,
                check_reopening_keeps_groups,
            ],
            store_groups_model: [check_against_a_model],
            store_model: [check_against_a_model],
            store_revocations: [
                check_revoke_and_restore,
                check_recent_revocations,
                check_reopening_keeps_revocations,
            ],
            routes: [
                check_register_and_replace,
                check_a_late_close_touches_nothing,
                check_a_late_opening_takes_nobodys_place,
                check_announcing_again,
                check_a_lease_that_ends,
                check_reopening_gives_a_lease_of_grace,
                check_a_new_boot_ends_the_old_one,
                check_late_words_of_a_dead_boot,
                check_too_many_devices,
            ],
            routes_model: [check_against_a_model],
        });
    };
}

every_check!(memory, InMemory::new());
every_check!(embedded, OnDisk::new());
