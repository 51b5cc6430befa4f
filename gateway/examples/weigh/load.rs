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

/// Connects and waits for every welcome.
pub fn connect(address: &str, count: usize) -> Vec<TcpStream> {
    let signer = TicketSigner::from_secret(SECRET);
    (0..count)
        .map(|index| {
            let stream = TcpStream::connect(address).expect("connects");
            stream.set_nodelay(true).expect("settable");
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("settable");
            let user = format!("user-{index:06}");
            let ticket = Ticket {
                user_id: user,
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
        })
        .collect()
}

/// A heartbeat of each and its ack.
pub fn heartbeats(clients: &mut [TcpStream]) {
    let beat = masked(Frame::Heartbeat(Heartbeat {}));
    for client in &mut *clients {
        client.write_all(&beat).expect("sends");
    }
    notified(clients);
}

/// Reads one frame of each.
pub fn notified(clients: &mut [TcpStream]) {
    for client in clients {
        frame(client);
    }
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
