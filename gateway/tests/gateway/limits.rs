//! What one address, user, connection or web page may do, and that the others go on.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
};

use berth_gateway::Networks;
use berth_proto::{
    client::{Response, response, server_frame::Frame},
    code::ErrorCode,
};
use socket2::{Domain, Socket, Type};

use crate::support::{
    PATIENCE, Site,
    client::{ALL, Transport},
    eventually,
};

fn limited(site: &Site, limit: &str) -> u64 {
    site.metrics.counter(&format!("berth_gateway_limited_total{{limit={limit:?}}}"))
}

/// A connection from an address of loopback's /8.
fn connect_from(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::new(IpAddr::from(from), 0).into()).expect("binds");
    socket.connect(&to.into()).expect("connects");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("settable");
    stream
}

/// Whether the gateway let the connection in: it answers.
fn let_in(mut stream: &TcpStream) -> bool {
    let mut first = [0];
    // A connection that was dropped takes no bytes, or gives none.
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").is_ok() && stream.read(&mut first).is_ok_and(|read| read == 1)
}

#[test]
fn more_frames_a_second_than_allowed_close_with_4007_whatever_they_are() {
    let site = Site::with(|config| config.limits.frames_per_second = 50);
    for transport in ALL {
        let mut client = site.login(transport, "alice", "d");
        // As many as may be left of the second's worth after hello.
        for _ in 0..40 {
            client.heartbeat();
            assert!(matches!(client.frame(), Frame::HeartbeatAck(_)), "{transport:?}");
        }
        // At once, as far as it takes them before it says goodbye.
        let beat = client.encode(berth_proto::client::client_frame::Frame::Heartbeat(Default::default()));
        for _ in 0..200 {
            client.send_payload(&beat, transport == Transport::Json);
        }
        let goodbye = client.disconnected();
        assert_eq!(goodbye.code, 4007, "{transport:?}");
        assert!(goodbye.retry_after_ms >= 1_000, "{goodbye:?}");
    }
    for empty in [&[0x89, 0x80, 0, 0, 0, 0][..], &[0x8a, 0x80, 0, 0, 0, 0], &[0, 0x80, 0, 0, 0, 0]] {
        let mut client = site.login(Transport::Proto, "alice", "d");
        client
            .stream()
            .write_all(&[&[0x02, 0x80, 0, 0, 0, 0][..], &empty.repeat(500)].concat())
            .expect("sends");
        let mut all = Vec::new();
        client.stream().read_to_end(&mut all).expect("an end");
        let code = &all[all.len() - 40..];
        assert!(code.windows(2).any(|two| two == 4007u16.to_be_bytes()), "{empty:?}: {code:?}");
    }
    assert_eq!(limited(&site, "frames"), 6);
    assert_eq!(site.metrics.counter("berth_gateway_connections_closed_total{code=\"4007\"}"), 6);
}

#[test]
fn a_user_s_requests_are_limited_over_all_his_connections_and_others_are_not_touched() {
    let site = Site::with(|config| config.limits.requests_per_second_per_user = 4);
    let mut first = site.login(Transport::Tcp, "alice", "d-1");
    let mut second = site.login(Transport::Json, "alice", "d-2");
    let mut other = site.login(Transport::Proto, "bob", "d");
    let mut refused = 0;
    for client in [&mut first, &mut second] {
        (1..=12).for_each(|id| client.pull(id));
        for _ in 1..=12 {
            let Frame::Response(Response { result: Some(result), .. }) = client.frame() else {
                panic!("an answer")
            };
            if let response::Result::Error(error) = result {
                assert_eq!(error.code, ErrorCode::ResourceExhausted.as_str());
                assert!(error.retryable && (1..=250).contains(&error.retry_after_ms), "{error:?}");
                refused += 1;
            }
        }
        client.heartbeat();
        assert!(matches!(client.frame(), Frame::HeartbeatAck(_)), "only requests are refused");
    }
    // Unless this machine stood still for seconds.
    assert!(refused >= 10, "{refused} of 24");
    assert_eq!(limited(&site, "user_requests"), refused);
    (1..=4).for_each(|id| other.pull(id));
    (1..=4).for_each(|id| assert_eq!(other.response().0, id));
}

