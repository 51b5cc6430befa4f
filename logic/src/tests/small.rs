//! Many small groups beside clients that acknowledge all the time: whoever waits for the store's writer goes first, and
//! groups go on all the same.

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
use crate::{Logic, StoreChoice, group, store::Ack};

/// Groups of three, which get one message each.
const GROUPS: usize = 400;

/// Threads that acknowledge without a pause: more than there are processors here.
const ACKERS: usize = 3;

/// Says something in each group; until everybody has it.
async fn round(logic: &Logic, speaker: &Session, last: &Session, number: u64) -> Duration {
    let begun = Instant::now();
    let ids: Vec<u32> = (0..GROUPS)
        .map(|n| speaker.say(Some(send_to(&format!("r{number}-{n}"), To::GroupId(format!("g{n}")), "hi"))))
        .collect();
    for id in ids {
        assert!(matches!(speaker.answer(id).await, Answer::Send(_)));
    }
    let rows = GROUPS as u64 * (1 + number);
    while logic.context().store.inbox_seqs(std::slice::from_ref(&last.user)).await[0]
        .as_ref()
        .is_ok_and(|seq| *seq < rows)
    {
        assert!(begun.elapsed() < super::DEADLINE, "waited in vain");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_groups_go_on_beside_busy_ackers() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let registry = berth_proto::metric::Registry::new(&metrics::NoopRecorder);
    let config = config(StoreChoice::Embedded(directory.path().to_owned()));
    let logic = Logic::start(config, registry).await.expect("starts");
    let gateway = Gateway::attach(&logic, "g1", 1);
    for n in 0..GROUPS {
        let members = ["speaker", "one", "two"].map(str::to_owned).to_vec();
        group::put(logic.context(), &format!("g{n}"), members).await.expect("made");
    }
    let (speaker, two) = (gateway.open("speaker", "d", 1).await, gateway.open("two", "d", 2).await);
    let alone = round(&logic, &speaker, &two, 1).await;
    let stop = Arc::new(AtomicBool::new(false));
    let ackers: Vec<_> = (0..ACKERS).map(|n| acker(&logic, n, stop.clone())).collect();
    let beside = round(&logic, &speaker, &two, 2).await;
    stop.store(true, Ordering::Relaxed);
    let acks: u64 = ackers.into_iter().map(|acker| acker.join().expect("it ends")).sum();
    println!("{GROUPS} small groups: alone {alone:?}, beside {acks} acks {beside:?}");
    assert!(acks > 0);
    // Were each slice to sleep while somebody waits, every group would cost 20 ms and more.
    let slept = Duration::from_millis(20) * GROUPS as u32 / 2;
    assert!(beside < slept.max(alone * 8), "{beside:?} beside ackers, {alone:?} alone");
    logic.stop().await;
}

fn acker(logic: &Logic, number: usize, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let store = logic.context().store.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let user = format!("acker{number}");
        let mut acks = 0;
        while !stop.load(Ordering::Relaxed) {
            acks += 1;
            runtime
                .block_on(store.ack(&[Ack { user: user.clone(), device: "d".to_owned(), seq: acks }]))
                .expect("writes");
        }
        acks
    })
}
