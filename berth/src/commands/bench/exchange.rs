//! Direct messages from a few senders to random connected users: `push` measures until the notify, `send` until the pull,
//! and counts that each message comes exactly once.

use std::collections::VecDeque;

use berth_proto::client::{
    ConversationSeq, PullRequest, PullResponse, Response, SendRequest, Target, event::Event, request::Method,
    response::Result as Answer, target::To,
};
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{
    fleet::{Fleet, Work},
    histogram::Histogram,
    pace::{Flights, Nanos, Pace, Place, QUIET},
    tally::Tally,
};

/// The request id of a receiver's pull: it has one in flight.
const PULL: u32 = 1;

/// Rows of a pull: the most there are.
const PAGE: u32 = berth_proto::limits::PAGE_MAX;

/// Receivers tried at random before they are gone through in order: only when most are gone.
const TRIES: usize = 64;

/// How the messages are sent.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Names the run in message ids.
    pub run: String,
    /// The first clients of the fleet send, these many.
    pub senders: usize,
    /// Messages a second; none: `in_flight` at any time.
    pub rate: Option<f64>,
    /// Messages in flight in a closed loop.
    pub in_flight: usize,
    /// Bytes of a body.
    pub size: usize,
    /// How long.
    pub duration: Nanos,
    /// Whether receivers pull.
    pub pull: bool,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, Default)]
struct Message {
    intended: Nanos,
    /// Which receiver is to get it.
    to: u32,
    accepted: bool,
    seen: u8,
}

#[derive(Debug, Default)]
struct Receiver {
    /// Numbers of the messages on their way to it, oldest first.
    expected: VecDeque<u64>,
    /// The inbox seq up to which notifies were accounted for.
    told: u64,
    /// The inbox seq up to which it pulled.
    cursor: u64,
    pulling: bool,
    /// Lost, and not heard of since.
    gone: bool,
}

/// When the last of each came.
#[derive(Debug, Default)]
struct Last {
    accepted: Nanos,
    notified: Nanos,
    pulled: Nanos,
    /// Of anything, refusals too.
    moved: Nanos,
}

/// Senders and receivers.
pub struct Exchange {
    shape: Shape,
    body: Bytes,
    random: SmallRng,
    flights: Flights,
    /// By number, over the whole run: 16 bytes a message.
    messages: Vec<Message>,
    receivers: Vec<Receiver>,
    begun: Nanos,
    last: Last,
    /// Whether it was told to end early: what is on its way then is not waited for.
    cut: bool,
    /// Whether nobody was left to send or to receive.
    aborted: bool,
    late: Histogram,
    ack: Histogram,
    notify: Histogram,
    pulled: Histogram,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: u64,
    refused: u64,
    unknown: u64,
    notified: u64,
    notifies: u64,
    repaired: u64,
    pulled: u64,
    pulls: u64,
    duplicates: u64,
    gaps: u64,
}

impl Exchange {
    /// Nothing is sent before [`Work::start`].
    pub fn new(shape: Shape, clients: usize, seed: u64) -> Self {
        let receivers = clients.saturating_sub(shape.senders);
        Self {
            body: vec![b'x'; shape.size].into(),
            random: SmallRng::seed_from_u64(seed),
            flights: Flights::new(0, 0, 0, None, 0),
            messages: Vec::new(),
            receivers: std::iter::repeat_with(Receiver::default).take(receivers).collect(),
            begun: 0,
            last: Last::default(),
            cut: false,
            aborted: false,
            late: Histogram::default(),
            ack: Histogram::default(),
            notify: Histogram::default(),
            pulled: Histogram::default(),
            counts: Counts::default(),
            shape,
        }
    }

    /// A connected receiver at random; none if none is left.
    fn target(&mut self, fleet: &Fleet) -> Option<usize> {
        if self.receivers.is_empty() {
            return None;
        }
        for _ in 0..TRIES {
            let nth = self.random.random_range(0..self.receivers.len());
            if fleet.is_live(self.shape.senders + nth) {
                return Some(nth);
            }
        }
        (0..self.receivers.len()).find(|nth| fleet.is_live(self.shape.senders + nth))
    }

