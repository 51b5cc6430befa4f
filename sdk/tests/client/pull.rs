//! Rows: gaps, epochs, expiry, backpressure, and the cursor across restarts.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use berth_client::{
    Event, Gap, Resync, State,
    cursor::{Cursor, CursorStore, FileCursor, MemoryCursor},
};
use berth_proto::{
    client::{
        self, HeartbeatAck, PullResponse, client_frame::Frame as Up, response::Result as Answer,
        server_frame::Frame as Down,
    },
    code::ErrorCode,
    schedule::HeartbeatParameters,
};
use tokio::sync::Notify;

use crate::fake::{Fake, Kind, check_rows, close_code, next, rows, soon, welcome};

fn cursor(seq: u64) -> Cursor {
    Cursor { user_id: "alice".into(), inbox_epoch: 1, seq }
}

fn at(seq: u64) -> Arc<MemoryCursor> {
    let store = MemoryCursor::new();
    store.save(&cursor(seq)).expect("is memory");
    Arc::new(store)
}

#[tokio::test]
async fn a_gap_is_reported_and_asked_for_again_after_a_reconnect() {
    let fake = Fake::start().await;
    let mut options = fake.options(Kind::Proto);
    options.cursor = at(3);
    let (_client, mut events, mut peer) = fake.connect_with(options, welcome(7)).await;
    let (id, pull) = peer.pull().await;
    assert_eq!(pull.after_seq, 3);
    peer.answer_rows(id, [4, 6, 7], 7).await;
    check_rows(&mut events, [4]).await;
    assert_eq!(next(&mut events).await, Event::Gap(Gap { expected: 5, found: 6 }));
    drop(peer);

    let mut peer = fake.accept().await;
    peer.hello().await;
    peer.send(Down::Welcome(welcome(7))).await;
    let (id, pull) = peer.pull().await;
    assert_eq!(pull.after_seq, 4, "the cursor stayed before the gap");
    peer.answer_rows(id, 5..=7, 7).await;
    assert!(matches!(next(&mut events).await, Event::Disconnected(_)));
    assert!(matches!(next(&mut events).await, Event::Connected(_)));
    check_rows(&mut events, 5..=7).await;
}

#[tokio::test]
async fn a_row_that_was_missing_comes_over_the_same_connection() {
    let fake = Fake::start().await;
    let (_client, mut events, mut peer) = fake.connect_with(fake.options(Kind::Tcp), welcome(3)).await;
    let (id, _) = peer.pull().await;
    peer.answer_rows(id, [1, 3], 3).await;
    let (id, pull) = peer.pull().await;
    assert_eq!(pull.after_seq, 1);
    peer.answer_rows(id, [3], 3).await;
    let (id, _) = peer.pull().await;
    peer.answer_rows(id, 2..=3, 3).await;
    check_rows(&mut events, [1]).await;
    assert_eq!(next(&mut events).await, Event::Gap(Gap { expected: 2, found: 3 }), "told once");
    check_rows(&mut events, 2..=3).await;
}

#[tokio::test]
async fn a_changed_epoch_means_resync_from_0() {
    let fake = Fake::start().await;
    let mut options = fake.options(Kind::Tcp);
    let store = at(9);
    options.cursor = store.clone();
    let changed = client::Welcome { inbox_epoch: 2, ..welcome(1) };
    let (client, mut events, mut peer) = fake.connect_with(options, changed).await;
    assert_eq!(next(&mut events).await, Event::Resync(Resync::EpochChanged { before: 1, now: 2 }));
    let (id, pull) = peer.pull().await;
    assert_eq!(pull.after_seq, 0);
    peer.answer(id, Answer::Pull(PullResponse { inbox_epoch: 2, ..rows([1], 1) })).await;
    check_rows(&mut events, [1]).await;
    events.confirm();
    soon("closing", client.close()).await;
    assert_eq!(store.load().expect("is memory"), Some(Cursor { inbox_epoch: 2, ..cursor(1) }));
}

#[tokio::test]
async fn expired_rows_mean_resync_from_the_floor() {
    let fake = Fake::start().await;
    let mut options = fake.options(Kind::Json);
    options.cursor = at(3);
    let (_client, mut events, mut peer) = fake.connect_with(options, welcome(20)).await;
    let (id, _) = peer.pull().await;
    peer.answer(id, Answer::Pull(PullResponse { floor_seq: 19, ..rows(19..=20, 20) })).await;
    assert_eq!(next(&mut events).await, Event::Resync(Resync::Expired { after_seq: 3, floor_seq: 19 }));
    let (id, pull) = peer.pull().await;
    assert_eq!(pull.after_seq, 18);
    peer.answer(id, Answer::Pull(PullResponse { floor_seq: 19, ..rows(19..=20, 20) })).await;
    check_rows(&mut events, 19..=20).await;
}

#[tokio::test]
async fn only_rows_that_were_taken_stay_away_after_a_restart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fake = Fake::start().await;
    let options = || {
        let mut options = fake.options(Kind::Proto);
        options.cursor = Arc::new(FileCursor::new(folder.path().join("cursor")));
        options
    };
    let (client, mut events, mut peer) = fake.connect_with(options(), welcome(5)).await;
    let (id, pull) = peer.pull().await;
    assert_eq!(pull.after_seq, 0);
    peer.answer_rows(id, 1..=5, 5).await;
    check_rows(&mut events, 1..=3).await;
    soon("closing", client.close()).await;

    // Row 3 was given, but nothing says that the application has finished with it.
    let (client, mut events, mut peer) = fake.connect_with(options(), welcome(5)).await;
    let (id, pull) = peer.pull().await;
    assert_eq!(pull.after_seq, 2);
    peer.answer_rows(id, 3..=5, 5).await;
    check_rows(&mut events, 3..=5).await;
    events.confirm();
    soon("closing", client.close()).await;

    let (client, _events, mut peer) = fake.connect_with(options(), welcome(5)).await;
    peer.notify(6).await;
    assert_eq!(peer.pull().await.1.after_seq, 5, "there was nothing to pull before the notify");
    soon("closing", client.close()).await;
}

