//! A device of a user after welcome: requests with their answers, notifies, and a cursor that only pulled rows move.

use std::{collections::HashMap, time::Duration};

use anyhow::Context;
use berth_proto::{
    client::{
        Conversation, ConversationsRequest, Disconnect, Error, Event, Heartbeat, Hello, HistoryRequest,
        InboxItem, MarkReadRequest, MarkReadResponse, Message, PresenceRequest, PullRequest, PullResponse,
        Request, Response, SendRequest, SendResponse, Target, UserPresence, Welcome,
        client_frame::Frame as Up, event, request::Method, response, server_frame::Frame, target::To,
    },
    schedule::{ScheduleAnswer, ScheduleRequest},
};
use serde_json::Value;
use thiserror::Error as ThisError;

use crate::{
    bail, ensure,
    http::{self, Answer},
    raw::{Ending, Raw, Seen, Transport},
    server::Addresses,
    tokens, wait,
};

/// The server answered a request with an error.
#[derive(Debug, Clone, ThisError)]
#[error("{} {}", .0.code, .0.message)]
pub struct Refused(pub Error);

/// A connected device.
pub struct Device {
    /// The connection.
    pub raw: Raw,
    /// What the gateway said first.
    pub welcome: Welcome,
    /// The newest inbox seq any frame told.
    pub known_seq: u64,
    /// Everything up to here was pulled.
    pub cursor: u64,
    next_id: u32,
    answers: HashMap<u32, Response>,
    disconnect: Option<Disconnect>,
}

/// Asks the scheduler as a user's device would.
///
/// # Errors
/// When it does not answer 200.
pub async fn schedule(
    at: &Addresses,
    user: &str,
    request: &ScheduleRequest,
) -> anyhow::Result<ScheduleAnswer> {
    let body = serde_json::to_value(request)?;
    let answer = schedule_with(&at.scheduler, &tokens::user(user), &body).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    answer.json()
}

/// Asks that scheduler with this token.
///
/// # Errors
/// When nothing answers in time.
pub async fn schedule_with(scheduler: &str, token: &str, request: &Value) -> anyhow::Result<Answer> {
    http::post(&format!("{scheduler}/v1/schedule"), Some(token), request).await
}

/// `host:port` of the answer's first endpoint of that transport.
///
/// # Errors
/// When there is none.
pub fn gateway_of(answer: &ScheduleAnswer, transport: Transport) -> anyhow::Result<String> {
    let endpoint = answer.endpoints.iter().find(|e| e.transport == transport.name());
    let url = &endpoint.with_context(|| format!("no {transport:?} in {:?}", answer.endpoints))?.url;
    let rest = url.split_once("://").with_context(|| format!("no URL: {url}"))?.1;
    Ok(rest.split('/').next().unwrap_or(rest).to_owned())
}

/// A hello with what is required.
#[must_use]
pub fn hello(ticket: &str, device: &str) -> Up {
    Up::Hello(Hello { ticket: ticket.to_owned(), device_id: device.to_owned(), ..Default::default() })
}

impl Device {
    /// Schedules, connects where the scheduler said, and is welcomed.
    ///
    /// # Errors
    /// When one of the steps fails.
    pub async fn connect(
        at: &Addresses,
        transport: Transport,
        user: &str,
        device: &str,
    ) -> anyhow::Result<Self> {
        let request = ScheduleRequest {
            device_id: device.to_owned(),
            transports: vec![transport.name().to_owned()],
            ..Default::default()
        };
        let answer = schedule(at, user, &request).await?;
        Self::connect_to(&gateway_of(&answer, transport)?, transport, &answer.ticket, device).await
    }

    /// Connects to a gateway with a ticket at hand.
    ///
    /// # Errors
    /// When the gateway does not welcome.
    pub async fn connect_to(
        gateway: &str,
        transport: Transport,
        ticket: &str,
        device: &str,
    ) -> anyhow::Result<Self> {
        let mut raw = Raw::connect(transport, gateway).await?;
        raw.send(hello(ticket, device)).await?;
        let welcome = match raw.frame().await? {
            Frame::Welcome(welcome) => welcome,
            other => bail!("instead of welcome: {other:?}"),
        };
        let known_seq = welcome.inbox_seq;
        Ok(Self { raw, welcome, known_seq, cursor: 0, next_id: 1, answers: HashMap::new(), disconnect: None })
    }

