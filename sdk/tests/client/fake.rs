//! A scheduler that answers what it is told to, and a gateway played by the test.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_client::{Client, Encoding, Event, Events, Options, token::StaticToken, transport::Transport};
use berth_proto::{
    client::{
        self, Disconnect, Hello, InboxItem, Message, Notify, PullRequest, PullResponse, Request, Response,
        SendRequest, Welcome, client_frame::Frame as Up, request::Method, response::Result as Answer,
        server_frame::Frame as Down,
    },
    frame,
    schedule::{
        HeartbeatParameters, Problem, ReconnectParameters, ScheduleAnswer, ScheduleEndpoint, ScheduleRequest,
    },
};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self,
        handshake::server::{ErrorResponse, Request as Upgrade, Response as Upgraded},
        http::header::SEC_WEBSOCKET_PROTOCOL,
    },
};

/// Waits for what must happen; a test that waits longer than this has failed.
pub async fn soon<T>(what: &str, happens: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), happens).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// A schedule request that came in.
pub struct Asked {
    pub token: String,
    pub request: ScheduleRequest,
}

/// What the fake scheduler answers next, and else.
struct Script {
    next: VecDeque<(u16, Vec<u8>)>,
    template: ScheduleAnswer,
    answered: u32,
}

/// A scheduler and the listener of a gateway.
pub struct Fake {
    pub scheduler: SocketAddr,
    gateway: TcpListener,
    script: Arc<Mutex<Script>>,
    asked: mpsc::Receiver<Asked>,
    _tasks: JoinSet<()>,
}

/// How the client reaches the gateway.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Json,
    Proto,
    Tcp,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Json, Self::Proto, Self::Tcp];

    fn transport(self) -> Transport {
        if matches!(self, Self::Tcp) { Transport::Tcp } else { Transport::WebSocket }
    }
}

impl Fake {
    /// A scheduler that sends everybody to one gateway, with waits of milliseconds and heartbeats that do not matter.
    pub async fn start() -> Self {
        let gateway = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = gateway.local_addr().expect("is bound");
        let template = ScheduleAnswer {
            endpoints: endpoints("gw-1", address),
            ticket: "ticket".into(),
            ticket_expires_at_ms: 300_000,
            heartbeat: HeartbeatParameters { interval_ms: 60_000, timeout_ms: 120_000 },
            reconnect: ReconnectParameters {
                base_ms: 1,
                max_ms: 20,
                spread_ms: 0,
                reschedule_after_failures: 3,
            },
            ..Default::default()
        };
        let script = Arc::new(Mutex::new(Script { next: VecDeque::new(), template, answered: 0 }));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let scheduler = listener.local_addr().expect("is bound");
        let (seen, asked) = mpsc::channel(1000);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&script), seen));
        Self { scheduler, gateway, script, asked, _tasks: tasks }
    }

    /// Changes what the scheduler answers from now on.
    pub fn change(&self, change: impl FnOnce(&mut ScheduleAnswer)) {
        change(&mut self.script.lock().expect("not poisoned").template);
    }

    /// The next request is answered with a problem.
    pub fn refuse_next(&self, status: u16, reason: &str, retry_after_ms: Option<u32>) {
        self.answer_next(&Problem { status, reason: reason.into(), retry_after_ms, ..Default::default() });
    }

    /// The next request is told to wait, with a place in the queue.
    pub fn queue_next(&self, retry_after_ms: u32, queue_token: &str) {
        self.answer_next(&Problem {
            status: 503,
            reason: "OVERLOADED".into(),
            retry_after_ms: Some(retry_after_ms),
            queue_token: queue_token.into(),
            ..Default::default()
        });
    }

    fn answer_next(&self, problem: &Problem) {
        let status = problem.status;
        let body = serde_json::to_vec(problem).expect("serializes");
        self.script.lock().expect("not poisoned").next.push_back((status, body));
    }

    /// The next schedule request, which has been answered or is about to be.
    pub async fn asked(&mut self) -> Asked {
        soon("a schedule request", self.asked.recv()).await.expect("the scheduler runs")
    }

    /// How many schedules were given.
    pub fn answered(&self) -> u32 {
        self.script.lock().expect("not poisoned").answered
    }

    pub fn address(&self) -> SocketAddr {
        self.gateway.local_addr().expect("is bound")
    }

    /// The next connection to the gateway.
    pub async fn accept(&self) -> Peer {
        let accepting = async {
            let (stream, _) = self.gateway.accept().await.expect("accepts");
            Peer::upgrade(stream).await
        };
        soon("a connection", accepting).await
    }

    /// Options of a client of this fake.
    pub fn options(&self, kind: Kind) -> Options {
        let scheduler = format!("http://{}", self.scheduler);
        let mut options = Options::new(scheduler, "device", StaticToken::new("jwt"));
        options.first_scheduler = Some(0);
        options.transports = vec![kind.transport()];
        options.encoding = if matches!(kind, Kind::Json) { Encoding::Json } else { Encoding::Proto };
        options
    }

    /// A connected client, its events past `Connected`, and its gateway.
    pub async fn connect(&self, options: Options) -> (Client, Events, Peer) {
        self.connect_with(options, welcome(0)).await
    }

    /// The same with a welcome of one's own.
    pub async fn connect_with(&self, options: Options, welcome: Welcome) -> (Client, Events, Peer) {
        let accepted = async {
            let mut peer = self.accept().await;
            peer.hello().await;
            peer.send(Down::Welcome(welcome)).await;
            peer
        };
        let (connected, peer) =
            soon("connecting", async { tokio::join!(Client::connect(options), accepted) }).await;
        let (client, mut events) = connected.expect("connects");
        assert!(matches!(next(&mut events).await, Event::Connected(_)));
        (client, events, peer)
    }
}

