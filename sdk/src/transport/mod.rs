//! One connection to a gateway, without anything automatic: no hello, no heartbeats, no retries.
//!
//! Frames are put into an output buffer by [`Connection::queue`], which never waits; [`Connection::next`] writes what is
//! buffered *while* it reads, so that neither side can block the other.

mod tcp;
mod ws;

use std::{fmt, future::poll_fn, io, task::Poll, time::Duration};

use berth_proto::{
    client::{client_frame, server_frame::Frame},
    frame::{self, Encoding, FrameError},
    limits,
    schedule::ScheduleEndpoint,
};
use bytes::Bytes;
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::tungstenite::http::Uri;

/// How frames travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// WebSocket, in either encoding.
    WebSocket,
    /// Raw TCP with length prefixes, always protobuf.
    Tcp,
}

impl Transport {
    /// As in schedule requests and endpoints.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "ws",
            Self::Tcp => "tcp",
        }
    }

    /// The transport of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::WebSocket, Self::Tcp].into_iter().find(|transport| transport.as_str() == name)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What went wrong with a connection.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The endpoint cannot be used.
    #[error("endpoint {url:?}: {problem}")]
    BadEndpoint {
        /// The endpoint's address.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nobody accepts there.
    #[error("cannot reach {url}: {source}")]
    Unreachable {
        /// The endpoint's address.
        url: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Somebody accepts, but not a WebSocket of our kind.
    #[error("{url} refused the WebSocket: {problem}")]
    Upgrade {
        /// The endpoint's address.
        url: String,
        /// The status or the fault.
        problem: String,
    },
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The server sent what is no frame.
    #[error("the server sent what is no frame: {0}")]
    Undecodable(FrameError),
    /// Our frame is larger than a client's may be; nothing was sent.
    #[error("a frame of {0} bytes; a client's has at most {max}", max = limits::CLIENT_FRAME)]
    TooLarge(usize),
}

/// What the server did.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// It sent a frame.
    Frame(Frame),
    /// It closed; nothing follows.
    Closed(Close),
}

/// How a server closed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Close {
    /// From `disconnect` or the WebSocket's close frame; `None` when the connection just ended.
    pub code: Option<u16>,
    /// What the server said.
    pub reason: String,
}

/// What a transport reads.
enum Raw {
    Payload(Bytes),
    Closed(Option<Close>),
}

enum Stream {
    WebSocket(ws::WebSocket),
    Tcp(tcp::Frames),
}

/// An open connection to a gateway.
pub struct Connection {
    stream: Stream,
    encoding: Encoding,
    /// From `disconnect`, for the end that follows it.
    said: Option<Close>,
    scratch: Vec<u8>,
}

impl Connection {
    /// Connects to an endpoint of a schedule answer. On TCP the encoding is protobuf, whatever is asked for.
    ///
    /// # Errors
    /// When the endpoint is unusable, nobody answers, or the upgrade is refused. There is no deadline: give one around.
    pub async fn open(endpoint: &ScheduleEndpoint, encoding: Encoding) -> Result<Self, TransportError> {
        let (transport, address) = address(endpoint)?;
        let stream = TcpStream::connect(address.as_str())
            .await
            .map_err(|source| TransportError::Unreachable { url: endpoint.url.clone(), source })?;
        Self::over(stream, transport, &endpoint.url, encoding).await
    }

    /// Goes on over a TCP connection that the caller has made, for instance from a chosen local address.
    ///
    /// # Errors
    /// When the WebSocket upgrade to `url` is refused.
    pub async fn over(
        stream: TcpStream,
        transport: Transport,
        url: &str,
        encoding: Encoding,
    ) -> Result<Self, TransportError> {
        stream
            .set_nodelay(true)
            .map_err(|source| TransportError::Unreachable { url: url.to_owned(), source })?;
        let (stream, encoding) = match transport {
            Transport::WebSocket => {
                (Stream::WebSocket(ws::WebSocket::open(stream, url, encoding).await?), encoding)
            }
            Transport::Tcp => (Stream::Tcp(tcp::Frames::new(stream)), Encoding::Proto),
        };
        Ok(Self { stream, encoding, said: None, scratch: Vec::new() })
    }

    /// Puts a frame into the output buffer. [`Connection::next`] or [`Connection::flush`] writes it.
    ///
    /// The buffer is bounded by the caller: heartbeats are tiny, and at most 16 requests may be in flight.
    ///
    /// # Errors
    /// When the frame is too large, or the connection is known to be broken.
    pub fn queue(&mut self, frame: client_frame::Frame) -> Result<(), TransportError> {
        self.scratch.clear();
        frame::encode_client(self.encoding, frame, &mut self.scratch);
        if self.scratch.len() > limits::CLIENT_FRAME {
            return Err(TransportError::TooLarge(self.scratch.len()));
        }
        match &mut self.stream {
            Stream::WebSocket(stream) => stream.queue(self.encoding, &self.scratch),
            Stream::Tcp(stream) => {
                stream.queue(&self.scratch);
                Ok(())
            }
        }
    }

