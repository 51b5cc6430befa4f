//! The clients under one event loop: their sockets and losses. How they come to be connected is in `arrive`, their
//! heartbeats are in `beats`; what they are connected for is a [`Work`].
//!
//! One thread, no task and no timer per client, so that the load generator leaves the machine to the server: an idle client
//! is its socket and a [`Peer`].

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    io,
    net::SocketAddr,
    os::fd::AsRawFd,
    sync::Arc,
    time::Duration,
};

use berth_proto::client::{
    ConversationSeq, Heartbeat, Request, Response, client_frame, request::Method, server_frame::Frame,
};
use mio::{Events, Interest, Poll, Registry, Token, Waker, unix::SourceFd};

use super::{
    arrive::Arrival,
    beats::Unanswered,
    clock::Clock,
    http::{Answer, Ask, Pool, kind_of},
    latencies::Latencies,
    pace::{Nanos, Pace},
    stream::{Read1, Stream},
    system::Timer,
    tally::Tally,
    wire::{self, Incoming, Transport},
};

const WAKER: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);

/// Read at a time; larger than any server frame with its header.
const SCRATCH: usize = berth_proto::limits::SERVER_FRAME + 64 * 1024;

/// The loop comes around at least this often, for progress and stops.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// Below this a wait is left to the exact timer.
const EXACT: Nanos = 3_000_000;

/// What connected clients do. Called from the loop; nothing here may wait.
pub trait Work {
    /// Looks at what is due; says when to be asked again, if at a time.
    fn due(&mut self, fleet: &mut Fleet, now: Nanos) -> Option<Nanos>;
    /// A client got a notify (`Some` conversations), or an ack of its heartbeat (`None`) with this newest inbox seq.
    fn told(&mut self, _: &mut Fleet, _who: usize, _seq: u64, _: Option<&[ConversationSeq]>, _: Nanos) {}
    /// A client got an answer.
    fn answered(&mut self, _: &mut Fleet, _who: usize, _: Response, _: Nanos) {}
    /// A client lost its connection.
    fn lost(&mut self, _: &mut Fleet, _who: usize, _: Nanos) {}
    /// An HTTP answer came that is no client's.
    fn http(&mut self, _: &mut Fleet, _: Answer, _: Nanos) {}
    /// Whether the load may begin; called until it says so, after everybody is connected.
    fn prepared(&mut self, _: &mut Fleet, _: Nanos) -> bool {
        true
    }
    /// The load begins at this time.
    fn start(&mut self, fleet: &mut Fleet, at: Nanos);
    /// Whether all is done.
    fn done(&self, now: Nanos) -> bool;
    /// Ends early: nothing more is begun.
    fn stop(&mut self) {}
    /// For the progress line.
    fn progress(&self) -> String {
        String::new()
    }
    /// Adds what was measured.
    fn finish(&mut self, tally: &mut Tally);
}

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Has its turn still before it.
    Waiting,
    /// Asks for a token or a schedule.
    Asking,
    /// Has a ticket, and waits for the connect stage.
    Ticketed,
    /// Connects and upgrades.
    Opening,
    /// Waits for the answer to the upgrade.
    Upgrading,
    /// Has said hello.
    Greeting,
    /// Was welcomed.
    Live,
    /// Is given up.
    Gone,
}

/// One client.
pub(super) struct Peer {
    pub(super) stream: Option<Stream>,
    pub(super) arrival: Option<Box<Arrival>>,
    /// The newest inbox seq that it was told.
    pub(super) seq: u64,
    pub(super) beats: Unanswered,
    /// How often it began to connect.
    pub(super) attempt: u32,
    pub(super) step: Step,
    /// Whether it was connected before.
    pub(super) lived: bool,
}

