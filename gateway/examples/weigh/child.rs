//! A process of the weighing: told what to do on its stdin, a line each, answering with a line.

use std::{
    io::{BufRead, BufReader, Write},
    process::{self, ChildStdin, ChildStdout, Command, Stdio},
};

/// A running one. Dropping it ends it.
pub struct Child {
    process: process::Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What a process says of itself.
pub struct Stat {
    /// Resident, anonymous.
    pub bytes: i64,
    /// Over all its threads.
    pub cpu_us: f64,
}

impl Child {
    /// This program with these arguments, on a core of its own where the machine has several.
    pub fn start(core: usize, arguments: &[&str]) -> Self {
        let exe = std::env::current_exe().expect("this program has a path");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut process = Command::new("taskset")
            .args(["-c", &(core % cores).to_string()])
            .arg(exe)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("taskset of util-linux starts it");
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        Self { process, input, output }
    }

    /// Its next line.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).expect("readable") > 0, "a process of the weighing ended");
        line.trim().to_owned()
    }

    /// Tells it to do something that it does not answer.
    pub fn say(&mut self, command: &str) {
        writeln!(self.input, "{command}").expect("it listens");
    }

    /// Tells it to do something and waits until it is done.
    pub fn ask(&mut self, command: &str) {
        self.say(command);
        assert_eq!(self.line(), "done");
    }

    /// What it weighs now.
    pub fn stat(&mut self) -> Stat {
        self.say("stat");
        let line = self.line();
        let (bytes, ns) = line.split_once(' ').expect("two numbers");
        Stat {
            bytes: bytes.parse().expect("bytes"),
            cpu_us: ns.parse::<f64>().expect("nanoseconds") / 1_000.0,
        }
    }

    /// Its CPU during `work`, in µs.
    pub fn cost(&mut self, work: impl FnOnce(&mut Self)) -> f64 {
        let before = self.stat().cpu_us;
        work(self);
        self.stat().cpu_us - before
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Between two single deliveries: longer than one takes, so that each is a wake-up of its own.
const PAUSE: std::time::Duration = std::time::Duration::from_micros(50);

/// Does `single` so many times, with a pause after each.
pub fn paced(count: usize, mut single: impl FnMut(usize)) {
    for index in 0..count {
        single(index);
        std::thread::sleep(PAUSE);
    }
}

/// The server's half of [`Child::stat`].
pub fn stat_line() -> String {
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

/// What a server is told.
pub enum Order {
    /// Everybody the same seq.
    Same(u64),
    /// Everybody his own, from this one up.
    Different(u64),
    /// This seq to the first so many, one after the other.
    Single(u64, usize),
}

/// Obeys the commands on stdin until it ends.
pub fn obey(mut order: impl FnMut(Order)) {
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        let count = |at: usize| words[at].parse::<usize>().expect("a number");
        match words[0] {
            "same" => order(Order::Same(number(1))),
            "different" => order(Order::Different(number(1))),
            "single" => {
                order(Order::Single(number(1), count(2)));
                println!("done");
            }
            "pause" => {
                paced(count(1), |_| {});
                println!("done");
            }
            _ => println!("{}", stat_line()),
        }
    }
}
