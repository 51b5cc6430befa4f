//! What a peer that misbehaves, or is no longer there, may cost.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use berth_proto::{
    client::{ConversationSeq, PullRequest, Request, client_frame, request::Method, server_frame::Frame},
    tcp,
};
use socket2::SockRef;

use crate::support::{
    PATIENCE, Site,
    client::{ALL, Transport},
    eventually,
    logic::notify,
};

#[test]
fn silence_closes_with_4003_and_life_postpones_it() {
    let site = Site::with(|config| {
        config.heartbeat.interval_ms = 300;
        config.heartbeat.timeout_ms = 1_500;
    });
    for transport in ALL {
        let mut client = site.login(transport, "alice", "d");
        // Beating for longer than the timeout keeps the connection.
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(250));
            client.heartbeat();
            assert!(matches!(client.frame(), Frame::HeartbeatAck(_)), "{transport:?}");
        }
        assert_eq!(client.disconnected().code, 4003);
    }
    assert_eq!(site.metrics.counter("berth_gateway_heartbeat_timeouts_total"), 3);
    assert_eq!(site.metrics.counter("berth_gateway_connections_closed_total{code=\"4003\"}"), 3);
    eventually("logic learns of it", || site.logic.state().closed.len() == 3);
}

#[test]
fn a_dead_peer_is_dropped_though_it_never_answers_the_goodbye() {
    let site = Site::with(|config| {
        config.heartbeat.interval_ms = 100;
        config.heartbeat.timeout_ms = 200;
        config.timeouts.linger = Duration::from_millis(200);
    });
    let _dead = site.login(Transport::Tcp, "alice", "d");
    eventually("it is gone", || site.metrics.gauge("berth_gateway_connections").abs() < f64::EPSILON);
}

#[test]
fn who_does_not_say_hello_is_closed_with_4008() {
    let site = Site::with(|config| config.timeouts.hello = Duration::from_millis(100));
    let mut nothing = TcpStream::connect(site.gateway.local_addr()).expect("connects");
    nothing.set_read_timeout(Some(PATIENCE)).expect("settable");
    assert_eq!(
        nothing.read(&mut [0; 9]).expect("an end"),
        0,
        "nothing is said before the peer shows what it speaks"
    );
    let mut half = TcpStream::connect(site.gateway.local_addr()).expect("connects");
    half.set_read_timeout(Some(PATIENCE)).expect("settable");
    half.write_all(b"GET /v1/ws HTTP/1.1\r\nHost").expect("sends");
    assert_eq!(half.read(&mut [0; 9]).expect("an end"), 0);
    for transport in [Transport::Json, Transport::Proto] {
        assert_eq!(site.connect(transport).disconnected().code, 4008);
    }
    let mut partial = site.connect(Transport::Tcp);
    partial.send_bytes(&[0, 0, 1, 0, 9]);
    assert_eq!(partial.disconnected().code, 4008);
}

/// Makes the peer's socket full: pulls large answers without reading them.
fn fill(site: &Site, user: &str) -> crate::support::client::Client {
    site.logic.state().row_bytes = 700 * 1024;
    let mut client = site.login(Transport::Tcp, user, "d");
    // It does not grow: with what the gateway's side takes, less than 16 answers.
    SockRef::from(&*client.stream()).set_recv_buffer_size(256 * 1024).expect("settable");
    // In one write, so that the gateway reads them before the first answer blocks.
    let pull = |id| {
        let method = Some(Method::Pull(PullRequest::default()));
        let payload = client.encode(client_frame::Frame::Request(Request { id, method }));
        [&tcp::prefix(payload.len())[..], &payload].concat()
    };
    let all: Vec<u8> = (1..=16).flat_map(pull).collect();
    client.send_bytes(&all);
    // Buffers on both sides grow for a moment: it is full when a while brings nothing more.
    let mut taken = (0, Instant::now());
    eventually("the socket is full", || {
        let now = site.metrics.counter("berth_gateway_sent_bytes_total");
        if now != taken.0 {
            taken = (now, Instant::now());
        }
        let blocked = site.metrics.counter("berth_gateway_writes_blocked_total") > 0;
        blocked && taken.1.elapsed() > Duration::from_millis(1_000)
    });
    client
}

