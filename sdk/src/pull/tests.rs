//! The pull state machine: contiguity, gaps, epochs, floors, over random servers.

use proptest::prelude::*;
use rand::{SeedableRng, rngs::SmallRng};

use super::*;

fn rows(seqs: impl IntoIterator<Item = u64>) -> Vec<InboxItem> {
    seqs.into_iter().map(|seq| InboxItem { seq, event: None }).collect()
}

fn answer(seqs: impl IntoIterator<Item = u64>, latest_seq: u64) -> PullResponse {
    PullResponse { items: rows(seqs), latest_seq, inbox_epoch: 1, floor_seq: 1, ..Default::default() }
}

fn cursor(seq: u64) -> Cursor {
    Cursor { user_id: "alice".into(), inbox_epoch: 1, seq }
}

/// Welcomed with `cursor` behind it, `latest` rows in the inbox, and a pull in flight.
fn pulling(seq: u64, latest: u64) -> Puller {
    let mut puller = Puller::new(Some(cursor(seq)), 100);
    assert_eq!(puller.welcomed("alice", 1, latest), None);
    assert_eq!(puller.next(0), Some(PullRequest { after_seq: seq, limit: 100 }));
    puller
}

fn answered(puller: &mut Puller, answer: PullResponse) -> Pulled {
    puller.answered(answer, 0, &mut SmallRng::seed_from_u64(1))
}

#[test]
fn a_new_device_begins_at_0_without_resync() {
    let mut puller = Puller::new(None, 50);
    assert_eq!(puller.welcomed("alice", 7, 3), None);
    assert_eq!(puller.next(0), Some(PullRequest { after_seq: 0, limit: 50 }));
    assert_eq!(puller.position(), Some(&Cursor { user_id: "alice".into(), inbox_epoch: 7, seq: 0 }));
}

#[test]
fn nothing_is_pulled_when_there_is_nothing() {
    let mut puller = Puller::new(Some(cursor(5)), 100);
    puller.welcomed("alice", 1, 5);
    assert_eq!(puller.next(0), None);
    puller.told(5, false);
    assert_eq!(puller.next(0), None);
    puller.told(5, true);
    assert!(puller.next(0).is_some(), "sync_all looks anyway");
}

#[test]
fn a_notify_never_moves_the_position() {
    let mut puller = pulling(3, 5);
    puller.told(9, false);
    assert_eq!(puller.position(), Some(&cursor(3)));
    let pulled = answered(&mut puller, answer(4..=5, 5));
    assert_eq!(pulled, Pulled { rows: rows(4..=5), ..Default::default() });
    assert_eq!(puller.next(0), Some(PullRequest { after_seq: 5, limit: 100 }), "told of 9 meanwhile");
}

#[test]
fn what_was_told_before_the_pull_does_not_make_it_spin() {
    let mut puller = Puller::new(Some(cursor(5)), 100);
    puller.welcomed("alice", 1, 5);
    puller.told(6, false);
    assert!(puller.next(0).is_some());
    assert_eq!(answered(&mut puller, answer([], 5)), Pulled::default());
    assert_eq!(puller.next(0), None);
}

#[test]
fn a_gap_is_told_once_and_pulled_again_later_and_later() {
    for (found, gap) in [
        (answer([4, 6, 7], 7), Gap { expected: 5, found: 6 }),
        (answer([4, 4], 7), Gap { expected: 5, found: 4 }),
    ] {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut puller = pulling(3, 7);
        assert_eq!(
            puller.answered(found, 0, &mut rng),
            Pulled { rows: rows([4]), gap: Some(gap), resync: None }
        );
        let (mut now_ms, mut longest_ms) = (0, 0);
        for _ in 0..10 {
            puller.told(100, true);
            let due_ms = puller.wake_at();
            longest_ms = longest_ms.max(due_ms - now_ms);
            now_ms = due_ms;
            assert_eq!(puller.next(now_ms), Some(PullRequest { after_seq: 4, limit: 100 }));
            assert_eq!(puller.answered(answer([6, 7], 7), now_ms, &mut rng), Pulled::default());
        }
        assert!(longest_ms > 500, "the waits do not grow: {longest_ms} ms");
        puller.connection_lost();
        puller.welcomed("alice", 1, 7);
        assert!(puller.next(now_ms).is_some());
        assert_eq!(puller.answered(answer([6], 7), now_ms, &mut rng).gap, None, "told before");
        assert!(puller.next(puller.wake_at()).is_some());
        assert_eq!(
            puller.answered(answer([5, 7], 7), now_ms, &mut rng).gap,
            Some(Gap { expected: 6, found: 7 })
        );
        assert!(puller.next(puller.wake_at()).is_some());
        let pulled = puller.answered(answer(6..=7, 7), now_ms, &mut rng);
        assert_eq!(pulled, Pulled { rows: rows(6..=7), ..Default::default() });
    }
}

