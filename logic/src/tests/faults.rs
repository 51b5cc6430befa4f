//! Faults: a full disk, a store that fails for a while, a gateway that is gone, a process or machine that ends.

use std::{collections::HashSet, sync::Arc, time::Duration};

use berth_proto::{
    client::response::Result as Answer,
    wire::{self, to_gateway::Message as Down, to_logic::Message as Up},
};

use super::{
    DEADLINE, config, counted,
    engine::Volatile,
    gateway::{Gateway, send_to_user},
    in_memory, over,
    recorder::Counting,
    try_over, until,
};
use crate::{
    Config, Logic, StoreChoice,
    backend::Marker,
    kv::{Batch, Durability, Kv, Space},
    store::Epoch,
};

fn engines() -> (Arc<Volatile>, Arc<Volatile>) {
    (Volatile::new(1), Volatile::new(4))
}

fn code(answer: Answer) -> String {
    match answer {
        Answer::Error(error) => {
            assert!(error.retryable, "{error:?}");
            error.code
        }
        other => panic!("acknowledged: {other:?}"),
    }
}

#[tokio::test]
async fn a_queue_that_cannot_be_written_acknowledges_nothing_ever_again() {
    let (queue, store) = engines();
    let logic = over(config(StoreChoice::Memory), queue.clone(), store, Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let alice = gateway.open("alice", "d", 1).await;
    alice.sent("c-1", "bob", "durable").await;
    logic.ready().expect("ready");
    queue.fail(true);
    assert_eq!(code(alice.send("c-2", "bob", "x").await), "UNAVAILABLE");
    assert!(logic.ready().expect_err("not ready").contains("no space left on device"));
    // Space again proves nothing about what was written in between: only a restart does.
    queue.fail(false);
    assert_eq!(code(alice.send("c-3", "bob", "x").await), "UNAVAILABLE");
    assert!(logic.ready().is_err());
    until("reads go on", async || (alice.messages().await.len() == 1).then_some(())).await;
    assert_eq!(alice.messages().await[0].body, "durable");
    logic.stop().await;
}

#[tokio::test]
async fn a_store_that_fails_delays_messages_and_loses_none() {
    let (queue, store) = engines();
    let logic = over(config(StoreChoice::Memory), queue, store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (alice, bob) = (gateway.open("alice", "d", 1).await, gateway.open("bob", "d", 2).await);
    alice.sent("c-1", "bob", "before").await;
    bob.notified(1).await;
    store.fail(true);
    alice.sent("c-2", "bob", "accepted all the same").await;
    until("it says so", async || logic.ready().err()).await;
    assert_eq!(
        code(alice.send("c-3", "stranger", "x").await),
        "UNAVAILABLE",
        "a new conversation cannot be made"
    );
    store.fail(false);
    bob.notified(2).await;
    until("it works again", async || logic.ready().ok()).await;
    assert_eq!(bob.messages().await.len(), 2);
    logic.stop().await;
}

#[tokio::test]
async fn a_queue_that_is_older_than_its_store_is_refused() {
    let (queue, store) = engines();
    let logic = over(config(StoreChoice::Memory), queue.clone(), store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let alice = gateway.open("alice", "d", 1).await;
    for n in 0..3 {
        alice.sent(&format!("c-{n}"), "bob", "x").await;
    }
    until("all are committed", async || (alice.messages().await.len() == 3).then_some(())).await;
    logic.stop().await;
    let empty = Volatile::new(1);
    let refused = try_over(config(StoreChoice::Memory), empty, store.clone(), Epoch::Keep, None).await;
    let refused = refused.err().expect("what it accepts would be lost").to_string();
    let partition = crate::queue::partition_of("alice", 16);
    assert!(refused.contains(&format!("partition {partition} is applied up to 3")), "{refused}");
    assert!(refused.contains("newest record is 0"), "{refused}");
    over(config(StoreChoice::Memory), queue, store, Epoch::Keep).await.stop().await;
}

#[tokio::test]
async fn after_a_failed_sync_the_next_start_raises_the_epoch() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (queue, store) = engines();
    let (marker, _) = Marker::set(directory.path(), "boot-1").expect("writable");
    let marked = || std::fs::read_to_string(directory.path().join("open")).expect("the mark is there");
    let logic = try_over(config(StoreChoice::Memory), queue, store.clone(), Epoch::Keep, Some(marker)).await;
    let logic = logic.expect("starts");
    assert_eq!(marked(), "boot-1");
    store.fail(true);
    until("a sync failed", async || marked().is_empty().then_some(())).await;
    store.fail(false);
    until("syncs go through again", async || logic.ready().ok()).await;
    logic.stop().await;
    let (_, epoch) = Marker::set(directory.path(), "boot-1").expect("writable");
    assert_eq!(epoch, Epoch::Raise, "same boot, clean end: the lost writes are lost all the same");
}

#[tokio::test]
async fn what_a_failed_sync_left_in_the_kernel_is_written_once_more_before_it_is_relied_on() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (queue, store) = engines();
    let start = async |queue: &Arc<Volatile>, store: &Arc<Volatile>| {
        let (marker, epoch) = Marker::set(directory.path(), "boot-1").expect("writable");
        let config = config(StoreChoice::Memory);
        try_over(config, queue.clone(), store.clone(), epoch, Some(marker)).await.expect("starts")
    };
    let marked = || std::fs::read_to_string(directory.path().join("open")).expect("the mark is there");
    let logic = start(&queue, &store).await;
    store.fail(true);
    until("a sync failed", async || marked().is_empty().then_some(())).await;
    let (queue, store) = (queue.kill(), store.kill());
    logic.stop().await;
    let logic = start(&queue, &store).await;
    let alice = Gateway::attach(&logic, "g1", 1).open("alice", "d", 1).await;
    alice.sent("c-1", "bob", "x").await;
    alice.notified(1).await;
    // It syncs the store, and the queue forgets what the store has.
    logic.stop().await;
    let (queue, store) = (queue.crash(), store.crash());
    let logic = start(&queue, &store).await;
    let bob = Gateway::attach(&logic, "g1", 2).open("bob", "d", 1).await;
    assert_eq!(bob.messages().await.len(), 1, "durable, though it is behind what was not");
    logic.stop().await;
}

#[tokio::test]
async fn after_a_failure_of_the_queue_a_clean_end_counts_as_unclean() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (queue, store) = engines();
    let (marker, _) = Marker::set(directory.path(), "boot-1").expect("writable");
    let logic = try_over(config(StoreChoice::Memory), queue.clone(), store, Epoch::Keep, Some(marker)).await;
    let logic = logic.expect("starts");
    let alice = Gateway::attach(&logic, "g1", 1).open("alice", "d", 1).await;
    queue.fail(true);
    assert_eq!(code(alice.send("c-1", "bob", "x").await), "UNAVAILABLE");
    queue.fail(false);
    logic.stop().await;
    let left = std::fs::read_to_string(directory.path().join("open")).expect("the mark is there");
    assert_eq!(
        left, "boot-1",
        "so that what may not be durable is written once more; the store is not in doubt"
    );
}

