//! A non-blocking connection that keeps what is incomplete, and nothing while there is nothing.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use mio::{Interest, Registry, Token, net::TcpStream};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::system;

/// What a peer that does not read may keep us from sending, in bytes; one that lets more pile up is given up.
const MAX_UNSENT: usize = 1 << 20;

/// Connections of one source address to one destination: the kernel's range of ports has 28,232 by default.
const PER_SOURCE: usize = 20_000;

/// An open connection, or one that opens.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    unread: Vec<u8>,
    unsent: Vec<u8>,
}

/// What the last read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read1 {
    /// So many bytes are in the scratch buffer; there may be more to read.
    More(usize),
    /// So many bytes, and no more for now.
    Drained(usize),
    /// The end.
    End,
}

impl Stream {
    /// Begins to connect. Of many to one loopback address, each [`PER_SOURCE`] get a source address of their own.
    ///
    /// # Errors
    /// What the kernel says at once: no descriptor, no route.
    pub fn connect(to: SocketAddr, nth: usize, registry: &Registry, token: Token) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = source(to.ip(), nth) {
            system::bind_address_no_port(&socket)?;
            socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
        }
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let mut socket = TcpStream::from_std(socket.into());
        registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, unread: Vec::new(), unsent: Vec::new() })
    }

    /// Why connecting failed, if it did.
    pub fn error(&self) -> Option<io::Error> {
        self.socket.take_error().ok().flatten()
    }

    /// Sends, or keeps what the kernel has no room for.
    ///
    /// # Errors
    /// When the connection is broken, or more than [`MAX_UNSENT`] waits.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.unsent.is_empty() {
            if self.unsent.len() + bytes.len() > MAX_UNSENT {
                return Err(io::Error::new(ErrorKind::TimedOut, "the server does not read"));
            }
            self.unsent.extend_from_slice(bytes);
            return Ok(());
        }
        let written = write_some(&mut self.socket, bytes)?;
        self.unsent.extend_from_slice(&bytes[written..]);
        Ok(())
    }

    /// Sends what was kept.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        let written = write_some(&mut self.socket, &self.unsent)?;
        if written == self.unsent.len() {
            self.unsent = Vec::new();
        } else {
            self.unsent.drain(..written);
        }
        Ok(())
    }

    /// Reads once into `scratch`, behind what was incomplete before.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn read(&mut self, scratch: &mut [u8]) -> io::Result<Read1> {
        let kept = self.unread.len();
        scratch[..kept].copy_from_slice(&self.unread);
        if kept > 0 {
            self.unread = Vec::new();
        }
        let read = self.socket.read(&mut scratch[kept..]);
        match read {
            Ok(0) => Ok(Read1::End),
            Ok(count) if kept + count == scratch.len() => Ok(Read1::More(kept + count)),
            // Less than there was room for: the socket is empty.
            Ok(count) => Ok(Read1::Drained(kept + count)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(Read1::Drained(kept))
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps the incomplete rest of what was read.
    pub fn keep(&mut self, rest: &[u8]) {
        self.unread = rest.to_vec();
    }
}

fn write_some(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match socket.write(&bytes[written..]) {
            Ok(count) => written += count,
            // Not connected yet: the first writable event flushes.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

/// 127.0.0.1 has ports for the first ones without asking.
fn source(to: IpAddr, nth: usize) -> Option<IpAddr> {
    let IpAddr::V4(to) = to else { return None };
    let group = u8::try_from(nth / PER_SOURCE).ok().filter(|group| *group > 0 && to.is_loopback())?;
    Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, group.saturating_add(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_one_addresss_ports_comes_the_next_on_loopback_only() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(source(loopback, 0), None);
        assert_eq!(source(loopback, PER_SOURCE), Some(IpAddr::from([127, 0, 0, 2])));
        assert_eq!(source(loopback, 3 * PER_SOURCE - 1), Some(IpAddr::from([127, 0, 0, 3])));
        assert_eq!(source(IpAddr::from([10, 0, 0, 1]), PER_SOURCE), None);
    }

    #[test]
    fn a_connection_from_another_source_reads_and_writes() {
        let mut poll = mio::Poll::new().expect("epoll");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let to = listener.local_addr().expect("bound");
        let mut stream = Stream::connect(to, PER_SOURCE, poll.registry(), Token(0)).expect("begins");
        stream.send(b"early").expect("kept or sent");
        let (mut accepted, from) = listener.accept().expect("somebody connects");
        assert_eq!(from.ip(), IpAddr::from([127, 0, 0, 2]));
        let mut events = mio::Events::with_capacity(4);
        poll.poll(&mut events, Some(std::time::Duration::from_secs(10))).expect("epoll");
        stream.flush().expect("sends");
        let mut got = [0; 5];
        accepted.read_exact(&mut got).expect("all of it");
        accepted.write_all(b"ab").expect("sends");
        let mut scratch = [0; 64];
        let mut seen = 0;
        while seen < 2 {
            poll.poll(&mut events, Some(std::time::Duration::from_secs(10))).expect("epoll");
            let Read1::Drained(count) = stream.read(&mut scratch).expect("reads") else {
                panic!("two bytes")
            };
            stream.keep(&scratch[..count]);
            seen = count;
        }
        assert_eq!((&got, &scratch[..2]), (b"early", &b"ab"[..]));
    }
}
