//! Messages to one group of everybody: how long until the first, the median and the last member is notified.
//!
//! A member counts rows: when its inbox seq has grown by k since the start, the k-th message reached it. So no message needs
//! to be read, merged notifies count for all they stand for, and a group that has no inbox rows is followed by its own seq.
//! The sender keeps one message in flight: the k-th intended is the k-th in the group.

use berth_proto::client::{
    ConversationSeq, Response, SendRequest, Target, request::Method, response::Result as Answer, target::To,
};
use bytes::Bytes;

use super::{
    fleet::{Fleet, Work},
    histogram::Histogram,
    pace::{Flight, Flights, Nanos, Pace, Place, QUIET, SECOND},
    tally::Tally,
};

/// The warm-up message has reached everybody when all have it, or after this.
const WARM_UP: Nanos = 20 * SECOND;

/// The only place in flight.
const PLACE: Place = Place { lane: 0, id: 1 };

/// How the group is written to.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Names the run in message ids.
    pub run: String,
    /// The group.
    pub group_id: String,
    /// Whether this process has the sender: its first client.
    pub sends: bool,
    /// Messages a second.
    pub rate: f64,
    /// Bytes of a body.
    pub size: usize,
    /// How long.
    pub duration: Nanos,
}

#[derive(Debug, Clone, Copy, Default)]
struct Member {
    /// The inbox seq and the conversation's seq it was told last.
    inbox: u64,
    conversation: u64,
    /// Rows of the group that reached it since the start.
    reached: u64,
}

/// One sender, and members.
pub struct Group {
    shape: Shape,
    body: Bytes,
    flights: Flights,
    pace: Pace,
    members: Vec<Member>,
    /// When the warm-up began; 0: not yet.
    warming: Nanos,
    begun: Nanos,
    last: Nanos,
    ended: bool,
    /// Being tried again after a retryable error.
    again: Option<(Flight, Nanos)>,
    accepted: u64,
    notifies: u64,
    notified: u64,
    repaired: u64,
    accepted_at: Nanos,
    late: Histogram,
    ack: Histogram,
    member: Histogram,
    rounds: Tally,
}

impl Group {
    /// Nothing is sent before the warm-up.
    pub fn new(shape: Shape, clients: usize) -> Self {
        Self {
            body: vec![b'x'; shape.size].into(),
            flights: Flights::new(0, 0, 0, None, 0),
            pace: Pace::new(0, shape.rate),
            members: vec![Member::default(); clients - usize::from(shape.sends)],
            warming: 0,
            begun: 0,
            last: 0,
            ended: false,
            again: None,
            accepted: 0,
            notifies: 0,
            notified: 0,
            repaired: 0,
            accepted_at: 0,
            late: Histogram::default(),
            ack: Histogram::default(),
            member: Histogram::default(),
            rounds: Tally::default(),
            shape,
        }
    }

    fn send(&self, fleet: &mut Fleet, id: u32, name: &str) {
        let to = To::GroupId(self.shape.group_id.clone());
        let send = SendRequest {
            client_msg_id: format!("{}-{name}", self.shape.run),
            to: Some(Target { to: Some(to) }),
            r#type: String::new(),
            body: self.body.clone(),
        };
        fleet.request(0, id, Method::Send(send));
    }

    /// Messages that each member should have got.
    fn total(&self) -> u64 {
        if self.shape.sends && self.ended {
            return self.flights.launched();
        }
        // As many as fit: the sender sends them all, however late.
        self.pace.before(self.begun + self.shape.duration)
    }

    fn reached(&mut self, nth: usize, rows: u64, now: Nanos) {
        for _ in 0..rows {
            let number = self.members[nth].reached;
            let intended = self.pace.at(number);
            // A row that comes before the message was sent is not the message's: somebody else's, from before.
            if intended > now {
                return;
            }
            self.members[nth].reached += 1;
            let nanos = now - intended;
            self.member.record(nanos);
            self.rounds.rounds.entry(number).or_default().record(nanos);
            self.notified += 1;
            self.last = now;
        }
    }
}

impl Work for Group {
    /// One message that is not counted reaches everybody: the joins of all are told by then.
    fn prepared(&mut self, fleet: &mut Fleet, now: Nanos) -> bool {
        if self.warming == 0 {
            self.warming = now;
            if self.shape.sends {
                self.send(fleet, PLACE.id + 1, "warm-up");
            }
        }
        let all = self.members.iter().all(|member| member.reached > 0);
        all && now > self.last + SECOND / 2 || now > self.warming + WARM_UP || fleet.live == 0
    }

    fn start(&mut self, fleet: &mut Fleet, at: Nanos) {
        self.pace = Pace::new(at, self.shape.rate);
        self.members.iter_mut().for_each(|member| member.reached = 0);
        (self.begun, self.last) = (at, at);
        if self.shape.sends {
            self.flights = Flights::new(1, 1, 1, Some(self.pace.clone()), at + self.shape.duration);
            if !fleet.is_live(0) {
                self.flights.close(0);
            }
        }
    }

