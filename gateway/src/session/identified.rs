//! A welcomed session: heartbeats, requests, notifies.

use std::net::IpAddr;

use berth_proto::{
    client::{
        ConversationSeq, HeartbeatAck, Hello, Request, Response, client_frame, response, server_frame::Frame,
    },
    code::{CloseCode, ErrorCode},
    frame::FrameError,
    validate,
    wire::{self as link, to_logic},
};

use super::{
    Cx, Env, Goodbye,
    arriving::seconds,
    in_flight::{InFlight, NotTaken},
    wire::Wire,
    write,
};
use crate::{
    clock::Now,
    metrics::{Asked, Limited, Notified, RequestRefused},
    notify::Outlook,
};

/// Whose session it is, in one allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User, device, platform and app version, one after the other.
    text: Box<str>,
    /// Where the first three end; each is at most 64 bytes.
    ends: [u8; 3],
    /// See [`Identity::ticket_key`].
    ticket_key: u32,
    /// See [`Identity::auth_issued_at_ms`].
    auth_issued_at_ms: i64,
}

impl Identity {
    /// Of texts that were checked to have at most 64 bytes each.
    pub(crate) fn new(user: &str, auth_issued_at_ms: i64, ticket_key: u32, hello: &Hello) -> Self {
        let text = [user, &hello.device_id, &hello.platform, &hello.app_version].concat();
        let end = |length: usize| u8::try_from(length).expect("three texts of at most 64 bytes");
        let device = user.len() + hello.device_id.len();
        let ends = [end(user.len()), end(device), end(device + hello.platform.len())];
        Self { text: text.into_boxed_str(), ends, ticket_key, auth_issued_at_ms }
    }

    pub(crate) fn user(&self) -> &str {
        &self.text[..self.end(0)]
    }

    pub(crate) fn device(&self) -> &str {
        &self.text[self.end(0)..self.end(1)]
    }

    /// When what he identified himself with was issued, on the wall clock; 0: it does not say.
    pub(crate) fn auth_issued_at_ms(&self) -> i64 {
        self.auth_issued_at_ms
    }

    /// The tag of the key that his ticket was signed with: see [`berth_proto::ticket::key_tag`].
    pub(crate) fn ticket_key(&self) -> u32 {
        self.ticket_key
    }

    pub(super) fn platform(&self) -> &str {
        &self.text[self.end(1)..self.end(2)]
    }

    pub(super) fn app_version(&self) -> &str {
        &self.text[self.end(2)..]
    }

    /// `said_ms`: when the hello was complete, where that still matters.
    pub(super) fn open(&self, handle: u64, session_epoch: u64, said_ms: i64) -> link::OpenSession {
        link::OpenSession {
            handle,
            user_id: self.user().to_owned(),
            device_id: self.device().to_owned(),
            platform: self.platform().to_owned(),
            app_version: self.app_version().to_owned(),
            session_epoch,
            said_ms,
            auth_issued_at_ms: self.auth_issued_at_ms,
        }
    }

    /// The question where it belongs.
    pub(super) fn ask(
        &self,
        handle: u64,
        wire: Wire,
        peer: IpAddr,
        auth_expires_at_ms: i64,
    ) -> link::RedirectAsk {
        link::RedirectAsk {
            handle,
            user_id: self.user().to_owned(),
            device_id: self.device().to_owned(),
            platform: self.platform().to_owned(),
            app_version: self.app_version().to_owned(),
            client_ip: peer.to_canonical().to_string(),
            transport: wire.transport().to_owned(),
            auth_expires_at_ms,
            auth_issued_at_ms: self.auth_issued_at_ms,
            ticket_key: self.ticket_key,
            ..link::RedirectAsk::default()
        }
    }

    pub(crate) fn close(&self, session_epoch: u64) -> link::CloseSession {
        link::CloseSession {
            user_id: self.user().to_owned(),
            device_id: self.device().to_owned(),
            session_epoch,
            handle: 0,
        }
    }

    /// Closes the session that logic may have opened for the connection with that handle, without ever saying so.
    pub(crate) fn close_unopened(&self, handle: u64) -> link::CloseSession {
        link::CloseSession { handle, ..self.close(0) }
    }

    fn end(&self, index: usize) -> usize {
        usize::from(self.ends[index])
    }
}

/// What logic opened.
pub(super) struct Opened {
    pub(super) identity: Identity,
    pub(super) logic: u8,
    pub(super) epoch: u64,
    pub(super) inbox_epoch: u64,
    pub(super) outlook: Outlook,
    pub(super) auth_deadline_ms: i64,
    pub(super) now_ms: i64,
    pub(super) away: bool,
}

