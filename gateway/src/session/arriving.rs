//! A connection that is not identified yet: from its first byte to its welcome.

use std::{net::IpAddr, time::Duration};

use berth_proto::{
    client::{ConversationSeq, Hello, Welcome, client_frame, server_frame},
    code::CloseCode,
    frame::FrameError,
    id, limits,
    ticket::TicketError,
    wire::{self as link, MovePurpose, to_logic},
};

use rand::Rng;

use super::{
    Cx, Env, Goodbye, Identified, Identity,
    grace::{self, Worth},
    identified, revoked,
    wire::Wire,
    write,
};
use crate::{
    clock::Now,
    config::Timeouts,
    door::Shut,
    metrics::{Grace, Handshake, Limited},
    notify::Outlook,
    rendezvous,
};

/// What is known of it; dropped with its welcome.
pub(super) struct Arriving {
    peer: IpAddr,
    accepted_ms: i64,
    deadline_ms: i64,
    surplus: bool,
    /// It showed a genuine ticket of its own.
    genuine: bool,
    step: Step,
    /// The scheduler that is asked where it belongs, by its index.
    asked: Option<usize>,
}

enum Step {
    /// For the first bytes, then for a complete hello.
    Hello,
    /// For logic to open the session.
    Opening(Box<Opening>),
    /// For a scheduler to say where it belongs.
    Redirecting(Why),
    /// For nothing more: it was told where it belongs.
    Redirected,
}

/// Why a scheduler is asked where it belongs.
enum Why {
    /// Its ticket is for other gateways.
    Stray,
    /// This gateway is being emptied.
    Drained,
    /// It may be better off elsewhere; without an answer it is let in.
    Doubted(Box<Admitted>),
}

/// What it showed in its hello.
struct Shown {
    identity: Identity,
    ticket: link::Ticket,
    /// It reaches no scheduler: it could not do better than come here.
    no_scheduler: bool,
}

/// Of a ticket that would let it in.
struct Admitted {
    identity: Identity,
    schedule_id: u64,
    auth_expires_at_ms: i64,
    away: bool,
    /// How far its ticket is accepted only because no scheduler is linked.
    grace: Option<Grace>,
}

struct Opening {
    identity: Identity,
    logic: u8,
    auth_deadline_ms: i64,
    /// How far its ticket is accepted only because no scheduler is linked.
    grace: Option<Grace>,
    away: bool,
    /// Notifies may overtake the answer.
    outlook: Outlook,
}

impl Arriving {
    pub(super) fn new(now: Now, timeouts: &Timeouts, peer: IpAddr, surplus: bool) -> Self {
        let deadline_ms = after(now, timeouts.hello);
        Self {
            peer,
            accepted_ms: now.steady_ms,
            deadline_ms,
            surplus,
            genuine: false,
            step: Step::Hello,
            asked: None,
        }
    }

    pub(super) fn surplus(&self) -> bool {
        self.surplus
    }

    /// Whether a scheduler let it in somewhere: nobody else can have it count as lost.
    pub(super) fn genuine(&self) -> bool {
        self.genuine
    }

    /// Whether it waits for another role, and bytes of the peer for it.
    pub(super) fn waits(&self) -> bool {
        !matches!(self.step, Step::Hello)
    }

    pub(super) fn redirecting(&self) -> bool {
        matches!(self.step, Step::Redirecting(_))
    }

    pub(super) fn asked(&mut self, scheduler: usize) {
        self.asked = Some(scheduler);
    }

    /// Whether the logic with that index is opening its session.
    pub(super) fn opens_at(&self, logic: u8) -> bool {
        matches!(&self.step, Step::Opening(opening) if opening.logic == logic)
    }

    pub(super) fn deadline_ms(&self) -> i64 {
        self.deadline_ms
    }

