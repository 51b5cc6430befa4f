//! One welcomed connection, from its welcome to its end.

use std::sync::Arc;

use berth_proto::{
    client::{
        self, Heartbeat as HeartbeatFrame, Response, client_frame::Frame as Up, request::Method,
        response::Result as Answer, server_frame::Frame as Down,
    },
    code::ErrorCode,
    limits::LONGEST_WAIT_MS,
    schedule::HeartbeatParameters,
    validate::InvalidField,
};
use rand::rngs::SmallRng;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    client::RequestError,
    clock::{Clock, from_ms, to_ms},
    cursor::Cursor,
    driver::Ending,
    event::{Event, Resync, StopReason},
    flight::Flight,
    heartbeat::{Due, Heartbeat},
    mailbox::Mailbox,
    options::Options,
    outbox::Outbox,
    pull::{Pulled, Puller},
    reconnect::full_jitter,
    transport::{Connection, Incoming, TransportError},
};

/// A refused send is repeated after U(0, 200 ms x 2^n), up to 5 s: a hiccup of the server must not cost a person seconds.
const SEND_BACKOFF_MS: (u32, u32) = (200, 5_000);

/// Closing politely takes one write; a peer that does not take it is left.
const GOODBYE_MS: i64 = 1_000;

/// When the gateway seems silent: how long to look whether it was this process that stood still. Longer than one turn of the
/// runtime, and short beside any heartbeat's patience.
const LAST_LOOK_MS: i64 = 50;

/// A request of the application.
pub(crate) struct Command {
    pub method: Method,
    pub reply: oneshot::Sender<Result<Answer, RequestError>>,
}

/// What outlives a connection.
pub(crate) struct Core {
    pub options: Options,
    pub clock: Clock,
    pub rng: SmallRng,
    pub mailbox: Arc<Mailbox>,
    pub puller: Puller,
    pub sends: Outbox<Command>,
    pub requests: Outbox<Command>,
    pub new_sends: mpsc::Receiver<Command>,
    pub new_requests: mpsc::Receiver<Command>,
    pub cancel: CancellationToken,
}

impl Core {
    /// Tells the application of a resync, from where the puller goes on.
    pub fn resync(&self, resync: Resync) {
        self.mailbox.push(Event::Resync(resync), self.puller.position().cloned());
    }
}

/// What a request in flight is for.
enum Purpose {
    Pull,
    Send(u64),
    Request(u64),
}

/// One welcomed connection.
pub(crate) struct Live<'a> {
    core: &'a mut Core,
    connection: Connection,
    heartbeat: Heartbeat,
    flight: Flight<Purpose>,
}

impl<'a> Live<'a> {
    pub fn new(core: &'a mut Core, connection: Connection, parameters: HeartbeatParameters) -> Self {
        let heartbeat = Heartbeat::new(parameters, core.clock.now_ms(), &mut core.rng);
        Self { core, connection, heartbeat, flight: Flight::new() }
    }

    /// Serves the connection until it ends.
    pub async fn run(mut self) -> Ending {
        let ending = self.serve().await;
        self.core.puller.connection_lost();
        self.core.sends.connection_lost();
        self.core.requests.connection_lost();
        if !matches!(ending, Ending::Lost(_) | Ending::Silent) {
            self.connection.close(from_ms(GOODBYE_MS)).await;
        }
        ending
    }

