//! The links over a real network: what one side says arrives at the other, and what breaks is mended.

mod full;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use berth_link::{ClusterKey, DialConfig, LinkMetrics, Remote, Server};
use berth_proto::{
    client::{self, request::Method},
    link::{Link, LogicService, Refused, RefusedReason, SchedulerService},
    metric::Registry,
    wire::{self, AttachGateway, ToGateway, ToLogic, to_gateway, to_logic},
};
use metrics::NoopRecorder;
use tokio::{runtime::Handle, sync::mpsc};

const KEY: &str = "the cluster key of this test, 32+";

/// Long enough for any machine; nothing waits this long unless it fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A link that hands everything to the test.
struct Probe<M>(mpsc::Sender<M>);

impl<M: Send> Link<M> for Probe<M> {
    fn send(&self, batch: Vec<M>) -> Result<(), Refused<M>> {
        for message in batch {
            self.0.try_send(message).expect("the test reads what it asked for");
        }
        Ok(())
    }
}

fn probe<M: Send + 'static>() -> (Arc<dyn Link<M>>, mpsc::Receiver<M>) {
    let (sender, receiver) = mpsc::channel(1024);
    (Arc::new(Probe(sender)), receiver)
}

type Attached<Up, Down> = (AttachGateway, Arc<dyn Link<Down>>, mpsc::Receiver<Up>);

/// A role that lets the test play it: each attach is told, with the link down and what comes up.
struct Role<Up, Down> {
    attached: mpsc::Sender<Attached<Up, Down>>,
}

impl LogicService for Role<ToLogic, ToGateway> {
    fn attach(&self, gateway: AttachGateway, down: Arc<dyn Link<ToGateway>>) -> Arc<dyn Link<ToLogic>> {
        let (up, received) = probe();
        self.attached.try_send((gateway, down, received)).expect("the test reads attaches");
        up
    }
}

impl SchedulerService for Role<wire::ToScheduler, wire::FromScheduler> {
    fn attach(
        &self,
        gateway: AttachGateway,
        down: Arc<dyn Link<wire::FromScheduler>>,
    ) -> Arc<dyn Link<wire::ToScheduler>> {
        let (up, received) = probe();
        self.attached.try_send((gateway, down, received)).expect("the test reads attaches");
        up
    }
}

fn key(text: &str) -> ClusterKey {
    ClusterKey::new(text).expect("ASCII")
}

fn no_metrics() -> LinkMetrics {
    LinkMetrics::gateway_to_logic(Registry::new(&NoopRecorder))
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn gateway() -> AttachGateway {
    AttachGateway { gateway_id: "gw-1".into(), boot: u64::MAX }
}

fn dial(address: SocketAddr, shown: &str) -> DialConfig {
    DialConfig::new(&address.to_string(), key(shown), no_metrics()).expect("an address")
}

fn request(id: u32) -> ToLogic {
    let pull = client::PullRequest { after_seq: 1 << 60, limit: 7 };
    to_logic(to_logic::Message::Request(wire::ClientRequest {
        handle: 5,
        user_id: "alice".into(),
        device_id: "d".into(),
        session_epoch: 9,
        request: Some(client::Request { id, method: Some(Method::Pull(pull)) }),
    }))
}

fn close(session_epoch: u64) -> ToLogic {
    let (user_id, device_id) = ("alice".into(), "d".into());
    to_logic(to_logic::Message::Close(wire::CloseSession { user_id, device_id, session_epoch, handle: 0 }))
}

fn to_logic(message: to_logic::Message) -> ToLogic {
    ToLogic { message: Some(message) }
}

fn notify(inbox_seq: u64) -> ToGateway {
    let mut batch = wire::NotifyConnections::default();
    batch.push(5, inbox_seq);
    ToGateway { message: Some(to_gateway::Message::Notify(batch)) }
}

async fn soon<T>(what: impl Future<Output = Option<T>>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time").expect("not ended")
}

async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("in time");
}

async fn logic(listen: SocketAddr) -> (Server, mpsc::Receiver<Attached<ToLogic, ToGateway>>) {
    let (attached, attaches) = mpsc::channel(16);
    let server =
        Server::logic(listen, key(KEY), no_metrics(), Arc::new(Role { attached })).await.expect("binds");
    (server, attaches)
}

