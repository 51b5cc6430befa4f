//! Schedules over keep-alive connections, and the load that is none: holding connections.

use serde_json::json;

use super::{
    arrive::{schedule_body, token_of},
    fleet::{Fleet, Work},
    histogram::Histogram,
    http::{Answer, Ask, AskKind},
    pace::{Flights, Nanos, Pace, Place, QUIET},
    tally::Tally,
    wire::Transport,
};
use berth_proto::schedule::Problem;

/// Tokens asked for at a time, where the dev endpoint gives them.
const TOKENS_AT_A_TIME: usize = 64;

/// Holds the connections until a time.
#[derive(Debug, Default)]
pub struct Hold {
    /// How long.
    pub duration: Nanos,
    until: Option<Nanos>,
}

impl Hold {
    /// For so long.
    pub fn new(duration: Nanos) -> Self {
        Self { duration, until: None }
    }
}

impl Work for Hold {
    fn due(&mut self, fleet: &mut Fleet, _: Nanos) -> Option<Nanos> {
        // There is nothing to hold any more, and nobody comes back.
        if self.until.is_some() && fleet.live == 0 && fleet.outside() == 0 {
            self.until = Some(0);
        }
        self.until
    }

    fn start(&mut self, _: &mut Fleet, at: Nanos) {
        self.until = Some(at + self.duration);
    }

    fn done(&self, now: Nanos) -> bool {
        self.until.is_some_and(|until| now >= until)
    }

    fn stop(&mut self) {
        self.until = Some(0);
    }

    fn finish(&mut self, tally: &mut Tally) {
        tally.intended += tally.count("connections");
        tally.succeeded +=
            (tally.count("connected") + tally.count("reconnected")).saturating_sub(tally.count("lost"));
    }
}

/// Users that ask for schedules in turn.
pub struct Asking {
    users: Vec<String>,
    tokens: Vec<Option<String>>,
    /// Tokens asked for, and not to be asked for again.
    asked: usize,
    given: usize,
    lanes: usize,
    rate: Option<f64>,
    duration: Nanos,
    body: String,
    flights: Flights,
    begun: Nanos,
    /// When the last schedule came, and the last answer of any kind.
    last: Nanos,
    moved: Nanos,
    scheduled: u64,
    refused: u64,
    late: Histogram,
    latency: Histogram,
}

impl Asking {
    /// `sign` makes a user's token; none: the scheduler's dev endpoint does.
    pub fn new(
        users: Vec<String>,
        sign: Option<&dyn Fn(&str) -> String>,
        lanes: usize,
        rate: Option<f64>,
        duration: Nanos,
        transport: Transport,
    ) -> Self {
        let tokens: Vec<_> = users.iter().map(|user| sign.map(|sign| sign(user))).collect();
        let signed = tokens.iter().filter(|token| token.is_some()).count();
        Self {
            users,
            tokens,
            asked: signed,
            given: signed,
            lanes,
            rate,
            duration,
            body: schedule_body(transport, ""),
            flights: Flights::new(0, 0, 0, None, 0),
            begun: 0,
            last: 0,
            moved: 0,
            scheduled: 0,
            refused: 0,
            late: Histogram::default(),
            latency: Histogram::default(),
        }
    }

    fn answered(&mut self, fleet: &mut Fleet, answer: Answer, now: Nanos) {
        let Some(flight) = self.flights.land(Place { lane: answer.who, id: 1 }) else { return };
        self.moved = now;
        match answer.result {
            Ok((200, _)) => {
                self.scheduled += 1;
                self.latency.record(now.saturating_sub(flight.intended));
                self.last = now;
            }
            Ok((status, body)) => {
                self.refused += 1;
                let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
                fleet.error(format!("schedule:{status}:{}", problem.reason));
            }
            Err(reason) => {
                fleet.error(format!("schedule:{reason}"));
                // In a closed loop a server that is gone would be asked in a tight loop.
                if self.rate.is_none() {
                    self.flights.close(answer.who);
                }
            }
        }
    }
}

impl Work for Asking {
    fn prepared(&mut self, fleet: &mut Fleet, now: Nanos) -> bool {
        self.moved = if self.moved == 0 { now } else { self.moved };
        while self.asked < self.users.len() && self.asked < self.given + TOKENS_AT_A_TIME {
            let body = json!({ "userId": self.users[self.asked] }).to_string();
            let bytes = fleet.post("/v1/dev/token", None, &body);
            fleet.ask(Ask { who: self.asked, kind: AskKind::Token, intended: now, bytes, again: false });
            self.asked += 1;
        }
        self.given >= self.users.len() || now > self.moved + 2 * QUIET
    }

    fn start(&mut self, _: &mut Fleet, at: Nanos) {
        let pace = self.rate.map(|rate| Pace::new(at, rate));
        self.flights = Flights::new(self.lanes, 1, self.lanes, pace, at + self.duration);
        (self.begun, self.last, self.moved) = (at, at, at);
    }

    fn due(&mut self, fleet: &mut Fleet, now: Nanos) -> Option<Nanos> {
        while self.begun > 0
            && now >= self.begun
            && let Some((place, flight)) = self.flights.launch(now)
        {
            let user = usize::try_from(flight.number).unwrap_or(0) % self.users.len();
            let bytes = fleet.post("/v1/schedule", self.tokens[user].as_deref(), &self.body);
            let intended = flight.intended;
            self.late.record(now.saturating_sub(intended));
            fleet.ask(Ask { who: place.lane, kind: AskKind::Schedule, intended, bytes, again: false });
        }
        self.flights.next_at()
    }

    fn http(&mut self, fleet: &mut Fleet, answer: Answer, now: Nanos) {
        if answer.kind == AskKind::Schedule {
            return self.answered(fleet, answer, now);
        }
        self.moved = now;
        self.given += 1;
        match answer.result {
            Ok((200, body)) => self.tokens[answer.who] = token_of(&body),
            Ok((status, _)) => fleet.error(format!("token:{status}")),
            Err(reason) => fleet.error(format!("token:{reason}")),
        }
    }

    fn done(&self, now: Nanos) -> bool {
        let settled = now.saturating_sub(self.moved) > QUIET || self.flights.in_flight() == 0;
        self.begun > 0 && settled && self.flights.over(now, self.moved)
    }

    fn stop(&mut self) {
        self.flights.stop();
    }

    fn progress(&self) -> String {
        format!("{} scheduled, {} refused", self.scheduled, self.refused)
    }

    fn finish(&mut self, tally: &mut Tally) {
        tally.intended += self.flights.launched() + self.flights.never_launched();
        tally.aborted |= self.flights.aborted();
        tally.succeeded += self.scheduled;
        tally.set("asked", self.flights.launched());
        tally.set("scheduled", self.scheduled);
        tally.set("refused", self.refused);
        tally.spans.insert("scheduled".into(), self.last.saturating_sub(self.begun));
        tally.latency("late", std::mem::take(&mut self.late));
        tally.latency("schedule", std::mem::take(&mut self.latency));
    }
}
