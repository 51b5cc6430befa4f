//! Records merge alike in whatever order they come, within bounds, and what is missing is told by digests.

use proptest::prelude::*;

use super::*;

fn record(kind: u32, key: &str, version: u64, expires_at_ms: i64, value: &[u8]) -> CarriedRecord {
    CarriedRecord { kind, key: key.to_owned(), version, expires_at_ms, value: value.to_vec() }
}

fn any_record() -> impl Strategy<Value = CarriedRecord> {
    let expiry = prop_oneof![Just(0), 1i64..100];
    (0u32..10, 0u8..4, 0u64..3, expiry, prop::collection::vec(any::<u8>(), 0..3)).prop_map(
        |(kind, key, version, expires, value)| record(kind, &key.to_string(), version, expires, &value),
    )
}

fn held(store: &Store) -> Vec<CarriedRecord> {
    store.all().cloned().collect()
}

proptest! {
    #[test]
    fn the_order_does_not_matter_and_nothing_is_news_twice(
        (records, shuffled) in prop::collection::vec(any_record(), 0..40)
            .prop_flat_map(|records| (Just(records.clone()), Just(records).prop_shuffle())),
        now_ms in 0i64..100,
    ) {
        let (mut one, mut other) = (Store::default(), Store::default());
        one.merge(records.clone(), now_ms);
        for record in shuffled {
            other.merge(vec![record], now_ms);
        }
        prop_assert_eq!(held(&one), held(&other));
        prop_assert_eq!(one.digests(), other.digests());
        prop_assert!(one.merge(records, now_ms).is_empty());
    }

    #[test]
    fn two_agree_after_one_exchange_whatever_was_lost(
        ours in prop::collection::vec(any_record(), 0..20),
        theirs in prop::collection::vec(any_record(), 0..20),
        now_ms in 0i64..100,
    ) {
        let (mut one, mut other) = (Store::default(), Store::default());
        one.merge(ours, now_ms);
        other.merge(theirs, now_ms);
        // A clock that goes on makes both forget the same.
        one.expire(now_ms);
        other.expire(now_ms);
        let kinds: Vec<u32> = (1..=KINDS as u32).collect();
        for whole in one.whole(&kinds) {
            let said = Said::of(&whole).expect("all of a kind");
            other.merge(whole.records, now_ms);
            one.merge(other.missing(&said), now_ms);
        }
        prop_assert_eq!(held(&one), held(&other));
        prop_assert_eq!(one.digests(), other.digests());
    }

    #[test]
    fn what_expired_is_gone_and_leaves_no_trace(records in prop::collection::vec(any_record(), 0..40)) {
        let mut store = Store::default();
        store.merge(records, 0);
        store.expire(100);
        prop_assert!(held(&store).iter().all(|record| record.expires_at_ms == 0));
        let mut fresh = Store::default();
        fresh.merge(held(&store), 0);
        prop_assert_eq!(fresh.digests(), store.digests());
    }
}

#[test]
fn a_newer_version_replaces_and_an_older_does_not() {
    let mut store = Store::default();
    assert_eq!(store.merge(vec![record(1, "", 2, 0, b"two")], 0).len(), 1);
    assert!(store.merge(vec![record(1, "", 1, 0, b"a much longer one")], 0).is_empty());
    assert_eq!(store.merge(vec![record(1, "", 3, 0, b"")], 0).len(), 1);
    assert_eq!(store.get(1, "").map(|record| record.version), Some(3));
}

#[test]
fn a_record_with_more_fields_wins_over_the_same_without_them() {
    // An older role that knows fewer fields must not take them away from the others.
    let mut store = Store::default();
    store.merge(vec![record(3, "gw", 1, 0, &[1, 1, 9])], 0);
    assert!(store.merge(vec![record(3, "gw", 1, 0, &[2, 2])], 0).is_empty());
}

#[test]
fn too_many_drive_out_those_that_expire_first() {
    let mut store = Store::default();
    let many = (0..RECORDS_EACH as i64).map(|n| record(4, &n.to_string(), 1, 1_000 + n, b""));
    store.merge(many.collect(), 0);
    assert!(store.merge(vec![record(4, "soon", 1, 999, b"")], 0).is_empty(), "it would be the first to go");
    assert_eq!(store.merge(vec![record(4, "late", 1, 0, b"")], 0).len(), 1);
    assert_eq!((store.count(4), store.get(4, "0")), (RECORDS_EACH, None));

    let mut store = Store::default();
    let large = vec![7; VALUE];
    let eight = (1..=8).map(|n| record(1, &n.to_string(), 1, n, &large));
    store.merge(eight.collect(), 0);
    assert!(store.get(1, "1").is_none() && store.get(1, "2").is_some(), "with their keys they are too large");
    assert!(store.merge(vec![record(1, "c", 1, 0, &vec![7; VALUE + 1])], 0).is_empty());
    assert_eq!(store.count(1), 7, "what is refused drives nobody out");
}

