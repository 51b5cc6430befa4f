//! A seed sweep: a random client, a random logic and a random clock around one session, with the protocol's promises
//! checked at every step. A seed that fails, fails again.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    sync::Arc,
};

use berth_proto::{
    client::{self, Hello, Request, request::Method, response},
    frame::{Encoding, decode_server, encode_client},
    metric::Registry,
    schedule::HeartbeatParameters,
    tcp,
    ticket::{TicketSigner, TicketVerifier},
};
use metrics::NoopRecorder;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use server_frame::Frame;
use tungstenite::protocol::frame::FrameHeader;

use link::to_logic;

use super::*;
use crate::{level::Levels, metrics::Metrics};

/// A worker's surroundings for one session.
pub(crate) struct Harness {
    pub(crate) now: Now,
    pub(crate) env: Env,
    pub(super) ups: Ups,
    rng: SmallRng,
    signer: TicketSigner,
}

impl Harness {
    pub(crate) fn new(seed: u64) -> Self {
        let signer = TicketSigner::from_secret(b"a simulation's secret");
        let metrics = Arc::new(Metrics::new(Registry::new(&NoopRecorder)));
        let env = Env {
            gateway_id: "gw-1".into(),
            boot: 1,
            heartbeat: HeartbeatParameters { interval_ms: 25_000, timeout_ms: 37_500 },
            timeouts: Timeouts::default(),
            verifier: Arc::new(TicketVerifier::new(&[signer.public_key()])),
            draining: false,
            evacuating: false,
            to_pool: Arc::default(),
            region: String::new(),
            placed: true,
            placed_ms: 0,
            homes_ms: 0,
            stopping: false,
            spread_ms: 2_000,
            scheduled: true,
            grace_ms: 0,
            outage: Arc::default(),
            logics: vec![true],
            revoked: Arc::default(),
            guard: Arc::default(),
            door: Arc::default(),
            levels: Levels::new(&metrics, Arc::default()),
            metrics,
        };
        let now = Now { steady_ms: 1_000_000, wall_ms: 2_000_000 };
        Self { now, env, ups: Ups::default(), rng: SmallRng::seed_from_u64(seed), signer }
    }