/// What the clients have in common.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How they connect.
    pub transport: Transport,
    /// Their user ids, in order.
    pub users: Vec<String>,
    /// How many clients other processes have before these: each takes ports of its own.
    pub first: usize,
    /// Signs their tokens; none: the scheduler's dev endpoint gives them.
    pub jwt_secret: Option<String>,
    /// Between heartbeats; none: as the server asks.
    pub heartbeat: Option<Nanos>,
    /// Whether the lost come back.
    pub reconnect: bool,
    /// Connects a second; none: as fast as [`super::arrive::WINDOW`] at a time get in.
    pub connects_per_second: Option<f64>,
}

/// All clients of this process.
pub struct Fleet {
    pub(super) poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    timer: Timer,
    /// The run's clock.
    pub clock: Clock,
    pub(super) plan: Plan,
    pub(super) peers: Vec<Peer>,
    pub(super) pool: Pool,
    pub(super) addresses: HashMap<String, SocketAddr>,
    scratch: Vec<u8>,
    out: Vec<u8>,
    pub(super) beat: Vec<u8>,
    pub(super) interval: Nanos,
    /// When whose next heartbeat is due, and in which of its attempts.
    pub(super) beats: BinaryHeap<Reverse<(Nanos, u32, u32)>>,
    pub(super) deadlines: VecDeque<(Nanos, u32, u32)>,
    pub(super) queue: VecDeque<u32>,
    pub(super) later: BinaryHeap<Reverse<(Nanos, u32)>>,
    pub(super) pace: Option<Pace>,
    /// Whether those with a ticket connect.
    pub(super) opening: bool,
    /// Between their turn and welcome.
    pub(super) arriving: usize,
    /// Connected now.
    pub live: usize,
    pub(super) latencies: Latencies,
    pub(super) frames: Frames,
    pub(super) tally: Tally,
}

/// The load's frames, of all clients together: what the server had to read and to write for it.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Requests sent.
    sent: u64,
    responses: u64,
    /// Notifies of any client: the server also tells who sent, of the own message.
    notifies: u64,
}

