//! How a client gets in: token, schedule, TCP, upgrade, hello, welcome; each step timed by itself.

use std::{cmp::Reverse, net::ToSocketAddrs, time::Duration};

use berth_proto::{
    client::{Hello, Welcome, client_frame},
    schedule::{Problem, ScheduleAnswer},
};
use mio::Token;
use serde::Deserialize;
use serde_json::json;

use super::{
    fleet::{Fleet, Frames, Step, Work},
    histogram::Histogram,
    http::{Answer, Ask, AskKind, kind_of},
    pace::{Nanos, Pace, SECOND},
    stream::Stream,
    wire::{self, Transport},
};
use crate::compose;

/// Clients between their turn and welcome, where no rate is given: enough to keep every stage of the server busy, few
/// enough not to wait behind each other.
pub const WINDOW: usize = 128;

/// From a client's turn to its welcome at the most.
const PATIENCE: Nanos = 30 * SECOND;

/// How often a client comes again that was told to: with 429 or 503 by a scheduler, with 4009 by a gateway.
const ASKS: u32 = 5;

/// A lost client comes back within this at random, as a real one would.
const BACK_WITHIN: Nanos = SECOND;

/// The device of every client: there is one device to a user.
const DEVICE: &str = "bench";

/// A token outlives any run.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3_600);

/// A client on its way in.
pub(super) struct Arrival {
    /// When its first turn was: the whole way counts from here, waits that the server asked for included.
    intended: Nanos,
    /// When the step began that it is in.
    since: Nanos,
    token: String,
    /// Keeps the place that a scheduler told.
    queue_token: String,
    ticket: String,
    /// `ws://host:port/v1/ws` or `tcp://host:port`.
    url: String,
    asked: u32,
}

impl Arrival {
    fn of(intended: Nanos) -> Self {
        let (token, queue_token, ticket, url) = <(String, String, String, String)>::default();
        Self { intended, since: intended, token, queue_token, ticket, url, asked: 0 }
    }
}

impl Fleet {
    /// Gives everybody who has not been in yet their turn, from now on at the plan's rate. With `opening` they connect;
    /// without, they stop at the ticket.
    pub fn begin(&mut self, opening: bool) {
        self.opening = opening;
        self.latencies.first_at = self.clock.now();
        self.pace = self.plan.connects_per_second.map(|rate| Pace::new(self.clock.now(), rate));
        let wanted = if opening { [Step::Waiting, Step::Ticketed] } else { [Step::Waiting, Step::Waiting] };
        let wants = |who: &u32| wanted.contains(&self.peers[*who as usize].step);
        self.queue = (0..u32::try_from(self.peers.len()).unwrap_or(u32::MAX)).filter(wants).collect();
    }

    /// The load begins: heartbeats and frames until now are not its own, since others still connected.
    pub fn forget(&mut self) {
        self.latencies.heartbeat = Histogram::default();
        self.frames = Frames::default();
    }

    /// How many still have to get in, or to fail.
    pub fn outside(&self) -> usize {
        self.queue.len() + self.arriving + self.later.len()
    }

    /// Begins whose turn has come, gives up who takes too long; says when the next thing is due.
    pub(super) fn arrivals_due(&mut self, work: &mut dyn Work, now: Nanos) -> Option<Nanos> {
        while let Some(Reverse((at, who))) = self.later.peek().copied()
            && at <= now
        {
            self.later.pop();
            // It comes at a time of its own, whatever the pace of the others is.
            self.take_turn(who as usize, at, now);
        }
        while let Some(who) = self.queue.front().copied() {
            let intended = match &mut self.pace {
                Some(pace) => match pace.take(now) {
                    Some(intended) => intended,
                    None => break,
                },
                None if self.arriving < WINDOW => now,
                None => break,
            };
            self.queue.pop_front();
            if self.pace.is_some() {
                self.latencies.late.record(now.saturating_sub(intended));
            }
            self.take_turn(who as usize, intended, now);
        }
        while let Some((at, who, attempt)) = self.deadlines.front().copied()
            && at <= now
        {
            self.deadlines.pop_front();
            let peer = &self.peers[who as usize];
            // Who waits for a turn is not on its way.
            let waits = matches!(peer.step, Step::Waiting | Step::Ticketed);
            if peer.attempt == attempt && peer.arrival.is_some() && !waits {
                let kind = format!("timeout:{:?}", peer.step).to_lowercase();
                self.closed(who as usize, &kind, work, now);
            }
        }
        let paced = self.pace.as_ref().filter(|_| !self.queue.is_empty()).map(Pace::next_at);
        let later = self.later.peek().map(|Reverse((at, _))| *at);
        let deadline = self.deadlines.front().map(|(at, ..)| *at);
        [paced, later, deadline].into_iter().flatten().min()
    }

