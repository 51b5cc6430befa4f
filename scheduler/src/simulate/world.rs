//! The simulated world: clients come, go, lose their gateway and come back; gateways accept and report; schedulers decide.

use std::fmt::Write;

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};

use super::{
    What,
    calendar::Calendar,
    client::{Client, Doing, List},
    gateway::{CANARY, Gateway},
    measure::{Measure, Outcome},
    scenario::Scenario,
    scheduler::{Asked, SNAPSHOT_MS, Scheduler, Strategy},
};
use crate::{
    decide::Request,
    policy::{Client as Matched, GrayRule, Policy},
    transport::Transports,
};

/// One way over the network, in milliseconds: from a near one to a bad mobile one.
const NETWORK_MS: std::ops::Range<u32> = 5..100;

/// A client learns after this long that nobody answers at an address.
const DEAD_MS: u32 = 1_000;

/// A client waits so long in a backlog, then gives that gateway up.
const PATIENCE_MS: u32 = 10_000;

/// Retries as PROTOCOL.md says them, in milliseconds.
const RETRY_BASE_MS: u32 = 500;
const RETRY_MAX_MS: u32 = 20_000;
const RESCHEDULE_AFTER: u8 = 3;
const TICKET_MS: u32 = 300_000;

/// A scheduler without a gateway says to come again after this long.
const NO_GATEWAY_MS: std::ops::Range<u32> = 500..1_500;

/// How often somebody leaves or comes is drawn so often, in milliseconds.
const CHURN_MS: u32 = 10;

/// The rule that [`What::Percent`] sets.
const RAMP: &str = "ramp";

#[derive(Debug, Clone, Copy)]
enum Due {
    /// Clients leave and come back.
    Churn,
    /// A client goes on: along its list, or to a scheduler.
    Go(u32, u16),
    /// It reaches a gateway.
    Knock(u32, u16),
    /// It has waited long enough there.
    GiveUp(u32, u16),
    /// A gateway has room in its handshake rate.
    Accept(u16),
    /// A gateway says how it is, and
    Report(u16),
    /// the schedulers hear it.
    Heard(u16),
    Snapshot(u16),
    Sample,
    Happens(u16),
}

pub(super) struct World<'a> {
    scenario: &'a Scenario,
    strategy: Strategy,
    policy: Policy,
    rng: SmallRng,
    calendar: Calendar<Due>,
    clients: Vec<Client>,
    online: Vec<u32>,
    away: Vec<u32>,
    gateways: Vec<Gateway>,
    schedulers: Vec<Scheduler>,
    measure: Measure,
    schedule_ids: u64,
    user_id: String,
}

impl<'a> World<'a> {
    pub fn new(scenario: &'a Scenario, strategy: Strategy, policy: &Policy, seed: u64) -> Self {
        let canaries = (f64::from(scenario.gateways) * scenario.canary).round() as u32;
        // `stable` always has one: who falls back falls back there.
        let canaries = canaries.min(scenario.gateways - 1);
        let gateway = |number| {
            Gateway::new(number, number < canaries, scenario.capacity(), scenario.handshakes_per_second)
        };
        let first_event = scenario.event.iter().map(|event| event.at).min();
        let mut world = Self {
            scenario,
            strategy,
            policy: policy.clone(),
            rng: SmallRng::seed_from_u64(seed),
            calendar: Calendar::new(),
            clients: Vec::with_capacity(scenario.clients as usize),
            online: Vec::new(),
            away: Vec::new(),
            gateways: (0..scenario.gateways).map(gateway).collect(),
            schedulers: (0..scenario.schedulers).map(|_| Scheduler::new()).collect(),
            measure: Measure::new(scenario.warm_up_seconds, first_event),
            schedule_ids: 0,
            user_id: String::new(),
        };
        world.settle_clients(canaries);
        world.settle_reports();
        world
    }

    /// Most clients are connected, evenly over `stable`, for as long as they stay on average: some have a ticket that is
    /// good, most have not.
    fn settle_clients(&mut self, canaries: u32) {
        let (online, stable) = (self.scenario.online(), self.scenario.gateways - canaries);
        for id in 0..self.scenario.clients {
            let gateway = (canaries + id % stable) as u16;
            let mut list = List::default();
            list.push(gateway);
            for _ in 1..List::LEN {
                list.push_new((canaries + self.rng.random_range(0..stable)) as u16);
            }
            let age_ms = exponential(&mut self.rng, self.scenario.session_seconds * 1_000.0) as u32;
            let client = Client {
                doing: Doing::Away,
                place: 0,
                gateway,
                list,
                failures: 0,
                attempt: 0,
                shown: true,
                ticket_until_ms: TICKET_MS.saturating_sub(age_ms),
                wanted_ms: 0,
                schedule_id: 0,
            };
            self.clients.push(client);
            if id < online {
                self.gateways[usize::from(gateway)].connections += 1;
                self.enter(id, Doing::Online);
            } else {
                self.enter(id, Doing::Away);
            }
        }
    }