/// A disk that is full the first time.
#[derive(Default)]
struct Full {
    attempts: AtomicU32,
    saved: Notify,
}

impl CursorStore for Full {
    fn load(&self) -> io::Result<Option<Cursor>> {
        Ok(None)
    }

    fn save(&self, saved: &Cursor) -> io::Result<()> {
        assert_eq!(*saved, cursor(1));
        if self.attempts.fetch_add(1, Ordering::Relaxed) == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.saved.notify_one();
        Ok(())
    }
}

#[tokio::test]
async fn a_cursor_that_could_not_be_stored_is_stored_later() {
    let fake = Fake::start().await;
    let store = Arc::new(Full::default());
    let mut options = fake.options(Kind::Tcp);
    options.cursor = store.clone();
    let (client, mut events, mut peer) = fake.connect_with(options, welcome(1)).await;
    let (id, _) = peer.pull().await;
    peer.answer_rows(id, [1], 1).await;
    check_rows(&mut events, [1]).await;
    events.confirm();
    soon("saving again", store.saved.notified()).await;
    soon("closing", client.close()).await;
    assert_eq!(store.attempts.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_cursor_taken_at_the_end_is_stored_after_a_failed_save_too() {
    for stopped_before in [true, false] {
        let fake = Fake::start().await;
        let store = Arc::new(Full::default());
        let mut options = fake.options(Kind::Tcp);
        options.cursor = store.clone();
        let (client, mut events, mut peer) = fake.connect_with(options, welcome(1)).await;
        let (id, _) = peer.pull().await;
        peer.answer_rows(id, [1], 1).await;
        check_rows(&mut events, [1]).await;
        if stopped_before {
            peer.disconnect(close_code(4504)).await;
            let stopped = |state: &State| matches!(state, State::Stopped(_));
            soon("stopping", client.state().wait_for(stopped)).await.expect("the client lives");
            events.confirm();
            soon("saving again", store.saved.notified()).await;
        }
        events.confirm();
        soon("closing", client.close()).await;
        assert_eq!(store.attempts.load(Ordering::Relaxed), 2, "stopped before: {stopped_before}");
    }
}

/// A disk that takes until the test lets go of the other end.
struct Stuck(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

impl CursorStore for Stuck {
    fn load(&self) -> io::Result<Option<Cursor>> {
        Ok(None)
    }

    fn save(&self, _: &Cursor) -> io::Result<()> {
        let _ = self.0.lock().expect("not poisoned").recv();
        Ok(())
    }
}

#[tokio::test]
async fn closing_does_not_wait_for_a_store_that_hangs() {
    let fake = Fake::start().await;
    let (let_go, stuck) = std::sync::mpsc::sync_channel(1);
    let mut options = fake.options(Kind::Tcp);
    options.cursor = Arc::new(Stuck(std::sync::Mutex::new(stuck)));
    let (client, mut events, mut peer) = fake.connect_with(options, welcome(1)).await;
    let (id, _) = peer.pull().await;
    peer.answer_rows(id, [1], 1).await;
    check_rows(&mut events, [1]).await;
    events.confirm();
    let closed = tokio::time::timeout(Duration::from_secs(20), client.close()).await;
    // Before the assertion: the runtime waits for the store's thread.
    drop(let_go);
    closed.expect("closing is bounded");
}

#[tokio::test]
async fn an_application_that_does_not_read_stops_the_pulling_but_not_the_heartbeats() {
    let fake = Fake::start().await;
    fake.change(|answer| answer.heartbeat = HeartbeatParameters { interval_ms: 20, timeout_ms: 60_000 });
    let mut options = fake.options(Kind::Tcp);
    options.limits.page = 2;
    options.limits.buffered_rows = 4;
    let (_client, mut events, mut peer) = fake.connect_with(options, welcome(100)).await;
    for first in [1, 3] {
        let (id, pull) = peer.pull().await;
        assert_eq!((pull.after_seq, pull.limit), (first - 1, 2));
        peer.answer_rows(id, first..first + 2, 100).await;
    }
    for _ in 0..5 {
        assert_eq!(peer.receive().await, Some(Up::Heartbeat(client::Heartbeat {})), "no room, no pull");
        peer.send(Down::HeartbeatAck(HeartbeatAck { inbox_seq: 100, ..Default::default() })).await;
    }
    check_rows(&mut events, 1..=2).await;
    let (id, pull) = peer.pull().await;
    assert_eq!(pull.after_seq, 4);
    peer.answer_rows(id, 5..=6, 100).await;
    check_rows(&mut events, 3..=6).await;
}

#[tokio::test]
async fn a_refused_pull_is_asked_again() {
    let fake = Fake::start().await;
    let (_client, mut events, mut peer) = fake.connect_with(fake.options(Kind::Proto), welcome(1)).await;
    let (id, _) = peer.pull().await;
    peer.answer(id, Answer::Error(ErrorCode::Unavailable.error("the store is away"))).await;
    let (id, pull) = peer.pull().await;
    assert_eq!(pull.after_seq, 0);
    peer.answer_rows(id, [1], 1).await;
    check_rows(&mut events, [1]).await;
}
