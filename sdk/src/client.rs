//! The client an application holds.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_proto::{
    client::{
        AckRequest, ConversationsRequest, ConversationsResponse, HistoryRequest, HistoryResponse,
        MarkReadRequest, MarkReadResponse, PresenceRequest, PresenceResponse, SendRequest, SendResponse,
        Target, request::Method, response::Result as Answer, target,
    },
    limits,
    validate::{self, InvalidField},
};
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    clock::Clock,
    driver::Driver,
    event::{State, StopReason},
    keeping::stored_schedule,
    live::{Command, Core},
    mailbox::{Events, Mailbox},
    options::{Options, OptionsError},
    outbox::Outbox,
    pull::Puller,
};

/// Requests other than sends that wait inside the client; further calls wait. They are short-lived, so few.
const QUEUED_REQUESTS: usize = limits::IN_FLIGHT;

/// Why a client could not begin.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The options cannot be.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The stored cursor cannot be read.
    #[error("the stored cursor cannot be read: {0}")]
    Cursor(std::io::Error),
    /// The client has stopped: trying again with the same options is of no use.
    #[error(transparent)]
    Stopped(StopReason),
    /// No gateway welcomed us in time.
    #[error("not connected within {within:?}: {last_failure}")]
    Deadline {
        /// [`Options::connect_timeout`].
        within: Duration,
        /// What the last attempt failed on.
        last_failure: String,
    },
}

/// Why a request was not answered as wished.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// The request cannot be; nothing was sent.
    #[error("{0}")]
    Invalid(InvalidField),
    /// The server refused. A send is refused only for good; other requests may be `retryable`.
    #[error("{code}: {message}")]
    Refused {
        /// Of the closed set in PROTOCOL.md.
        code: String,
        /// What the server said.
        message: String,
        /// Whether the same request may succeed later.
        retryable: bool,
        /// When to try again, in milliseconds; 0: the server does not say.
        retry_after_ms: u32,
    },
    /// No answer in time. A send may have been accepted all the same: repeating it under its `clientMsgId` is safe.
    #[error("no answer in time")]
    Deadline,
    /// The client has stopped.
    #[error("the client has stopped: {0}")]
    Stopped(StopReason),
}

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct To(target::To);

impl To {
    /// A user.
    #[must_use]
    pub fn user(id: impl Into<String>) -> Self {
        Self(target::To::UserId(id.into()))
    }

    /// A group.
    #[must_use]
    pub fn group(id: impl Into<String>) -> Self {
        Self(target::To::GroupId(id.into()))
    }

    /// A conversation the user is a member of.
    #[must_use]
    pub fn conversation(id: u64) -> Self {
        Self(target::To::ConversationId(id))
    }
}

impl From<To> for Target {
    fn from(to: To) -> Self {
        Self { to: Some(to.0) }
    }
}

/// A device of a user. It stays connected until it is closed or dropped, or until something ends it for good.
pub struct Client {
    sends: mpsc::Sender<Command>,
    requests: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
    send_timeout: Duration,
    request_timeout: Duration,
    cancel: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
    _stop_when_dropped: DropGuard,
}

impl Client {
    /// Starts a client and waits until a gateway has welcomed it.
    ///
    /// # Errors
    /// When the options cannot be, the stored cursor cannot be read, the client was stopped (bad token, 4500 and above),
    /// or no gateway welcomed it within [`Options::connect_timeout`]. The client is closed then.
    pub async fn connect(options: Options) -> Result<(Self, Events), ConnectError> {
        let within = options.connect_timeout;
        let (client, events) = Self::start(options).await?;
        let mut state = client.state();
        let settled = state.wait_for(|state| !matches!(state, State::Connecting { .. }));
        let error = match timeout(within, settled).await.map(|state| state.map(|state| state.clone())) {
            Ok(Ok(State::Stopped(reason))) => ConnectError::Stopped(reason),
            Ok(Ok(_)) => return Ok((client, events)),
            Ok(Err(_)) => ConnectError::Stopped(StopReason::Closed),
            Err(_) => {
                let last_failure = match client.state().borrow().clone() {
                    State::Connecting { last_failure: Some(failure) } => failure,
                    _ => "no attempt has ended yet".to_owned(),
                };
                ConnectError::Deadline { within, last_failure }
            }
        };
        client.close().await;
        Err(error)
    }