    /// Sends a request and returns its id.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn start(&mut self, method: Method) -> anyhow::Result<u32> {
        let id = self.next_id;
        self.next_id += 1;
        self.raw.send(Up::Request(Request { id, method: Some(method) })).await?;
        Ok(id)
    }

    /// The answer to request `id`.
    ///
    /// # Errors
    /// [`Refused`] when it is an error; others when the connection ends first.
    pub async fn finish(&mut self, id: u32) -> anyhow::Result<response::Result> {
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return match answer.result.context("a response without a result")? {
                    response::Result::Error(error) => Err(Refused(error).into()),
                    result => Ok(result),
                };
            }
            let frame = self.raw.frame().await?;
            self.take(frame)?;
        }
    }

    /// [`Device::start`] and [`Device::finish`].
    ///
    /// # Errors
    /// As these.
    pub async fn request(&mut self, method: Method) -> anyhow::Result<response::Result> {
        let id = self.start(method).await?;
        self.finish(id).await
    }

    /// The error that the server answers `method` with.
    ///
    /// # Errors
    /// When it answers with success, or not at all.
    pub async fn refused(&mut self, method: Method) -> anyhow::Result<Error> {
        match self.request(method).await {
            Ok(result) => bail!("not refused: {result:?}"),
            Err(error) => Ok(error.downcast::<Refused>()?.0),
        }
    }

    /// Sends text to a user under this client message id.
    ///
    /// # Errors
    /// As [`Device::request`].
    pub async fn send(&mut self, to: &str, client_msg_id: &str, text: &str) -> anyhow::Result<SendResponse> {
        match self.request(send_to(to, client_msg_id, text)).await? {
            response::Result::Send(sent) => Ok(sent),
            other => bail!("to send: {other:?}"),
        }
    }

    /// Pulls one page.
    ///
    /// # Errors
    /// As [`Device::request`].
    pub async fn pull(&mut self, after_seq: u64, limit: u32) -> anyhow::Result<PullResponse> {
        match self.request(Method::Pull(PullRequest { after_seq, limit })).await? {
            response::Result::Pull(pulled) => Ok(pulled),
            other => bail!("to pull: {other:?}"),
        }
    }

    /// Pulls everything after the cursor and moves it; checks that no row is missing.
    ///
    /// # Errors
    /// On a gap, or as [`Device::request`].
    pub async fn sync(&mut self) -> anyhow::Result<Vec<InboxItem>> {
        let mut items = Vec::new();
        loop {
            let page = self.pull(self.cursor, 0).await?;
            ensure!(!page.items.is_empty() || !page.has_more, "an empty page that has more: {page:?}");
            for item in page.items {
                ensure!(item.seq == self.cursor + 1, "a gap: {} after {}", item.seq, self.cursor);
                self.cursor = item.seq;
                items.push(item);
            }
            if !page.has_more {
                return Ok(items);
            }
        }
    }

    /// The message rows of [`Device::sync`].
    ///
    /// # Errors
    /// As [`Device::sync`].
    pub async fn sync_messages(&mut self) -> anyhow::Result<Vec<Message>> {
        Ok(self.sync().await?.into_iter().filter_map(message_of).collect())
    }

    /// Waits for notifies until `count` more message rows are there, and returns them. It sends no heartbeat: a notify that
    /// is lost fails it.
    ///
    /// # Errors
    /// When they do not come in time.
    pub async fn receive(&mut self, count: usize) -> anyhow::Result<Vec<Message>> {
        let mut messages = Vec::new();
        let all = async {
            loop {
                messages.extend(self.sync_messages().await?);
                if messages.len() >= count {
                    return Ok(messages);
                }
                self.notified(self.cursor + 1).await?;
            }
        };
        wait::within("messages", all).await?
    }

    /// Waits until a notify (or heartbeatAck) told at least `seq`, without sending anything.
    ///
    /// # Errors
    /// When the connection ends or nothing comes in time.
    pub async fn notified(&mut self, seq: u64) -> anyhow::Result<()> {
        while self.known_seq < seq {
            let frame = self.raw.frame().await?;
            self.take(frame)?;
        }
        Ok(())
    }

    /// Sends a heartbeat and returns the inbox seq of its ack.
    ///
    /// # Errors
    /// When the connection ends first.
    pub async fn heartbeat(&mut self) -> anyhow::Result<u64> {
        self.raw.send(Up::Heartbeat(Heartbeat {})).await?;
        loop {
            let frame = self.raw.frame().await?;
            if let Frame::HeartbeatAck(ack) = &frame {
                let seq = ack.inbox_seq;
                self.take(frame)?;
                return Ok(seq);
            }
            self.take(frame)?;
        }
    }

    /// Takes whatever comes for at most `patience`.
    ///
    /// # Errors
    /// When the connection ends.
    pub async fn idle(&mut self, patience: Duration) -> anyhow::Result<()> {
        match self.raw.next_within(patience).await? {
            Some(Seen::Frame(frame)) => self.take(frame),
            // Not told at once: who waits for a server to come back expects it.
            Some(Seen::End(code)) => anyhow::bail!("the connection ended with {code:?}"),
            None => Ok(()),
        }
    }

    /// Reads to the end of the connection.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn ending(&mut self) -> anyhow::Result<Ending> {
        let mut ending = self.raw.ending().await?;
        ending.disconnect = ending.disconnect.or_else(|| self.disconnect.take());
        Ok(ending)
    }

    fn take(&mut self, frame: Frame) -> anyhow::Result<()> {
        match frame {
            Frame::Response(answer) => {
                let id = answer.id;
                ensure!(self.answers.insert(id, answer).is_none(), "two answers to request {id}");
            }
            Frame::Notify(notify) => self.known_seq = self.known_seq.max(notify.inbox_seq),
            Frame::HeartbeatAck(ack) => self.known_seq = self.known_seq.max(ack.inbox_seq),
            Frame::Disconnect(disconnect) => self.disconnect = Some(disconnect),
            Frame::Welcome(_) => bail!("a second welcome"),
        }
        Ok(())
    }
}

