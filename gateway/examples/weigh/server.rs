//! The gateway under the scale, with a logic that only opens sessions.

use std::sync::{Arc, Mutex};

use berth_gateway::{Config, Gateway};
use berth_proto::{
    link::{Link, LogicService, Refused, SchedulerService},
    metric::Registry,
    ticket::TicketSigner,
    wire::{
        AttachGateway, FromScheduler, NotifyConnection, NotifyConnections, SessionOpened, TicketKeys,
        ToGateway, ToLogic, ToScheduler, from_scheduler, to_gateway, to_logic,
    },
};

use crate::{
    child::{Order, obey, paced},
    load::SECRET,
};

/// Notifies said at once: the rows of one step of logic's spread.
const STEP: usize = 512;

/// Obeys the commands on stdin until it ends.
pub fn run() {
    let mut config = Config::new("gw-1", "127.0.0.1:0".parse().expect("an address"));
    config.workers = 1;
    config.handshakes_per_second = 1_000_000;
    // Nobody beats but when told to.
    config.heartbeat.timeout_ms = 3_600_000;
    let gateway = Gateway::start(config, Registry::new(&metrics::NoopRecorder)).expect("starts");
    let logic = Arc::new(Logic::default());
    gateway.attach_scheduler(Arc::new(Keys));
    gateway.attach_logic(Arc::clone(&logic) as _);
    println!("{}", gateway.local_addr());
    obey(|order| logic.notify(&order));
}

struct Keys;

impl SchedulerService for Keys {
    fn attach(&self, _: AttachGateway, down: Arc<dyn Link<FromScheduler>>) -> Arc<dyn Link<ToScheduler>> {
        let keys = TicketKeys {
            public_keys: vec![TicketSigner::from_secret(SECRET).public_key().to_vec()],
            ..Default::default()
        };
        down.send(vec![FromScheduler { message: Some(from_scheduler::Message::Keys(keys)) }]).expect("taken");
        Arc::new(Nowhere)
    }
}

struct Nowhere;

impl Link<ToScheduler> for Nowhere {
    fn send(&self, _: Vec<ToScheduler>) -> Result<(), Refused<ToScheduler>> {
        Ok(())
    }
}

#[derive(Default)]
struct Logic {
    /// Handles are kept in memory of their own weight: 8 bytes a connection.
    handles: Arc<Mutex<Vec<u64>>>,
    down: Mutex<Option<Arc<dyn Link<ToGateway>>>>,
}

impl Logic {
    fn notify(&self, order: &Order) {
        let handles = self.handles.lock().expect("no panic");
        let down = self.down.lock().expect("no panic").clone().expect("attached");
        let send = |batch| {
            down.send(vec![ToGateway { message: Some(to_gateway::Message::Notify(batch)) }]).expect("taken");
        };
        let all = |seq: &dyn Fn(u64) -> u64| {
            let mut seqs = (0..).map(seq);
            for some in handles.chunks(STEP) {
                let mut batch = NotifyConnections::with_capacity(some.len());
                some.iter().zip(&mut seqs).for_each(|(handle, inbox_seq)| batch.push(*handle, inbox_seq));
                send(batch);
            }
        };
        match *order {
            Order::Same(inbox_seq) => all(&|_| inbox_seq),
            Order::Different(from) => all(&|index| from + index),
            Order::Single(inbox_seq, count) => paced(count, |index| {
                let mut batch = NotifyConnections::default();
                batch.push(handles[index], inbox_seq);
                send(batch);
            }),
        }
    }
}

struct Up {
    handles: Arc<Mutex<Vec<u64>>>,
    down: Arc<dyn Link<ToGateway>>,
}

impl LogicService for Logic {
    fn attach(&self, _: AttachGateway, down: Arc<dyn Link<ToGateway>>) -> Arc<dyn Link<ToLogic>> {
        *self.down.lock().expect("no panic") = Some(Arc::clone(&down));
        Arc::new(Up { handles: Arc::clone(&self.handles), down })
    }
}

impl Link<ToLogic> for Up {
    fn send(&self, batch: Vec<ToLogic>) -> Result<(), Refused<ToLogic>> {
        let answer = |message| match message {
            to_logic::Message::Open(open) => {
                self.handles.lock().expect("no panic").push(open.handle);
                let opened =
                    SessionOpened { handle: open.handle, session_epoch: 1, ..SessionOpened::default() };
                Some(to_gateway::Message::Opened(opened))
            }
            to_logic::Message::Refresh(refresh) => {
                let inboxes = refresh
                    .inboxes
                    .iter()
                    .map(|query| NotifyConnection { handle: query.handle, ..NotifyConnection::default() });
                Some(to_gateway::Message::Refreshed(inboxes.collect()))
            }
            _ => None,
        };
        let answers = batch.into_iter().filter_map(|message| answer(message.message?));
        self.down.send(answers.map(|message| ToGateway { message: Some(message) }).collect()).expect("taken");
        Ok(())
    }
}
