//! What the client does when schedulers refuse, and with tokens.

use std::time::Duration;

use berth_client::{
    Client, ConnectError, Event, StopReason,
    token::{TokenError, TokenProvider},
};
use berth_proto::client::server_frame::Frame as Down;
use futures_util::future::BoxFuture;

use crate::fake::{Fake, Kind, close_code, next, soon, welcome};

/// Gives "old" until it is rejected, then "new".
struct Renewing;

impl TokenProvider for Renewing {
    fn token<'a>(&'a self, rejected: Option<&'a str>) -> BoxFuture<'a, Result<String, TokenError>> {
        Box::pin(async move { Ok(if rejected.is_some() { "new" } else { "old" }.to_owned()) })
    }
}

async fn check_stops(fake: &Fake, status: u16) {
    let error = soon("stopping", Client::connect(fake.options(Kind::Tcp))).await.err().expect("stops");
    match error {
        ConnectError::Stopped(StopReason::Scheduler { status: stopped, .. }) => assert_eq!(stopped, status),
        other => panic!("expected a stop, got {other:?}"),
    }
}

#[tokio::test]
async fn refused_credentials_and_arguments_are_final() {
    for status in [400, 401, 403] {
        let mut fake = Fake::start().await;
        fake.refuse_next(status, "SOME_REASON", None);
        check_stops(&fake, status).await;
        fake.asked().await;
        assert_eq!(fake.answered(), 0, "the same token is not tried again");
    }
}

#[tokio::test]
async fn a_refused_token_is_replaced_once() {
    let mut fake = Fake::start().await;
    let mut options = fake.options(Kind::Tcp);
    options.token = std::sync::Arc::new(Renewing);
    fake.refuse_next(401, "UNAUTHENTICATED", None);
    let (_client, _events, _peer) = fake.connect(options.clone()).await;
    assert_eq!(fake.asked().await.token, "old");
    assert_eq!(fake.asked().await.token, "new");

    fake.refuse_next(401, "UNAUTHENTICATED", None);
    fake.refuse_next(401, "UNAUTHENTICATED", None);
    let error = soon("stopping", Client::connect(options)).await.err().expect("stops");
    assert!(matches!(error, ConnectError::Stopped(StopReason::Scheduler { status: 401, .. })), "{error}");
}

#[tokio::test]
async fn no_token_ever_is_final_and_none_yet_is_not() {
    let fake = Fake::start().await;
    let mut options = fake.options(Kind::Tcp);
    options.token = std::sync::Arc::new(|| async { Err(TokenError::Permanent("logged out".into())) });
    let error = soon("stopping", Client::connect(options)).await.err().expect("stops");
    assert!(matches!(error, ConnectError::Stopped(StopReason::Token(_))), "{error}");

    let first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let mut options = fake.options(Kind::Tcp);
    options.token = std::sync::Arc::new(move || {
        let not_yet = first.swap(false, std::sync::atomic::Ordering::Relaxed);
        async move { if not_yet { Err(TokenError::Temporary("offline".into())) } else { Ok("jwt".into()) } }
    });
    let (client, _events) = Client::start(options).await.expect("starts");
    let mut peer = fake.accept().await;
    peer.hello().await;
    peer.send(Down::Welcome(welcome(0))).await;
    client.close().await;
}

#[tokio::test]
async fn a_token_provider_that_hangs_is_asked_again() {
    let fake = Fake::start().await;
    let first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let mut options = fake.options(Kind::Tcp);
    options.token_timeout = Duration::from_millis(100);
    options.token = std::sync::Arc::new(move || {
        let hangs = first.swap(false, std::sync::atomic::Ordering::Relaxed);
        async move { if hangs { std::future::pending().await } else { Ok("jwt".into()) } }
    });
    let (_client, mut events) = Client::start(options).await.expect("starts");
    let Event::Disconnected(disconnected) = next(&mut events).await else { panic!("expected Disconnected") };
    assert!(disconnected.reason.contains("no user token"), "{disconnected:?}");
    fake.accept().await.hello().await;
}