    pub(super) fn on_frame(
        &mut self,
        cx: &mut Cx<'_>,
        wire: Wire,
        frame: Result<client_frame::Frame, FrameError>,
    ) -> Result<(), Goodbye> {
        let bad = |problem: String| Goodbye::new(CloseCode::BadFrame).because(problem);
        match frame {
            Ok(client_frame::Frame::Hello(hello)) => self.on_hello(cx, wire, hello),
            Ok(_) | Err(FrameError::BadRequest { .. }) => Err(bad("the first frame is no hello".to_owned())),
            Err(problem) => Err(bad(problem.to_string())),
        }
    }

    fn on_hello(&mut self, cx: &mut Cx<'_>, wire: Wire, mut hello: Hello) -> Result<(), Goodbye> {
        check_hello(&hello)?;
        if cx.env.draining {
            let retry_after_ms = cx.rng.random_range(0..=cx.env.spread_ms);
            return Err(Goodbye::new(CloseCode::Draining).retry_after(retry_after_ms));
        }
        if cx.env.verifier.is_empty() {
            return Err(Goodbye::overloaded(cx.rng).because("no scheduler has told its keys yet"));
        }
        let (mut ticket, key) = check_ticket(cx.env, &hello)?;
        if ticket.auth_expires_at_ms <= cx.now.wall_ms {
            return Err(Goodbye::expired(cx, "the user's authentication expired"));
        }
        self.genuine = true;
        complete(&mut hello, &mut ticket);
        let identity = Identity::new(&ticket.user_id, ticket.auth_issued_at_ms, key, &hello);
        revoked::check(cx.env, &identity)?;
        let ask = identity.ask(cx.handle, wire, self.peer, ticket.auth_expires_at_ms);
        let grace = match grace::worth(&ticket, cx.env, cx.now.wall_ms, hello.no_scheduler) {
            Worth::Good => None,
            Worth::Grace(grace) => Some(grace),
            Worth::Ask => {
                enter(cx, &ticket)?;
                self.ask_redirect(cx, MovePurpose::Stray, ask, Why::Stray);
                return Ok(());
            }
            Worth::Expired { late_ms } => {
                return Err(Goodbye::expired(cx, TicketError::Expired { late_ms }.to_string()));
            }
        };
        enter(cx, &ticket)?;
        cx.env.door.shown(ticket.issued_at_ms, cx.now.wall_ms);
        self.place(cx, Shown { identity, ticket, no_scheduler: hello.no_scheduler }, ask, grace)
    }

    /// Its ticket is good here: it is let in, unless it is better off elsewhere.
    fn place(
        &mut self,
        cx: &mut Cx<'_>,
        Shown { identity, ticket, no_scheduler }: Shown,
        ask: link::RedirectAsk,
        grace: Option<Grace>,
    ) -> Result<(), Goodbye> {
        if cx.env.evacuating {
            let pool = cx.env.to_pool.to_string();
            self.ask_redirect(cx, MovePurpose::Drain, link::RedirectAsk { pool, ..ask }, Why::Drained);
            return Ok(());
        }
        let away = !ticket.home.is_empty() && ticket.home != cx.env.region;
        let link::Ticket { schedule_id, auth_expires_at_ms, .. } = ticket;
        let admitted = Admitted { identity, schedule_id, auth_expires_at_ms, away, grace };
        if grace.is_none() && !no_scheduler && doubted(&ticket, away, cx.env) {
            self.ask_redirect(cx, MovePurpose::Home, ask, Why::Doubted(Box::new(admitted)));
            return Ok(());
        }
        self.open(cx, admitted)
    }

    fn ask_redirect(&mut self, cx: &mut Cx<'_>, purpose: MovePurpose, ask: link::RedirectAsk, why: Why) {
        cx.ups.redirects.push(link::RedirectAsk { purpose: purpose.into(), ..ask });
        self.deadline_ms = after(cx.now, cx.env.timeouts.redirect);
        self.step = Step::Redirecting(why);
    }