    /// The schedulers know the fleet, and reports are on their way as if it had always been so.
    fn settle_reports(&mut self) {
        let Scenario { report_interval_ms: interval_ms, report_delay_ms: delay_ms, .. } = *self.scenario;
        for index in 0..self.gateways.len() as u16 {
            self.gateways[usize::from(index)].say(interval_ms);
            self.hear(index);
            let phase_ms = self.rng.random_range(1..=interval_ms);
            self.calendar.after(phase_ms, Due::Report(index));
            let mut due_ms = phase_ms % interval_ms;
            while due_ms < delay_ms {
                self.gateways[usize::from(index)].say(interval_ms);
                self.calendar.after(due_ms, Due::Heard(index));
                due_ms += interval_ms;
            }
        }
        for index in 0..self.schedulers.len() {
            self.schedulers[index].snapshot(self.strategy, &self.policy, 0);
            self.calendar.after(
                1 + index as u32 * SNAPSHOT_MS / self.scenario.schedulers,
                Due::Snapshot(index as u16),
            );
        }
        for (index, event) in (0..).zip(&self.scenario.event) {
            // Further than the calendar reaches: put in again when its time comes nearer.
            self.calendar.after(event.at * 1_000, Due::Happens(index));
        }
        self.calendar.after(1, Due::Churn);
        self.calendar.after(1_000, Due::Sample);
    }

    pub fn run(mut self) -> Outcome {
        let end_ms = self.scenario.seconds * 1_000;
        while self.calendar.now_ms() < end_ms {
            for due in self.calendar.advance() {
                self.handle(due);
            }
        }
        self.measure.outcome(self.strategy, self.scenario.report_delay_ms)
    }

    fn now_ms(&self) -> u32 {
        self.calendar.now_ms()
    }

    fn handle(&mut self, due: Due) {
        match due {
            Due::Churn => self.churn(),
            Due::Go(id, attempt) if self.waits(id, attempt) => self.go(id),
            Due::Knock(id, attempt) if self.waits(id, attempt) => self.knock(id),
            Due::GiveUp(id, attempt) if self.waits(id, attempt) => self.fail(id),
            Due::Go(..) | Due::Knock(..) | Due::GiveUp(..) => {}
            Due::Accept(gateway) => self.accept(gateway),
            Due::Report(gateway) => self.report(gateway),
            Due::Heard(gateway) => self.hear(gateway),
            Due::Snapshot(index) => {
                let now_ms = self.now_ms();
                self.schedulers[usize::from(index)].snapshot(self.strategy, &self.policy, now_ms);
                self.calendar.after(SNAPSHOT_MS, Due::Snapshot(index));
            }
            Due::Sample => {
                let waiting = self.clients.len() - self.online.len() - self.away.len();
                let second = self.now_ms() / 1_000;
                self.measure.sample(second, &self.gateways, self.online.len(), waiting as u32);
                self.calendar.after(1_000, Due::Sample);
            }
            Due::Happens(index) => self.happens(index),
        }
    }

    /// Whether a client still makes the attempt that something was waiting for.
    fn waits(&self, id: u32, attempt: u16) -> bool {
        let client = &self.clients[id as usize];
        client.doing == Doing::Connecting && client.attempt == attempt
    }

    fn enter(&mut self, id: u32, doing: Doing) {
        let list = match doing {
            Doing::Online => &mut self.online,
            Doing::Away => &mut self.away,
            Doing::Connecting => return self.clients[id as usize].doing = doing,
        };
        let client = &mut self.clients[id as usize];
        (client.doing, client.place) = (doing, list.len() as u32);
        list.push(id);
    }

    fn leave(&mut self, id: u32) {
        let Client { doing, place, gateway, .. } = self.clients[id as usize];
        let list = match doing {
            Doing::Online => {
                self.gateways[usize::from(gateway)].connections -= 1;
                &mut self.online
            }
            Doing::Away => &mut self.away,
            Doing::Connecting => return,
        };
        list.swap_remove(place as usize);
        if let Some(moved) = list.get(place as usize) {
            self.clients[*moved as usize].place = place;
        }
    }