    /// Lets `act` work on the session; returns the bytes it wrote.
    pub(super) fn with<R>(
        &mut self,
        session: &mut Session,
        act: impl FnOnce(&mut Session, &mut Cx<'_>) -> R,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        act(session, &mut self.cx(&mut out));
        out
    }

    /// What the session is given with an event.
    pub(crate) fn cx<'a>(&'a mut self, out: &'a mut Vec<u8>) -> Cx<'a> {
        let Self { now, env, ups, rng, .. } = self;
        Cx { now: *now, handle: 42, env, rng, out, ups }
    }

    /// A session of a client that speaks TCP, welcomed.
    pub(crate) fn welcomed(&mut self) -> Session {
        let mut session = self.arrived(Hello { ticket: self.sign(&self.ticket()), ..Hello::default() });
        let opened = link::SessionOpened { handle: 42, session_epoch: 1, ..link::SessionOpened::default() };
        self.with(&mut session, |session, cx| session.deliver(cx, to_gateway::Message::Opened(opened)));
        assert!(matches!(session.stage, Stage::Identified(_)));
        session
    }

    /// A session of a client that speaks TCP and said that hello, from device `d`.
    pub(crate) fn arrived(&mut self, hello: Hello) -> Session {
        self.arrives(hello).0
    }

    /// What is said to a client that speaks TCP and said that hello.
    pub(super) fn said(&mut self, hello: Hello) -> Vec<u8> {
        self.arrives(hello).1
    }

    fn arrives(&mut self, hello: Hello) -> (Session, Vec<u8>) {
        let mut session = Session::new(self.now, &self.env.timeouts, (Ipv4Addr::LOCALHOST, 1).into(), false);
        let hello = Hello { device_id: "d".into(), ..hello };
        let mut payload = Vec::new();
        encode_client(Encoding::Proto, client_frame::Frame::Hello(hello), &mut payload);
        let mut bytes = [&tcp::prefix(payload.len())[..], &payload].concat();
        let said = self.with(&mut session, |session, cx| session.receive(cx, &mut bytes));
        (session, said)
    }

    pub(crate) fn sign(&self, ticket: &link::Ticket) -> String {
        self.signer.sign(ticket)
    }

    pub(crate) fn ticket(&self) -> link::Ticket {
        link::Ticket {
            user_id: "alice".into(),
            device_id: "d".into(),
            gateway_ids: vec!["gw-1".into()],
            expires_at_ms: self.now.wall_ms + 1_000,
            auth_expires_at_ms: self.now.wall_ms + 600_000,
            ..link::Ticket::default()
        }
    }
}

/// The session under test with a model of everybody else.
struct World {
    harness: Harness,
    rng: SmallRng,
    session: Session,
    wire: Option<Encoding>,
    /// Sent by the client, not given to the session yet.
    input: Vec<u8>,
    /// Written by the session, not read by the client yet.
    output: Vec<u8>,
    /// The socket takes nothing.
    blocked: bool,
    opening: bool,
    /// Logic was asked to open the session.
    asked_to_open: bool,
    epoch: u64,
    /// Requests at logic: number on the link.
    at_logic: Vec<u32>,
    /// Requests whose answer the client waits for: how many of each id.
    asked: HashMap<u32, usize>,
    newest: u64,
    told: u64,
    welcomed: bool,
    goodbye: Option<u32>,
    /// Epochs and handles.
    closes: Vec<(u64, u64)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let harness = Harness::new(seed);
        let peer = (Ipv4Addr::LOCALHOST, 1).into();
        let session = Session::new(harness.now, &harness.env.timeouts, peer, false);
        let mut world = Self {
            harness,
            rng: SmallRng::seed_from_u64(!seed),
            session,
            wire: [None, Some(Encoding::Json), Some(Encoding::Proto)]
                [usize::try_from(seed % 3).expect("small")],
            input: Vec::new(),
            output: Vec::new(),
            blocked: false,
            opening: false,
            asked_to_open: false,
            epoch: 0,
            at_logic: Vec::new(),
            asked: HashMap::new(),
            newest: 0,
            told: 0,
            welcomed: false,
            goodbye: None,
            closes: Vec::new(),
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        if let Some(encoding) = self.wire {
            let head = format!(
                "GET /v1/ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {}\r\n\r\n",
                encoding.subprotocol()
            );
            let out = self
                .harness
                .with(&mut self.session, |session, cx| session.receive(cx, &mut head.into_bytes()));
            assert!(out.starts_with(b"HTTP/1.1 101 ") && out.ends_with(b"\r\n\r\n"));
        }
        let ticket = self.harness.sign(&self.harness.ticket());
        self.say(client_frame::Frame::Hello(Hello { ticket, device_id: "d".into(), ..Hello::default() }));
    }