/// Both ways to one gateway.
pub fn endpoints(gateway: &str, address: SocketAddr) -> Vec<ScheduleEndpoint> {
    [("ws", format!("ws://{address}/v1/ws")), ("tcp", format!("tcp://{address}"))]
        .into_iter()
        .map(|(transport, url)| ScheduleEndpoint {
            gateway_id: gateway.into(),
            transport: transport.into(),
            url,
            ..Default::default()
        })
        .collect()
}

async fn serve(listener: TcpListener, script: Arc<Mutex<Script>>, seen: mpsc::Sender<Asked>) {
    loop {
        let (stream, _) = listener.accept().await.expect("accepts");
        let (script, seen) = (&script, &seen);
        let answer = service_fn(move |request: hyper::Request<Incoming>| async move {
            assert_eq!(request.uri().path(), "/v1/schedule");
            let token = request.headers()["authorization"].to_str().expect("is text");
            let token = token.strip_prefix("Bearer ").expect("is a bearer").to_owned();
            let body = request.into_body().collect().await.expect("has a body").to_bytes();
            let request = serde_json::from_slice(&body).expect("is a schedule request");
            let (status, body) = next_answer(&mut script.lock().expect("not poisoned"));
            seen.send(Asked { token, request }).await.expect("the test listens");
            let response = hyper::Response::builder().status(status).body(Full::new(Bytes::from(body)));
            Ok::<_, Infallible>(response.expect("is a response"))
        });
        // The client closes after one request; if it is gone sooner, that is its right.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
    }
}

fn next_answer(script: &mut Script) -> (u16, Vec<u8>) {
    script.next.pop_front().unwrap_or_else(|| {
        script.answered += 1;
        (200, serde_json::to_vec(&script.template).expect("serializes"))
    })
}

/// The gateway's side of one connection.
pub struct Peer {
    stream: Stream,
    encoding: Encoding,
}

enum Stream {
    WebSocket(Box<WebSocketStream<TcpStream>>),
    Tcp(TcpStream),
}

impl Peer {
    async fn upgrade(stream: TcpStream) -> Self {
        let mut first = [0; 4];
        while stream.peek(&mut first).await.expect("peeks") < 4 {}
        if &first != b"GET " {
            return Self { stream: Stream::Tcp(stream), encoding: Encoding::Proto };
        }
        let mut encoding = None;
        #[expect(clippy::result_large_err, reason = "the library's signature")]
        let choose = |request: &Upgrade, mut response: Upgraded| -> Result<Upgraded, ErrorResponse> {
            assert_eq!(request.uri().path(), "/v1/ws");
            let subprotocol = request.headers()[SEC_WEBSOCKET_PROTOCOL].clone();
            encoding = Encoding::from_subprotocol(subprotocol.to_str().expect("is text"));
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
            Ok(response)
        };
        let stream = tokio_tungstenite::accept_hdr_async(stream, choose).await.expect("upgrades");
        Self { stream: Stream::WebSocket(Box::new(stream)), encoding: encoding.expect("a known subprotocol") }
    }

