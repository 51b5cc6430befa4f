//! Load on one group whose members come and go: senders who retry under one id until it is accepted or refused for good,
//! readers who pull everything, and a back end that adds and removes. It writes a [`history::groups`](crate::history::groups).

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use berth_proto::client::{
    HistoryRequest, InboxItem, SendRequest, Target, event::Event as Inbox, request::Method, target::To,
};
use rand::Rng;
use serde_json::json;
use tokio::{sync::watch, task::JoinSet};

use crate::{
    device::{Device, Refused},
    history::{
        Seen,
        groups::{Event, Row},
    },
    http,
    raw::Transport,
    server::Addresses,
    tokens::SERVICE_KEY,
    wait,
};

/// Before a client tries again.
const RETRY: Duration = Duration::from_millis(50);
/// A send or a call of the back end that is not answered in this time is tried again.
const ANSWER: Duration = Duration::from_secs(5);
/// A reader that was told nothing for this long sends a heartbeat.
const QUIET: Duration = Duration::from_millis(300);

/// The load's shape.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Members from the beginning to the end, who send.
    pub stable: usize,
    /// Users who come and go, and send while they may.
    pub comers: usize,
}

/// A running load.
pub struct GroupLoad {
    shared: Arc<Shared>,
    addresses: watch::Sender<Addresses>,
    stop: watch::Sender<bool>,
    stop_readers: watch::Sender<bool>,
    senders: JoinSet<anyhow::Result<()>>,
    readers: JoinSet<anyhow::Result<()>>,
}

struct Shared {
    events: Mutex<Vec<Event>>,
    acked: AtomicU64,
    group: String,
    shape: Shape,
    conversation_id: u64,
}

impl Shared {
    fn write(&self, event: Event) {
        self.events.lock().expect("no writer panics").push(event);
    }

    fn user(&self, index: usize) -> String {
        let kind = if index < self.shape.stable { "s" } else { "c" };
        format!("{}-{kind}{index}", self.group)
    }

    fn users(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.shape.stable + self.shape.comers).map(|index| self.user(index))
    }
}

/// A call of the back end on a group, which must be answered with 200.
///
/// # Errors
/// What was answered otherwise.
pub async fn call(
    at: &Addresses,
    method: &str,
    path: &str,
    members: &[String],
) -> anyhow::Result<serde_json::Value> {
    let body = json!({ "members": members }).to_string();
    let url = format!("{}/v1/groups/{path}", at.logic);
    let answer = http::send(method, &url, Some(SERVICE_KEY), Some(body)).await?;
    ensure!(answer.status == 200, "{method} {path}: {} {}", answer.status, answer.body);
    Ok(answer.value())
}

impl GroupLoad {
    /// Makes the group of its stable members, then starts every client.
    ///
    /// # Errors
    /// When the group cannot be made.
    pub async fn start(at: &Addresses, shape: Shape, group: &str) -> anyhow::Result<Self> {
        let mut shared = Shared {
            events: Mutex::default(),
            acked: AtomicU64::new(0),
            group: group.to_owned(),
            shape,
            conversation_id: 0,
        };
        let stable: Vec<String> = shared.users().take(shape.stable).collect();
        let made = call(at, "PUT", group, &stable).await?;
        let id = made["conversationId"].as_str().and_then(|id| id.parse().ok());
        shared.conversation_id = id.with_context(|| format!("no conversationId: {made}"))?;
        let shared = Arc::new(shared);
        let (addresses, watched) = watch::channel(at.clone());
        let (stop, stopped) = watch::channel(false);
        let (stop_readers, readers_stop) = watch::channel(false);
        let (mut senders, mut readers) = (JoinSet::new(), JoinSet::new());
        for (index, user) in shared.users().enumerate() {
            let (shared, at) = (Arc::clone(&shared), watched.clone());
            senders.spawn(Sender { index, user, shared, at, connection: None }.run(stopped.clone()));
        }
        for (index, user) in shared.users().enumerate() {
            let (shared, at) = (Arc::clone(&shared), watched.clone());
            let transport = Transport::ALL[index % 3];
            readers.spawn(Puller { user, transport, shared, at, cursor: 0 }.run(readers_stop.clone()));
        }
        senders.spawn(come_and_go(Arc::clone(&shared), watched, stopped));
        Ok(Self { shared, addresses, stop, stop_readers, senders, readers })
    }

    /// Waits until `more` messages are accepted than now.
    ///
    /// # Errors
    /// When they are not in time: senders are stuck.
    pub async fn more_acked(&self, more: u64) -> anyhow::Result<()> {
        let acked = || self.shared.acked.load(Ordering::Relaxed);
        let goal = acked() + more;
        wait::until_within("accepted messages", Duration::from_secs(60), || async {
            Ok((acked() >= goal).then_some(()))
        })
        .await
    }