/// The other methods, typed.
impl Device {
    /// Reads a conversation's timeline.
    ///
    /// # Errors
    /// As [`Device::request`].
    pub async fn history(&mut self, request: HistoryRequest) -> anyhow::Result<(Vec<Message>, bool)> {
        match self.request(Method::History(request)).await? {
            response::Result::History(page) => Ok((page.messages, page.has_more)),
            other => bail!("to history: {other:?}"),
        }
    }

    /// A conversation's timeline from its start: from the newest page back, since there is no way to ask for the oldest
    /// (afterSeq 0 means "not given").
    ///
    /// # Errors
    /// As [`Device::request`].
    pub async fn whole_timeline(&mut self, conversation_id: u64) -> anyhow::Result<Vec<Message>> {
        let mut pages = Vec::new();
        let mut before_seq = 0;
        loop {
            let request = HistoryRequest { conversation_id, before_seq, ..Default::default() };
            let (messages, has_more) = self.history(request).await?;
            before_seq = messages.first().map_or(0, |message| message.conversation_seq);
            pages.push(messages);
            if !has_more {
                return Ok(pages.into_iter().rev().flatten().collect());
            }
        }
    }

    /// Every conversation, newest activity first, and the total of unread, of pages of `limit`.
    ///
    /// # Errors
    /// As [`Device::request`].
    pub async fn conversations(&mut self, limit: u32) -> anyhow::Result<(Vec<Conversation>, u64)> {
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let request = ConversationsRequest { limit, cursor };
            match self.request(Method::Conversations(request)).await? {
                response::Result::Conversations(page) => {
                    all.extend(page.conversations);
                    if page.cursor.is_empty() {
                        return Ok((all, page.total_unread));
                    }
                    cursor = page.cursor;
                }
                other => bail!("to conversations: {other:?}"),
            }
        }
    }

    /// Marks a conversation as read up to `seq`.
    ///
    /// # Errors
    /// As [`Device::request`].
    pub async fn mark_read(&mut self, conversation_id: u64, seq: u64) -> anyhow::Result<MarkReadResponse> {
        match self.request(Method::MarkRead(MarkReadRequest { conversation_id, seq })).await? {
            response::Result::MarkRead(read) => Ok(read),
            other => bail!("to markRead: {other:?}"),
        }
    }

    /// Who is online.
    ///
    /// # Errors
    /// As [`Device::request`].
    pub async fn presence(&mut self, users: &[&str]) -> anyhow::Result<Vec<UserPresence>> {
        let user_ids = users.iter().map(|user| (*user).to_owned()).collect();
        match self.request(Method::Presence(PresenceRequest { user_ids })).await? {
            response::Result::Presence(answer) => Ok(answer.users),
            other => bail!("to presence: {other:?}"),
        }
    }
}

/// A send to a user.
#[must_use]
pub fn send_to(user: &str, client_msg_id: &str, text: &str) -> Method {
    text_to(To::UserId(user.to_owned()), client_msg_id, text)
}

/// A send to a group.
#[must_use]
pub fn to_group(group: &str, client_msg_id: &str, text: &str) -> Method {
    text_to(To::GroupId(group.to_owned()), client_msg_id, text)
}

fn text_to(to: To, client_msg_id: &str, text: &str) -> Method {
    Method::Send(SendRequest {
        client_msg_id: client_msg_id.to_owned(),
        to: Some(Target { to: Some(to) }),
        r#type: "text".to_owned(),
        body: text.as_bytes().to_vec().into(),
    })
}

/// The message of an inbox row, if it is one.
#[must_use]
pub fn message_of(item: InboxItem) -> Option<Message> {
    match item.event {
        Some(Event { event: Some(event::Event::Message(message)) }) => Some(message),
        _ => None,
    }
}