#[test]
fn records_read_as_they_were_made_and_others_are_carried_unread() {
    let revocation = Revocation { user_id: "alice".into(), device_id: "d1".into(), ..Default::default() };
    for made in [
        Record::Policy(PolicyText { version: 3, text: "version = 3".into(), ..Default::default() }),
        Record::RuleStop(RuleStop { rule_id: "canary".into(), stopped: true, ..Default::default() }),
        Record::Drain(Drain { gateway_id: "gw-1".into(), active: true, ..Default::default() }),
        Record::Revocation(revocation),
    ] {
        assert_eq!(Record::read(&made.carried(1, 0)), Some(made));
    }
    let unknown = record(8, "k", 1, 0, b"\xff");
    assert_eq!(Record::read(&unknown), None);
    assert_eq!(Store::default().merge(vec![unknown], 0).len(), 1);
    assert_eq!(
        Store::default().merge(vec![record(9, "k", 1, 0, b""), record(0, "k", 1, 0, b"")], 0).len(),
        0
    );
    assert_eq!(Record::read(&record(3, "gw-1", 1, 0, b"\xff")), None);
    let mut store = Store::default();
    store.merge(vec![record(1, "", 1, 0, b"a"), record(8, "k", 1, 9, b"b")], 0);
    assert_eq!(from_bytes(&to_bytes(held(&store))).expect("reads"), held(&store));
    assert!(from_bytes(b"\xff\xff\xff").is_err());
}

#[test]
fn a_revocation_voids_what_was_issued_before_it_to_that_user_or_device() {
    let mut store = Store::default();
    let mut carry = |user: &str, device: &str, not_before_ms, version| {
        let (user_id, device_id) = (user.to_owned(), device.to_owned());
        let revoked = Revocation { user_id, device_id, not_before_ms, reason: String::new() };
        store.merge(vec![Record::Revocation(revoked).carried(version, 0)], 0);
    };
    carry("alice", "", 5_000, 1);
    carry("bob", "d1", 7_000, 1);
    carry("carol", "", 9_000, 1);
    carry("carol", "", 0, 2);
    assert_eq!(store.revoked().count(), 2);
    let is_void = |user: &str, device: &str, issued| store.revoked().find(user, device, issued).is_some();
    for device in ["d1", "d2"] {
        assert!(is_void("alice", device, 4_999) && is_void("alice", device, 0));
        assert!(!is_void("alice", device, 5_000));
        assert!(!is_void("carol", device, 0), "restored");
    }
    assert!(is_void("bob", "d1", 6_999) && !is_void("bob", "d1", 7_000));
    assert!(!is_void("bob", "d2", 0) && !is_void("bo", "bd1", 0));
}

/// What asking the store itself would say.
fn looked_up(store: &Store, user: &str, device: &str, issued_at_ms: i64) -> bool {
    [String::new(), device.to_owned()].iter().any(|device| {
        let record = store.get(kind::REVOCATION, &revocation_key(user, device)).and_then(Record::read);
        matches!(record, Some(Record::Revocation(revoked)) if issued_at_ms < revoked.not_before_ms)
    })
}

proptest! {
    #[test]
    fn the_index_of_what_is_revoked_says_what_the_store_says(
        revoked in prop::collection::vec((0u8..3, 0u8..3, 0i64..4, 0u64..4, 0i64..100), 0..40),
        now_ms in 0i64..100,
    ) {
        let mut store = Store::default();
        let name = |n: u8| if n == 0 { String::new() } else { n.to_string() };
        for (user, device, not_before_ms, version, expires_at_ms) in revoked {
            let (user_id, device_id) = (format!("u{user}"), name(device));
            let record = Revocation { user_id, device_id, not_before_ms, reason: String::new() };
            store.merge(vec![Record::Revocation(record).carried(version, expires_at_ms)], 0);
        }
        store.expire(now_ms);
        let index = store.revoked();
        for (user, device, issued) in (0..3).flat_map(|u| (1..3).flat_map(move |d| (0..4).map(move |i| (u, d, i)))) {
            let (user, device) = (format!("u{user}"), name(device));
            let found = index.find(&user, &device, issued).is_some();
            prop_assert_eq!(found, looked_up(&store, &user, &device, issued));
        }
        store.expire(100);
        let left = store.of_kind(kind::REVOCATION).filter_map(Record::read);
        let in_force = left.filter(|one| matches!(one, Record::Revocation(one) if one.not_before_ms > 0));
        prop_assert_eq!(index.count(), in_force.count());
    }
}