    fn churn(&mut self) {
        let step = f64::from(CHURN_MS) / 1_000.0;
        let leave = poisson(&mut self.rng, self.online.len() as f64 * step / self.scenario.session_seconds);
        for _ in 0..leave.min(self.online.len()) {
            let id = self.online[self.rng.random_range(0..self.online.len())];
            self.leave(id);
            self.enter(id, Doing::Away);
        }
        let come = poisson(&mut self.rng, self.away.len() as f64 * step / self.scenario.away_seconds);
        for _ in 0..come.min(self.away.len()) {
            let id = self.away[self.rng.random_range(0..self.away.len())];
            self.come(id, 0);
        }
        self.calendar.after(CHURN_MS, Due::Churn);
    }

    /// A client wants a connection, and tries for one within `spread_ms`.
    fn come(&mut self, id: u32, spread_ms: u32) {
        self.leave(id);
        self.enter(id, Doing::Connecting);
        let now_ms = self.now_ms();
        let client = &mut self.clients[id as usize];
        (client.failures, client.wanted_ms) = (0, now_ms);
        client.attempt = client.attempt.wrapping_add(1);
        client.list.rewind();
        let wait_ms = self.rng.random_range(0..=spread_ms);
        self.calendar.after(wait_ms, Due::Go(id, self.clients[id as usize].attempt));
    }

    fn go(&mut self, id: u32) {
        let client = self.clients[id as usize];
        let usable = client.ticket_until_ms > self.now_ms() && client.failures < RESCHEDULE_AFTER;
        let mut wait_ms = self.rng.random_range(NETWORK_MS);
        if !usable || client.list.next().is_none() {
            if !self.schedule(id) {
                let wait_ms = self.rng.random_range(NO_GATEWAY_MS);
                return self.calendar.after(wait_ms, Due::Go(id, client.attempt));
            }
            // There and back to the scheduler.
            wait_ms += 2 * self.rng.random_range(NETWORK_MS);
        }
        self.calendar.after(wait_ms, Due::Knock(id, client.attempt));
    }

    /// Asks one of the schedulers. False: it knows no gateway.
    fn schedule(&mut self, id: u32) -> bool {
        let now_ms = self.now_ms();
        self.schedule_ids += 1;
        self.user_id.clear();
        let _ = write!(self.user_id, "u{id}");
        let client = &mut self.clients[id as usize];
        let tried = if client.failures > 0 { client.list.tried() } else { &[] };
        let failed: Vec<_> = tried.iter().map(|gateway| format!("g{gateway}")).collect();
        let request = Request {
            user_id: &self.user_id,
            client: Matched::default(),
            transports: Transports::WS,
            failed: &failed,
            near: &[],
            pool: None,
        };
        let asked = Asked { policy: &self.policy, request: &request, schedule_id: self.schedule_ids, now_ms };
        let replica = self.rng.random_range(0..self.schedulers.len());
        let mut list = List::default();
        let found = self.schedulers[replica].assign(self.strategy, &asked, &mut self.rng, &mut list);
        self.measure.decisions += 1;
        self.measure.no_gateway += u64::from(!found);
        client.failures = 0;
        if found {
            (client.list, client.schedule_id, client.shown) = (list, self.schedule_ids, false);
            client.ticket_until_ms = now_ms + TICKET_MS;
        }
        found
    }

    fn knock(&mut self, id: u32) {
        let Client { attempt, list, .. } = self.clients[id as usize];
        let Some(index) = list.next() else { return self.fail(id) };
        let gateway = &mut self.gateways[usize::from(index)];
        if !gateway.alive {
            return self.calendar.after(DEAD_MS, Due::GiveUp(id, attempt));
        }
        if gateway.connections >= gateway.capacity() {
            return self.fail(id);
        }
        gateway.backlog.push_back((id, attempt));
        self.calendar.after(PATIENCE_MS, Due::GiveUp(id, attempt));
        if gateway.backlog.len() == 1 {
            self.accept(index);
        }
    }

    /// This gateway did not take it: the next one, after a while.
    fn fail(&mut self, id: u32) {
        let client = &mut self.clients[id as usize];
        client.failures = client.failures.saturating_add(1);
        client.attempt = client.attempt.wrapping_add(1);
        client.list.skip();
        let most_ms = (RETRY_BASE_MS << u32::from(client.failures.min(6))).min(RETRY_MAX_MS);
        let attempt = client.attempt;
        let wait_ms = self.rng.random_range(0..=most_ms);
        self.calendar.after(wait_ms, Due::Go(id, attempt));
    }