#[test]
fn notifies_for_a_peer_that_does_not_read_merge_into_one() {
    let site = Site::start();
    let mut client = fill(&site, "alice");
    let handle = site.logic.handle("alice", "d");
    for seq in 1..=10_000 {
        site.logic.send(vec![notify(handle, seq, vec![ConversationSeq { conversation_id: seq % 3, seq }])]);
    }
    // Others are served meanwhile.
    let mut other = site.login(Transport::Json, "bob", "d");
    other.heartbeat();
    assert!(matches!(other.frame(), Frame::HeartbeatAck(_)));
    let merged = || site.metrics.counter("berth_gateway_notifies_total{outcome=\"merged\"}");
    // Should the kernel take a little more after all, another goes out between.
    eventually("nearly all are merged", || merged() >= 9_990);
    let (mut answered, mut told, mut newest) = (0, 0, BTreeMap::new());
    let mut inbox_seq = 0;
    while answered < 16 || inbox_seq < 10_000 {
        match client.frame() {
            Frame::Response(response) => {
                answered += 1;
                assert_eq!(response.id, answered, "in order");
            }
            Frame::Notify(notify) => {
                assert!(notify.inbox_seq > inbox_seq && !notify.sync_all);
                (inbox_seq, told) = (notify.inbox_seq, told + 1);
                newest.extend(notify.conversations.iter().map(|one| (one.conversation_id, one.seq)));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(newest, BTreeMap::from([(0, 9_999), (1, 10_000), (2, 9_998)]));
    assert!(told <= 10, "{told} notifies");
    assert_eq!(site.metrics.counter("berth_gateway_frames_sent_total{kind=\"notify\"}"), told);
    client.heartbeat();
    assert!(matches!(client.frame(), Frame::HeartbeatAck(ack) if ack.inbox_seq == 10_000), "reading goes on");
}

#[test]
fn while_answers_are_unsent_nothing_more_is_read() {
    let site = Site::start();
    let mut client = fill(&site, "alice");
    assert!(
        site.logic.state().requested.len() < 16,
        "two answers are fetched while another is unsent, no more"
    );
    for _ in 0..1_000 {
        client.heartbeat();
    }
    let mut other = site.login(Transport::Proto, "bob", "d");
    for _ in 0..50 {
        other.heartbeat();
        assert!(matches!(other.frame(), Frame::HeartbeatAck(_)));
    }
    let acks = site.metrics.counter("berth_gateway_frames_received_total{kind=\"heartbeat\"}");
    assert_eq!(acks, 50, "the full peer's heartbeats wait in the kernel");
    let (mut answered, mut acked) = (0, 0);
    while answered < 16 || acked < 1_000 {
        match client.frame() {
            Frame::Response(response) => {
                answered += 1;
                assert_eq!(response.id, answered, "in order");
            }
            Frame::HeartbeatAck(_) => acked += 1,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_peer_that_takes_nothing_is_closed_as_slow() {
    let site = Site::with(|config| {
        config.heartbeat.interval_ms = 100;
        config.heartbeat.timeout_ms = 300;
        config.timeouts.linger = Duration::from_millis(200);
    });
    let _client = fill(&site, "alice");
    let closed = || site.metrics.counter("berth_gateway_connections_closed_total{code=\"4004\"}");
    eventually("it is closed", || closed() == 1);
    eventually("and dropped", || site.metrics.gauge("berth_gateway_connections").abs() < f64::EPSILON);
    assert_eq!(site.metrics.counter("berth_gateway_heartbeat_timeouts_total"), 0);
}

#[test]
fn a_flood_of_small_frames_is_answered_at_the_pace_the_peer_reads() {
    let site = Site::with(|config| config.limits.frames_per_second = 0);
    let mut client = site.login(Transport::Proto, "alice", "d");
    // 40,000 masked pings of no payload in one go: pongs come to the last one.
    let writer = client.stream().try_clone().expect("a second handle");
    let flood = std::thread::spawn(move || (&writer).write_all(&[0x89, 0x80, 1, 2, 3, 4].repeat(40_000)));
    let mut pongs = vec![0; 80_000];
    client.stream().read_exact(&mut pongs).expect("every pong");
    assert!(pongs.chunks(2).all(|pong| pong == [0x8a, 0]));
    flood.join().expect("no panic").expect("sends");
}
