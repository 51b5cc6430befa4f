//! PROTOCOL.md's table of errors, row by row, on each transport.

use std::sync::Arc;

use berth_proto::{
    client::{self, Endpoint, Hello, Request, client_frame, request::Method},
    code::{CloseCode, ErrorCode},
    ticket::TicketSigner,
    wire::{RedirectAnswer, Ticket},
};

use crate::support::{
    Site,
    client::{ALL, Client, Transport},
    eventually,
    logic::Manner,
    now_ms,
    scheduler::FakeScheduler,
};

/// A payload, and whether it is text.
fn bad_payloads(transport: Transport) -> Vec<(&'static [u8], bool)> {
    match transport {
        Transport::Json => vec![
            (b"not json", true),
            (b"{}", true),
            (br#"{"heartbeat":{},"request":{"id":1}}"#, true),
            (br#"{"heartbeat":{}}"#, false),
        ],
        Transport::Proto => {
            vec![(b"\xff\xff\xff", false), (b"", false), (&[0x12, 0, 0x1a, 0], false), (b"hi", true)]
        }
        Transport::Tcp => vec![(b"\xff\xff\xff", false), (b"", false), (&[0x12, 0, 0x1a, 0], false)],
    }
}

#[test]
fn what_is_no_frame_closes_with_4501() {
    let site = Site::start();
    for transport in ALL {
        for (payload, text) in bad_payloads(transport) {
            let mut before = site.connect(transport);
            before.send_payload(payload, text);
            assert_eq!(before.disconnected().code, 4501, "{transport:?} {payload:?} before hello");
            let mut after = site.login(transport, "alice", "d");
            after.send_payload(payload, text);
            let goodbye = after.disconnected();
            assert_eq!(goodbye.code, 4501, "{transport:?} {payload:?}");
            assert!(goodbye.reason.starts_with("bad_frame: "), "{}", goodbye.reason);
        }
    }
}

#[test]
fn a_frame_before_hello_and_a_second_hello_close_with_4501() {
    let site = Site::start();
    for transport in ALL {
        let mut early = site.connect(transport);
        early.heartbeat();
        assert_eq!(early.disconnected().code, 4501);
        let mut early = site.connect(transport);
        early.pull(1);
        assert_eq!(early.disconnected().code, 4501);
        let mut twice = site.login(transport, "alice", "d");
        twice.hello("x", "d");
        assert_eq!(twice.disconnected().code, 4501);
    }
}

#[test]
fn frames_up_to_64_kib_pass_and_larger_ones_close() {
    let site = Site::start();
    for transport in ALL {
        let mut client = site.login(transport, "alice", "d");
        let beat = client.encode(client_frame::Frame::Heartbeat(client::Heartbeat {}));
        let mut payload = padded(transport, beat, 64 * 1024);
        client.send_payload(&payload, transport == Transport::Json);
        assert!(matches!(client.frame(), client::server_frame::Frame::HeartbeatAck(_)), "{transport:?}");
        payload.push(if transport == Transport::Json { b' ' } else { 0 });
        client.send_payload(&payload, transport == Transport::Json);
        assert_eq!(client.disconnected().code, 4501, "{transport:?}");
    }
}

#[test]
fn a_hello_may_have_64_kib_and_not_a_byte_more() {
    let site = Site::start();
    let room = 64 * 1024;
    for transport in ALL {
        let ticket = site.scheduler.sign(&Site::ticket("alice", "d"));
        let mut client = site.connect(transport);
        let hello = Hello { ticket, device_id: "d".into(), ..Hello::default() };
        let payload = padded(transport, client.encode(client_frame::Frame::Hello(hello)), room);
        client.send_payload(&payload, transport == Transport::Json);
        client.welcome();
    }
    let mut tcp = site.connect(Transport::Tcp);
    tcp.send_bytes(&[0, 1, 0, 1]);
    assert_eq!(tcp.disconnected().code, 4501);
    let mut ws = site.connect(Transport::Proto);
    ws.send_bytes(&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 1]);
    assert_eq!(ws.disconnected().code, 4501);
    // The same in two fragments.
    let mut ws = site.connect(Transport::Proto);
    ws.send_bytes(&[&[0x02, 0xfe, 0xff, 0xff, 0, 0, 0, 0][..], &vec![0; 0xffff]].concat());
    ws.send_bytes(&[0x80, 0x82, 0, 0, 0, 0]);
    assert_eq!(ws.disconnected().code, 4501);
}

/// The frame with blanks, or an unknown field, up to `length`.
fn padded(transport: Transport, mut payload: Vec<u8>, length: usize) -> Vec<u8> {
    if transport == Transport::Json {
        payload.resize(length, b' ');
    } else {
        // Number 100, bytes.
        payload.extend([0xa2, 0x06]);
        let body = length - payload.len() - 3;
        payload.extend([(body & 0x7f | 0x80) as u8, (body >> 7 & 0x7f | 0x80) as u8, (body >> 14) as u8]);
        payload.resize(length, 0);
    }
    payload
}

#[test]
fn broken_websocket_frames_close_with_4501() {
    let site = Site::start();
    let cases: [(&str, &[u8]); 7] = [
        ("unmasked", &[0x81, 0x02, b'{', b'}']),
        ("reserved bit", &[0xc1, 0x80, 0, 0, 0, 0]),
        ("unknown opcode", &[0x83, 0x80, 0, 0, 0, 0]),
        ("fragmented ping", &[0x09, 0x80, 0, 0, 0, 0]),
        ("long ping", &[0x89, 0xfe, 0, 126, 0, 0, 0, 0]),
        ("nothing to continue", &[0x80, 0x80, 0, 0, 0, 0]),
        ("not UTF-8", &[0x81, 0x81, 0, 0, 0, 0, 0xff]),
    ];
    for (what, bytes) in cases {
        let mut client = site.login(Transport::Json, "alice", "d");
        client.send_bytes(bytes);
        assert_eq!(client.disconnected().code, 4501, "{what}");
    }
}

#[test]
fn bad_requests_are_answered_and_the_connection_goes_on() {
    let site = Site::start();
    site.logic.state().requests = Manner::Silent;
    for transport in ALL {
        let mut client = site.login(transport, "alice", "d");
        client.pull(0);
        check_error(&mut client, 0, ErrorCode::InvalidArgument, "request.id");
        client.pull(5);
        client.pull(5);
        check_error(&mut client, 5, ErrorCode::InvalidArgument, "request.id 5");
        client.request(6, Method::Pull(client::PullRequest { after_seq: 0, limit: 500 }));
        check_error(&mut client, 6, ErrorCode::InvalidArgument, "pull.limit");
        client.send(client_frame::Frame::Request(Request { id: 7, method: None }));
        check_error(&mut client, 7, ErrorCode::Unimplemented, "method");
        if transport == Transport::Json {
            client.send_payload(br#"{"request":{"id":8,"send":{"clientMsgId":5}}}"#, true);
            check_error(&mut client, 8, ErrorCode::InvalidArgument, "clientMsgId");
        }
        client.heartbeat();
        assert!(matches!(client.frame(), client::server_frame::Frame::HeartbeatAck(_)));
    }
}

#[track_caller]
fn check_error(client: &mut Client, id: u32, code: ErrorCode, names: &str) {
    let (answered, error) = client.error();
    assert_eq!((answered, error.code.as_str()), (id, code.as_str()), "{error:?}");
    assert_eq!(error.retryable, code.retryable());
    assert!(error.message.contains(names), "{}", error.message);
}

#[test]
fn the_17th_request_in_flight_is_refused_and_heartbeats_go_on() {
    let site = Site::start();
    site.logic.state().requests = Manner::Silent;
    for transport in ALL {
        let mut client = site.login(transport, "alice", "d");
        for id in 1..=18 {
            client.request(id, Method::Ack(client::AckRequest { seq: 1 }));
        }
        check_error(&mut client, 17, ErrorCode::ResourceExhausted, "16 requests");
        check_error(&mut client, 18, ErrorCode::ResourceExhausted, "16 requests");
        client.heartbeat();
        assert!(matches!(client.frame(), client::server_frame::Frame::HeartbeatAck(_)));
        let waiting = std::mem::take(&mut site.logic.state().waiting);
        assert_eq!(waiting.len(), 16);
        for (id, request) in (1..).zip(&waiting) {
            site.logic.answer(request);
            assert_eq!(client.response().0, id);
        }
    }
}

#[test]
fn a_full_logic_makes_requests_unavailable_and_openings_overloaded() {
    let site = Site::start();
    for transport in ALL {
        site.logic.state().requests = Manner::Full;
        let mut client = site.login(transport, "alice", "d");
        client.pull(4);
        check_error(&mut client, 4, ErrorCode::Unavailable, "logic");
        site.logic.state().requests = Manner::Answers;
        client.pull(5);
        assert_eq!(client.response().0, 5);
        site.logic.state().opens = Manner::Full;
        let mut refused = site.connect(transport);
        refused.hello(&site.scheduler.sign(&Site::ticket("bob", "d")), "d");
        let goodbye = refused.disconnected();
        assert_eq!(goodbye.code, 4009);
        assert!(goodbye.retry_after_ms > 0);
        site.logic.state().opens = Manner::Answers;
    }
}

#[test]
fn a_silent_logic_is_not_waited_for() {
    let site = Site::with(|config| {
        config.timeouts.request = std::time::Duration::from_millis(50);
        config.timeouts.open = std::time::Duration::from_millis(50);
    });
    site.logic.state().requests = Manner::Silent;
    let mut client = site.login(Transport::Json, "alice", "d");
    client.pull(4);
    check_error(&mut client, 4, ErrorCode::DeadlineExceeded, "in time");
    // The id is used again; the late answer to the first request is not taken for the second's.
    client.pull(4);
    eventually("both requests", || site.logic.state().waiting.len() == 2);
    let waiting = std::mem::take(&mut site.logic.state().waiting);
    site.logic.answer(&waiting[0]);
    eventually("the late answer", || site.metrics.counter("berth_gateway_late_responses_total") == 1);
    check_error(&mut client, 4, ErrorCode::DeadlineExceeded, "in time");
    site.logic.state().opens = Manner::Silent;
    let mut second = site.connect(Transport::Tcp);
    second.hello(&site.scheduler.sign(&Site::ticket("bob", "d")), "d");
    assert_eq!(second.disconnected().code, 4009);
}

/// What closes a connection whose hello carries this ticket for device "d".
fn goodbye_for(site: &Site, transport: Transport, ticket: &str) -> client::Disconnect {
    let mut client = site.connect(transport);
    client.hello(ticket, "d");
    client.disconnected()
}

#[test]
fn tickets_that_are_not_good_close_with_their_code() {
    let site = Site::start();
    let of_another_key = TicketSigner::from_secret(b"another secret of 32 bytes......");
    for transport in ALL {
        let good = Site::ticket("alice", "d");
        let check = |ticket: String, code: u32| {
            let goodbye = goodbye_for(&site, transport, &ticket);
            assert_eq!(goodbye.code, code, "{goodbye:?}");
            assert!(ticket.is_empty() || !goodbye.reason.contains(&ticket), "a ticket is never repeated");
        };
        let mut late = good.clone();
        late.expires_at_ms = now_ms() - 1;
        let mut logged_out = good.clone();
        logged_out.auth_expires_at_ms = now_ms() - 1;
        let mut other_device = good.clone();
        other_device.device_id = "e".into();
        let mut system = good.clone();
        system.user_id = "system".into();
        check(String::new(), 4500);
        check("rubbish".into(), 4500);
        check(changed(&site.scheduler.sign(&good)), 4500);
        check(site.scheduler.sign(&other_device), 4500);
        check(site.scheduler.sign(&system), 4500);
        check(site.scheduler.sign(&late), 4005);
        // It may be of a key that this gateway has not heard of yet, or has forgotten: that says nothing of the user.
        check(of_another_key.sign(&good), 4005);
        check(site.scheduler.sign(&logged_out), 4005);
    }
    assert!(site.logic.state().opened.is_empty(), "none of them reached logic");
}

/// With another signature.
fn changed(ticket: &str) -> String {
    let (head, rest) = ticket.split_at(20);
    let other = if rest.starts_with('A') { "B" } else { "A" };
    [head, other, &rest[1..]].concat()
}

#[test]
fn who_came_with_a_ticket_of_a_key_that_is_void_is_closed_and_does_not_come_back_with_it() {
    let site = Site::start();
    let ticket = site.scheduler.sign(&Site::ticket("alice", "d"));
    let mut sessions: Vec<_> = ALL.into_iter().map(|transport| site.connect(transport)).collect();
    for (n, client) in sessions.iter_mut().enumerate() {
        let device = format!("d{n}");
        client.hello(&site.scheduler.sign(&Site::ticket("alice", &device)), &device);
        client.welcome();
    }
    site.scheduler.own_key_is_void();
    for client in &mut sessions {
        let goodbye = client.disconnected();
        assert_eq!(goodbye.code, 4005, "{goodbye:?}");
        assert!(goodbye.reason.contains("void"), "{goodbye:?}");
    }
    assert_eq!(site.metrics.counter("berth_gateway_sessions_key_void_total"), sessions.len() as u64);
    for transport in ALL {
        assert_eq!(goodbye_for(&site, transport, &ticket).code, 4005);
    }
    let mut elsewhere = Site::ticket("alice", "d");
    elsewhere.gateway_ids = vec!["gw-2".into()];
    assert_eq!(goodbye_for(&site, Transport::Tcp, &site.scheduler.sign(&elsewhere)).code, 4005);
    assert!(site.scheduler.asks().is_empty(), "no scheduler is asked to send him on");
}

#[test]
fn a_newer_version_closes_with_4502() {
    let site = Site::start();
    for transport in ALL {
        let mut client = site.connect(transport);
        let ticket = site.scheduler.sign(&Site::ticket("alice", "d"));
        let hello = Hello { version: 2, ticket, device_id: "d".into(), ..Hello::default() };
        client.send(client_frame::Frame::Hello(hello));
        assert_eq!(client.disconnected().code, 4502);
    }
}

#[test]
fn a_ticket_for_other_gateways_is_redirected_by_a_scheduler() {
    let site = Site::with(|config| config.timeouts.redirect = std::time::Duration::from_millis(50));
    let mut elsewhere = Site::ticket("alice", "d");
    elsewhere.gateway_ids = vec!["gw-2".into()];
    let ticket = site.scheduler.sign(&elsewhere);
    // Nobody answers: the client is to ask for a new schedule.
    assert_eq!(goodbye_for(&site, Transport::Tcp, &ticket).code, 4005);
    let to = Endpoint { gateway_id: "gw-2".into(), url: "tcp://gw-2:1".into(), ..Endpoint::default() };
    site.scheduler.answer_redirects(RedirectAnswer {
        endpoints: vec![to.clone()],
        ticket: "fresh".into(),
        ticket_expires_at_ms: 99,
        ..RedirectAnswer::default()
    });
    for transport in ALL {
        let goodbye = goodbye_for(&site, transport, &ticket);
        assert_eq!(
            (goodbye.code, goodbye.ticket.as_str(), goodbye.ticket_expires_at_ms),
            (4002, "fresh", 99)
        );
        assert_eq!(goodbye.redirect, std::slice::from_ref(&to));
    }
    let counted =
        |result: &str| site.metrics.counter(&format!("berth_gateway_handshakes_total{{result={result:?}}}"));
    assert_eq!((counted("redirected"), counted("refused")), (3, 1), "only who was told where to go");
    let asks = site.scheduler.asks();
    assert_eq!(asks.len(), 4);
    assert_eq!((asks[1].user_id.as_str(), asks[1].transport.as_str()), ("alice", "ws"));
    assert_eq!(asks[1].client_ip, "127.0.0.1");
    assert_eq!(asks[1].auth_expires_at_ms, elsewhere.auth_expires_at_ms);
    assert_eq!(asks[1].auth_issued_at_ms, elsewhere.auth_issued_at_ms);
    // Answered, but there is nowhere to go.
    site.scheduler.answer_redirects(RedirectAnswer::default());
    let goodbye = goodbye_for(&site, Transport::Tcp, &ticket);
    assert_eq!((goodbye.code, goodbye.redirect.len()), (4002, 0));
}

#[test]
fn a_scheduler_that_does_not_answer_costs_one_client_a_wait_and_not_every_one() {
    let site = Site::bare(|config| config.timeouts.redirect = std::time::Duration::from_millis(50));
    let two = [Arc::new(FakeScheduler::default()), Arc::clone(&site.scheduler)];
    for scheduler in &two {
        site.gateway.attach_scheduler(Arc::clone(scheduler) as _);
    }
    site.gateway.attach_logic(Arc::clone(&site.logic) as _);
    let elsewhere = Ticket { gateway_ids: vec!["gw-2".into()], ..Site::ticket("alice", "d") };
    let ticket = site.scheduler.sign(&elsewhere);
    assert_eq!(goodbye_for(&site, Transport::Tcp, &ticket).code, 4005);
    // Whichever this boot begins with is the frozen one.
    let asked = two.each_ref().map(|scheduler| scheduler.asks().len());
    assert!([[1, 0], [0, 1]].contains(&asked), "{asked:?}");
    let [frozen, well] = if asked == [1, 0] { [&two[0], &two[1]] } else { [&two[1], &two[0]] };
    well.answer_redirects(RedirectAnswer::default());
    // Each worker takes some of them.
    let codes: Vec<u32> = (0..11).map(|_| goodbye_for(&site, Transport::Tcp, &ticket).code).collect();
    assert!(codes.iter().all(|code| *code == 4002), "{codes:?}");
    assert_eq!(frozen.asks().len(), 1);
}

#[test]
fn logic_may_refuse_a_session() {
    let site = Site::start();
    site.logic.state().refuse_opens = Some((ErrorCode::PermissionDenied, CloseCode::Forbidden));
    for transport in ALL {
        assert_eq!(
            goodbye_for(&site, transport, &site.scheduler.sign(&Site::ticket("alice", "d"))).code,
            4505
        );
    }
}