#[test]
fn connections_of_one_address_are_limited_and_come_back_as_they_end() {
    let site = Site::with(|config| {
        config.limits.exempt_addresses = Networks::none();
        config.limits.connections_per_address = 3;
        config.limits.handshakes_per_second_per_address = 0;
    });
    let to = site.gateway.local_addr();
    let mut held: Vec<_> = (0..3).map(|_| connect_from([127, 0, 0, 2], to)).collect();
    eventually("three are in", || {
        site.metrics.counter("berth_gateway_handshakes_total{result=\"accepted\"}") == 3
    });
    assert!(!let_in(&connect_from([127, 0, 0, 2], to)), "a fourth");
    assert_eq!(limited(&site, "address_connections"), 1);
    assert!(let_in(&connect_from([127, 0, 0, 3], to)), "another address");
    held.pop();
    eventually("its place is free again", || let_in(&connect_from([127, 0, 0, 2], to)));
    drop(held);
}

#[test]
fn an_address_that_connects_too_fast_is_dropped_and_others_are_not() {
    let site = Site::with(|config| {
        config.limits.exempt_addresses = "127.0.0.9".parse().expect("an address");
        config.limits.handshakes_per_second_per_address = 5;
        // What is dropped at once uses up nobody else's handshakes.
        config.handshakes_per_second = 40;
        config.workers = 1;
    });
    let to = site.gateway.local_addr();
    let flood: Vec<_> = (0..200).map(|_| connect_from([127, 0, 0, 2], to)).collect();
    eventually("most are dropped", || limited(&site, "address_rate") > 150);
    assert!(let_in(&connect_from([127, 0, 0, 3], to)), "another address");
    let exempt: Vec<_> = (0..20).map(|_| connect_from([127, 0, 0, 9], to)).collect();
    assert!(exempt.iter().all(let_in), "one without a limit");
    drop(flood);
}

#[test]
fn of_too_many_that_say_no_hello_the_oldest_gives_way() {
    let site = Site::with(|config| {
        config.workers = 1;
        config.limits.pending_handshakes = 10;
    });
    let pending = || site.metrics.gauge("berth_gateway_pending_handshakes");
    let mut stuck: Vec<_> =
        (0..30).map(|_| connect_from([127, 0, 0, 1], site.gateway.local_addr())).collect();
    eventually("the oldest are gone", || limited(&site, "pending_handshakes") == 20);
    assert!((pending() - 10.0).abs() < f64::EPSILON);
    for old in &mut stuck[..20] {
        assert_eq!(old.read(&mut [0; 9]).expect("an end"), 0);
    }
    for (n, transport) in ALL.into_iter().enumerate() {
        site.login(transport, "alice", &format!("d-{n}")).heartbeat();
    }
    assert_eq!(limited(&site, "pending_handshakes"), 21, "who says hello makes room for the next");
    drop(stuck);
    eventually("nobody is pending", || pending().abs() < f64::EPSILON);
}

#[test]
fn what_is_kept_of_those_without_hello_is_bounded_too() {
    let site = Site::with(|config| config.workers = 1);
    // Those who keep little are the oldest of all.
    let mut quiet: Vec<_> = ALL.into_iter().map(|transport| site.connect(transport)).collect();
    // Each sends nearly the largest hello: 400 of them are 24 MiB, of which 16 MiB are kept.
    let part = [&[0, 1, 0, 0][..], &[0; 61_000]].concat();
    let stuck: Vec<_> = (0..400)
        .map(|_| {
            let mut stream = connect_from([127, 0, 0, 1], site.gateway.local_addr());
            stream.write_all(&part).expect("sends");
            stream
        })
        .collect();
    eventually("the oldest give way", || limited(&site, "pending_handshakes") >= 100);
    eventually("everything was read", || {
        site.metrics.counter("berth_gateway_received_bytes_total") >= 300 * 61_000
    });
    let pending = site.metrics.gauge("berth_gateway_pending_handshakes");
    assert!(pending <= 300.0, "{pending}");
    for (n, client) in quiet.iter_mut().enumerate() {
        let (user, device) = (format!("u{n}"), "d");
        client.hello(&site.scheduler.sign(&Site::ticket(&user, device)), device);
        assert_eq!(client.welcome().user_id, user);
    }
    drop(stuck);
}

