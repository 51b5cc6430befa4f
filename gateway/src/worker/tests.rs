//! A worker without its thread: the test makes the wake-ups and the time.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
};

use berth_proto::{
    client::{ConversationSeq, Disconnect, Hello, client_frame, server_frame},
    frame::{Encoding, decode_server, encode_client},
    link::{Link, Refused},
    tcp,
    ticket::TicketSigner,
    wire::{NotifyConnections, SessionOpened, Ticket, TicketKeys, ToGateway, ToLogic, to_gateway::Message},
};

use super::*;
use crate::{
    config::Config,
    inlet::{Delivery, LogicDown},
    listener,
    session::simulation::Harness,
    testing::Site,
};

/// A worker and where it listens.
struct Bench {
    site: Site,
    worker: Worker,
    address: SocketAddr,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(configure: impl FnOnce(&mut Config)) -> Self {
        let mut site = Site::with(1, configure);
        let any = "127.0.0.1:0".parse().expect("an address");
        let listener = listener::bind(any, Duration::from_secs(30)).expect("binds");
        let address = listener.local_addr().expect("bound");
        let poll = site.polls.remove(0);
        let worker = Worker::new(0, Arc::clone(&site.shared), poll, listener, 1).expect("registers");
        Self { site, worker, address }
    }

    /// A client whose connection the worker has taken in.
    fn connect(&mut self) -> TcpStream {
        let client = TcpStream::connect(self.address).expect("connects");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("settable");
        let before = self.worker.table.len();
        while self.worker.table.len() == before {
            self.worker.acceptor.on_ready();
            self.worker.accept();
        }
        client
    }

    /// The newest connection.
    fn place(&self) -> Place {
        self.worker.table.iter().map(|(place, _)| place).last().expect("somebody")
    }

    fn connection(&self, place: Place) -> &Connection {
        self.worker.table.iter().find(|(at, _)| *at == place).expect("there").1
    }

    /// Hands over what logic says.
    fn logic_says(&self, message: Message) {
        let down = LogicDown { shared: Arc::downgrade(&self.site.shared), index: 0 };
        down.send(vec![ToGateway { message: Some(message) }]).expect("taken");
    }

    fn packed(place: Place) -> usize {
        usize::try_from(pack(0, place)).expect("64 bits")
    }
}

const READABLE: Readiness = Readiness { readable: true, writable: true, read_closed: false, hung_up: false };

const HEAD: &str = "GET /v1/ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: berth.v1.proto\r\n\r\n";

