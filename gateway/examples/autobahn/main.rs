//! A WebSocket echo server on the gateway's own frame reader and writer, for the Autobahn test suite: it alone sends what a
//! chat never does. `echo [ADDRESS] [--broken utf8|reserved]` prints where it listens and serves until its stdin ends.
//!
//! `--broken` takes one check away, so that the suite can be seen to notice.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    time::Duration,
};

use tungstenite::handshake::derive_accept_key;
use ws::{Event, WsError};

#[path = "../../src/ws.rs"]
#[expect(dead_code, reason = "the gateway's; the echo needs most of it")]
mod ws;

/// Autobahn's largest message is 16 MiB.
const LIMIT: usize = 64 * 1024 * 1024;

/// For a peer that does not close after the goodbye, or says nothing at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is left out on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    Utf8,
    Reserved,
}

fn main() -> io::Result<()> {
    let (mut address, mut broken) = ("127.0.0.1:0".to_owned(), Broken::Nothing);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), argument.as_str() == "--broken") {
            (_, true) if broken == Broken::Nothing => {
                broken = match arguments.next().as_deref() {
                    Some("utf8") => Broken::Utf8,
                    Some("reserved") => Broken::Reserved,
                    other => panic!("--broken utf8 or reserved, not {other:?}"),
                }
            }
            (text, _) => text.clone_into(&mut address),
        }
    }
    let listener = TcpListener::bind(address)?;
    println!("{}", listener.local_addr()?);
    // The process ends with whoever started it.
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            // A peer that goes in the middle is one of the cases.
            let _ = serve(stream, broken);
        });
    }
    Ok(())
}

fn serve(mut stream: TcpStream, broken: Broken) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut input = upgrade(&mut stream)?;
    let (mut assembly, mut out, mut head) = (None, Vec::new(), Head { broken, fresh: true, text: false });
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let mut at = 0;
        let mut over = false;
        while !over {
            head.spoil(&mut input[at..]);
            match ws::next(&mut assembly, &mut input[at..], LIMIT) {
                Ok(None) => break,
                Ok(Some((event, taken))) => {
                    over = answer(event, head, &mut out);
                    at += taken;
                    head.fresh = true;
                }
                Err(problem) => {
                    ws::write_close(code(problem), &problem.to_string(), &mut out);
                    over = true;
                }
            }
        }
        input.drain(..at);
        stream.write_all(&out)?;
        out.clear();
        if over {
            stream.shutdown(Shutdown::Write)?;
            while stream.read(&mut chunk)? > 0 {}
            return Ok(());
        }
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            count => input.extend_from_slice(&chunk[..count]),
        }
    }
}

/// Answers what came; whether that was the end.
fn answer(event: Event<'_>, head: Head, out: &mut Vec<u8>) -> bool {
    match event {
        Event::Message { text, payload } => {
            let opcode = if text || head.text { ws::Opcode::Text } else { ws::Opcode::Binary };
            ws::write_frame(opcode, &payload, out);
        }
        Event::Ping(payload) => ws::write_frame(ws::Opcode::Pong, payload, out),
        Event::Fragment | Event::Pong => {}
        Event::Close(code) => {
            ws::write_close(code.unwrap_or(1000), "", out);
            return true;
        }
    }
    false
}

/// RFC 6455, 7.4.1: what the codec's refusals are to a stranger. (The gateway says 4501 to its own clients.)
fn code(problem: WsError) -> u16 {
    match problem {
        WsError::NotUtf8 => 1007,
        WsError::TooLarge { .. } => 1009,
        _ => 1002,
    }
}

/// What is done to the head of each frame before it is read, if a check is to be missing.
#[derive(Clone, Copy)]
struct Head {
    broken: Broken,
    /// The input begins with a frame that was not looked at yet.
    fresh: bool,
    /// The message is text that is read as binary.
    text: bool,
}

impl Head {
    fn spoil(&mut self, input: &mut [u8]) {
        let (true, Some(first)) = (self.fresh, input.first_mut()) else { return };
        self.fresh = false;
        match (self.broken, *first & 0x0f) {
            (Broken::Reserved, _) => *first &= 0x8f,
            (Broken::Utf8, 1) => {
                *first ^= 1 ^ 2;
                self.text = true;
            }
            (Broken::Utf8, 2) => self.text = false,
            _ => {}
        }
    }
}

/// The handshake, for any path and without a subprotocol; returns what came behind it.
fn upgrade(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let (mut input, mut chunk) = (Vec::new(), [0; 4_096]);
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let parsed = request.parse(&input).map_err(io::Error::other)?;
        if let httparse::Status::Complete(length) = parsed {
            let key = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case("sec-websocket-key"));
            let accept = derive_accept_key(key.ok_or(io::ErrorKind::InvalidData)?.value);
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            stream.write_all(answer.as_bytes())?;
            input.drain(..length);
            return Ok(input);
        }
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => input.extend_from_slice(&chunk[..count]),
        }
    }
}
