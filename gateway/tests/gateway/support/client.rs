//! A client of the socket, over each transport, that can also misbehave.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use berth_proto::{
    client::{
        self, Disconnect, Hello, PullRequest, Request, Welcome, client_frame, request::Method, response,
        server_frame::Frame,
    },
    frame::{Encoding, decode_server, encode_client},
    tcp,
};
use tungstenite::{
    Message, WebSocket,
    client::IntoClientRequest,
    http::HeaderValue,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::PATIENCE;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Json,
    Proto,
    Tcp,
}

pub const ALL: [Transport; 3] = [Transport::Json, Transport::Proto, Transport::Tcp];

impl Transport {
    pub fn encoding(self) -> Encoding {
        if self == Self::Json { Encoding::Json } else { Encoding::Proto }
    }
}

pub struct Client {
    transport: Transport,
    io: Io,
}

enum Io {
    Ws(Box<WebSocket<TcpStream>>),
    Tcp(TcpStream),
}

/// What came.
#[derive(Debug)]
pub enum Received {
    Frame(Frame),
    /// A WebSocket close frame's code.
    Close(u16),
    End,
}

impl Client {
    pub fn connect(to: SocketAddr, transport: Transport) -> Self {
        let stream = TcpStream::connect(to).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("settable");
        stream.set_nodelay(true).expect("settable");
        if transport == Transport::Tcp {
            return Self { transport, io: Io::Tcp(stream) };
        }
        let mut request = format!("ws://{to}/v1/ws?x=1").into_client_request().expect("a request");
        let protocol = HeaderValue::from_static(transport.encoding().subprotocol());
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        let (socket, _) = tungstenite::client(request, stream).expect("upgrades");
        Self { transport, io: Io::Ws(Box::new(socket)) }
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        match &mut self.io {
            Io::Ws(socket) => socket.get_mut(),
            Io::Tcp(stream) => stream,
        }
    }

    pub fn send(&mut self, frame: client_frame::Frame) {
        let payload = self.encode(frame);
        self.send_payload(&payload, self.transport == Transport::Json);
    }

    pub fn encode(&self, frame: client_frame::Frame) -> Vec<u8> {
        let mut payload = Vec::new();
        encode_client(self.transport.encoding(), frame, &mut payload);
        payload
    }

    /// Any payload in the transport's envelope.
    pub fn send_payload(&mut self, payload: &[u8], text: bool) {
        match &mut self.io {
            Io::Ws(socket) if text => {
                socket
                    .send(Message::text(String::from_utf8(payload.to_vec()).expect("text")))
                    .expect("sends");
            }
            Io::Ws(socket) => socket.send(Message::binary(payload.to_vec())).expect("sends"),
            Io::Tcp(stream) => {
                stream.write_all(&[&tcp::prefix(payload.len())[..], payload].concat()).expect("sends");
            }
        }
    }

    /// Bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream().write_all(bytes).expect("sends");
    }

    pub fn ping(&mut self) {
        let Io::Ws(socket) = &mut self.io else { panic!("no ping on TCP") };
        socket.send(Message::Ping("hi".into())).expect("sends");
        assert_eq!(socket.read().expect("a pong"), Message::Pong("hi".into()));
    }

    pub fn close(&mut self, code: u16) {
        match &mut self.io {
            Io::Ws(socket) => {
                socket
                    .close(Some(CloseFrame { code: CloseCode::from(code), reason: "bye".into() }))
                    .expect("sends");
            }
            Io::Tcp(stream) => stream.shutdown(Shutdown::Write).expect("shuts"),
        }
    }

    pub fn receive(&mut self) -> Received {
        match &mut self.io {
            Io::Ws(socket) => loop {
                match socket.read() {
                    Ok(Message::Text(text)) => break received(Encoding::Json, text.as_bytes()),
                    Ok(Message::Binary(bytes)) => break received(Encoding::Proto, &bytes),
                    Ok(Message::Close(close)) => break Received::Close(close.map_or(0, |c| c.code.into())),
                    Ok(_) => {}
                    Err(tungstenite::Error::ConnectionClosed) => break Received::End,
                    Err(tungstenite::Error::Protocol(_)) => break Received::End,
                    Err(error) => panic!("{error}"),
                }
            },
            Io::Tcp(stream) => {
                let mut prefix = [0; 4];
                match stream.read_exact(&mut prefix) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Received::End,
                    Err(error) => panic!("{error}"),
                }
                let mut payload = vec![0; u32::from_be_bytes(prefix) as usize];
                stream.read_exact(&mut payload).expect("a whole frame");
                received(Encoding::Proto, &payload)
            }
        }
    }

    #[track_caller]
    pub fn frame(&mut self) -> Frame {
        match self.receive() {
            Received::Frame(frame) => frame,
            other => panic!("expected a frame, not {other:?}"),
        }
    }

    pub fn hello(&mut self, ticket: &str, device: &str) {
        self.send(client_frame::Frame::Hello(Hello {
            ticket: ticket.into(),
            device_id: device.into(),
            platform: "test".into(),
            app_version: "1.2.3".into(),
            ..Hello::default()
        }));
    }

    #[track_caller]
    pub fn welcome(&mut self) -> Welcome {
        match self.frame() {
            Frame::Welcome(welcome) => welcome,
            other => panic!("expected a welcome, not {other:?}"),
        }
    }

    pub fn heartbeat(&mut self) {
        self.send(client_frame::Frame::Heartbeat(client::Heartbeat {}));
    }

    pub fn request(&mut self, id: u32, method: Method) {
        self.send(client_frame::Frame::Request(Request { id, method: Some(method) }));
    }

    pub fn pull(&mut self, id: u32) {
        self.request(id, Method::Pull(PullRequest::default()));
    }

    #[track_caller]
    pub fn response(&mut self) -> (u32, response::Result) {
        match self.frame() {
            Frame::Response(response) => (response.id, response.result.expect("a result")),
            other => panic!("expected a response, not {other:?}"),
        }
    }

    /// The next response's id and error.
    #[track_caller]
    pub fn error(&mut self) -> (u32, client::Error) {
        match self.response() {
            (id, response::Result::Error(error)) => (id, error),
            other => panic!("expected an error, not {other:?}"),
        }
    }

    /// Reads to the end: `disconnect`, on a WebSocket a close frame of the same code, then the end of the stream.
    #[track_caller]
    pub fn disconnected(&mut self) -> Disconnect {
        let disconnect = loop {
            match self.frame() {
                Frame::Disconnect(disconnect) => break disconnect,
                Frame::Notify(_) | Frame::HeartbeatAck(_) | Frame::Response(_) => {}
                other => panic!("expected a disconnect, not {other:?}"),
            }
        };
        if let Io::Ws(_) = self.io {
            match self.receive() {
                Received::Close(code) => assert_eq!(u32::from(code), disconnect.code),
                other => panic!("expected a close frame, not {other:?}"),
            }
        }
        let mut rest = Vec::new();
        self.stream().read_to_end(&mut rest).expect("an end without a reset");
        assert_eq!(rest, b"", "nothing after the goodbye");
        disconnect
    }
}

fn received(encoding: Encoding, payload: &[u8]) -> Received {
    Received::Frame(decode_server(encoding, payload).expect("a server's frame"))
}