    fn take_turn(&mut self, who: usize, intended: Nanos, now: Nanos) {
        let peer = &mut self.peers[who];
        peer.attempt += 1;
        self.arriving += 1;
        self.deadlines.push_back((now + PATIENCE, u32::try_from(who).unwrap_or(u32::MAX), peer.attempt));
        if peer.step == Step::Ticketed {
            if let Some(arrival) = &mut peer.arrival
                && arrival.asked == 0
            {
                arrival.intended = intended;
            }
            return self.open(who, now);
        }
        peer.step = Step::Asking;
        let arrival = peer.arrival.get_or_insert_with(|| Box::new(Arrival::of(intended)));
        arrival.since = now;
        if !arrival.token.is_empty() {
            // Asked before, and told to wait.
            let token = std::mem::take(&mut arrival.token);
            self.ask_schedule(who, token, intended);
        } else if let Some(secret) = &self.plan.jwt_secret {
            let token = compose::sign_token(secret, &self.plan.users[who], TOKEN_TTL);
            self.ask_schedule(who, token, intended);
        } else {
            let body = json!({ "userId": self.plan.users[who] }).to_string();
            let bytes = self.pool.post("/v1/dev/token", None, &body);
            self.ask(Ask { who, kind: AskKind::Token, intended, bytes, again: false });
        }
    }

    fn ask_schedule(&mut self, who: usize, token: String, intended: Nanos) {
        let place = self.peers[who].arrival.as_ref().map_or("", |arrival| &arrival.queue_token);
        let body = schedule_body(self.plan.transport, place);
        let bytes = self.pool.post("/v1/schedule", Some(&token), &body);
        if let Some(arrival) = &mut self.peers[who].arrival {
            arrival.token = token;
            arrival.since = intended;
        }
        self.ask(Ask { who, kind: AskKind::Schedule, intended, bytes, again: false });
    }

    /// The scheduler answered a client.
    pub(super) fn asked(&mut self, answer: Answer, now: Nanos) {
        let Answer { who, kind, intended, result } = answer;
        if self.peers[who].step != Step::Asking {
            return;
        }
        match (kind, result) {
            (AskKind::Token, Ok((200, body))) => match token_of(&body) {
                Some(token) => self.ask_schedule(who, token, now),
                None => self.refused(who, "token:unreadable".to_owned(), None, now),
            },
            (AskKind::Token, Ok((status, _))) => {
                self.refused(who, format!("token:{status}"), None, now);
            }
            (AskKind::Schedule, Ok((200, body))) => {
                self.latencies.schedule.record(now.saturating_sub(intended));
                self.scheduled(who, &body, now);
            }
            (AskKind::Schedule, Ok((status, body))) => {
                let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
                let wait = matches!(status, 429 | 503)
                    .then(|| u64::from(problem.retry_after_ms.unwrap_or(1_000)) * 1_000_000);
                if let Some(arrival) = &mut self.peers[who].arrival {
                    arrival.queue_token = problem.queue_token;
                }
                self.refused(who, format!("schedule:{status}:{}", problem.reason), wait, now);
            }
            (kind, Err(reason)) => {
                let step = if kind == AskKind::Token { "token" } else { "schedule" };
                self.refused(who, format!("{step}:{reason}"), None, now);
            }
        }
    }

    /// A gateway has more handshakes than it takes: the client comes again with its ticket. A real one would go on along its
    /// list.
    pub(super) fn sent_away(&mut self, who: usize, kind: String, retry_after_ms: u32, now: Nanos) {
        self.peers[who].stream = None;
        self.come_again(who, kind, Some(u64::from(retry_after_ms) * 1_000_000), Step::Ticketed, now);
    }

    /// Asks again after `wait` if there is any; else gives the client up.
    fn refused(&mut self, who: usize, kind: String, wait: Option<Nanos>, now: Nanos) {
        self.come_again(who, kind, wait, Step::Waiting, now);
    }

    fn come_again(&mut self, who: usize, kind: String, wait: Option<Nanos>, step: Step, now: Nanos) {
        self.tally.error(kind);
        let arrival = self.peers[who].arrival.as_mut();
        match (wait, arrival) {
            (Some(wait), Some(arrival)) if arrival.asked < ASKS => {
                arrival.asked += 1;
                self.peers[who].step = step;
                self.arriving -= 1;
                self.later.push(Reverse((now + wait, u32::try_from(who).unwrap_or(u32::MAX))));
            }
            _ => self.given_up(who, now),
        }
    }

