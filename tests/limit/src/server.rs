//! The loop: accept, read, answer. One thread, no state of a connection but its bytes and its user.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use berth_proto::{
    client::{
        HeartbeatAck, Notify, Request, Response, SendRequest, SendResponse, Welcome, client_frame,
        request::Method, response::Result as Answer, server_frame::Frame,
    },
    code::ErrorCode,
    ticket::{TicketSigner, TicketVerifier},
};
use mio::{
    Events, Interest, Poll, Token, Waker,
    net::{TcpListener, TcpStream},
};

use crate::{
    city::{City, Taken},
    client::{self, Came, Speaks},
    http,
    log::Log,
};

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// Signs and verifies the tickets: both ends are in here.
const SECRET: &[u8] = b"the limit signs for nobody but itself";

/// Read at a time.
const SCRATCH: usize = 256 * 1024;

/// What a client that does not read may leave unsent, in bytes.
const MAX_UNSENT: usize = 1 << 20;

struct Connection {
    stream: TcpStream,
    speaks: Speaks,
    user: Option<usize>,
    unread: Vec<u8>,
    unsent: Vec<u8>,
}

/// A send that waits for the disk.
#[derive(Debug)]
struct Waiting {
    place: usize,
    from: usize,
    id: u32,
    send: SendRequest,
    taken: Taken,
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    authority: String,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    city: City,
    signer: TicketSigner,
    verifier: TicketVerifier,
    log: Option<Log<Waiting>>,
    out: Vec<u8>,
    /// Who is to be told of which seq, gathered while the city is borrowed.
    told: Vec<(usize, u64)>,
}

/// Serves until it is killed.
///
/// # Errors
/// When it cannot listen, or epoll fails.
pub fn run(listen: SocketAddr, log: Option<&Path>, rows: bool) -> io::Result<()> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
    let mut listener = TcpListener::bind(listen)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let authority = listener.local_addr()?.to_string();
    let mut stdout = io::stdout();
    writeln!(stdout, r#"{{"scheduler":"http://{authority}","logic":"http://{authority}"}}"#)?;
    stdout.flush()?;
    let signer = TicketSigner::from_secret(SECRET);
    let verifier = TicketVerifier::new(&[signer.public_key()]);
    let log = log.map(|path| Log::open(path, waker)).transpose()?;
    let mut server = Server {
        poll,
        listener,
        authority,
        connections: Vec::new(),
        free: Vec::new(),
        city: City::new(rows || log.is_some()),
        signer,
        verifier,
        log,
        out: Vec::new(),
        told: Vec::new(),
    };
    server.serve()
}

