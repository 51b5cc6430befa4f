//! A scheduler that signs tickets, keeps reports and answers redirects as the test says.

use std::sync::{Arc, Mutex};

use berth_proto::{
    link::{Link, Refused, SchedulerService},
    ticket::TicketSigner,
    wire::{
        AttachGateway, Demand, FromScheduler, GatewayReport, RedirectAnswer, RedirectAsk, Ticket, TicketKeys,
        ToScheduler, from_scheduler, to_scheduler,
    },
};

pub struct FakeScheduler {
    signer: TicketSigner,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    reports: Vec<GatewayReport>,
    asks: Vec<RedirectAsk>,
    /// What redirects are answered with; none: not at all.
    answer: Option<RedirectAnswer>,
    used: Vec<u64>,
    /// To the gateways that are attached.
    down: Vec<Arc<dyn Link<FromScheduler>>>,
    /// The link is down.
    away: bool,
}

impl Default for FakeScheduler {
    fn default() -> Self {
        Self { signer: TicketSigner::from_secret(b"a test's secret of 32 bytes....."), state: Arc::default() }
    }
}

impl FakeScheduler {
    pub fn sign(&self, ticket: &Ticket) -> String {
        self.signer.sign(ticket)
    }

    pub fn answer_redirects(&self, answer: RedirectAnswer) {
        self.state.lock().expect("no panic").answer = Some(answer);
    }

    /// Tells every gateway how many clients a second are wanted.
    pub fn demand(&self, wanted_per_second: u64) {
        let down = self.state.lock().expect("no panic").down.clone();
        let message = from_scheduler::Message::Demand(Demand { wanted_per_second });
        for link in down {
            link.send(vec![FromScheduler { message: Some(message.clone()) }]).expect("taken");
        }
    }

    /// The key that it signs with leaked: every gateway is told that it is void, and another one.
    pub fn own_key_is_void(&self) {
        let other = TicketSigner::from_secret(b"a test's other secret, 32 bytes.");
        let keys = TicketKeys {
            public_keys: vec![other.public_key().to_vec()],
            void_keys: vec![self.signer.public_key().to_vec()],
            ..TicketKeys::default()
        };
        let down = self.state.lock().expect("no panic").down.clone();
        for link in down {
            let message = Some(from_scheduler::Message::Keys(keys.clone()));
            link.send(vec![FromScheduler { message }]).expect("taken");
        }
    }

    pub fn away(&self, away: bool) {
        self.state.lock().expect("no panic").away = away;
    }

    pub fn last_report(&self) -> Option<GatewayReport> {
        self.state.lock().expect("no panic").reports.last().cloned()
    }

    pub fn reports(&self) -> usize {
        self.state.lock().expect("no panic").reports.len()
    }

    pub fn asks(&self) -> Vec<RedirectAsk> {
        self.state.lock().expect("no panic").asks.clone()
    }

    pub fn used_tickets(&self) -> Vec<u64> {
        self.state.lock().expect("no panic").used.clone()
    }
}

struct Up {
    state: Arc<Mutex<State>>,
    down: Arc<dyn Link<FromScheduler>>,
}

impl SchedulerService for FakeScheduler {
    fn attach(&self, _: AttachGateway, down: Arc<dyn Link<FromScheduler>>) -> Arc<dyn Link<ToScheduler>> {
        let keys = TicketKeys { public_keys: vec![self.signer.public_key().to_vec()], ..Default::default() };
        down.send(vec![FromScheduler { message: Some(from_scheduler::Message::Keys(keys)) }]).expect("taken");
        self.state.lock().expect("no panic").down.push(Arc::clone(&down));
        Arc::new(Up { state: Arc::clone(&self.state), down })
    }
}

impl Link<ToScheduler> for Up {
    fn send(&self, batch: Vec<ToScheduler>) -> Result<(), Refused<ToScheduler>> {
        let mut state = self.state.lock().expect("no panic");
        for message in batch.into_iter().filter_map(|m| m.message) {
            match message {
                to_scheduler::Message::Report(report) => {
                    state.used.extend(&report.used_tickets);
                    state.reports.push(report);
                }
                to_scheduler::Message::Redirect(ask) => {
                    if let Some(answer) = &state.answer {
                        let answer = RedirectAnswer { handle: ask.handle, ..answer.clone() };
                        let message = Some(from_scheduler::Message::Redirect(answer));
                        self.down.send(vec![FromScheduler { message }]).expect("taken");
                    }
                    state.asks.push(ask);
                }
                // Nothing here outlives a scheduler.
                to_scheduler::Message::Carried(_) => {}
            }
        }
        Ok(())
    }

    fn connected(&self) -> bool {
        !self.state.lock().expect("no panic").away
    }
}
