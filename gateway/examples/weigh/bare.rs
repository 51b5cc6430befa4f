//! The floor: one thread of epoll, read and write, no state. For a connect it does the upgrade and checks the ticket.

use std::{
    io::{ErrorKind, Read, Write},
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
};

use berth_proto::{
    client::client_frame::Frame,
    frame::{Encoding, decode_client},
    ticket::{TicketSigner, TicketVerifier},
};
use mio::{
    Events, Interest, Poll, Token, Waker,
    net::{TcpListener, TcpStream},
};
use tungstenite::handshake::derive_accept_key;

use crate::{
    child::{Order, obey, paced},
    load::SECRET,
};

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// A welcome, an ack and a notify of the gateway's lengths; nobody looks inside.
const WELCOME: [u8; 70] = short_frame();
const ACK: [u8; 4] = short_frame();
const NOTIFY: [u8; 8] = short_frame();

const fn short_frame<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    bytes[0] = 0x82;
    bytes[1] = N as u8 - 2;
    bytes
}

/// Obeys the commands on stdin until it ends.
pub fn run() {
    let poll = Poll::new().expect("epoll");
    let waker = Waker::new(poll.registry(), WAKER).expect("eventfd");
    let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    println!("{}", listener.local_addr().expect("bound"));
    let (say, told) = sync_channel(16);
    // Joined by nobody: the process ends with its stdin.
    let _server = std::thread::spawn(move || serve(poll, listener, &told));
    obey(|order| {
        let tell = |whom| {
            say.send(whom).expect("the server runs");
            waker.wake().expect("awake");
        };
        match order {
            Order::Same(_) | Order::Different(_) => tell(None),
            Order::Single(_, count) => paced(count, |index| tell(Some(index))),
        }
    });
}

fn serve(mut poll: Poll, mut listener: TcpListener, told: &Receiver<Option<usize>>) {
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).expect("registered");
    let verifier = Arc::new(TicketVerifier::new(&[TicketSigner::from_secret(SECRET).public_key()]));
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut events = Events::with_capacity(1_024);
    let mut scratch = vec![0; 64 * 1024];
    loop {
        poll.poll(&mut events, None).expect("epoll");
        for event in &events {
            match event.token() {
                LISTENER => accept(&poll, &listener, &mut streams),
                WAKER => {
                    for whom in told.try_iter() {
                        let count = whom.map_or(usize::MAX, |_| 1);
                        for stream in streams.iter_mut().skip(whom.unwrap_or(0)).take(count).flatten() {
                            stream.write_all(&NOTIFY).expect("there is room");
                        }
                    }
                }
                Token(token) => {
                    let Some(Some(stream)) = streams.get_mut(token) else { continue };
                    if event.is_readable() && !answer(stream, &mut scratch, &verifier) {
                        streams[token] = None;
                    }
                }
            }
        }
    }
}

fn accept(poll: &Poll, listener: &TcpListener, streams: &mut Vec<Option<TcpStream>>) {
    while let Ok((mut stream, _)) = listener.accept() {
        let token = streams.len();
        stream.set_nodelay(true).expect("settable");
        poll.registry()
            .register(&mut stream, Token(token), Interest::READABLE | Interest::WRITABLE)
            .expect("registered");
        streams.push(Some(stream));
    }
}

/// False: the peer is gone.
fn answer(stream: &mut TcpStream, scratch: &mut [u8], verifier: &TicketVerifier) -> bool {
    let count = match stream.read(scratch) {
        Ok(0) => return false,
        Ok(count) => count,
        Err(error) => return error.kind() == ErrorKind::WouldBlock,
    };
    if scratch.starts_with(b"GET ") {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut headers);
        request.parse(&scratch[..count]).expect("a request");
        let key =
            request.headers.iter().find(|header| header.name == "Sec-WebSocket-Key").expect("a key").value;
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: berth.v1.proto\r\n\r\n",
            derive_accept_key(key)
        );
        return stream.write_all(head.as_bytes()).is_ok();
    }
    if scratch[1] & 0x7f < 126 {
        return stream.write_all(&ACK).is_ok();
    }
    let Ok(Frame::Hello(hello)) = decode_client(Encoding::Proto, &scratch[8..count]) else { return false };
    let ticket = verifier.genuine(&hello.ticket).expect("a good ticket");
    assert!(ticket.expires_at_ms > 0, "in time");
    stream.write_all(&WELCOME).is_ok()
}
