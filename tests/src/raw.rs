//! A connection as PROTOCOL.md describes it, over any of the three ways, that can also say what it must not.

use std::time::Duration;

use anyhow::Context;
use berth_proto::{
    client::{Disconnect, client_frame, server_frame::Frame},
    frame::{self, Encoding, FrameError},
    limits, tcp,
};
use futures_util::{SinkExt, StreamExt};
use socket2::{SockFilter, SockRef};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::{bail, wait};

/// The three ways to speak to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// WebSocket with `berth.v1.json`.
    WsJson,
    /// WebSocket with `berth.v1.proto`.
    WsProto,
    /// Length-prefixed protobuf.
    Tcp,
}

impl Transport {
    /// All of them: most behaviours are tested on each.
    pub const ALL: [Self; 3] = [Self::WsJson, Self::WsProto, Self::Tcp];

    /// How frames are written on it.
    #[must_use]
    pub fn encoding(self) -> Encoding {
        match self {
            Self::WsJson => Encoding::Json,
            Self::WsProto | Self::Tcp => Encoding::Proto,
        }
    }

    /// Its name in a schedule request.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WsJson | Self::WsProto => "ws",
            Self::Tcp => "tcp",
        }
    }
}

/// One connection to a gateway before or after hello.
pub struct Raw {
    /// The way it speaks.
    pub transport: Transport,
    io: Io,
}

enum Io {
    WebSocket(Box<WebSocketStream<TcpStream>>),
    Tcp { stream: TcpStream, read: Vec<u8> },
}

/// What came from the gateway.
#[derive(Debug)]
pub enum Seen {
    /// A frame.
    Frame(Frame),
    /// The end, with the WebSocket close code if there was one.
    End(Option<u16>),
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// The last `disconnect` frame.
    pub disconnect: Option<Disconnect>,
    /// The WebSocket close code.
    pub close: Option<u16>,
}

impl Ending {
    /// The code it was closed with: both places must agree on a WebSocket, and `disconnect` must have come.
    ///
    /// # Errors
    /// When the connection ended in another way; shows how.
    pub fn code(&self, transport: Transport) -> anyhow::Result<u32> {
        let code = self.disconnect.as_ref().with_context(|| format!("no disconnect frame: {self:?}"))?.code;
        if transport != Transport::Tcp && self.close.map(u32::from) != Some(code) {
            bail!("the close frame does not say {code}: {self:?}");
        }
        Ok(code)
    }
}

