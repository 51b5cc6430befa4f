//! What every load has in common: clients that come back by themselves when the server is gone, wherever it listens then,
//! and write what they saw into one journal. Senders repeat a message under one id until it is answered; readers pull
//! everything.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use berth_proto::client::{request::Method, response};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    device::{Device, Refused},
    raw::Transport,
    server::Addresses,
    wait,
};

/// Before a client tries again: it keeps dozens of clients from spinning on a dead port, nothing else.
pub const RETRY: Duration = Duration::from_millis(50);
/// What is not answered in this time is tried again.
pub const ANSWER: Duration = Duration::from_secs(5);
/// A message that is not answered in this time, however often it was tried, never will be.
const NEVER: Duration = Duration::from_secs(90);
/// A reader that was told nothing for this long sends a heartbeat.
const QUIET: Duration = Duration::from_millis(300);

/// What the clients saw, in the order in which they wrote it.
pub struct Journal<E> {
    events: Mutex<Vec<E>>,
    acked: AtomicU64,
}

impl<E> Journal<E> {
    /// Adds an event.
    pub fn write(&self, event: E) {
        self.events().push(event);
    }

    /// Adds the event that a message was accepted.
    pub fn acked(&self, event: E) {
        self.write(event);
        self.acked.fetch_add(1, Ordering::Relaxed);
    }

    /// All events so far.
    pub fn events(&self) -> MutexGuard<'_, Vec<E>> {
        self.events.lock().expect("no writer panics")
    }
}

/// The clients of a running load.
pub struct Crew<E> {
    /// What they saw.
    pub journal: Arc<Journal<E>>,
    addresses: watch::Sender<Addresses>,
    stop_senders: watch::Sender<bool>,
    stop_readers: watch::Sender<bool>,
    senders: JoinSet<anyhow::Result<()>>,
    readers: JoinSet<anyhow::Result<()>>,
}

impl<E> Crew<E> {
    /// Nobody yet.
    #[must_use]
    pub fn new(at: &Addresses) -> Self {
        Self {
            journal: Arc::new(Journal { events: Mutex::default(), acked: AtomicU64::new(0) }),
            addresses: watch::Sender::new(at.clone()),
            stop_senders: watch::Sender::new(false),
            stop_readers: watch::Sender::new(false),
            senders: JoinSet::new(),
            readers: JoinSet::new(),
        }
    }

    /// Where the server is, now and later.
    #[must_use]
    pub fn addresses(&self) -> watch::Receiver<Addresses> {
        self.addresses.subscribe()
    }

    /// The server listens elsewhere now.
    pub fn moved(&self, at: &Addresses) {
        self.addresses.send_replace(at.clone());
    }

    /// Starts a client that sends, or changes something, until it is told to stop.
    pub fn sends<F>(&mut self, client: impl FnOnce(watch::Receiver<bool>) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.senders.spawn(client(self.stop_senders.subscribe()));
    }

    /// Starts a client that reads until it is told to stop.
    pub fn reads<F>(&mut self, client: impl FnOnce(watch::Receiver<bool>) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.readers.spawn(client(self.stop_readers.subscribe()));
    }

    /// Messages accepted so far.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.journal.acked.load(Ordering::Relaxed)
    }

    /// Waits until `more` messages are accepted than now.
    ///
    /// # Errors
    /// When they are not in time: senders are stuck.
    pub async fn more_acked(&self, more: u64) -> anyhow::Result<()> {
        let goal = self.acked() + more;
        wait::until_within("accepted messages", Duration::from_secs(60), || async {
            Ok((self.acked() >= goal).then_some(()))
        })
        .await
    }

    /// Lets every sender finish what it is at.
    ///
    /// # Errors
    /// What one of them met.
    pub async fn stop_senders(&mut self) -> anyhow::Result<()> {
        self.stop_senders.send_replace(true);
        while let Some(sender) = self.senders.join_next().await {
            sender?.context("a sender")?;
        }
        Ok(())
    }

    /// Lets every reader finish what it is at.
    ///
    /// # Errors
    /// What one of them met.
    pub async fn stop_readers(&mut self) -> anyhow::Result<()> {
        self.stop_readers.send_replace(true);
        while let Some(reader) = self.readers.join_next().await {
            reader?.context("a reader")?;
        }
        Ok(())
    }

    /// The journal, when all is over.
    #[must_use]
    pub fn take_events(&self) -> Vec<E> {
        std::mem::take(&mut *self.journal.events())
    }
}

/// A sender's connection, made anew whenever it is lost. One message in flight: the sender's order survives every retry.
pub struct Line {
    user: String,
    transport: Transport,
    at: watch::Receiver<Addresses>,
    device: Option<Device>,
}

impl Line {
    /// Of the `index`th user.
    #[must_use]
    pub fn new(user: String, index: usize, at: watch::Receiver<Addresses>) -> Self {
        Self { user, transport: Transport::ALL[(index + 1) % 3], at, device: None }
    }

    /// Repeats the request until it is answered, or refused for good.
    ///
    /// # Errors
    /// When it never is.
    pub async fn until_answered(
        &mut self,
        method: Method,
    ) -> anyhow::Result<Result<response::Result, Refused>> {
        let answered = tokio::time::timeout(NEVER, async {
            loop {
                match tokio::time::timeout(ANSWER, self.attempt(method.clone())).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) => match error.downcast::<Refused>() {
                        Ok(Refused(error)) if error.retryable => {}
                        Ok(refused) => return Err(refused),
                        Err(_) => self.device = None,
                    },
                    Err(_) => self.device = None,
                }
                tokio::time::sleep(RETRY).await;
            }
        });
        answered.await.with_context(|| format!("never answered: {method:?}"))
    }

    async fn attempt(&mut self, method: Method) -> anyhow::Result<response::Result> {
        if self.device.is_none() {
            let at = self.at.borrow().clone();
            self.device = Some(Device::connect(&at, self.transport, &self.user, "sender").await?);
        }
        self.device.as_mut().context("just connected")?.request(method).await
    }
}

/// A reader that pulls, from a cursor that survives its connections.
pub trait Pulls {
    /// Pulls everything there is; gives the cursor.
    fn pull(&mut self, device: &mut Device) -> impl Future<Output = anyhow::Result<u64>> + Send;
}

/// One device of a user, told over one connection: pulls at first and whenever it is told of more, until it is told to stop.
///
/// # Errors
/// When the connection ends, or the reader's own.
pub async fn follow(
    mut device: Device,
    reader: &mut impl Pulls,
    stop: &watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut cursor = reader.pull(&mut device).await?;
    while !*stop.borrow() {
        let told = device.known_seq;
        device.idle(QUIET).await?;
        if device.known_seq == told && device.known_seq <= cursor {
            device.heartbeat().await?;
        }
        if device.known_seq > cursor {
            cursor = reader.pull(&mut device).await?;
        }
    }
    Ok(())
}
