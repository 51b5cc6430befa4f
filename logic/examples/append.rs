//! Measures accepted messages a second at 1, 64 and 512 in flight: a bare group-commit log (one file, write and
//! fdatasync), the ingest queue, and a whole logic (a send through the link until its response), in interleaved rounds
//! of one run, so that their ratios hold on a noisy machine.
//!
//! `cargo run --release -p berth-logic --example append [-- SECONDS-PER-MEASUREMENT [DIRECTORY [IN-FLIGHT ...]]]`

use std::{
    fs::OpenOptions,
    io::Write,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use berth_logic::{
    Config, Logic, StoreChoice,
    kv::{Embedded, Tail},
    metrics::QueueMetrics,
    queue::{Disk, LogQueue, Queue, Record},
};
use berth_proto::{
    client,
    link::{Link, Refused},
    metric::Registry,
    wire,
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use prost::Message;
use tokio::sync::{mpsc, oneshot};

/// In flight at a time.
const FLIGHTS: [usize; 3] = [1, 64, 512];

/// Measurements of each; the median counts.
const ROUNDS: usize = 5;

/// Bytes of a body: a line of chat.
const BODY: &[u8] = &[b'x'; 128];

/// Different senders.
const SENDERS: u64 = 1000;

/// Resolves to whether the message was accepted.
type Enter<'a> = Box<dyn Fn(u64) -> BoxFuture<'static, bool> + 'a>;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let directory = match arguments.next() {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir_in("."),
    };
    let directory = directory.expect("a directory to write in");
    let mut flights: Vec<usize> = arguments.filter_map(|text| text.parse().ok()).collect();
    if flights.is_empty() {
        flights = FLIGHTS.to_vec();
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure(directory.path(), Duration::from_secs_f64(seconds), &flights));
}

async fn measure(directory: &Path, time: Duration, flights: &[usize]) {
    let bare = BareLog::start(&directory.join("bare"));
    let names =
        Embedded::open(&directory.join("names"), &LogQueue::SPACES, 8 << 20, Tail::Whole).expect("opens");
    let files = Disk::open(&directory.join("queue")).expect("opens");
    let registry = Registry::new(&metrics::NoopRecorder);
    let queue =
        LogQueue::open(Arc::new(files), Arc::new(names), 16, 0, QueueMetrics::new(registry)).expect("opens");
    let store = StoreChoice::Embedded(directory.join("logic"));
    let config = Config { listen: ([127, 0, 0, 1], 0).into(), ..Config::new("bench", store, "k".repeat(32)) };
    let logic = Logic::start(config, registry).await.expect("starts");
    let gateway = Gateway::attach(&logic);

    let subjects: [(&str, Enter<'_>); 3] = [
        ("bare log", Box::new(|n| bare.append(record(n).encode_to_vec()))),
        (
            "queue",
            Box::new(|n| {
                queue.append(record(n)).expect("room").map(|done| !done.expect("accepted").duplicate).boxed()
            }),
        ),
        ("logic", Box::new(|n| gateway.send(n))),
    ];
    println!(
        "{:>9} {:>14} {:>14} {:>8} {:>14} {:>8}",
        "in flight", "bare log /s", "queue /s", "x bare", "logic /s", "x bare"
    );
    let mut next = 0;
    for &flight in flights {
        let mut rates = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for ((_, enter), rates) in subjects.iter().zip(&mut rates) {
                rates.push(rate(enter, flight, time, &mut next).await);
            }
        }
        let [bare, queue, logic] = rates.map(median);
        println!(
            "{flight:>9} {bare:>14.0} {queue:>14.0} {:>8.2} {logic:>14.0} {:>8.2}",
            queue / bare,
            logic / bare
        );
    }
    drop(subjects);
    drop(gateway);
    queue.close().await;
    logic.stop().await;
}

