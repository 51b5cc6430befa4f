//! HTTP/1.1 over a few keep-alive connections in the same event loop: tokens and schedules.

use std::{collections::VecDeque, io, net::SocketAddr};

use mio::{Registry, Token};

use super::{
    pace::Nanos,
    stream::{Read1, Stream},
};

/// Connection tokens of the pool begin here; a client's token is its index.
const FIRST_TOKEN: usize = 1 << 40;

/// Most headers of an answer.
const HEADERS: usize = 32;

/// Longest answer, in bytes: a schedule is below 4 KiB.
const MAX_ANSWER: usize = 64 * 1024;

/// A request that waits or is in flight.
#[derive(Debug)]
pub struct Ask {
    /// Whom it is for.
    pub who: usize,
    /// What for; the caller's.
    pub kind: AskKind,
    /// When it was to be sent.
    pub intended: Nanos,
    /// The whole request.
    pub bytes: Vec<u8>,
    /// Whether it was sent once already, over a connection that the server had closed.
    pub again: bool,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskKind {
    /// A user token of `berth dev`.
    Token,
    /// Where to connect.
    Schedule,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Whom it is for.
    pub who: usize,
    /// What was asked for.
    pub kind: AskKind,
    /// When it was to be sent.
    pub intended: Nanos,
    /// Status and body, or why there is none.
    pub result: Result<(u16, Vec<u8>), String>,
}

struct Lane {
    stream: Option<Stream>,
    ask: Option<Ask>,
    /// Answers read over this connection: a server may close one that was used, at any time.
    used: bool,
}

/// The connections to one server.
pub struct Pool {
    to: SocketAddr,
    host: String,
    lanes: Vec<Lane>,
    waiting: VecDeque<Ask>,
    answers: Vec<Answer>,
}

impl Pool {
    /// At most `lanes` connections, opened when they are needed.
    pub fn new(to: SocketAddr, host: &str, lanes: usize) -> Self {
        let lane = || Lane { stream: None, ask: None, used: false };
        let lanes = std::iter::repeat_with(lane).take(lanes).collect();
        Self { to, host: host.to_owned(), lanes, waiting: VecDeque::new(), answers: Vec::new() }
    }

    /// A POST of JSON to this server.
    pub fn post(&self, path: &str, bearer: Option<&str>, body: &str) -> Vec<u8> {
        request("POST", &self.host, path, bearer, body)
    }

    /// Asks, as soon as a connection is free.
    pub fn ask(&mut self, ask: Ask, registry: &Registry) {
        self.waiting.push_back(ask);
        if let Some(free) = self.lanes.iter().position(|lane| lane.ask.is_none()) {
            self.fill(free, registry);
        }
    }

    /// Whether this token is one of the pool's connections.
    pub fn owns(token: Token) -> bool {
        token.0 >= FIRST_TOKEN && token.0 < FIRST_TOKEN << 1
    }

    /// The answers since the last call.
    pub fn answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// A connection of the pool is ready.
    pub fn ready(&mut self, token: Token, scratch: &mut [u8], registry: &Registry) {
        let index = token.0 - FIRST_TOKEN;
        let Some(Lane { stream: Some(stream), .. }) = self.lanes.get_mut(index) else { return };
        let outcome = match stream.error() {
            Some(error) => Err(kind_of(&error)),
            None => exchange(stream, scratch),
        };
        match outcome {
            Ok(None) => return,
            Ok(Some(Done { status, body, keep })) => {
                let lane = &mut self.lanes[index];
                lane.used = true;
                if !keep {
                    lane.stream = None;
                }
                if let Some(ask) = lane.ask.take() {
                    self.answer(ask, Ok((status, body)));
                }
            }
            Err(reason) => self.broken(index, reason),
        }
        self.fill(index, registry);
    }

    /// A request that died with a connection used before is sent once more: the server may have closed it for its age.
    fn broken(&mut self, index: usize, reason: String) {
        let lane = &mut self.lanes[index];
        lane.stream = None;
        let used = std::mem::replace(&mut lane.used, false);
        match lane.ask.take() {
            Some(ask) if used && !ask.again => self.waiting.push_front(Ask { again: true, ..ask }),
            Some(ask) => self.answer(ask, Err(reason)),
            None => {}
        }
    }