#[tokio::test]
async fn the_next_scheduler_is_asked_when_one_fails() {
    let (mut busy, mut fake) = (Fake::start().await, Fake::start().await);
    busy.refuse_next(503, "NO_GATEWAY", Some(300));
    let mut options = fake.options(Kind::Proto);
    options.schedulers.insert(0, format!("http://{}", busy.scheduler));
    let before = std::time::Instant::now();
    let (_client, _events, _peer) = {
        let (client, events) = Client::start(options).await.expect("starts");
        let mut peer = fake.accept().await;
        peer.hello().await;
        (client, events, peer)
    };
    assert!(before.elapsed() >= Duration::from_millis(300), "retryAfterMs is kept");
    busy.asked().await;
    fake.asked().await;
    assert_eq!((busy.answered(), fake.answered()), (0, 1));
}

#[tokio::test]
async fn not_every_client_asks_the_same_scheduler_first() {
    let (fake, other) = (Fake::start().await, Fake::start().await);
    let mut options = fake.options(Kind::Tcp);
    options.schedulers.push(format!("http://{}", other.scheduler));
    options.first_scheduler = None;
    for _ in 0..64 {
        let (client, _events) = Client::start(options.clone()).await.expect("starts");
        tokio::select! { peer = fake.accept() => peer, peer = other.accept() => peer }.hello().await;
        client.close().await;
        if fake.answered() > 0 && other.answered() > 0 {
            return;
        }
    }
    panic!("{} asked the first one, {} the second", fake.answered(), other.answered());
}

#[tokio::test]
async fn a_client_does_not_become_another_users() {
    let fake = Fake::start().await;
    let first = std::sync::atomic::AtomicBool::new(true);
    let mut options = fake.options(Kind::Tcp);
    options.token = std::sync::Arc::new(move || {
        let first = first.swap(false, std::sync::atomic::Ordering::Relaxed);
        // {"sub":"alice"} and {"sub":"bob"}
        let claims = if first { "eyJzdWIiOiJhbGljZSJ9" } else { "eyJzdWIiOiJib2IifQ" };
        async move { Ok(format!("eyJhbGciOiJub25lIn0.{claims}.c2ln")) }
    });
    let (_client, mut events, peer) = fake.connect(options).await;
    peer.disconnect(close_code(4005)).await;
    assert!(matches!(next(&mut events).await, Event::Disconnected(_)));
    let Event::Stopped(reason) = next(&mut events).await else { panic!("expected Stopped") };
    assert_eq!(reason, StopReason::Token("the user token is of another user".into()));
    assert_eq!(fake.answered(), 1, "no scheduler was asked with it");
}

#[tokio::test]
async fn a_place_in_the_queue_is_kept_whoever_is_asked_and_used_once() {
    let (mut fake, mut other) = (Fake::start().await, Fake::start().await);
    fake.queue_next(300, "place");
    fake.refuse_next(503, "NO_GATEWAY", Some(1));
    other.refuse_next(503, "NO_GATEWAY", Some(1));
    let mut options = fake.options(Kind::Tcp);
    options.schedulers.push(format!("http://{}", other.scheduler));
    let before = std::time::Instant::now();
    let (_client, _events) = Client::start(options).await.expect("starts");
    let mut peer = fake.accept().await;
    peer.hello().await;
    assert!(before.elapsed() >= Duration::from_millis(300), "the wait is kept in full");
    assert_eq!(fake.asked().await.request.queue_token, "");
    assert_eq!(fake.asked().await.request.queue_token, "place", "who gave it is asked first");
    assert_eq!(other.asked().await.request.queue_token, "place");
    assert_eq!(
        fake.asked().await.request.queue_token,
        "place",
        "another scheduler's refusal does not end it"
    );
    peer.disconnect(close_code(4005)).await;
    fake.accept().await.hello().await;
    assert_eq!(fake.asked().await.request.queue_token, "", "it was let in on it");
}

