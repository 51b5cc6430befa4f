//! The suite of [`Queue`].

use std::{collections::HashSet, sync::Arc};

use futures_util::FutureExt;

use super::{NOW, Place};
use crate::queue::{Appended, DEDUP_MS, Queue, QueueError, Record};

pub(crate) fn record(sender: &str, client_msg_id: &str, body: &'static str) -> Record {
    Record {
        message_id: 0,
        conversation_id: 9,
        sender: sender.to_owned(),
        peer: "peer".to_owned(),
        client_msg_id: client_msg_id.to_owned(),
        r#type: "text".to_owned(),
        body: body.into(),
        at_ms: NOW,
    }
}

async fn append(queue: &Arc<dyn Queue>, record: Record) -> Result<Appended, QueueError> {
    queue.append(record)?.await
}

async fn accept(queue: &Arc<dyn Queue>, record: Record) -> Appended {
    append(queue, record).await.expect("accepted")
}

pub(super) async fn check_offsets_ids_and_reads(place: &dyn Place) {
    let queue = place.queue(4).expect("opens");
    let senders = ["a", "b", "c", "d", "e", "f"];
    let mut pending = Vec::new();
    for n in 0..20 {
        for sender in senders {
            pending.push((sender, n, queue.append(record(sender, &format!("c{n}"), "x")).expect("room")));
        }
    }
    let mut ids = HashSet::new();
    let mut partitions = std::collections::HashMap::new();
    let mut highest = 0;
    for (sender, _, pending) in pending {
        let appended = pending.await.expect("accepted");
        assert!(!appended.duplicate && ids.insert(appended.message_id));
        assert!(appended.message_id > highest, "ids grow in the order of appends");
        highest = appended.message_id;
        assert_eq!(*partitions.entry(sender).or_insert(appended.partition), appended.partition);
    }
    let heads = queue.heads();
    assert_eq!(heads.iter().sum::<u64>(), 120);
    for (partition, head) in (0..).zip(&heads) {
        let mut after = 0;
        let mut last = std::collections::HashMap::new();
        while after < *head {
            let records = queue.read(partition, after, 7).await.expect("readable");
            assert!((1..=7).contains(&records.len()));
            for stored in records {
                assert_eq!(stored.offset, after + 1, "contiguous");
                after = stored.offset;
                let record = stored.record.expect("decodes");
                let n: i64 = record.client_msg_id[1..].parse().expect("a number");
                let before = last.insert(record.sender.clone(), n).unwrap_or(-1);
                assert_eq!(n, before + 1, "a sender's order");
                assert!(ids.contains(&record.message_id));
            }
        }
        assert!(queue.read(partition, *head, 7).await.expect("readable").is_empty());
    }
}

pub(super) async fn check_a_repeat_is_answered_as_before(place: &dyn Place) {
    let queue = place.queue(4).expect("opens");
    let first = accept(&queue, record("a", "c", "x")).await;
    let later = Record { at_ms: NOW + 5_000, ..record("a", "c", "x") };
    assert_eq!(accept(&queue, later.clone()).await, Appended { duplicate: true, ..first.clone() });
    drop(queue);
    let queue = place.queue(4).expect("opens");
    assert_eq!(accept(&queue, later).await, Appended { duplicate: true, ..first.clone() });
    assert_eq!(queue.heads().iter().sum::<u64>(), 1);
    let other = accept(&queue, record("b", "c", "x")).await;
    assert!(!other.duplicate, "another sender's name is another name");
}

pub(super) async fn check_repeats_in_one_batch(place: &dyn Place) {
    let queue = place.queue(4).expect("opens");
    let pending: Vec<_> = (0..200).map(|_| queue.append(record("a", "c", "x")).expect("room")).collect();
    let mut answers = Vec::new();
    for pending in pending {
        answers.push(pending.await.expect("accepted"));
    }
    assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
    assert!(answers.iter().all(|answer| answer.message_id == answers[0].message_id));
    assert_eq!(queue.heads().iter().sum::<u64>(), 1);
}