    /// The server listens elsewhere now.
    pub fn moved(&self, at: &Addresses) {
        self.addresses.send_replace(at.clone());
    }

    /// Lets senders and the back end finish what they are at, waits until every reader has what history shows him (or
    /// `patience` is over: the checker will say what is missing); the history, and the stable members.
    ///
    /// # Errors
    /// When a client met something that no fault of ours explains.
    pub async fn finish(mut self, patience: Duration) -> anyhow::Result<(Vec<Event>, Vec<String>)> {
        self.stop.send_replace(true);
        while let Some(sender) = self.senders.join_next().await {
            sender?.context("a sender, or the back end")?;
        }
        let at = self.addresses.borrow().clone();
        let settled = wait::until_within("everything arrived", patience, || async {
            Ok(self.settled(&at).await?.then_some(()))
        })
        .await;
        self.stop_readers.send_replace(true);
        while let Some(reader) = self.readers.join_next().await {
            reader?.context("a reader")?;
        }
        drop(settled);
        for user in self.shared.users() {
            for message in history(&at, &user, self.shared.conversation_id).await? {
                self.shared.write(Event::History { user: user.clone(), message });
            }
        }
        let stable = self.shared.users().take(self.shared.shape.stable).collect();
        Ok((std::mem::take(&mut *self.shared.events.lock().expect("no writer panics")), stable))
    }

