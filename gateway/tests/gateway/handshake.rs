//! From connect to welcome: transports, subprotocols, what is answered before there is a session.

use std::{io::Read, io::Write, net::TcpStream};

use berth_gateway::{Config, Gateway};
use berth_proto::{client::client_frame, metric::Registry};

use crate::support::{
    PATIENCE, Site,
    client::{ALL, Transport},
    eventually,
};

#[test]
fn every_transport_is_welcomed_on_one_port() {
    let site = Site::start();
    site.logic.state().inbox_seq.insert("alice".into(), 5);
    let clients: Vec<_> = ALL
        .into_iter()
        .map(|transport| {
            let mut client = site.connect(transport);
            let device = format!("d-{transport:?}");
            client.hello(&site.scheduler.sign(&Site::ticket("alice", &device)), &device);
            let welcome = client.welcome();
            assert_eq!((welcome.user_id.as_str(), welcome.inbox_seq, welcome.inbox_epoch), ("alice", 5, 1));
            assert_eq!(welcome.heartbeat_interval_ms, 25_000);
            assert!(!welcome.session_id.is_empty());
            client
        })
        .collect();
    let opened = site.logic.state().opened.clone();
    assert_eq!(opened.len(), 3);
    assert!(opened.iter().all(|open| open.platform == "test" && open.app_version == "1.2.3"));
    assert!((site.metrics.gauge("berth_gateway_connections") - 3.0).abs() < f64::EPSILON);
    drop(clients);
    eventually("everybody is gone", || {
        site.metrics.gauge("berth_gateway_connections").abs() < f64::EPSILON
            && site.metrics.gauge("berth_gateway_sessions").abs() < f64::EPSILON
    });
    eventually("logic learns of the ends", || site.logic.state().closed.len() == 3);
}

#[test]
fn a_whole_session_survives_byte_by_byte_delivery() {
    let site = Site::start();
    for transport in ALL {
        let mut client = site.connect(transport);
        let ticket = site.scheduler.sign(&Site::ticket("bob", "d"));
        let hello = client.encode(client_frame::Frame::Hello(berth_proto::client::Hello {
            ticket,
            device_id: "d".into(),
            ..Default::default()
        }));
        let beat = client.encode(client_frame::Frame::Heartbeat(berth_proto::client::Heartbeat {}));
        for payload in [hello, beat] {
            for byte in envelope(transport, &payload) {
                client.send_bytes(&[byte]);
            }
        }
        client.welcome();
        assert!(matches!(client.frame(), berth_proto::client::server_frame::Frame::HeartbeatAck(_)));
    }
}

/// The bytes a client puts on the wire.
fn envelope(transport: Transport, payload: &[u8]) -> Vec<u8> {
    if transport == Transport::Tcp {
        return [&berth_proto::tcp::prefix(payload.len())[..], payload].concat();
    }
    let opcode = if transport == Transport::Json { 0x81 } else { 0x82 };
    let mask = [1, 2, 3, 4];
    let mut bytes = vec![opcode];
    match u8::try_from(payload.len()) {
        Ok(length) if length < 126 => bytes.push(0x80 | length),
        _ => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(payload.len()).expect("short").to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

#[test]
fn http_that_is_no_websocket_is_answered_as_http() {
    let site = Site::start();
    let head = "GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let cases = [
        (format!("{head}\r\n"), "400", "berth.v1.json or berth.v1.proto"),
        (format!("{head}Sec-WebSocket-Protocol: mqtt\r\n\r\n"), "400", "berth.v1.json or berth.v1.proto"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404", "/v1/ws"),
        ("GET /v1/ws HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "426", "Upgrade: websocket"),
        (format!("GET /v1/ws HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(9_000)), "431", "8 KiB"),
        ("GET /v1/ws HTTP/1.1\r\n:\r\n\r\n".to_owned(), "400", "not an HTTP"),
        ("POST /v1/ws HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "405", "GET"),
        ("PUT /v1/ws HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "405", "GET"),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "405", "GET"),
        ("ABCDEF\0\0\0\0".to_owned(), "400", "not an HTTP"),
    ];
    for (request, status, text) in cases {
        let mut stream = TcpStream::connect(site.gateway.local_addr()).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("settable");
        stream.write_all(request.as_bytes()).expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and an end");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains(text), "{answer}");
    }
    assert_eq!(site.metrics.counter("berth_gateway_connections_closed_total{code=\"http\"}"), 10);
}

#[test]
fn above_the_capacity_websockets_get_503_and_tcp_4009() {
    let site = Site::with(|config| config.capacity = Some(1));
    let _first = site.login(Transport::Tcp, "alice", "d");
    let mut stream = TcpStream::connect(site.gateway.local_addr()).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("settable");
    let request = "GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Protocol: berth.v1.json\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer and an end");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After"), "{answer}");
    let mut second = site.connect(Transport::Tcp);
    second.heartbeat();
    let goodbye = second.disconnected();
    assert_eq!(goodbye.code, 4009);
    assert!(goodbye.retry_after_ms > 0);
}

#[test]
fn reports_tell_identity_load_and_used_tickets() {
    let site = Site::with(|config| {
        config.region = "eu".into();
        config.advertise = Some("gw.example:443".into());
    });
    let _client = site.login(Transport::Proto, "alice", "d");
    eventually("a report with the connection, let in", || {
        site.scheduler.last_report().is_some_and(|report| (report.connections, report.handshakes) == (1, 1))
    });
    let report = site.scheduler.last_report().expect("a report");
    assert!(report.ready && !report.draining);
    assert_eq!(
        (report.gateway_id.as_str(), report.region.as_str(), report.pool.as_str()),
        ("gw-1", "eu", "stable")
    );
    assert_eq!(report.handshakes_per_second_capacity, 2_000);
    assert!(report.capacity > 1 && report.boot != 0);
    let urls: Vec<_> = report.endpoints.iter().map(|e| (e.transport.as_str(), e.url.as_str())).collect();
    assert_eq!(urls, [("ws", "ws://gw.example:443/v1/ws"), ("tcp", "tcp://gw.example:443")]);
    eventually("the used ticket", || site.scheduler.used_tickets() == [7]);
}

#[test]
fn readiness_says_what_is_missing() {
    let site = Site::bare(|_| {});
    assert!(site.gateway.ready().expect_err("nothing attached").contains("logic"));
    site.gateway.attach_logic(std::sync::Arc::clone(&site.logic) as _);
    assert!(site.gateway.ready().expect_err("no keys").contains("keys"));
    let mut early = site.connect(Transport::Tcp);
    early.hello(&site.scheduler.sign(&Site::ticket("alice", "d")), "d");
    assert_eq!(early.disconnected().code, 4009);
    site.gateway.attach_scheduler(std::sync::Arc::clone(&site.scheduler) as _);
    assert_eq!(site.gateway.ready(), Ok(()));
}

#[test]
fn a_port_in_use_is_refused_by_name() {
    let site = Site::start();
    let address = site.gateway.local_addr();
    let second = Gateway::start(Config::new("gw-2", address), Registry::new(&metrics::NoopRecorder));
    let problem = second.err().expect("refused").to_string();
    assert!(problem.contains(&address.to_string()), "{problem}");
}
