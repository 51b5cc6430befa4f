//! The other end: plain blocking sockets.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use berth_proto::{
    client::{Heartbeat, Hello, client_frame::Frame},
    frame::{Encoding, encode_client},
    ticket::TicketSigner,
    wire::Ticket,
};

/// Both ends know it.
pub const SECRET: &[u8] = b"the weighing's secret of 32 bytes";

/// An upgrade request without its end.
pub const UPGRADE: &str = "GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
     Sec-WebSocket-Protocol: berth.v1.proto\r\n\r\n";

/// Obeys the commands on stdin until it ends.
pub fn run(address: &str) {
    let mut clients = Vec::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let (command, count) = line.split_once(' ').unwrap_or((&line, "0"));
        let count: usize = count.parse().expect("a number");
        match command {
            "connect" => {
                while clients.len() < count {
                    clients.push(connect(address, clients.len()));
                }
            }
            "heartbeat" => heartbeats(&clients),
            _ => clients.iter().take(count).for_each(frame),
        }
        println!("done");
    }
}

/// Connects and waits for the welcome.
fn connect(address: &str, index: usize) -> TcpStream {
    let signer = TicketSigner::from_secret(SECRET);
    let stream = TcpStream::connect(address).expect("connects");
    stream.set_nodelay(true).expect("settable");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("settable");
    let ticket = Ticket {
        user_id: format!("user-{index:06}"),
        device_id: "device-1".into(),
        gateway_ids: vec!["gw-1".into()],
        pool: "stable".into(),
        expires_at_ms: i64::MAX,
        auth_expires_at_ms: i64::MAX,
        ..Ticket::default()
    };
    let hello = Hello {
        ticket: signer.sign(&ticket),
        device_id: "device-1".into(),
        platform: "ios".into(),
        app_version: "7.3.1".into(),
        ..Hello::default()
    };
    (&stream).write_all(UPGRADE.as_bytes()).expect("sends");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut some = [0; 512];
        let count = (&stream).read(&mut some).expect("an answer");
        head.extend(&some[..count]);
    }
    (&stream).write_all(&masked(Frame::Hello(hello))).expect("sends");
    frame(&stream);
    stream
}

/// A heartbeat of each and its ack.
fn heartbeats(clients: &[TcpStream]) {
    let beat = masked(Frame::Heartbeat(Heartbeat {}));
    for mut client in clients {
        client.write_all(&beat).expect("sends");
    }
    clients.iter().for_each(frame);
}

fn frame(mut stream: &TcpStream) {
    let mut header = [0; 2];
    stream.read_exact(&mut header).expect("a frame");
    assert!(header[0] == 0x82 && header[1] < 126, "a short binary message, not {header:?}");
    let mut payload = [0; 126];
    stream.read_exact(&mut payload[..usize::from(header[1])]).expect("a whole frame");
}

/// A binary message masked with zeros.
fn masked(frame: Frame) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_client(Encoding::Proto, frame, &mut payload);
    let mut bytes = vec![0x82];
    match u8::try_from(payload.len()) {
        Ok(length) if length < 126 => bytes.push(0x80 | length),
        _ => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(payload.len()).expect("short").to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}