#[test]
fn the_index_loses_what_there_is_no_room_for() {
    let mut store = Store::default();
    let many = (0..=RECORDS_EACH as i64).map(|n| {
        let revoked = Revocation { user_id: n.to_string(), not_before_ms: 1, ..Default::default() };
        Record::Revocation(revoked).carried(1, 1_000 + n)
    });
    store.merge(many.collect(), 0);
    assert_eq!((store.revoked().count(), store.evicted()), (RECORDS_EACH, [0, 0, 0, 1, 0]));
    assert!(store.revoked().find("0", "d", 0).is_none() && store.revoked().find("1", "d", 0).is_some());
}

/// All revocations of an hour expire together: whoever is named, the newest is the last that may be lost.
#[test]
fn of_those_that_expire_together_the_oldest_goes() {
    let revocation = |n: u64, version| {
        let revoked = Revocation { user_id: format!("u{n:06}"), not_before_ms: 1, ..Default::default() };
        Record::Revocation(revoked).carried(version, 1_000)
    };
    let (each, newest) = (RECORDS_EACH as u64, revocation(0, 9_000_000));
    let older = || (1..=each).map(|n| revocation(n, 1 + n));
    let mut last = Store::default();
    last.merge(older().collect(), 0);
    assert_eq!(last.merge(vec![newest.clone()], 0), std::slice::from_ref(&newest), "it is news");
    let mut first = Store::default();
    first.merge(std::iter::once(newest).chain(older()).collect(), 0);
    for store in [&last, &first] {
        assert!(store.revoked().find("u000000", "d", 0).is_some());
        assert!(
            store.revoked().find("u000001", "d", 0).is_none()
                && store.revoked().find("u000002", "d", 0).is_some()
        );
    }
    assert_eq!(last.digests(), first.digests(), "in whatever order they came");
}

#[test]
fn a_newer_record_is_not_forgotten_before_the_older_one() {
    let (older, newer) = (record(3, "gw", 1, 90, b"old"), record(3, "gw", 2, 10, b"new"));
    for both in [[&older, &newer], [&newer, &older]] {
        let mut store = Store::default();
        let news: Vec<_> = both.into_iter().flat_map(|one| store.merge(vec![one.clone()], 0)).collect();
        assert_eq!(news.last(), Some(&record(3, "gw", 2, 90, b"new")), "others are told how long it lasts");
        store.expire(89);
        assert!(store.merge(vec![older.clone()], 89).is_empty(), "the older one does not come back");
        store.expire(90);
        assert_eq!(store.count(3), 0);
    }
}

#[test]
fn what_is_told_whole_is_told_in_messages_of_a_bounded_size() {
    let large = vec![7; VALUE - 1_000];
    let mut store = Store::default();
    store.merge((0..5).map(|n| record(1, &n.to_string(), 1, 0, &large)).collect(), 0);
    let messages = store.whole(&[1, 2]);
    assert_eq!(messages.iter().map(|message| message.records.len()).collect::<Vec<_>>(), [2, 2, 1, 0]);
    let spans: Vec<_> = messages.iter().map(|m| (m.whole, m.from.as_str(), m.until.as_str())).collect();
    assert_eq!(spans, [(2, "", "2"), (2, "2", "4"), (2, "4", ""), (4, "", "")]);
    // Each is answered for its keys alone.
    let mut other = Store::default();
    other.merge(vec![record(1, "33", 1, 0, b"theirs"), record(1, "9", 1, 0, b"theirs")], 0);
    let answers: Vec<_> = messages
        .into_iter()
        .map(|message| {
            let said = Said::of(&message).expect("whole");
            other.merge(message.records, 0);
            other.missing(&said).into_iter().map(|record| record.key).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(answers, [vec![], vec!["33".to_owned()], vec!["9".to_owned()], vec![]]);
    assert_eq!(
        pieces(vec![record(1, "", 1, 0, b""); 2 * PIECE + 1]).map(|piece| piece.len()).collect::<Vec<_>>(),
        [PIECE, PIECE, 1]
    );
}
