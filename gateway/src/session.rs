//! One connection's protocol, without sockets and without a clock: bytes, messages and the time go in, bytes and
//! messages come out. An unidentified connection and an identified session are different types.

mod arriving;
mod context;
mod frames;
mod goodbye;
mod grace;
mod identified;
mod in_flight;
mod leaving;
mod limited;
mod revoked;
mod unanswered;
mod wire;

#[cfg(test)]
pub(crate) mod simulation;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use berth_proto::{
    client::{ConversationSeq, client_frame, server_frame},
    code::CloseCode,
    frame::{FrameError, decode_client},
    limits, wire as link,
};
use link::to_gateway;

use crate::{
    clock::Now,
    config::Timeouts,
    metrics::{Closed, FrameIn},
    ws::{self, Event},
};
use arriving::Arriving;
pub(crate) use context::{Cx, Env, Ups};
pub(crate) use frames::Frames;
use goodbye::Ending;
pub(crate) use goodbye::Goodbye;
use identified::Identified;
use identified::Identity;
use wire::{Negotiated, Wire};

/// Parsing stops while so much output is unwritten, in bytes: what a batch of small frames may cause stays in proportion
/// to what the peer takes.
const OUTPUT_PAUSE: usize = 64 * 1024;

/// A frame counts once, and once more for each of so many bytes it has: what decoding costs is limited, not only how often
/// it is done. At the default of 2,000 a second that is 8 MB a second.
const BYTES_OF_A_FRAME: usize = 4_096;

/// What a peer must take of what is unsent, in bytes a second, measured over the heartbeat's timeout; below that it is
/// closed as slow. The worst of mobile links carry several times as much.
const SLOWEST: i64 = 1_024;

/// A peer that takes its last bytes slowly has so many lingers for all of them: half a minute at the default, in which
/// even a bad mobile link takes the few frames that were unsent.
const LINGERS: i64 = 6;

/// Why [`Session::receive`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The rest is no complete frame yet.
    Incomplete,
    /// Enough output: write it, then go on.
    Full,
    /// The session waits for somebody else first.
    Paused,
}

/// A connection's state.
pub(crate) struct Session {
    stage: Stage,
    wire: Wire,
    /// The fragments of an unfinished WebSocket message.
    assembly: Option<Box<ws::Assembly>>,
    /// Since when the peer takes nothing of what is unsent, had it taken what it took at [`SLOWEST`]; 0: nothing is unsent.
    blocked_ms: i64,
    /// Of the limit on frames: see [`crate::guard::Rate::take`].
    frames_due_us: i64,
}

enum Stage {
    Arriving(Box<Arriving>),
    Identified(Identified),
    /// Everything is said: the peer has until `deadline_ms` to go. That moves as the peer takes what is unsent, up to
    /// `cap_ms`.
    Closing {
        deadline_ms: i64,
        cap_ms: i64,
    },
    Gone,
}

impl Session {
    /// A connection just accepted. `surplus`: there is no room for it, and it is to be told so.
    pub(crate) fn new(now: Now, timeouts: &Timeouts, peer: SocketAddr, surplus: bool) -> Self {
        let arriving = Arriving::new(now, timeouts, peer.ip(), surplus);
        Self {
            stage: Stage::Arriving(Box::new(arriving)),
            wire: Wire::Unknown,
            assembly: None,
            blocked_ms: 0,
            frames_due_us: 0,
        }
    }

    /// Whether bytes of the peer would be looked at now.
    pub(crate) fn wants_input(&self) -> bool {
        match &self.stage {
            Stage::Arriving(arriving) => !arriving.waits(),
            Stage::Identified(session) => !session.leaving(),
            Stage::Closing { .. } => true,
            Stage::Gone => false,
        }
    }

    /// Handles what is complete at the head of `input`; returns how many bytes that was and why it stopped.
    pub(crate) fn receive(&mut self, cx: &mut Cx<'_>, input: &mut [u8]) -> (usize, Stop) {
        let mut at = 0;
        loop {
            if matches!(self.stage, Stage::Closing { .. }) {
                return (input.len(), Stop::Incomplete);
            }
            if !self.wants_input() {
                return (at, Stop::Paused);
            }
            if cx.out.len() >= OUTPUT_PAUSE {
                return (at, Stop::Full);
            }
            match self.receive_one(cx, &mut input[at..]) {
                None => return (at, Stop::Incomplete),
                Some(taken) => at += taken,
            }
        }
    }