    fn open(&mut self, cx: &mut Cx<'_>, admitted: Admitted) -> Result<(), Goodbye> {
        let Admitted { identity, schedule_id, auth_expires_at_ms, away, grace } = admitted;
        if grace.is_none() {
            cx.ups.used_tickets.push(schedule_id);
        }
        let Some(logic) = rendezvous::choose(identity.user(), &cx.env.logics) else {
            return Err(Goodbye::overloaded(cx.rng).because("no logic is attached"));
        };
        let open = identity.open(cx.handle, 0, cx.now.steady_ms);
        cx.ups.logic.push((logic, to_logic::Message::Open(open)));
        self.deadline_ms = after(cx.now, cx.env.timeouts.open);
        let auth_deadline_ms = on_steady_scale(cx.now, auth_expires_at_ms);
        let opening = Opening { identity, logic, auth_deadline_ms, grace, away, outlook: Outlook::default() };
        self.step = Step::Opening(Box::new(opening));
        Ok(())
    }

    /// Logic's answer: the session, welcomed, or why there is none.
    pub(super) fn on_opened(
        &mut self,
        cx: &mut Cx<'_>,
        wire: Wire,
        opened: link::SessionOpened,
    ) -> Result<Option<Identified>, Goodbye> {
        let opening = match std::mem::replace(&mut self.step, Step::Hello) {
            Step::Opening(opening) => *opening,
            step => {
                self.step = step;
                return Ok(None);
            }
        };
        if let Some(error) = opened.error {
            let code = CloseCode::from_number(opened.close_code).unwrap_or(CloseCode::Internal);
            return Err(Goodbye::new(code).because(error.message).retry_after(error.retry_after_ms));
        }
        let good = revoked::check(cx.env, &opening.identity)
            .and_then(|()| revoked::check_key(cx.env, &opening.identity));
        if let Err(goodbye) = good {
            // Its session is there: it is closed as one that nobody was told of.
            self.step = Step::Opening(Box::new(opening));
            return Err(goodbye);
        }
        let Opening { identity, logic, auth_deadline_ms, grace, away, outlook: overtaken } = opening;
        let welcome = Welcome {
            session_id: format!("{:016x}{:016x}", cx.env.boot, cx.handle),
            user_id: identity.user().to_owned(),
            heartbeat_interval_ms: cx.env.heartbeat.interval_ms,
            server_time_ms: cx.now.wall_ms,
            inbox_seq: opened.inbox_seq,
            inbox_epoch: opened.inbox_epoch,
            conversations: opened.conversations,
        };
        let mut outlook = Outlook::told(opened.inbox_seq);
        outlook.absorb(overtaken);
        write(cx, wire, server_frame::Frame::Welcome(welcome));
        let metrics = &cx.env.metrics;
        metrics.handshakes.one(Handshake::Welcomed);
        let took_ms = cx.now.steady_ms - self.accepted_ms;
        metrics.handshake_seconds.record(seconds(took_ms));
        metrics.health.welcomed(took_ms);
        cx.env.levels.sessions.up();
        if let Some(grace) = grace {
            metrics.grace_sessions.one(grace);
            if cx.env.outage.happens(cx.now.steady_ms) {
                let grace_ms = cx.env.grace_ms;
                tracing::info!(
                    grace_ms,
                    "no scheduler is linked: genuine tickets of other gateways, or that expired within the grace, are accepted"
                );
            }
        }
        Ok(Some(Identified::new(identified::Opened {
            identity,
            logic,
            epoch: opened.session_epoch,
            inbox_epoch: opened.inbox_epoch,
            outlook,
            auth_deadline_ms,
            now_ms: cx.now.steady_ms,
            away,
        })))
    }

    pub(super) fn notify(&mut self, inbox_seq: u64, conversations: &[ConversationSeq]) {
        if let Step::Opening(opening) = &mut self.step {
            opening.outlook.merge(inbox_seq, conversations);
        }
    }

