//! The log taken apart, on a disk that fails: no threads, so that each run is the same each time.

mod simulation;

use std::sync::Arc;

use prost::bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Limits, Parts,
    frame::Header,
    shared::file_name,
    writer::{Ask, Reply, Wanted},
};
use crate::{
    conformance::{NOW, no_metrics},
    ingest::ACK_DEADLINE,
    kv::{Batch, Durability, Kv},
    queue::{Appended, LogQueue, Queue, QueueError, Record, dedup, fingerprint, partition_of},
    tests::engine::Volatile,
};

const LIMITS: Limits = Limits {
    segment_bytes: 2048,
    segment_records: 9,
    recent_names: 10_000,
    ready_bytes: 2048,
    filter_blocks: 64,
};

fn record(sender: &str, name: &str, body: &str) -> Record {
    let message = format!("{body} of {sender}");
    Record {
        message_id: 0,
        conversation_id: 9,
        sender: sender.to_owned(),
        peer: "peer".to_owned(),
        client_msg_id: name.to_owned(),
        r#type: "text".to_owned(),
        body: message.into_bytes().into(),
        at_ms: NOW,
    }
}

fn open(disk: &Arc<Volatile>, partitions: u16) -> Result<Parts, QueueError> {
    let rows: Arc<dyn Kv> = disk.clone();
    Parts::open(disk.files(), &rows, partitions, 7, no_metrics().queue, LIMITS)
}