#[tokio::test]
async fn a_place_in_the_queue_outlives_the_scheduler_that_gave_it() {
    let (mut gone, mut fake) = (Fake::start().await, Fake::start().await);
    gone.queue_next(500, "place");
    let mut options = fake.options(Kind::Tcp);
    options.schedulers.insert(0, format!("http://{}", gone.scheduler));
    let (_client, mut events) = Client::start(options).await.expect("starts");
    gone.asked().await;
    assert!(matches!(next(&mut events).await, Event::Disconnected(_)), "the queue's wait");
    drop(gone);
    let mut peer = fake.accept().await;
    peer.hello().await;
    peer.send(Down::Welcome(welcome(0))).await;
    assert!(matches!(next(&mut events).await, Event::Connected(_)), "no other wait");
    assert_eq!(fake.asked().await.request.queue_token, "place");
}

#[tokio::test]
async fn the_deadline_says_what_the_last_attempt_failed_on() {
    let fake = Fake::start().await;
    fake.change(|answer| answer.endpoints.clear());
    let mut options = fake.options(Kind::Tcp);
    options.connect_timeout = Duration::from_millis(500);
    let error = soon("the deadline", Client::connect(options)).await.err().expect("fails");
    assert!(matches!(error, ConnectError::Deadline { .. }), "{error:?}");
    assert!(error.to_string().contains("no endpoint of the transports"), "{error}");
}

#[tokio::test]
async fn a_scheduler_that_stands_still_is_not_waited_for_when_there_is_another() {
    let fake = Fake::start().await;
    // The kernel takes the connection, and nobody answers.
    let still = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let still = format!("http://{}", still.local_addr().expect("is bound"));
    let mut options = fake.options(Kind::Tcp);
    options.schedulers.insert(0, still.clone());
    let since = std::time::Instant::now();
    let (_client, mut events) = Client::start(options).await.expect("starts");
    fake.accept().await.hello().await;
    // 3 s, and the rest for a busy machine: less than the 10 s that a single scheduler has.
    assert!(since.elapsed() < Duration::from_secs(9), "{:?}", since.elapsed());
    let Event::Disconnected(first) = next(&mut events).await else { panic!("the first one did not answer") };
    assert!(first.reason.contains(&still) && first.reason.contains("within 3s"), "{first:?}");
}

#[tokio::test]
async fn options_that_cannot_be_are_named() {
    let fake = Fake::start().await;
    type Spoil = fn(&mut berth_client::Options);
    let cases: [(Spoil, &str); 18] = [
        (|o| o.schedulers.clear(), "schedulers"),
        (|o| o.schedulers = vec!["https://h".into()], "schedulers"),
        (|o| o.first_scheduler = Some(1), "first_scheduler"),
        (|o| o.device_id.clear(), "device_id"),
        (|o| o.user_id = "a b".into(), "user_id"),
        (|o| o.transports.clear(), "transports"),
        (|o| o.bootstrap_gateways = vec!["gw-1:7710".into()], "bootstrap_gateways"),
        (|o| o.bootstrap_gateways = vec!["ws://gw-1:7710/v1/ws".into()], "bootstrap_gateways"),
        (|o| o.connect_timeout = Duration::ZERO, "connect_timeout"),
        (|o| o.attempt_timeout = Duration::ZERO, "attempt_timeout"),
        (|o| o.request_timeout = Duration::ZERO, "request_timeout"),
        (|o| o.send_timeout = Duration::ZERO, "send_timeout"),
        (|o| o.renew_every = Duration::ZERO, "renew_every"),
        (|o| o.token_timeout = Duration::ZERO, "token_timeout"),
        (|o| o.limits.page = 201, "limits.page"),
        (|o| o.limits.buffered_rows = 1, "limits.buffered_rows"),
        (|o| o.limits.sends_in_flight = 0, "limits.sends_in_flight"),
        (|o| o.limits.requests_in_flight = 15, "limits"),
    ];
    for (spoil, field) in cases {
        let mut options = fake.options(Kind::Tcp);
        spoil(&mut options);
        assert_eq!(options.check().expect_err(field).field, field);
    }
}
