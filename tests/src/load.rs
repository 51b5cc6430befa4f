//! Load that writes a history: senders who retry one message under one id until it is acknowledged, and readers who pull
//! everything from a cursor of their own. Both come back by themselves when the server is gone, wherever it listens then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{bail, ensure};
use berth_proto::client::response;
use tokio::sync::watch;

use crate::{
    crew::{Crew, Journal, Line, Pulls, RETRY, follow},
    device::{Device, message_of, send_to},
    history::{Event, Reader, Seen},
    raw::Transport,
    server::Addresses,
    wait,
};

/// The load's shape.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Users who send, to each other and to the others, and read.
    pub senders: usize,
    /// Users who only read.
    pub receivers: usize,
}

/// A running load.
pub struct Load {
    users: Arc<Users>,
    crew: Crew<Event>,
}

struct Users {
    prefix: String,
    shape: Shape,
}

impl Users {
    fn user(&self, index: usize) -> String {
        let kind = if index < self.shape.senders { "s" } else { "r" };
        format!("{}-{kind}{index}", self.prefix)
    }

    fn count(&self) -> usize {
        self.shape.senders + self.shape.receivers
    }

    /// Sender `index`'s `nth` message goes to the next sender, or to each receiver in turn: both directions of a
    /// conversation are busy, and every receiver hears many senders.
    fn target(&self, index: usize, nth: u64) -> String {
        let turn = nth as usize + index;
        if turn.is_multiple_of(2) {
            let step = if nth.is_multiple_of(4) { 1 } else { self.shape.senders - 1 };
            self.user((index + step) % self.shape.senders)
        } else {
            self.user(self.shape.senders + turn / 2 % self.shape.receivers)
        }
    }
}

impl Load {
    /// Starts every client. `prefix` keeps the users of several loads apart.
    #[must_use]
    pub fn start(at: &Addresses, shape: Shape, prefix: &str) -> Self {
        let users = Arc::new(Users { prefix: prefix.to_owned(), shape });
        let mut crew = Crew::new(at);
        for index in 0..shape.senders {
            let sender = Sender {
                index,
                users: Arc::clone(&users),
                journal: Arc::clone(&crew.journal),
                line: Line::new(users.user(index), index, crew.addresses()),
            };
            crew.sends(|stop| sender.run(stop));
        }
        for index in 0..users.count() {
            let puller = Puller {
                reader: Reader { user: users.user(index), device: "reader".to_owned() },
                transport: Transport::ALL[index % 3],
                journal: Arc::clone(&crew.journal),
                at: crew.addresses(),
                epoch: 0,
                cursor: 0,
            };
            crew.reads(|stop| puller.run(stop));
        }
        Self { users, crew }
    }

    /// Messages acknowledged so far.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.crew.acked()
    }

    /// Waits until `more` messages are acknowledged than now.
    ///
    /// # Errors
    /// When they are not in time: senders are stuck.
    pub async fn more_acked(&self, more: u64) -> anyhow::Result<()> {
        self.crew.more_acked(more).await
    }

    /// The server listens elsewhere now.
    pub fn moved(&self, at: &Addresses) {
        self.crew.moved(at);
    }

    /// Lets every sender finish its message, waits until every reader has what was acknowledged (or `patience` is over: the
    /// checker will say what is missing), reads all timelines, and returns the history.
    ///
    /// # Errors
    /// When a client met something that no fault of ours explains, such as a gap inside a page or a refused send.
    pub async fn finish(mut self, patience: Duration) -> anyhow::Result<Vec<Event>> {
        self.crew.stop_senders().await?;
        let complete = wait::until_within("every reader has everything", patience, || async {
            Ok(self.missing().is_empty().then_some(()))
        });
        let waited = complete.await;
        self.crew.stop_readers().await?;
        if waited.is_ok() {
            self.read_timelines().await?;
        }
        Ok(self.crew.take_events())
    }

    /// Acknowledged messages that some reader does not have in the newest epoch.
    fn missing(&self) -> BTreeSet<(String, String)> {
        let events = self.crew.journal.events();
        let rows = events.iter().filter_map(|event| match event {
            Event::Row { reader, epoch, message: Some(seen), .. } => Some((reader, *epoch, seen)),
            _ => None,
        });
        let newest = rows.clone().map(|(_, epoch, _)| epoch).max().unwrap_or(0);
        let held: BTreeSet<_> = rows
            .filter(|(_, epoch, _)| *epoch == newest)
            .map(|(reader, _, seen)| (&reader.user, &seen.from, &seen.client_msg_id))
            .collect();
        let mut targets = BTreeMap::new();
        let mut missing = BTreeSet::new();
        for event in &*events {
            match event {
                Event::Invoked { sender, client_msg_id, to, .. } => {
                    targets.insert((sender, client_msg_id), to);
                }
                Event::Acked { sender, client_msg_id, .. } => {
                    let to = targets[&(sender, client_msg_id)];
                    let lacks = |user| !held.contains(&(user, sender, client_msg_id));
                    if lacks(sender) || lacks(to) {
                        missing.insert((sender.clone(), client_msg_id.clone()));
                    }
                }
                _ => {}
            }
        }
        missing
    }

    /// Each user reads each of its conversations from the start.
    async fn read_timelines(&self) -> anyhow::Result<()> {
        let at = self.crew.addresses().borrow().clone();
        for index in 0..self.users.count() {
            let user = self.users.user(index);
            let reader = Reader { user: user.clone(), device: "timeline".to_owned() };
            let mut device = Device::connect(&at, Transport::WsProto, &user, "timeline").await?;
            // It pulls too: a reader is held to have everything.
            let epoch = device.pull(0, 1).await?.inbox_epoch;
            for item in device.sync().await? {
                let (seq, message) = (item.seq, message_of(item).map(Seen::from));
                self.crew.journal.write(Event::Row { reader: reader.clone(), epoch, seq, message });
            }
            for conversation in device.conversations(0).await?.0 {
                for message in device.whole_timeline(conversation.conversation_id).await? {
                    let message = Seen::from(message);
                    self.crew.journal.write(Event::Timeline { reader: reader.clone(), epoch, message });
                }
            }
        }
        Ok(())
    }
}