#[test]
fn those_who_are_refused_before_their_hello_have_no_more_slots_than_those_who_dawdle() {
    let site = Site::with(|config| {
        config.workers = 1;
        config.limits.pending_handshakes = 10;
        // Nobody goes because of that.
        config.timeouts.linger = std::time::Duration::from_secs(600);
    });
    let mut refused: Vec<_> = (0..30)
        .map(|n| {
            let mut client = site.connect(ALL[n % 3]);
            client.hello("rubbish", "d");
            assert_eq!(client.disconnected().code, 4500);
            client
        })
        .collect();
    let connections = || site.metrics.gauge("berth_gateway_connections");
    eventually("the oldest are gone", || limited(&site, "pending_handshakes") == 20);
    assert!((connections() - 10.0).abs() < f64::EPSILON, "{}", connections());
    // Who is welcomed and goes later is none of them.
    let mut alice = site.login(Transport::Json, "alice", "d");
    assert_eq!(limited(&site, "pending_handshakes"), 21);
    alice.heartbeat();
    refused.clear();
    eventually("those who went are not counted", || (connections() - 1.0).abs() < f64::EPSILON);
}

#[test]
fn a_large_frame_counts_for_its_bytes() {
    let site = Site::with(|config| config.limits.frames_per_second = 50);
    for transport in ALL {
        let mut client = site.login(transport, "alice", "d");
        // 60 KiB count 16 times: three are within the second's worth, and ten of any are not.
        let large = vec![b' '; 60 * 1024];
        let beat = client.encode(berth_proto::client::client_frame::Frame::Heartbeat(Default::default()));
        let padded = match transport {
            Transport::Json => [&beat[..], &large].concat(),
            // Behind its tag and length, a field 100 of a later version.
            Transport::Proto | Transport::Tcp => {
                [&[0xa2, 0x06, 0x80, 0xe0, 0x03], &large[..], &beat].concat()
            }
        };
        for _ in 0..10 {
            client.send_payload(&padded, transport == Transport::Json);
        }
        assert_eq!(client.disconnected().code, 4007, "{transport:?}");
    }
}

#[test]
fn a_malformed_request_is_taken_from_the_user_s_share_too() {
    let site = Site::with(|config| config.limits.requests_per_second_per_user = 4);
    let mut client = site.login(Transport::Json, "alice", "d");
    let mut codes = Vec::new();
    for _ in 0..12 {
        client.send_payload(br#"{"request":{"id":1,"pull":{"limit":"many"}}}"#, true);
        let Frame::Response(Response { result: Some(response::Result::Error(error)), .. }) = client.frame()
        else {
            panic!("an error")
        };
        codes.push(error.code);
    }
    let limited = codes.iter().filter(|code| *code == ErrorCode::ResourceExhausted.as_str()).count();
    // Unless this machine stood still for a second.
    assert!(limited >= 4 && codes[0] == ErrorCode::InvalidArgument.as_str(), "{codes:?}");
}

#[test]
fn a_foreign_page_gets_403_and_a_client_without_origin_does_not() {
    let site = Site::with(|config| {
        config.limits.origins = "https://app.example.com, https://*.example.org".parse().expect("origins");
    });
    let head = "GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: berth.v1.json\r\n";
    for (origin, status) in [
        ("", "101"),
        ("Origin: https://app.example.com\r\n", "101"),
        ("origin: https://chat.example.org\r\n", "101"),
        ("Origin: https://evil.example\r\n", "403"),
        ("Origin: http://app.example.com\r\n", "403"),
        ("Origin: null\r\n", "403"),
    ] {
        let mut stream = connect_from([127, 0, 0, 1], site.gateway.local_addr());
        stream.write_all(format!("{head}{origin}\r\n").as_bytes()).expect("sends");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, format!("HTTP/1.1 {status}").as_bytes(), "{origin}");
    }
    assert_eq!(limited(&site, "origin"), 3);
}