    /// Whether each accepted message is at a stable member or failed, and each user has what history shows him.
    async fn settled(&self, at: &Addresses) -> anyhow::Result<bool> {
        let (open, held) = {
            let events = self.shared.events.lock().expect("no writer panics");
            let mut known = BTreeSet::new();
            let mut held: std::collections::BTreeMap<String, BTreeSet<u64>> = Default::default();
            for event in &*events {
                match event {
                    Event::Row { user, what: Row::Message(seen), .. } => {
                        known.insert(seen.client_msg_id.clone());
                        held.entry(user.clone()).or_default().insert(seen.conversation_seq);
                    }
                    Event::Row { what: Row::Failure(id), .. } => drop(known.insert(id.clone())),
                    _ => {}
                }
            }
            let open = events.iter().any(|event| matches!(event, Event::Acked { id } if !known.contains(id)));
            (open, held)
        };
        if open {
            return Ok(false);
        }
        for user in self.shared.users() {
            let has = held.get(&user).cloned().unwrap_or_default();
            let shown = history(at, &user, self.shared.conversation_id).await?;
            if shown.iter().any(|seen| !has.contains(&seen.conversation_seq)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The back end: now one comes, now one goes.
async fn come_and_go(
    shared: Arc<Shared>,
    at: watch::Receiver<Addresses>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut inside = vec![false; shared.shape.comers];
    while !*stop.borrow() && !inside.is_empty() {
        let which = rand::rng().random_range(0..inside.len());
        let (user, joins) = (shared.user(shared.shape.stable + which), !inside[which]);
        shared.write(Event::Changing { user: user.clone(), joins });
        let path = format!("{}/members:{}", shared.group, if joins { "add" } else { "remove" });
        // Cut off by a crash it is asked again: whatever was done, it comes to the same.
        loop {
            let answered = tokio::time::timeout(ANSWER, change(&at, &path, &user)).await;
            if answered.unwrap_or(false) && is_done(&at, &shared, &user, joins).await {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
        shared.write(Event::Changed { user, joins });
        inside[which] = joins;
        let pause = rand::rng().random_range(5..40);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    Ok(())
}

async fn change(at: &watch::Receiver<Addresses>, path: &str, user: &str) -> bool {
    let at = at.borrow().clone();
    call(&at, "POST", path, &[user.to_owned()]).await.is_ok()
}

/// Whether the group stands as it should: an answer that was lost says nothing.
async fn is_done(at: &watch::Receiver<Addresses>, shared: &Shared, user: &str, joins: bool) -> bool {
    let url = format!("{}/v1/groups/{}", at.borrow().logic, shared.group);
    let Ok(answer) = http::get(&url, Some(SERVICE_KEY)).await else { return false };
    let members = answer.value()["members"].as_array().cloned().unwrap_or_default();
    answer.status == 200 && members.iter().any(|member| member == user) == joins
}

/// One user sending, one message in flight: his order must survive every retry.
struct Sender {
    index: usize,
    user: String,
    shared: Arc<Shared>,
    at: watch::Receiver<Addresses>,
    connection: Option<Device>,
}

impl Sender {
    async fn run(mut self, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        for nth in 0.. {
            if *stop.borrow() {
                break;
            }
            let id = format!("{}-{nth}", self.user);
            let sender = self.user.clone();
            self.shared.write(Event::Invoked { sender, id: id.clone(), nth });
            let send = tokio::time::timeout(Duration::from_secs(90), self.until_answered(&id));
            if send.await.with_context(|| format!("{id} is never answered"))?? {
                self.shared.write(Event::Acked { id });
                self.shared.acked.fetch_add(1, Ordering::Relaxed);
            } else {
                tokio::time::sleep(RETRY).await;
            }
        }
        Ok(())
    }

    /// Whether it was accepted; refused because he is no member now, it was not.
    async fn until_answered(&mut self, id: &str) -> anyhow::Result<bool> {
        loop {
            match tokio::time::timeout(ANSWER, self.attempt(id)).await {
                Ok(Ok(())) => return Ok(true),
                Ok(Err(error)) => match error.downcast::<Refused>() {
                    Ok(Refused(error)) if error.retryable => {}
                    Ok(Refused(error))
                        if error.code == "PERMISSION_DENIED" && self.index >= self.shared.shape.stable =>
                    {
                        return Ok(false);
                    }
                    Ok(refused) => bail!("{id} is refused: {refused}"),
                    Err(_) => self.connection = None,
                },
                Err(_) => self.connection = None,
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn attempt(&mut self, id: &str) -> anyhow::Result<()> {
        if self.connection.is_none() {
            let at = self.at.borrow().clone();
            let transport = Transport::ALL[(self.index + 1) % 3];
            self.connection = Some(Device::connect(&at, transport, &self.user, "sender").await?);
        }
        let device = self.connection.as_mut().context("just connected")?;
        device.request(to_group(&self.shared.group, id, id)).await?;
        Ok(())
    }
}

/// A send to a group.
#[must_use]
pub fn to_group(group: &str, client_msg_id: &str, text: &str) -> Method {
    Method::Send(SendRequest {
        client_msg_id: client_msg_id.to_owned(),
        to: Some(Target { to: Some(To::GroupId(group.to_owned())) }),
        r#type: "text".to_owned(),
        body: text.as_bytes().to_vec().into(),
    })
}

/// One device reading its user's inbox from a cursor that survives everything.
struct Puller {
    user: String,
    transport: Transport,
    shared: Arc<Shared>,
    at: watch::Receiver<Addresses>,
    cursor: u64,
}

impl Puller {
    async fn run(mut self, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        while !*stop.borrow() {
            if self.session(&stop).await.is_err() {
                tokio::time::sleep(RETRY).await;
            }
        }
        Ok(())
    }

    async fn session(&mut self, stop: &watch::Receiver<bool>) -> anyhow::Result<()> {
        let at = self.at.borrow().clone();
        let mut device = Device::connect(&at, self.transport, &self.user, "reader").await?;
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
            for item in page.items {
                let (user, seq) = (self.user.clone(), item.seq);
                self.cursor = seq;
                self.shared.write(Event::Row { user, seq, what: row(item) });
            }
            if !page.has_more {
                return Ok(());
            }
        }
    }
}

fn row(item: InboxItem) -> Row {
    match item.event.and_then(|event| event.event) {
        Some(Inbox::Message(message)) => Row::Message(seen(message)),
        Some(Inbox::Conversation(change)) if change.kind == "joined" => Row::Change { joins: true },
        Some(Inbox::Conversation(change)) if change.kind == "left" => Row::Change { joins: false },
        Some(Inbox::Failure(failure)) => Row::Failure(failure.client_msg_id),
        _ => Row::Other,
    }
}

fn seen(message: berth_proto::client::Message) -> Seen {
    Seen {
        message_id: message.message_id,
        conversation_id: message.conversation_id,
        conversation_seq: message.conversation_seq,
        from: message.from,
        client_msg_id: message.client_msg_id,
    }
}

/// Everything of the group that is the user's; nothing where he never was a member.
async fn history(at: &Addresses, user: &str, conversation_id: u64) -> anyhow::Result<Vec<Seen>> {
    let mut device = Device::connect(at, Transport::WsProto, user, "history").await?;
    let (mut pages, mut before_seq) = (Vec::new(), 0);
    loop {
        let request = HistoryRequest { conversation_id, before_seq, ..Default::default() };
        let (messages, has_more) = match device.history(request).await {
            Ok(page) => page,
            Err(error) if error.to_string().starts_with("PERMISSION_DENIED") => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        before_seq = messages.first().map_or(0, |message| message.conversation_seq);
        pages.push(messages);
        if !has_more {
            return Ok(pages.into_iter().rev().flatten().map(seen).collect());
        }
    }
}