    fn launch(&mut self, fleet: &mut Fleet, place: Place, number: u64, intended: Nanos, now: Nanos) {
        let target = self.target(fleet);
        let to = target.map_or(0, |nth| u32::try_from(nth).expect("a client's number"));
        self.messages.push(Message { intended, to, ..Message::default() });
        let Some(nth) = target else {
            // It was not sent, and nothing more can be.
            self.flights.land(place);
            self.aborted = true;
            self.flights.stop();
            return fleet.error("send:no-receiver-connected");
        };
        self.late.record(now.saturating_sub(intended));
        self.receivers[nth].expected.push_back(number);
        let to = To::UserId(fleet.user(self.shape.senders + nth).to_owned());
        let send = SendRequest {
            client_msg_id: format!("{}-{number}", self.shape.run),
            to: Some(Target { to: Some(to) }),
            r#type: String::new(),
            body: self.body.clone(),
        };
        fleet.request(place.lane, place.id, Method::Send(send));
    }

    /// The message will not come: nobody waits for it.
    fn forget(&mut self, number: u64) {
        let to = self.message(number).to;
        self.receivers[to as usize].expected.retain(|known| *known != number);
    }

    fn sent(&mut self, fleet: &mut Fleet, sender: usize, response: Response, now: Nanos) {
        let Some(flight) = self.flights.land(Place { lane: sender, id: response.id }) else { return };
        self.last.moved = now;
        match response.result {
            Some(Answer::Send(_)) => {
                self.counts.accepted += 1;
                self.ack.record(now.saturating_sub(flight.intended));
                self.message(flight.number).accepted = true;
                self.last.accepted = now;
            }
            Some(Answer::Error(error)) => {
                self.counts.refused += 1;
                fleet.error(format!("send:{}", error.code));
                self.forget(flight.number);
            }
            _ => fleet.error("send:unreadable"),
        }
    }

    fn message(&mut self, number: u64) -> &mut Message {
        &mut self.messages[usize::try_from(number).expect("an index into memory")]
    }

    fn pull(&mut self, fleet: &mut Fleet, nth: usize) {
        let receiver = &mut self.receivers[nth];
        let who = self.shape.senders + nth;
        if receiver.pulling || fleet.seq(who) <= receiver.cursor {
            return;
        }
        receiver.pulling = true;
        self.counts.pulls += 1;
        let pull = PullRequest { after_seq: receiver.cursor, limit: PAGE };
        fleet.request(who, PULL, Method::Pull(pull));
    }

    fn page(&mut self, fleet: &mut Fleet, nth: usize, page: PullResponse, now: Nanos) {
        self.receivers[nth].pulling = false;
        // A server that has nothing where it said there is something would be asked for ever.
        let more = !page.items.is_empty();
        for item in page.items {
            if item.seq != self.receivers[nth].cursor + 1 {
                self.counts.gaps += 1;
            }
            self.receivers[nth].cursor = item.seq;
            let Some(Event::Message(message)) = item.event.and_then(|event| event.event) else { continue };
            let number = message.client_msg_id.strip_prefix(&self.shape.run);
            let number = number.and_then(|rest| rest.strip_prefix('-')?.parse::<usize>().ok());
            let Some(message) = number.and_then(|number| self.messages.get_mut(number)) else { continue };
            message.seen = message.seen.saturating_add(1);
            if message.seen > 1 {
                self.counts.duplicates += 1;
                continue;
            }
            self.counts.pulled += 1;
            self.pulled.record(now.saturating_sub(message.intended));
            (self.last.pulled, self.last.moved) = (now, now);
        }
        if more {
            self.pull(fleet, nth);
        }
    }

    fn all_arrived(&self) -> bool {
        let arrived = if self.shape.pull { self.counts.pulled } else { self.counts.notified };
        arrived >= self.counts.accepted
    }
}

impl Work for Exchange {
    fn start(&mut self, fleet: &mut Fleet, at: Nanos) {
        let per_lane = berth_proto::limits::IN_FLIGHT;
        let places = match self.shape.rate {
            Some(_) => per_lane * self.shape.senders,
            None => self.shape.in_flight,
        };
        let pace = self.shape.rate.map(|rate| Pace::new(at, rate));
        self.flights = Flights::new(self.shape.senders, per_lane, places, pace, at + self.shape.duration);
        for nth in 0..self.receivers.len() {
            let seq = fleet.seq(self.shape.senders + nth);
            (self.receivers[nth].told, self.receivers[nth].cursor) = (seq, seq);
        }
        self.begun = at;
        self.last = Last { accepted: at, notified: at, pulled: at, moved: at };
        // Who did not get in sends nothing.
        for sender in (0..self.shape.senders).filter(|sender| !fleet.is_live(*sender)) {
            self.flights.close(sender);
        }
    }