#[tokio::test]
async fn both_directions_keep_their_order_and_dropping_the_link_detaches() {
    let (server, mut attaches) = logic(anywhere()).await;
    let remote = Remote::logic(dial(server.local_addr(), KEY), Handle::current());
    let (down, mut told) = probe();
    let up = remote.attach(gateway(), down);
    until(|| up.connected()).await;
    let (who, logics_down, mut heard) = soon(attaches.recv()).await;
    assert_eq!(who, gateway());

    for id in 1..=100 {
        up.send(vec![request(id), close(id.into())]).expect("room");
        logics_down.send(vec![notify(id.into())]).expect("room");
    }
    for id in 1..=100 {
        assert_eq!(soon(heard.recv()).await, request(id));
        assert_eq!(soon(heard.recv()).await, close(id.into()));
        assert_eq!(soon(told.recv()).await, notify(id.into()));
    }

    drop(up);
    tokio::time::timeout(PATIENCE, async { while heard.recv().await.is_some() {} }).await.expect("detached");
    until(|| !logics_down.connected()).await;
    remote.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_scheduler_is_reached_the_same_way() {
    let (attached, mut attaches) = mpsc::channel(16);
    let server = Server::scheduler(anywhere(), key(KEY), no_metrics(), Arc::new(Role { attached }))
        .await
        .expect("binds");
    let remote = Remote::scheduler(dial(server.local_addr(), KEY), Handle::current());
    let (down, mut told) = probe();
    let up = remote.attach(gateway(), down);
    until(|| up.connected()).await;
    let (_, schedulers_down, mut heard) = soon(attaches.recv()).await;

    let report = wire::GatewayReport { gateway_id: "gw-1".into(), connections: 5, ..Default::default() };
    let report = wire::ToScheduler { message: Some(wire::to_scheduler::Message::Report(report)) };
    up.send(vec![report.clone()]).expect("room");
    assert_eq!(soon(heard.recv()).await, report);
    let keys =
        wire::TicketKeys { public_keys: vec![vec![7; 32]], ticket_ttl_ms: 300_000, void_keys: Vec::new() };
    let keys = wire::FromScheduler { message: Some(wire::from_scheduler::Message::Keys(keys)) };
    schedulers_down.send(vec![keys.clone()]).expect("room");
    assert_eq!(soon(told.recv()).await, keys);
    remote.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_restarted_role_is_attached_to_again_and_meanwhile_refuses() {
    let (server, mut attaches) = logic(anywhere()).await;
    let address = server.local_addr();
    let remote = Remote::logic(dial(address, KEY), Handle::current());
    let up = remote.attach(gateway(), probe().0);
    until(|| up.connected()).await;
    soon(attaches.recv()).await;

    server.stop().await;
    until(|| !up.connected()).await;
    let refused = up.send(vec![request(1)]).expect_err("nobody there");
    assert_eq!((refused.reason, refused.rest), (RefusedReason::Closed, vec![request(1)]));

    let (server, mut attaches) = logic(address).await;
    let (_, _, mut heard) = soon(attaches.recv()).await;
    until(|| up.connected()).await;
    up.send(vec![request(2)]).expect("room");
    assert_eq!(soon(heard.recv()).await, request(2));
    remote.stop().await;
    server.stop().await;
}

/// Plays the network between the two: everything passes until it is cut, and then nobody is told.
async fn network(to: SocketAddr) -> (SocketAddr, tokio::sync::watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind(anywhere()).await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let (whole, watched) = tokio::sync::watch::channel(true);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let mut watched = watched.clone();
            tokio::spawn(async move {
                let (mut near, mut far) = (near, tokio::net::TcpStream::connect(to).await.expect("connects"));
                let mut ended = watched.clone();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    _ = ended.wait_for(|whole| !whole) => {}
                }
                // The sockets stay open and nobody moves their bytes, until the network is whole again.
                let _ = watched.wait_for(|whole| *whole).await;
            });
        }
    });
    (address, whole)
}

/// A gateway's inlet that keeps what it is told of the network.
struct Inlet {
    told: mpsc::Sender<ToGateway>,
    network: mpsc::Sender<bool>,
}

impl Link<ToGateway> for Inlet {
    fn send(&self, batch: Vec<ToGateway>) -> Result<(), Refused<ToGateway>> {
        for message in batch {
            self.told.try_send(message).expect("the test reads what it asked for");
        }
        Ok(())
    }

    fn network(&self, up: bool) {
        self.network.try_send(up).expect("the test reads");
    }
}

