//! A client's task: schedule, connect, serve, and again, until something ends it.

use std::sync::Arc;

use berth_proto::{
    client::{Disconnect, Hello, Welcome, client_frame, server_frame},
    code::CloseCode,
    schedule::{HeartbeatParameters, Problem, ScheduleRequest},
};
use rand::Rng;
use tokio::{
    pin,
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    client::RequestError,
    clock::from_ms,
    endpoints::Attempt,
    event::{Connected, Disconnected, Event, State, StopReason},
    keeping::{keep_cursor, keep_schedule},
    live::{Core, Live},
    plan::Plan,
    reconnect::{Next, Toward, after_close, voids_ticket},
    renewal::Renewal,
    schedule::{self, ScheduleError},
    schedulers::{Schedulers, in_line},
    store::StoredSchedule,
    token::{self, TokenError},
    transport::{Close, Connection, Incoming, Transport, TransportError},
};

/// The version of the protocol this client speaks.
const VERSION: u32 = 1;

/// What this SDK calls itself in schedule requests.
const SDK: &str = concat!("rust/", env!("CARGO_PKG_VERSION"));

/// How long closing may take, goodbye included, until a store that has not stored the last cursor or schedule is left. Room
/// for two more attempts after a failed one.
const LAST_SAVE_MS: i64 = 3_000;

/// How a connection, or an attempt at one, ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// It never came to a welcome, though somebody answered.
    Failed(String),
    /// Nobody answered.
    Unreachable(String),
    /// The gateway closed it.
    Closed(Disconnect),
    /// It broke.
    Lost(String),
    /// The gateway did not answer heartbeats.
    Silent,
    /// The client ends.
    Stop(StopReason),
}

impl Ending {
    /// From a close that no `disconnect` came before.
    pub fn closed(close: Close) -> Self {
        match close.code {
            Some(code) => {
                Self::Closed(Disconnect { code: code.into(), reason: close.reason, ..Default::default() })
            }
            None => Self::Lost("the gateway closed the connection without a word".to_owned()),
        }
    }
}

/// Drives one client.
pub(crate) struct Driver {
    core: Core,
    state: watch::Sender<State>,
    plan: Plan,
    schedulers: Schedulers,
}

impl Driver {
    pub fn new(mut core: Core, state: watch::Sender<State>, stored: Option<StoredSchedule>) -> Self {
        let first = core.options.first_scheduler;
        let first = first.unwrap_or_else(|| core.rng.random_range(0..core.options.schedulers.len()));
        Self {
            plan: Plan::new(&core.options, stored),
            schedulers: Schedulers::new(core.options.schedulers.len(), first),
            core,
            state,
        }
    }

    /// The client's life: until it is closed.
    pub async fn run(mut self) {
        let mailbox = Arc::clone(&self.core.mailbox);
        let (cursors, schedules) =
            (Arc::clone(&self.core.options.cursor), Arc::clone(&self.core.options.schedule));
        let newest = self.plan.to_store();
        let cancel = self.core.cancel.clone();
        let live = async {
            let reason = self.until_stopped().await;
            self.finish(reason);
            // A stopped client stays until it is closed: the application may still take rows.
            cancel.cancelled().await;
            mailbox.finish(true);
        };
        let too_late = async {
            cancel.cancelled().await;
            sleep(from_ms(LAST_SAVE_MS)).await;
        };
        let save = async {
            tokio::select! {
                _ = async { tokio::join!(keep_cursor(&mailbox, &cursors), keep_schedule(newest, &schedules)) } => {}
                () = too_late => {
                    tracing::warn!("the last cursor or schedule was not stored in time; rows since then come again");
                }
            }
        };
        tokio::join!(live, save);
    }

