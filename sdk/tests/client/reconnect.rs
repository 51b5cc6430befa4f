//! What the client does after each kind of end.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_client::{
    Client, Event, Events, StopReason,
    store::{MemorySchedule, ScheduleStore},
    token::StaticToken,
    transport::Transport,
};
use berth_proto::{
    client::{self, Disconnect, Endpoint, client_frame::Frame as Up, server_frame::Frame as Down},
    schedule::HeartbeatParameters,
};

use crate::fake::{Fake, Kind, Peer, close_code, endpoints, next, soon, welcome};

/// A redirect to the same listener under another gateway's name.
fn moved(fake: &Fake, ticket: &str) -> Disconnect {
    let redirect = endpoints("gw-2", fake.address()).into_iter().map(Endpoint::from).collect();
    Disconnect { redirect, ticket: ticket.into(), ticket_expires_at_ms: 300_000, ..close_code(4002) }
}

/// The longest back-off of [`Fake`]'s clients.
const BACKOFF: Duration = Duration::from_millis(20);

/// A server's `spreadMs` beside which a back-off is nothing.
const SPREAD_MS: u32 = 300_000;

/// How long the client waits before it goes on.
async fn wait(events: &mut Events) -> Duration {
    match next(events).await {
        Event::Disconnected(disconnected) => disconnected.retry_in,
        other => panic!("expected Disconnected, got {other:?}"),
    }
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.local_addr().expect("is bound")
}

/// Long enough for a session of [`Fake`]'s clients to be a stable one.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn check_disconnected(events: &mut Events, code: Option<u16>) {
    match next(events).await {
        Event::Disconnected(disconnected) => assert_eq!(disconnected.code, code, "{disconnected:?}"),
        other => panic!("expected Disconnected, got {other:?}"),
    }
}

/// The client's next hello, welcomed.
async fn welcomed(fake: &Fake, ticket: &str) -> Peer {
    let mut peer = fake.accept().await;
    assert_eq!(peer.hello().await.ticket, ticket);
    peer.send(Down::Welcome(welcome(0))).await;
    peer
}

#[tokio::test]
async fn a_lost_connection_is_made_again_with_the_same_ticket() {
    for kind in Kind::ALL {
        let fake = Fake::start().await;
        let (_client, mut events, peer) = fake.connect(fake.options(kind)).await;
        drop(peer);
        check_disconnected(&mut events, None).await;
        let _peer = welcomed(&fake, "ticket").await;
        assert!(matches!(next(&mut events).await, Event::Connected(_)));
        assert_eq!(fake.answered(), 1);
    }
}

#[tokio::test]
async fn a_redirect_is_followed_with_its_ticket() {
    for kind in Kind::ALL {
        let fake = Fake::start().await;
        let (_client, mut events, peer) = fake.connect(fake.options(kind)).await;
        peer.disconnect(moved(&fake, "another")).await;
        let _peer = welcomed(&fake, "another").await;
        let Event::Connected(connected) = next(&mut events).await else { panic!("expected Connected") };
        assert_eq!(connected.gateway_id, "gw-2");
        assert_eq!(fake.answered(), 1);
    }
}

#[tokio::test]
async fn a_redirect_of_a_gateway_that_is_drained_is_followed_while_its_place_is_kept() {
    let fake = Fake::start().await;
    fake.change(|answer| answer.reconnect.spread_ms = SPREAD_MS);
    let (_client, mut events, peer) = fake.connect(fake.options(Kind::Tcp)).await;
    a_while().await;
    peer.disconnect(Disconnect { code: 4001, ..moved(&fake, "another") }).await;
    let peer = welcomed(&fake, "another").await;
    assert!(matches!(next(&mut events).await, Event::Connected(_)), "no wait before it");
    // And when it is to wait, it waits no longer.
    peer.disconnect(Disconnect { code: 4001, retry_after_ms: 10, ..moved(&fake, "third") }).await;
    assert!(wait(&mut events).await <= Duration::from_millis(10) + BACKOFF);
    let _peer = welcomed(&fake, "third").await;
    assert_eq!(fake.answered(), 1);
}