    fn accept(&mut self, index: u16) {
        let now_ms = self.now_ms();
        while let Some((id, attempt)) = self.gateways[usize::from(index)].backlog.front().copied() {
            if let Err(wait_ms) = self.gateways[usize::from(index)].handshake(now_ms) {
                return self.calendar.after(wait_ms, Due::Accept(index));
            }
            self.gateways[usize::from(index)].backlog.pop_front();
            // One that has given up costs its handshake all the same: the gateway finds out only then.
            if self.waits(id, attempt) {
                self.connected(id, index);
            }
        }
    }

    fn connected(&mut self, id: u32, index: u16) {
        let now_ms = self.now_ms();
        let gateway = &mut self.gateways[usize::from(index)];
        gateway.connections += 1;
        let client = &mut self.clients[id as usize];
        if !std::mem::replace(&mut client.shown, true) {
            gateway.saw(client.schedule_id);
        }
        self.measure.connected(client.wanted_ms, now_ms, client.gateway != index);
        client.gateway = index;
        client.attempt = client.attempt.wrapping_add(1);
        self.enter(id, Doing::Online);
    }

    fn report(&mut self, index: u16) {
        let gateway = &mut self.gateways[usize::from(index)];
        if !gateway.alive {
            return;
        }
        gateway.say(self.scenario.report_interval_ms);
        self.calendar.after(self.scenario.report_delay_ms, Due::Heard(index));
        self.calendar.after(self.scenario.report_interval_ms, Due::Report(index));
    }

    fn hear(&mut self, index: u16) {
        let now_ms = self.calendar.now_ms();
        let Some(report) = self.gateways[usize::from(index)].heard() else { return };
        self.schedulers.iter_mut().for_each(|scheduler| scheduler.hear(report, now_ms));
    }

    fn happens(&mut self, index: u16) {
        let event = self.scenario.event[usize::from(index)];
        let left_ms = (event.at * 1_000).saturating_sub(self.now_ms());
        if left_ms > 0 {
            return self.calendar.after(left_ms, Due::Happens(index));
        }
        match event.what {
            What::Lose(share) => self.some_gateways(share).into_iter().for_each(|gateway| self.kill(gateway)),
            What::Silence(share) => {
                for gateway in self.some_gateways(share) {
                    self.gateways[gateway].silent = true;
                }
            }
            What::Hear => self.gateways.iter_mut().for_each(|gateway| gateway.silent = false),
            What::Percent(percent) => self.ramp(percent),
            What::Drop(share) => {
                let mut all = self.online.clone();
                all.shuffle(&mut self.rng);
                all.truncate((all.len() as f64 * share) as usize);
                all.into_iter().for_each(|id| self.come(id, RETRY_BASE_MS));
            }
        }
    }

    /// A share of the living gateways, at random.
    fn some_gateways(&mut self, share: f64) -> Vec<usize> {
        let mut alive: Vec<_> =
            (0..self.gateways.len()).filter(|index| self.gateways[*index].alive).collect();
        alive.shuffle(&mut self.rng);
        alive.truncate((alive.len() as f64 * share).round() as usize);
        alive
    }

    fn kill(&mut self, index: usize) {
        let gateway = &mut self.gateways[index];
        gateway.alive = false;
        // Those in its backlog give up by themselves.
        gateway.backlog.clear();
        let lost: Vec<_> = self
            .online
            .iter()
            .copied()
            .filter(|id| usize::from(self.clients[*id as usize].gateway) == index)
            .collect();
        lost.into_iter().for_each(|id| self.come(id, RETRY_BASE_MS));
    }

    fn ramp(&mut self, percent: f64) {
        self.policy.gray.retain(|rule| rule.id != RAMP);
        self.policy.gray.push(GrayRule::splitting(RAMP, CANARY, percent));
    }
}

fn exponential(rng: &mut SmallRng, mean: f64) -> f64 {
    // Of (0, 1]: its logarithm is finite.
    -mean * (1.0 - rng.random::<f64>()).ln()
}

/// How many of a Poisson process of this mean fall into one step: counts exponential gaps.
fn poisson(rng: &mut SmallRng, mean: f64) -> usize {
    let mut left = mean;
    let mut count = 0;
    loop {
        left -= exponential(rng, 1.0);
        if left < 0.0 {
            return count;
        }
        count += 1;
    }
}
