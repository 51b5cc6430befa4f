//! What an idle connection costs the server: resident bytes of the whole process (gateway, logic's routes, everything) per
//! authenticated WebSocket connection. Long: `./tests/run --long`. Needs 20,000 descriptors in each process.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use berth_tests::{
    TestResult, figure,
    server::{Options, Server},
    tokens,
};

/// The issue's number.
const CONNECTIONS: usize = 10_000;

/// Enough connections for the process to have made what it makes once: threads, tables' first growth, arenas.
const WARM_UP: usize = 500;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn resident_bytes_of_an_idle_connection() -> TestResult {
    let server = Server::start(Options::default().handshakes_per_second(100_000)).await?;
    let address = server.at.gateway.clone();
    let warm = hold(&address, 0..WARM_UP)?;
    let before = server.process().resident()?;
    let started = Instant::now();
    let held = hold(&address, WARM_UP..WARM_UP + CONNECTIONS)?;
    let took = started.elapsed();
    let after = server.process().resident()?;
    let each = after.saturating_sub(before) / CONNECTIONS as u64;
    figure(&format!(
        "idle: {CONNECTIONS} connections in {:.1} s; resident {before} -> {after} bytes: {each} bytes a connection",
        took.as_secs_f64()
    ));
    drop((warm, held));
    ensure!(each < 16 * 1024, "{each} bytes a connection: something holds a buffer for each");
    Ok(())
}

/// Opens authenticated WebSocket connections, one after the other, and keeps them.
fn hold(address: &str, users: std::ops::Range<usize>) -> anyhow::Result<Vec<TcpStream>> {
    users.map(|n| open(address, &format!("idle-{n}")).with_context(|| format!("connection {n}"))).collect()
}

fn open(address: &str, user: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(
        format!(
            "GET /v1/ws HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: berth.v1.json\r\n\r\n"
        )
        .as_bytes(),
    )?;
    let ticket = tokens::sign(&tokens::ticket(user, "d", "gw-1"));
    stream.write_all(&masked(format!(r#"{{"hello":{{"ticket":"{ticket}","deviceId":"d"}}}}"#).as_bytes()))?;
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    while !seen.windows(9).any(|window| window == b"\"welcome\"") {
        let read = stream.read(&mut chunk)?;
        ensure!(read > 0, "closed after {:?}", String::from_utf8_lossy(&seen));
        seen.extend(&chunk[..read]);
    }
    Ok(stream)
}

/// A client's text frame with mask 0: legal, and as good as any on loopback.
fn masked(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a hello is short");
    let mut frame = vec![0x81];
    if length < 126 {
        frame.push(0x80 | length.to_be_bytes()[1]);
    } else {
        frame.push(0x80 | 126);
        frame.extend(length.to_be_bytes());
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}