#[tokio::test]
async fn a_failed_sync_of_a_change_of_members_counts_like_any_other() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (queue, store) = engines();
    let (marker, _) = Marker::set(directory.path(), "boot-1").expect("writable");
    let marked = || std::fs::read_to_string(directory.path().join("open")).expect("the mark is there");
    let logic = try_over(config(StoreChoice::Memory), queue, store.clone(), Epoch::Keep, Some(marker)).await;
    let logic = logic.expect("starts");
    store.refuse_sync(true);
    let refused = crate::group::put(logic.context(), "team", vec!["alice".to_owned()]).await;
    assert_eq!(refused.expect_err("it cannot be synced").code, "UNAVAILABLE");
    assert_eq!(marked(), "", "what is on the disk is unknown from now on");
    logic.stop().await;
}

#[tokio::test]
async fn a_store_that_stays_away_bounds_what_is_accepted() {
    let (queue, store) = engines();
    let config = Config { most_behind: 10, ..config(StoreChoice::Memory) };
    let logic = over(config, queue, store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let alice = gateway.open("alice", "d", 1).await;
    alice.sent("c", "bob", "before").await;
    store.fail(true);
    let mut accepted = 1;
    until("it is too far behind", async || {
        match alice.send(&format!("c{accepted}"), "bob", "x").await {
            Answer::Send(_) => accepted += 1,
            refused => {
                assert_eq!(code(refused), "RESOURCE_EXHAUSTED");
                return Some(());
            }
        }
        None
    })
    .await;
    assert!(accepted > 10, "{accepted}");
    store.fail(false);
    until("what was accepted arrives", async || (alice.messages().await.len() == accepted).then_some(()))
        .await;
    // What is committed has yet to reach bob.
    until("sends are accepted again", async || {
        matches!(alice.send("again", "bob", "x").await, Answer::Send(_)).then_some(())
    })
    .await;
    logic.stop().await;
}

#[tokio::test]
async fn what_cannot_be_spread_bounds_what_is_accepted() {
    let (queue, store) = engines();
    let config = Config { most_behind: 10, ..config(StoreChoice::Memory) };
    let logic = over(config, queue, store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (alice, bob) = (gateway.open("alice", "d", 1).await, gateway.open("bob", "d", 2).await);
    alice.sent("c", "bob", "before").await;
    bob.notified(1).await;
    store.refuse_spread(true);
    let mut accepted = 1;
    until("too much waits in the outbox", async || {
        match alice.send(&format!("c{accepted}"), "bob", "x").await {
            Answer::Send(_) => accepted += 1,
            refused => {
                assert_eq!(code(refused), "RESOURCE_EXHAUSTED");
                return Some(());
            }
        }
        None
    })
    .await;
    until("it is committed", async || (alice.messages().await.len() == accepted).then_some(())).await;
    assert_eq!(code(alice.send("more", "bob", "x").await), "RESOURCE_EXHAUSTED", "committed is not arrived");
    until("it says so, and a sync does not hide it", async || logic.ready().err()).await;
    store.refuse_spread(false);
    until("what was accepted arrives", async || (bob.messages().await.len() == accepted).then_some(())).await;
    until("it works again", async || logic.ready().ok()).await;
    alice.sent("again", "bob", "x").await;
    logic.stop().await;
}

#[tokio::test]
async fn a_damaged_outbox_row_holds_up_nobody() {
    let (queue, store) = engines();
    let counting = Counting::default();
    let logic = counted(&counting, queue, store.clone()).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (alice, bob) = (gateway.open("alice", "d", 1).await, gateway.open("bob", "d", 2).await);
    store.refuse_spread(true);
    let first = alice.sent("c-1", "bob", "damaged").await;
    alice.sent("c-2", "bob", "behind it").await;
    for n in 0..4 {
        alice.sent(&format!("d-{n}"), &format!("other{n}"), "beside it").await;
    }
    until("all are committed", async || (alice.messages().await.len() == 6).then_some(())).await;
    // Key and value as `store::kv::row` writes them.
    let key = crate::kv::Key::new(b'o').number(first.conversation_id).number(1);
    let mut batch = Batch::default();
    batch.put(Space(2), key, vec![0xff; 5]);
    store.write(batch, Durability::Buffered).expect("writes");
    store.refuse_spread(false);
    let messages = until("what is behind it arrives", async || {
        Some(bob.messages().await).filter(|messages| !messages.is_empty())
    })
    .await;
    assert_eq!(messages.iter().map(|m| m.body.as_ref()).collect::<Vec<_>>(), [b"behind it"]);
    for n in 0..4 {
        let other = gateway.open(&format!("other{n}"), "d", 10 + n).await;
        until("others have theirs", async || (other.messages().await.len() == 1).then_some(())).await;
    }
    until("it works again", async || logic.ready().ok()).await;
    assert_eq!(counting.counter("berth_logic_spread_set_aside_total"), 1);
    logic.stop().await;
}

#[tokio::test]
async fn a_gateway_that_falls_silent_loses_its_routes_and_announces_them_again() {
    let registry = berth_proto::metric::Registry::new(&metrics::NoopRecorder);
    let short = Config { lease: Duration::from_millis(300), ..config(StoreChoice::Memory) };
    let logic = Logic::start(short, registry).await.expect("starts");
    let (silent, lively) = (Gateway::attach(&logic, "g1", 1), Gateway::attach(&logic, "g2", 1));
    let alice = silent.open("alice", "d", 1).await;
    let bob = lively.open("bob", "d", 1).await;
    assert_eq!(silent.renew(1).await.lease_ms, 300);
    assert!(bob.online("alice").await);
    until("her routes end with the lease", async || {
        assert!(!lively.renew(1).await.forgotten);
        (!bob.online("alice").await).then_some(())
    })
    .await;
    assert!(bob.online("bob").await, "the other gateway's live on");
    assert!(silent.renew(1).await.forgotten);
    let again = silent.try_open("alice", "d", 1, alice.opened.session_epoch).await;
    assert_eq!((again.error, again.session_epoch), (None, alice.opened.session_epoch));
    assert!(bob.online("alice").await);
    logic.stop().await;
}

#[tokio::test]
async fn a_session_that_ends_makes_room_for_one_that_opens_right_behind_it() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let mut epochs = Vec::new();
    for handle in 0..crate::routes::DEVICES as u64 {
        epochs.push(gateway.open("alice", &format!("d{handle}"), handle).await.opened.session_epoch);
    }
    // Often, since a lane may take the two one by one.
    for (handle, session_epoch) in (100..).zip(epochs) {
        let device = |handle: u64| format!("d{handle}");
        let (user_id, handle_before) = ("alice".to_owned(), handle - 100);
        let close =
            wire::CloseSession { user_id, device_id: device(handle_before), session_epoch, handle: 0 };
        let (user_id, device_id) = ("alice".to_owned(), device(handle));
        let open = wire::OpenSession { handle, user_id, device_id, ..Default::default() };
        gateway.say_all(vec![Up::Close(close), Up::Open(open)]);
        let opened = |message: &Down| match message {
            Down::Opened(opened) if opened.handle == handle => Some(opened.clone()),
            _ => None,
        };
        assert_eq!(gateway.hear("SessionOpened", opened).await.error, None);
    }
    logic.stop().await;
}

#[tokio::test]
async fn a_session_whose_opening_was_never_heard_of_is_closed_by_its_handle() {
    let logic = in_memory().await;
    let (one, two) = (Gateway::attach(&logic, "g1", 1), Gateway::attach(&logic, "g2", 1));
    let bob = two.open("bob", "d", 1).await;
    let close = |gateway: &Gateway, user: &str, handle| {
        let (user_id, device_id) = (user.to_owned(), "d".to_owned());
        gateway.say(Up::Close(wire::CloseSession { user_id, device_id, session_epoch: 0, handle }));
    };
    let alice = one.open("alice", "d", 7).await;
    close(&two, "alice", 7);
    close(&one, "alice", 8);
    // In order with the closes, whoever said them: they are about alice too.
    alice.pull(0, 1).await;
    assert!(bob.online("alice").await, "neither another gateway's handle nor another handle");
    close(&one, "alice", 7);
    until("her route is gone", async || (!bob.online("alice").await).then_some(())).await;
    assert!(bob.online("bob").await);
    logic.stop().await;
}

#[tokio::test]
async fn a_session_that_cannot_be_opened_leaves_no_ghost() {
    let (queue, store) = engines();
    let logic = over(config(StoreChoice::Memory), queue, store.clone(), Epoch::Keep).await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (alice, bob) = (gateway.open("alice", "d", 1).await, gateway.open("bob", "d", 2).await);
    // A head that cannot be read: the route is written, then the inbox seq is not found.
    let mut batch = Batch::default();
    batch.put(Space(2), crate::kv::Key::new(b'h').text("alice"), vec![0xff; 5]);
    store.write(batch, Durability::Buffered).expect("writes");
    let refused = gateway.try_open("alice", "d", 3, 0).await;
    assert_eq!(refused.error.expect("not opened").code, "UNAVAILABLE");
    assert_eq!(alice.closed().await.code, 4504, "its session was replaced all the same");
    assert!(!bob.online("alice").await, "nobody holds the session that was not opened");
    logic.stop().await;
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_and_back_does_not_keep_leases_alive() {
    let ahead = Arc::new(std::sync::atomic::AtomicI64::new(0));
    let shift = ahead.clone();
    let system = crate::system_clock();
    let clock: crate::Clock = Arc::new(move || system() + shift.load(std::sync::atomic::Ordering::SeqCst));
    let short = Config { lease: Duration::from_millis(300), clock, ..config(StoreChoice::Memory) };
    let registry = berth_proto::metric::Registry::new(&metrics::NoopRecorder);
    let logic = Logic::start(short, registry).await.expect("starts");
    let (silent, lively) = (Gateway::attach(&logic, "g1", 1), Gateway::attach(&logic, "g2", 1));
    ahead.store(86_400_000, std::sync::atomic::Ordering::SeqCst);
    silent.open("alice", "d", 1).await;
    let bob = lively.open("bob", "d", 1).await;
    silent.renew(1).await;
    // Some rounds of the task that ends leases must see the clock ahead.
    for _ in 0..20 {
        lively.renew(1).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(bob.online("bob").await);
    ahead.store(0, std::sync::atomic::Ordering::SeqCst);
    until("her routes end with the lease", async || {
        lively.renew(1).await;
        (!bob.online("alice").await).then_some(())
    })
    .await;
    logic.stop().await;
}

#[tokio::test]
async fn a_detached_gateway_costs_nobody_anything() {
    let logic = in_memory().await;
    let (one, two) = (Gateway::attach(&logic, "g1", 1), Gateway::attach(&logic, "g2", 1));
    let alice = one.open("alice", "d", 1).await;
    drop(two.open("bob", "d", 1).await);
    drop(two);
    alice.sent("c-1", "bob", "x").await;
    let two = Gateway::attach(&logic, "g2", 2);
    let bob = two.open("bob", "d", 1).await;
    until("it is there", async || (bob.refresh().await == 1).then_some(())).await;
    logic.stop().await;
}

/// Senders under load, then the end comes at a moment of its choosing: every acknowledged message must be there once,
/// in order, for both sides, whatever was lost.
async fn ends_under_load(machine: bool) {
    const ROUNDS: u64 = 6;
    let (mut queue, mut store) = engines();
    let mut acked: HashSet<(String, u64)> = HashSet::new();
    let mut inbox_epoch = 0;
    for round in 0..ROUNDS {
        let epoch = if machine && round > 0 { Epoch::Raise } else { Epoch::Keep };
        let logic = over(config(StoreChoice::Memory), queue.clone(), store.clone(), epoch).await;
        let gateway = Gateway::attach(&logic, "g1", round);
        let mut sending = tokio::task::JoinSet::new();
        for n in 0..8u64 {
            let session = gateway.open(&format!("s{n}"), "d", n).await;
            assert!(session.opened.inbox_epoch > inbox_epoch || !machine || n > 0, "clients are told");
            if n == 7 {
                inbox_epoch = session.opened.inbox_epoch;
            }
            sending.spawn(async move {
                let mut acked = Vec::new();
                for message in 0.. {
                    let name = format!("r{round}-{message}");
                    match session.ask(send_to_user(&name, "bob", &name)).await {
                        Answer::Send(sent) => {
                            acked.push((format!("{}/{name}", session.user), sent.message_id))
                        }
                        _ => return acked,
                    }
                }
                acked
            });
        }
        let bob = gateway.open("bob", "d", 100).await;
        bob.notified(20 + round * 7).await;
        // The queue last: what it acknowledges after the store's end is acknowledged all the same.
        (store, queue) = if machine { (store.crash(), queue.crash()) } else { (store.kill(), queue.kill()) };
        while let Some(done) = sending.join_next().await {
            acked.extend(done.expect("no panic"));
        }
        logic.stop().await;
    }
    let logic = over(config(StoreChoice::Memory), queue, store, Epoch::Keep).await;
    check_everything(&logic, &acked).await;
    logic.stop().await;
}

async fn check_everything(logic: &Logic, acked: &HashSet<(String, u64)>) {
    let gateway = Gateway::attach(logic, "g1", 1000);
    let bob = gateway.open("bob", "d", 1).await;
    let names = |messages: &[berth_proto::client::Message]| -> Vec<(String, u64)> {
        messages.iter().map(|m| (format!("{}/{}", m.from, m.client_msg_id), m.message_id)).collect()
    };
    let got = until("bob has everything", async || {
        let got = names(&bob.messages().await);
        acked.iter().all(|name| got.contains(name)).then_some(got)
    })
    .await;
    let once: HashSet<_> = got.iter().collect();
    assert_eq!(once.len(), got.len(), "none twice");
    for n in 0..8 {
        let sender = gateway.open(&format!("s{n}"), "d", 10 + n).await;
        let own = sender.messages().await;
        let seqs: Vec<u64> = own.iter().map(|message| message.conversation_seq).collect();
        assert_eq!(seqs, (1..=own.len() as u64).collect::<Vec<_>>(), "contiguous, in his order");
        let of_him: Vec<_> =
            got.iter().filter(|(name, _)| name.starts_with(&format!("s{n}/"))).cloned().collect();
        assert_eq!(of_him, names(&own), "both sides see one order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_under_load_loses_nothing() {
    tokio::time::timeout(2 * DEADLINE, ends_under_load(false)).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_ends_under_load_loses_nothing_that_was_acknowledged() {
    tokio::time::timeout(2 * DEADLINE, ends_under_load(true)).await.expect("in time");
}
