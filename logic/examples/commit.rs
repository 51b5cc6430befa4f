//! Measures how many messages of two a second go through commit and spread on disk: the store's part of the road, as the
//! loops of a logic ask for it, by the clock and by the time the processor spent.
//!
//! `cargo run --release -p berth-logic --example commit [-- MESSAGES [SENDERS [ROUNDS]]]`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use berth_logic::{
    kv::{Embedded, Tail},
    queue::{Record, Stored},
    store::{Epoch, KvStore, Store},
};

/// 2026-01-01T00:00:00Z, in milliseconds.
const NOW: i64 = 1_767_225_600_000;

/// Records of one commit, and messages of one step of spread: as many as logic takes at most.
const COMMIT: u64 = 256;
const SPREAD: usize = 512;

/// Ingest partitions.
const PARTITIONS: u64 = 16;

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|text| text.parse().ok());
    let messages = arguments.next().unwrap_or(100_000);
    let senders = arguments.next().unwrap_or(1000);
    let rounds = arguments.next().unwrap_or(5);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure(messages, senders, rounds));
}

async fn measure(messages: u64, senders: u64, rounds: u64) {
    let directory = tempfile::tempdir_in(".").expect("a directory to write in");
    let mut spaces = KvStore::SPACES.to_vec();
    spaces.push("routes");
    let engine = Embedded::open(directory.path(), &spaces, 64 << 20, Tail::Whole).expect("opens");
    let store = KvStore::open(Arc::new(engine), 0, Epoch::Keep).expect("opens");
    let mut offsets = [0; PARTITIONS as usize];
    for round in 0..rounds {
        let (begun, spent) = (Instant::now(), processor_seconds());
        let (mut committing, mut spreading, mut said) = (Duration::ZERO, Duration::ZERO, 0);
        let mut waiting = Vec::new();
        while said < messages {
            let partition = said / COMMIT % PARTITIONS;
            let offset = &mut offsets[partition as usize];
            let mut records = Vec::new();
            for _ in 0..COMMIT {
                said += 1;
                *offset += 1;
                records.push(stored(*offset, round * messages + said, senders, &store).await);
            }
            let step = Instant::now();
            let done = store.commit(partition as u16, records, NOW).await.expect("commits");
            committing += step.elapsed();
            waiting.extend(done.unspread);
            while waiting.len() >= SPREAD {
                let step = Instant::now();
                let work = waiting.drain(..SPREAD).collect();
                store.spread(work, NOW).await.expect("spreads");
                spreading += step.elapsed();
            }
        }
        store.spread(waiting, NOW).await.expect("spreads");
        let (clock, spent) = (begun.elapsed().as_secs_f64(), processor_seconds() - spent);
        println!(
            "{:>9.0} messages/s, {:>9.0} per processor second; commit {:.2} s, spread {:.2} s",
            said as f64 / clock,
            said as f64 / spent.max(0.01),
            committing.as_secs_f64(),
            spreading.as_secs_f64()
        );
    }
}

async fn stored(offset: u64, message_id: u64, senders: u64, store: &KvStore) -> Stored {
    let n = message_id.wrapping_mul(7919) % senders;
    let (sender, peer) = (format!("user-{n}"), format!("user-{}", (n + 1) % senders));
    let record = Record {
        message_id,
        conversation_id: store.direct(&sender, &peer, NOW).await.expect("made"),
        sender,
        peer,
        client_msg_id: format!("message-{message_id}"),
        r#type: "text".to_owned(),
        body: vec![b'x'; 128].into(),
        at_ms: NOW,
    };
    Stored { offset, record: Ok(record) }
}

/// What this process has spent, in user and in kernel: hundredths of a second, fields 14 and 15 of proc(5)'s stat.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}
