//! What hostile and broken peers do at a gateway's port, and what the server's process spends on it.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::wait;

/// The head of a request that opens a WebSocket, whole.
#[must_use]
pub fn upgrade(gateway: &str) -> String {
    format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {gateway}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: berth.v1.json\r\n\r\n"
    )
}

/// A connection from `source`, one of loopback's /8, to a gateway's `host:port`.
///
/// # Errors
/// When it is refused.
pub async fn connect_from(source: [u8; 4], gateway: &str) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    let gateway: SocketAddr = gateway.parse().with_context(|| gateway.to_owned())?;
    Ok(wait::within("connect", socket.connect(gateway)).await??)
}

/// Opens a WebSocket and says nothing more.
///
/// # Errors
/// When it is not opened.
pub async fn upgraded(gateway: &str) -> anyhow::Result<TcpStream> {
    let mut stream = wait::within("connect", TcpStream::connect(gateway)).await??;
    stream.write_all(upgrade(gateway).as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let read = wait::within("the upgrade's answer", stream.read_buf(&mut answer)).await??;
        ensure!(read > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
    }
    ensure!(answer.starts_with(b"HTTP/1.1 101 "), "{:?}", String::from_utf8_lossy(&answer));
    Ok(stream)
}

/// Processor time a process has used, user and system together.
///
/// # Errors
/// When it is gone.
pub fn processor_time(process: u32) -> anyhow::Result<Duration> {
    // proc(5): fields 14 and 15, in hundredths of a second on Linux; the name before them may hold blanks.
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("a name")?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).context("a field")?.parse::<u64>().context("a number");
    Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
}

/// The most bytes that the kernel holds unsent for one connection of a server at `host:port`.
///
/// # Errors
/// When the kernel's table cannot be read.
pub fn unsent(server: &str) -> anyhow::Result<u64> {
    // proc_net_tcp(5): local address, remote address, state, tx_queue:rx_queue; all in hexadecimal.
    let port = format!(":{:04X}", server.rsplit_once(':').context("a port")?.1.parse::<u16>()?);
    let table = fs::read_to_string("/proc/net/tcp")?;
    let queued = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let queue = fields.get(4)?.split_once(':')?.0;
        fields.get(1)?.ends_with(&port).then(|| u64::from_str_radix(queue, 16).ok())?
    });
    Ok(queued.max().unwrap_or(0))
}

/// Descriptors a process has open.
///
/// # Errors
/// When it is gone.
pub fn descriptors(process: u32) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{process}/fd"))?.count())
}

/// The value below which `part` (0 to 1) of the samples lie. Sorts them.
///
/// # Panics
/// When there are none.
#[must_use]
pub fn quantile(samples: &mut [Duration], part: f64) -> Duration {
    samples.sort_unstable();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
    let at = (part * (samples.len() as f64 - 1.0)).round() as usize;
    samples[at]
}