/// One user sending, one message in flight.
struct Sender {
    index: usize,
    users: Arc<Users>,
    journal: Arc<Journal<Event>>,
    line: Line,
}

impl Sender {
    async fn run(mut self, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let sender = self.users.user(self.index);
        for nth in 0.. {
            if *stop.borrow() {
                break;
            }
            let to = self.users.target(self.index, nth);
            let client_msg_id = format!("{sender}-{nth}");
            self.journal.write(Event::Invoked {
                sender: sender.clone(),
                client_msg_id: client_msg_id.clone(),
                to: to.clone(),
                nth,
            });
            let send = send_to(&to, &client_msg_id, &client_msg_id);
            let message_id = match self.line.until_answered(send).await? {
                Ok(response::Result::Send(sent)) => sent.message_id,
                other => bail!("{client_msg_id}: {other:?}"),
            };
            self.journal.acked(Event::Acked { sender: sender.clone(), client_msg_id, message_id });
        }
        Ok(())
    }
}

/// One device reading its user's inbox from a cursor that survives everything but a new epoch.
struct Puller {
    reader: Reader,
    transport: Transport,
    journal: Arc<Journal<Event>>,
    at: watch::Receiver<Addresses>,
    epoch: u64,
    cursor: u64,
}

impl Puller {
    async fn run(mut self, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        while !*stop.borrow() {
            match self.session(&stop).await {
                Ok(()) => {}
                Err(error) if error.is::<ServerFault>() => return Err(error),
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
        Ok(())
    }

    async fn session(&mut self, stop: &watch::Receiver<bool>) -> anyhow::Result<()> {
        let at = self.at.borrow().clone();
        let Reader { user, device } = &self.reader;
        let device = Device::connect(&at, self.transport, user, device).await?;
        follow(device, self, stop).await
    }
}

impl Pulls for Puller {
    async fn pull(&mut self, device: &mut Device) -> anyhow::Result<u64> {
        loop {
            let page = device.pull(self.cursor, 0).await?;
            if page.inbox_epoch != self.epoch {
                ensure!(page.inbox_epoch > self.epoch, ServerFault("the inbox epoch went back".to_owned()));
                (self.epoch, self.cursor) = (page.inbox_epoch, 0);
                continue;
            }
            let empty = page.items.is_empty();
            ensure!(
                !(empty && page.latest_seq > self.cursor),
                ServerFault(format!(
                    "{:?}: nothing after {} of {}",
                    self.reader, self.cursor, page.latest_seq
                ))
            );
            for item in page.items {
                self.cursor = item.seq;
                let (epoch, seq, message) = (self.epoch, item.seq, message_of(item));
                if let Some(message) = &message {
                    let intact = message.body == message.client_msg_id.as_bytes();
                    ensure!(intact, ServerFault(format!("another body in {message:?}")));
                }
                let (reader, message) = (self.reader.clone(), message.map(Seen::from));
                self.journal.write(Event::Row { reader, epoch, seq, message });
            }
            if !page.has_more {
                return Ok(self.cursor);
            }
        }
    }
}

/// What no crash explains.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct ServerFault(String);
