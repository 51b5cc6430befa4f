//! Measures how many inbox rows a second a group's messages become on disk, by how many of them are given together, and
//! how long each slice holds the store's writer; by the clock, and by the time the processor spent, which says something on
//! a busy machine too.
//!
//! `cargo run --release -p berth-logic --example fanout [-- MEMBERS [MESSAGES]]`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use berth_logic::{
    kv::{Embedded, Tail},
    queue::{Record, Stored},
    store::{Cut, Due, Epoch, KvStore, Limits, Store},
};

/// 2026-01-01T00:00:00Z, in milliseconds.
const NOW: i64 = 1_767_225_600_000;

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|text| text.parse().ok());
    let members = arguments.next().unwrap_or(5_000);
    let messages = arguments.next().unwrap_or(64) as u64;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure(members, messages));
}

async fn measure(members: usize, messages: u64) {
    let directory = tempfile::tempdir_in(".").expect("a directory to write in");
    let mut spaces = KvStore::SPACES.to_vec();
    spaces.push("routes");
    let engine = Embedded::open(directory.path(), &spaces, 64 << 20, Tail::Whole).expect("opens");
    let store = KvStore::open(Arc::new(engine), 0, Epoch::Keep).expect("opens");
    let users: Vec<String> = (0..members).map(|n| format!("user-{n:06}")).collect();
    let id = store.create_group("g", NOW).await.expect("made").conversation_id;
    let limits = Limits { members: u64::MAX, groups: u64::MAX };
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    for chunk in users.chunks(128) {
        let step = Instant::now();
        store.change_members(id, chunk, &[], limits, NOW).await.expect("changes");
        longest = longest.max(step.elapsed());
    }
    println!("{members} joined in {:?}, the longest step {longest:?}", begun.elapsed());
    let mut offset = 0;
    let mut next = 1;
    for cut in [(1, 256), (1, 64), (2, 256), (8, 64), (32, 16), (32, 64)] {
        let cut = Cut { messages: cut.0, members: cut.1, rows: cut.0 * cut.1 };
        for _ in 0..messages {
            offset += 1;
            let record = Record {
                message_id: offset,
                conversation_id: id,
                sender: users[0].clone(),
                client_msg_id: format!("c{offset}"),
                body: vec![b'x'; 128].into(),
                at_ms: NOW,
                ..Record::default()
            };
            store.commit(0, vec![Stored { offset, record: Ok(record) }], NOW).await.expect("commits");
        }
        report(&store, id, (next, offset), cut).await;
        next = offset + 1;
    }
}

async fn report(store: &KvStore, conversation_id: u64, (mut first, last): (u64, u64), cut: Cut) {
    let (begun, spent, mut rows, mut slices) = (Instant::now(), processor_seconds(), 0, Vec::new());
    while first <= last {
        let slice = Instant::now();
        let due = Due { conversation_id, first, last };
        let sliced = store.spread_groups(&[due], cut, NOW).await.expect("spreads");
        slices.push(slice.elapsed());
        rows += sliced[0].delivered;
        first = sliced[0].through.map_or(first, |through| through + 1);
    }
    slices.sort_unstable();
    let (clock, spent) = (begun.elapsed().as_secs_f64(), processor_seconds() - spent);
    let (rate, per_processor) = (rows as f64 / clock, rows as f64 / spent.max(0.01));
    let at = |percent: usize| slices[(slices.len() - 1) * percent / 100];
    let Cut { messages, members, .. } = cut;
    println!(
        "{messages:>3} messages x {members:>3} members a slice: {rate:>9.0} rows/s, {per_processor:>9.0} rows per processor second; a slice p50 {:?} p99 {:?}",
        at(50),
        at(99)
    );
}

/// What this process has spent, in user and in kernel: hundredths of a second, fields 14 and 15 of proc(5)'s stat.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}
