//! A client's task: schedule, connect, serve, and again, until something ends it.

use std::{sync::Arc, time::Duration};

use berth_proto::{
    client::{Disconnect, Hello, Welcome, client_frame, server_frame},
    code::CloseCode,
    schedule::{HeartbeatParameters, Problem, ScheduleRequest},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    bootstrap,
    client::RequestError,
    clock::from_ms,
    endpoints::{Attempt, Endpoints},
    event::{Connected, Disconnected, Event, State, StopReason},
    http,
    keeping::{keep_cursor, keep_schedule},
    live::{Core, Live},
    reconnect::{Next, Reconnect, after_close},
    schedule::{self, ScheduleError},
    store::StoredSchedule,
    token::{self, TokenError},
    transport::{Close, Connection, Incoming, Transport, TransportError},
};

/// The version of the protocol this client speaks.
const VERSION: u32 = 1;

/// What this SDK calls itself in schedule requests.
const SDK: &str = concat!("rust/", env!("CARGO_PKG_VERSION"));

/// Why a scheduler refuses a client for whom it has a place in its queue.
const OVERLOADED: &str = "OVERLOADED";

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
    endpoints: Endpoints,
    reconnect: Reconnect,
    heartbeat: HeartbeatParameters,
    /// Which scheduler to ask.
    scheduler: usize,
    /// Asks in a row that no scheduler answered.
    unanswered: usize,
    /// Keeps this client's place in the schedulers' queue; empty: it has none.
    queue_token: String,
    /// Of an earlier run, until it is known whose it is.
    stored: Option<StoredSchedule>,
    /// Whom the gateways welcomed; empty: nobody yet.
    user_id: String,
    /// What is to be stored.
    kept: watch::Sender<Option<StoredSchedule>>,
}

impl Driver {
    pub fn new(core: Core, state: watch::Sender<State>, stored: Option<StoredSchedule>) -> Self {
        Self {
            endpoints: Endpoints::new(core.options.transports.clone()),
            core,
            state,
            reconnect: Reconnect::default(),
            heartbeat: HeartbeatParameters::default(),
            scheduler: 0,
            unanswered: 0,
            queue_token: String::new(),
            kept: watch::Sender::new(stored.clone()),
            stored,
            user_id: String::new(),
        }
    }