/// The session. Idle it owns one allocation: its identity.
pub(super) struct Identified {
    identity: Identity,
    logic: u8,
    epoch: u64,
    inbox_epoch: u64,
    outlook: Outlook,
    last_life_ms: i64,
    auth_deadline_ms: i64,
    /// When the inbox was last asked for.
    asked_ms: i64,
    in_flight: InFlight,
    /// What the client is told once its requests are answered: it is let go of.
    leaving: Option<Box<Goodbye>>,
    /// The user's home is another region.
    away: bool,
}

impl Identified {
    pub(super) fn new(opened: Opened) -> Self {
        let Opened { identity, logic, epoch, inbox_epoch, outlook, auth_deadline_ms, now_ms, away } = opened;
        Self {
            identity,
            logic,
            epoch,
            inbox_epoch,
            outlook,
            last_life_ms: now_ms,
            auth_deadline_ms,
            // The first heartbeat always asks.
            asked_ms: 0,
            in_flight: InFlight::default(),
            leaving: None,
            away,
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn lives(&mut self, now: Now) {
        self.last_life_ms = now.steady_ms;
    }

    pub(super) fn on_frame(
        &mut self,
        cx: &mut Cx<'_>,
        wire: Wire,
        frame: Result<client_frame::Frame, FrameError>,
    ) -> Result<(), Goodbye> {
        let bad = |problem: String| Err(Goodbye::new(CloseCode::BadFrame).because(problem));
        match frame {
            Ok(client_frame::Frame::Heartbeat(_)) => self.on_heartbeat(cx, wire),
            Ok(client_frame::Frame::Request(request)) => {
                if self.has_share(cx, wire, request.id) {
                    self.on_request(cx, wire, request);
                }
            }
            Ok(client_frame::Frame::Hello(_)) => return bad("a second hello".to_owned()),
            Err(FrameError::BadRequest { id, message }) => {
                if self.has_share(cx, wire, id) {
                    refuse(cx, wire, id, RequestRefused::Invalid, ErrorCode::InvalidArgument, message);
                }
            }
            Err(problem) => return bad(problem.to_string()),
        }
        Ok(())
    }

    /// Whether the user may ask once more now. If not the request is answered with the wait after which he may.
    fn has_share(&self, cx: &mut Cx<'_>, wire: Wire, id: u32) -> bool {
        let taken = cx.env.guard.users.take(self.identity.user(), cx.now.steady_ms);
        taken.map_err(|wait_ms| refuse_for_now(cx, wire, id, wait_ms)).is_ok()
    }

    /// The ack carries what is known here; logic is asked for the newest, so that a lost notify is made up for.
    fn on_heartbeat(&mut self, cx: &mut Cx<'_>, wire: Wire) {
        let ack = HeartbeatAck { inbox_seq: self.outlook.inbox_seq(), conversations: Vec::new() };
        write(cx, wire, Frame::HeartbeatAck(ack));
        // A client that beats faster than it was told does not make logic work faster.
        let pause = i64::from(cx.env.heartbeat.interval_ms / 2).min(1_000);
        if cx.now.steady_ms - self.asked_ms < pause {
            return;
        }
        self.asked_ms = cx.now.steady_ms;
        let query = link::InboxQuery { handle: cx.handle, user_id: self.identity.user().to_owned() };
        cx.ups.refresh.push((self.logic, query));
    }

    fn on_request(&mut self, cx: &mut Cx<'_>, wire: Wire, mut request: Request) {
        let id = request.id;
        let mut no = |why, code, message: String| refuse(cx, wire, id, why, code, message);
        if id == 0 {
            let message = "request.id is 0; give each request in flight its own number above 0";
            return no(RequestRefused::Invalid, ErrorCode::InvalidArgument, message.to_owned());
        }
        let Some(method) = &request.method else {
            let message = "the request has no method that this server knows";
            return no(RequestRefused::Unimplemented, ErrorCode::Unimplemented, message.to_owned());
        };
        let (asked, valid) = (Asked::from(method), validate::method(method));
        // A duplicate id is worse than a bad field: its answer could be taken for the first one's.
        match self.in_flight.insert(id, asked, cx.now.steady_ms) {
            Err(NotTaken::Duplicate) => {
                let message = format!("request.id {id} is in flight already");
                refuse(cx, wire, id, RequestRefused::Invalid, ErrorCode::InvalidArgument, message);
            }
            Err(NotTaken::TooMany) => {
                let message = "16 requests are in flight; wait for an answer";
                refuse(
                    cx,
                    wire,
                    id,
                    RequestRefused::TooMany,
                    ErrorCode::ResourceExhausted,
                    message.to_owned(),
                );
            }
            Ok(number) => {
                if let Err(problem) = valid {
                    self.in_flight.remove(number);
                    let message = problem.to_string();
                    return refuse(
                        cx,
                        wire,
                        id,
                        RequestRefused::Invalid,
                        ErrorCode::InvalidArgument,
                        message,
                    );
                }
                request.id = number;
                cx.env.levels.requests_in_flight.up();
                if let Some(request) = self.in_flight.admit(request) {
                    self.forward(cx, request);
                }
            }
        }
    }

    /// Requests that waited for the answers before them go on: called when those are written.
    pub(super) fn forward_parked(&mut self, cx: &mut Cx<'_>) {
        while let Some(request) = self.in_flight.unpark() {
            self.forward(cx, request);
        }
    }

    /// The peer took what was unsent.
    pub(super) fn unblocked(&mut self, now: Now) {
        self.in_flight.restart_parked(now.steady_ms);
    }

    fn forward(&self, cx: &mut Cx<'_>, request: Request) {
        let request = link::ClientRequest {
            handle: cx.handle,
            user_id: self.identity.user().to_owned(),
            device_id: self.identity.device().to_owned(),
            session_epoch: self.epoch,
            request: Some(request),
        };
        cx.ups.logic.push((self.logic, to_logic::Message::Request(request)));
    }

    pub(super) fn on_response(&mut self, cx: &mut Cx<'_>, wire: Wire, mut response: Response) {
        let Some(waiting) = self.in_flight.remove(response.id) else {
            cx.env.metrics.requests.late_responses.increment(1);
            return;
        };
        let metrics = &cx.env.metrics;
        cx.env.levels.requests_in_flight.down(1);
        metrics.requests.seconds.record(waiting.asked, seconds(cx.now.steady_ms - waiting.since_ms));
        response.id = waiting.id;
        if !write(cx, wire, Frame::Response(response)) {
            let message = "the answer is larger than a frame may be; ask for fewer rows";
            refuse(cx, wire, waiting.id, RequestRefused::Oversize, ErrorCode::Internal, message.to_owned());
        }
    }

    /// The link to logic did not take the request of that number.
    pub(super) fn on_refused(&mut self, cx: &mut Cx<'_>, wire: Wire, number: u32) {
        if let Some(waiting) = self.in_flight.remove(number) {
            cx.env.levels.requests_in_flight.down(1);
            let message = "logic is not reachable or behind; try again";
            refuse(
                cx,
                wire,
                waiting.id,
                RequestRefused::Unavailable,
                ErrorCode::Unavailable,
                message.to_owned(),
            );
        }
    }

    /// Logic knows the session again, or refuses it.
    pub(super) fn on_reopened(&mut self, opened: link::SessionOpened) -> Result<(), Goodbye> {
        if let Some(error) = opened.error {
            let code = CloseCode::from_number(opened.close_code).unwrap_or(CloseCode::Internal);
            return Err(Goodbye::new(code).because(error.message).retry_after(error.retry_after_ms));
        }
        self.epoch = opened.session_epoch;
        if opened.inbox_epoch == self.inbox_epoch {
            self.outlook.merge(opened.inbox_seq, &opened.conversations);
        } else {
            // The inbox was rolled back: what we knew of it may be ahead of it.
            self.inbox_epoch = opened.inbox_epoch;
            self.outlook.restart(opened.inbox_seq);
        }
        Ok(())
    }

    pub(super) fn held(&self) -> (u8, i64) {
        (self.logic, self.last_life_ms)
    }

    pub(super) fn reannounce(&self, logic: u8, handle: u64) -> Option<to_logic::Message> {
        (self.logic == logic).then(|| to_logic::Message::Open(self.identity.open(handle, self.epoch, 0)))
    }

    pub(super) fn notify(&mut self, cx: &Cx<'_>, inbox_seq: u64, conversations: &[ConversationSeq]) -> bool {
        let before = self.outlook.pending();
        self.outlook.merge(inbox_seq, conversations);
        let after = self.outlook.pending();
        if before || !after {
            cx.env.metrics.traffic.notifies.one(Notified::Merged);
        }
        after
    }

    pub(super) fn write_pending(&mut self, cx: &mut Cx<'_>, wire: Wire) {
        if let Some(notify) = self.outlook.take() {
            write(cx, wire, Frame::Notify(notify));
        }
    }

    /// The inbox seq to tell, if that is all there is to tell.
    pub(super) fn inbox_to_tell(&self) -> Option<u64> {
        self.outlook.inbox_to_tell()
    }

    pub(super) fn told_inbox(&mut self) {
        self.outlook.told_inbox();
    }

    pub(super) fn leave(&mut self, goodbye: Goodbye) {
        // A stop after a drain finds it on its way.
        self.leaving.get_or_insert_with(|| Box::new(goodbye));
    }

    /// Whether a request waits for the logic with that index.
    pub(super) fn waits_for(&self, logic: u8) -> bool {
        self.logic == logic && self.in_flight.len() > 0
    }

    /// Answers what is in flight without logic's answer; `why` nobody waits for that.
    pub(super) fn give_up(&mut self, cx: &mut Cx<'_>, wire: Wire, why: &str) {
        while let Some(waiting) = self.in_flight.remove_older(i64::MAX, false) {
            cx.env.levels.requests_in_flight.down(1);
            let message = format!("{why}; the outcome is unknown");
            refuse(cx, wire, waiting.id, RequestRefused::Unavailable, ErrorCode::Unavailable, message);
        }
    }

    pub(super) fn leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// What to say to who is let go of, once nothing is in flight.
    pub(super) fn take_leave(&mut self) -> Option<Goodbye> {
        self.leaving.take_if(|_| self.in_flight.len() == 0).map(|goodbye| *goodbye)
    }

    pub(super) fn away(&self) -> bool {
        self.away
    }

    /// The question where it belongs.
    pub(super) fn ask(&self, handle: u64, wire: Wire, peer: IpAddr, now: Now) -> link::RedirectAsk {
        let left_ms = self.auth_deadline_ms.saturating_sub(now.steady_ms);
        self.identity.ask(handle, wire, peer, now.wall_ms.saturating_add(left_ms))
    }

    /// When [`Identified::expire`] has something to do. `blocked_ms`: since when the peer takes nothing; 0: it does.
    pub(super) fn deadline_ms(&self, env: &Env, blocked_ms: i64) -> i64 {
        let timeout = env.request_timeout_ms();
        let oldest = self.in_flight.oldest_ms(blocked_ms > 0);
        let request = oldest.map_or(i64::MAX, |since| since.saturating_add(timeout));
        request.min(self.auth_deadline_ms).min(self.silence_deadline_ms(env, blocked_ms))
    }

    /// A peer that does not take what we say is not read, nor is one that is to leave: their silence is our doing.
    fn silence_deadline_ms(&self, env: &Env, blocked_ms: i64) -> i64 {
        let since = match (blocked_ms, &self.leaving) {
            (0, None) => self.last_life_ms,
            (0, Some(_)) => return i64::MAX,
            _ => blocked_ms,
        };
        since.saturating_add(env.heartbeat.timeout_ms.into())
    }

    pub(super) fn expire(&mut self, cx: &mut Cx<'_>, wire: Wire, blocked_ms: i64) -> Result<(), Goodbye> {
        let now = cx.now.steady_ms;
        if now >= self.auth_deadline_ms {
            return Err(Goodbye::expired(cx, "the user's authentication expired"));
        }
        if now >= self.silence_deadline_ms(cx.env, blocked_ms) {
            if blocked_ms > 0 {
                return Err(Goodbye::new(CloseCode::SlowConsumer));
            }
            cx.env.metrics.heartbeat_timeouts.increment(1);
            return Err(Goodbye::new(CloseCode::HeartbeatTimeout));
        }
        let timeout = cx.env.request_timeout_ms();
        while let Some(waiting) = self.in_flight.remove_older(now - timeout, blocked_ms > 0) {
            cx.env.levels.requests_in_flight.down(1);
            let message = "logic did not answer in time; the outcome is unknown".to_owned();
            refuse(cx, wire, waiting.id, RequestRefused::Deadline, ErrorCode::DeadlineExceeded, message);
        }
        Ok(())
    }

    /// The connection ends: logic is to forget the session, unless a newer one took its place.
    pub(super) fn end(&mut self, cx: &mut Cx<'_>) {
        cx.env.levels.sessions.down(1);
        cx.env.levels.requests_in_flight.down(self.in_flight.len());
        cx.ups.logic.push((self.logic, to_logic::Message::Close(self.identity.close(self.epoch))));
    }
}

/// The user asks for more than his share: answered with the wait after which there is room.
fn refuse_for_now(cx: &mut Cx<'_>, wire: Wire, id: u32, wait_ms: u32) {
    cx.env.metrics.limited.one(Limited::UserRequests);
    cx.env.metrics.requests.refused.one(RequestRefused::RateLimited);
    let mut error =
        ErrorCode::ResourceExhausted.error("the user sends too many requests a second; try again later");
    error.retry_after_ms = wait_ms;
    write(cx, wire, Frame::Response(Response { id, result: Some(response::Result::Error(error)) }));
}

/// Answers a request with an error of the gateway's own.
fn refuse(cx: &mut Cx<'_>, wire: Wire, id: u32, why: RequestRefused, code: ErrorCode, message: String) {
    cx.env.metrics.requests.refused.one(why);
    let error = response::Result::Error(code.error(message));
    write(cx, wire, Frame::Response(Response { id, result: Some(error) }));
}
