//! Load that writes a history: senders who retry one message under one id until it is acknowledged, and readers who pull
//! everything from a cursor of their own. Both come back by themselves when the server is gone, wherever it listens then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use berth_proto::client::{HistoryRequest, Message};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    device::{Device, Refused, message_of},
    history::{Event, Reader, Seen},
    raw::Transport,
    server::Addresses,
    wait,
};

/// Before a client tries again: it keeps 36 clients from spinning on a dead port, nothing else.
const RETRY: Duration = Duration::from_millis(50);
/// A send that is not answered in this time is tried again under the same id.
const ANSWER: Duration = Duration::from_secs(5);
/// A reader that was told nothing for this long sends a heartbeat.
const QUIET: Duration = Duration::from_millis(300);

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
    shared: Arc<Shared>,
    addresses: watch::Sender<Addresses>,
    stop_senders: watch::Sender<bool>,
    stop_readers: watch::Sender<bool>,
    senders: JoinSet<anyhow::Result<()>>,
    readers: JoinSet<anyhow::Result<()>>,
}

struct Shared {
    events: Mutex<Vec<Event>>,
    acked: AtomicU64,
    prefix: String,
    shape: Shape,
}

impl Shared {
    fn write(&self, event: Event) {
        self.events.lock().expect("no writer panics").push(event);
    }

    fn user(&self, index: usize) -> String {
        let kind = if index < self.shape.senders { "s" } else { "r" };
        format!("{}-{kind}{index}", self.prefix)
    }

    fn users(&self) -> usize {
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
        let shared = Arc::new(Shared {
            events: Mutex::default(),
            acked: AtomicU64::new(0),
            prefix: prefix.to_owned(),
            shape,
        });
        let (addresses, watched) = watch::channel(at.clone());
        let (stop_senders, senders_stop) = watch::channel(false);
        let (stop_readers, readers_stop) = watch::channel(false);
        let mut senders = JoinSet::new();
        let mut readers = JoinSet::new();
        for index in 0..shape.senders {
            let sender = Sender { index, shared: Arc::clone(&shared), at: watched.clone(), connection: None };
            senders.spawn(sender.run(senders_stop.clone()));
        }
        for index in 0..shared.users() {
            let reader = Reader { user: shared.user(index), device: "reader".to_owned() };
            let transport = Transport::ALL[index % 3];
            let shared = Arc::clone(&shared);
            let puller = Puller { reader, transport, shared, at: watched.clone(), epoch: 0, cursor: 0 };
            readers.spawn(puller.run(readers_stop.clone()));
        }
        Self { shared, addresses, stop_senders, stop_readers, senders, readers }
    }

    /// Messages acknowledged so far.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Waits until `more` messages are acknowledged than now.
    ///
    /// # Errors
    /// When they are not in time: senders are stuck.
    pub async fn more_acked(&self, more: u64) -> anyhow::Result<()> {
        let goal = self.acked() + more;
        wait::until_within("acknowledged messages", Duration::from_secs(60), || async {
            Ok((self.acked() >= goal).then_some(()))
        })
        .await
    }

    /// The server listens elsewhere now.
    pub fn moved(&self, at: &Addresses) {
        self.addresses.send_replace(at.clone());
    }

    /// Lets every sender finish its message, waits until every reader has what was acknowledged (or `patience` is over: the
    /// checker will say what is missing), reads all timelines, and returns the history.
    ///
    /// # Errors
    /// When a client met something that no fault of ours explains, such as a gap inside a page or a refused send.
    pub async fn finish(mut self, patience: Duration) -> anyhow::Result<Vec<Event>> {
        self.stop_senders.send_replace(true);
        while let Some(sender) = self.senders.join_next().await {
            sender?.context("a sender")?;
        }
        let complete = wait::until_within("every reader has everything", patience, || async {
            Ok(self.missing().is_empty().then_some(()))
        });
        let waited = complete.await;
        self.stop_readers.send_replace(true);
        while let Some(reader) = self.readers.join_next().await {
            reader?.context("a reader")?;
        }
        if waited.is_ok() {
            self.read_timelines().await?;
        }
        Ok(std::mem::take(&mut *self.shared.events.lock().expect("no writer panics")))
    }

