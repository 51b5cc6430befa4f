//! Which ticket keys are good: those that any scheduler says are, and for a while those it said before. Pure.
//!
//! Schedulers change their key one after the other, so for a time two of them sign with different ones. A key that leaked is void
//! as soon as one of them says so, whoever still signs with it, and does not become good again by what a scheduler said that is gone.

use berth_proto::{
    ticket::{PUBLIC_KEY, TicketVerifier, key_tag},
    wire::TicketKeys,
};

/// A ticket key's public half.
type Key = [u8; PUBLIC_KEY];

/// A key that its scheduler replaced is good for so long at least, in milliseconds: two lifetimes of a ticket at the default of
/// 300 s.
pub(crate) const RETIRED_MS: i64 = 600_000;

/// It is good for longer than the tickets that were signed with it, by this much, in milliseconds: the last one may have been signed
/// before the scheduler was heard to have another key, and clocks differ.
const AFTER_LAST_MS: i64 = 60_000;

/// A ticket lives no longer than this, whatever a scheduler says, in milliseconds: the most that can be configured, a day.
const LONGEST_TTL_MS: i64 = 86_400_000;

/// A scheduler whose link is down for so long, in milliseconds, is gone, or will say its keys anew: a link that breaks and is there again
/// is neither.
const GONE_MS: i64 = 10_000;

/// Keys taken from one scheduler: the one it signs with, and what it is changing from and to.
const KEYS_EACH: usize = 16;

/// Replaced keys that are kept, newest first to stay.
const RETIRED: usize = 64;

/// The keys of every scheduler.
#[derive(Debug, Default)]
pub(crate) struct Keyring {
    /// By scheduler, what it said last.
    current: Vec<(usize, Told)>,
    /// Replaced, with the time from which on they are no good, oldest first.
    retired: Vec<(Key, i64)>,
    /// Which scheduler signs with which void key, as it was last looked at.
    in_use: Vec<VoidInUse>,
    /// This gateway takes tickets so long past their life when no scheduler is linked, in milliseconds.
    grace_ms: i64,
}

#[derive(Debug)]
struct Told {
    keys: Vec<Key>,
    /// Those that leaked.
    void: Vec<Key>,
    /// Once replaced they are good for so long.
    retired_ms: i64,
    /// When it was last linked.
    linked_ms: i64,
}

/// A scheduler signs with a key that one of them says is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VoidInUse {
    pub(crate) scheduler: usize,
    /// Its tag.
    pub(crate) key: u32,
}

impl Keyring {
    /// Of a gateway that takes tickets `grace_ms` past their life.
    pub(crate) fn new(grace_ms: i64) -> Self {
        Self { grace_ms, ..Self::default() }
    }

    /// A scheduler says its keys; returns whether there was a usable one. Without any, those it said before stay.
    pub(crate) fn told(&mut self, scheduler: usize, said: &TicketKeys, now_ms: i64) -> bool {
        let read = |keys: &[Vec<u8>]| -> Vec<Key> {
            keys.iter().filter_map(|key| key.as_slice().try_into().ok()).take(KEYS_EACH).collect()
        };
        let (keys, void) = (read(&said.public_keys), read(&said.void_keys));
        if keys.is_empty() {
            return false;
        }
        let ttl_ms = i64::from(said.ticket_ttl_ms).min(LONGEST_TTL_MS);
        let lives_ms = ttl_ms.saturating_add(self.grace_ms).saturating_add(AFTER_LAST_MS);
        let told = Told { keys, void, retired_ms: RETIRED_MS.max(lives_ms), linked_ms: now_ms };
        let before = match self.current.iter_mut().find(|(other, _)| *other == scheduler) {
            Some((_, known)) => std::mem::replace(known, told),
            None => {
                self.current.push((scheduler, told));
                self.drop_void();
                return true;
            }
        };
        self.retire(before, now_ms);
        true
    }