    pub async fn send(&mut self, frame: Down) {
        let mut bytes = Vec::new();
        frame::encode_server(self.encoding, frame, &mut bytes);
        match &mut self.stream {
            Stream::WebSocket(stream) => {
                let message = match self.encoding {
                    Encoding::Json => tungstenite::Message::text(String::from_utf8(bytes).expect("is UTF-8")),
                    Encoding::Proto => tungstenite::Message::binary(bytes),
                };
                stream.send(message).await.expect("sends");
            }
            Stream::Tcp(stream) => {
                stream.write_all(&berth_proto::tcp::prefix(bytes.len())).await.expect("sends");
                stream.write_all(&bytes).await.expect("sends");
            }
        }
    }

    /// The client's next frame; `None` when it has gone.
    pub async fn receive(&mut self) -> Option<Up> {
        let bytes = match &mut self.stream {
            Stream::WebSocket(stream) => match soon("a frame", stream.next()).await {
                Some(Ok(tungstenite::Message::Text(text))) => Bytes::from(text),
                Some(Ok(tungstenite::Message::Binary(bytes))) => bytes,
                _ => return None,
            },
            Stream::Tcp(stream) => {
                let length = soon("a frame", stream.read_u32()).await.ok()?;
                let mut bytes = vec![0; length as usize];
                stream.read_exact(&mut bytes).await.ok()?;
                Bytes::from(bytes)
            }
        };
        Some(frame::decode_client(self.encoding, &bytes).expect("is a client's frame"))
    }

    pub async fn hello(&mut self) -> Hello {
        match self.receive().await {
            Some(Up::Hello(hello)) => hello,
            other => panic!("expected hello, got {other:?}"),
        }
    }

    /// The next request; heartbeats are acknowledged on the way.
    pub async fn request(&mut self) -> (u32, Method) {
        loop {
            match self.receive().await {
                Some(Up::Request(Request { id, method: Some(method) })) => return (id, method),
                Some(Up::Heartbeat(_)) => {
                    self.send(Down::HeartbeatAck(client::HeartbeatAck::default())).await
                }
                other => panic!("expected a request, got {other:?}"),
            }
        }
    }

    pub async fn pull(&mut self) -> (u32, PullRequest) {
        match self.request().await {
            (id, Method::Pull(pull)) => (id, pull),
            other => panic!("expected a pull, got {other:?}"),
        }
    }

    pub async fn sent(&mut self) -> (u32, SendRequest) {
        match self.request().await {
            (id, Method::Send(send)) => (id, send),
            other => panic!("expected a send, got {other:?}"),
        }
    }

    pub async fn answer(&mut self, id: u32, answer: Answer) {
        self.send(Down::Response(Response { id, result: Some(answer) })).await;
    }

    pub async fn answer_rows(&mut self, id: u32, seqs: impl IntoIterator<Item = u64>, latest: u64) {
        self.answer(id, Answer::Pull(rows(seqs, latest))).await;
    }

    pub async fn notify(&mut self, inbox_seq: u64) {
        self.send(Down::Notify(Notify { inbox_seq, ..Default::default() })).await;
    }

    /// Closes as a gateway does: `disconnect`, then the connection.
    pub async fn disconnect(mut self, disconnect: Disconnect) {
        self.send(Down::Disconnect(disconnect)).await;
        if let Stream::WebSocket(stream) = &mut self.stream {
            let _ = WebSocketStream::close(stream, None).await;
        }
        // What the client still says must not turn the end into a reset.
        while self.receive().await.is_some() {}
    }
}

pub fn close_code(code: u32) -> Disconnect {
    Disconnect { code, reason: "as the test wants".into(), ..Default::default() }
}

pub fn welcome(inbox_seq: u64) -> Welcome {
    Welcome {
        session_id: "s-1".into(),
        user_id: "alice".into(),
        inbox_seq,
        inbox_epoch: 1,
        ..Default::default()
    }
}

/// A pull's answer: each row a message whose id is its seq.
pub fn rows(seqs: impl IntoIterator<Item = u64>, latest_seq: u64) -> PullResponse {
    let items = seqs.into_iter().map(|seq| {
        let message = Message { message_id: seq, from: "bob".into(), ..Default::default() };
        let event = client::Event { event: Some(client::event::Event::Message(message)) };
        InboxItem { seq, event: Some(event) }
    });
    PullResponse { items: items.collect(), latest_seq, floor_seq: 1, inbox_epoch: 1, ..Default::default() }
}

pub async fn next(events: &mut Events) -> Event {
    soon("an event", events.next()).await.expect("the client lives")
}

/// The next events are the messages of these rows.
pub async fn check_rows(events: &mut Events, seqs: impl IntoIterator<Item = u64>) {
    for expected in seqs {
        match next(events).await {
            Event::Message { seq, message } => assert_eq!((seq, message.message_id), (expected, expected)),
            other => panic!("expected row {expected}, got {other:?}"),
        }
    }
}