impl Fleet {
    /// Nobody is connected yet.
    ///
    /// # Errors
    /// What the kernel says: no descriptor left.
    pub fn new(plan: Plan, pool: Pool) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let timer = Timer::new()?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        let mut beat = Vec::new();
        wire::write(plan.transport, client_frame::Frame::Heartbeat(Heartbeat {}), &mut beat);
        let peer = || Peer {
            stream: None,
            arrival: None,
            seq: 0,
            beats: Unanswered::default(),
            attempt: 0,
            step: Step::Waiting,
            lived: false,
        };
        let peers: Vec<Peer> = std::iter::repeat_with(peer).take(plan.users.len()).collect();
        Ok(Self {
            poll,
            events: Events::with_capacity(1_024),
            waker,
            timer,
            clock: Clock::start(),
            peers,
            pool,
            addresses: HashMap::new(),
            scratch: vec![0; SCRATCH],
            out: Vec::new(),
            beat,
            interval: 25_000_000_000,
            beats: BinaryHeap::new(),
            deadlines: VecDeque::new(),
            queue: VecDeque::new(),
            later: BinaryHeap::new(),
            pace: None,
            opening: false,
            arriving: 0,
            live: 0,
            latencies: Latencies::default(),
            frames: Frames::default(),
            tally: Tally::default(),
            plan,
        })
    }

    /// Wakes the loop from another thread.
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// How many clients there are, connected or not.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// The user of a client.
    pub fn user(&self, who: usize) -> &str {
        &self.plan.users[who]
    }

    /// Whether a client is connected.
    pub fn is_live(&self, who: usize) -> bool {
        self.peers[who].step == Step::Live
    }

    /// The newest inbox seq that a client was told.
    pub fn seq(&self, who: usize) -> u64 {
        self.peers[who].seq
    }

    /// Counts an error.
    pub fn error(&mut self, kind: impl Into<std::borrow::Cow<'static, str>>) {
        self.tally.error(kind);
    }

    /// Asks over HTTP, in the name of the work.
    pub fn ask(&mut self, ask: Ask) {
        self.pool.ask(ask, self.poll.registry());
    }

    /// A POST to the scheduler.
    pub fn post(&self, path: &str, bearer: Option<&str>, body: &str) -> Vec<u8> {
        self.pool.post(path, bearer, body)
    }

    /// Sends a request of a client. If its connection breaks at that, `lost` follows in this or the next turn.
    pub fn request(&mut self, who: usize, id: u32, method: Method) {
        let frame = client_frame::Frame::Request(Request { id, method: Some(method) });
        self.out.clear();
        wire::write(self.plan.transport, frame, &mut self.out);
        if let Some(stream) = self.peers[who].stream.as_mut() {
            // A broken connection also becomes readable: the loss is dealt with there.
            let _ = stream.send(&self.out);
            self.frames.sent += 1;
        }
    }

    /// One turn of the loop: does what is due, then waits for the sockets, at most until `until`.
    ///
    /// # Errors
    /// When epoll fails.
    pub fn turn(&mut self, work: &mut dyn Work, until: Option<Nanos>) -> io::Result<()> {
        let now = self.clock.now();
        let arrivals = self.arrivals_due(work, now);
        let beats = self.beats_due(now);
        let asked = work.due(self, now);
        self.http_answers(work, now);
        let next = [arrivals, beats, asked, until].into_iter().flatten().min();
        self.wait(next)?;
        let events = std::mem::replace(&mut self.events, Events::with_capacity(1));
        for event in &events {
            match event.token() {
                WAKER | TIMER => {}
                token if Pool::owns(token) => {
                    let mut scratch = std::mem::take(&mut self.scratch);
                    self.pool.ready(token, &mut scratch, self.poll.registry());
                    self.scratch = scratch;
                }
                Token(who) => self.ready(who, event.is_read_closed(), work),
            }
        }
        self.events = events;
        let now = self.clock.now();
        self.http_answers(work, now);
        Ok(())
    }

    fn wait(&mut self, next: Option<Nanos>) -> io::Result<()> {
        let now = self.clock.now();
        let left = next.map_or(Duration::MAX, |next| Duration::from_nanos(next.saturating_sub(now)));
        let mut timeout = left.min(LONGEST_WAIT);
        if !timeout.is_zero() && timeout.as_nanos() < u128::from(EXACT) {
            self.timer.set(u64::try_from(timeout.as_nanos()).unwrap_or(EXACT));
            timeout = LONGEST_WAIT;
        }
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn http_answers(&mut self, work: &mut dyn Work, now: Nanos) {
        for answer in self.pool.answers() {
            if answer.who < self.peers.len() {
                self.asked(answer, now);
            } else {
                work.http(self, answer, now);
            }
        }
    }

    pub(super) fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// A client's socket is ready: sends what was kept, reads what is there.
    fn ready(&mut self, who: usize, read_closed: bool, work: &mut dyn Work) {
        if self.peers[who].step == Step::Opening && !self.connected(who) {
            return;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut more = true;
        while more && let Some(stream) = self.peers[who].stream.as_mut() {
            let read = stream.flush().and_then(|()| stream.read(&mut scratch));
            let now = self.clock.now();
            let count = match read {
                Ok(Read1::More(count)) => count,
                Ok(Read1::Drained(count)) => {
                    more = false;
                    count
                }
                Ok(Read1::End) => {
                    self.gone(who, "end", work, now);
                    break;
                }
                Err(error) => {
                    self.gone(who, &kind_of(&error), work, now);
                    break;
                }
            };
            let used = self.consume(who, &scratch[..count], work, now);
            if let Some(stream) = self.peers[who].stream.as_mut().filter(|_| used < count) {
                stream.keep(&scratch[used..count]);
            }
        }
        // Everything before the end is read; no other event will tell of it.
        if read_closed && self.peers[who].stream.is_some() {
            self.gone(who, "end", work, self.clock.now());
        }
        self.scratch = scratch;
    }

    /// Takes every complete frame; gives the bytes taken.
    fn consume(&mut self, who: usize, bytes: &[u8], work: &mut dyn Work, now: Nanos) -> usize {
        let mut used = 0;
        while used < bytes.len() && self.peers[who].stream.is_some() {
            if self.peers[who].step == Step::Upgrading {
                match self.upgraded(who, &bytes[used..], now) {
                    Some(taken) => used += taken,
                    None => break,
                }
                continue;
            }
            match wire::next(self.plan.transport, &bytes[used..]) {
                Ok(None) => break,
                Ok(Some((incoming, taken))) => {
                    used += taken;
                    self.incoming(who, incoming, work, now);
                }
                Err(error) => {
                    self.tally.error(format!("protocol:{error}"));
                    self.gone(who, "protocol", work, now);
                }
            }
        }
        used
    }

    fn incoming(&mut self, who: usize, incoming: Incoming, work: &mut dyn Work, now: Nanos) {
        let peer = &mut self.peers[who];
        match &incoming {
            Incoming::Frame(Frame::Response(_)) => self.frames.responses += 1,
            Incoming::Frame(Frame::Notify(_)) => self.frames.notifies += 1,
            _ => {}
        }
        match incoming {
            Incoming::Frame(Frame::Notify(notify)) => {
                peer.seq = peer.seq.max(notify.inbox_seq);
                work.told(self, who, notify.inbox_seq, Some(&notify.conversations), now);
            }
            Incoming::Frame(Frame::HeartbeatAck(ack)) => {
                peer.seq = peer.seq.max(ack.inbox_seq);
                self.beat_answered(who, now);
                work.told(self, who, ack.inbox_seq, None, now);
            }
            Incoming::Frame(Frame::Response(response)) => work.answered(self, who, response, now),
            Incoming::Frame(Frame::Welcome(welcome)) => self.welcomed(who, &welcome, now),
            Incoming::Frame(Frame::Disconnect(disconnect)) => {
                let reason = disconnect.reason.split(':').next().unwrap_or_default().to_owned();
                let kind = format!("closed:{}:{reason}", disconnect.code);
                if self.peers[who].step == Step::Greeting && disconnect.retry_after_ms > 0 {
                    self.sent_away(who, kind, disconnect.retry_after_ms, now);
                } else {
                    self.closed(who, &kind, work, now);
                }
            }
            Incoming::Close(code) => {
                let kind = code.map_or_else(|| "closed:none".to_owned(), |code| format!("closed:{code}"));
                self.closed(who, &kind, work, now);
            }
            Incoming::Other => {}
        }
    }

    /// The connection ended without a word.
    pub(super) fn gone(&mut self, who: usize, kind: &str, work: &mut dyn Work, now: Nanos) {
        self.closed(who, &format!("lost:{kind}"), work, now);
    }

    pub(super) fn closed(&mut self, who: usize, kind: &str, work: &mut dyn Work, now: Nanos) {
        let was_live = self.peers[who].step == Step::Live;
        self.peers[who].stream = None;
        self.tally.error(kind.to_owned());
        if was_live {
            self.live -= 1;
            self.latencies.lost += 1;
            self.peers[who].step = Step::Gone;
            work.lost(self, who, now);
            if self.plan.reconnect {
                self.again(who, now);
            }
        } else {
            self.given_up(who, now);
        }
    }

    /// Counts a client as connected from now on.
    pub(super) fn lives(&mut self, who: usize, now: Nanos) {
        let peer = &mut self.peers[who];
        (peer.step, peer.lived) = (Step::Live, true);
        self.live += 1;
        self.begin_beats(who, now);
    }

    /// What was counted of the clients, when the run is over.
    pub fn finish(mut self) -> Tally {
        let connections = self.peers.len() as u64;
        let (latencies, live) = (self.latencies, self.live as u64);
        latencies.tell(&mut self.tally, connections, live);
        let Frames { sent, responses, notifies } = self.frames;
        for (name, count) in
            [("requestFrames", sent), ("responseFrames", responses), ("notifyFrames", notifies)]
        {
            if sent > 0 {
                self.tally.set(name, count);
            }
        }
        self.tally
    }
}