    fn due(&mut self, fleet: &mut Fleet, now: Nanos) -> Option<Nanos> {
        if self.begun == 0 || !self.shape.sends {
            return None;
        }
        if let Some((flight, at)) = self.again {
            if at > now {
                return Some(at);
            }
            self.again = None;
            self.send(fleet, PLACE.id, &flight.number.to_string());
        }
        if let Some((place, flight)) = self.flights.launch(now) {
            self.late.record(now.saturating_sub(flight.intended));
            self.send(fleet, place.id, &flight.number.to_string());
        }
        self.flights.next_at()
    }

    fn told(&mut self, _: &mut Fleet, who: usize, seq: u64, by: Option<&[ConversationSeq]>, now: Nanos) {
        let Some(nth) = who.checked_sub(usize::from(self.shape.sends)) else { return };
        let member = &mut self.members[nth];
        let conversation = by.unwrap_or_default().iter().map(|told| told.seq).max().unwrap_or(0);
        let rows = seq.saturating_sub(member.inbox).max(conversation.saturating_sub(member.conversation));
        member.inbox = member.inbox.max(seq);
        member.conversation = member.conversation.max(conversation);
        if self.begun == 0 {
            if self.warming > 0 && rows > 0 {
                member.reached += rows;
                self.last = now;
            }
            return;
        }
        match by {
            Some(_) => self.notifies += 1,
            None => self.repaired += rows,
        }
        self.reached(nth, rows, now);
    }

    fn answered(&mut self, fleet: &mut Fleet, _: usize, response: Response, now: Nanos) {
        if response.id != PLACE.id {
            if let Some(Answer::Error(error)) = response.result {
                fleet.error(format!("warm-up:{}", error.code));
            }
            return;
        }
        let Some(flight) = self.flights.land(PLACE) else { return };
        match response.result {
            Some(Answer::Send(_)) => {
                self.accepted += 1;
                self.accepted_at = now;
                self.ack.record(now.saturating_sub(flight.intended));
            }
            Some(Answer::Error(error)) => {
                fleet.error(format!("send:{}", error.code));
                if error.retryable {
                    // Under the same id until it is accepted, so that the k-th stays the k-th.
                    self.flights.keep(PLACE, flight);
                    let wait = u64::from(error.retry_after_ms.clamp(10, 1_000)) * 1_000_000;
                    self.again = Some((flight, now + wait));
                }
            }
            _ => fleet.error("send:unreadable"),
        }
    }

    fn lost(&mut self, fleet: &mut Fleet, who: usize, _: Nanos) {
        if self.shape.sends && who == 0 {
            self.again = None;
            for _ in self.flights.close(0) {
                fleet.error("send:connection-lost");
            }
        }
    }

    fn done(&self, now: Nanos) -> bool {
        if self.begun == 0 {
            return self.ended;
        }
        let stuck = self.shape.sends && self.flights.stuck();
        let over = self.ended || stuck || now >= self.begun + self.shape.duration;
        let sent = !self.shape.sends
            || self.flights.in_flight() == 0 && (self.ended || self.flights.next_at().is_none());
        let waited = now.saturating_sub(self.last.max(self.begun)) > QUIET;
        over && (waited || sent && self.members.len() as u64 * self.total() <= self.notified)
    }

    fn stop(&mut self) {
        self.ended = true;
        self.flights.stop();
    }

    fn progress(&self) -> String {
        format!("{} accepted, {} delivered", self.accepted, self.notified)
    }

    fn finish(&mut self, tally: &mut Tally) {
        tally.aborted |= self.flights.aborted();
        let messages = match self.begun {
            0 => 0,
            // Cut short: what was sent of the last one is not known everywhere.
            _ if self.ended => self.members.iter().map(|member| member.reached).max().unwrap_or(0),
            _ => self.total(),
        };
        tally.intended += messages * self.members.len() as u64;
        tally.succeeded += self.notified;
        if self.shape.sends {
            tally.set("sent", self.flights.launched());
            tally.set("accepted", self.accepted);
            tally.set("messages", messages);
            tally.spans.insert("accepted".into(), self.accepted_at.saturating_sub(self.begun));
        }
        tally.set("deliveries", self.notified);
        tally.set("undelivered", (messages * self.members.len() as u64).saturating_sub(self.notified));
        tally.set("notifies", self.notifies);
        tally.set("notifiedByHeartbeat", self.repaired);
        tally.spans.insert("deliveries".into(), self.last.saturating_sub(self.begun));
        tally.latency("late", std::mem::take(&mut self.late));
        tally.latency("ack", std::mem::take(&mut self.ack));
        tally.latency("member", std::mem::take(&mut self.member));
        tally.rounds = std::mem::take(&mut self.rounds.rounds);
    }
}