    fn say(&mut self, frame: client_frame::Frame) {
        let mut payload = Vec::new();
        encode_client(self.wire.unwrap_or(Encoding::Proto), frame, &mut payload);
        let Some(encoding) = self.wire else {
            self.input.extend(tcp::prefix(payload.len()));
            return self.input.extend(payload);
        };
        let start = self.input.len();
        self.input.extend(payload);
        let opcode = if encoding == Encoding::Json { ws::Opcode::Text } else { ws::Opcode::Binary };
        ws::frame_in_place(opcode, start, &mut self.input);
        // Masked with zeros.
        self.input[start + 1] |= 0x80;
        let header = match self.input[start + 1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        self.input.splice(start + header..start + header, [0; 4]);
    }

    fn step(&mut self) {
        match self.rng.random_range(0..12) {
            0..=2 => self.client_asks(),
            3 => self.say(client_frame::Frame::Heartbeat(client::Heartbeat {})),
            4..=5 => self.feed(),
            6 => self.logic_opens(),
            7..=8 => self.logic_answers(),
            9 => self.logic_notifies(),
            10 => self.toggle_blocked(),
            _ => self.time_passes(),
        }
        self.write_pending();
        self.take_ups();
        self.read_output();
        self.check();
    }

    fn client_asks(&mut self) {
        if !self.welcomed {
            return;
        }
        let id = self.rng.random_range(1..=20);
        *self.asked.entry(id).or_default() += 1;
        let method = Some(Method::Ack(client::AckRequest { seq: 1 }));
        self.say(client_frame::Frame::Request(Request { id, method }));
    }

    /// A part of what the client sent arrives.
    fn feed(&mut self) {
        if self.blocked || !self.session.wants_input() {
            return;
        }
        let some = self.rng.random_range(0..=self.input.len());
        let mut taken = 0;
        let (session, input) = (&mut self.session, &mut self.input[..some]);
        let out = self.harness.with(session, |session, cx| (taken, _) = session.receive(cx, input));
        self.input.drain(..taken);
        self.output.extend(out);
    }

    fn logic_opens(&mut self) {
        if !std::mem::take(&mut self.opening) {
            return;
        }
        self.epoch += 1;
        self.deliver(to_gateway::Message::Opened(link::SessionOpened {
            handle: 42,
            session_epoch: self.epoch,
            inbox_seq: self.newest,
            inbox_epoch: 1,
            ..link::SessionOpened::default()
        }));
    }

    fn logic_answers(&mut self) {
        if self.at_logic.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.at_logic.len());
        let id = self.at_logic.remove(at);
        let result = Some(response::Result::Ack(client::AckResponse {}));
        let response = Some(client::Response { id, result });
        self.deliver(to_gateway::Message::Response(link::ClientResponse { handle: 42, response }));
    }

    fn logic_notifies(&mut self) {
        self.newest += self.rng.random_range(0..3);
        // Late and repeated ones too.
        let seq = self.rng.random_range(0..=self.newest).max(self.newest.saturating_sub(1));
        self.newest = self.newest.max(seq);
        let newest = self.newest;
        self.harness.with(&mut self.session, |session, cx| {
            session.notify(cx, seq, &[]);
            session.notify(cx, newest, &[])
        });
    }

    fn deliver(&mut self, message: to_gateway::Message) {
        let out = self.harness.with(&mut self.session, |session, cx| session.deliver(cx, message));
        self.output.extend(out);
    }

    fn toggle_blocked(&mut self) {
        self.blocked = !self.blocked;
        if self.blocked {
            self.harness.with(&mut self.session, |session, cx| session.blocked(cx));
        } else {
            self.harness.with(&mut self.session, |session, cx| session.unblocked(cx, 1, true));
        }
    }

    fn time_passes(&mut self) {
        let ms = if self.rng.random_bool(0.02) { 40_000 } else { 100 };
        self.harness.now.steady_ms += ms;
        self.harness.now.wall_ms += ms;
        let out = self.harness.with(&mut self.session, |session, cx| session.expire(cx));
        self.output.extend(out);
        let deadline = self.session.deadline_ms(&self.harness.env);
        assert!(
            deadline > self.harness.now.steady_ms,
            "an expired deadline is still there: a wheel would spin"
        );
    }

    fn write_pending(&mut self) {
        if !self.blocked {
            let out = self.harness.with(&mut self.session, |session, cx| session.write_pending(cx));
            self.output.extend(out);
        }
    }

    fn take_ups(&mut self) {
        for (logic, message) in self.harness.ups.logic.drain(..) {
            assert_eq!(logic, 0);
            match message {
                to_logic::Message::Open(open) => {
                    assert!(!self.opening && !self.welcomed && open.session_epoch == 0);
                    (self.opening, self.asked_to_open) = (true, true);
                }
                to_logic::Message::Request(request) => {
                    assert_eq!(request.session_epoch, self.epoch);
                    self.at_logic.push(request.request.map_or(0, |request| request.id));
                }
                to_logic::Message::Close(close) => self.closes.push((close.session_epoch, close.handle)),
                to_logic::Message::Refresh(_) | to_logic::Message::Renew(_) => {
                    panic!("not a session's to say")
                }
            }
        }
        let numbers: HashSet<_> = self.at_logic.iter().collect();
        assert_eq!(numbers.len(), self.at_logic.len(), "numbers on the link are never used twice");
    }