/// Opens a WebSocket and sends so many pings, as far as the socket takes them.
fn flood(client: &mut TcpStream, pings: usize) {
    client.write_all(HEAD.as_bytes()).expect("sends");
    client.set_nonblocking(true).expect("settable");
    for _ in 0..pings {
        match client.write(&[0x8a, 0x80, 0, 0, 0, 0].repeat(1_000)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    client.set_nonblocking(false).expect("settable");
}

/// A hello's bytes.
fn said(hello: Hello) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_client(Encoding::Proto, client_frame::Frame::Hello(hello), &mut payload);
    [&tcp::prefix(payload.len())[..], &payload].concat()
}

/// Why this client was closed.
fn told(client: &mut TcpStream) -> Disconnect {
    let mut prefix = tcp::prefix(0);
    client.read_exact(&mut prefix).expect("a frame");
    let mut payload = vec![0; u32::from_be_bytes(prefix) as usize];
    client.read_exact(&mut payload).expect("all of it");
    match decode_server(Encoding::Proto, &payload) {
        Ok(server_frame::Frame::Disconnect(disconnect)) => disconnect,
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_has_more_to_read_is_listed_once_however_often_it_is_touched() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    flood(&mut client, 200);
    let place = bench.place();
    for _ in 0..5 {
        bench.worker.on_ready(Bench::packed(place), READABLE);
    }
    assert_eq!(bench.worker.again, [place]);
    // Its own turn lists it anew, once.
    let events = Events::with_capacity(1);
    bench.worker.turn(&events);
    assert!(bench.worker.again.len() <= 1);
    assert!(bench.connection(place).again == (bench.worker.again == [place]));
}

#[test]
fn sessions_of_a_worker_that_panics_have_ended_as_none_should() {
    let mut bench = Bench::new();
    let client = bench.connect();
    (0..3).for_each(|_| bench.worker.env.levels.sessions.up());
    // There is no such worker: its first wake-up panics.
    bench.worker.index = u8::MAX - 1;
    let worker = bench.worker;
    assert!(catch_unwind(AssertUnwindSafe(|| worker.work())).is_err());
    let told = bench.site.shared.metrics.health.report();
    assert_eq!((told.ended_internal, told.sessions_ended, told.abnormal()), (3, 3, 3));
    drop(client);
}

#[test]
fn a_hello_that_lies_in_the_kernel_is_read_before_its_deadline_is_held_against_it() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    let place = bench.place();
    // The socket was empty when it was asked last.
    bench.worker.on_ready(Bench::packed(place), READABLE);
    client.write_all(&said(Hello::default())).expect("sends");
    let mut probe = mio::Events::with_capacity(4);
    // Until the bytes are at the other end; the worker itself hears nothing of it.
    while probe.iter().all(|event| event.token() != Token(Bench::packed(place))) {
        bench.worker.poll.poll(&mut probe, None).expect("polls");
    }
    // The machine stood still for a minute.
    bench.worker.now.steady_ms += 60_000;
    bench.worker.advance_wheel();
    let closed = |code| bench.site.recorder.value(&format!("berth_gateway_connections_closed_total {code}"));
    assert_eq!((closed("4008"), closed("4009")), (0, 1), "it was read, and refused for want of keys");
}

#[test]
fn what_is_kept_before_hello_is_bounded_within_a_wake_up_too() {
    let mut bench = Bench::new();
    let hello = [&berth_proto::tcp::prefix(60_000)[..], &[0; 59_000]].concat();
    // All but the end of each: together more than may be kept.
    let peers = pending::BYTES / hello.len() + 10;
    let mut clients = Vec::with_capacity(peers);
    for _ in 0..peers {
        // What one address may do in a second is another matter.
        bench.worker.now.steady_ms += 10;
        let mut client = bench.connect();
        client.write_all(&hello).expect("sends");
        clients.push(client);
    }
    let places: Vec<Place> = bench.worker.table.iter().map(|(place, _)| place).collect();
    for place in places {
        while bench.worker.table.get(place).is_some_and(|connection| connection.input_memory() < hello.len())
        {
            bench.worker.on_ready(Bench::packed(place), READABLE);
            let kept: usize = bench.worker.table.iter().map(|(_, one)| one.input_memory()).sum();
            assert!(kept <= pending::BYTES, "{kept} bytes");
        }
    }
    assert!(bench.worker.table.len() < peers, "some gave way");
}

#[test]
fn of_what_was_read_only_the_incomplete_frame_is_kept() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    flood(&mut client, 0);
    let place = bench.place();
    let pong = [0x8a, 0x80, 0, 0, 0, 0];
    // The head of a frame, then its end with many others behind it, and the head of one more.
    let rest = [&[0][..], &pong.repeat(5_000), &pong[..5]].concat();
    // The upgrade was read first.
    let mut goal = HEAD.len() as u64;
    for (bytes, kept) in [(&pong[..5], 5), (&rest, 5)] {
        client.write_all(bytes).expect("sends");
        goal += bytes.len() as u64;
        while bench.site.recorder.value("berth_gateway_received_bytes_total") < goal {
            bench.worker.on_ready(Bench::packed(place), READABLE);
        }
        let memory = bench.connection(place).input_memory();
        assert!((kept..kept + 100).contains(&memory), "{memory} bytes");
    }
}

#[test]
fn a_large_batch_takes_several_wake_ups_with_everybody_elses_turn_between() {
    let mut bench = Bench::new();
    let mut batch = NotifyConnections::default();
    // Nobody has these handles: each is looked for and counted.
    (0..1_200).for_each(|slot| batch.push(slot << 32, 1));
    bench.logic_says(Message::Notify(batch));
    let events = Events::with_capacity(1);
    for done in [512, 1_024, 1_200] {
        bench.worker.turn(&events);
        assert_eq!(bench.site.recorder.value("berth_gateway_notifies_total absent"), done);
        assert_eq!(bench.worker.has_notifies(), done < 1_200);
        assert_eq!(bench.worker.sleep().is_zero(), done < 1_200, "the next turn follows at once");
    }
}

#[test]
fn when_everybody_beats_at_once_the_answers_do_not_pile_up() {
    let mut bench = Bench::new();
    let events = Events::with_capacity(1);
    for _ in 0..10 {
        // As many as may beat at one wake-up. Nobody has these handles.
        let mut answers = NotifyConnections::default();
        (0..EVENTS as u64).for_each(|slot| answers.push(slot << 32, 1));
        bench.logic_says(Message::Refreshed(answers));
        bench.worker.turn(&events);
        assert!(!bench.worker.has_notifies());
    }
}

#[test]
fn however_many_notifies_come_what_repairs_a_lost_one_and_what_is_about_conversations_has_its_turn() {
    let mut bench = Bench::new();
    // Nobody has these handles either.
    let flood = || NotifyConnections {
        handles: vec![1 << 32; 1_000],
        inbox_seqs: vec![1; 1_000],
        ..Default::default()
    };
    let events = Events::with_capacity(1);
    bench.logic_says(Message::Notify(flood()));
    bench.worker.turn(&events);
    for _ in 0..100 {
        let mut repairs = NotifyConnections::default();
        repairs.push(2 << 32, 1);
        bench.logic_says(Message::Refreshed(repairs));
        let mut others = flood();
        let conversations = vec![ConversationSeq { conversation_id: 1, seq: 1 }];
        others.add(berth_proto::wire::NotifyConnection { handle: 3 << 32, inbox_seq: 1, conversations });
        bench.logic_says(Message::Notify(others));
        bench.worker.turn(&events);
        assert!(bench.worker.has_notifies(), "there is always more");
        assert!(bench.worker.waiting.refreshed.is_empty() && bench.worker.waiting.others.is_empty());
    }
}

