//! The suite of [`Store`]: revocations.

use std::sync::Arc;

use super::{NOW, Place};
use crate::store::{Revocation, Store};

fn of(user: &str, device: &str, not_before_ms: i64, changed_ms: i64) -> Revocation {
    Revocation {
        user: user.to_owned(),
        device: device.to_owned(),
        not_before_ms,
        reason: format!("reason {not_before_ms}"),
        changed_ms,
    }
}

async fn revoke(store: &Arc<dyn Store>, revocation: Revocation) -> Revocation {
    store.revoke(revocation).await.expect("writes")
}

/// From when on credentials of each are good; 0: all are.
async fn good_from<const N: usize>(store: &Arc<dyn Store>, who: [(&str, &str); N]) -> [i64; N] {
    let found = store.revoked(&who).await;
    assert_eq!(found.len(), N);
    let mut found = found.into_iter().map(|one| one.expect("reads").map_or(0, |one| one.not_before_ms));
    std::array::from_fn(|_| found.next().expect("as many"))
}

pub(super) async fn check_revoke_and_restore(place: &dyn Place) {
    let store = place.store();
    let who = [("alice", "d1"), ("alice", "d2"), ("bob", "d1"), ("alic", "ed1")];
    assert_eq!(good_from(&store, who).await, [0; 4]);
    let phone = revoke(&store, of("alice", "d1", 2_000, NOW)).await;
    assert_eq!(phone, of("alice", "d1", 2_000, NOW));
    assert_eq!(good_from(&store, who).await, [2_000, 0, 0, 0]);
    let all = revoke(&store, of("alice", "", 5_000, NOW + 1)).await;
    assert_eq!(good_from(&store, who).await, [5_000, 5_000, 0, 0], "the one that voids more");
    assert_eq!(store.revocations("alice").await.expect("reads"), [all, phone]);
    assert!(store.revocations("bob").await.expect("reads").is_empty());

    // An earlier moment takes nothing back, and a clock that went back makes no older change.
    let again = revoke(&store, of("alice", "", 4_000, NOW - 60_000)).await;
    assert_eq!((again.not_before_ms, again.changed_ms), (5_000, NOW + 2));
    let later = revoke(&store, of("alice", "", 6_000, NOW + 9)).await;
    assert_eq!((later.not_before_ms, later.changed_ms), (6_000, NOW + 9));

    let restored = store.restore("alice", Some("d1"), NOW).await.expect("writes");
    assert_eq!((restored.in_force, restored.now.len()), (1, 1));
    assert_eq!((restored.now[0].device.as_str(), restored.now[0].not_before_ms), ("d1", 0));
    assert!(restored.now[0].changed_ms > NOW, "later than what it takes back");
    let again = store.restore("alice", Some("d1"), NOW).await.expect("writes");
    assert_eq!((again.in_force, again.now[0].not_before_ms), (0, 0), "once");
    assert!(again.now[0].changed_ms > restored.now[0].changed_ms, "and told once more");
    // Whoever carries them may know more than this store.
    let lost = store.restore("carol", Some(""), NOW).await.expect("writes");
    assert_eq!(
        (lost.in_force, lost.now),
        (0, vec![Revocation { reason: String::new(), ..of("carol", "", 0, NOW) }])
    );
    assert_eq!(
        store
            .recent_revocations(NOW, 1_000)
            .await
            .expect("reads")
            .found
            .iter()
            .filter(|one| one.user == "carol")
            .count(),
        1
    );
    assert!(store.restore("dave", None, NOW).await.expect("reads").now.is_empty());
    revoke(&store, of("alice", "d2", 7_000, NOW)).await;
    let all = store.restore("alice", None, NOW).await.expect("writes");
    assert_eq!((all.in_force, all.now.len()), (2, 2), "his own and the device's");
    assert_eq!(good_from(&store, who).await, [0; 4]);
    assert!(store.revocations("alice").await.expect("reads").is_empty());
    let after = revoke(&store, of("alice", "d1", 1_000, NOW)).await;
    assert_eq!(after.not_before_ms, 1_000, "what was taken back does not come back");
    assert!(after.changed_ms > again.now[0].changed_ms);
}

pub(super) async fn check_recent_revocations(place: &dyn Place) {
    let store = place.store();
    for n in 1..=5 {
        revoke(&store, of(&format!("user-{n}"), "", 1_000, NOW + n)).await;
    }
    revoke(&store, of("user-2", "", 2_000, NOW + 6)).await;
    store.restore("user-3", None, NOW + 7).await.expect("writes");
    let recent = async |since_ms, limit| {
        let found = store.recent_revocations(since_ms, limit).await.expect("reads");
        assert_eq!(found.damaged, 0);
        found.found.into_iter().map(|one| (one.user, one.changed_ms - NOW)).collect::<Vec<_>>()
    };
    let of = |n: i64, at: i64| (format!("user-{n}"), at);
    assert_eq!(recent(NOW, 10).await, [of(3, 7), of(2, 6), of(5, 5), of(4, 4), of(1, 1)], "each once");
    assert_eq!(recent(NOW, 2).await, [of(3, 7), of(2, 6)]);
    assert_eq!(recent(NOW + 5, 10).await, [of(3, 7), of(2, 6), of(5, 5)]);
    assert!(recent(NOW, 0).await.is_empty() && recent(NOW + 8, 10).await.is_empty());
}

pub(super) async fn check_reopening_keeps_revocations(place: &dyn Place) {
    let store = place.store();
    revoke(&store, of("alice", "d1", 2_000, NOW)).await;
    store.sync().await.expect("syncs");
    drop(store);
    let store = place.store();
    assert_eq!(good_from(&store, [("alice", "d1"), ("alice", "d2")]).await, [2_000, 0]);
    assert_eq!(store.recent_revocations(0, 10).await.expect("reads").found, [of("alice", "d1", 2_000, NOW)]);
}
