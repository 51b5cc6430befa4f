//! Weighs the gateway beside a bare epoll server that does the same system calls (and, for a connect, the upgrade and the
//! ticket): CPU of a connect, a heartbeat, a delivery to everybody and one to a single connection, and resident bytes of an
//! idle authenticated WebSocket connection, before and after storms of deliveries.
//!
//! `cargo run --release -p berth-gateway --example weigh [CONNECTIONS] [ROUNDS]`. Servers and their clients are processes of
//! their own, servers with one thread that holds connections. Both servers have their turn in every round, so that a
//! machine that becomes slower meanwhile becomes slower for both. The allocator is the product's.

mod bare;
mod child;
mod load;
mod server;

use child::{Child, Stat};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connects come in so many parts, in turns.
const CONNECT_PARTS: usize = 10;

/// The deadline of a hello, and a second of the timer wheel.
const HELLO: std::time::Duration = std::time::Duration::from_secs(11);

/// Connections that get one of their own in a round of single deliveries.
const SINGLES: usize = 5_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("serve-gateway") => server::run(),
        Some("serve-bare") => bare::run(),
        Some("load") => load::run(&arguments[2]),
        _ => {
            let number = |at: usize, default| {
                arguments.get(at).map_or(default, |text: &String| text.parse().expect("a number"))
            };
            weigh(number(1, 10_000), number(2, 5));
        }
    }
}

/// A server, its clients, and what was measured.
struct Weighed {
    mode: &'static str,
    server: Child,
    clients: Child,
    count: usize,
    empty: Stat,
    connect_us: f64,
    /// By kind of work, one figure a round.
    rounds: Vec<(&'static str, Vec<f64>)>,
}

fn weigh(count: usize, rounds: usize) {
    let mut both = [Weighed::start("serve-bare"), Weighed::start("serve-gateway")];
    for part in 0..CONNECT_PARTS {
        let until = count * (part + 1) / CONNECT_PARTS;
        both.iter_mut().for_each(|one| one.connect(until));
    }
    // Past the hello's deadline the gateway looks at each once more, and its timers are as they stay.
    std::thread::sleep(HELLO);
    let idle = both.each_mut().map(Weighed::bytes);
    let mut seq = 0;
    for _ in 0..rounds {
        both.iter_mut().for_each(|one| one.each("heartbeat", None));
        seq += 1;
        both.iter_mut().for_each(|one| one.each("delivery, equal", Some(&format!("same {seq}"))));
        seq += 1;
        both.iter_mut()
            .for_each(|one| one.each("delivery, all different", Some(&format!("different {seq}"))));
        seq += count;
        both.iter_mut().for_each(|one| one.singles(seq));
    }
    let stormed = both.each_mut().map(Weighed::bytes);
    report(count, &mut both, idle, stormed);
}

impl Weighed {
    fn start(mode: &'static str) -> Self {
        let mut server = Child::start(0, &[mode]);
        let address = server.line();
        let clients = Child::start(1, &["load", &address]);
        let empty = server.stat();
        Self { mode, server, clients, count: 0, empty, connect_us: 0.0, rounds: Vec::new() }
    }

    fn connect(&mut self, until: usize) {
        let clients = &mut self.clients;
        let cost = self.server.cost(|_| clients.ask(&format!("connect {until}")));
        (self.connect_us, self.count) = (self.connect_us + cost, until);
    }

    /// A heartbeat of each, or something the server says to each.
    fn each(&mut self, kind: &'static str, command: Option<&str>) {
        let clients = &mut self.clients;
        let cost = self.server.cost(|server| match command {
            None => clients.ask("heartbeat"),
            Some(command) => {
                server.say(command);
                clients.ask(&format!("read {}", usize::MAX));
            }
        });
        let count = self.count;
        self.note(kind, cost / count as f64);
    }

    /// One delivery after the other, each by itself: what the pauses between cost is taken off.
    fn singles(&mut self, seq: usize) {
        let count = self.count.min(SINGLES);
        let pauses = self.server.cost(|server| server.ask(&format!("pause {count}")));
        let clients = &mut self.clients;
        let cost = self.server.cost(|server| {
            server.ask(&format!("single {seq} {count}"));
            clients.ask(&format!("read {count}"));
        });
        self.note("delivery to one", (cost - pauses) / count as f64);
    }

    fn note(&mut self, kind: &'static str, us: f64) {
        // Which work makes memory grow can be seen here.
        let bytes = (self.server.stat().bytes - self.empty.bytes) / self.count as i64;
        eprintln!("{}: {kind}: {us:.2} us, {bytes} bytes", self.mode);
        match self.rounds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, figures)) => figures.push(us),
            None => self.rounds.push((kind, vec![us])),
        }
    }

    /// Resident bytes of a connection, once an allocator has had time to give back what it does.
    fn bytes(&mut self) -> f64 {
        std::thread::sleep(std::time::Duration::from_secs(2));
        (self.server.stat().bytes - self.empty.bytes) as f64 / self.count as f64
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(count: usize, both: &mut [Weighed; 2], idle: [f64; 2], stormed: [f64; 2]) {
    println!(
        "{count} authenticated WebSocket connections (berth.v1.proto), one worker; medians of the rounds"
    );
    println!("{:<34}{:>10}{:>10}{:>8}", "", "bare", "gateway", "ratio");
    println!("{:<34}{:>10.0}{:>10.0}", "resident bytes, idle", idle[0], idle[1]);
    println!("{:<34}{:>10.0}{:>10.0}", "resident bytes, after the storms", stormed[0], stormed[1]);
    let row = |name: &str, bare: f64, gateway: f64, ratio: f64| {
        println!("{:<34}{bare:>10.2}{gateway:>10.2}{ratio:>8.2}", format!("CPU of a {name}, us"));
    };
    let connect = [0, 1].map(|who| both[who].connect_us / count as f64);
    row("connect", connect[0], connect[1], connect[1] / connect[0]);
    for (index, (kind, gateway)) in both[1].rounds.iter().enumerate() {
        let bare = &both[0].rounds[index].1;
        let ratio = median(bare.iter().zip(gateway).map(|(bare, gateway)| gateway / bare));
        row(kind, median(bare.iter().copied()), median(gateway.iter().copied()), ratio);
    }
}
