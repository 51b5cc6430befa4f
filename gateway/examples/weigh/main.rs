//! Weighs the gateway: resident bytes of an idle authenticated WebSocket connection, and CPU of a connect, a heartbeat and
//! a delivery, beside a bare epoll server that does the same system calls (and, for a connect, the upgrade and the ticket).
//!
//! `cargo run --release -p berth-gateway --example weigh [CONNECTIONS]`. The servers run as child processes, one thread each,
//! so that what is weighed is only theirs.

mod bare;
mod load;
mod server;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// Rounds of heartbeats and deliveries; the middle one is shown.
const ROUNDS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("serve-gateway") => server::run(),
        Some("serve-bare") => bare::run(),
        count => {
            let count = count.map_or(10_000, |count| count.parse().expect("a number of connections"));
            let bare = weigh("serve-bare", count);
            let gateway = weigh("serve-gateway", count);
            report(count, &bare, &gateway);
        }
    }
}

/// What was measured of one server; CPU in µs for each connection.
struct Weight {
    idle_bytes: f64,
    stormed_bytes: f64,
    connect: f64,
    heartbeat: f64,
    delivery: f64,
}

fn weigh(mode: &str, count: usize) -> Weight {
    let mut server = Server::start(mode);
    let before = server.stat();
    let mut clients = load::connect(&server.address, count);
    let idle = server.stat();
    let per = |us: f64| us / count as f64;
    let mut heartbeats: Vec<f64> =
        (0..ROUNDS).map(|_| per(server.cost(|_| load::heartbeats(&mut clients)))).collect();
    let mut deliveries: Vec<f64> = (1..=ROUNDS)
        .map(|round| {
            per(server.cost(|server| {
                server.say(&format!("notify {round}"));
                load::notified(&mut clients);
            }))
        })
        .collect();
    let stormed = server.stat();
    Weight {
        idle_bytes: per((idle.bytes - before.bytes) as f64),
        stormed_bytes: per((stormed.bytes - before.bytes) as f64),
        connect: per(idle.cpu_us - before.cpu_us),
        heartbeat: median(&mut heartbeats),
        delivery: median(&mut deliveries),
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(count: usize, bare: &Weight, gateway: &Weight) {
    println!("{count} idle authenticated WebSocket connections (berth.v1.proto), one worker");
    println!("{:<34}{:>10}{:>10}{:>8}", "", "bare", "gateway", "ratio");
    let row = |name: &str, bare: f64, gateway: f64| {
        println!("{name:<34}{bare:>10.2}{gateway:>10.2}{:>8.2}", gateway / bare);
    };
    println!("{:<34}{:>10.0}{:>10.0}", "resident bytes, idle", bare.idle_bytes, gateway.idle_bytes);
    println!(
        "{:<34}{:>10.0}{:>10.0}",
        "resident bytes, after the storm", bare.stormed_bytes, gateway.stormed_bytes
    );
    row("CPU of a connect, us", bare.connect, gateway.connect);
    row("CPU of a heartbeat, us", bare.heartbeat, gateway.heartbeat);
    row("CPU of a delivery, us", bare.delivery, gateway.delivery);
}

/// A server in its own process.
struct Server {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    address: String,
}

struct Stat {
    bytes: i64,
    cpu_us: f64,
}

impl Server {
    fn start(mode: &str) -> Self {
        let exe = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(exe)
            .arg(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut server = Self { child, input, output, address: String::new() };
        server.address = server.line();
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the server answers");
        line.trim().to_owned()
    }

    fn say(&mut self, command: &str) {
        writeln!(self.input, "{command}").expect("the server listens");
    }

    fn stat(&mut self) -> Stat {
        self.say("stat");
        let line = self.line();
        let (bytes, ns) = line.split_once(' ').expect("two numbers");
        Stat {
            bytes: bytes.parse().expect("bytes"),
            cpu_us: ns.parse::<f64>().expect("nanoseconds") / 1_000.0,
        }
    }

    /// The server's CPU during `work`, in µs.
    fn cost(&mut self, work: impl FnOnce(&mut Self)) -> f64 {
        let before = self.stat().cpu_us;
        work(self);
        self.stat().cpu_us - before
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server says of itself: resident anonymous bytes, and nanoseconds of CPU over all its threads.
fn stat_line() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let anonymous =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux 4.5 or later");
    let kib: u64 = anonymous.trim().trim_end_matches(" kB").parse().expect("a number");
    let cpu: u64 = std::fs::read_dir("/proc/self/task")
        .expect("Linux")
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    format!("{} {cpu}", kib * 1024)
}