    fn finish(mut self, reason: StopReason) {
        tracing::info!(%reason, "client stopped");
        self.state.send_replace(State::Stopped(reason.clone()));
        self.core.new_sends.close();
        self.core.new_requests.close();
        for command in self.core.sends.drain().chain(self.core.requests.drain()) {
            let _ = command.reply.send(Err(RequestError::Stopped(reason.clone())));
        }
        self.core.mailbox.push(Event::Stopped(reason), None);
        self.core.mailbox.finish(false);
    }

    async fn until_stopped(&mut self) -> StopReason {
        loop {
            let cancel = self.core.cancel.clone();
            let step = match self.plan.endpoints.next(self.core.clock.now_ms()) {
                None => cancel.run_until_cancelled(self.schedule()).await,
                Some(attempt) => match cancel.run_until_cancelled(self.open(&attempt)).await {
                    None => None,
                    Some(Err(ending)) => cancel.run_until_cancelled(self.ended(ending, None)).await,
                    // The connection says goodbye when cancelled, so it watches for that itself.
                    Some(Ok((connection, welcome))) => {
                        let (ending, open_ms) = self.serve(&attempt, connection, welcome).await;
                        cancel.run_until_cancelled(self.ended(ending, Some(open_ms))).await
                    }
                },
            };
            match step {
                Some(Ok(())) => {}
                Some(Err(reason)) => return reason,
                None => return StopReason::Closed,
            }
        }
    }

    /// Connects, says hello and hears the welcome.
    async fn open(&mut self, attempt: &Attempt) -> Result<(Connection, Welcome), Ending> {
        let options = &self.core.options;
        let hello = Hello {
            version: VERSION,
            ticket: attempt.ticket.clone(),
            device_id: options.device_id.clone(),
            platform: options.platform.clone(),
            app_version: options.app_version.clone(),
            no_scheduler: self.schedulers.none_answers(),
        };
        let opening = async {
            let failed = |error: TransportError| Ending::Failed(error.to_string());
            let opened = Connection::open(&attempt.endpoint, options.encoding).await;
            let mut connection = opened.map_err(|error| match error {
                TransportError::Unreachable { .. } => Ending::Unreachable(error.to_string()),
                other => failed(other),
            })?;
            connection.queue(client_frame::Frame::Hello(hello)).map_err(failed)?;
            match connection.next().await.map_err(failed)? {
                Incoming::Frame(server_frame::Frame::Welcome(welcome)) => Ok((connection, welcome)),
                Incoming::Frame(server_frame::Frame::Disconnect(disconnect)) => {
                    Err(Ending::Closed(disconnect))
                }
                Incoming::Frame(_) => {
                    Err(Ending::Failed("the gateway did not begin with a welcome".to_owned()))
                }
                Incoming::Closed(close) if close.code.is_some() => Err(Ending::closed(close)),
                Incoming::Closed(_) => Err(Ending::Failed("the gateway closed before a welcome".to_owned())),
            }
        };
        timeout(options.attempt_timeout, opening).await.unwrap_or_else(|_| {
            let (url, within) = (&attempt.endpoint.url, options.attempt_timeout);
            Err(Ending::Unreachable(format!("{url} did not welcome us within {within:?}")))
        })
    }

    /// Serves a welcomed connection until it ends; also how long it was open, in milliseconds.
    async fn serve(&mut self, attempt: &Attempt, connection: Connection, welcome: Welcome) -> (Ending, i64) {
        let since = self.core.clock.now_ms();
        let Welcome { session_id, user_id, inbox_seq, inbox_epoch, server_time_ms, .. } = welcome;
        tracing::debug!(session_id, gateway_id = attempt.endpoint.gateway_id, "connected");
        let resync = self.core.puller.welcomed(&user_id, inbox_epoch, inbox_seq);
        self.plan.user_id.clone_from(&user_id);
        self.plan.keep();
        let connected = Connected {
            user_id,
            session_id,
            gateway_id: attempt.endpoint.gateway_id.clone(),
            transport: Transport::from_name(&attempt.endpoint.transport).unwrap_or(Transport::WebSocket),
            inbox_seq,
            inbox_epoch,
            server_time_ms,
        };
        self.core.mailbox.push(Event::Connected(connected), None);
        if let Some(resync) = resync {
            self.core.resync(resync);
        }
        self.state.send_replace(State::Connected);
        let mut heartbeat = self.plan.heartbeat;
        if welcome.heartbeat_interval_ms > 0 {
            heartbeat.interval_ms = welcome.heartbeat_interval_ms;
        }
        let ending = self.live(connection, heartbeat).await;
        self.state.send_replace(State::Connecting { last_failure: None });
        (ending, self.core.clock.now_ms() - since)
    }