    /// Handles one step at the head of `input` and says how long it was; none: it is incomplete.
    fn receive_one(&mut self, cx: &mut Cx<'_>, input: &mut [u8]) -> Option<usize> {
        if self.wire == Wire::Unknown {
            return self.negotiate(cx, input);
        }
        // Before the welcome too: a hello may have unknown fields. What is kept without a ticket is less than one frame, in
        // one piece or in fragments (see `Connection::parse` and `ws::next`), for at most the time a hello may take.
        match self.wire.next(&mut self.assembly, input, limits::CLIENT_FRAME) {
            Ok(None) => None,
            Ok(Some((event, taken))) => {
                let units = 1 + taken / BYTES_OF_A_FRAME;
                match cx.env.guard.frames.take_units(units, self.frames_due_us, cx.now.steady_ms) {
                    Ok(due_us) => {
                        self.frames_due_us = due_us;
                        self.on_event(cx, event);
                    }
                    Err(wait_ms) => self.too_many_frames(cx, wait_ms),
                }
                Some(taken)
            }
            Err(problem) => {
                cx.env.metrics.traffic.frames_in.one(FrameIn::Bad);
                self.close(cx, Goodbye::new(CloseCode::BadFrame).because(problem.to_string()));
                Some(0)
            }
        }
    }

    fn negotiate(&mut self, cx: &mut Cx<'_>, input: &[u8]) -> Option<usize> {
        let surplus = matches!(&self.stage, Stage::Arriving(arriving) if arriving.surplus());
        match wire::negotiate(cx, input, surplus) {
            Negotiated::Incomplete => return None,
            Negotiated::Refused => {
                if surplus {
                    cx.env.metrics.health.not_welcomed(Closed::Overloaded, false);
                }
                self.finish(cx, Closed::Http);
            }
            Negotiated::Agreed(wire, taken) => {
                self.wire = wire;
                if surplus {
                    let full = Goodbye::overloaded(cx.rng).because("the gateway is full");
                    self.close(cx, full);
                }
                return Some(taken);
            }
        }
        Some(0)
    }

    fn on_event(&mut self, cx: &mut Cx<'_>, event: Event<'_>) {
        match event {
            Event::Message { text, payload } => self.on_message(cx, text, &payload),
            Event::Fragment | Event::Pong => {}
            Event::Ping(payload) => {
                cx.env.metrics.traffic.frames_in.one(FrameIn::Ping);
                self.lives(cx.now);
                ws::write_frame(ws::Opcode::Pong, payload, cx.out);
            }
            Event::Close(code) => {
                // 1005 may not stand in a frame: a close without a code is answered with a normal one.
                ws::write_close(code.unwrap_or(1000), "", cx.out);
                self.finish(cx, Closed::Client);
            }
        }
    }

    fn on_message(&mut self, cx: &mut Cx<'_>, text: bool, payload: &[u8]) {
        let Some(encoding) = self.wire.encoding(text) else {
            cx.env.metrics.traffic.frames_in.one(FrameIn::Bad);
            let problem =
                if text { "a text message on berth.v1.proto" } else { "a binary message on berth.v1.json" };
            return self.close(cx, Goodbye::new(CloseCode::BadFrame).because(problem));
        };
        let frame = decode_client(encoding, payload);
        self.lives(cx.now);
        count(cx, &frame);
        let done = match &mut self.stage {
            Stage::Arriving(arriving) => arriving.on_frame(cx, self.wire, frame),
            Stage::Identified(session) => session.on_frame(cx, self.wire, frame),
            Stage::Closing { .. } | Stage::Gone => Ok(()),
        };
        if let Err(goodbye) = done {
            self.close(cx, goodbye);
        }
    }

    fn lives(&mut self, now: Now) {
        if let Stage::Identified(session) = &mut self.stage {
            session.lives(now);
        }
    }

    /// A message of the logic with that index about this connection. Notifies go to [`Session::notify`].
    pub(crate) fn deliver(&mut self, cx: &mut Cx<'_>, message: to_gateway::Message) {
        match message {
            to_gateway::Message::Opened(opened) => self.on_opened(cx, opened),
            to_gateway::Message::Response(response) => {
                if let Stage::Identified(session) = &mut self.stage {
                    session.on_response(cx, self.wire, response.response.unwrap_or_default());
                    self.leave_when_answered(cx);
                }
            }
            to_gateway::Message::Close(close) => self.on_close(cx, close),
            // For the worker and the supervisor, not for one connection.
            to_gateway::Message::Notify(_)
            | to_gateway::Message::Refreshed(_)
            | to_gateway::Message::Lease(_)
            | to_gateway::Message::Revoked(_) => {}
        }
    }