    fn scheduled(&mut self, who: usize, body: &[u8], now: Nanos) {
        let transport = self.plan.transport.name();
        let answer: ScheduleAnswer = match serde_json::from_slice(body) {
            Ok(answer) => answer,
            Err(_) => return self.refused(who, "schedule:unreadable".to_owned(), None, now),
        };
        let Some(endpoint) = answer.endpoints.into_iter().find(|endpoint| endpoint.transport == transport)
        else {
            return self.refused(who, format!("schedule:no-{transport}"), None, now);
        };
        self.interval = match self.plan.heartbeat {
            Some(interval) => interval,
            None => u64::from(answer.heartbeat.interval_ms.max(100)) * 1_000_000,
        };
        let peer = &mut self.peers[who];
        if let Some(arrival) = &mut peer.arrival {
            // What a gateway makes it wait is another matter.
            (arrival.ticket, arrival.url, arrival.asked) = (answer.ticket, endpoint.url, 0);
        }
        if self.opening {
            self.open(who, now);
        } else {
            peer.step = Step::Ticketed;
            self.arriving -= 1;
        }
    }

    fn open(&mut self, who: usize, now: Nanos) {
        let Some(arrival) = self.peers[who].arrival.as_mut() else { return };
        arrival.since = now;
        let authority = authority(&arrival.url).to_owned();
        let known = self.addresses.get(&authority).copied();
        // Each name once: it is the same few gateways for everybody.
        let Some(address) = known.or_else(|| authority.to_socket_addrs().ok()?.next()) else {
            return self.refused(who, "connect:unresolvable".to_owned(), None, now);
        };
        self.addresses.insert(authority, address);
        match Stream::connect(address, self.plan.first + who, self.registry(), Token(who)) {
            Ok(stream) => {
                self.peers[who].stream = Some(stream);
                self.peers[who].step = Step::Opening;
            }
            Err(error) => self.refused(who, format!("connect:{}", kind_of(&error)), None, now),
        }
    }

    /// The socket became ready for the first time: connected, or refused. True: there may be something to read.
    pub(super) fn connected(&mut self, who: usize) -> bool {
        let now = self.clock.now();
        let transport = self.plan.transport;
        let peer = &mut self.peers[who];
        let (Some(stream), Some(arrival)) = (&mut peer.stream, &mut peer.arrival) else { return false };
        let sent = match stream.error() {
            Some(error) => Err(error),
            None if transport == Transport::Ws => stream.send(&upgrade(authority(&arrival.url))),
            None => Ok(()),
        };
        if let Err(error) = sent {
            peer.stream = None;
            self.refused(who, format!("connect:{}", kind_of(&error)), None, now);
            return false;
        }
        match transport {
            Transport::Ws => peer.step = Step::Upgrading,
            Transport::Tcp => self.greet(who, now),
        }
        true
    }

    /// Reads the answer to the upgrade; gives the bytes taken once it is whole.
    pub(super) fn upgraded(&mut self, who: usize, bytes: &[u8], now: Nanos) -> Option<usize> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let status = response.parse(bytes);
        match (status, response.code) {
            (Ok(httparse::Status::Partial), _) => None,
            (Ok(httparse::Status::Complete(head)), Some(101)) => {
                self.greet(who, now);
                Some(head)
            }
            (status, code) => {
                let code = code.filter(|_| status.is_ok()).map_or("unreadable".to_owned(), |c| c.to_string());
                self.peers[who].stream = None;
                self.refused(who, format!("upgrade:{code}"), None, now);
                Some(bytes.len())
            }
        }
    }

    fn greet(&mut self, who: usize, now: Nanos) {
        let peer = &mut self.peers[who];
        let (Some(stream), Some(arrival)) = (&mut peer.stream, &mut peer.arrival) else { return };
        self.latencies.transport.record(now - arrival.since);
        arrival.since = now;
        peer.step = Step::Greeting;
        let hello = Hello {
            ticket: arrival.ticket.clone(),
            device_id: DEVICE.to_owned(),
            platform: "server".to_owned(),
            ..Hello::default()
        };
        let mut bytes = Vec::with_capacity(512);
        wire::write(self.plan.transport, client_frame::Frame::Hello(hello), &mut bytes);
        // A broken connection also becomes readable: the loss is dealt with there.
        let _ = stream.send(&bytes);
    }

    pub(super) fn welcomed(&mut self, who: usize, welcome: &Welcome, now: Nanos) {
        let peer = &mut self.peers[who];
        let Some(arrival) = peer.arrival.take() else { return };
        peer.seq = peer.seq.max(welcome.inbox_seq);
        let back = peer.lived;
        self.latencies.welcome.record(now - arrival.since);
        self.latencies.connect.record(now.saturating_sub(arrival.intended));
        self.arriving -= 1;
        if back {
            self.latencies.reconnected += 1;
        } else {
            self.latencies.connected += 1;
            self.latencies.last_at = now;
        }
        self.lives(who, now);
    }

    /// A client did not get in.
    pub(super) fn given_up(&mut self, who: usize, now: Nanos) {
        let peer = &mut self.peers[who];
        (peer.stream, peer.arrival, peer.step) = (None, None, Step::Gone);
        self.arriving -= 1;
        // Who was never in is not lost, and the connect stage has an end.
        if self.plan.reconnect && self.peers[who].lived {
            self.again(who, now);
        } else {
            self.latencies.failed += 1;
        }
    }

    /// A client comes back in a while.
    pub(super) fn again(&mut self, who: usize, now: Nanos) {
        let wait = rand::random_range(0..BACK_WITHIN);
        self.peers[who].step = Step::Waiting;
        self.later.push(Reverse((now + wait, u32::try_from(who).unwrap_or(u32::MAX))));
    }
}

