//! One change of a thing at a time, by its name.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A lock for each name that somebody holds or waits for: as many as there are calls.
#[derive(Default)]
pub(crate) struct Turnstiles(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

/// Let through; dropped, the next one is.
pub(crate) struct Through<'a> {
    turnstiles: &'a Turnstiles,
    name: &'a str,
    turn: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Turnstiles {
    fn locks(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
        let Self(locks) = self;
        locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn enter<'a>(&'a self, name: &'a str) -> Through<'a> {
        let lock = self.locks().entry(name.to_owned()).or_default().clone();
        // Before it waits: whoever gives up waiting leaves nothing behind either.
        let mut through = Through { turnstiles: self, name, turn: None };
        through.turn = Some(lock.lock_owned().await);
        through
    }
}

impl Drop for Through<'_> {
    fn drop(&mut self) {
        self.turn = None;
        let mut locks = self.turnstiles.locks();
        if locks.get(self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(self.name);
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
        assert!(turnstiles.locks().is_empty());
    }
}