    /// A scheduler's answer, if it waits for one: it goes there, or is let in after all.
    pub(super) fn on_redirect(
        &mut self,
        cx: &mut Cx<'_>,
        answer: link::RedirectAnswer,
    ) -> Result<(), Goodbye> {
        let link::RedirectAnswer { endpoints, ticket, ticket_expires_at_ms, .. } = answer;
        let here = endpoints.first().is_some_and(|first| first.gateway_id == cx.env.gateway_id);
        let code = match &self.step {
            Step::Redirecting(Why::Stray) => CloseCode::Moved,
            Step::Redirecting(_) if endpoints.is_empty() => return self.undirected(cx),
            Step::Redirecting(Why::Drained) => CloseCode::Draining,
            // A scheduler that does not know the question says so that it is well here.
            Step::Redirecting(Why::Doubted(_)) if here => return self.undirected(cx),
            Step::Redirecting(Why::Doubted(_)) => CloseCode::Moved,
            _ => return Ok(()),
        };
        self.step = Step::Redirected;
        Err(Goodbye::new(code).redirect(endpoints, ticket, ticket_expires_at_ms))
    }

    /// No scheduler says where it is to go.
    pub(super) fn undirected(&mut self, cx: &mut Cx<'_>) -> Result<(), Goodbye> {
        match std::mem::replace(&mut self.step, Step::Hello) {
            Step::Redirecting(Why::Doubted(admitted)) => self.open(cx, *admitted),
            Step::Redirecting(Why::Drained) => {
                let retry_after_ms = cx.rng.random_range(0..=cx.env.spread_ms);
                Err(Goodbye::new(CloseCode::Draining).retry_after(retry_after_ms))
            }
            _ => Err(Goodbye::new(CloseCode::TicketExpired)
                .because("no scheduler said in time where the client belongs; ask one")),
        }
    }

    /// Logic never saw the OpenSession: there is nothing to close later.
    pub(super) fn forget_opening(&mut self) {
        self.step = Step::Hello;
    }

    /// The deadline passed.
    pub(super) fn expired(&mut self, cx: &mut Cx<'_>) -> Result<(), Goodbye> {
        match self.step {
            Step::Hello => Err(Goodbye::new(CloseCode::HandshakeTimeout)),
            Step::Opening(_) => Err(Goodbye::overloaded(cx.rng).because("logic did not answer in time")),
            Step::Redirecting(_) | Step::Redirected => {
                cx.ups.silent.extend(self.asked.take());
                self.undirected(cx)
            }
        }
    }

    /// The connection ends before its welcome.
    pub(super) fn end(&mut self, cx: &mut Cx<'_>) {
        let redirected = matches!(self.step, Step::Redirected);
        let result = if redirected { Handshake::Redirected } else { Handshake::Refused };
        cx.env.metrics.handshakes.one(result);
        if let Step::Opening(opening) = std::mem::replace(&mut self.step, Step::Hello) {
            // Logic may open it all the same, and nobody else would close it. Said behind the OpenSession, it is done behind it.
            let Opening { identity, logic, .. } = *opening;
            cx.ups.logic.push((logic, to_logic::Message::Close(identity.close_unopened(cx.handle))));
        }
    }
}

/// Only with a ticket that would let him in: whoever has none would make all the others wait. To verify one is a small part of a
/// handshake, and connections are accepted at a rate, too.
fn enter(cx: &mut Cx<'_>, ticket: &link::Ticket) -> Result<(), Goodbye> {
    let shut = match cx.env.door.enter(cx.now.steady_ms, good_for_ms(cx, ticket)) {
        Ok(()) => return Ok(()),
        Err(shut) => shut,
    };
    cx.env.metrics.limited.one(Limited::Handshakes);
    let wait_ms = match shut {
        Shut::Place(wait_ms) => wait_ms,
        // Whoever has no place of his own is not to come at one time with all the others who have none.
        Shut::Beyond(longest_ms) => cx.rng.random_range(longest_ms / 2..=longest_ms),
    };
    Err(Goodbye::in_line(wait_ms).because("more clients come than this gateway takes in a second"))
}