#[tokio::test]
async fn a_silent_network_is_given_up_and_what_must_not_be_lost_is_said_again() {
    let (server, mut attaches) = logic(anywhere()).await;
    let (between, whole) = network(server.local_addr()).await;
    let remote = Remote::logic(dial(between, KEY), Handle::current());
    let ((told, _told), (network, mut changes)) = (mpsc::channel(16), mpsc::channel(16));
    let up = remote.attach(gateway(), Arc::new(Inlet { told, network }));
    assert!(soon(changes.recv()).await);
    let (_, _, mut heard) = soon(attaches.recv()).await;
    up.send(vec![close(1)]).expect("room");
    assert_eq!(soon(heard.recv()).await, close(1));

    whole.send(false).expect("watched");
    up.send(vec![request(2), close(3)]).expect("nobody knows yet");
    let since = std::time::Instant::now();
    assert!(!soon(changes.recv()).await, "the gateway is told");
    // The bound is 4 s; the rest is for a busy machine.
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
    assert!(remote.trouble().is_some_and(|why| why.contains("logic at")), "{:?}", remote.trouble());
    // The role finds out by itself as well: nothing is left that would take messages for this gateway.
    tokio::time::timeout(PATIENCE, async { while heard.recv().await.is_some() {} }).await.expect("detached");

    whole.send(true).expect("watched");
    assert!(soon(changes.recv()).await, "and again");
    let (_, _, mut heard) = soon(attaches.recv()).await;
    assert_eq!(soon(heard.recv()).await, close(1), "said shortly before: it may have been lost");
    assert_eq!(soon(heard.recv()).await, close(3), "and the request has a sender who asks again");
    assert_eq!(remote.trouble(), None);
    remote.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn letting_go_says_what_waits_first() {
    let (server, mut attaches) = logic(anywhere()).await;
    let remote = Remote::logic(dial(server.local_addr(), KEY), Handle::current());
    let up = remote.attach(gateway(), probe().0);
    until(|| up.connected()).await;
    let (_, _, mut heard) = soon(attaches.recv()).await;
    for epoch in 1..=200 {
        up.send(vec![close(epoch)]).expect("room");
    }
    drop(up);
    remote.stop().await;
    for epoch in 1..=200 {
        assert_eq!(soon(heard.recv()).await, close(epoch));
    }
    server.stop().await;
}

/// A frozen role finds in its backlog the attempts of the time it was frozen: their gateways are gone.
#[tokio::test]
async fn an_attempt_that_was_given_up_attaches_nobody() {
    let listener = tokio::net::TcpListener::bind(anywhere()).await.expect("binds");
    let frozen = listener.local_addr().expect("bound");
    let remote = Remote::logic(dial(frozen, KEY), Handle::current());
    let up = remote.attach(gateway(), probe().0);
    // Every byte the gateway sends in an attempt that nobody answers.
    let (mut attempt, _) = listener.accept().await.expect("it dials");
    let mut said = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut attempt, &mut said);
    tokio::time::timeout(PATIENCE, read).await.expect("it gives up").expect("with an end");
    assert!(!up.connected());
    remote.stop().await;
    drop(listener);

    let (server, mut attaches) = logic(anywhere()).await;
    let mut late = tokio::net::TcpStream::connect(server.local_addr()).await.expect("connects");
    tokio::io::AsyncWriteExt::write_all(&mut late, &said).await.expect("written");
    // The server takes the attempt up and answers it; its gateway never says a word after that.
    let mut answer = vec![0; 1024];
    let read = tokio::io::AsyncReadExt::read(&mut late, &mut answer);
    assert!(tokio::time::timeout(PATIENCE, read).await.expect("in time").expect("an answer") > 0);
    tokio::io::AsyncWriteExt::shutdown(&mut late).await.expect("shut down");
    let rest = tokio::io::AsyncReadExt::read_to_end(&mut late, &mut answer);
    // A reset is an end as well.
    let _ = tokio::time::timeout(PATIENCE, rest).await.expect("the server ends it");
    assert!(attaches.try_recv().is_err(), "nobody attached");
    server.stop().await;
}

#[test]
fn addresses_are_checked() {
    for good in ["127.0.0.1:1", "logic.internal:7721", "[::1]:7721"] {
        assert!(DialConfig::new(good, key(KEY), no_metrics()).is_ok(), "{good}");
    }
    for bad in ["", "logic", "logic:", ":1", "logic:0", "logic:65536", "http://logic:1", "a b:1"] {
        let problem = DialConfig::new(bad, key(KEY), no_metrics()).err().expect(bad);
        assert!(problem.contains("host:port"), "{problem}");
    }
}

#[tokio::test]
async fn a_wrong_cluster_key_attaches_nobody() {
    let (server, mut attaches) = logic(anywhere()).await;
    let wrong = Remote::logic(dial(server.local_addr(), "another key"), Handle::current());
    let right = Remote::logic(dial(server.local_addr(), KEY), Handle::current());
    let stranger = wrong.attach(AttachGateway { gateway_id: "stranger".into(), boot: 1 }, probe().0);
    let up = right.attach(gateway(), probe().0);
    until(|| up.connected()).await;
    assert_eq!(soon(attaches.recv()).await.0, gateway());
    assert!(!stranger.connected());
    until(|| wrong.trouble().is_some_and(|why| why.contains("auth.cluster_key"))).await;
    assert!(attaches.try_recv().is_err());
    wrong.stop().await;
    right.stop().await;
    server.stop().await;
}

/// One process under two addresses: each link that comes up ends the other.
#[tokio::test]
async fn a_link_that_is_overtaken_is_told_so_and_rests() {
    let (server, mut attaches) = logic(anywhere()).await;
    let [first, second] = [0, 1].map(|_| Remote::logic(dial(server.local_addr(), KEY), Handle::current()));
    let up = first.attach(gateway(), probe().0);
    until(|| up.connected()).await;
    soon(attaches.recv()).await;
    let other = second.attach(gateway(), probe().0);
    until(|| other.connected() && !up.connected()).await;
    let (_, _, mut heard) = soon(attaches.recv()).await;
    until(|| first.trouble().is_some_and(|why| why.contains("under two addresses"))).await;
    // Longer than every wait between two dials: the other link stays.
    let quiet = tokio::time::timeout(Duration::from_secs(2), attaches.recv()).await;
    assert!(quiet.is_err() && other.connected());
    other.send(vec![request(1)]).expect("room");
    assert_eq!(soon(heard.recv()).await, request(1));
    first.stop().await;
    second.stop().await;
    server.stop().await;
}
