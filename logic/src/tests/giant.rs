//! A giant group beside a quiet sender: same ingest partition, same spread worker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use berth_proto::client::{response::Result as Answer, target::To};

use super::{
    config,
    gateway::{Gateway, Session, send_to},
};
use crate::{Config, Logic, StoreChoice, group, queue::partition_of};

/// Members of the giant group.
const MEMBERS: usize = 5_000;

/// Messages of a batch.
const BATCH: f64 = 32.0;

/// Between two messages of the quiet sender.
const QUIET: Duration = Duration::from_millis(20);

struct World {
    logic: Logic,
    gateway: Arc<Gateway>,
    speaker: Session,
    quiet: Session,
    peer: Session,
    /// Rows in the peer's inbox.
    told: u64,
    _directory: tempfile::TempDir,
}

impl World {
    /// On disk; the group's speaker and the quiet sender share a partition, their conversations a spread worker.
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // Nobody renews it here.
        let lease = Duration::from_secs(3600);
        let config = Config { lease, ..config(StoreChoice::Embedded(directory.path().to_owned())) };
        let partitions = config.partitions;
        let registry = berth_proto::metric::Registry::new(&metrics::NoopRecorder);
        let logic = Logic::start(config, registry).await.expect("starts");
        let gateway = Gateway::attach(&logic, "g1", 1);
        let members: Vec<String> = (0..MEMBERS).map(|n| format!("u{n:05}")).collect();
        let made = group::put(logic.context(), "giant", members).await.expect("made");
        let speaker = gateway.open("u00000", "d", 1).await;
        let partition = |user: &str| partition_of(user, partitions);
        let quiet = (0..).map(|n| format!("quiet{n}")).find(|user| partition(user) == partition("u00000"));
        let quiet = gateway.open(&quiet.expect("one of sixteen"), "d", 2).await;
        let mut number = 0;
        let peer = loop {
            let peer = format!("peer{number}");
            let store = &logic.context().store;
            let id = store.direct(&quiet.user, &peer, number + 1_800_000_000_000).await.expect("made");
            if id % 2 == made.conversation_id % 2 {
                break gateway.open(&peer, "d", 3).await;
            }
            number += 1;
        };
        Self { logic, gateway, speaker, quiet, peer, told: 0, _directory: directory }
    }

    /// One message from send to the peer's notify.
    async fn whisper(&mut self) -> Duration {
        self.told += 1;
        let begun = Instant::now();
        self.quiet.sent(&format!("q{}", self.told), &self.peer.user.clone(), "psst").await;
        self.peer.notified(self.told).await;
        begun.elapsed()
    }

    async fn whispers(&mut self, count: usize) -> Vec<Duration> {
        let mut took = Vec::with_capacity(count);
        for _ in 0..count {
            took.push(self.whisper().await);
            tokio::time::sleep(QUIET).await;
        }
        took.sort_unstable();
        took
    }

    /// One message to the whole group, from send to the last member's inbox.
    async fn shout(&self, client_msg_id: &str) -> Duration {
        let begun = Instant::now();
        let last = [format!("u{:05}", MEMBERS - 1)];
        let store = &self.logic.context().store;
        let seq = async || store.inbox_seqs(&last).await.remove(0).expect("reads");
        let before = seq().await;
        let sent = self.speaker.ask(send_to(client_msg_id, To::GroupId("giant".to_owned()), "HELLO")).await;
        assert!(matches!(sent, Answer::Send(_)), "{sent:?}");
        while seq().await == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        begun.elapsed()
    }

    /// What the quiet sender sees while the group's speaker says as much as he may.
    async fn spammed(&mut self, count: usize) -> (Vec<Duration>, u64) {
        let stop = Arc::new(AtomicBool::new(false));
        let spammer = self.gateway.open("u00000", "spammer", 4).await;
        let spam = tokio::spawn(spam(spammer, stop.clone()));
        // Until there is a backlog to meet.
        let id = self.group().await;
        while self.logic.context().spreads.backlog(id) < 8 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = self.whispers(count).await;
        assert!(self.logic.context().spreads.backlog(id) > 0, "it was busy to the end");
        stop.store(true, Ordering::Relaxed);
        (took, spam.await.expect("it ends"))
    }

    async fn group(&self) -> u64 {
        group::get(self.logic.context(), "giant", None, 0).await.expect("there").conversation_id
    }
}

/// Sixteen in flight; when the group has too much waiting, a pause. How many were accepted.
async fn spam(session: Session, stop: Arc<AtomicBool>) -> u64 {
    let (mut number, mut accepted) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let say = |n| Some(send_to(&format!("spam{n}"), To::GroupId("giant".to_owned()), "BUY"));
        let ids: Vec<u32> = (number..number + 16).map(|n| session.say(say(n))).collect();
        number += 16;
        let mut refused = false;
        for id in ids {
            match session.answer(id).await {
                Answer::Send(_) => accepted += 1,
                Answer::Error(error) => {
                    assert_eq!(error.code, "RESOURCE_EXHAUSTED", "{error:?}");
                    refused = true;
                }
                other => panic!("{other:?}"),
            }
        }
        if refused {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    accepted
}

fn shown(took: &[Duration]) -> String {
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    format!("p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms of {}", at(50), at(99), at(100), took.len())
}

async fn compare(count: usize) {
    let mut world = World::new().await;
    let whole = world.shout("alone").await;
    let alone = world.whispers(count).await;
    let begun = Instant::now();
    let (beside, accepted) = world.spammed(count).await;
    let busy = begun.elapsed();
    let id = world.group().await;
    let rows = (accepted - world.logic.context().spreads.backlog(id)) * (MEMBERS as u64 - 1);
    println!("a group of {MEMBERS}: one message to everybody in {:.1} ms", whole.as_secs_f64() * 1000.0);
    println!("quiet sender to notify, alone:            {}", shown(&alone));
    println!("quiet sender to notify, group spammed:    {}", shown(&beside));
    println!("group rows a second meanwhile:            {:.0}", rows as f64 / busy.as_secs_f64());
    // Were batches of messages given to the whole group at once, he would wait for half of one on average. He waits for
    // slices of them, and now and then for the engine's flushes of what they write.
    let batch = busy.mul_f64(BATCH * MEMBERS as f64 / rows as f64);
    let (half, most) = (beside[beside.len() / 2], beside[(beside.len() - 1) * 99 / 100]);
    assert!(half < batch / 8, "p50 {half:?}, where a batch takes {batch:?}");
    assert!(most < batch, "p99 {most:?}, where a batch takes {batch:?}");
    world.logic.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_giant_group_does_not_delay_a_quiet_sender() {
    compare(60).await;
}

/// `cargo test --release -p berth-logic giant -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn a_giant_group_does_not_delay_a_quiet_sender_for_long() {
    compare(1500).await;
}
