//! Where to connect next: walks the scheduler's list with its ticket until a new schedule is needed. Pure.

mod busy;

use std::{collections::VecDeque, mem};

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

/// What a server told.
#[derive(Debug, Clone)]
struct Told {
    endpoints: Vec<ScheduleEndpoint>,
    ticket: String,
    /// In this client's time.
    expires_at_ms: i64,
    /// What to add to a server's time to get this client's.
    offset_ms: i64,
    reschedule_after: u32,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            ticket: String::new(),
            expires_at_ms: 0,
            offset_ms: 0,
            reschedule_after: 1,
        }
    }
}

/// Where the list that is walked comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A server told it to this client.
    Told,
    /// It was kept by an earlier run.
    Kept,
    /// It is one bootstrap gateway, of so many.
    Bootstrap(usize),
    /// Its ticket has ended, and the gateway of a lost session is shown it once more.
    Over,
}

/// The list being walked, its ticket, and what failed.
#[derive(Debug, Clone)]
pub struct Endpoints {
    transports: Vec<Transport>,
    /// The last that a server told.
    told: Told,
    /// It was told while there was a connection: it takes the list's place once that is of no use.
    renewed: bool,
    /// What is walked.
    list: Vec<ScheduleEndpoint>,
    at: usize,
    ticket: String,
    /// In this client's time.
    expires_at_ms: i64,
    origin: Origin,
    /// The list has not been used yet: its ticket is used, however short its life.
    fresh: bool,
    /// Bootstrap gateways tried since the last schedule or stable session.
    bootstraps: usize,
    /// Bootstrap gateways in a row that refused the ticket.
    refusals: usize,
    failures: u32,
    /// Gateways in a row that were busy, since the last whole round of them.
    busy: usize,
    /// Whole rounds in which every gateway was busy.
    busy_rounds: u32,
    /// The gateway that is gone to failed before, and may be back: the others are all busy.
    again: bool,
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
            told: Told::default(),
            renewed: false,
            list: Vec::new(),
            at: 0,
            ticket: String::new(),
            expires_at_ms: 0,
            origin: Origin::Told,
            fresh: false,
            bootstraps: 0,
            refusals: 0,
            failures: 0,
            busy: 0,
            busy_rounds: 0,
            again: false,
            redirects: 0,
            failed: VecDeque::new(),
            asked: 0,
        }
    }

    /// Where to connect now; `None`: a scheduler must be asked, since there is no list, its ticket has expired, or it
    /// failed or was busy too often, and none was told since.
    pub fn next(&mut self, now_ms: i64) -> Option<Attempt> {
        if !self.usable(now_ms) {
            self.list.clear();
            if mem::take(&mut self.renewed) && lives(self.told.expires_at_ms, now_ms) {
                self.walk();
            }
        }
        self.fresh = false;
        let endpoint = self.list.get(self.at)?.clone();
        Some(Attempt { endpoint, ticket: self.ticket.clone() })
    }

    /// The address that the next attempt goes to, if that is known without asking a scheduler.
    #[must_use]
    pub fn here(&self, now_ms: i64) -> Option<&str> {
        let endpoint = self.usable(now_ms).then(|| self.list.get(self.at)).flatten();
        endpoint.map(|endpoint| endpoint.url.as_str())
    }

    /// The address that the client is at, whether it can go there again or not.
    #[must_use]
    pub fn place(&self) -> Option<&str> {
        self.list.get(self.at).map(|endpoint| endpoint.url.as_str())
    }

    /// Whether there will be a ticket in time for an attempt then. A bootstrap gateway takes one that has ended.
    #[must_use]
    pub fn ticket_until(&self, then_ms: i64) -> bool {
        matches!(self.origin, Origin::Bootstrap(_))
            || lives(self.expires_at_ms, then_ms)
            || (self.renewed && lives(self.told.expires_at_ms, then_ms))
    }

    fn usable(&self, now_ms: i64) -> bool {
        (self.fresh || lives(self.expires_at_ms, now_ms)) && !self.too_often()
    }

    fn too_often(&self) -> bool {
        self.failures.max(self.busy_rounds) >= self.told.reschedule_after
    }

    /// Takes a scheduler's answer. Whether any of its endpoints can be used.
    pub fn scheduled(&mut self, answer: &ScheduleAnswer, now_ms: i64) -> bool {
        self.redirects = 0;
        self.bootstraps = 0;
        self.asked = self.asked.saturating_add(1);
        self.told = self.read(answer, now_ms);
        self.replace()
    }

    /// Takes a scheduler's answer while there is a connection, which stays where it is. Whether there is anything in it.
    pub fn renewed(&mut self, answer: &ScheduleAnswer, now_ms: i64) -> bool {
        let told = self.read(answer, now_ms);
        if told.endpoints.is_empty() {
            return false;
        }
        self.told = told;
        self.renewed = true;
        true
    }

    fn read(&self, answer: &ScheduleAnswer, now_ms: i64) -> Told {
        let offset_ms = now_ms.saturating_sub(answer.server_time_ms);
        Told {
            endpoints: self.of_our_transports(answer.endpoints.clone()),
            ticket: answer.ticket.clone(),
            expires_at_ms: answer.ticket_expires_at_ms.saturating_add(offset_ms),
            offset_ms,
            reschedule_after: answer.reconnect.reschedule_after_failures.max(1),
        }
    }

    fn of_our_transports(&self, mut list: Vec<ScheduleEndpoint>) -> Vec<ScheduleEndpoint> {
        list.retain(|endpoint| {
            Transport::from_name(&endpoint.transport).is_some_and(|t| self.transports.contains(&t))
        });
        list
    }

    /// Follows a redirect. `false`: it leads nowhere, or is the fourth in a row.
    pub fn redirected(&mut self, disconnect: &Disconnect) -> bool {
        if self.redirects >= limits::REDIRECTS || disconnect.ticket.is_empty() {
            return false;
        }
        self.redirects += 1;
        let list = disconnect.redirect.iter().cloned().map(Into::into).collect();
        self.told.endpoints = self.of_our_transports(list);
        self.told.ticket.clone_from(&disconnect.ticket);
        self.told.expires_at_ms = disconnect.ticket_expires_at_ms.saturating_add(self.told.offset_ms);
        self.replace()
    }

    /// Goes on with a schedule of an earlier run. Whether it can be used without asking anybody.
    pub fn restored(&mut self, stored: &StoredSchedule, now_ms: i64) -> bool {
        self.told = Told {
            endpoints: self.of_our_transports(stored.endpoints.clone()),
            ticket: stored.ticket.clone(),
            expires_at_ms: stored.ticket_expires_at_ms.saturating_add(stored.offset_ms),
            offset_ms: stored.offset_ms,
            reschedule_after: stored.reconnect.reschedule_after_failures.max(1),
        };
        self.walk();
        self.origin = Origin::Kept;
        self.next(now_ms).is_some()
    }

    /// Goes to the next bootstrap gateway of `order` with the ticket there is, in time or not, until it fails once: then a
    /// scheduler's turn comes again. `false`: there is no ticket, or no gateway. A new row of redirects begins: a client waits
    /// before each of these gateways, so it does not go in circles at full speed.
    pub fn bootstrap(&mut self, order: &[ScheduleEndpoint]) -> bool {
        if self.told.ticket.is_empty() || order.is_empty() {
            return false;
        }
        self.walk();
        self.list = vec![order[self.bootstraps % order.len()].clone()];
        self.origin = Origin::Bootstrap(order.len());
        self.bootstraps += 1;
        self.failures = self.told.reschedule_after - 1;
        self.redirects = 0;
        self.fresh = true;
        true
    }

    fn replace(&mut self) -> bool {
        self.walk();
        self.fresh = true;
        self.refusals = 0;
        !self.list.is_empty()
    }

    /// Begins with what was told.
    fn walk(&mut self) {
        self.list.clone_from(&self.told.endpoints);
        self.at = 0;
        self.ticket.clone_from(&self.told.ticket);
        self.expires_at_ms = self.told.expires_at_ms;
        self.origin = Origin::Told;
        self.fresh = false;
        self.renewed = false;
        self.failures = 0;
        self.not_busy();
    }

    fn not_busy(&mut self) {
        self.busy = 0;
        self.busy_rounds = 0;
        self.again = false;
    }

    fn has_failed(&self, endpoint: &ScheduleEndpoint) -> bool {
        self.failed.contains(&endpoint.gateway_id)
    }

    /// A long session was lost, and its ticket may have ended meanwhile. Then the same endpoint is tried once more: with a ticket
    /// that was told since if that is for it too, else with the one that is over. A gateway that lives says so, before it counts
    /// whom it takes; one that is dead takes no harm.
    pub fn once_more(&mut self, now_ms: i64) {
        if self.usable(now_ms) || self.too_often() {
            return;
        }
        let Some(here) = self.list.get(self.at) else { return };
        let again = self.told.endpoints.iter().position(|told| told.url == here.url);
        match again.filter(|_| self.renewed && lives(self.told.expires_at_ms, now_ms)) {
            Some(at) => {
                self.walk();
                self.at = at;
            }
            None => {
                self.origin = Origin::Over;
                self.fresh = true;
            }
        }
    }

    /// The gateway refuses the ticket, which is [`Endpoints::doubtful`]. Whether the ticket is of use all the same: one
    /// bootstrap gateway that has other keys, or is another system's by now, does not speak for the rest.
    pub fn refused(&mut self) -> bool {
        let count = match self.origin {
            Origin::Bootstrap(count) => count,
            // Its key may be gone with its time. What was told since, and its user, may be as good as ever.
            Origin::Over => {
                self.forget();
                return true;
            }
            Origin::Told | Origin::Kept => return false,
        };
        let refusals = self.refusals + 1;
        self.failed_altogether();
        self.refusals = refusals;
        refusals < count
    }

    /// The current endpoint failed, or its gateway is leaving: on to the next, round and round.
    pub fn failed(&mut self) {
        if self.failed_again() {
            return;
        }
        self.suspect();
        if !self.list.is_empty() {
            self.at = (self.at + 1) % self.list.len();
        }
    }

    /// Nobody answered at the current endpoint's `host:port`, or all of its gateway is leaving: on to the next endpoint that
    /// is not there. A gateway's transports share one port, so another transport would only cost one more attempt.
    pub fn failed_altogether(&mut self) {
        if self.failed_again() {
            return;
        }
        match self.elsewhere(|_| true) {
            Some(at) => {
                self.suspect();
                self.at = at;
            }
            None => self.failed(),
        }
    }

    /// The next endpoint of another `host:port` that `suits`.
    fn elsewhere(&self, suits: impl Fn(&ScheduleEndpoint) -> bool) -> Option<usize> {
        let here = self.list.get(self.at).and_then(place);
        (1..self.list.len()).map(|step| (self.at + step) % self.list.len()).find(|at| {
            let there = &self.list[*at];
            (here.is_none() || place(there) != here) && suits(there)
        })
    }

    /// The current endpoint dropped a session too early; it is tried again, but it counts.
    pub fn suspect(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.refusals = 0;
        self.again = false;
        let Some(endpoint) = self.list.get(self.at) else { return };
        // Which gateway answers at a bootstrap address is not known.
        if !endpoint.gateway_id.is_empty() && !self.has_failed(endpoint) {
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
        self.not_busy();
        self.redirects = 0;
        self.bootstraps = 0;
        self.asked = 0;
        self.failed.clear();
    }

    /// The ticket is of no use while there are schedulers.
    pub fn forget(&mut self) {
        self.list.clear();
        self.not_busy();
    }

    /// The ticket is of no use anywhere.
    pub fn forget_ticket(&mut self) {
        self.forget();
        self.told = Told::default();
        self.renewed = false;
    }

    /// Whether a gateway that refuses the ticket (4500) may be wrong about the user: keys change while a ticket is stored, and
    /// a user who was thrown out may be back. Then a scheduler is asked.
    #[must_use]
    pub fn doubtful(&self) -> bool {
        self.origin != Origin::Told
    }

    /// The endpoints that a server told last.
    #[must_use]
    pub fn told(&self) -> &[ScheduleEndpoint] {
        &self.told.endpoints
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
        let Told { endpoints, ticket, expires_at_ms, offset_ms, .. } = &self.told;
        (!ticket.is_empty()).then(|| StoredSchedule {
            user_id: user_id.to_owned(),
            device_id: device_id.to_owned(),
            endpoints: endpoints.clone(),
            ticket: ticket.clone(),
            ticket_expires_at_ms: expires_at_ms.saturating_sub(*offset_ms),
            offset_ms: *offset_ms,
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

/// Its `host:port`.
fn place(endpoint: &ScheduleEndpoint) -> Option<String> {
    transport::address(endpoint).ok().map(|(_, place)| place)
}

fn lives(expires_at_ms: i64, now_ms: i64) -> bool {
    now_ms < expires_at_ms.saturating_sub(MARGIN_MS)
}

#[cfg(test)]
mod tests;