    /// The client's life: until it is closed.
    pub async fn run(mut self) {
        let mailbox = Arc::clone(&self.core.mailbox);
        let (cursors, schedules) =
            (Arc::clone(&self.core.options.cursor), Arc::clone(&self.core.options.schedule));
        let newest = self.kept.subscribe();
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
            let step = match self.endpoints.next(self.core.clock.now_ms()) {
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
            no_scheduler: self.no_scheduler(),
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
        self.user_id.clone_from(&user_id);
        self.keep();
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
        let mut heartbeat = self.heartbeat;
        if welcome.heartbeat_interval_ms > 0 {
            heartbeat.interval_ms = welcome.heartbeat_interval_ms;
        }
        let ending = Live::new(&mut self.core, connection, heartbeat).run().await;
        self.state.send_replace(State::Connecting { last_failure: None });
        (ending, self.core.clock.now_ms() - since)
    }

    /// Decides what follows an end, and waits as long as it takes.
    async fn ended(&mut self, ending: Ending, open_ms: Option<i64>) -> Result<(), StopReason> {
        if open_ms.is_some_and(|open_ms| self.reconnect.session_ended(open_ms)) {
            self.endpoints.stable();
        }
        let (code, reason, retry_after_ms) = match ending {
            Ending::Stop(reason) => return Err(reason),
            Ending::Failed(reason) => {
                self.endpoints.failed();
                (None, reason, 0)
            }
            Ending::Unreachable(reason) => {
                self.endpoints.failed_altogether();
                (None, reason, 0)
            }
            Ending::Silent => {
                self.endpoints.failed();
                (None, "the gateway does not answer heartbeats".to_owned(), 0)
            }
            Ending::Lost(reason) => {
                self.endpoints.suspect();
                (None, reason, 0)
            }
            Ending::Closed(disconnect) => {
                let follow_at_once = self.closed(&disconnect)?;
                let Disconnect { code, reason, retry_after_ms, .. } = disconnect;
                if follow_at_once {
                    tracing::debug!(code, reason, "following a redirect");
                    return Ok(());
                }
                (u16::try_from(code).ok(), format!("closed with {code}: {reason}"), retry_after_ms)
            }
        };
        self.pause(code, reason, retry_after_ms).await;
        Ok(())
    }

    /// Decides where to go after a close code. Whether to go there without waiting.
    fn closed(&mut self, disconnect: &Disconnect) -> Result<bool, StopReason> {
        let code = u16::try_from(disconnect.code).ok();
        let next = after_close(code);
        if code == Some(CloseCode::Unauthenticated.number()) && self.endpoints.doubtful() {
            self.endpoints.forget_ticket();
            self.keep();
            return Ok(false);
        }
        if next == Next::Stop {
            let reason = disconnect.reason.clone();
            return Err(StopReason::Gateway { code: code.unwrap_or_default(), reason });
        }
        if !disconnect.redirect.is_empty() && self.endpoints.redirected(disconnect) {
            return Ok(next == Next::Redirect && disconnect.retry_after_ms == 0);
        }
        match next {
            Next::Redirect | Next::Schedule => self.endpoints.forget(),
            Next::Another => self.endpoints.failed_altogether(),
            Next::Same | Next::Stop => self.endpoints.suspect(),
        }
        Ok(false)
    }

    async fn pause(&mut self, code: Option<u16>, reason: String, retry_after_ms: u32) {
        let wait = from_ms(self.reconnect.wait(retry_after_ms, &mut self.core.rng));
        tracing::debug!(reason, ?wait, "not connected");
        self.state.send_replace(State::Connecting { last_failure: Some(reason.clone()) });
        self.core.mailbox.push(Event::Disconnected(Disconnected { code, reason, retry_in: wait }), None);
        sleep(wait).await;
    }

    /// Asks a scheduler once. If it was in vain, waits, or goes to a bootstrap gateway where no scheduler answers at all.
    async fn schedule(&mut self) -> Result<(), StopReason> {
        let (reason, retry_after_ms) = match self.ask().await? {
            Ok(()) => return Ok(()),
            Err(ScheduleError::Refused(problem)) => {
                let retry_after_ms = problem.retry_after_ms.unwrap_or_default();
                // Whatever else a scheduler says, a place that another one gave stays good.
                if problem.reason == OVERLOADED {
                    self.queue_token.clone_from(&problem.queue_token);
                }
                (ScheduleError::Refused(problem).to_string(), retry_after_ms)
            }
            Err(error) => (error.to_string(), 0),
        };
        self.scheduler = self.scheduler.wrapping_add(1);
        if self.no_scheduler() && self.bootstrap() {
            tracing::debug!(reason, "no scheduler answers: on to a bootstrap gateway");
            self.state.send_replace(State::Connecting { last_failure: Some(reason) });
            return Ok(());
        }
        self.pause(None, reason, retry_after_ms).await;
        Ok(())
    }

    /// Gets a token and a schedule. A token that is refused is replaced once, if the provider has another.
    async fn ask(&mut self) -> Result<Result<(), ScheduleError>, StopReason> {
        if !self.core.options.user_id.is_empty() {
            let user_id = self.core.options.user_id.clone();
            if self.restore(Some(&user_id)) {
                return Ok(Ok(()));
            }
        }
        let mut refused: Option<(String, Box<Problem>)> = None;
        loop {
            let rejected = refused.as_ref().map(|(token, _)| token.as_str());
            let token = match self.token(rejected).await {
                Ok(token) => token,
                Err(TokenError::Permanent(problem)) => return Err(StopReason::Token(problem)),
                Err(TokenError::Temporary(problem)) => {
                    // Without a token no scheduler can be asked, which is as good as none.
                    self.unanswered = self.unanswered.saturating_add(1);
                    return Ok(Err(ScheduleError::Unreachable(format!("no user token: {problem}"))));
                }
            };
            if self.restore(token::user_of(&token).as_deref()) {
                return Ok(Ok(()));
            }
            if let Some((rejected, problem)) = &refused
                && *rejected == token
            {
                return Err(refusal(problem));
            }
            let options = &self.core.options;
            let schedulers = &options.schedulers;
            let scheduler = &schedulers[self.scheduler % schedulers.len()];
            let within = patience(schedulers.len(), self.unanswered);
            let answer = schedule::fetch_within(within, scheduler, &token, &self.request()).await;
            self.unanswered = match &answer {
                Err(error) if error.unanswered() => self.unanswered.saturating_add(1),
                _ => 0,
            };
            match answer {
                Ok(answer) => return Ok(self.scheduled(&answer)),
                Err(ScheduleError::Refused(problem)) if matches!(problem.status, 401 | 403) => {
                    if refused.is_some() {
                        return Err(refusal(&problem));
                    }
                    refused = Some((token, problem));
                }
                Err(ScheduleError::Refused(problem)) if problem.status == 400 => {
                    return Err(refusal(&problem));
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Whether each scheduler was asked and none answered.
    fn no_scheduler(&self) -> bool {
        self.unanswered >= self.core.options.schedulers.len()
    }

    /// Goes to the next bootstrap gateway; where none is configured, those of the last list are. `false`: there is nothing to go
    /// there with.
    fn bootstrap(&mut self) -> bool {
        let options = &self.core.options;
        let configured = options.bootstrap_gateways.iter().flat_map(|url| bootstrap::endpoint(url));
        let mut gateways: Vec<_> = configured.collect();
        if gateways.is_empty() {
            gateways = self.endpoints.told().to_vec();
        }
        let order = bootstrap::order(gateways, &options.transports, &self.user_id, &options.device_id);
        self.endpoints.bootstrap(&order)
    }

    /// Goes on with the schedule of an earlier run, if it is this user's and device's; nobody else's is looked at again. Whether
    /// that makes asking a scheduler needless.
    fn restore(&mut self, user_id: Option<&str>) -> bool {
        let Some(stored) = self.stored.take() else { return false };
        if user_id != Some(&*stored.user_id) || stored.device_id != self.core.options.device_id {
            return false;
        }
        self.user_id.clone_from(&stored.user_id);
        self.reconnect.set_parameters(stored.reconnect);
        self.heartbeat = stored.heartbeat;
        self.endpoints.restored(&stored, self.core.clock.now_ms())
    }

    /// Has the schedule stored, if it is another one than before: once a gateway has welcomed its user, or refused it.
    fn keep(&mut self) {
        let (user_id, device_id) = (&self.user_id, &self.core.options.device_id);
        let stored = self.endpoints.stored(user_id, device_id, self.reconnect.parameters(), self.heartbeat);
        self.kept.send_if_modified(|kept| {
            let changed = *kept != stored;
            *kept = stored;
            changed
        });
    }

    async fn token(&self, rejected: Option<&str>) -> Result<String, TokenError> {
        let within = self.core.options.token_timeout;
        let token = timeout(within, self.core.options.token.token(rejected)).await;
        token.unwrap_or_else(|_| {
            Err(TokenError::Temporary(format!("the provider gave none within {within:?}")))
        })
    }

    fn request(&self) -> ScheduleRequest {
        let options = &self.core.options;
        ScheduleRequest {
            device_id: options.device_id.clone(),
            platform: options.platform.clone(),
            app_version: options.app_version.clone(),
            sdk: SDK.to_owned(),
            transports: options.transports.iter().map(|transport| transport.as_str().to_owned()).collect(),
            region: options.region.clone(),
            attempt: self.endpoints.asked(),
            failed: self.endpoints.failed_gateways(),
            queue_token: self.queue_token.clone(),
            ..Default::default()
        }
    }

    fn scheduled(&mut self, answer: &schedule::ScheduleAnswer) -> Result<(), ScheduleError> {
        tracing::debug!(schedule_id = answer.schedule_id, endpoints = answer.endpoints.len(), "scheduled");
        self.queue_token.clear();
        self.reconnect.set_parameters(answer.reconnect);
        self.heartbeat = answer.heartbeat;
        if self.endpoints.scheduled(answer, self.core.clock.now_ms()) {
            return Ok(());
        }
        Err(ScheduleError::BadAnswer("it has no endpoint of the transports asked for".to_owned()))
    }
}

/// How long to wait for a scheduler's answer. Where another one can be asked, one that is slow is not worth waiting for, until
/// all of them were: then it is the network.
fn patience(schedulers: usize, unanswered: usize) -> Duration {
    if unanswered < schedulers && schedulers > 1 { http::DEADLINE_OF_SEVERAL } else { http::DEADLINE }
}

/// A scheduler's answer that no repeat would change.
fn refusal(problem: &Problem) -> StopReason {
    let Problem { status, reason, detail, .. } = problem.clone();
    StopReason::Scheduler { status, reason, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_too_slow_for_every_scheduler_is_waited_for() {
        assert_eq!(patience(1, 0), http::DEADLINE);
        for (unanswered, within) in [
            (0, http::DEADLINE_OF_SEVERAL),
            (2, http::DEADLINE_OF_SEVERAL),
            (3, http::DEADLINE),
            (9, http::DEADLINE),
        ] {
            assert_eq!(patience(3, unanswered), within, "{unanswered} in a row");
        }
    }
}