pub(super) async fn check_the_same_name_for_another_message_is_refused(place: &dyn Place) {
    let queue = place.queue(4).expect("opens");
    accept(&queue, record("a", "c", "x")).await;
    let others = [
        record("a", "c", "y"),
        Record { r#type: "image".to_owned(), ..record("a", "c", "x") },
        Record { conversation_id: 10, ..record("a", "c", "x") },
    ];
    for other in others {
        assert!(matches!(append(&queue, other).await, Err(QueueError::Conflict)));
    }
    assert_eq!(queue.heads().iter().sum::<u64>(), 1);
}

pub(super) async fn check_a_name_is_free_again_after_a_day(place: &dyn Place) {
    let queue = place.queue(4).expect("opens");
    let at = |at_ms| Record { at_ms, ..record("a", "c", "x") };
    let first = accept(&queue, at(NOW + 1)).await;
    assert!(
        accept(&queue, at(NOW + DEDUP_MS)).await.duplicate,
        "a millisecond short of a day, in the next window"
    );
    let again = accept(&queue, at(NOW + 1 + DEDUP_MS)).await;
    assert!(!again.duplicate && again.message_id > first.message_id);
    assert_eq!(accept(&queue, at(NOW + 2 + DEDUP_MS)).await.message_id, again.message_id);
}

pub(super) async fn check_a_clock_that_steps_back(place: &dyn Place) {
    let queue = place.queue(4).expect("opens");
    let at = |name: &str, at_ms| Record { at_ms, ..record("a", name, "x") };
    let first = accept(&queue, at("c1", NOW)).await;
    let second = accept(&queue, at("c2", NOW - 3 * DEDUP_MS)).await;
    assert!(second.message_id > first.message_id);
    assert!(
        accept(&queue, at("c1", NOW - 3 * DEDUP_MS)).await.duplicate,
        "names are remembered all the same"
    );
    let again = accept(&queue, at("c2", NOW - 3 * DEDUP_MS + 1)).await;
    assert!(
        again.duplicate && again.message_id == second.message_id,
        "and so are those accepted after the step"
    );
    drop(queue);
    let queue = place.queue(4).expect("opens");
    let third = accept(&queue, at("c3", NOW - 9 * DEDUP_MS)).await;
    assert!(third.message_id > second.message_id, "also across a restart");
    for name in ["c1", "c2", "c3"] {
        assert!(accept(&queue, at(name, NOW - 9 * DEDUP_MS)).await.duplicate, "{name}");
    }
}

pub(super) async fn check_reopening_goes_on(place: &dyn Place) {
    let mut highest = 0;
    for round in 0..3 {
        let queue = place.queue(2).expect("opens");
        for n in 0..10 {
            let appended = accept(&queue, record("a", &format!("{round}-{n}"), "x")).await;
            assert_eq!(appended.offset, round * 10 + n + 1);
            assert!(appended.message_id > highest);
            highest = appended.message_id;
        }
    }
}

pub(super) async fn check_trim_and_reopening(place: &dyn Place) {
    let queue = place.queue(1).expect("opens");
    for n in 0..20 {
        accept(&queue, record("a", &format!("{n}"), "x")).await;
    }
    queue.trim(0, 12).await.expect("trims");
    queue.trim(0, 5).await.expect("behind is nothing");
    let left = queue.read(0, 0, 100).await.expect("readable");
    assert_eq!(left.iter().map(|s| s.offset).collect::<Vec<_>>(), (13..=20).collect::<Vec<_>>());
    queue.trim(0, 20).await.expect("trims");
    assert!(queue.read(0, 0, 100).await.expect("readable").is_empty());
    drop(queue);
    let queue = place.queue(1).expect("opens");
    assert_eq!(queue.heads(), [20]);
    assert_eq!(accept(&queue, record("a", "next", "x")).await.offset, 21);
    assert!(accept(&queue, record("a", "3", "x")).await.duplicate, "trimmed records are still remembered");
}

pub(super) async fn check_another_partition_count(place: &dyn Place) {
    let queue = place.queue(4).expect("opens");
    let appended = accept(&queue, record("a", "c", "x")).await;
    drop(queue);
    let refused = place.queue(5).map(|_| ()).expect_err("records wait");
    assert!(matches!(refused, QueueError::Partitions { stored: 4, asked: 5 }), "{refused}");
    let queue = place.queue(4).expect("the stored count opens");
    queue.trim(appended.partition, appended.offset).await.expect("trims");
    drop(queue);
    let queue = place.queue(5).expect("drained");
    assert!(accept(&queue, record("a", "c2", "x")).await.message_id > appended.message_id);
}

pub(super) async fn check_wait(place: &dyn Place) {
    let queue = place.queue(2).expect("opens");
    let marks = [0, 0];
    assert!(queue.wait(&marks).now_or_never().is_none(), "nothing is there");
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.wait(&[0, 0]).await }
    });
    accept(&queue, record("a", "c", "x")).await;
    tokio::time::timeout(std::time::Duration::from_secs(10), waiting)
        .await
        .expect("woken")
        .expect("no panic");
    assert!(queue.wait(&marks).now_or_never().is_some(), "it is there");
    assert!(queue.wait(&queue.heads()).now_or_never().is_none(), "everything is known");
}

