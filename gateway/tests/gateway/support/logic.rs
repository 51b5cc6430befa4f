//! A logic in memory: opens sessions, replaces them by epoch, answers requests, and lets the test see and hold everything.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use berth_proto::{
    client::{self, ConversationSeq, request::Method, response},
    code::{CloseCode, ErrorCode},
    link::{Link, LogicService, Refused, RefusedReason},
    wire::{
        AttachGateway, ClientRequest, ClientResponse, CloseConnection, CloseSession, LeaseRenewed,
        NotifyConnection, OpenSession, RenewLease, SessionOpened, ToGateway, ToLogic, to_gateway, to_logic,
    },
};

/// What the logic does with what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Manner {
    /// Answers at once.
    #[default]
    Answers,
    /// Takes and keeps silent.
    Silent,
    /// Refuses the batch: its queue is full.
    Full,
}

#[derive(Default)]
pub struct FakeLogic {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub struct State {
    pub opens: Manner,
    pub requests: Manner,
    pub closes: Manner,
    /// The link is down.
    pub away: bool,
    /// What a silent logic was asked.
    pub waiting: Vec<ClientRequest>,
    pub opened: Vec<OpenSession>,
    pub closed: Vec<CloseSession>,
    pub requested: Vec<ClientRequest>,
    pub refreshes: usize,
    pub renewals: usize,
    pub lease_ms: u32,
    /// The next renewal is answered so.
    pub forgotten: bool,
    /// Opens are refused with this.
    pub refuse_opens: Option<(ErrorCode, CloseCode)>,
    pub inbox_seq: HashMap<String, u64>,
    /// Each answer's `pull` has a row of so many bytes.
    pub row_bytes: usize,
    routes: HashMap<(String, String), (u64, u64)>,
    epoch: u64,
    down: Option<Arc<dyn Link<ToGateway>>>,
}

impl FakeLogic {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    /// The handle of a session.
    pub fn handle(&self, user: &str, device: &str) -> u64 {
        self.state().routes[&(user.to_owned(), device.to_owned())].0
    }

    pub fn send(&self, messages: Vec<to_gateway::Message>) {
        let down = self.state().down.clone().expect("attached");
        let batch = messages.into_iter().map(|message| ToGateway { message: Some(message) }).collect();
        down.send(batch).expect("the gateway takes everything");
    }

    /// The network to it breaks, or is there again.
    pub fn network(&self, up: bool) {
        let down = self.state().down.clone().expect("attached");
        down.network(up);
    }

    pub fn notify(&self, handle: u64, inbox_seq: u64) {
        self.send(vec![notify(handle, inbox_seq, Vec::new())]);
    }

    /// Answers a request that was kept.
    pub fn answer(&self, request: &ClientRequest) {
        let answer = answer(request, 0);
        self.send(vec![answer]);
    }
}

pub fn notify(handle: u64, inbox_seq: u64, conversations: Vec<ConversationSeq>) -> to_gateway::Message {
    to_gateway::Message::Notify([NotifyConnection { handle, inbox_seq, conversations }].into_iter().collect())
}

struct Up {
    state: Arc<Mutex<State>>,
}

impl LogicService for FakeLogic {
    fn attach(&self, _: AttachGateway, down: Arc<dyn Link<ToGateway>>) -> Arc<dyn Link<ToLogic>> {
        self.state().down = Some(down);
        Arc::new(Up { state: Arc::clone(&self.state) })
    }
}

impl Link<ToLogic> for Up {
    fn send(&self, batch: Vec<ToLogic>) -> Result<(), Refused<ToLogic>> {
        let mut state = self.state.lock().expect("no panic");
        let (mut rest, mut answers) = (Vec::new(), Vec::new());
        for message in batch {
            if !state.take(message.message.as_ref().expect("a message"), &mut answers) {
                rest.push(message);
            }
        }
        let down = state.down.clone().expect("attached");
        drop(state);
        let answers = answers.into_iter().map(|message| ToGateway { message: Some(message) }).collect();
        down.send(answers).expect("the gateway takes everything");
        if rest.is_empty() { Ok(()) } else { Err(Refused { rest, reason: RefusedReason::Full }) }
    }

