//! Where to connect next: walks the scheduler's list with its ticket until a new schedule is needed. Pure.

use std::collections::VecDeque;

use berth_proto::{
    client::Disconnect,
    limits,
    schedule::{HeartbeatParameters, ReconnectParameters, ScheduleAnswer, ScheduleEndpoint},
};

use crate::{
    store::StoredSchedule,
    transport::{self, Transport},
};

/// Gateways reported to schedulers as failed, at the most: three lists' worth.
const FAILED: usize = 3 * limits::ENDPOINT_GATEWAYS;

/// A ticket this close to its end is not used any more, in milliseconds: it must live until hello is read.
const MARGIN_MS: i64 = 1_000;

/// One attempt to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Where.
    pub endpoint: ScheduleEndpoint,
    /// What to say in hello.
    pub ticket: String,
}

/// The list being walked, its ticket, and what failed.
#[derive(Debug, Clone)]
pub struct Endpoints {
    transports: Vec<Transport>,
    /// The last list that a server told.
    told: Vec<ScheduleEndpoint>,
    /// What is left of it to be walked, or the bootstrap gateway whose turn it is.
    list: Vec<ScheduleEndpoint>,
    at: usize,
    ticket: String,
    /// In this client's time.
    expires_at_ms: i64,
    /// The list has not been used yet: its ticket is used, however short its life.
    fresh: bool,
    /// The ticket is of an earlier run, or used at a bootstrap gateway: see [`Endpoints::doubtful`].
    doubtful: bool,
    /// Bootstrap gateways tried since the last schedule or stable session.
    bootstraps: usize,
    /// What to add to a server's time to get this client's.
    offset_ms: i64,
    reschedule_after: u32,
    failures: u32,
    redirects: u32,
    failed: VecDeque<String>,
    asked: u32,
}

impl Endpoints {
    /// An empty list, of which only endpoints of these transports will be used.
    #[must_use]
    pub fn new(transports: Vec<Transport>) -> Self {
        Self {
            transports,
            told: Vec::new(),
            list: Vec::new(),
            at: 0,
            ticket: String::new(),
            expires_at_ms: 0,
            fresh: false,
            doubtful: false,
            bootstraps: 0,
            offset_ms: 0,
            reschedule_after: 1,
            failures: 0,
            redirects: 0,
            failed: VecDeque::new(),
            asked: 0,
        }
    }

    /// Where to connect now; `None`: a scheduler must be asked, since there is no list, its ticket has expired, or it
    /// failed too often.
    pub fn next(&mut self, now_ms: i64) -> Option<Attempt> {
        let live = self.fresh || now_ms < self.expires_at_ms - MARGIN_MS;
        if !live || self.failures >= self.reschedule_after {
            self.list.clear();
        }
        self.fresh = false;
        let endpoint = self.list.get(self.at)?.clone();
        Some(Attempt { endpoint, ticket: self.ticket.clone() })
    }

    /// Takes a scheduler's answer. Whether any of its endpoints can be used.
    pub fn scheduled(&mut self, answer: &ScheduleAnswer, now_ms: i64) -> bool {
        self.offset_ms = now_ms.saturating_sub(answer.server_time_ms);
        self.reschedule_after = answer.reconnect.reschedule_after_failures.max(1);
        self.redirects = 0;
        self.bootstraps = 0;
        self.asked = self.asked.saturating_add(1);
        self.replace(answer.endpoints.clone(), &answer.ticket, answer.ticket_expires_at_ms)
    }

    /// Follows a redirect. `false`: it leads nowhere, or is the fourth in a row.
    pub fn redirected(&mut self, disconnect: &Disconnect) -> bool {
        if self.redirects >= limits::REDIRECTS || disconnect.ticket.is_empty() {
            return false;
        }
        self.redirects += 1;
        let list = disconnect.redirect.iter().cloned().map(Into::into).collect();
        self.replace(list, &disconnect.ticket, disconnect.ticket_expires_at_ms)
    }

    /// Goes on with a schedule of an earlier run. Whether it can be used without asking anybody.
    pub fn restored(&mut self, stored: &StoredSchedule, now_ms: i64) -> bool {
        self.offset_ms = stored.offset_ms;
        self.reschedule_after = stored.reconnect.reschedule_after_failures.max(1);
        self.replace(stored.endpoints.clone(), &stored.ticket, stored.ticket_expires_at_ms);
        self.fresh = false;
        self.doubtful = true;
        self.next(now_ms).is_some()
    }