#[tokio::test]
async fn the_fourth_redirect_in_a_row_is_not_followed() {
    let fake = Fake::start().await;
    let (_client, _events, mut peer) = fake.connect(fake.options(Kind::Tcp)).await;
    for ticket in ["r1", "r2", "r3"] {
        peer.disconnect(moved(&fake, ticket)).await;
        peer = fake.accept().await;
        assert_eq!(peer.hello().await.ticket, ticket);
    }
    fake.change(|answer| answer.ticket = "scheduled".into());
    peer.disconnect(moved(&fake, "r4")).await;
    let _peer = welcomed(&fake, "scheduled").await;
    assert_eq!(fake.answered(), 2);
}

#[tokio::test]
async fn welcomes_in_between_do_not_make_a_circle_of_redirects_endless() {
    let fake = Fake::start().await;
    // A session is stable after four times the base: none here is.
    fake.change(|answer| answer.reconnect.base_ms = 1_000);
    let (_client, mut events, mut peer) = fake.connect(fake.options(Kind::Tcp)).await;
    for ticket in ["r1", "r2", "r3"] {
        peer.disconnect(moved(&fake, ticket)).await;
        peer = welcomed(&fake, ticket).await;
    }
    fake.change(|answer| answer.ticket = "scheduled".into());
    peer.disconnect(moved(&fake, "r4")).await;
    let _peer = welcomed(&fake, "scheduled").await;
    assert_eq!(fake.answered(), 2);
    // Whichever welcomes were read late, one is told of, and the pause after the fourth.
    while let Event::Connected(_) = next(&mut events).await {}
}

#[tokio::test]
async fn an_expired_ticket_means_a_new_schedule() {
    let fake = Fake::start().await;
    let (_client, mut events, peer) = fake.connect(fake.options(Kind::Json)).await;
    fake.change(|answer| answer.ticket = "second".into());
    peer.disconnect(close_code(4005)).await;
    check_disconnected(&mut events, Some(4005)).await;
    let _peer = welcomed(&fake, "second").await;
}

/// A gateway does not know the key of a ticket that a scheduler has just made: that says nothing of the user.
#[tokio::test]
async fn a_ticket_that_a_scheduler_gave_and_a_gateway_refuses_with_4005_means_a_new_schedule() {
    for kind in Kind::ALL {
        let fake = Fake::start().await;
        let (_client, mut events) = Client::start(fake.options(kind)).await.expect("starts");
        for ticket in ["ticket", "second"] {
            let mut peer = fake.accept().await;
            assert_eq!(peer.hello().await.ticket, ticket);
            fake.change(|answer| answer.ticket = if ticket == "ticket" { "second" } else { "third" }.into());
            peer.disconnect(close_code(4005)).await;
            check_disconnected(&mut events, Some(4005)).await;
        }
        let _peer = welcomed(&fake, "third").await;
        assert_eq!(fake.answered(), 3);
    }
}

#[tokio::test]
async fn codes_of_4500_and_above_stop() {
    for (kind, code) in Kind::ALL.into_iter().zip([4504, 4500, 4999]) {
        let fake = Fake::start().await;
        let (client, mut events, peer) = fake.connect(fake.options(kind)).await;
        peer.disconnect(close_code(code.into())).await;
        let Event::Stopped(reason) = next(&mut events).await else { panic!("expected Stopped") };
        assert_eq!(reason, StopReason::Gateway { code, reason: "as the test wants".into() });
        assert_eq!(soon("the end", events.next()).await, None);
        soon("closing", client.close()).await;
        assert_eq!(fake.answered(), 1);
    }
}

#[tokio::test]
async fn a_gateway_that_says_when_to_come_is_waited_for_as_long() {
    for code in [4001, 4005, 4009] {
        let fake = Fake::start().await;
        let (_client, mut events, peer) = fake.connect(fake.options(Kind::Proto)).await;
        let before = Instant::now();
        peer.disconnect(Disconnect { retry_after_ms: 300, ..close_code(code) }).await;
        let Event::Disconnected(disconnected) = next(&mut events).await else {
            panic!("expected Disconnected")
        };
        assert!(disconnected.retry_in >= Duration::from_millis(300), "{code}");
        let _peer = welcomed(&fake, "ticket").await;
        assert!(before.elapsed() >= Duration::from_millis(300), "{code}: whichever gateway is next");
    }
}

