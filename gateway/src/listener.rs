//! The workers' listeners on one port.

use std::{io, net::SocketAddr, time::Duration};

use mio::net::TcpListener;
use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel keeps for a worker that is over its handshake budget: two seconds at the default rate.
const BACKLOG: i32 = 4_096;

/// Send buffer of a connection, in bytes (the kernel doubles it): bounds what a peer that never reads holds in the
/// kernel, and still lets 1 MB/s through at 250 ms of round trip.
const SEND_BUFFER: usize = 256 * 1024;

/// Receive buffer of a connection, in bytes (the kernel doubles it): bounds what a peer whom nobody reads, because it does
/// not read either, leaves in the kernel. Without it the kernel grows the buffer to several megabytes. It holds two of the
/// largest client frames.
const RECEIVE_BUFFER: usize = 128 * 1024;

/// Whether nobody listens at `address` yet. Workers share their port, so without asking first a second gateway would
/// silently take half of another's connections.
///
/// # Errors
/// What the kernel says: address in use, no permission.
pub(crate) fn check_free(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// A listener that shares its port with others of the same user. Accepted sockets inherit its options (Linux), which
/// saves a system call for each of them on every connection.
///
/// # Errors
/// What the kernel says: address in use, no permission.
pub(crate) fn bind(address: SocketAddr, user_timeout: Duration) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Frames are small and complete: waiting for more only adds latency.
    socket.set_tcp_nodelay(true)?;
    // A dead peer with unacknowledged data is given up within this, also where no deadline of ours watches.
    socket.set_tcp_user_timeout(Some(user_timeout))?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use socket2::SockRef;

    use super::*;

    #[test]
    fn two_share_a_port_and_accepted_sockets_inherit() {
        let timeout = Duration::from_secs(30);
        let first = bind("127.0.0.1:0".parse().expect("an address"), timeout).expect("binds");
        let address = first.local_addr().expect("bound");
        let _client = TcpStream::connect(address).expect("connects");
        let accepted = loop {
            match first.accept() {
                Ok((stream, _)) => break stream,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        };
        assert_eq!(check_free(address).map_err(|error| error.kind()), Err(io::ErrorKind::AddrInUse));
        let _second = bind(address, timeout).expect("shares the port");
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().expect("readable"));
        assert_eq!(socket.tcp_user_timeout().expect("readable"), Some(timeout));
        assert_eq!(socket.send_buffer_size().expect("readable"), 2 * SEND_BUFFER);
        assert_eq!(socket.recv_buffer_size().expect("readable"), 2 * RECEIVE_BUFFER);
    }
}