async fn rate(enter: &Enter<'_>, flight: usize, time: Duration, next: &mut u64) -> f64 {
    let mut flying = FuturesUnordered::new();
    let begun = Instant::now();
    let mut done = 0u32;
    loop {
        while flying.len() < flight && begun.elapsed() < time {
            *next += 1;
            flying.push(enter(*next));
        }
        match flying.next().await {
            Some(accepted) => done += u32::from(accepted),
            None => return f64::from(done) / begun.elapsed().as_secs_f64(),
        }
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn record(n: u64) -> Record {
    Record {
        message_id: n,
        conversation_id: n % SENDERS + 1,
        sender: format!("user-{}", n % SENDERS),
        peer: format!("user-{}", (n + 1) % SENDERS),
        client_msg_id: format!("message-{n}"),
        r#type: "text".to_owned(),
        body: BODY.into(),
        at_ms: 1_795_000_000_000,
    }
}

/// The floor: a thread that writes what waits to one file, syncs, and answers.
struct BareLog {
    asks: mpsc::Sender<(Vec<u8>, oneshot::Sender<()>)>,
}

impl BareLog {
    fn start(path: &Path) -> Self {
        let (asks, mut waiting) = mpsc::channel::<(Vec<u8>, oneshot::Sender<()>)>(4096);
        let mut file = OpenOptions::new().create(true).append(true).open(path).expect("opens");
        std::thread::spawn(move || {
            let (mut batch, mut bytes) = (Vec::new(), Vec::new());
            while waiting.blocking_recv_many(&mut batch, 512) > 0 {
                bytes.clear();
                for (record, _) in &batch {
                    bytes.extend_from_slice(record);
                }
                file.write_all(&bytes).expect("writes");
                file.sync_data().expect("syncs");
                for (_, answer) in batch.drain(..) {
                    let _ = answer.send(());
                }
            }
        });
        Self { asks }
    }

    fn append(&self, record: Vec<u8>) -> BoxFuture<'static, bool> {
        let (answer, answered) = oneshot::channel();
        self.asks.try_send((record, answer)).expect("room");
        answered.map(|done| done.is_ok()).boxed()
    }
}

/// The other side of a link: wakes whoever waits for a response.
#[derive(Default)]
struct Answers(Mutex<std::collections::HashMap<u32, oneshot::Sender<bool>>>);

/// How long a sender waits who was told that too much waits to be delivered: acceptance outran delivery, which is what is
/// measured from then on.
const REFUSED_WAIT: Duration = Duration::from_millis(5);

impl Link<wire::ToGateway> for Answers {
    fn send(&self, batch: Vec<wire::ToGateway>) -> Result<(), Refused<wire::ToGateway>> {
        let mut waiting = self.0.lock().expect("not poisoned");
        for message in batch {
            if let Some(wire::to_gateway::Message::Response(response)) = message.message {
                let response = response.response.expect("a response");
                let accepted = match &response.result {
                    Some(client::response::Result::Send(_)) => true,
                    Some(client::response::Result::Error(error)) if error.code == "RESOURCE_EXHAUSTED" => {
                        false
                    }
                    other => panic!("{other:?}"),
                };
                waiting.remove(&response.id).map(|answer| answer.send(accepted));
            }
        }
        Ok(())
    }
}

struct Gateway {
    up: Arc<dyn Link<wire::ToLogic>>,
    answers: Arc<Answers>,
}

impl Gateway {
    fn attach(logic: &Logic) -> Self {
        let answers = Arc::new(Answers::default());
        let attach = wire::AttachGateway { gateway_id: "bench".to_owned(), boot: 1 };
        Self { up: logic.service().attach(attach, answers.clone()), answers }
    }

    fn send(&self, n: u64) -> BoxFuture<'static, bool> {
        let Record { sender, peer, client_msg_id, body, .. } = record(n);
        let (answer, answered) = oneshot::channel();
        let id = (n % u64::from(u32::MAX)) as u32;
        self.answers.0.lock().expect("not poisoned").insert(id, answer);
        let to = client::Target { to: Some(client::target::To::UserId(peer)) };
        let send = client::SendRequest { client_msg_id, to: Some(to), r#type: String::new(), body };
        let request = client::Request { id, method: Some(client::request::Method::Send(send)) };
        let request = wire::ClientRequest {
            handle: n,
            user_id: sender,
            device_id: "d".to_owned(),
            session_epoch: 1,
            request: Some(request),
        };
        let message = Some(wire::to_logic::Message::Request(request));
        self.up.send(vec![wire::ToLogic { message }]).expect("room");
        async {
            let accepted = answered.await.expect("answered");
            if !accepted {
                tokio::time::sleep(REFUSED_WAIT).await;
            }
            accepted
        }
        .boxed()
    }
}
