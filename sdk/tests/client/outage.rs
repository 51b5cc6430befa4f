//! What the client does while no scheduler answers: the stored schedule, then the bootstrap gateways.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use berth_client::{
    Client, Event, Options,
    store::{MemorySchedule, ScheduleStore, StoredSchedule},
    token::StaticToken,
};
use berth_proto::client::{Disconnect, Endpoint, server_frame::Frame as Down};

use crate::fake::{Fake, Kind, check_rows, close_code, endpoints, next, soon, welcome};

/// `{"alg":"none"}` and `{"sub":"alice"}`.
const ALICES_TOKEN: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.c2ln";

/// The same of bob.
const BOBS_TOKEN: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJib2IifQ.c2ln";

/// Where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1";

/// A schedule of alice's, kept by an earlier run; its ticket is over.
fn expired(fake: &Fake) -> StoredSchedule {
    StoredSchedule {
        user_id: "alice".into(),
        device_id: "device".into(),
        endpoints: endpoints("gw-1", fake.address()),
        ticket: "old".into(),
        ticket_expires_at_ms: 1,
        offset_ms: 0,
        reconnect: berth_proto::schedule::ReconnectParameters {
            base_ms: 1,
            max_ms: 20,
            ..Default::default()
        },
        heartbeat: Default::default(),
    }
}

fn keeping(schedule: &StoredSchedule) -> Arc<MemorySchedule> {
    let store = Arc::new(MemorySchedule::new());
    store.save(Some(schedule)).expect("memory takes it");
    store
}

/// Alice's options with what an earlier run kept, and a token that says who she is.
fn options(fake: &Fake, kind: Kind, store: &Arc<MemorySchedule>) -> Options {
    let mut options = fake.options(kind);
    options.token = Arc::new(StaticToken::new(ALICES_TOKEN));
    options.schedule = Arc::clone(store) as _;
    options
}