pub(super) async fn check_purge_forgets_only_old_names(place: &dyn Place) {
    let queue = place.queue(2).expect("opens");
    for n in 0..10 {
        accept(&queue, record("a", &format!("old{n}"), "x")).await;
    }
    drop(queue);
    // What was accepted before a start becomes rows after it.
    let queue = place.queue(2).expect("opens");
    let later = NOW + 3 * DEDUP_MS;
    let mut gone = 0;
    crate::tests::until("the old names are rows, and gone", async || {
        assert_eq!(queue.purge(NOW + DEDUP_MS, 100).await.expect("purges"), 0, "too young");
        let some = queue.purge(later, 4).await.expect("purges");
        assert!(some <= 4, "bounded");
        gone += some;
        (gone == 10).then_some(())
    })
    .await;
    let fresh = Record { at_ms: later, ..record("a", "fresh", "x") };
    accept(&queue, fresh.clone()).await;
    assert_eq!(queue.purge(later, 100).await.expect("purges"), 0);
    assert!(accept(&queue, fresh).await.duplicate);
}

pub(super) async fn check_recall_enters_nothing(place: &dyn Place) {
    let queue = place.queue(4).expect("opens");
    let recall = async |record| queue.recall(record).expect("room").await;
    assert_eq!(recall(record("a", "c", "x")).await.expect("answered"), None);
    // Not waited for: it is entered before the recall is looked at.
    let pending = queue.append(record("a", "c", "x")).expect("room");
    let recalled = recall(record("a", "c", "x")).await.expect("answered");
    let appended = pending.await.expect("accepted");
    assert_eq!(recalled, Some(Appended { duplicate: true, ..appended }));
    assert!(matches!(recall(record("a", "c", "y")).await, Err(QueueError::Conflict)));
    assert_eq!(recall(record("b", "c", "x")).await.expect("answered"), None);
    assert_eq!(queue.heads().iter().sum::<u64>(), 1);
}

pub(super) async fn check_close(place: &dyn Place) {
    let queue = place.queue(2).expect("opens");
    let pending: Vec<_> =
        (0..50).map(|n| queue.append(record("a", &format!("{n}"), "x")).expect("room")).collect();
    queue.close().await;
    for pending in pending {
        pending.await.expect("what was in flight is answered");
    }
    assert!(matches!(queue.append(record("a", "late", "x")), Err(QueueError::Closed)));
    drop(queue);
    assert_eq!(place.queue(2).expect("opens").heads().iter().sum::<u64>(), 50);
}
