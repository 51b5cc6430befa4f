//! Which ticket keys are good: those that any scheduler says are, and for a while those it said before. Pure.
//!
//! Schedulers change their key one after the other, so for a time two of them sign with different ones.

use berth_proto::ticket::{PUBLIC_KEY, TicketVerifier};

/// A ticket key's public half.
type Key = [u8; PUBLIC_KEY];

/// A key that its scheduler replaced is good for so long, in milliseconds: two lifetimes of a ticket at the default of
/// 300 s. Tickets that live longer than this fail with 4500 after a change of keys.
pub(crate) const RETIRED_MS: i64 = 600_000;

/// Keys taken from one scheduler: the one it signs with, and what it is changing from and to.
const KEYS_EACH: usize = 16;

/// Replaced keys that are kept, newest first to stay.
const RETIRED: usize = 64;

/// The keys of every scheduler.
#[derive(Debug, Default)]
pub(crate) struct Keyring {
    /// By scheduler, what it said last.
    current: Vec<(usize, Vec<Key>)>,
    /// Replaced, with the time from which on they are no good, oldest first.
    retired: Vec<(Key, i64)>,
}

impl Keyring {
    /// A scheduler says its keys; returns whether there was a usable one. Without any, those it said before stay.
    pub(crate) fn told(&mut self, scheduler: usize, keys: &[Vec<u8>], now_ms: i64) -> bool {
        let keys: Vec<Key> =
            keys.iter().filter_map(|key| key.as_slice().try_into().ok()).take(KEYS_EACH).collect();
        if keys.is_empty() {
            return false;
        }
        let before = match self.current.iter_mut().find(|(other, _)| *other == scheduler) {
            Some((_, known)) => std::mem::replace(known, keys),
            None => {
                self.current.push((scheduler, keys));
                Vec::new()
            }
        };
        for key in before.into_iter().filter(|key| !self.is_current(key)).collect::<Vec<_>>() {
            self.retired.retain(|(known, _)| *known != key);
            self.retired.push((key, now_ms.saturating_add(RETIRED_MS)));
        }
        let over = self.retired.len().saturating_sub(RETIRED);
        self.retired.drain(..over);
        true
    }

    /// Lets go of what is retired for long enough; returns whether that changed what is good.
    pub(crate) fn forget(&mut self, now_ms: i64) -> bool {
        let before = self.retired.len();
        self.retired.retain(|(_, until)| now_ms < *until);
        self.retired.len() < before
    }

    /// Accepts tickets signed with any key that is good.
    pub(crate) fn verifier(&self) -> TicketVerifier {
        let retired = self.retired.iter().map(|(key, _)| key);
        let mut keys: Vec<Key> =
            self.current.iter().flat_map(|(_, keys)| keys).chain(retired).copied().collect();
        keys.sort_unstable();
        keys.dedup();
        TicketVerifier::new(&keys)
    }

    fn is_current(&self, key: &Key) -> bool {
        self.current.iter().any(|(_, keys)| keys.contains(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[u8]) -> Vec<Vec<u8>> {
        names.iter().map(|name| vec![*name; PUBLIC_KEY]).collect()
    }

    fn good(names: &[u8]) -> TicketVerifier {
        TicketVerifier::new(&names.iter().map(|name| [*name; PUBLIC_KEY]).collect::<Vec<_>>())
    }

    #[test]
    fn every_schedulers_keys_are_good_and_replaced_ones_for_a_while() {
        let mut ring = Keyring::default();
        assert!(ring.told(0, &keys(&[1]), 0));
        assert!(ring.told(1, &keys(&[1, 2]), 0));
        assert_eq!(ring.verifier(), good(&[1, 2]));
        assert!(ring.told(0, &keys(&[3]), 10));
        assert_eq!(ring.verifier(), good(&[1, 2, 3]));
        assert!(ring.told(1, &keys(&[3]), 20));
        assert!(!ring.forget(20 + RETIRED_MS - 1));
        assert_eq!(ring.verifier(), good(&[1, 2, 3]));
        assert!(ring.forget(20 + RETIRED_MS));
        assert_eq!(ring.verifier(), good(&[3]));
    }

    #[test]
    fn what_is_no_key_changes_nothing() {
        let mut ring = Keyring::default();
        assert!(ring.told(0, &keys(&[1]), 0));
        assert!(!ring.told(0, &[vec![2; 31]], 0));
        assert!(!ring.told(0, &[], 0));
        assert_eq!(ring.verifier(), good(&[1]));
    }

    #[test]
    fn a_scheduler_that_changes_all_the_time_is_bounded() {
        let mut ring = Keyring::default();
        for name in 0..=255 {
            assert!(ring.told(0, &keys(&[name]), 0));
        }
        assert_eq!(ring.retired.len(), RETIRED);
        assert_eq!(ring.verifier(), good(&(191..=255).collect::<Vec<_>>()));
    }
}