    fn on_opened(&mut self, cx: &mut Cx<'_>, opened: link::SessionOpened) {
        let done = match &mut self.stage {
            Stage::Arriving(arriving) => match arriving.on_opened(cx, self.wire, opened) {
                Ok(None) => Ok(()),
                Ok(Some(session)) => {
                    self.stage = Stage::Identified(session);
                    Ok(())
                }
                Err(goodbye) => Err(goodbye),
            },
            Stage::Identified(session) => session.on_reopened(opened),
            Stage::Closing { .. } | Stage::Gone => Ok(()),
        };
        if let Err(goodbye) = done {
            self.close(cx, goodbye);
        }
    }

    fn on_close(&mut self, cx: &mut Cx<'_>, close: link::CloseConnection) {
        let epoch = match &self.stage {
            Stage::Identified(session) => session.epoch(),
            _ => 0,
        };
        if close.session_epoch != 0 && close.session_epoch != epoch {
            return;
        }
        let code = CloseCode::from_number(close.code).unwrap_or(CloseCode::Internal);
        if code == CloseCode::Unauthenticated && self.identity().is_some() {
            // Logic says so of one that a revocation voids, in case that itself is not known here.
            cx.env.metrics.sessions_revoked.increment(1);
        }
        self.close(cx, Goodbye::new(code).because(close.reason));
    }

    /// The user's inbox or large conversations moved; returns whether [`Session::write_pending`] has something new.
    pub(crate) fn notify(&mut self, cx: &Cx<'_>, inbox_seq: u64, conversations: &[ConversationSeq]) -> bool {
        match &mut self.stage {
            Stage::Arriving(arriving) => {
                arriving.notify(inbox_seq, conversations);
                false
            }
            Stage::Identified(session) => session.notify(cx, inbox_seq, conversations),
            Stage::Closing { .. } | Stage::Gone => false,
        }
    }

    /// Appends the notify that is pending, if any: called when the socket has room.
    pub(crate) fn write_pending(&mut self, cx: &mut Cx<'_>) {
        if let Stage::Identified(session) = &mut self.stage {
            session.write_pending(cx, self.wire);
        }
    }

    /// Everything is written: requests that waited for that go on.
    pub(crate) fn all_written(&mut self, cx: &mut Cx<'_>) {
        if let Stage::Identified(session) = &mut self.stage {
            session.forward_parked(cx);
        }
    }