    /// Serves the connection, and renews the ticket beside it.
    async fn live(&mut self, connection: Connection, heartbeat: HeartbeatParameters) -> Ending {
        let request = self.request("");
        let (options, user_id) = (self.core.options.clone(), self.plan.user_id.clone());
        let mut renewal = Renewal::new(options, request, user_id, self.schedulers.at(), &mut self.core.rng);
        let clock = self.core.clock;
        let live = Live::new(&mut self.core, connection, heartbeat).run();
        pin!(live);
        loop {
            tokio::select! {
                ending = &mut live => return ending,
                answer = renewal.next() => {
                    tracing::debug!(schedule_id = answer.schedule_id, "the ticket was renewed");
                    self.schedulers.answered();
                    self.plan.renewed(&answer, clock.now_ms());
                }
            }
        }
    }

    /// Decides what follows an end, and waits as long as it takes.
    async fn ended(&mut self, ending: Ending, open_ms: Option<i64>) -> Result<(), StopReason> {
        let stable = open_ms.is_some_and(|open_ms| self.plan.reconnect.session_ended(open_ms));
        if stable {
            self.plan.endpoints.stable();
            self.schedulers.answered();
        }
        let now_ms = self.core.clock.now_ms();
        let before = self.plan.endpoints.place().map(str::to_owned);
        let (code, reason, retry_after_ms) = match ending {
            Ending::Stop(reason) => return Err(reason),
            Ending::Failed(reason) => {
                self.plan.endpoints.failed();
                (None, reason, 0)
            }
            Ending::Unreachable(reason) => {
                self.plan.endpoints.failed_altogether();
                (None, reason, 0)
            }
            Ending::Silent => {
                self.plan.endpoints.failed();
                (None, "the gateway does not answer heartbeats".to_owned(), 0)
            }
            Ending::Lost(reason) => {
                self.plan.endpoints.suspect();
                if stable {
                    self.plan.endpoints.once_more(now_ms);
                }
                (None, reason, 0)
            }
            Ending::Closed(disconnect) => {
                let follow_at_once = self.closed(&disconnect)?;
                let Disconnect { code, reason, retry_after_ms, .. } = disconnect;
                if follow_at_once {
                    tracing::debug!(code, reason, "following a redirect");
                    return Ok(());
                }
                let reason = format!("closed with {code}: {reason}");
                if in_line_at_gateway(code, retry_after_ms) {
                    let wait_ms = self.in_line_at_gateway(retry_after_ms, now_ms);
                    self.pause(u16::try_from(code).ok(), reason, wait_ms).await;
                    return Ok(());
                }
                (u16::try_from(code).ok(), reason, retry_after_ms)
            }
        };
        let stays = before.is_some() && before.as_deref() == self.plan.endpoints.here(now_ms);
        let toward = if stays { Toward::Same } else { Toward::Another };
        let wait_ms = self.plan.reconnect.wait(toward, retry_after_ms, &mut self.core.rng);
        self.pause(code, reason, wait_ms).await;
        Ok(())
    }

    /// How long to stand in line where a gateway said so. Who would have no ticket at the end of it asks a scheduler instead.
    fn in_line_at_gateway(&mut self, retry_after_ms: u32, now_ms: i64) -> i64 {
        let Plan { reconnect, endpoints, .. } = &mut self.plan;
        let wait_ms = reconnect.told(retry_after_ms, &mut self.core.rng);
        if endpoints.ticket_until(now_ms.saturating_add(wait_ms)) {
            return wait_ms;
        }
        endpoints.forget();
        reconnect.wait(Toward::Another, 0, &mut self.core.rng)
    }

