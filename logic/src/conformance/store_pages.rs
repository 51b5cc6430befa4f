//! The suite of [`Store`]: pages, and what expires.

use std::sync::Arc;

use berth_proto::client;

use super::{
    NOW, Place,
    store::{ALL, Ingest, inbox, texts},
};
use crate::store::{Page, Store};

pub(super) async fn check_pull_pages(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    let body = "x".repeat(1000);
    for _ in 0..25 {
        ingest.send("alice", "bob", &body).await;
    }
    let pull = async |after, rows, bytes| {
        let pulled = store.pull("bob", after, Page { rows, bytes }).await.expect("pulls");
        assert_eq!((pulled.latest_seq, pulled.floor_seq, pulled.inbox_epoch), (25, 1, store.inbox_epoch()));
        let seqs: Vec<u64> = pulled.items.iter().map(|item| item.seq).collect();
        (seqs, pulled.has_more)
    };
    assert_eq!(pull(0, 10, usize::MAX).await, ((1..=10).collect(), true));
    assert_eq!(pull(10, 10, usize::MAX).await, ((11..=20).collect(), true));
    assert_eq!(pull(20, 10, usize::MAX).await, ((21..=25).collect(), false));
    assert_eq!(pull(15, 10, usize::MAX).await, ((16..=25).collect(), false));
    assert_eq!(pull(25, 10, usize::MAX).await, (vec![], false));
    assert_eq!(pull(u64::MAX, 10, usize::MAX).await, (vec![], false), "ahead of the newest");
    assert_eq!(pull(3, 10, 3500).await, (vec![4, 5, 6], true), "bounded by bytes");
    assert_eq!(pull(3, 10, 1).await, (vec![4], true), "never none while there are rows");
    let nobody = store.pull("nobody", 0, ALL).await.expect("pulls");
    assert_eq!((nobody.items.len(), nobody.latest_seq, nobody.floor_seq, nobody.has_more), (0, 0, 1, false));
}

pub(super) async fn check_history_pages(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    for n in 1..=20 {
        let (from, to) = if n % 2 == 0 { ("alice", "bob") } else { ("bob", "alice") };
        ingest.send(from, to, &"y".repeat(1000)).await;
    }
    let conversation_id = store.direct("alice", "bob", NOW).await.expect("known");
    let history = async |after_seq, before_seq, rows, bytes| {
        let request = client::HistoryRequest { conversation_id, after_seq, before_seq, limit: 0 };
        let found =
            store.history("bob", &request, Page { rows, bytes }).await.expect("reads").expect("a member");
        let seqs: Vec<u64> = found.messages.iter().map(|message| message.conversation_seq).collect();
        (seqs, found.has_more)
    };
    assert_eq!(history(0, 0, 5, usize::MAX).await, ((16..=20).collect(), true), "the newest");
    assert_eq!(history(0, 16, 5, usize::MAX).await, ((11..=15).collect(), true));
    assert_eq!(history(0, 6, 5, usize::MAX).await, ((1..=5).collect(), false));
    assert_eq!(history(0, 1, 5, usize::MAX).await, (vec![], false));
    assert_eq!(history(0, 900, 2, usize::MAX).await, (vec![19, 20], true));
    assert_eq!(history(3, 0, 5, usize::MAX).await, ((4..=8).collect(), true));
    assert_eq!(history(15, 0, 5, usize::MAX).await, ((16..=20).collect(), false));
    assert_eq!(history(20, 0, 5, usize::MAX).await, (vec![], false));
    assert_eq!(history(u64::MAX, 0, 5, usize::MAX).await, (vec![], false));
    assert_eq!(history(0, 0, 5, 2500).await, (vec![19, 20], true), "bounded by bytes: the newest of them");
    assert_eq!(history(3, 0, 5, 1).await, (vec![4], true));
    for (user, id) in [("mallory", conversation_id), ("bob", conversation_id + 1_000_000)] {
        let request = client::HistoryRequest { conversation_id: id, ..Default::default() };
        assert_eq!(store.history(user, &request, ALL).await.expect("reads"), None);
    }
}