    fn retire(&mut self, before: Told, now_ms: i64) {
        let until = now_ms.saturating_add(before.retired_ms);
        // Those of other schedulers, too: this one's tickets may live longer than theirs.
        for key in before.keys {
            let known = self.retired.iter().position(|(known, _)| *known == key);
            let earlier = known.map_or(until, |place| self.retired.remove(place).1);
            self.retired.push((key, until.max(earlier)));
        }
        let over = self.retired.len().saturating_sub(RETIRED);
        self.retired.drain(..over);
        self.drop_void();
    }

    /// What is void is not kept: else it would be good again once nobody says any more that it is void.
    fn drop_void(&mut self) {
        let void = self.void();
        self.retired.retain(|(key, _)| !void.contains(key));
    }

    /// The keys that any scheduler says are void.
    fn void(&self) -> Vec<Key> {
        let mut void: Vec<Key> = self.current.iter().flat_map(|(_, told)| &told.void).copied().collect();
        void.sort_unstable();
        void.dedup();
        void
    }

    /// The tags of the keys that any scheduler says are void.
    pub(crate) fn void_tags(&self) -> Vec<u32> {
        self.void().iter().map(|key| key_tag(key)).collect()
    }

    /// Lets go of what is retired for long enough, and of what schedulers said that are gone; returns whether that changed what is
    /// good. `linked`: the schedulers that are; one that comes back says its keys anew.
    pub(crate) fn forget(&mut self, linked: &[usize], now_ms: i64) -> bool {
        let (count, void) = (self.known(), self.void());
        self.retired.retain(|(_, until)| now_ms < *until);
        for (scheduler, told) in &mut self.current {
            if linked.contains(scheduler) {
                told.linked_ms = now_ms;
                continue;
            }
            let gone_ms = now_ms.saturating_sub(told.linked_ms);
            if gone_ms >= GONE_MS {
                // Else it would be good again once nobody says any more that it is void.
                told.keys.retain(|key| !void.contains(key));
            }
            if gone_ms >= told.retired_ms {
                // The last ticket that it can have signed for this gateway has expired. What it said is void stays void.
                told.keys.clear();
            }
        }
        self.known() < count
    }

    /// How many keys are kept, those of several schedulers several times.
    fn known(&self) -> usize {
        self.retired.len() + self.current.iter().map(|(_, told)| told.keys.len()).sum::<usize>()
    }

    /// Which of the linked schedulers sign with a key that is void; and which of those did not when this was last asked.
    pub(crate) fn void_in_use(&mut self, linked: &[usize]) -> (Vec<VoidInUse>, Vec<VoidInUse>) {
        let void = self.void();
        let signing = self.current.iter().filter(|(scheduler, _)| linked.contains(scheduler));
        let first = signing.filter_map(|(scheduler, told)| Some((*scheduler, told.keys.first()?)));
        let in_use: Vec<VoidInUse> = first
            .filter(|(_, key)| void.contains(*key))
            .map(|(scheduler, key)| VoidInUse { scheduler, key: key_tag(key) })
            .collect();
        let mut news = in_use.clone();
        news.retain(|one| !self.in_use.contains(one));
        self.in_use.clone_from(&in_use);
        (in_use, news)
    }