/// For how long the ticket would still let him in, in milliseconds.
fn good_for_ms(cx: &Cx<'_>, ticket: &link::Ticket) -> i64 {
    let left_ms = ticket.expires_at_ms.saturating_sub(cx.now.wall_ms);
    // Past its time it is good for the grace, or it would have been refused.
    if left_ms > 0 { left_ms } else { left_ms.saturating_add(cx.env.grace_ms) }
}

/// Whether its user may belong elsewhere. Served elsewhere on purpose it stays; so does whoever walked the list of a ticket to
/// here: what is before this gateway failed, and it would be sent back there. But not by a ticket that is older than what
/// decides where users belong, nor served elsewhere by one from before homes came or went.
fn doubted(ticket: &link::Ticket, away: bool, env: &Env) -> bool {
    let first = ticket.gateway_ids.first().is_some_and(|first| *first == env.gateway_id);
    let on_purpose = ticket.elsewhere && ticket.issued_at_ms >= env.homes_ms;
    env.placed && ((away && first && !on_purpose) || ticket.issued_at_ms < env.placed_ms)
}

fn check_hello(hello: &Hello) -> Result<(), Goodbye> {
    if hello.version > 1 {
        let problem = format!("version {} of the protocol; this gateway speaks 1", hello.version);
        return Err(Goodbye::new(CloseCode::UnsupportedVersion).because(problem));
    }
    for (field, text) in [("platform", &hello.platform), ("appVersion", &hello.app_version)] {
        if text.len() > limits::CLIENT_TEXT {
            let problem = format!("hello.{field} has {} bytes; at most 64 are allowed", text.len());
            return Err(Goodbye::new(CloseCode::BadFrame).because(problem));
        }
    }
    Ok(())
}

/// What the client said of itself to a scheduler and not here: where it belongs is not to depend on whom of them it told.
fn complete(hello: &mut Hello, ticket: &mut link::Ticket) {
    let told =
        [(&mut hello.platform, &mut ticket.platform), (&mut hello.app_version, &mut ticket.app_version)];
    for (here, before) in told {
        if here.is_empty() && before.len() <= limits::CLIENT_TEXT {
            *here = std::mem::take(before);
        }
    }
}

/// The ticket, if it is genuine, of this device and of a user. Its time, his login's, and for which gateways it is, are not asked
/// here. With the tag of its key.
fn check_ticket(env: &Env, hello: &Hello) -> Result<(link::Ticket, u32), Goodbye> {
    let refused = |code, problem: String| Err(Goodbye::new(code).because(problem));
    let (ticket, key) = match env.verifier.genuine_of(&hello.ticket) {
        Ok(genuine) => genuine,
        // That says nothing of the user: keys come and go, and this gateway may not have heard of one yet.
        Err(problem @ TicketError::UnknownKey) => {
            return refused(CloseCode::TicketExpired, format!("{problem}; ask a scheduler for a new one"));
        }
        Err(problem) => return refused(CloseCode::Unauthenticated, problem.to_string()),
    };
    if ticket.device_id != hello.device_id || id::check(&ticket.device_id).is_err() {
        return refused(CloseCode::Unauthenticated, "the ticket is of another device".to_owned());
    }
    if id::check(&ticket.user_id).is_err() || ticket.user_id == id::SYSTEM_USER {
        return refused(CloseCode::Unauthenticated, "the ticket's user may not connect".to_owned());
    }
    Ok((ticket, key))
}

fn after(now: Now, span: Duration) -> i64 {
    now.steady_ms.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))
}

fn on_steady_scale(now: Now, wall_ms: i64) -> i64 {
    now.steady_ms.saturating_add(wall_ms.saturating_sub(now.wall_ms))
}

/// Milliseconds as a histogram's seconds; spans here are far below 2^52 ms.
#[expect(clippy::cast_precision_loss, reason = "a span of milliseconds")]
pub(super) fn seconds(ms: i64) -> f64 {
    ms as f64 / 1_000.0
}
