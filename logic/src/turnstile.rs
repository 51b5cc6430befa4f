//! One change of a thing at a time, by its name; and of all things few steps at a time, apart from the runtime's threads.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{AcquireError, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

/// Steps that are made at a time: one waits for the store's writer while another has it.
const STEPS: usize = 2;

type Locks = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

/// A lock for each name that somebody holds or waits for: as many as there are calls.
pub(crate) struct Turnstiles {
    locks: Arc<Locks>,
    steps: Arc<Semaphore>,
}

impl Default for Turnstiles {
    fn default() -> Self {
        Self { locks: Arc::default(), steps: Arc::new(Semaphore::new(STEPS)) }
    }
}

/// Let through; dropped, the next one is.
pub(crate) struct Through {
    locks: Arc<Locks>,
    name: String,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Turnstiles {
    pub(crate) async fn enter(&self, name: &str) -> Through {
        let lock = locked(&self.locks).entry(name.to_owned()).or_default().clone();
        // Before it waits: whoever gives up waiting leaves nothing behind either.
        let mut through = Through { locks: self.locks.clone(), name: name.to_owned(), turn: None };
        through.turn = Some(lock.lock_owned().await);
        through
    }

    /// Leave to make one step.
    pub(crate) async fn step(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        self.steps.clone().acquire_owned().await
    }
}

fn locked(locks: &Locks) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
    locks.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Through {
    fn drop(&mut self) {
        self.turn = None;
        let mut locks = locked(&self.locks);
        if locks.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_of_a_name_at_a_time_and_nothing_stays() {
        let turnstiles = Turnstiles::default();
        let first = turnstiles.enter("a").await;
        let other = turnstiles.enter("b").await;
        let mut second = Box::pin(turnstiles.enter("a"));
        let mut third = Box::pin(turnstiles.enter("a"));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(futures_util::poll!(&mut third).is_pending());
        drop((first, third));
        let second = second.await;
        assert!(futures_util::poll!(Box::pin(turnstiles.enter("a"))).is_pending(), "held again");
        drop((second, other));
        assert!(locked(&turnstiles.locks).is_empty());
    }
}