    /// Accepts tickets signed with any key that is good.
    pub(crate) fn verifier(&self) -> TicketVerifier {
        let (void, retired) = (self.void(), self.retired.iter().map(|(key, _)| key));
        let said = self.current.iter().flat_map(|(_, told)| &told.keys).chain(retired);
        let mut keys: Vec<Key> = said.filter(|key| !void.contains(*key)).copied().collect();
        keys.sort_unstable();
        keys.dedup();
        TicketVerifier::new(&keys)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use berth_proto::{
        link::{Link, Refused},
        wire::ToScheduler,
    };

    use super::*;
    use crate::testing::Site;

    fn keys(names: &[u8]) -> TicketKeys {
        let public_keys = names.iter().map(|name| vec![*name; PUBLIC_KEY]).collect();
        TicketKeys { public_keys, ticket_ttl_ms: 300_000, ..TicketKeys::default() }
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
        assert!(!ring.forget(&[0, 1], 20 + RETIRED_MS - 1));
        assert_eq!(ring.verifier(), good(&[1, 2, 3]));
        assert!(ring.forget(&[0, 1], 20 + RETIRED_MS));
        assert_eq!(ring.verifier(), good(&[3]));
    }

    #[test]
    fn what_is_no_key_changes_nothing() {
        let mut ring = Keyring::default();
        assert!(ring.told(0, &keys(&[1]), 0));
        assert!(!ring.told(0, &TicketKeys { public_keys: vec![vec![2; 31]], ..TicketKeys::default() }, 0));
        assert!(!ring.told(0, &keys(&[]), 0));
        assert_eq!(ring.verifier(), good(&[1]));
    }

    #[test]
    fn what_one_scheduler_says_is_void_is_bad_though_another_signs_with_it_or_it_is_kept_for_its_last_tickets()
     {
        let void =
            |names: &[u8], void: u8| TicketKeys { void_keys: vec![vec![void; PUBLIC_KEY]], ..keys(names) };
        let mut ring = Keyring::default();
        assert!(ring.told(0, &keys(&[1, 2]), 0) && ring.told(1, &keys(&[1, 2]), 0));
        assert!(ring.told(0, &void(&[2], 1), 10));
        assert_eq!(ring.verifier(), good(&[2]));
        assert_eq!(ring.void_tags(), [key_tag(&[1; PUBLIC_KEY])]);
        assert!(
            ring.told(1, &keys(&[2]), 20),
            "it signs with the other one, and does not know that the first is void"
        );
        assert_eq!(ring.verifier(), good(&[2]));
        assert!(ring.told(0, &keys(&[2]), 30));
        assert_eq!((ring.verifier(), ring.void_tags()), (good(&[2]), Vec::new()), "forgotten for good");

        let mut late = Keyring::default();
        assert!(late.told(0, &keys(&[1]), 0) && late.told(0, &keys(&[2]), 0));
        assert!(late.told(1, &void(&[2], 1), 0), "one that is new here");
        assert_eq!(late.verifier(), good(&[2]));
    }

    #[test]
    fn what_was_void_is_not_good_again_for_what_a_scheduler_said_that_is_gone() {
        let void_1 = TicketKeys { void_keys: vec![vec![1; PUBLIC_KEY]], ..keys(&[2]) };
        let hour = 3_600_000;
        // The other one died before it was told; the first one's word is taken back soon, or after an hour.
        for (steps, pause) in [(1, GONE_MS), (3_600, 1_000), (1, hour)] {
            let mut ring = Keyring::default();
            assert!(ring.told(0, &keys(&[1, 2]), 0) && ring.told(1, &keys(&[1, 2]), 0));
            assert!(ring.told(0, &void_1, 0));
            for step in 1..=steps {
                ring.forget(&[0], step * pause);
            }
            assert!(ring.told(0, &keys(&[2]), hour));
            assert_eq!(ring.verifier(), good(&[2]), "{steps} steps of {pause} ms");
        }
        let mut ring = Keyring::default();
        assert!(ring.told(0, &keys(&[2]), 0) && ring.told(1, &keys(&[1]), 0));
        assert!(!ring.forget(&[0], RETIRED_MS - 1), "its tickets live on");
        assert!(!ring.forget(&[0, 1], RETIRED_MS), "it is back");
        assert!(!ring.forget(&[0], RETIRED_MS + 1) && ring.forget(&[0], 2 * RETIRED_MS));
        assert_eq!(ring.verifier(), good(&[2]));
        assert!(ring.told(1, &keys(&[1]), 3 * RETIRED_MS));
        assert_eq!(ring.verifier(), good(&[1, 2]), "it says so again");
    }

    #[test]
    fn what_a_scheduler_that_is_gone_said_is_void_stays_void() {
        let mut ring = Keyring::default();
        assert!(ring.told(0, &TicketKeys { void_keys: vec![vec![1; PUBLIC_KEY]], ..keys(&[2]) }, 0));
        assert!(ring.told(1, &keys(&[1, 2]), 0));
        ring.forget(&[1], 10 * RETIRED_MS);
        assert_eq!(ring.verifier(), good(&[2]));
    }

    #[test]
    fn who_signs_with_a_void_key_is_told_once() {
        let mut ring = Keyring::default();
        assert!(ring.told(0, &keys(&[1, 2]), 0) && ring.told(1, &keys(&[2, 1]), 0));
        let nobody = || (Vec::new(), Vec::new());
        assert_eq!(ring.void_in_use(&[0, 1]), nobody());
        assert!(ring.told(1, &TicketKeys { void_keys: vec![vec![1; PUBLIC_KEY]], ..keys(&[2]) }, 0));
        let it = vec![VoidInUse { scheduler: 0, key: key_tag(&[1; PUBLIC_KEY]) }];
        assert_eq!(ring.void_in_use(&[0, 1]), (it.clone(), it.clone()));
        assert_eq!(ring.void_in_use(&[0, 1]), (it, Vec::new()));
        assert_eq!(ring.void_in_use(&[1]), nobody(), "it is gone");
        assert!(ring.told(0, &keys(&[2]), 0));
        assert_eq!(ring.void_in_use(&[0, 1]), nobody());
    }

    #[test]
    fn a_replaced_key_outlives_the_tickets_that_were_signed_with_it() {
        let hours = 3_600_000;
        let mut ring = Keyring::default();
        assert!(ring.told(0, &TicketKeys { ticket_ttl_ms: 3 * hours, ..keys(&[1]) }, 0));
        assert!(ring.told(1, &keys(&[1]), 0));
        let hours = i64::from(hours);
        assert!(ring.told(0, &keys(&[2]), 0));
        assert!(ring.told(1, &keys(&[2]), hours), "the other one's tickets live for minutes");
        assert!(ring.told(0, &TicketKeys { ticket_ttl_ms: u32::MAX, ..keys(&[3]) }, hours));
        ring.forget(&[0, 1], 3 * hours);
        assert_eq!(
            ring.verifier(),
            good(&[1, 2, 3]),
            "signed at most an hour after the first scheduler's change"
        );
        assert!(ring.told(0, &keys(&[2]), 3 * hours));
        ring.forget(&[0, 1], 27 * hours - 1);
        assert_eq!(ring.verifier(), good(&[2, 3]));
        assert!(ring.forget(&[0, 1], 28 * hours), "never for longer than a ticket can live");
        assert_eq!(ring.verifier(), good(&[2]));
    }

    #[test]
    fn a_replaced_key_outlives_the_grace_of_its_last_tickets() {
        let mut ring = Keyring::new(3_600_000);
        assert!(ring.told(0, &keys(&[1]), 0));
        assert!(ring.told(0, &keys(&[2]), 0));
        assert!(
            !ring.forget(&[0], 3_600_000 + 300_000),
            "a ticket signed at the last moment, at the end of its grace"
        );
        assert!(ring.forget(&[0], 3_600_000 + 300_000 + AFTER_LAST_MS));
    }

    #[test]
    fn while_no_scheduler_is_linked_nothing_is_forgotten() {
        struct Up;
        impl Link<ToScheduler> for Up {
            fn send(&self, _: Vec<ToScheduler>) -> Result<(), Refused<ToScheduler>> {
                Ok(())
            }
        }
        let shared = Site::new(1).shared;
        assert!(shared.ticket_keys(0, &keys(&[1])) && shared.ticket_keys(0, &keys(&[2])));
        shared.forget_keys(i64::MAX);
        assert_eq!(*shared.rare().verifier, good(&[1, 2]));
        shared.change(|rare| rare.schedulers = Arc::new(vec![Arc::new(Up)]));
        shared.forget_keys(i64::MAX);
        assert_eq!(*shared.rare().verifier, good(&[2]));
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