    fn connected(&self) -> bool {
        !self.state.lock().expect("no panic").away
    }
}

impl State {
    /// False: not taken.
    fn take(&mut self, message: &to_logic::Message, answers: &mut Vec<to_gateway::Message>) -> bool {
        match message {
            _ if self.away => return false,
            to_logic::Message::Close(_) if self.closes == Manner::Full => return false,
            to_logic::Message::Open(_) if self.opens == Manner::Full => return false,
            to_logic::Message::Request(_) if self.requests == Manner::Full => return false,
            to_logic::Message::Open(open) => {
                self.opened.push(open.clone());
                if self.opens == Manner::Answers {
                    self.open(open, answers);
                }
            }
            to_logic::Message::Close(close) => self.closed.push(close.clone()),
            to_logic::Message::Request(request) => {
                self.requested.push(request.clone());
                match self.requests {
                    Manner::Answers => answers.push(answer(request, self.row_bytes)),
                    _ => self.waiting.push(request.clone()),
                }
            }
            to_logic::Message::Refresh(refresh) => {
                self.refreshes += 1;
                let inboxes = refresh.inboxes.iter().map(|query| NotifyConnection {
                    handle: query.handle,
                    inbox_seq: self.inbox_seq.get(&query.user_id).copied().unwrap_or_default(),
                    conversations: Vec::new(),
                });
                answers.push(to_gateway::Message::Refreshed(inboxes.collect()));
            }
            &to_logic::Message::Renew(RenewLease { now_ms: said_ms, .. }) => {
                self.renewals += 1;
                let forgotten = std::mem::take(&mut self.forgotten);
                let renewed = LeaseRenewed { lease_ms: self.lease_ms, forgotten, said_ms };
                answers.push(to_gateway::Message::Lease(renewed));
            }
        }
        true
    }

    fn open(&mut self, open: &OpenSession, answers: &mut Vec<to_gateway::Message>) {
        if let Some((code, close)) = self.refuse_opens {
            answers.push(to_gateway::Message::Opened(SessionOpened {
                handle: open.handle,
                error: Some(code.error("no")),
                close_code: close.number().into(),
                ..SessionOpened::default()
            }));
            return;
        }
        self.epoch += 1;
        let key = (open.user_id.clone(), open.device_id.clone());
        if let Some((handle, session_epoch)) = self.routes.insert(key, (open.handle, self.epoch))
            && handle != open.handle
        {
            answers.push(to_gateway::Message::Close(CloseConnection {
                handle,
                session_epoch,
                code: CloseCode::SessionReplaced.number().into(),
                reason: String::new(),
            }));
        }
        answers.push(to_gateway::Message::Opened(SessionOpened {
            handle: open.handle,
            session_epoch: self.epoch,
            inbox_seq: self.inbox_seq.get(&open.user_id).copied().unwrap_or_default(),
            inbox_epoch: 1,
            ..SessionOpened::default()
        }));
    }
}

fn answer(request: &ClientRequest, row_bytes: usize) -> to_gateway::Message {
    let client_request = request.request.as_ref().expect("a request");
    let result = match client_request.method.as_ref().expect("a method") {
        Method::Send(_) => {
            response::Result::Send(client::SendResponse { message_id: 9, ..Default::default() })
        }
        Method::Pull(_) => {
            response::Result::Pull(client::PullResponse { items: rows(row_bytes), ..Default::default() })
        }
        _ => response::Result::Ack(client::AckResponse {}),
    };
    to_gateway::Message::Response(ClientResponse {
        handle: request.handle,
        response: Some(client::Response { id: client_request.id, result: Some(result) }),
    })
}

fn rows(bytes: usize) -> Vec<client::InboxItem> {
    if bytes == 0 {
        return Vec::new();
    }
    let message = client::Message { body: vec![b'x'; bytes].into(), ..Default::default() };
    let event = client::Event { event: Some(client::event::Event::Message(message)) };
    vec![client::InboxItem { seq: 1, event: Some(event) }]
}