#[test]
fn when_the_rest_of_a_drain_is_told_who_is_arriving_waits_for_his_own_answer() {
    let mut bench = Bench::new();
    let _client = bench.connect();
    let place = bench.place();
    let closed = |bench: &Bench| bench.site.recorder.value("berth_gateway_connections_closed_total 4001");
    bench.worker.deliver(Delivery::TellRest(0));
    bench.worker.evict_some();
    assert_eq!((bench.connection(place).session.closing(), closed(&bench)), (false, 0));
    bench.worker.deliver(Delivery::Evict(0));
    bench.worker.evict_some();
    assert_eq!(closed(&bench), 1, "at a stop everybody is told");
}

#[test]
fn who_is_opened_in_the_turn_in_which_his_key_became_void_is_not_let_in() {
    struct Up;
    impl Link<ToLogic> for Up {
        fn send(&self, _: Vec<ToLogic>) -> Result<(), Refused<ToLogic>> {
            Ok(())
        }
    }
    let mut bench = Bench::new();
    bench.site.shared.change(|rare| rare.logics = Arc::new(vec![Arc::new(Up)]));
    let [leaked, other] = [[1; 32], [2; 32]].map(|secret| TicketSigner::from_secret(&secret));
    let key = |signer: &TicketSigner| vec![signer.public_key().to_vec()];
    let good = TicketKeys { public_keys: key(&leaked), ..TicketKeys::default() };
    assert!(bench.site.shared.ticket_keys(0, &good));
    bench.worker.refresh_env();
    let mut client = bench.connect();
    let place = bench.place();
    let hour_ms = bench.worker.now.wall_ms + 3_600_000;
    let ticket = leaked.sign(&Ticket {
        user_id: "alice".into(),
        device_id: "d".into(),
        gateway_ids: vec!["gw-1".into()],
        issued_at_ms: bench.worker.now.wall_ms,
        expires_at_ms: hour_ms,
        auth_expires_at_ms: hour_ms,
        ..Ticket::default()
    });
    client.write_all(&said(Hello { ticket, device_id: "d".into(), ..Hello::default() })).expect("sends");
    while !bench.connection(place).session.waits_for(0) {
        bench.worker.on_ready(Bench::packed(place), READABLE);
    }
    // A turn has begun; then both come, and logic's answer behind them.
    bench.worker.refresh_env();
    let void = TicketKeys { public_keys: key(&other), void_keys: key(&leaked), ..TicketKeys::default() };
    assert!(bench.site.shared.ticket_keys(0, &void));
    let handle = pack(0, place);
    bench.logic_says(Message::Opened(SessionOpened { handle, session_epoch: 1, ..SessionOpened::default() }));
    bench.worker.take_deliveries();
    assert_eq!(told(&mut client).code, 4005);
}

#[test]
fn those_whose_key_is_void_go_a_part_at_each_wake_up_and_come_back_as_fast_as_they_are_taken() {
    const SESSIONS: usize = 300;
    const PART: usize = drain::EVICTIONS_PER_TURN;
    let mut bench = Bench::with(|config| config.handshakes_per_second = 10);
    let mut harness = Harness::new(1);
    let mut clients = Vec::with_capacity(SESSIONS);
    for _ in 0..SESSIONS {
        // What may come in a second is another matter.
        bench.worker.now.steady_ms += 1_000;
        clients.push(bench.connect());
        let place = bench.place();
        bench.worker.table.get_mut(place).expect("there").session = harness.welcomed();
        bench.worker.env.levels.sessions.up();
        bench.worker.with(place, |_, _| {});
    }
    let identity = bench.connection(bench.place()).session.identity().expect("welcomed");
    let void = [identity.ticket_key()];
    bench.worker.deliver(Delivery::KeysVoid(void.into()));
    let closed = |bench: &Bench| bench.site.recorder.value("berth_gateway_sessions_key_void_total") as usize;
    assert_eq!(closed(&bench), 0);
    for done in [PART, SESSIONS] {
        assert!(bench.worker.sleep().is_zero(), "the next turn follows at once");
        bench.worker.close_let_in();
        assert_eq!(closed(&bench), done);
    }
    assert!(bench.worker.revoking.next_ms().is_none());
    let waits_ms: Vec<u32> = clients
        .iter_mut()
        .map(|client| {
            let disconnect = told(client);
            assert_eq!(disconnect.code, 4005);
            disconnect.retry_after_ms
        })
        .collect();
    let longest_ms = waits_ms.iter().max().copied().unwrap_or_default();
    assert!((20_000..=30_000).contains(&longest_ms), "{SESSIONS} at 10 a second: {longest_ms} ms");
    let soon = waits_ms.iter().filter(|wait_ms| **wait_ms < 10_000).count();
    assert!((SESSIONS / 6..SESSIONS / 2).contains(&soon), "evenly: {soon} in the first third");
}