#[test]
fn no_rows_though_some_exist_and_fewer_than_were_taken_are_gaps() {
    let pulled = answered(&mut pulling(3, 7), answer([], 7));
    assert_eq!(pulled.gap, Some(Gap { expected: 4, found: 7 }));
    let pulled = answered(&mut pulling(3, 2), answer([], 2));
    assert_eq!(pulled.gap, Some(Gap { expected: 4, found: 2 }));
}

#[test]
fn a_changed_epoch_begins_at_0() {
    let mut puller = Puller::new(Some(cursor(5)), 100);
    assert_eq!(puller.welcomed("alice", 2, 5), Some(Resync::EpochChanged { before: 1, now: 2 }));
    assert_eq!(puller.next(0).map(|pull| pull.after_seq), Some(0));

    let mut puller = pulling(3, 5);
    let changed = PullResponse { inbox_epoch: 4, ..answer(4..=5, 5) };
    let pulled = answered(&mut puller, changed);
    assert_eq!(pulled.resync, Some(Resync::EpochChanged { before: 1, now: 4 }));
    assert_eq!(pulled.rows, []);
    assert_eq!(puller.next(0).map(|pull| pull.after_seq), Some(0));
}

#[test]
fn another_users_cursor_is_not_used() {
    let mut puller = Puller::new(Some(cursor(5)), 100);
    assert_eq!(puller.welcomed("bob", 1, 5), Some(Resync::OtherUser));
    assert_eq!(puller.next(0).map(|pull| pull.after_seq), Some(0));
}

#[test]
fn expired_rows_are_passed_to_the_floor() {
    let mut puller = pulling(3, 20);
    let pulled = answered(&mut puller, PullResponse { floor_seq: 10, ..answer(10..=20, 20) });
    assert_eq!(pulled.resync, Some(Resync::Expired { after_seq: 3, floor_seq: 10 }));
    assert_eq!(pulled.rows, []);
    assert_eq!(puller.next(0).map(|pull| pull.after_seq), Some(9));
    // At the floor exactly, nothing has expired.
    let pulled = answered(&mut puller, PullResponse { floor_seq: 10, ..answer(10..=20, 20) });
    assert_eq!(pulled, Pulled { rows: rows(10..=20), ..Default::default() });
    assert_eq!(puller.next(0), None);
}

#[test]
fn all_rows_may_have_expired() {
    let mut puller = pulling(3, 20);
    let pulled = answered(&mut puller, PullResponse { floor_seq: 21, ..answer([], 20) });
    assert_eq!(pulled.resync, Some(Resync::Expired { after_seq: 3, floor_seq: 21 }));
    assert_eq!((puller.next(0), puller.position()), (None, Some(&cursor(20))));
}

#[test]
fn a_refused_pull_comes_again_when_the_server_said() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut puller = pulling(3, 5);
    puller.refused(1_000, 700, &mut rng);
    assert_eq!(puller.next(1_699), None);
    assert!((1_700..=2_200).contains(&puller.wake_at()), "{}", puller.wake_at());
    assert!(puller.next(puller.wake_at()).is_some());
}

#[test]
fn an_answer_nobody_asked_for_is_nothing() {
    let mut puller = pulling(3, 5);
    puller.connection_lost();
    assert_eq!(answered(&mut puller, answer([4], 5)), Pulled::default());
    assert_eq!(puller.position(), Some(&cursor(3)));
}

#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    Notify,
    LosePush,
    Pull,
    Refuse,
    Reconnect,
    Expire(u64),
    RollBack(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..30).prop_map(Step::Append),
        3 => Just(Step::Notify),
        2 => Just(Step::LosePush),
        8 => Just(Step::Pull),
        1 => Just(Step::Refuse),
        2 => Just(Step::Reconnect),
        1 => (0u64..20).prop_map(Step::Expire),
        1 => (0u64..20).prop_map(Step::RollBack),
        1 => Just(Step::Restart),
    ]
}

/// An inbox that behaves.
#[derive(Debug)]
struct Inbox {
    epoch: u64,
    latest: u64,
    floor: u64,
}

impl Inbox {
    fn pull(&self, request: &PullRequest) -> PullResponse {
        let first = (request.after_seq + 1).max(self.floor);
        let last = self.latest.min(first + u64::from(request.limit) - 1);
        PullResponse {
            items: rows(first..=last),
            latest_seq: self.latest,
            floor_seq: self.floor,
            has_more: last < self.latest,
            inbox_epoch: self.epoch,
            conversations: Vec::new(),
        }
    }
}