impl Server {
    fn serve(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1_024);
        let mut scratch = vec![0; SCRATCH];
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKER => {}
                    Token(place) => {
                        if !self.ready(place, event.is_read_closed(), &mut scratch) {
                            self.close(place);
                        }
                    }
                }
            }
            for waiting in self.log.as_mut().map(Log::turn).unwrap_or_default() {
                self.accepted(waiting);
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            let place = self.free.pop().unwrap_or(self.connections.len());
            let _ = stream.set_nodelay(true);
            let interest = Interest::READABLE | Interest::WRITABLE;
            if self.poll.registry().register(&mut stream, Token(place), interest).is_err() {
                self.free.push(place);
                continue;
            }
            let (unread, unsent) = (Vec::new(), Vec::new());
            let connection = Connection { stream, speaks: Speaks::Http, user: None, unread, unsent };
            match self.connections.get_mut(place) {
                Some(empty) => *empty = Some(connection),
                None => self.connections.push(Some(connection)),
            }
        }
    }

    fn close(&mut self, place: usize) {
        let Some(connection) = self.connections.get_mut(place).and_then(Option::take) else { return };
        if let Some(user) = connection.user {
            self.city.disconnect(user, place);
        }
        self.free.push(place);
    }

    /// False: the connection is over.
    fn ready(&mut self, place: usize, read_closed: bool, scratch: &mut [u8]) -> bool {
        loop {
            let Some(Some(connection)) = self.connections.get_mut(place) else { return true };
            if !connection.flush() {
                return false;
            }
            let kept = connection.unread.len();
            // A group's members: the only thing longer than the scratch buffer.
            if kept >= scratch.len() / 2 {
                return self.long(place, scratch);
            }
            scratch[..kept].copy_from_slice(&connection.unread);
            let count = match connection.stream.read(&mut scratch[kept..]) {
                Ok(0) => return false,
                Ok(count) => count,
                Err(error) => return error.kind() == ErrorKind::WouldBlock && !read_closed,
            };
            connection.unread = Vec::new();
            if !self.take(place, &mut scratch[..kept + count]) {
                return false;
            }
            if kept + count < scratch.len() {
                return !read_closed;
            }
        }
    }

    /// Goes on with a request that does not fit the scratch buffer.
    fn long(&mut self, place: usize, scratch: &mut [u8]) -> bool {
        loop {
            let Some(Some(connection)) = self.connections.get_mut(place) else { return true };
            match connection.stream.read(scratch) {
                Ok(0) => return false,
                Ok(count) => connection.unread.extend_from_slice(&scratch[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        let Some(Some(connection)) = self.connections.get_mut(place) else { return true };
        let mut bytes = std::mem::take(&mut connection.unread);
        self.take(place, &mut bytes)
    }

    /// Takes every complete thing in `bytes`, and keeps the rest.
    fn take(&mut self, place: usize, bytes: &mut [u8]) -> bool {
        let mut at = 0;
        while at < bytes.len() {
            let Some(Some(connection)) = self.connections.get_mut(place) else { return true };
            let rest = &mut bytes[at..];
            match client::next(&mut connection.speaks, rest) {
                Came::Incomplete => {
                    connection.unread = bytes[at..].to_vec();
                    return true;
                }
                Came::Nonsense => return false,
                Came::Upgrade(answer, taken) => {
                    connection.speaks = Speaks::Ws;
                    at += taken;
                    if !connection.send(answer.as_bytes()) {
                        return false;
                    }
                }
                Came::Http(request, taken) => {
                    let answer =
                        http::answer(&request, &mut self.city, &self.signer, &self.authority, now_ms());
                    at += taken;
                    if !connection.send(&answer) {
                        return false;
                    }
                }
                Came::Control(taken) => at += taken,
                Came::Frame(frame, taken) => {
                    at += taken;
                    if !self.frame(place, frame) {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn frame(&mut self, place: usize, frame: client_frame::Frame) -> bool {
        let user = self.connections.get(place).and_then(Option::as_ref).and_then(|c| c.user);
        match (frame, user) {
            (client_frame::Frame::Hello(hello), None) => {
                let Ok(ticket) = self.verifier.genuine(&hello.ticket) else { return false };
                if ticket.expires_at_ms <= now_ms() {
                    return false;
                }
                let user = self.city.user(&ticket.user_id);
                self.city.connect(user, place);
                if let Some(Some(connection)) = self.connections.get_mut(place) {
                    connection.user = Some(user);
                }
                let welcome = Welcome {
                    session_id: "limit".to_owned(),
                    user_id: ticket.user_id,
                    heartbeat_interval_ms: 25_000,
                    server_time_ms: now_ms(),
                    inbox_seq: self.city.seq(user),
                    inbox_epoch: 1,
                    conversations: Vec::new(),
                };
                self.send(place, Frame::Welcome(welcome))
            }
            (client_frame::Frame::Heartbeat(_), Some(user)) => {
                self.city.heartbeats += 1;
                let inbox_seq = self.city.seq(user);
                self.send(place, Frame::HeartbeatAck(HeartbeatAck { inbox_seq, ..HeartbeatAck::default() }))
            }
            (client_frame::Frame::Request(request), Some(user)) => self.request(place, user, request),
            _ => false,
        }
    }

    fn request(&mut self, place: usize, user: usize, request: Request) -> bool {
        let id = request.id;
        let result = match request.method {
            Some(Method::Send(send)) => match self.city.take(&send) {
                Ok(taken) => {
                    let waiting = Waiting { place, from: user, id, send, taken };
                    match &mut self.log {
                        Some(log) => log.append(&waiting.send.body.clone(), waiting),
                        None => self.accepted(waiting),
                    }
                    return true;
                }
                Err(error) => Answer::Error(error),
            },
            Some(Method::Pull(pull)) => Answer::Pull(self.city.pull(user, &pull)),
            _ => Answer::Error(ErrorCode::Unimplemented.error("the limit sends and pulls")),
        };
        self.send(place, Frame::Response(Response { id, result: Some(result) }))
    }

    /// Answers the sender and tells the receivers.
    fn accepted(&mut self, waiting: Waiting) {
        let Waiting { place, from, id, send, taken } = waiting;
        let answer = SendResponse {
            message_id: taken.message_id,
            conversation_id: taken.message_id,
            server_time_ms: now_ms(),
            duplicate: false,
        };
        if !self.send(place, Frame::Response(Response { id, result: Some(Answer::Send(answer)) })) {
            self.close(place);
        }
        let mut told = std::mem::take(&mut self.told);
        self.city.deliver(from, &send, taken, |place, seq| told.push((place, seq)));
        for (place, inbox_seq) in told.drain(..) {
            if !self.send(place, Frame::Notify(Notify { inbox_seq, ..Notify::default() })) {
                self.close(place);
            }
        }
        self.told = told;
    }

    fn send(&mut self, place: usize, frame: Frame) -> bool {
        let Some(Some(connection)) = self.connections.get_mut(place) else { return true };
        self.out.clear();
        client::write(connection.speaks, frame, &mut self.out);
        connection.send(&self.out)
    }
}

impl Connection {
    /// False: broken, or it does not read.
    fn send(&mut self, bytes: &[u8]) -> bool {
        let mut written = 0;
        if self.unsent.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => written = count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
        self.unsent.extend_from_slice(&bytes[written..]);
        self.unsent.len() <= MAX_UNSENT
    }

    fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