    /// The client reads everything, whole frames only.
    fn read_output(&mut self) {
        while let Some((payload, encoding)) = self.next_frame() {
            let frame = decode_server(encoding, &payload).expect("a server's frame");
            assert_eq!(self.goodbye, None, "nothing after disconnect");
            match frame {
                Frame::Welcome(welcome) => {
                    assert!(!std::mem::replace(&mut self.welcomed, true), "one welcome");
                    self.told = welcome.inbox_seq;
                }
                Frame::Notify(notify) => {
                    assert!(notify.inbox_seq > self.told, "told something new");
                    self.told = notify.inbox_seq;
                }
                Frame::Response(response) => {
                    let left = self.asked.get_mut(&response.id).expect("an id that was asked");
                    *left = left.checked_sub(1).expect("one answer to one request");
                }
                Frame::HeartbeatAck(ack) => assert!(ack.inbox_seq <= self.newest),
                Frame::Disconnect(disconnect) => self.goodbye = Some(disconnect.code),
            }
            assert!(self.welcomed || self.goodbye.is_some(), "welcome or goodbye comes first");
        }
        assert!(self.output.is_empty(), "the session writes whole frames");
    }

    fn next_frame(&mut self) -> Option<(Vec<u8>, Encoding)> {
        let Some(encoding) = self.wire else {
            let (payload, taken) =
                tcp::split(&self.output, limits::SERVER_FRAME).expect("within the limit")?;
            let payload = payload.to_vec();
            self.output.drain(..taken);
            return Some((payload, Encoding::Proto));
        };
        let mut cursor = std::io::Cursor::new(&self.output);
        let (header, length) = FrameHeader::parse(&mut cursor).expect("a server's frame")?;
        let start = usize::try_from(cursor.position()).expect("small");
        let end = start + usize::try_from(length).expect("small");
        let payload = self.output[start..end].to_vec();
        self.output.drain(..end);
        if u8::from(header.opcode) == ws::Opcode::Close as u8 {
            let code = u32::from(u16::from_be_bytes([payload[0], payload[1]]));
            assert_eq!(self.goodbye, Some(code), "the close frame repeats disconnect");
            return None;
        }
        Some((payload, encoding))
    }

    fn check(&self) {
        assert!(self.told <= self.newest);
        let closing = self.session.closing() || self.session.gone();
        let mute = self.session.wire == Wire::Unknown;
        assert_eq!(
            self.goodbye.is_some(),
            closing && !mute,
            "who closes says so, to whoever showed what he speaks"
        );
        if closing && self.welcomed {
            assert_eq!(self.closes, [(self.epoch, 0)], "a session that ends is closed once, with its epoch");
        } else if closing && self.asked_to_open {
            assert_eq!(self.closes, [(0, 42)], "and one that logic may still open, by its handle");
        } else {
            assert!(self.closes.is_empty());
        }
        if self.welcomed && !closing && !self.blocked {
            assert_eq!(self.told, self.newest, "an open connection with room knows the newest");
        }
    }

    /// The client and logic do all that is left to do.
    fn settle(&mut self) {
        if self.blocked {
            self.toggle_blocked();
        }
        for _ in 0..10_000 {
            self.logic_opens();
            self.logic_answers();
            let before = self.input.len();
            self.feed();
            self.write_pending();
            self.take_ups();
            self.read_output();
            self.check();
            let closed = self.session.closing() || self.session.gone();
            if closed || before == 0 && self.at_logic.is_empty() && !self.opening {
                break;
            }
        }
        if !self.session.closing() && !self.session.gone() {
            assert!(
                self.asked.values().all(|left| *left == 0),
                "every request was answered: {:?}",
                self.asked
            );
            assert!(self.welcomed);
        }
    }
}

#[test]
fn the_protocols_promises_hold_for_every_seed() {
    let (mut welcomed, mut ended) = (0, 0);
    for seed in 0..600 {
        let mut world = World::new(seed);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..300 {
                world.step();
            }
            world.settle();
        }));
        assert!(result.is_ok(), "seed {seed}");
        welcomed += usize::from(world.welcomed);
        ended += usize::from(world.goodbye.is_some());
    }
    // The sweep is worth something only if it goes everywhere.
    assert!(welcomed > 400 && ended > 50 && ended < 550, "{welcomed} welcomed, {ended} ended");
}