#[tokio::test]
async fn a_gateway_that_is_busy_has_not_failed() {
    let (mut fake, other) = (Fake::start().await, Fake::start().await);
    let gateways = [("gw-1", fake.address()), ("gw-2", other.address())];
    fake.change(|answer| answer.endpoints = gateways.map(|(id, address)| endpoints(id, address)).concat());
    let (_client, mut events) = Client::start(fake.options(Kind::Tcp)).await.expect("starts");
    // More often than a scheduler is asked after, one after the other.
    for turn in 0..4 {
        let mut peer = [&fake, &other][turn % 2].accept().await;
        peer.hello().await;
        peer.disconnect(Disconnect { retry_after_ms: 1, ..close_code(4009) }).await;
        check_disconnected(&mut events, Some(4009)).await;
    }
    let mut peer = welcomed(&fake, "ticket").await;
    assert_eq!(fake.answered(), 1);
    peer.notify(0).await;
    peer.disconnect(close_code(4005)).await;
    fake.accept().await.hello().await;
    fake.asked().await;
    assert_eq!(fake.asked().await.request.failed, Vec::<String>::new(), "nobody failed");
}

#[tokio::test]
async fn a_line_at_a_gateway_that_is_longer_than_the_ticket_lives_is_left_for_a_scheduler() {
    let mut fake = Fake::start().await;
    fake.change(|answer| answer.reconnect.spread_ms = SPREAD_MS);
    let (_client, mut events, peer) = fake.connect(fake.options(Kind::Tcp)).await;
    fake.asked().await;
    a_while().await;
    fake.change(|answer| answer.ticket = "second".into());
    peer.disconnect(Disconnect { retry_after_ms: SPREAD_MS, ..close_code(4009) }).await;
    assert!(wait(&mut events).await <= BACKOFF);
    let _peer = welcomed(&fake, "second").await;
    assert_eq!(fake.asked().await.request.failed, Vec::<String>::new());
}

#[tokio::test]
async fn a_gateway_that_is_alive_is_come_back_to_at_once_and_left_for_another_within_the_spread() {
    let fake = Fake::start().await;
    fake.change(|answer| answer.reconnect.spread_ms = SPREAD_MS);
    let (client, mut events, peer) = fake.connect(fake.options(Kind::Tcp)).await;
    a_while().await;
    drop(peer);
    assert!(wait(&mut events).await <= BACKOFF);
    let gateways = [fake.address(), Fake::start().await.address()];
    client.close().await;

    // The same, and it is gone.
    fake.change(|answer| answer.endpoints = gateways.map(|address| endpoints("gw", address)).concat());
    let (_client, mut events, peer) = fake.connect(fake.options(Kind::Tcp)).await;
    a_while().await;
    drop((fake, peer));
    assert!(wait(&mut events).await <= BACKOFF);
    // Of U(0, 300 s).
    assert!(wait(&mut events).await > BACKOFF, "before another gateway");
}

#[tokio::test]
async fn after_a_gateway_that_speaks_nobody_waits_for_the_spread() {
    for code in [4005, 4002] {
        let fake = Fake::start().await;
        fake.change(|answer| answer.reconnect.spread_ms = SPREAD_MS);
        let mut options = fake.options(Kind::Tcp);
        options.schedulers.insert(0, format!("http://{}", nobody()));
        options.first_scheduler = Some(1);
        let (_client, mut events, peer) = fake.connect(options).await;
        a_while().await;
        fake.change(|answer| answer.ticket = "second".into());
        fake.refuse_next(503, "NO_GATEWAY", None);
        peer.disconnect(close_code(code)).await;
        for what in ["the gateway", "a scheduler without one", "a dead scheduler"] {
            assert!(wait(&mut events).await <= BACKOFF, "{code}: after {what}");
        }
        let _peer = welcomed(&fake, "second").await;
    }
}