/// What a client of this transport asks, with what keeps its place in the queue.
pub fn schedule_body(transport: Transport, queue_token: &str) -> String {
    let sdk = concat!("berth-bench/", env!("CARGO_PKG_VERSION"));
    let transports = [transport.name()];
    json!({ "deviceId": DEVICE, "platform": "server", "sdk": sdk, "transports": transports, "queueToken": queue_token })
        .to_string()
}

/// The token of a dev endpoint's answer.
pub fn token_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Given {
        token: String,
    }
    serde_json::from_slice::<Given>(body).ok().map(|given| given.token)
}

/// `host:port` of a URL.
pub fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// The key is constant: it only has to be well-formed.
fn upgrade(host: &str) -> Vec<u8> {
    format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: berth.v1.proto\r\n\r\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{asking::Hold, fleet::Plan, http::Pool},
        *,
    };

    /// Clients of a scheduler that takes connections and never answers.
    fn fleet(users: usize, connects_per_second: f64) -> (Fleet, std::net::TcpListener) {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let plan = Plan {
            transport: Transport::Tcp,
            users: (0..users).map(|nth| format!("u{nth}")).collect(),
            first: 0,
            jwt_secret: Some("a secret of at least thirty-two bytes".to_owned()),
            heartbeat: None,
            reconnect: true,
            connects_per_second: Some(connects_per_second),
        };
        let pool = Pool::new(silent.local_addr().expect("bound"), "h", 4);
        (Fleet::new(plan, pool).expect("epoll"), silent)
    }

    fn intended(fleet: &Fleet, who: usize) -> Option<Nanos> {
        fleet.peers[who].arrival.as_ref().map(|arrival| arrival.intended)
    }

    fn refusal(who: usize, retry_after_ms: u32) -> Answer {
        let body = json!({ "reason": "OVERLOADED", "retryAfterMs": retry_after_ms }).to_string().into_bytes();
        Answer { who, kind: AskKind::Schedule, intended: 0, result: Ok((503, body)) }
    }

    #[test]
    fn a_client_told_to_wait_keeps_its_first_turn_and_is_counted_out_once() {
        let (mut fleet, _silent) = fleet(1, 1_000.0);
        let mut work = Hold::default();
        fleet.begin(true);
        let turn = fleet.clock.now();
        fleet.arrivals_due(&mut work, turn);
        let first = intended(&fleet, 0).expect("it asks");
        assert!(first <= turn && fleet.outside() == 1);
        fleet.asked(refusal(0, 60_000), turn);
        fleet.arrivals_due(&mut work, turn + PATIENCE + 1);
        assert_eq!((fleet.outside(), fleet.arriving), (1, 0), "it waits as it was told, and is not given up");
        fleet.arrivals_due(&mut work, turn + 61 * SECOND);
        assert_eq!((intended(&fleet, 0), fleet.arriving), (Some(first), 1), "the wait counts");
    }

    #[test]
    fn who_comes_back_takes_no_turn_of_the_pace() {
        let (mut fleet, _silent) = fleet(2, 0.001);
        let mut work = Hold::default();
        fleet.begin(true);
        let turn = fleet.clock.now();
        fleet.arrivals_due(&mut work, turn);
        let lost = turn + 100 * SECOND;
        fleet.peers[0].lived = true;
        fleet.given_up(0, lost);
        fleet.arrivals_due(&mut work, lost + BACK_WITHIN);
        let back = intended(&fleet, 0).expect("it is back");
        assert!((lost..lost + BACK_WITHIN).contains(&back), "{back} after {lost}");
        assert_eq!(intended(&fleet, 1), None, "the other one's turn is in 1,000 s");
    }

    #[test]
    fn urls_have_authorities() {
        assert_eq!(authority("ws://127.0.0.1:7710/v1/ws"), "127.0.0.1:7710");
        assert_eq!(authority("tcp://h:1"), "h:1");
        assert_eq!(authority("http://[::1]:7700/"), "[::1]:7700");
    }

    #[test]
    fn only_an_answer_with_a_token_has_one() {
        assert_eq!(token_of(br#"{"token":"t","more":1}"#).as_deref(), Some("t"));
        assert_eq!(token_of(b"{}"), None);
    }
}