pub(super) async fn check_conversation_pages(place: &dyn Place) {
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    for n in 0..12 {
        ingest.send(&format!("u{n:02}"), "bob", &"z".repeat(1000)).await;
    }
    ingest.send("bob", "u03", "last").await;
    let expected: Vec<String> =
        [3, 11, 10, 9, 8, 7, 6, 5, 4, 2, 1, 0].iter().map(|n| format!("u{n:02}")).collect();
    for page in [
        Page { rows: 5, bytes: usize::MAX },
        Page { rows: 100, bytes: 3500 },
        Page { rows: 12, bytes: 1 },
        ALL,
    ] {
        let (listed, pages) = all_conversations(&store, "bob", page).await;
        let peers: Vec<String> = listed.iter().map(|c| c.peer_id.clone()).collect();
        assert_eq!(peers, expected, "{page:?}: newest first, each once");
        assert_eq!(pages, if page == ALL { 1 } else { pages.max(3) });
        let newest = listed[0].last_message.clone().expect("has one");
        assert_eq!(
            (listed[0].last_seq, newest.body.as_ref(), newest.from.as_str()),
            (2, &b"last"[..], "bob")
        );
        assert_eq!((listed[0].kind.as_str(), listed[0].unread), ("direct", 1));
    }
    let exact = Page { rows: 12, bytes: usize::MAX };
    assert_eq!(
        store.conversations("bob", None, exact).await.expect("lists").1,
        None,
        "no page after the last row"
    );
}

async fn all_conversations(
    store: &Arc<dyn Store>,
    user: &str,
    page: Page,
) -> (Vec<client::Conversation>, usize) {
    let (mut listed, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let (response, next) = store.conversations(user, cursor, page).await.expect("lists");
        assert_eq!(response.total_unread, 12);
        listed.extend(response.conversations);
        pages += 1;
        if next.is_none() {
            return (listed, pages);
        }
        cursor = next;
    }
}

pub(super) async fn check_sweep(place: &dyn Place) {
    const HOUR: i64 = 3_600_000;
    let store = place.store();
    let mut ingest = Ingest::new(&store, 0);
    for hour in 0..10 {
        for to in ["bob", "carol"] {
            let record = ingest.record("alice", to, &hour.to_string()).await;
            let at = NOW + hour * HOUR;
            let committed = store.commit(0, vec![record], at).await.expect("commits");
            store.spread(committed.unspread, at).await.expect("spreads");
        }
    }
    let swept = store.sweep(None, NOW, 10, 100).await.expect("sweeps");
    assert_eq!((swept.rows, swept.next), (0, None), "nothing is older");
    // Four hours' rows: 8 of alice (she has both conversations), 4 of each other. A step stays on a user while he has more
    // and its budget of 2 x 3 rows lasts: alice 6; alice 2, bob 4; carol 4; nobody.
    let mut rows = 0;
    let mut after = None;
    for _ in 0..4 {
        let swept = store.sweep(after, NOW + 4 * HOUR, 2, 3).await.expect("sweeps");
        assert!(swept.rows <= 6);
        rows += swept.rows;
        after = swept.next;
    }
    assert_eq!((rows, after), (16, None));
    let pulled = store.pull("bob", 0, ALL).await.expect("pulls");
    assert_eq!((pulled.floor_seq, pulled.latest_seq, pulled.has_more), (5, 10, false));
    assert_eq!(pulled.items.iter().map(|item| item.seq).collect::<Vec<_>>(), (5..=10).collect::<Vec<_>>());
    store.sweep(None, NOW + 100 * HOUR, 10, 100).await.expect("sweeps");
    let pulled = store.pull("bob", 4, ALL).await.expect("pulls");
    assert_eq!(
        (pulled.floor_seq, pulled.latest_seq, pulled.items.len(), pulled.has_more),
        (11, 10, 0, false)
    );
    ingest.send("alice", "bob", "fresh").await;
    let pulled = store.pull("bob", 10, ALL).await.expect("pulls");
    assert_eq!((pulled.items.len(), pulled.items[0].seq), (1, 11));
    let id = store.direct("alice", "bob", NOW).await.expect("known");
    let request = client::HistoryRequest { conversation_id: id, ..Default::default() };
    let kept = store.history("bob", &request, ALL).await.expect("reads").expect("a member");
    assert_eq!(kept.messages.len(), 11, "timelines keep the bodies");
    // A user who never had anything expire is untouched.
    ingest.send("dave", "erin", "x").await;
    assert_eq!(texts(&store, "erin").await, ["x"]);
    assert_eq!(inbox(&store, "dave").await.len(), 1);
}
