//! Names of accepted messages as the writer asks for them: recent ones in memory, older ones as rows behind a filter.

use std::{collections::HashMap, sync::Arc};

use super::filter::Filter;
use crate::{
    kv::{Kv, KvError},
    queue::dedup::{self, Name, Seen},
};

/// Recent names forgotten at a time, once they have rows: four batches' worth, for microseconds of the writer.
const FORGET: usize = 2048;

pub(super) struct Names {
    /// Those whose rows are not yet durable. The table's hash is keyed at random: names are hashes of what clients
    /// choose.
    recent: HashMap<Name, Seen>,
    /// Those that need not be in there any more, with the message each had.
    forget: Vec<(Name, u64)>,
    filter: Arc<Filter>,
    /// The window the filter was last told of.
    window: u16,
    rows: Arc<dyn Kv>,
}

impl Names {
    pub(super) fn new(recent: HashMap<Name, Seen>, filter: Arc<Filter>, rows: Arc<dyn Kv>) -> Self {
        Self { recent, forget: Vec::new(), filter, window: 0, rows }
    }

    /// How many are in memory.
    pub(super) fn recent(&self) -> usize {
        self.recent.len()
    }

    /// What was accepted under this name, if it still means that at `now_ms`, the queue's own time.
    pub(super) fn find(&self, name: &Name, now_ms: i64) -> Result<Option<Seen>, KvError> {
        if let Some(seen) = self.recent.get(name) {
            // Rows are older.
            return Ok(Some(*seen).filter(|seen| seen.holds(now_ms)));
        }
        for window in dedup::windows(now_ms) {
            if self.filter.may_have(window, name)
                && let Some(seen) = dedup::find(&*self.rows.view(), window, name, now_ms)?
            {
                return Ok(Some(seen));
            }
        }
        Ok(None)
    }

    /// Enters a name.
    pub(super) fn enter(&mut self, name: Name, seen: Seen) {
        if self.window != seen.window() {
            self.window = seen.window();
            self.filter.turn(self.window);
        }
        self.recent.insert(name, seen);
    }

    /// These have durable rows now.
    pub(super) fn folded(&mut self, names: Vec<(Name, u64)>) {
        if self.forget.is_empty() {
            self.forget = names;
        } else {
            self.forget.extend(names);
        }
    }

    /// Forgets some of those that have rows; whether there may be more.
    pub(super) fn forget_some(&mut self) -> bool {
        for (name, message_id) in self.forget.split_off(self.forget.len().saturating_sub(FORGET)) {
            // A day later the same name may have come again and mean another message.
            if self.recent.get(&name).is_some_and(|seen| seen.message_id == message_id) {
                self.recent.remove(&name);
            }
        }
        !self.forget.is_empty()
    }
}