    /// Decides where to go after a close code. Whether to go there without waiting.
    fn closed(&mut self, disconnect: &Disconnect) -> Result<bool, StopReason> {
        let code = u16::try_from(disconnect.code).ok();
        let next = after_close(code);
        let Plan { endpoints, reconnect, .. } = &mut self.plan;
        if code == Some(CloseCode::Unauthenticated.number()) && endpoints.doubtful() {
            reconnect.no_spread();
            if !endpoints.refused() {
                self.plan.forget_ticket();
            }
            return Ok(false);
        }
        if next == Next::Stop {
            if voids_ticket(code) {
                self.plan.forget_ticket();
            }
            let reason = disconnect.reason.clone();
            return Err(StopReason::Gateway { code: code.unwrap_or_default(), reason });
        }
        if !disconnect.redirect.is_empty() && endpoints.redirected(disconnect) {
            // The place kept there is not kept for long.
            reconnect.no_spread();
            return Ok(disconnect.retry_after_ms == 0 && matches!(next, Next::Redirect | Next::Another));
        }
        match next {
            Next::Redirect | Next::Schedule => {
                reconnect.no_spread();
                endpoints.forget();
            }
            Next::Another if in_line_at_gateway(disconnect.code, disconnect.retry_after_ms) => {
                endpoints.busy();
            }
            Next::Another => endpoints.failed_altogether(),
            Next::Same | Next::Stop => endpoints.suspect(),
        }
        Ok(false)
    }

    async fn pause(&mut self, code: Option<u16>, reason: String, wait_ms: i64) {
        let wait = from_ms(wait_ms);
        tracing::debug!(reason, ?wait, "not connected");
        self.state.send_replace(State::Connecting { last_failure: Some(reason.clone()) });
        self.core.mailbox.push(Event::Disconnected(Disconnected { code, reason, retry_in: wait }), None);
        sleep(wait).await;
    }

    /// Asks for a schedule. If it was in vain, waits, or goes to a bootstrap gateway where no scheduler answers at all.
    async fn schedule(&mut self) -> Result<(), StopReason> {
        let Err(error) = self.ask().await? else { return Ok(()) };
        let reason = error.to_string();
        let now_ms = self.core.clock.now_ms();
        if self.schedulers.none_answers()
            && (self.plan.endpoints.resume(now_ms) || self.plan.bootstrap(&self.core.options))
        {
            tracing::debug!(reason, "no scheduler answers: on with the list, or to a bootstrap gateway");
            self.state.send_replace(State::Connecting { last_failure: Some(reason) });
            return Ok(());
        }
        let (reconnect, rng) = (&mut self.plan.reconnect, &mut self.core.rng);
        let wait_ms = match error {
            ScheduleError::Refused(problem) => match in_line(&problem) {
                Some(told_ms) => reconnect.told(told_ms, rng),
                None => reconnect.wait(Toward::Another, problem.retry_after_ms.unwrap_or_default(), rng),
            },
            _ => reconnect.wait(Toward::Another, 0, rng),
        };
        self.pause(None, reason, wait_ms).await;
        Ok(())
    }