    async fn serve(&mut self) -> Ending {
        loop {
            match self.pump() {
                Ok(()) => {}
                Err(Ending::Silent) => match self.last_look().await {
                    Ok(()) => continue,
                    Err(ending) => return ending,
                },
                Err(ending) => return ending,
            }
            let wake = self.core.clock.instant(self.wake_at());
            let core = &mut *self.core;
            // Fair: none of these may starve another. Each is safe to drop.
            tokio::select! {
                () = core.cancel.cancelled() => return Ending::Stop(StopReason::Closed),
                incoming = self.connection.next() => {
                    if let Err(ending) = self.incoming(incoming) {
                        return ending;
                    }
                }
                Some(send) = core.new_sends.recv(), if core.sends.has_room() => core.sends.push(send),
                Some(request) = core.new_requests.recv(), if core.requests.has_room() => {
                    core.requests.push(request);
                }
                () = core.mailbox.room(), if core.puller.wants() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    /// The gateway seems silent. After a stall of this process its answer may lie unread in the socket.
    async fn last_look(&mut self) -> Result<(), Ending> {
        match timeout(from_ms(LAST_LOOK_MS), self.connection.next()).await {
            Ok(incoming) => self.incoming(incoming),
            Err(_) => Err(Ending::Silent),
        }
    }

    /// When [`Live::pump`] has something to do without anything happening before.
    fn wake_at(&self) -> i64 {
        let mut at = self.heartbeat.wake_at().min(self.flight.wake_at());
        if self.flight.has_room() {
            at = at.min(self.core.sends.wake_at()).min(self.core.requests.wake_at());
            if self.has_room_for_rows() {
                at = at.min(self.core.puller.wake_at());
            }
        }
        at
    }

    fn has_room_for_rows(&self) -> bool {
        let limits = &self.core.options.limits;
        self.core.mailbox.has_room(limits.page as usize, limits.buffered_rows)
    }

    /// Does everything that is due.
    fn pump(&mut self) -> Result<(), Ending> {
        let now_ms = self.core.clock.now_ms();
        match self.heartbeat.poll(now_ms, &mut self.core.rng) {
            Due::Nothing => {}
            Due::Send => self.queue(Up::Heartbeat(HeartbeatFrame {}))?,
            Due::Silent => return Err(Ending::Silent),
        }
        while let Some(purpose) = self.flight.expired(now_ms) {
            self.unanswered(&purpose, now_ms);
        }
        self.core.sends.retain(|command| !command.reply.is_closed());
        self.core.requests.retain(|command| !command.reply.is_closed());
        while self.flight.has_room() {
            let (purpose, method) = if let Some((key, send)) = self.core.sends.next(now_ms) {
                (Purpose::Send(key), send.method.clone())
            } else if let Some(pull) = self.next_pull(now_ms) {
                (Purpose::Pull, pull)
            } else if let Some((key, request)) = self.core.requests.next(now_ms) {
                (Purpose::Request(key), request.method.clone())
            } else {
                break;
            };
            self.request(purpose, method, now_ms)?;
        }
        Ok(())
    }

    fn next_pull(&mut self, now_ms: i64) -> Option<Method> {
        if !self.has_room_for_rows() {
            return None;
        }
        self.core.puller.next(now_ms).map(Method::Pull)
    }

    fn request(&mut self, purpose: Purpose, method: Method, now_ms: i64) -> Result<(), Ending> {
        let deadline_ms = now_ms.saturating_add(to_ms(self.core.options.request_timeout));
        let id = self.flight.start(purpose, deadline_ms);
        match self.connection.queue(Up::Request(client::Request { id, method: Some(method) })) {
            Err(error @ TransportError::TooLarge(_)) => {
                self.never_sent(id, &error, now_ms);
                Ok(())
            }
            queued => queued.map_err(lost),
        }
    }

    /// A request cannot be sent on any connection: it ends, and the connection goes on.
    fn never_sent(&mut self, id: u32, error: &TransportError, now_ms: i64) {
        let command = match self.flight.finish(id) {
            Some(Purpose::Send(key)) => self.core.sends.remove(key),
            Some(Purpose::Request(key)) => self.core.requests.remove(key),
            // Two numbers: they always fit.
            Some(Purpose::Pull) => return self.core.puller.refused(now_ms, 0, &mut self.core.rng),
            None => None,
        };
        if let Some(command) = command {
            let invalid = InvalidField { field: "request", problem: format!("is {error}") };
            let _ = command.reply.send(Err(RequestError::Invalid(invalid)));
        }
    }

    fn queue(&mut self, frame: Up) -> Result<(), Ending> {
        self.connection.queue(frame).map_err(lost)
    }

    fn incoming(&mut self, incoming: Result<Incoming, TransportError>) -> Result<(), Ending> {
        let frame = match incoming {
            Ok(Incoming::Frame(frame)) => frame,
            Ok(Incoming::Closed(close)) => return Err(Ending::closed(close)),
            Err(error) => return Err(lost(error)),
        };
        self.heartbeat.heard();
        match frame {
            Down::HeartbeatAck(ack) => self.core.puller.told(ack.inbox_seq, false),
            Down::Notify(notify) => self.core.puller.told(notify.inbox_seq, notify.sync_all),
            Down::Response(response) => self.answered(response),
            Down::Disconnect(disconnect) => return Err(Ending::Closed(disconnect)),
            // Only the first frame is one.
            Down::Welcome(_) => tracing::debug!("a second welcome is ignored"),
        }
        Ok(())
    }

    fn answered(&mut self, response: Response) {
        let id = response.id;
        let Some(purpose) = self.flight.finish(id) else {
            tracing::trace!(id, "an answer came too late");
            return;
        };
        let answer = response.result.unwrap_or_else(|| {
            Answer::Error(
                ErrorCode::Unimplemented.error("the server's answer is of a kind this client does not know"),
            )
        });
        match purpose {
            Purpose::Pull => self.pulled(answer),
            Purpose::Send(key) => self.sent(key, answer),
            Purpose::Request(key) => {
                if let Some(command) = self.core.requests.remove(key) {
                    let _ = command.reply.send(or_refusal(answer));
                }
            }
        }
    }

    /// A request's answer did not come in time.
    fn unanswered(&mut self, purpose: &Purpose, now_ms: i64) {
        match purpose {
            Purpose::Pull => self.core.puller.refused(now_ms, 0, &mut self.core.rng),
            // The outcome is unknown: the same clientMsgId makes a repeat harmless.
            Purpose::Send(key) => self.core.sends.retry(*key, now_ms),
            Purpose::Request(key) => {
                if let Some(command) = self.core.requests.remove(*key) {
                    let _ = command.reply.send(Err(RequestError::Deadline));
                }
            }
        }
    }

    fn sent(&mut self, key: u64, answer: Answer) {
        if let Answer::Error(error) = &answer
            && retryable(error)
        {
            let (base_ms, max_ms) = SEND_BACKOFF_MS;
            let refusals = self.core.sends.refusals(key);
            let asked = i64::from(error.retry_after_ms.min(LONGEST_WAIT_MS));
            let wait_ms = asked + full_jitter(base_ms, max_ms, refusals, &mut self.core.rng);
            tracing::debug!(code = error.code, wait_ms, "a send was refused for now");
            self.core.sends.retry(key, self.core.clock.now_ms() + wait_ms);
        } else if let Some(command) = self.core.sends.remove(key) {
            let _ = command.reply.send(or_refusal(answer));
        }
    }

    fn pulled(&mut self, answer: Answer) {
        let pull = match answer {
            Answer::Pull(pull) => pull,
            other => {
                let error = match other {
                    Answer::Error(error) => error,
                    _ => ErrorCode::Internal.error("the answer is not a pull's"),
                };
                tracing::debug!(code = error.code, message = error.message, "a pull was refused");
                let now_ms = self.core.clock.now_ms();
                return self.core.puller.refused(now_ms, error.retry_after_ms, &mut self.core.rng);
            }
        };
        let now_ms = self.core.clock.now_ms();
        let Pulled { rows, resync, gap } = self.core.puller.answered(pull, now_ms, &mut self.core.rng);
        let mailbox = &self.core.mailbox;
        if let Some(position) = self.core.puller.position() {
            for row in rows {
                let cursor = Cursor { seq: row.seq, ..position.clone() };
                mailbox.push(Event::of_row(row), Some(cursor));
            }
        }
        if let Some(resync) = resync {
            self.core.resync(resync);
        }
        if let Some(gap) = gap {
            tracing::warn!(%gap, "the server left a row out; it is pulled again, later and later");
            mailbox.push(Event::Gap(gap), None);
        }
    }
}

fn lost(error: TransportError) -> Ending {
    Ending::Lost(error.to_string())
}

fn or_refusal(answer: Answer) -> Result<Answer, RequestError> {
    match answer {
        Answer::Error(error) => {
            let retryable = retryable(&error);
            let client::Error { code, message, retry_after_ms, .. } = error;
            Err(RequestError::Refused { code, message, retryable, retry_after_ms })
        }
        answer => Ok(answer),
    }
}

fn retryable(error: &client::Error) -> bool {
    error.retryable || ErrorCode::ALL.into_iter().any(|code| code.retryable() && code.as_str() == error.code)
}

#[cfg(test)]
mod tests {
    use berth_proto::{
        client::{ConversationsRequest, MarkReadRequest, server_frame},
        frame::{self, Encoding},
        limits,
    };
    use rand::SeedableRng;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{token::StaticToken, transport::Transport};

    /// A client's core, and where its requests come from.
    fn core() -> (Core, mpsc::Sender<Command>) {
        let (_, new_sends) = mpsc::channel(1);
        let (requests, new_requests) = mpsc::channel(4);
        let core = Core {
            options: Options::new("http://127.0.0.1:1", "d", StaticToken::new("")),
            clock: Clock::start(),
            rng: SmallRng::seed_from_u64(1),
            mailbox: Arc::default(),
            puller: Puller::new(None, 10),
            sends: Outbox::new(1, 1),
            requests: Outbox::new(2, 2),
            new_sends,
            new_requests,
            cancel: CancellationToken::new(),
        };
        (core, requests)
    }

    /// Both ends of a TCP connection.
    async fn connection() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("is bound");
        let stream = TcpStream::connect(address).await.expect("connects");
        let ours = Connection::over(stream, Transport::Tcp, "tcp://test", Encoding::Proto);
        let (peer, _) = listener.accept().await.expect("accepts");
        (ours.await.expect("is TCP"), peer)
    }

    /// A gateway that answers one request.
    async fn answer_one(peer: &mut TcpStream) {
        let length = peer.read_u32().await.expect("a frame comes");
        let mut bytes = vec![0; length as usize];
        peer.read_exact(&mut bytes).await.expect("it is whole");
        let Up::Request(request) = frame::decode_client(Encoding::Proto, &bytes).expect("is a frame") else {
            panic!("expected a request");
        };
        let result = Some(Answer::MarkRead(client::MarkReadResponse::default()));
        let mut answer = Vec::new();
        let response = server_frame::Frame::Response(Response { id: request.id, result });
        frame::encode_server(Encoding::Proto, response, &mut answer);
        peer.write_all(&berth_proto::tcp::prefix(answer.len())).await.expect("writes");
        peer.write_all(&answer).await.expect("writes");
    }

    #[tokio::test]
    async fn a_request_too_large_to_send_ends_alone() {
        let (mut core, requests) = core();
        let (connection, mut peer) = connection().await;
        let cancel = core.cancel.clone();
        let ask = async {
            let (reply, too_large) = oneshot::channel();
            let cursor = "x".repeat(limits::CLIENT_FRAME);
            let method = Method::Conversations(ConversationsRequest { limit: 0, cursor });
            assert!(requests.send(Command { method, reply }).await.is_ok());
            let (reply, small) = oneshot::channel();
            let method = Method::MarkRead(MarkReadRequest { conversation_id: 1, seq: 1 });
            assert!(requests.send(Command { method, reply }).await.is_ok());
            answer_one(&mut peer).await;
            assert!(matches!(small.await, Ok(Ok(Answer::MarkRead(_)))));
            let answer = too_large.await.expect("is answered");
            assert!(
                matches!(&answer, Err(RequestError::Invalid(field)) if field.field == "request"),
                "{answer:?}"
            );
            cancel.cancel();
        };
        let live = Live::new(&mut core, connection, HeartbeatParameters::default());
        let (ending, ()) = tokio::join!(live.run(), ask);
        assert!(matches!(ending, Ending::Stop(StopReason::Closed)), "{ending:?}");
    }
}