/// Appends as one batch; the answer to each.
fn append(parts: &mut Parts, records: &[Record]) -> Vec<Result<Appended, QueueError>> {
    let (mut asks, mut waiting) = (Vec::new(), Vec::new());
    for record in records {
        let (answer, answered) = oneshot::channel::<Reply>();
        waiting.push(answered);
        asks.push(Ask {
            fingerprint: fingerprint(&record.r#type, &record.body),
            name: dedup::name(record),
            partition: partition_of(&record.sender, parts.shared.partitions),
            record: record.clone(),
            wanted: Wanted::Append(prost::Message::encode_to_vec(record).into()),
            answer,
            asked: std::time::Instant::now(),
        });
    }
    for (answer, _, result) in parts.writer.answer(&mut asks) {
        answer.send(result).expect("is waited for");
    }
    let answer = |mut answered: oneshot::Receiver<Reply>| match answered.try_recv() {
        Ok(reply) => reply.map(|appended| appended.expect("an append has an answer")),
        Err(_) => Err(QueueError::Closed),
    };
    waiting.into_iter().map(answer).collect()
}

fn accept(parts: &mut Parts, name: &str) -> Appended {
    append(parts, &[record("a", name, "x")]).remove(0).expect("accepted")
}

fn newest(parts: &Parts) -> String {
    file_name(parts.writer.active.number)
}

fn length(disk: &Arc<Volatile>, name: &str) -> usize {
    super::Files::open(&*disk.files(), name).expect("is there").length().expect("has one") as usize
}

/// A disk with `batches` batches in one segment, its file's name, and where the last batch begins.
fn written(batches: usize) -> (Arc<Volatile>, String, usize) {
    let disk = Volatile::new(1);
    let mut parts = open(&disk, 1).expect("opens");
    let name = newest(&parts);
    let mut last = 0;
    for n in 0..batches {
        last = length(&disk, &name);
        accept(&mut parts, &format!("c{n}"));
    }
    (disk, name, last)
}

#[test]
fn a_last_batch_torn_at_any_byte_is_cut_off_and_nothing_else() {
    let (disk, name, last) = written(3);
    let whole = length(&disk, &name);
    for end in last..whole {
        let torn = disk.kill();
        torn.files().damage(&name, |bytes| bytes.truncate(end));
        let mut parts = open(&torn, 1).expect("opens");
        assert_eq!((length(&torn, &name), &*parts.shared.heads()), (last, &vec![2]), "cut at {end}");
        assert!(accept(&mut parts, "c1").duplicate);
        assert_eq!(accept(&mut parts, "c2").offset, 3, "cut at {end}");
    }
    for garbled in last..whole {
        let torn = disk.kill();
        torn.files().damage(&name, |bytes| bytes[garbled] ^= 0x10);
        let parts = open(&torn, 1).expect("opens");
        assert_eq!(*parts.shared.heads(), [2], "garbled at {garbled}");
    }
}

#[test]
fn damage_before_what_was_acknowledged_is_refused_by_file_and_place() {
    let (disk, name, last) = written(3);
    for garbled in (0..last).step_by(3) {
        let damaged = disk.kill();
        damaged.files().damage(&name, |bytes| bytes[garbled] ^= 0x10);
        let Err(QueueError::Damaged { file, position, .. }) = open(&damaged, 1) else {
            panic!("opens, damaged at {garbled}");
        };
        assert_eq!(file, name);
        assert!(position <= garbled as u64, "{garbled} is in what begins at {position}");
    }
}

#[test]
fn what_older_segments_lack_is_missed() {
    let (disk, first, last) = written(10);
    let mut parts = open(&disk, 1).expect("opens");
    accept(&mut parts, "more");
    drop(parts);
    let refused = |damage: &dyn Fn(&Volatile)| {
        let damaged = disk.kill();
        damage(&damaged);
        open(&damaged, 1).err().expect("refused").to_string()
    };
    let short = refused(&|disk| disk.files().damage(&first, |bytes| bytes.truncate(last - 1)));
    assert!(short.contains("damaged at byte"), "{short}");
    let second = file_name(2);
    let gone = refused(&|disk| super::Files::remove(&*disk.files(), &second).expect("is there"));
    assert!(gone.contains(&format!("{second} is missing")), "{gone}");
}

#[test]
fn a_batch_whose_sync_failed_is_relied_on_only_once_it_is_durable() {
    let (disk, ..) = written(2);
    let mut parts = open(&disk, 1).expect("opens");
    disk.fail_after(1);
    let refused = append(&mut parts, &[record("a", "c", "x")]).remove(0);
    assert!(matches!(refused, Err(QueueError::Failed(_))), "{refused:?}");
    disk.fail_after(u64::MAX);
    let refused = append(&mut parts, &[record("a", "d", "x")]).remove(0);
    assert!(matches!(refused, Err(QueueError::Failed(_))), "space again proves nothing: {refused:?}");
    parts.writer.note_trimmed();
    // The kernel shows it to the next process and counts it as written, which it is not.
    let disk = disk.kill();
    let mut parts = open(&disk, 1).expect("opens");
    assert!(accept(&mut parts, "c").duplicate);
    let mut parts = open(&disk.crash(), 1).expect("opens");
    assert_eq!(*parts.shared.heads(), [3]);
    assert!(accept(&mut parts, "c").duplicate, "acknowledged is durable");
}

#[test]
fn segments_go_once_they_are_trimmed_and_their_names_are_rows() {
    let disk = Volatile::new(1);
    let mut parts = open(&disk, 1).expect("opens");
    let first = accept(&mut parts, "first");
    for n in 0..30 {
        accept(&mut parts, &format!("c{n}"));
    }
    let files = || super::Files::list(&*disk.files()).expect("lists").len();
    let all = files();
    assert!(all > 3);
    parts.shared.index().trim(0, 31);
    while parts.shared.segments().unfolded().is_some() {
        parts.folder.step().expect("folds");
    }
    assert_eq!(files(), 1, "only the newest is left");
    assert!(accept(&mut parts, "first").duplicate, "its name is a row, and the filter knows");
    assert!(parts.writer.names.recent() < 10, "{}", parts.writer.names.recent());
    // Nothing but the newest segment's header knows of it now.
    let mut parts = open(&disk.crash(), 1).expect("opens");
    assert_eq!(accept(&mut parts, "first"), Appended { duplicate: true, ..first });
    let next = accept(&mut parts, "next");
    assert_eq!(next.offset, 32);
    assert!(next.message_id > first.message_id);
}

#[test]
fn a_segment_is_kept_while_its_rows_are_not_durable() {
    let disk = Volatile::new(1);
    let mut parts = open(&disk, 1).expect("opens");
    for n in 0..12 {
        accept(&mut parts, &format!("c{n}"));
    }
    parts.shared.index().trim(0, 12);
    disk.fail_after(1);
    parts.folder.step().expect_err("rows are written, their sync fails");
    let disk = disk.crash();
    let mut parts = open(&disk, 1).expect("opens");
    assert!((0..12).all(|n| accept(&mut parts, &format!("c{n}")).duplicate));
}

#[test]
fn heads_of_partitions_that_are_not_used_any_more_are_kept() {
    let disk = Volatile::new(1);
    let mut parts = open(&disk, 4).expect("opens");
    let senders = ["a", "b", "c", "d", "e", "f"];
    let records: Vec<_> = senders.iter().map(|sender| record(sender, "c", "x")).collect();
    assert!(append(&mut parts, &records).iter().all(Result::is_ok));
    let heads = parts.shared.heads().clone();
    let disk = disk.kill();
    assert!(matches!(open(&disk, 1), Err(QueueError::Partitions { stored: 4, asked: 1 })));
    let mut parts = open(&disk, 4).expect("opens");
    (0..).zip(&heads).for_each(|(partition, head)| drop(parts.shared.index().trim(partition, *head)));
    parts.writer.note_trimmed();
    for partitions in [1, 9] {
        let mut parts = open(&disk, partitions).expect("drained");
        let appended = accept(&mut parts, &format!("by {partitions}"));
        drop(parts.shared.index().trim(appended.partition, appended.offset));
        parts.writer.note_trimmed();
    }
    let again = open(&disk, 4).expect("drained").shared.heads().clone();
    assert!(heads.iter().zip(&again).all(|(before, now)| before <= now), "{heads:?} {again:?}");
}

#[tokio::test]
async fn records_that_are_not_ready_any_more_are_read_from_their_segments() {
    let disk = Volatile::new(1);
    let rows: Arc<dyn Kv> = disk.clone();
    let queue = LogQueue::start(open(&disk, 1).expect("opens"), rows).expect("starts");
    let mut ids = Vec::new();
    for n in 0..40 {
        let pending = queue.append(record("a", &format!("c{n}"), "x")).expect("room");
        ids.push(pending.await.expect("accepted").message_id);
    }
    let read = queue.read(0, 0, 100).await.expect("reads");
    let read: Vec<_> = read.into_iter().map(|stored| stored.record.expect("decodes")).collect();
    assert_eq!(read.iter().map(|record| record.message_id).collect::<Vec<_>>(), ids);
    for (n, found) in read.into_iter().enumerate() {
        assert_eq!(Record { message_id: 0, ..found }, record("a", &format!("c{n}"), "x"));
    }
    queue.close().await;
    assert!(matches!(queue.read(0, 0, 1).await, Err(QueueError::Closed)));
}

#[tokio::test]
async fn a_record_that_is_ready_keeps_nothing_but_itself() {
    let disk = Volatile::new(1);
    let rows: Arc<dyn Kv> = disk.clone();
    let queue = LogQueue::start(open(&disk, 1).expect("opens"), rows).expect("starts");
    let received = Bytes::from(vec![b'x'; 4096]);
    let record = Record { body: received.slice(8..16), ..record("a", "c", "x") };
    queue.append(record).expect("room").await.expect("accepted");
    assert!(received.is_unique(), "the buffer that it came in is free");
    queue.close().await;
}

#[test]
fn a_writer_that_answers_nobody_is_no_health() {
    let disk = Volatile::new(1);
    let shared = open(&disk, 1).expect("opens").shared;
    let asked = std::time::Instant::now();
    assert_eq!(shared.stuck(asked + 2 * ACK_DEADLINE), None, "nobody asks");
    shared.take_up(Some(asked));
    assert_eq!(shared.stuck(asked + ACK_DEADLINE), None);
    let stuck = shared.stuck(asked + 2 * ACK_DEADLINE).expect("stuck");
    assert!(stuck.contains("20 s"), "{stuck}");
    shared.take_up(None);
    assert_eq!(shared.stuck(asked + 2 * ACK_DEADLINE), None);
}

#[test]
fn the_writer_waits_for_names_to_become_rows() {
    let disk = Volatile::new(1);
    let rows: Arc<dyn Kv> = disk.clone();
    let limits = Limits { recent_names: 30, ..LIMITS };
    let mut parts = Parts::open(disk.files(), &rows, 1, 7, no_metrics().queue, limits).expect("opens");
    let (shared, first) = (parts.shared.clone(), parts.writer.active.number);
    let folder =
        super::Folder { rows: rows.clone(), filter: parts.folder.filter.clone(), shared: shared.clone() };
    let writing = std::thread::spawn(move || {
        for n in 0..300 {
            accept(&mut parts, &format!("c{n}"));
        }
        parts
    });
    while !writing.is_finished() {
        let folded = shared.segments().folded.saturating_sub(first - 1);
        let most = (limits.recent_names as u64 + folded * limits.segment_records).min(300);
        // It goes on that far, and no further however long it is let.
        for _ in 0..200 {
            while shared.heads()[0] < most {
                std::thread::yield_now();
            }
            assert_eq!(shared.heads()[0], most, "{folded} segments are folded");
        }
        folder.step().expect("folds");
    }
    let mut parts = writing.join().expect("no panic");
    while shared.segments().unfolded().is_some() {
        folder.step().expect("folds");
    }
    assert!((0..300).all(|n| accept(&mut parts, &format!("c{n}")).duplicate));
}

#[tokio::test]
async fn rows_that_cannot_be_written_end_it() {
    let disk = Volatile::new(1);
    let rows: Arc<dyn Kv> = Volatile::new(1);
    let limits = Limits { recent_names: 30, ..LIMITS };
    let parts = Parts::open(disk.files(), &rows, 1, 7, no_metrics().queue, limits).expect("opens");
    let broken = Volatile::new(1);
    broken.fail(true);
    let folder = super::Folder { rows: broken, ..parts.folder };
    let queue = LogQueue::start(Parts { folder, ..parts }, rows).expect("starts");
    let mut accepted = 0;
    let refused = loop {
        let pending = queue.append(record("a", &format!("c{accepted}"), "x")).expect("room");
        match pending.await {
            Ok(_) => accepted += 1,
            Err(refused) => break refused.to_string(),
        }
    };
    assert!(refused.contains("no space left on device"), "{refused}");
    assert!(accepted <= 31, "nobody waits for ever, and nothing is forgotten: {accepted}");
    assert!(queue.health().is_err());
    queue.close().await;
}

#[test]
fn a_name_whose_row_cannot_be_read_costs_nobody_else() {
    let disk = Volatile::new(1);
    let mut parts = open(&disk, 1).expect("opens");
    for n in 0..30 {
        accept(&mut parts, &format!("c{n}"));
    }
    while parts.shared.segments().unfolded().is_some() {
        parts.folder.step().expect("folds");
    }
    accept(&mut parts, "the writer forgets what has rows");
    let damaged = dedup::name(&record("a", "c0", "x"));
    let mut batch = Batch::default();
    let [window, _] = dedup::windows(NOW);
    batch.put(dedup::DEDUP, dedup::key(window, &damaged), vec![0xff; 5]);
    disk.write(batch, Durability::Synced).expect("writes");
    for restarted in [false, true] {
        if restarted {
            parts.shared.index().trim(0, 31);
            parts.folder.step().expect("removes");
            parts = open(&disk.kill(), 1).expect("opens");
            parts.loader.try_load().expect("loads");
        }
        let new = format!("new {restarted}");
        let records = [record("a", &new, "x"), record("a", "c0", "x"), record("a", "c1", "x")];
        let answers = append(&mut parts, &records);
        assert!(!answers[0].as_ref().expect("accepted").duplicate);
        assert!(matches!(answers[1], Err(QueueError::Engine(_))), "{:?}", answers[1]);
        assert!(answers[2].as_ref().expect("answered").duplicate);
        assert_eq!(parts.shared.failed(), None);
    }
}

#[test]
fn a_half_made_segment_was_never_written_to() {
    let (disk, ..) = written(2);
    for calls in 0..5 {
        let disk = disk.kill();
        disk.fail_after(3 + calls);
        assert!(open(&disk, 1).is_err(), "after {calls}");
        for ended in [disk.kill(), disk.crash()] {
            let mut parts = open(&ended, 1).expect("opens");
            assert_eq!(accept(&mut parts, "next").offset, 3);
        }
    }
}

#[test]
fn a_queue_of_an_earlier_format_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(directory.path().join("keyspaces")).expect("makes a directory");
    let refused = super::Disk::open(directory.path()).err().expect("refused").to_string();
    assert!(refused.starts_with(&directory.path().display().to_string()), "{refused}");
}

#[test]
fn a_header_of_another_version_is_named() {
    let (disk, name, _) = written(1);
    disk.files().damage(&name, |bytes| bytes[8] = 9);
    let refused = open(&disk, 1).err().expect("refused").to_string();
    assert!(refused.contains("version 9"), "{refused}");
    disk.files().damage(&name, |bytes| *bytes = Header::default().encode());
    let refused = open(&disk, 1).err().expect("refused").to_string();
    assert!(refused.contains("it says it is segment 0"), "{refused}");
}