    fn due(&mut self, fleet: &mut Fleet, now: Nanos) -> Option<Nanos> {
        while self.begun > 0
            && now >= self.begun
            && let Some((place, flight)) = self.flights.launch(now)
        {
            self.launch(fleet, place, flight.number, flight.intended, now);
        }
        self.flights.next_at()
    }

    fn told(&mut self, fleet: &mut Fleet, who: usize, seq: u64, by: Option<&[ConversationSeq]>, now: Nanos) {
        let Some(nth) = who.checked_sub(self.shape.senders).filter(|_| self.begun > 0) else { return };
        let receiver = &mut self.receivers[nth];
        receiver.gone = false;
        let rows = seq.saturating_sub(receiver.told);
        receiver.told = receiver.told.max(seq);
        match by {
            Some(_) => self.counts.notifies += 1,
            None => self.counts.repaired += rows.min(receiver.expected.len() as u64),
        }
        for _ in 0..rows {
            let Some(number) = self.receivers[nth].expected.pop_front() else { break };
            let intended = self.message(number).intended;
            self.notify.record(now.saturating_sub(intended));
            self.counts.notified += 1;
            (self.last.notified, self.last.moved) = (now, now);
        }
        if self.shape.pull {
            self.pull(fleet, nth);
        }
    }

    fn answered(&mut self, fleet: &mut Fleet, who: usize, response: Response, now: Nanos) {
        match who.checked_sub(self.shape.senders) {
            None => self.sent(fleet, who, response, now),
            Some(nth) => match response.result {
                Some(Answer::Pull(page)) => self.page(fleet, nth, page, now),
                Some(Answer::Error(error)) => {
                    self.receivers[nth].pulling = false;
                    fleet.error(format!("pull:{}", error.code));
                }
                _ => fleet.error("pull:unreadable"),
            },
        }
    }

    fn lost(&mut self, fleet: &mut Fleet, who: usize, _: Nanos) {
        if let Some(nth) = who.checked_sub(self.shape.senders) {
            let receiver = &mut self.receivers[nth];
            (receiver.pulling, receiver.gone) = (false, true);
            return;
        }
        for flight in self.flights.close(who) {
            self.counts.unknown += 1;
            fleet.error("send:connection-lost");
            self.forget(flight.number);
        }
    }

    fn done(&self, now: Nanos) -> bool {
        let waited = now.saturating_sub(self.last.moved) > QUIET;
        let settled = waited || self.flights.in_flight() == 0 && self.all_arrived();
        self.begun > 0 && settled && self.flights.over(now, self.last.moved)
    }

    fn stop(&mut self) {
        self.cut = true;
        self.flights.stop();
    }

    fn progress(&self) -> String {
        let Counts { accepted, notified, pulled, .. } = self.counts;
        format!("{accepted} accepted, {notified} notified, {pulled} pulled")
    }

    fn finish(&mut self, tally: &mut Tally) {
        let counts = &self.counts;
        let launched = self.flights.launched();
        tally.aborted |= self.aborted || self.flights.aborted();
        let arrived = if self.shape.pull { counts.pulled } else { counts.notified };
        tally.intended += launched + self.flights.never_launched();
        tally.succeeded += counts.accepted.min(arrived);
        tally.set("sent", launched);
        tally.set("accepted", counts.accepted);
        tally.set("refused", counts.refused);
        tally.set("unanswered", counts.unknown + self.flights.in_flight() as u64);
        tally.set("notified", counts.notified);
        tally.set("notifies", counts.notifies);
        tally.set("notifiedByHeartbeat", counts.repaired);
        if self.shape.pull {
            // Who is gone cannot pull, and a run that was cut short waited for nobody: that loses nothing.
            let here = |message: &&Message| !self.cut && !self.receivers[message.to as usize].gone;
            let unseen = self.messages.iter().filter(|message| message.accepted && message.seen == 0);
            let lost = unseen.filter(here).count();
            tally.set("pulled", counts.pulled);
            tally.set("pulls", counts.pulls);
            tally.set("duplicates", counts.duplicates);
            tally.set("gaps", counts.gaps);
            tally.set("lostMessages", lost as u64);
        }
        let Last { accepted, notified, pulled, .. } = self.last;
        for (name, last) in [("accepted", accepted), ("notified", notified), ("pulled", pulled)] {
            tally.spans.insert(name.into(), last.saturating_sub(self.begun));
        }
        tally.latency("late", std::mem::take(&mut self.late));
        tally.latency("ack", std::mem::take(&mut self.ack));
        tally.latency("notify", std::mem::take(&mut self.notify));
        tally.latency("pull", std::mem::take(&mut self.pulled));
    }
}