impl Raw {
    /// Connects to a gateway's `host:port`, for WebSocket with the upgrade.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn connect(transport: Transport, gateway: &str) -> anyhow::Result<Self> {
        let stream = wait::within("connect", TcpStream::connect(gateway)).await??;
        stream.set_nodelay(true)?;
        if transport == Transport::Tcp {
            return Ok(Self { transport, io: Io::Tcp { stream, read: Vec::new() } });
        }
        let mut request = format!("ws://{gateway}/v1/ws").into_client_request()?;
        let protocol = HeaderValue::from_static(transport.encoding().subprotocol());
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let upgrade = tokio_tungstenite::client_async(request, stream);
        let (socket, _) = wait::within("upgrade", upgrade).await??;
        Ok(Self { transport, io: Io::WebSocket(Box::new(socket)) })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, frame: client_frame::Frame) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        frame::encode_client(self.transport.encoding(), frame, &mut bytes);
        self.send_bytes(bytes).await
    }

    /// Sends frames back to back, so that the gateway meets them together.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send_all(&mut self, frames: Vec<client_frame::Frame>) -> anyhow::Result<()> {
        let mut together = Vec::new();
        for frame in frames {
            let mut bytes = Vec::new();
            frame::encode_client(self.transport.encoding(), frame, &mut bytes);
            match &mut self.io {
                Io::WebSocket(socket) if self.transport == Transport::WsJson => {
                    socket.feed(Message::text(String::from_utf8(bytes)?)).await?;
                }
                Io::WebSocket(socket) => socket.feed(Message::binary(bytes)).await?,
                Io::Tcp { .. } => {
                    together.extend(tcp::prefix(bytes.len()));
                    together.extend(bytes);
                }
            }
        }
        match &mut self.io {
            Io::WebSocket(socket) => Ok(wait::within("write", socket.flush()).await??),
            Io::Tcp { stream, .. } => Ok(wait::within("write", stream.write_all(&together)).await??),
        }
    }

    /// Sends any payload as one frame of the connection's own kind (bytes that are no UTF-8 can not go as text).
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send_bytes(&mut self, bytes: Vec<u8>) -> anyhow::Result<()> {
        match &mut self.io {
            Io::WebSocket(_) if self.transport == Transport::WsJson => {
                self.send_message(Message::text(String::from_utf8(bytes)?)).await
            }
            Io::WebSocket(_) => self.send_message(Message::binary(bytes)).await,
            Io::Tcp { stream, .. } => {
                let mut whole = tcp::prefix(bytes.len()).to_vec();
                whole.extend(bytes);
                Ok(wait::within("write", stream.write_all(&whole)).await??)
            }
        }
    }

    /// From now on nothing the gateway sends arrives, not even in the kernel: nothing is acknowledged any more, as when the
    /// network of a phone is gone.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub fn deafen(&self) -> anyhow::Result<()> {
        let stream = match &self.io {
            Io::WebSocket(socket) => socket.get_ref(),
            Io::Tcp { stream, .. } => stream,
        };
        // A packet filter on the socket itself (socket(7)): "return 0", keep nothing of any packet.
        let nothing = SockFilter::new(0x06, 0, 0, 0);
        Ok(SockRef::from(stream).attach_filter(&[nothing])?)
    }

    /// Sends bytes that are no frame at all: past the framing on TCP.
    ///
    /// # Errors
    /// When the connection is gone, or is a WebSocket.
    pub async fn send_unframed(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match &mut self.io {
            Io::WebSocket(_) => bail!("a WebSocket frames whatever it sends"),
            Io::Tcp { stream, .. } => Ok(wait::within("write", stream.write_all(bytes)).await??),
        }
    }

    /// Sends a WebSocket message of any kind: text on a binary connection, a ping.
    ///
    /// # Errors
    /// When the connection is gone, or is no WebSocket.
    pub async fn send_message(&mut self, message: Message) -> anyhow::Result<()> {
        match &mut self.io {
            Io::WebSocket(socket) => Ok(wait::within("write", socket.send(message)).await??),
            Io::Tcp { .. } => bail!("TCP has no message kinds"),
        }
    }

    /// Writes the frame as long as the peer takes any of it, for at most `patience` without progress; whether it all went.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn push(&mut self, frame: client_frame::Frame, patience: Duration) -> anyhow::Result<bool> {
        match tokio::time::timeout(patience, self.send(frame)).await {
            Ok(sent) => sent.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// The next frame or the end.
    ///
    /// # Errors
    /// When neither comes in time, or what comes is no frame of this connection's encoding.
    pub async fn next(&mut self) -> anyhow::Result<Seen> {
        wait::within("the next frame", self.read()).await?
    }

    /// The next frame.
    ///
    /// # Errors
    /// As [`Raw::next`], and when the connection ends.
    pub async fn frame(&mut self) -> anyhow::Result<Frame> {
        match self.next().await? {
            Seen::Frame(frame) => Ok(frame),
            // Not told at once: who waits for a server to come back expects it.
            Seen::End(code) => anyhow::bail!("the connection ended with {code:?}"),
        }
    }

    /// Reads to the end, past all frames but `disconnect`.
    ///
    /// # Errors
    /// When the end does not come in time.
    pub async fn ending(&mut self) -> anyhow::Result<Ending> {
        let mut disconnect = None;
        loop {
            match self.next().await? {
                Seen::Frame(Frame::Disconnect(said)) => disconnect = Some(said),
                Seen::Frame(_) => {}
                Seen::End(close) => return Ok(Ending { disconnect, close }),
            }
        }
    }

    /// Not bounded in time; a caller that also does other things puts it in a select.
    async fn read(&mut self) -> anyhow::Result<Seen> {
        let encoding = self.transport.encoding();
        loop {
            let payload = match &mut self.io {
                Io::WebSocket(socket) => next_payload(socket, encoding).await?,
                Io::Tcp { stream, read } => next_tcp(stream, read).await?,
            };
            let bytes = match payload {
                Payload::Frame(bytes) => bytes,
                Payload::End(code) => return Ok(Seen::End(code)),
            };
            match frame::decode_server(encoding, &bytes) {
                Ok(frame) => return Ok(Seen::Frame(frame)),
                Err(FrameError::NoKind) => {} // a later server's: clients ignore it
                Err(error) => bail!("{error} in {}", String::from_utf8_lossy(&bytes)),
            }
        }
    }

    /// As [`Raw::next`], but waits at most `patience` and answers `None` then. No frame is lost by that.
    ///
    /// # Errors
    /// When what comes is no frame of this connection's encoding.
    pub async fn next_within(&mut self, patience: Duration) -> anyhow::Result<Option<Seen>> {
        tokio::time::timeout(patience, self.read()).await.ok().transpose()
    }
}

enum Payload {
    Frame(Vec<u8>),
    End(Option<u16>),
}

async fn next_payload(
    socket: &mut WebSocketStream<TcpStream>,
    encoding: Encoding,
) -> anyhow::Result<Payload> {
    let mut code = None;
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) if encoding == Encoding::Json => {
                return Ok(Payload::Frame(text.as_bytes().to_vec()));
            }
            Some(Ok(Message::Binary(bytes))) if encoding == Encoding::Proto => {
                return Ok(Payload::Frame(bytes.to_vec()));
            }
            Some(Ok(Message::Close(close))) => code = close.map(|close| u16::from(close.code)),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(message)) => bail!("on {encoding:?} came {message:?}"),
            Some(Err(tungstenite::Error::Capacity(error))) => bail!("the server's frame: {error}"),
            // Cut without a close frame: told from a clean end by the missing code.
            Some(Err(_)) | None => return Ok(Payload::End(code)),
        }
    }
}

/// Keeps what was read across a cancelled call.
async fn next_tcp(stream: &mut TcpStream, read: &mut Vec<u8>) -> anyhow::Result<Payload> {
    loop {
        if let Some((payload, taken)) = tcp::split(read, limits::SERVER_FRAME)? {
            let payload = payload.to_vec();
            read.drain(..taken);
            return Ok(Payload::Frame(payload));
        }
        match stream.read_buf(read).await {
            Ok(0) | Err(_) => return Ok(Payload::End(None)),
            Ok(_) => {}
        }
    }
}