    /// Sends what waits, while this connection is free: each request that fails at once is answered.
    fn fill(&mut self, index: usize, registry: &Registry) {
        while self.lanes[index].ask.is_none() {
            let Some(ask) = self.waiting.pop_front() else { return };
            let lane = &mut self.lanes[index];
            if lane.stream.is_none() {
                lane.used = false;
                match Stream::connect(self.to, 0, registry, Token(FIRST_TOKEN + index)) {
                    Ok(stream) => lane.stream = Some(stream),
                    Err(error) => {
                        self.answer(ask, Err(kind_of(&error)));
                        continue;
                    }
                }
            }
            let sent = lane.stream.as_mut().map_or(Ok(()), |stream| stream.send(&ask.bytes));
            lane.ask = Some(ask);
            if let Err(error) = sent {
                self.broken(index, kind_of(&error));
            }
        }
    }

    fn answer(&mut self, ask: Ask, result: Result<(u16, Vec<u8>), String>) {
        let Ask { who, kind, intended, .. } = ask;
        self.answers.push(Answer { who, kind, intended, result });
    }
}

struct Done {
    status: u16,
    body: Vec<u8>,
    keep: bool,
}

/// Reads until the answer is complete, or there is no more for now.
fn exchange(stream: &mut Stream, scratch: &mut [u8]) -> Result<Option<Done>, String> {
    stream.flush().map_err(|error| kind_of(&error))?;
    let count = match stream.read(scratch).map_err(|error| kind_of(&error))? {
        Read1::End => return Err("closed".to_owned()),
        Read1::More(count) | Read1::Drained(count) => count,
    };
    if count == 0 {
        return Ok(None);
    }
    let done = parse(&scratch[..count])?;
    if done.is_none() {
        if count > MAX_ANSWER {
            return Err("the answer is too long".to_owned());
        }
        stream.keep(&scratch[..count]);
    }
    Ok(done)
}

/// A whole answer with a Content-Length; one request is in flight at a time, so nothing follows it.
fn parse(bytes: &[u8]) -> Result<Option<Done>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("no HTTP answer: {error}")),
    };
    let value = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let length = value("content-length").and_then(|text| text.parse::<usize>().ok());
    let length = length.ok_or("an answer without Content-Length")?;
    let Some(body) = bytes[head..].get(..length) else { return Ok(None) };
    let keep = !value("connection").is_some_and(|text| text.eq_ignore_ascii_case("close"));
    Ok(Some(Done { status: response.code.unwrap_or(0), body: body.to_vec(), keep }))
}

/// The whole text of a request with a JSON body.
pub fn request(method: &str, host: &str, path: &str, bearer: Option<&str>, body: &str) -> Vec<u8> {
    let authorization = bearer.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}Content-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// What went wrong, in a few stable words: a key of the report.
pub fn kind_of(error: &io::Error) -> String {
    format!("{:?}", error.kind())
}

/// One request and its answer, waited for: what is done once, before any load.
///
/// # Errors
/// When there is no answer within 30 s.
pub fn call(to: SocketAddr, bytes: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    use std::io::{Read, Write};
    let patience = std::time::Duration::from_secs(30);
    let mut stream = std::net::TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(bytes)?;
    let (mut got, mut some) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut some)?;
        got.extend_from_slice(&some[..count]);
        match parse(&got) {
            Ok(Some(done)) => return Ok((done.status, done.body)),
            Ok(None) if count > 0 && got.len() <= MAX_ANSWER => {}
            Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(reason) => return Err(io::Error::other(reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_not_yet() {
        let text = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\nConnection: close\r\n\r\n{}";
        let done = parse(text).expect("an answer").expect("whole");
        assert_eq!((done.status, &*done.body, done.keep), (429, &b"{}"[..], false));
        for cut in 0..text.len() {
            assert!(parse(&text[..cut]).expect("so far good").is_none(), "{cut}");
        }
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(parse(b"\0\0\0\0").is_err());
    }

    #[test]
    fn nobody_there_is_an_answer() {
        let mut poll = mio::Poll::new().expect("epoll");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound");
        let mut pool = Pool::new(free, "x", 1);
        for who in 0..2 {
            let bytes = pool.post("/", None, "{}");
            let ask = Ask { who, kind: AskKind::Schedule, intended: 0, bytes, again: false };
            pool.ask(ask, poll.registry());
        }
        let (mut answers, mut events) = (Vec::new(), mio::Events::with_capacity(4));
        while answers.len() < 2 {
            poll.poll(&mut events, Some(std::time::Duration::from_secs(10))).expect("epoll");
            let mut scratch = [0; 64];
            events.iter().for_each(|event| pool.ready(event.token(), &mut scratch, poll.registry()));
            answers.extend(pool.answers());
        }
        assert!(
            answers.iter().all(|answer| answer.result == Err("ConnectionRefused".to_owned())),
            "{answers:?}"
        );
    }
}