#[tokio::test]
async fn who_has_lost_no_gateway_does_not_wait_for_the_spread() {
    // With what an earlier run kept, and the first scheduler is gone.
    let fake = Fake::start().await;
    fake.change(|answer| {
        answer.reconnect.spread_ms = SPREAD_MS;
        answer.ticket_expires_at_ms = 1;
    });
    let store = Arc::new(MemorySchedule::new());
    let mut options = fake.options(Kind::Tcp);
    // {"alg":"none"} and {"sub":"alice"}
    options.token = Arc::new(StaticToken::new("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.c2ln"));
    options.schedule = Arc::clone(&store) as _;
    let (client, _events, _peer) = fake.connect(options.clone()).await;
    client.close().await;
    assert_eq!(store.load().expect("memory").expect("one is kept").reconnect.spread_ms, SPREAD_MS);
    options.schedulers.insert(0, format!("http://{}", nobody()));
    let (_client, mut events) = Client::start(options).await.expect("starts");
    assert!(wait(&mut events).await <= BACKOFF, "the next scheduler");
    fake.accept().await.hello().await;

    // A new one, and the first gateway is gone.
    let fake = Fake::start().await;
    fake.change(|answer| {
        answer.reconnect.spread_ms = SPREAD_MS;
        answer.endpoints.splice(0..0, endpoints("dead", nobody()));
    });
    let (_client, mut events) = Client::start(fake.options(Kind::Tcp)).await.expect("starts");
    assert!(wait(&mut events).await <= BACKOFF, "the next gateway");
    let _peer = welcomed(&fake, "ticket").await;
}

#[tokio::test]
async fn a_gateway_lost_after_the_tickets_end_is_asked_whether_it_lives() {
    let gateway = Fake::start().await;
    let address = gateway.address();
    let fake = Fake::start().await;
    fake.change(|answer| {
        answer.endpoints = endpoints("gw-1", address);
        answer.reconnect.spread_ms = SPREAD_MS;
        answer.ticket_expires_at_ms = 1;
    });
    // It lives.
    let (_client, mut events) = Client::start(fake.options(Kind::Tcp)).await.expect("starts");
    let peer = welcomed(&gateway, "ticket").await;
    assert!(matches!(next(&mut events).await, Event::Connected(_)));
    a_while().await;
    fake.change(|answer| answer.ticket = "second".into());
    drop(peer);
    assert!(wait(&mut events).await <= BACKOFF);
    let mut peer = gateway.accept().await;
    assert_eq!(peer.hello().await.ticket, "ticket", "the one that is over");
    peer.disconnect(close_code(4005)).await;
    assert!(wait(&mut events).await <= BACKOFF, "it said so");
    let peer = welcomed(&gateway, "second").await;
    assert!(matches!(next(&mut events).await, Event::Connected(_)));
    // It is gone.
    a_while().await;
    drop((gateway, peer));
    assert!(wait(&mut events).await <= BACKOFF);
    // Of U(0, 300 s).
    assert!(wait(&mut events).await > BACKOFF, "before another schedule");
    assert_eq!(fake.answered(), 2);
}

#[tokio::test]
async fn a_silent_gateway_is_left() {
    let fake = Fake::start().await;
    fake.change(|answer| answer.heartbeat = HeartbeatParameters { interval_ms: 50, timeout_ms: 150 });
    let (_client, mut events, peer) = fake.connect(fake.options(Kind::Tcp)).await;
    check_disconnected(&mut events, None).await;
    let _peer = welcomed(&fake, "ticket").await;
    drop(peer);
}

#[tokio::test]
async fn a_process_that_stood_still_does_not_take_its_gateway_for_silent() {
    let fake = Fake::start().await;
    fake.change(|answer| answer.heartbeat = HeartbeatParameters { interval_ms: 50, timeout_ms: 150 });
    let (_client, _events, mut peer) = fake.connect(fake.options(Kind::Tcp)).await;
    // Whether the client sees its timer or its socket first is chance: often enough, both happen.
    for _ in 0..12 {
        assert_eq!(peer.receive().await, Some(Up::Heartbeat(client::Heartbeat {})));
        peer.send(Down::HeartbeatAck(client::HeartbeatAck::default())).await;
        // This stalls the runtime, the client's task included, for longer than its patience of 100 ms.
        std::thread::sleep(Duration::from_millis(150));
    }
    peer.notify(1).await;
    peer.pull().await;
}