    /// Starts a client that connects by itself, now or when it can.
    ///
    /// # Errors
    /// When the options cannot be, or the stored cursor cannot be read.
    pub async fn start(options: Options) -> Result<(Self, Events), ConnectError> {
        options.check()?;
        let store = Arc::clone(&options.cursor);
        let cursor = tokio::task::spawn_blocking(move || store.load())
            .await
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(ConnectError::Cursor)?;

        let stored = stored_schedule(&options.schedule).await;
        let limits = options.limits;
        let (send_timeout, request_timeout) = (options.send_timeout, options.request_timeout);
        let mailbox = Arc::new(Mailbox::default());
        let cancel = CancellationToken::new();
        // A call that finds the outbox full waits in the channel; two steps of waiting need no second bound.
        let (sends, new_sends) = mpsc::channel(1);
        let (requests, new_requests) = mpsc::channel(1);
        let (state, states) = watch::channel(State::Connecting { last_failure: None });
        let core = Core {
            clock: Clock::start(),
            rng: SmallRng::from_rng(&mut rand::rng()),
            mailbox: Arc::clone(&mailbox),
            puller: Puller::new(cursor, limits.page),
            sends: Outbox::new(limits.sends_in_flight, limits.queued_sends),
            requests: Outbox::new(limits.requests_in_flight, QUEUED_REQUESTS),
            new_sends,
            new_requests,
            cancel: cancel.clone(),
            options,
        };
        let task = tokio::spawn(Driver::new(core, state, stored).run());
        let client = Self {
            sends,
            requests,
            state: states,
            send_timeout,
            request_timeout,
            _stop_when_dropped: cancel.clone().drop_guard(),
            cancel,
            task: Mutex::new(Some(task)),
        };
        Ok((client, Events::new(mailbox)))
    }

    /// Where the client stands, and how that changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Sends a message under a fresh `clientMsgId`, within [`Options::send_timeout`]. See [`Client::send_request`].
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn send(
        &self,
        to: To,
        r#type: impl Into<String>,
        body: impl Into<Bytes>,
    ) -> Result<SendResponse, RequestError> {
        let request = SendRequest {
            client_msg_id: fresh_client_msg_id(),
            to: Some(to.into()),
            r#type: r#type.into(),
            body: body.into(),
        };
        self.send_request(request, self.send_timeout).await
    }

    /// Sends a message, again and again under its `clientMsgId`, until the server has accepted it or refused it for good,
    /// or `within` has passed. Messages are accepted in the order in which their calls were first polled, one at a time
    /// unless [`crate::Limits::sends_in_flight`] says otherwise. Dropping the future stops the repeating.
    ///
    /// # Errors
    /// See [`RequestError`]. After [`RequestError::Deadline`] the outcome is unknown.
    pub async fn send_request(
        &self,
        request: SendRequest,
        within: Duration,
    ) -> Result<SendResponse, RequestError> {
        match self.call(&self.sends, Method::Send(request), within).await? {
            Answer::Send(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Messages of a conversation, oldest first.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn history(&self, request: HistoryRequest) -> Result<HistoryResponse, RequestError> {
        match self.request(Method::History(request)).await? {
            Answer::History(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// The user's conversations, newest activity first, a page at a time; `cursor` is empty, or the last page's.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn conversations(
        &self,
        limit: u32,
        cursor: impl Into<String>,
    ) -> Result<ConversationsResponse, RequestError> {
        let cursor = cursor.into();
        match self.request(Method::Conversations(ConversationsRequest { limit, cursor })).await? {
            Answer::Conversations(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// The user has read the conversation up to `seq` (a conversation seq).
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn mark_read(&self, conversation_id: u64, seq: u64) -> Result<MarkReadResponse, RequestError> {
        match self.request(Method::MarkRead(MarkReadRequest { conversation_id, seq })).await? {
            Answer::MarkRead(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Which of these users (at most 200) are online, and with what.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn presence(&self, user_ids: Vec<String>) -> Result<PresenceResponse, RequestError> {
        match self.request(Method::Presence(PresenceRequest { user_ids })).await? {
            Answer::Presence(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Tells the server that this device has every inbox row up to `seq`. It uses it for receipts and metrics only.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn ack(&self, seq: u64) -> Result<(), RequestError> {
        match self.request(Method::Ack(AckRequest { seq })).await? {
            Answer::Ack(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends the client: says goodbye to the gateway, stores the cursor of what was taken, and waits for its task. Events
    /// that were not read are dropped; their rows come again. A cursor store that does not store is left after 3 s, however
    /// long its call goes on in the background. Calls still waiting end with [`RequestError::Stopped`].
    pub async fn close(&self) {
        self.cancel.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the client's task ended badly");
        }
    }

    /// A request that may be repeated after a lost connection, since it changes nothing or always the same.
    async fn request(&self, method: Method) -> Result<Answer, RequestError> {
        self.call(&self.requests, method, self.request_timeout).await
    }

    async fn call(
        &self,
        queue: &mpsc::Sender<Command>,
        method: Method,
        within: Duration,
    ) -> Result<Answer, RequestError> {
        validate::method(&method).map_err(RequestError::Invalid)?;
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            queue.send(Command { method, reply }).await.map_err(|_| self.stopped())?;
            answer.await.unwrap_or_else(|_| Err(self.stopped()))
        };
        timeout(within, exchange).await.unwrap_or(Err(RequestError::Deadline))
    }

    fn stopped(&self) -> RequestError {
        RequestError::Stopped(match &*self.state.borrow() {
            State::Stopped(reason) => reason.clone(),
            _ => StopReason::Closed,
        })
    }
}

/// 128 random bits as 32 hex digits.
fn fresh_client_msg_id() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

fn unexpected(answer: &Answer) -> RequestError {
    tracing::debug!(?answer, "an answer of another method");
    RequestError::Refused {
        code: berth_proto::code::ErrorCode::Internal.as_str().to_owned(),
        message: "the server answered with the result of another method".to_owned(),
        retryable: false,
        retry_after_ms: 0,
    }
}