    /// Goes to the next bootstrap gateway of `order` with the ticket there is, in time or not, until it fails once: then a
    /// scheduler's turn comes again. `false`: there is no ticket, or no gateway.
    pub fn bootstrap(&mut self, order: &[ScheduleEndpoint]) -> bool {
        if self.ticket.is_empty() || order.is_empty() {
            return false;
        }
        self.list = vec![order[self.bootstraps % order.len()].clone()];
        self.at = 0;
        self.bootstraps += 1;
        self.failures = self.reschedule_after - 1;
        self.fresh = true;
        self.doubtful = true;
        true
    }

    fn replace(&mut self, list: Vec<ScheduleEndpoint>, ticket: &str, expires_at_ms: i64) -> bool {
        self.list = list;
        self.list.retain(|endpoint| {
            Transport::from_name(&endpoint.transport).is_some_and(|t| self.transports.contains(&t))
        });
        self.told.clone_from(&self.list);
        self.at = 0;
        self.failures = 0;
        self.doubtful = false;
        ticket.clone_into(&mut self.ticket);
        self.expires_at_ms = expires_at_ms.saturating_add(self.offset_ms);
        self.fresh = true;
        !self.list.is_empty()
    }

    /// The current endpoint failed, or its gateway is leaving: on to the next, round and round.
    pub fn failed(&mut self) {
        self.suspect();
        if !self.list.is_empty() {
            self.at = (self.at + 1) % self.list.len();
        }
    }

    /// Nobody answered at the current endpoint's `host:port`, or all of its gateway is leaving: on to the next endpoint that
    /// is not there. A gateway's transports share one port, so another transport would only cost one more attempt.
    pub fn failed_altogether(&mut self) {
        let place = |endpoint: &ScheduleEndpoint| transport::address(endpoint).ok().map(|(_, place)| place);
        let failed = self.list.get(self.at).and_then(place);
        let elsewhere = (1..self.list.len())
            .map(|step| (self.at + step) % self.list.len())
            .find(|at| failed.is_none() || self.list.get(*at).and_then(place) != failed);
        match elsewhere {
            Some(at) => {
                self.suspect();
                self.at = at;
            }
            None => self.failed(),
        }
    }

    /// The current endpoint dropped a session too early; it is tried again, but it counts.
    pub fn suspect(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let Some(endpoint) = self.list.get(self.at) else { return };
        // Which gateway answers at a bootstrap address is not known.
        if !endpoint.gateway_id.is_empty() && !self.failed.contains(&endpoint.gateway_id) {
            if self.failed.len() == FAILED {
                self.failed.pop_front();
            }
            self.failed.push_back(endpoint.gateway_id.clone());
        }
    }

    /// A session on the current endpoint was stable: nothing is held against anybody. Only this (a welcome is not enough:
    /// gateways may welcome and send on in a circle) and a schedule end a row of redirects.
    pub fn stable(&mut self) {
        self.failures = 0;
        self.redirects = 0;
        self.bootstraps = 0;
        self.asked = 0;
        self.failed.clear();
    }

    /// The ticket is of no use while there are schedulers.
    pub fn forget(&mut self) {
        self.list.clear();
    }

    /// The ticket is of no use anywhere.
    pub fn forget_ticket(&mut self) {
        self.list.clear();
        self.ticket.clear();
    }

    /// Whether a gateway that refuses the ticket (4500) may be wrong about the user: keys change while a ticket is stored, and
    /// a user who was thrown out may be back. Then a scheduler is asked.
    #[must_use]
    pub fn doubtful(&self) -> bool {
        self.doubtful
    }

    /// The endpoints that a server told last.
    #[must_use]
    pub fn told(&self) -> &[ScheduleEndpoint] {
        &self.told
    }

    /// What is to be kept of this user's and device's schedule; `None`: there is no ticket.
    #[must_use]
    pub fn stored(
        &self,
        user_id: &str,
        device_id: &str,
        reconnect: ReconnectParameters,
        heartbeat: HeartbeatParameters,
    ) -> Option<StoredSchedule> {
        (!self.ticket.is_empty()).then(|| StoredSchedule {
            user_id: user_id.to_owned(),
            device_id: device_id.to_owned(),
            endpoints: self.told.clone(),
            ticket: self.ticket.clone(),
            ticket_expires_at_ms: self.expires_at_ms.saturating_sub(self.offset_ms),
            offset_ms: self.offset_ms,
            reconnect,
            heartbeat,
        })
    }

    /// How often a scheduler answered since the last stable session.
    #[must_use]
    pub fn asked(&self) -> u32 {
        self.asked
    }

    /// Gateways that failed since the last stable session, oldest first.
    #[must_use]
    pub fn failed_gateways(&self) -> Vec<String> {
        self.failed.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
