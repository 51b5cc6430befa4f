//! Descriptors run out: the listener survives, those who are here are served, and it recovers. Alone in its process,
//! because the limit is the process's.

#[path = "gateway/support/mod.rs"]
#[expect(dead_code, reason = "shared with the other tests; this one needs a part of it")]
mod support;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
};

use berth_proto::client::server_frame::Frame;
use socket2::{Domain, Socket, Type};

use support::{PATIENCE, Site, client::Transport, eventually};

/// Lowers the soft limit at the first line it reads and raises it again at the second.
const LIMITER: &str = r#"
hard=$(prlimit --pid $1 --nofile --output HARD --noheadings | tr -d ' ')
read _; prlimit --pid $1 --nofile=1:$hard; echo low
read _; prlimit --pid $1 --nofile=$hard:$hard; echo high
"#;

#[test]
fn without_descriptors_the_listener_rests_and_recovers() {
    let site = Site::with(|config| config.workers = 1);
    let mut here = site.login(Transport::Json, "alice", "d");
    // Everything that needs a descriptor on this side is made before there are none.
    let waiting = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let mut limiter = Command::new("sh")
        .args(["-c", LIMITER, "limiter", &std::process::id().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh runs");
    let mut tell = limiter.stdin.take().expect("piped");
    let mut answers = BufReader::new(limiter.stdout.take().expect("piped")).lines();
    let mut turn = |to: &str| {
        writeln!(tell).expect("the limiter listens");
        assert_eq!(answers.next().expect("an answer").expect("readable"), to);
    };

    turn("low");
    waiting.connect(&site.gateway.local_addr().into()).expect("the backlog takes it");
    let errors = || site.metrics.counter("berth_gateway_accept_errors_total");
    eventually("accepts fail", || errors() >= 3);
    here.heartbeat();
    assert!(matches!(here.frame(), Frame::HeartbeatAck(_)), "who is here is served");
    turn("high");
    let mut waiting = TcpStream::from(waiting);
    waiting.set_read_timeout(Some(PATIENCE)).expect("settable");
    waiting.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sends");
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).expect("an answer and an end");
    assert!(answer.starts_with("HTTP/1.1 404"), "who waited in the backlog is served: {answer}");
    // Ten failures a second at the most: the loop does not spin.
    assert!(errors() < 300, "{} failed accepts", errors());
    limiter.wait().expect("the limiter ends");
}
