//! Notifies on their way to many sockets, and to one that is full.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use berth_proto::{
    client::server_frame::Frame,
    wire::{NotifyConnections, to_gateway},
};
use socket2::SockRef;

use crate::support::{
    PATIENCE, Site,
    client::{ALL, Client, Transport},
    eventually,
};

const NOTIFIED: &str = "berth_gateway_frames_sent_total{kind=\"notify\"}";
const BLOCKED: &str = "berth_gateway_writes_blocked_total";

#[test]
fn a_batch_to_many_reaches_each_once_with_his_own_seq() {
    let site = Site::start();
    let mut clients: Vec<(u64, Client)> = (0..150)
        .map(|n| {
            let (transport, user) = (ALL[n % ALL.len()], format!("u{n}"));
            let client = site.login(transport, &user, "d");
            (site.logic.handle(&user, "d"), client)
        })
        .collect();
    // Everybody the same, everybody his own, and many in a batch for each: the newest of them.
    let seqs: [fn(u64) -> u64; 4] = [|_| 1_000, |n| 2_000 + n, |n| 3_000 + n % 2, |n| 4_000 + 64 * n];
    for seq in seqs {
        let mut batch = NotifyConnections::default();
        for repeat in 0..20 {
            for (n, (handle, _)) in (0..).zip(&clients) {
                let all = seq(n);
                batch.push(*handle, if repeat == 7 { all } else { all - repeat.min(900) - 1 });
            }
        }
        site.logic.send(vec![to_gateway::Message::Notify(batch)]);
        for (n, (_, client)) in (0..).zip(&mut clients) {
            let told = loop {
                let Frame::Notify(told) = client.frame() else { panic!("a notify") };
                if told.inbox_seq == seq(n) {
                    break told;
                }
                // The batch is more than one wake-up's work: an older one of it may have gone out first.
                assert!(told.inbox_seq < seq(n) && told.inbox_seq + 901 >= seq(n), "{told:?}");
            };
            assert!(!told.sync_all && told.conversations.is_empty());
        }
    }
}

/// Notifies a client that does not read until its socket is full; the newest seq.
fn fill_with_notifies(site: &Site, user: &str) -> (Client, u64, u64) {
    let mut client = site.login(Transport::Proto, user, "d");
    SockRef::from(&*client.stream()).set_recv_buffer_size(4_096).expect("settable");
    let handle = site.logic.handle(user, "d");
    let mut seq = 0;
    while site.metrics.counter(BLOCKED) == 0 {
        assert!(seq < 5_000_000, "the socket takes everything");
        seq += 1;
        site.logic.notify(handle, seq);
        if seq % 500 == 0 {
            // It lives, as far as that goes.
            client.heartbeat();
        }
        let done = || site.metrics.counter(NOTIFIED) >= seq || site.metrics.counter(BLOCKED) > 0;
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            let sent = site.metrics.counter(NOTIFIED);
            assert!(
                Instant::now() < deadline,
                "notify {seq} is neither written nor blocked; {sent} are written"
            );
            std::thread::yield_now();
        }
    }
    (client, handle, seq)
}

#[test]
fn a_full_socket_keeps_only_how_far_the_inbox_is() {
    let site = Site::with(|config| config.workers = 1);
    let (mut client, handle, filled) = fill_with_notifies(&site, "alice");
    for seq in filled + 1..=filled + 1_000 {
        site.logic.notify(handle, seq);
    }
    // Others are told meanwhile, with the same batches.
    let mut other = site.login(Transport::Tcp, "bob", "d");
    let mut batch = NotifyConnections::default();
    batch.push(handle, filled + 2_000);
    batch.push(site.logic.handle("bob", "d"), 5);
    site.logic.send(vec![to_gateway::Message::Notify(batch)]);
    assert!(matches!(other.frame(), Frame::Notify(told) if told.inbox_seq == 5));
    assert_eq!(site.metrics.counter(BLOCKED), 1, "it is not tried again before there is room");
    let mut told = 0;
    let mut frames = 0;
    while told < filled + 2_000 {
        let notify = match client.frame() {
            Frame::Notify(notify) => notify,
            Frame::HeartbeatAck(_) => continue,
            other => panic!("{other:?}"),
        };
        assert!(notify.inbox_seq > told, "{} after {told}", notify.inbox_seq);
        (told, frames) = (notify.inbox_seq, frames + 1);
    }
    assert!(frames <= filled + 1, "{frames} frames: what came while it was full became one");
    client.heartbeat();
    assert!(matches!(client.frame(), Frame::HeartbeatAck(ack) if ack.inbox_seq == told), "reading goes on");
}

#[test]
fn who_takes_no_notifies_is_closed_as_slow() {
    let site = Site::with(|config| {
        config.heartbeat.interval_ms = 400;
        config.heartbeat.timeout_ms = 2_000;
        config.timeouts.linger = Duration::from_millis(200);
    });
    let (mut client, _, _) = fill_with_notifies(&site, "alice");
    let closed = || site.metrics.counter("berth_gateway_connections_closed_total{code=\"4004\"}");
    eventually("it is closed", || closed() == 1);
    assert_eq!(site.metrics.counter("berth_gateway_heartbeat_timeouts_total"), 0);
    eventually("and dropped", || site.metrics.gauge("berth_gateway_connections").abs() < f64::EPSILON);
    // What it did take is whole frames up to where the socket was full, and perhaps the goodbye.
    let mut rest = Vec::new();
    let _ = client.stream().read_to_end(&mut rest);
    assert!(!rest.is_empty());
}