    /// Acknowledged messages that some reader does not have in the newest epoch.
    fn missing(&self) -> BTreeSet<(String, String)> {
        let events = self.shared.events.lock().expect("no writer panics");
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
        let at = self.addresses.borrow().clone();
        for index in 0..self.shared.users() {
            let user = self.shared.user(index);
            let reader = Reader { user: user.clone(), device: "timeline".to_owned() };
            let mut device = Device::connect(&at, Transport::WsProto, &user, "timeline").await?;
            // It pulls too: a reader is held to have everything.
            let epoch = device.pull(0, 1).await?.inbox_epoch;
            for item in device.sync().await? {
                let (seq, message) = (item.seq, message_of(item).map(seen));
                self.shared.write(Event::Row { reader: reader.clone(), epoch, seq, message });
            }
            for conversation in device.conversations(0).await?.0 {
                for message in whole_timeline(&mut device, conversation.conversation_id).await? {
                    let message = seen(message);
                    self.shared.write(Event::Timeline { reader: reader.clone(), epoch, message });
                }
            }
        }
        Ok(())
    }
}

/// From the newest page back to the start: `history` has no way to ask for the oldest, since afterSeq 0 means "not given".
async fn whole_timeline(device: &mut Device, conversation_id: u64) -> anyhow::Result<Vec<Message>> {
    let mut pages = Vec::new();
    let mut before_seq = 0;
    loop {
        let request = HistoryRequest { conversation_id, before_seq, ..Default::default() };
        let (messages, has_more) = device.history(request).await?;
        before_seq = messages.first().map_or(0, |message| message.conversation_seq);
        pages.push(messages);
        if !has_more {
            return Ok(pages.into_iter().rev().flatten().collect());
        }
    }
}

/// One user sending, one message in flight: his order must survive every retry.
struct Sender {
    index: usize,
    shared: Arc<Shared>,
    at: watch::Receiver<Addresses>,
    connection: Option<Device>,
}

impl Sender {
    async fn run(mut self, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let sender = self.shared.user(self.index);
        for nth in 0.. {
            if *stop.borrow() {
                break;
            }
            let to = self.shared.target(self.index, nth);
            let client_msg_id = format!("{sender}-{nth}");
            self.shared.write(Event::Invoked {
                sender: sender.clone(),
                client_msg_id: client_msg_id.clone(),
                to: to.clone(),
                nth,
            });
            let send = self.until_acked(&sender, &to, &client_msg_id);
            let message_id = tokio::time::timeout(Duration::from_secs(90), send)
                .await
                .with_context(|| format!("{client_msg_id} is never acknowledged"))??;
            self.shared.write(Event::Acked { sender: sender.clone(), client_msg_id, message_id });
            self.shared.acked.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn until_acked(&mut self, sender: &str, to: &str, client_msg_id: &str) -> anyhow::Result<u64> {
        loop {
            match tokio::time::timeout(ANSWER, self.attempt(sender, to, client_msg_id)).await {
                Ok(Ok(message_id)) => return Ok(message_id),
                Ok(Err(error)) => match error.downcast::<Refused>() {
                    Ok(Refused(error)) if error.retryable => {}
                    Ok(refused) => bail!("{client_msg_id} is refused: {refused}"),
                    Err(_) => self.connection = None,
                },
                Err(_) => self.connection = None,
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn attempt(&mut self, sender: &str, to: &str, client_msg_id: &str) -> anyhow::Result<u64> {
        if self.connection.is_none() {
            let at = self.at.borrow().clone();
            let transport = Transport::ALL[(self.index + 1) % 3];
            self.connection = Some(Device::connect(&at, transport, sender, "sender").await?);
        }
        let device = self.connection.as_mut().context("just connected")?;
        Ok(device.send(to, client_msg_id, client_msg_id).await?.message_id)
    }
}

/// One device reading its user's inbox from a cursor that survives everything but a new epoch.
struct Puller {
    reader: Reader,
    transport: Transport,
    shared: Arc<Shared>,
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
        let Reader { user, device } = self.reader.clone();
        let mut device = Device::connect(&at, self.transport, &user, &device).await?;
        self.pull(&mut device).await?;
        while !*stop.borrow() {
            let told = device.known_seq;
            device.idle(QUIET).await?;
            if device.known_seq == told && device.known_seq <= self.cursor {
                device.heartbeat().await?;
            }
            if device.known_seq > self.cursor {
                self.pull(&mut device).await?;
            }
        }
        Ok(())
    }

    async fn pull(&mut self, device: &mut Device) -> anyhow::Result<()> {
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
                self.shared.write(Event::Row {
                    reader: self.reader.clone(),
                    epoch,
                    seq,
                    message: message.map(seen),
                });
            }
            if !page.has_more {
                return Ok(());
            }
        }
    }
}

/// What no crash explains.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct ServerFault(String);

fn seen(message: Message) -> Seen {
    Seen {
        message_id: message.message_id,
        conversation_id: message.conversation_id,
        conversation_seq: message.conversation_seq,
        from: message.from,
        client_msg_id: message.client_msg_id,
    }
}