    /// Writes the output buffer without reading.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn flush(&mut self) -> Result<(), TransportError> {
        poll_fn(|cx| match &mut self.stream {
            Stream::WebSocket(stream) => stream.poll_flush(cx),
            Stream::Tcp(stream) => stream.poll_flush(cx),
        })
        .await
    }

    /// [`Connection::queue`] and [`Connection::flush`].
    ///
    /// # Errors
    /// As these two.
    pub async fn send(&mut self, frame: client_frame::Frame) -> Result<(), TransportError> {
        self.queue(frame)?;
        self.flush().await
    }

    /// The next frame, or how the server closed. Writes what is buffered while it waits. Dropping the future loses
    /// nothing. Frames of a kind that a newer server knows are passed over.
    ///
    /// # Errors
    /// When the connection is broken, or the server sent what is no frame.
    pub async fn next(&mut self) -> Result<Incoming, TransportError> {
        loop {
            match self.next_raw().await? {
                Raw::Closed(close) => {
                    return Ok(Incoming::Closed(self.said.take().or(close).unwrap_or_default()));
                }
                Raw::Payload(bytes) => match frame::decode_server(self.encoding, &bytes) {
                    Ok(frame) => {
                        if let Frame::Disconnect(disconnect) = &frame {
                            let code = u16::try_from(disconnect.code).ok();
                            self.said = Some(Close { code, reason: disconnect.reason.clone() });
                        }
                        return Ok(Incoming::Frame(frame));
                    }
                    Err(FrameError::NoKind) => {}
                    Err(error) => return Err(TransportError::Undecodable(error)),
                },
            }
        }
    }

    async fn next_raw(&mut self) -> Result<Raw, TransportError> {
        poll_fn(|cx| {
            let (written, read) = match &mut self.stream {
                Stream::WebSocket(stream) => (stream.poll_flush(cx), stream.poll_next(cx)),
                Stream::Tcp(stream) => (stream.poll_flush(cx), stream.poll_next(cx)),
            };
            match (written, read) {
                // What the server said before it went is worth more than our failure to write.
                (_, Poll::Ready(read)) => Poll::Ready(read),
                (Poll::Ready(Err(error)), Poll::Pending) => Poll::Ready(Err(error)),
                (_, Poll::Pending) => Poll::Pending,
            }
        })
        .await
    }

    /// Says goodbye: writes what is buffered, closes our side, and waits at most `patience` for it. Errors do not matter
    /// any more.
    pub async fn close(mut self, patience: Duration) {
        let goodbye = async {
            match &mut self.stream {
                Stream::WebSocket(stream) => stream.close().await,
                Stream::Tcp(stream) => stream.close().await,
            }
        };
        let _ = timeout(patience, goodbye).await;
    }
}

/// The transport and `host:port` of an endpoint.
pub(crate) fn address(endpoint: &ScheduleEndpoint) -> Result<(Transport, String), TransportError> {
    let bad = |problem: String| TransportError::BadEndpoint { url: endpoint.url.clone(), problem };
    let transport = Transport::from_name(&endpoint.transport)
        .ok_or_else(|| bad(format!("the transport {:?} is not known", endpoint.transport)))?;
    let uri: Uri = endpoint.url.parse().map_err(|e| bad(format!("is no address: {e}")))?;
    if uri.scheme_str() != Some(transport.as_str()) {
        return Err(bad(format!("does not begin with {transport}://")));
    }
    let authority = uri.authority().ok_or_else(|| bad("has no host".to_owned()))?.as_str();
    match (uri.port_u16(), transport) {
        (Some(_), _) => Ok((transport, authority.to_owned())),
        (None, Transport::WebSocket) => Ok((transport, format!("{authority}:80"))),
        (None, Transport::Tcp) => Err(bad("has no port".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(transport: &str, url: &str) -> Result<(Transport, String), TransportError> {
        address(&ScheduleEndpoint { transport: transport.into(), url: url.into(), ..Default::default() })
    }

    #[test]
    fn endpoints_name_host_and_port() {
        for (transport, url, expected) in [
            ("ws", "ws://127.0.0.1:7710/v1/ws", "127.0.0.1:7710"),
            ("ws", "ws://gw.example/v1/ws", "gw.example:80"),
            ("tcp", "tcp://[::1]:7710", "[::1]:7710"),
        ] {
            assert_eq!(of(transport, url).expect(url).1, expected);
        }
    }

    #[test]
    fn unusable_endpoints_say_why() {
        for (transport, url, problem) in [
            ("quic", "quic://h:1", "not known"),
            ("ws", "wss://h:1/", "ws://"),
            ("tcp", "ws://h:1/", "tcp://"),
            ("tcp", "tcp://h", "no port"),
            ("ws", "ws:///x", ""),
            ("ws", "", ""),
        ] {
            let error = of(transport, url).expect_err(url).to_string();
            assert!(error.contains(problem), "{url}: {error}");
        }
    }
}
