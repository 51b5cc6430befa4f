//! What a client keeps between runs, written beside its connection: the newest each time, one save at a time.

use std::sync::Arc;

use tokio::{sync::watch, time::sleep};

use crate::{
    clock::from_ms,
    cursor::CursorStore,
    mailbox::{Mailbox, Save},
    store::{ScheduleStore, StoredSchedule},
};

/// Between attempts to store what could not be stored.
const SAVE_AGAIN_MS: i64 = 1_000;

/// Stores the cursor whenever the application has moved it. Does not give up: the caller bounds it.
pub(crate) async fn keep_cursor(mailbox: &Mailbox, store: &Arc<dyn CursorStore>) {
    let mut failures = 0;
    loop {
        let cursor = match mailbox.save() {
            Save::Cursor(cursor) => cursor,
            Save::Wait => {
                mailbox.moved().await;
                continue;
            }
            Save::End => return,
        };
        let (store, saved) = (Arc::clone(store), cursor.clone());
        let result = tokio::task::spawn_blocking(move || store.save(&saved)).await;
        let problem = match result {
            Ok(Ok(())) => {
                failures = 0;
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic.to_string(),
        };
        failures += 1;
        tracing::warn!(
            problem,
            failures,
            "the cursor could not be stored; rows since then come again after a restart"
        );
        mailbox.unsaved(cursor);
        sleep(from_ms(SAVE_AGAIN_MS)).await;
    }
}

/// Stores the schedule whenever there is another one, until its sender is gone and the last one is stored. Does not give up: the
/// caller bounds it.
pub(crate) async fn keep_schedule(
    mut newest: watch::Receiver<Option<StoredSchedule>>,
    store: &Arc<dyn ScheduleStore>,
) {
    let mut failures = 0;
    while newest.changed().await.is_ok() {
        let schedule = newest.borrow_and_update().clone();
        let store = Arc::clone(store);
        let result = tokio::task::spawn_blocking(move || store.save(schedule.as_ref())).await;
        let Err(problem) = result.map_err(std::io::Error::other).flatten() else {
            failures = 0;
            continue;
        };
        failures += 1;
        tracing::warn!(%problem, failures, "the schedule could not be stored; until it is, a restart needs a scheduler");
        sleep(from_ms(SAVE_AGAIN_MS)).await;
        newest.mark_changed();
    }
}

/// The schedule stored last. A store that fails costs the question to a scheduler, nothing else.
pub(crate) async fn stored_schedule(store: &Arc<dyn ScheduleStore>) -> Option<StoredSchedule> {
    let store = Arc::clone(store);
    let loaded = tokio::task::spawn_blocking(move || store.load()).await;
    loaded.map_err(std::io::Error::other).flatten().unwrap_or_else(|problem| {
        tracing::warn!(%problem, "the stored schedule cannot be read; a scheduler is asked");
        None
    })
}