    /// Gets a token and a schedule. A token that is refused is replaced once, if the provider has another.
    async fn ask(&mut self) -> Result<Result<(), ScheduleError>, StopReason> {
        if !self.core.options.user_id.is_empty() {
            let user_id = self.core.options.user_id.clone();
            if self.plan.restore(Some(&user_id), self.core.clock.now_ms()) {
                return Ok(Ok(()));
            }
        }
        let mut refused: Option<(String, Box<Problem>)> = None;
        loop {
            let rejected = refused.as_ref().map(|(token, _)| token.as_str());
            let token = match token::ask(&self.core.options, rejected).await {
                Ok(token) => token,
                Err(TokenError::Permanent(problem)) => return Err(StopReason::Token(problem)),
                Err(TokenError::Temporary(problem)) => {
                    self.schedulers.cannot_ask();
                    return Ok(Err(ScheduleError::Unreachable(format!("no user token: {problem}"))));
                }
            };
            let user_id = token::user_of(&token);
            if self.plan.restore(user_id.as_deref(), self.core.clock.now_ms()) {
                return Ok(Ok(()));
            }
            if !self.plan.is_of(user_id) {
                return Err(StopReason::Token("the user token is of another user".to_owned()));
            }
            if let Some((rejected, problem)) = &refused
                && *rejected == token
            {
                return Err(self.refused_for_good(problem));
            }
            let scheduler = &self.core.options.schedulers[self.schedulers.at()];
            let request = self.request(self.schedulers.queue_token());
            match schedule::fetch_within(self.schedulers.patience(), scheduler, &token, &request).await {
                Ok(answer) => return Ok(self.scheduled(&answer)),
                Err(error) if error.unanswered() => {
                    if !self.schedulers.unanswered() {
                        return Ok(Err(error));
                    }
                    tracing::debug!(%error, "a place in the queue is not to be lost: the next scheduler is asked at once");
                }
                Err(ScheduleError::Refused(problem)) if matches!(problem.status, 401 | 403) => {
                    self.schedulers.answered();
                    if refused.is_some() {
                        return Err(self.refused_for_good(&problem));
                    }
                    refused = Some((token, problem));
                }
                Err(ScheduleError::Refused(problem)) if problem.status == 400 => {
                    return Err(self.refused_for_good(&problem));
                }
                Err(ScheduleError::Refused(problem)) => {
                    self.schedulers.refused(&problem);
                    return Ok(Err(ScheduleError::Refused(problem)));
                }
                Err(error) => {
                    self.schedulers.answered();
                    self.schedulers.pass();
                    return Ok(Err(error));
                }
            }
        }
    }

    /// A scheduler's answer that no repeat would change. Where it speaks of the user, and is a scheduler's, not a proxy's, the
    /// ticket is of no use in a later run either.
    fn refused_for_good(&mut self, problem: &Problem) -> StopReason {
        if matches!(problem.status, 401 | 403) && !problem.reason.is_empty() {
            self.plan.forget_ticket();
        }
        let Problem { status, reason, detail, .. } = problem.clone();
        StopReason::Scheduler { status, reason, detail }
    }

    fn request(&self, queue_token: &str) -> ScheduleRequest {
        let options = &self.core.options;
        ScheduleRequest {
            device_id: options.device_id.clone(),
            platform: options.platform.clone(),
            app_version: options.app_version.clone(),
            sdk: SDK.to_owned(),
            transports: options.transports.iter().map(|transport| transport.as_str().to_owned()).collect(),
            region: options.region.clone(),
            attempt: self.plan.endpoints.asked(),
            failed: self.plan.endpoints.failed_gateways(),
            queue_token: queue_token.to_owned(),
            ..Default::default()
        }
    }

    fn scheduled(&mut self, answer: &schedule::ScheduleAnswer) -> Result<(), ScheduleError> {
        tracing::debug!(schedule_id = answer.schedule_id, endpoints = answer.endpoints.len(), "scheduled");
        self.schedulers.scheduled();
        if self.plan.scheduled(answer, self.core.clock.now_ms()) {
            return Ok(());
        }
        self.schedulers.pass();
        Err(ScheduleError::BadAnswer("it has no endpoint of the transports asked for".to_owned()))
    }
}

/// Whether a gateway that closes has more to do than it takes now, and has said when to come.
fn in_line_at_gateway(code: u32, retry_after_ms: u32) -> bool {
    code == u32::from(CloseCode::Overloaded.number()) && retry_after_ms > 0
}