    /// The frame of the notify that is pending, if it is about the inbox alone: most are. [`Session::told_inbox`] follows
    /// once it is written.
    pub(crate) fn inbox_notify<'a>(&self, frames: &'a mut Frames) -> Option<&'a [u8]> {
        match &self.stage {
            Stage::Identified(session) => frames.notify(self.wire, session.inbox_to_tell()?),
            _ => None,
        }
    }

    /// The frame that [`Session::inbox_notify`] gave is on its way.
    pub(crate) fn told_inbox(&mut self) {
        if let Stage::Identified(session) = &mut self.stage {
            session.told_inbox();
        }
    }

    /// A scheduler's answer where an arriving client belongs.
    pub(crate) fn redirected(&mut self, cx: &mut Cx<'_>, answer: link::RedirectAnswer) {
        if let Stage::Arriving(arriving) = &mut self.stage
            && let Err(goodbye) = arriving.on_redirect(cx, answer)
        {
            self.close(cx, goodbye);
        }
    }

    /// The peer took nothing, or only a part, of what was written: it still has to take the rest.
    pub(crate) fn blocked(&mut self, cx: &Cx<'_>) {
        if self.blocked_ms == 0 {
            self.blocked_ms = cx.now.steady_ms;
            self.linger(cx);
        }
    }

    /// Whether the peer still has to take what was written before.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked_ms > 0
    }

    /// The peer took so many bytes of what was unsent; `all`: nothing is unsent any more. A byte now and then buys no time.
    pub(crate) fn unblocked(&mut self, cx: &Cx<'_>, taken: usize, all: bool) {
        let bought_ms = i64::try_from(taken).unwrap_or(i64::MAX).saturating_mul(1_000) / SLOWEST;
        self.blocked_ms =
            if all { 0 } else { self.blocked_ms.saturating_add(bought_ms).min(cx.now.steady_ms) };
        self.linger(cx);
        // We did not read meanwhile: the silence was ours, and taking bytes is a sign of life.
        self.lives(cx.now);
        if let Stage::Identified(session) = &mut self.stage {
            session.unblocked(cx.now);
        }
    }

    /// Counts the linger from now, if everything is said.
    fn linger(&mut self, cx: &Cx<'_>) {
        let linger = cx.env.linger_ms(self.blocked_ms == 0);
        if let Stage::Closing { deadline_ms, cap_ms } = &mut self.stage {
            *deadline_ms = cx.now.steady_ms.saturating_add(linger).min(*cap_ms);
        }
    }

    /// When [`Session::expire`] has something to do, on the steady scale.
    pub(crate) fn deadline_ms(&self, env: &Env) -> i64 {
        match &self.stage {
            Stage::Arriving(arriving) => arriving.deadline_ms(),
            Stage::Identified(session) => session.deadline_ms(env, self.blocked_ms),
            Stage::Closing { deadline_ms, .. } => *deadline_ms,
            Stage::Gone => i64::MAX,
        }
    }

    /// Whether [`Session::expire`] has something to do now.
    pub(crate) fn due(&self, cx: &Cx<'_>) -> bool {
        cx.now.steady_ms >= self.deadline_ms(cx.env)
    }

    /// Time passed: does what is due.
    pub(crate) fn expire(&mut self, cx: &mut Cx<'_>) {
        if !self.due(cx) {
            return;
        }
        let blocked = self.blocked_ms;
        match &mut self.stage {
            Stage::Arriving(arriving) => {
                if let Err(goodbye) = arriving.expired(cx) {
                    self.close(cx, goodbye);
                }
                if self.wire == Wire::Unknown {
                    // Nothing was said, so nothing has to be taken.
                    self.stage = Stage::Gone;
                }
            }
            Stage::Identified(session) => match session.expire(cx, self.wire, blocked) {
                Ok(()) => self.leave_when_answered(cx),
                Err(goodbye) => self.close(cx, goodbye),
            },
            Stage::Closing { .. } | Stage::Gone => self.stage = Stage::Gone,
        }
    }

    /// The peer's end of stream (`lost`: the socket failed): there is nobody to say anything to.
    pub(crate) fn peer_gone(&mut self, cx: &mut Cx<'_>, lost: bool) {
        self.end(cx, if lost { Closed::Lost } else { Closed::Client }.into());
        self.stage = Stage::Gone;
    }

    /// Whether everything is said: once it is written, our half of the connection is shut.
    pub(crate) fn closing(&self) -> bool {
        matches!(self.stage, Stage::Closing { .. })
    }

    /// Whether the connection can be dropped.
    pub(crate) fn gone(&self) -> bool {
        matches!(self.stage, Stage::Gone)
    }

    /// Says why in `disconnect` and, on a WebSocket, in a close frame, and begins to close.
    fn close(&mut self, cx: &mut Cx<'_>, goodbye: Goodbye) {
        if matches!(self.stage, Stage::Closing { .. } | Stage::Gone) {
            return;
        }
        let code = goodbye.code();
        tracing::trace!(handle = cx.handle, code = code.number(), "closing");
        let ending = goodbye.ending();
        goodbye.write(cx, self.wire);
        self.finish(cx, ending);
    }

    fn finish(&mut self, cx: &mut Cx<'_>, ending: impl Into<Ending>) {
        self.end(cx, ending.into());
        self.assembly = None;
        let cap_ms = cx.now.steady_ms.saturating_add(cx.env.linger_ms(false).saturating_mul(LINGERS));
        self.stage = Stage::Closing { deadline_ms: cap_ms, cap_ms };
        self.linger(cx);
    }

    /// Books the end and lets go of what logic holds for the session.
    fn end(&mut self, cx: &mut Cx<'_>, ending: Ending) {
        let Ending { how, in_line } = ending;
        match &mut self.stage {
            Stage::Arriving(arriving) => {
                arriving.end(cx);
                cx.env.metrics.handshakes_failed.one(how);
                if self.wire != Wire::Unknown && !in_line {
                    cx.env.metrics.health.not_welcomed(how, arriving.genuine());
                }
            }
            Stage::Identified(session) => {
                session.end(cx);
                cx.env.metrics.health.ended(how);
            }
            Stage::Closing { .. } | Stage::Gone => return,
        }
        cx.env.metrics.closed.one(how);
    }
}

fn count(cx: &Cx<'_>, frame: &Result<client_frame::Frame, FrameError>) {
    let kind = match frame {
        Ok(client_frame::Frame::Hello(_)) => FrameIn::Hello,
        Ok(client_frame::Frame::Heartbeat(_)) => FrameIn::Heartbeat,
        Ok(client_frame::Frame::Request(_)) | Err(FrameError::BadRequest { .. }) => FrameIn::Request,
        Err(_) => FrameIn::Bad,
    };
    cx.env.metrics.traffic.frames_in.one(kind);
}

/// Appends a frame to the output; whether it fits the largest server frame. One that does not is taken back.
fn write(cx: &mut Cx<'_>, wire: Wire, frame: server_frame::Frame) -> bool {
    let kind = crate::metrics::FrameOut::from(&frame);
    let fits = wire.write(frame, cx.out, limits::SERVER_FRAME);
    if fits {
        cx.env.metrics.traffic.frames_out.one(kind);
    }
    fits
}