#[tokio::test]
async fn the_list_is_walked_past_a_dead_gateway() {
    let mut fake = Fake::start().await;
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = dead.local_addr().expect("is bound");
    drop(dead);
    let alive = fake.address();
    fake.change(|answer| {
        answer.endpoints = endpoints("dead", address);
        answer.endpoints.extend(endpoints("alive", alive));
    });
    let (_client, events) = soon("connecting", async {
        let (connected, _peer) =
            tokio::join!(Client::connect(fake.options(Kind::Proto)), welcomed(&fake, "ticket"));
        connected.expect("connects")
    })
    .await;
    drop(events);
    assert_eq!(fake.answered(), 1);
    assert_eq!(fake.asked().await.request.failed, Vec::<String>::new());
}

#[tokio::test]
async fn a_dead_or_leaving_host_costs_one_attempt_for_all_its_transports() {
    let dead = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        listener.local_addr().expect("is bound")
    };
    // The system accepts, the program never does.
    let stuck = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let leaving = Fake::start().await;
    for gone in [dead, stuck.local_addr().expect("is bound"), leaving.address()] {
        let fake = Fake::start().await;
        let alive = fake.address();
        fake.change(|answer| {
            answer.endpoints = endpoints("gone", gone);
            answer.endpoints.extend(endpoints("alive", alive));
            answer.reconnect.reschedule_after_failures = 2;
        });
        let mut options = fake.options(Kind::Proto);
        options.transports = vec![Transport::WebSocket, Transport::Tcp];
        options.attempt_timeout = Duration::from_secs(1);
        let (_client, _events) = Client::start(options).await.expect("starts");
        if gone == leaving.address() {
            let mut peer = leaving.accept().await;
            peer.hello().await;
            peer.disconnect(close_code(4001)).await;
        }
        let _peer = welcomed(&fake, "ticket").await;
        assert_eq!(fake.answered(), 1, "{gone}");
    }
}

#[tokio::test]
async fn after_three_failures_a_scheduler_is_asked_and_told() {
    let mut fake = Fake::start().await;
    let options = fake.options(Kind::Json);
    let (client, _events) = Client::start(options).await.expect("starts");
    for _ in 0..3 {
        let mut peer = fake.accept().await;
        peer.hello().await;
        // Closed without a word.
    }
    let _peer = welcomed(&fake, "ticket").await;
    assert_eq!(fake.answered(), 2);
    fake.asked().await;
    let second = fake.asked().await.request;
    assert_eq!((second.attempt, second.failed), (1, vec!["gw-1".to_owned()]));
    client.close().await;
}

#[tokio::test]
async fn a_ticket_past_its_time_is_not_used() {
    let fake = Fake::start().await;
    fake.change(|answer| answer.ticket_expires_at_ms = 1);
    let (_client, _events, peer) = fake.connect(fake.options(Kind::Tcp)).await;
    fake.change(|answer| answer.ticket = "second".into());
    drop(peer);
    let _peer = welcomed(&fake, "second").await;
    assert_eq!(fake.answered(), 2);
}

#[tokio::test]
async fn a_gateway_that_is_not_one_is_passed() {
    let fake = Fake::start().await;
    let mut options = fake.options(Kind::Proto);
    options.attempt_timeout = Duration::from_millis(500);
    let (_client, mut events) = Client::start(options).await.expect("starts");
    let mut silent = fake.accept().await;
    silent.hello().await;
    check_disconnected(&mut events, None).await;
    let mut rude = fake.accept().await;
    rude.hello().await;
    rude.notify(1).await;
    check_disconnected(&mut events, None).await;
    let _peer = welcomed(&fake, "ticket").await;
}