/// A device that checks what it gets.
struct Device {
    puller: Puller,
    /// (epoch, seq) of the last row.
    last: (u64, u64),
}

impl Device {
    fn take(&mut self, pulled: Pulled) -> Result<(), TestCaseError> {
        prop_assert_eq!(pulled.gap, None, "an inbox that behaves has no gap");
        for row in pulled.rows {
            prop_assert_eq!(row.seq, self.last.1 + 1, "contiguous, none twice");
            self.last.1 = row.seq;
        }
        self.resync(pulled.resync);
        Ok(())
    }

    fn resync(&mut self, resync: Option<Resync>) {
        match resync {
            Some(Resync::EpochChanged { now, .. }) => self.last = (now, 0),
            Some(Resync::Expired { floor_seq, .. }) => self.last.1 = floor_seq - 1,
            Some(Resync::OtherUser) | None => {}
        }
    }

    fn welcome(&mut self, inbox: &Inbox) {
        self.puller.connection_lost();
        let resync = self.puller.welcomed("alice", inbox.epoch, inbox.latest);
        self.resync(resync);
    }

    fn pull(&mut self, now_ms: i64, inbox: &Inbox) -> Result<bool, TestCaseError> {
        let Some(request) = self.puller.next(now_ms) else { return Ok(false) };
        let pulled = answered(&mut self.puller, inbox.pull(&request));
        self.take(pulled)?;
        Ok(true)
    }
}

proptest! {
    /// Whatever is lost, refused, expired or rolled back: rows come contiguous, none twice in an epoch, and in the end
    /// the device has everything.
    #[test]
    fn converges_on_an_inbox_that_behaves(page in 1u32..20, seed: u64, steps in proptest::collection::vec(step(), 0..200)) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut inbox = Inbox { epoch: 1, latest: 0, floor: 1 };
        let mut device = Device { puller: Puller::new(None, page), last: (1, 0) };
        device.welcome(&inbox);
        let mut now_ms = 0;
        for step in steps {
            now_ms += 1;
            match step {
                Step::Append(count) => inbox.latest += count,
                Step::Notify => device.puller.told(inbox.latest, false),
                Step::LosePush => {}
                Step::Pull => drop(device.pull(now_ms, &inbox)?),
                Step::Refuse => {
                    if device.puller.next(now_ms).is_some() {
                        device.puller.refused(now_ms, 0, &mut rng);
                    }
                }
                Step::Reconnect => device.welcome(&inbox),
                Step::Expire(count) => inbox.floor = (inbox.floor + count).min(inbox.latest + 1),
                Step::RollBack(count) => {
                    inbox.epoch += 1;
                    inbox.latest = inbox.latest.saturating_sub(count);
                    inbox.floor = inbox.floor.min(inbox.latest + 1);
                    // An epoch changes with the server's start, so every connection is lost.
                    device.welcome(&inbox);
                }
                Step::Restart => {
                    device.puller = Puller::new(device.puller.position().cloned(), page);
                    device.welcome(&inbox);
                }
            }
        }
        // The heartbeat that repairs what was lost.
        device.puller.told(inbox.latest, false);
        let mut pulls = 0;
        while device.pull(now_ms + 1_000_000, &inbox)? {
            pulls += 1;
            prop_assert!(pulls < 10_000, "spins");
        }
        prop_assert_eq!(device.last, (inbox.epoch, inbox.latest));
    }

    /// Whatever a server says: no panic, and every row taken is the next one.
    #[test]
    fn no_answer_breaks_the_rule(
        answers in proptest::collection::vec(
            (proptest::collection::vec(0u64..12, 0..6), 0u64..12, 0u64..12, 1u64..3, any::<u64>()), 0..50)
    ) {
        let mut puller = Puller::new(None, 10);
        puller.welcomed("alice", 1, 5);
        for (seqs, latest_seq, floor_seq, inbox_epoch, told) in answers {
            puller.told(told, true);
            if puller.next(i64::MAX).is_none() {
                puller.welcomed("alice", 1, 5);
                continue;
            }
            let before = puller.seq();
            let pulled = answered(&mut puller, PullResponse {
                items: rows(seqs), latest_seq, floor_seq, inbox_epoch, ..Default::default()
            });
            for (row, expected) in pulled.rows.iter().zip(before + 1..) {
                prop_assert_eq!(row.seq, expected);
            }
        }
    }
}