/// The ticket kept, once it is another one than `before`.
async fn kept_after(store: &MemorySchedule, before: Option<&str>) -> Option<StoredSchedule> {
    soon("another schedule is stored", async {
        loop {
            let kept = store.load().expect("memory");
            if kept.as_ref().map(|kept| &*kept.ticket) != before {
                return kept;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_stored_schedule_is_used_before_any_scheduler_is_asked() {
    for kind in Kind::ALL {
        let fake = Fake::start().await;
        let store = Arc::new(MemorySchedule::new());
        let (client, events, peer) = fake.connect(options(&fake, kind, &store)).await;
        client.close().await;
        drop((events, peer));
        let kept = store.load().expect("memory").expect("closing waits for the last save");
        assert_eq!((kept.user_id.as_str(), kept.device_id.as_str()), ("alice", "device"));

        // Nobody to ask, and who she is told by her token or by the application.
        for named in [false, true] {
            let mut later = options(&fake, kind, &store);
            later.schedulers = vec![NOBODY.into()];
            if named {
                later.user_id = "alice".into();
                later.token =
                    Arc::new(|| async { Err(berth_client::token::TokenError::Temporary("offline".into())) });
            }
            let (client, _events) = Client::start(later).await.expect("starts");
            let hello = fake.accept().await.hello().await;
            assert_eq!((hello.ticket.as_str(), hello.no_scheduler), ("ticket", false));
            client.close().await;
        }
        assert_eq!(fake.answered(), 1);
    }
}

#[tokio::test]
async fn nobody_elses_schedule_is_used() {
    type Change = fn(&mut StoredSchedule);
    let changes: [Change; 2] = [|s| s.user_id = "bob".into(), |s| s.device_id = "another".into()];
    for change in changes {
        let fake = Fake::start().await;
        let mut stored = StoredSchedule { ticket_expires_at_ms: i64::MAX, ..expired(&fake) };
        change(&mut stored);
        let store = keeping(&stored);
        let (_client, _events) = Client::start(options(&fake, Kind::Tcp, &store)).await.expect("starts");
        let mut peer = fake.accept().await;
        assert_eq!(peer.hello().await.ticket, "ticket", "a scheduler was asked");
        peer.send(Down::Welcome(welcome(0))).await;
        assert_eq!(kept_after(&store, Some("old")).await.expect("one").user_id, "alice");
    }
    // A token that does not say whose it is.
    let fake = Fake::start().await;
    let store = keeping(&StoredSchedule { ticket_expires_at_ms: i64::MAX, ..expired(&fake) });
    let mut unknown = options(&fake, Kind::Tcp, &store);
    unknown.token = Arc::new(StaticToken::new("jwt"));
    let (_client, _events) = Client::start(unknown).await.expect("starts");
    assert_eq!(fake.accept().await.hello().await.ticket, "ticket");
}

#[tokio::test]
async fn without_schedulers_an_expired_ticket_goes_around_the_bootstrap_gateways() {
    let (one, two) = (Fake::start().await, Fake::start().await);
    let mut stranded = options(&one, Kind::Tcp, &keeping(&expired(&one)));
    stranded.schedulers = vec![NOBODY.into(), NOBODY.into()];
    stranded.bootstrap_gateways = [&one, &two].map(|fake| format!("tcp://{}", fake.address())).into();
    let (_client, mut events) = Client::start(stranded).await.expect("starts");
    // Refused at each in turn, round and round.
    let mut visits = [0, 0];
    for visit in 0..4 {
        let (place, mut peer) = tokio::select! {
            peer = one.accept() => (0, peer),
            peer = two.accept() => (1, peer),
        };
        visits[place] += 1;
        let hello = peer.hello().await;
        assert_eq!((hello.ticket.as_str(), hello.no_scheduler), ("old", true), "visit {visit}");
        peer.disconnect(close_code(4005)).await;
    }
    assert_eq!(visits, [2, 2]);
    let mut peer = tokio::select! { peer = one.accept() => peer, peer = two.accept() => peer };
    peer.hello().await;
    peer.send(Down::Welcome(welcome(0))).await;
    loop {
        match next(&mut events).await {
            Event::Connected(connected) => break assert_eq!(connected.gateway_id, "", "nobody said which"),
            Event::Disconnected(_) => {}
            other => panic!("expected Connected, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn without_bootstrap_gateways_the_last_list_serves() {
    let fake = Fake::start().await;
    let mut stranded = options(&fake, Kind::Tcp, &keeping(&expired(&fake)));
    stranded.schedulers = vec![NOBODY.into()];
    let (_client, _events) = Client::start(stranded).await.expect("starts");
    let hello = fake.accept().await.hello().await;
    assert_eq!((hello.ticket.as_str(), hello.no_scheduler), ("old", true));
}

#[tokio::test]
async fn schedulers_are_asked_again_between_two_bootstrap_gateways() {
    // What a load balancer says whose schedulers are all down, or a firewall before them.
    for status in [502, 404, 429, 403, 200] {
        let fake = Fake::start().await;
        let store = keeping(&expired(&fake));
        fake.refuse_next(status, "", None);
        let (_client, _events) = Client::start(options(&fake, Kind::Tcp, &store)).await.expect("starts");
        let mut peer = fake.accept().await;
        assert!(peer.hello().await.no_scheduler, "{status}");
        peer.disconnect(close_code(4009)).await;
        let mut peer = fake.accept().await;
        let hello = peer.hello().await;
        assert_eq!((hello.ticket.as_str(), hello.no_scheduler), ("ticket", false));
        peer.send(Down::Welcome(welcome(0))).await;
        assert_eq!(kept_after(&store, Some("old")).await.expect("one").ticket, "ticket");
    }
}

#[tokio::test]
async fn after_the_bootstrap_gateways_those_of_the_last_list_are_tried() {
    let (fake, configured) = (Fake::start().await, Fake::start().await);
    let mut stranded = options(&fake, Kind::Tcp, &keeping(&expired(&fake)));
    stranded.schedulers = vec![NOBODY.into()];
    stranded.bootstrap_gateways = vec![format!("tcp://{}", configured.address())];
    let (_client, _events) = Client::start(stranded).await.expect("starts");
    for gateway in [&configured, &fake, &configured] {
        let mut peer = gateway.accept().await;
        let hello = peer.hello().await;
        assert_eq!((hello.ticket.as_str(), hello.no_scheduler), ("old", true));
        peer.disconnect(close_code(4009)).await;
    }
}

#[tokio::test]
async fn a_ticket_is_given_up_once_all_bootstrap_gateways_refuse_it() {
    let (one, two) = (Fake::start().await, Fake::start().await);
    let store = keeping(&expired(&one));
    let mut stranded = options(&one, Kind::Tcp, &store);
    stranded.schedulers = vec![NOBODY.into()];
    stranded.bootstrap_gateways = [&one, &two].map(|fake| format!("tcp://{}", fake.address())).into();
    let (_client, _events) = Client::start(stranded).await.expect("starts");
    for _ in 0..2 {
        let mut peer = tokio::select! { peer = one.accept() => peer, peer = two.accept() => peer };
        assert_eq!(peer.hello().await.ticket, "old");
        assert_eq!(store.load().expect("memory").expect("one does not speak for both").ticket, "old");
        peer.disconnect(close_code(4500)).await;
    }
    assert_eq!(kept_after(&store, Some("old")).await, None);
}

#[tokio::test]
async fn codes_about_the_user_end_the_ticket_that_is_kept() {
    for (code, kept) in [(4500, false), (4503, false), (4505, false), (4504, true), (4501, true)] {
        let fake = Fake::start().await;
        let store = Arc::new(MemorySchedule::new());
        let (client, _events, peer) = fake.connect(options(&fake, Kind::Tcp, &store)).await;
        peer.disconnect(close_code(code)).await;
        soon("the stop", stopped(&client)).await;
        client.close().await;
        assert_eq!(store.load().expect("memory").is_some(), kept, "{code}");
    }
}

#[tokio::test]
async fn a_session_that_lived_ends_the_outage() {
    let fake = Fake::start().await;
    let store = keeping(&expired(&fake));
    let mut stranded = options(&fake, Kind::Tcp, &store);
    // It is there, and does not answer yet; what the other says is no scheduler's word.
    let (proxy, returns) = (Fake::start().await, Fake::start().await);
    for _ in 0..50 {
        proxy.refuse_next(502, "", None);
    }
    returns.refuse_next(502, "", None);
    let other = fake.address();
    returns.change(|answer| answer.endpoints = endpoints("gw-1", other));
    stranded.schedulers = [&returns, &proxy].map(|fake| format!("http://{}", fake.scheduler)).into();
    let (_client, _events) = Client::start(stranded).await.expect("starts");
    let mut peer = fake.accept().await;
    assert!(peer.hello().await.no_scheduler, "neither answered");
    peer.send(Down::Welcome(welcome(0))).await;
    // A stable session, and one of them is back; it is the dead one's turn, or its own.
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(peer);
    // The gateway is asked whether it lives, which is not what this is about.
    let mut peer = fake.accept().await;
    let mut hello = peer.hello().await;
    if hello.ticket == "old" {
        assert!(!hello.no_scheduler, "nobody knows that yet");
        peer.disconnect(close_code(4005)).await;
        hello = fake.accept().await.hello().await;
    }
    assert_eq!((hello.ticket.as_str(), hello.no_scheduler), ("ticket", false), "the living one was asked");
}

#[tokio::test]
async fn a_list_of_busy_gateways_is_kept_while_no_scheduler_answers() {
    let (fake, other) = (Fake::start().await, Fake::start().await);
    let gateways = [("gw-1", fake.address()), ("gw-2", other.address())];
    fake.change(|answer| answer.endpoints = gateways.map(|(id, address)| endpoints(id, address)).concat());
    let (_client, _events) = Client::start(fake.options(Kind::Tcp)).await.expect("starts");
    for turn in 0..14 {
        let mut peer = [&fake, &other][turn % 2].accept().await;
        let hello = peer.hello().await;
        let (first, second) = (turn < 6, turn >= 12);
        assert_eq!(hello.ticket, if second { "second" } else { "ticket" }, "turn {turn}");
        assert_eq!(hello.no_scheduler, !first && !second, "one is asked after three rounds: turn {turn}");
        if turn == 0 {
            // A load balancer says so: no scheduler answers. Whoever asks more than once would be told of another ticket.
            fake.refuse_next(502, "", None);
            fake.change(|answer| answer.ticket = "second".into());
        }
        peer.disconnect(Disconnect { retry_after_ms: 1, ..close_code(4009) }).await;
    }
}

#[tokio::test]
async fn a_renewals_answer_ends_the_outage() {
    let fake = Fake::start().await;
    let store = keeping(&expired(&fake));
    fake.refuse_next(502, "", None);
    // A session is stable after four times the base, which this one is not.
    fake.change(|answer| {
        answer.ticket = "renewed".into();
        answer.reconnect.base_ms = 2_000;
    });
    let mut renewing = options(&fake, Kind::Tcp, &store);
    renewing.renew_every = Duration::from_millis(30);
    let (_client, _events) = Client::start(renewing).await.expect("starts");
    let mut peer = fake.accept().await;
    assert!(peer.hello().await.no_scheduler);
    peer.send(Down::Welcome(welcome(0))).await;
    assert_eq!(kept_after(&store, Some("old")).await.expect("one").ticket, "renewed");
    drop(peer);
    let hello = fake.accept().await.hello().await;
    assert_eq!((hello.ticket.as_str(), hello.no_scheduler), ("renewed", false));
}

#[tokio::test]
async fn a_long_sessions_ticket_is_renewed_without_a_word() {
    let mut fake = Fake::start().await;
    let address = fake.address();
    fake.change(|answer| {
        answer.ticket_expires_at_ms = 300_000;
        answer.endpoints = endpoints("dead", "127.0.0.1:1".parse().expect("an address"));
        answer.endpoints.extend(endpoints("gw-1", address));
        answer.reconnect.reschedule_after_failures = 1;
    });
    let store = Arc::new(MemorySchedule::new());
    let mut renewing = options(&fake, Kind::Tcp, &store);
    renewing.renew_every = Duration::from_millis(30);
    let (_client, mut events) = Client::start(renewing).await.expect("starts");
    assert!(matches!(next(&mut events).await, Event::Disconnected(_)), "the first gateway is dead");
    fake.change(|answer| {
        answer.ticket_expires_at_ms = 1;
        answer.endpoints = endpoints("gw-1", address);
    });
    let mut peer = fake.accept().await;
    peer.hello().await;
    peer.send(Down::Welcome(welcome(0))).await;
    assert!(matches!(next(&mut events).await, Event::Connected(_)));
    kept_after(&store, None).await;
    fake.asked().await;
    let again = fake.asked().await.request;
    assert_eq!((again.attempt, again.failed), (1, vec!["dead".to_owned()]), "that was told");
    let renewal = fake.asked().await.request;
    assert_eq!((renewal.attempt, renewal.failed), (0, vec![]), "and is over");
    // What fails is tried at the next time.
    fake.refuse_next(503, "NO_GATEWAY", Some(300_000));
    fake.change(|answer| {
        answer.ticket = "renewed".into();
        answer.ticket_expires_at_ms = 300_000;
    });
    assert_eq!(kept_after(&store, Some("ticket")).await.expect("one").ticket, "renewed");

    // The connection is the same and nothing was heard of it.
    peer.notify(1).await;
    let (id, _) = peer.pull().await;
    peer.answer_rows(id, [1], 1).await;
    check_rows(&mut events, [1]).await;
    drop(peer);
    let asked = fake.answered();
    assert_eq!(fake.accept().await.hello().await.ticket, "renewed", "the first one is over");
    assert!(fake.answered() <= asked + 1, "at most the renewal under way");
}

#[tokio::test]
async fn a_schedule_that_could_not_be_stored_is_stored_later() {
    struct Full(AtomicU32, MemorySchedule);
    impl ScheduleStore for Full {
        fn load(&self) -> std::io::Result<Option<StoredSchedule>> {
            self.1.load()
        }
        fn save(&self, schedule: Option<&StoredSchedule>) -> std::io::Result<()> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => Err(std::io::Error::other("full")),
                _ => self.1.save(schedule),
            }
        }
    }
    let fake = Fake::start().await;
    let store = Arc::new(Full(AtomicU32::new(0), MemorySchedule::new()));
    let mut options = fake.options(Kind::Tcp);
    options.schedule = Arc::clone(&store) as _;
    let (_client, _events, _peer) = fake.connect(options).await;
    assert_eq!(kept_after(&store.1, None).await.expect("one").ticket, "ticket");
}

#[tokio::test]
async fn a_schedulers_final_word_ends_the_ticket_that_is_kept() {
    for (status, reason, kept) in [
        (401, "UNAUTHENTICATED", false),
        (403, "FORBIDDEN", false),
        (401, "", true),
        (400, "INVALID_ARGUMENT", true),
    ] {
        let fake = Fake::start().await;
        let store = keeping(&expired(&fake));
        fake.refuse_next(status, reason, None);
        let (client, _events) = Client::start(options(&fake, Kind::Tcp, &store)).await.expect("starts");
        soon("the stop", stopped(&client)).await;
        client.close().await;
        assert_eq!(store.load().expect("memory").is_some(), kept, "{status} {reason}");
    }
}

#[tokio::test]
async fn a_ticket_is_not_renewed_for_another_user() {
    let mut fake = Fake::start().await;
    let calls = tokio::sync::watch::Sender::new(0);
    let mut called = calls.subscribe();
    let mut renewing = fake.options(Kind::Tcp);
    renewing.renew_every = Duration::from_millis(10);
    renewing.token = Arc::new(move || {
        // Somebody else signs in once alice is connected.
        let token = if *calls.borrow() == 0 { ALICES_TOKEN } else { BOBS_TOKEN };
        calls.send_modify(|calls| *calls += 1);
        async move { Ok(token.to_owned()) }
    });
    let (client, _events, _peer) = fake.connect(renewing).await;
    soon("renewals", called.wait_for(|calls| *calls >= 4)).await.expect("the client lives");
    client.close().await;
    fake.asked().await;
    assert_eq!(fake.answered(), 1, "the scheduler was not asked with bob's token");
}

#[tokio::test]
async fn a_bootstrap_gateway_that_has_a_scheduler_sends_on_with_a_fresh_ticket() {
    let fake = Fake::start().await;
    let store = keeping(&expired(&fake));
    let mut stranded = options(&fake, Kind::Tcp, &store);
    stranded.schedulers = vec![NOBODY.into()];
    let (_client, _events) = Client::start(stranded).await.expect("starts");
    let mut peer = fake.accept().await;
    peer.hello().await;
    let redirect = endpoints("gw-2", fake.address()).into_iter().map(Endpoint::from).collect();
    let moved =
        Disconnect { redirect, ticket: "fresh".into(), ticket_expires_at_ms: i64::MAX, ..close_code(4002) };
    peer.disconnect(moved).await;
    let mut peer = fake.accept().await;
    assert_eq!(peer.hello().await.ticket, "fresh");
    peer.send(Down::Welcome(welcome(0))).await;
    let kept = kept_after(&store, Some("old")).await.expect("one");
    assert_eq!((kept.ticket.as_str(), kept.endpoints[0].gateway_id.as_str()), ("fresh", "gw-2"));
}

#[tokio::test]
async fn a_stored_ticket_that_is_refused_is_given_up_for_a_new_one() {
    let fake = Fake::start().await;
    let store = keeping(&StoredSchedule { ticket_expires_at_ms: i64::MAX, ..expired(&fake) });
    let (client, _events) = Client::start(options(&fake, Kind::Tcp, &store)).await.expect("starts");
    let mut peer = fake.accept().await;
    assert_eq!(peer.hello().await.ticket, "old");
    peer.disconnect(close_code(4500)).await;
    assert_eq!(kept_after(&store, Some("old")).await, None, "nobody tries it again");
    let mut peer = fake.accept().await;
    assert_eq!(peer.hello().await.ticket, "ticket");
    // A ticket of this run is what the scheduler thinks today: that it is refused is final.
    peer.disconnect(close_code(4500)).await;
    assert!(matches!(soon("the stop", stopped(&client)).await, berth_client::State::Stopped(_)));
}

async fn stopped(client: &Client) -> berth_client::State {
    let mut state = client.state();
    let stopped = state.wait_for(|state| matches!(state, berth_client::State::Stopped(_))).await;
    stopped.expect("the client lives").clone()
}

#[tokio::test]
async fn a_broken_store_costs_a_question_only() {
    struct Broken;
    impl ScheduleStore for Broken {
        fn load(&self) -> std::io::Result<Option<StoredSchedule>> {
            Err(std::io::Error::other("broken"))
        }
        fn save(&self, _: Option<&StoredSchedule>) -> std::io::Result<()> {
            Err(std::io::Error::other("broken"))
        }
    }
    let fake = Fake::start().await;
    let mut options = fake.options(Kind::Tcp);
    options.schedule = Arc::new(Broken);
    let (client, _events, _peer) = fake.connect(options).await;
    client.close().await;
    assert_eq!(fake.answered(), 1);
}
