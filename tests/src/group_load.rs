//! Load on one group whose members come and go: senders who retry under one id until it is accepted or refused for good,
//! readers who pull everything, and a back end that adds and removes. It writes a [`history::groups`](crate::history::groups).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use berth_proto::client::{InboxItem, event::Event as Inbox};
use rand::Rng;
use serde_json::json;
use tokio::sync::watch;

use crate::{
    crew::{ANSWER, Crew, Journal, Line, Pulls, RETRY, follow},
    device::{Device, Refused, to_group},
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
    group: Arc<Group>,
    conversation_id: u64,
    crew: Crew<Event>,
}

struct Group {
    id: String,
    shape: Shape,
}

impl Group {
    fn user(&self, index: usize) -> String {
        let kind = if index < self.shape.stable { "s" } else { "c" };
        format!("{}-{kind}{index}", self.id)
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
        let group = Arc::new(Group { id: group.to_owned(), shape });
        let stable: Vec<String> = group.users().take(shape.stable).collect();
        let made = call(at, "PUT", &group.id, &stable).await?;
        let id = made["conversationId"].as_str().and_then(|id| id.parse().ok());
        let conversation_id = id.with_context(|| format!("no conversationId: {made}"))?;
        let mut crew = Crew::new(at);
        for (index, user) in group.users().enumerate() {
            let line = Line::new(user.clone(), index, crew.addresses());
            let (group, journal) = (Arc::clone(&group), Arc::clone(&crew.journal));
            let sender = Sender { may_be_refused: index >= shape.stable, user, group, journal, line };
            crew.sends(|stop| sender.run(stop));
        }
        for (index, user) in group.users().enumerate() {
            let (journal, at) = (Arc::clone(&crew.journal), crew.addresses());
            let puller = Puller { user, transport: Transport::ALL[index % 3], journal, at, cursor: 0 };
            crew.reads(|stop| puller.run(stop));
        }
        let back_end = BackEnd { group: Arc::clone(&group), at: crew.addresses() };
        let journal = Arc::clone(&crew.journal);
        crew.sends(|stop| back_end.come_and_go(journal, stop));
        Ok(Self { group, conversation_id, crew })
    }

    /// Waits until `more` messages are accepted than now.
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

    /// Lets senders and the back end finish what they are at, waits until every reader has what history shows him (or
    /// `patience` is over: the checker will say what is missing); the history, and the stable members.
    ///
    /// # Errors
    /// When a client met something that no fault of ours explains.
    pub async fn finish(mut self, patience: Duration) -> anyhow::Result<(Vec<Event>, Vec<String>)> {
        self.crew.stop_senders().await?;
        let at = self.crew.addresses().borrow().clone();
        let settled = wait::until_within("everything arrived", patience, || async {
            Ok(self.settled(&at).await?.then_some(()))
        })
        .await;
        self.crew.stop_readers().await?;
        drop(settled);
        for user in self.group.users() {
            for message in history(&at, &user, self.conversation_id).await? {
                self.crew.journal.write(Event::History { user: user.clone(), message });
            }
        }
        let stable = self.group.users().take(self.group.shape.stable).collect();
        Ok((self.crew.take_events(), stable))
    }

    /// Whether each accepted message is at a stable member or failed, and each user has what history shows him.
    async fn settled(&self, at: &Addresses) -> anyhow::Result<bool> {
        let (open, held) = {
            let events = self.crew.journal.events();
            let mut known = BTreeSet::new();
            let mut held: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
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
        for user in self.group.users() {
            let has = held.get(&user).cloned().unwrap_or_default();
            let shown = history(at, &user, self.conversation_id).await?;
            if shown.iter().any(|seen| !has.contains(&seen.conversation_seq)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Who adds and removes members.
struct BackEnd {
    group: Arc<Group>,
    at: watch::Receiver<Addresses>,
}

impl BackEnd {
    /// Now one comes, now one goes.
    async fn come_and_go(
        self,
        journal: Arc<Journal<Event>>,
        stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let mut inside = vec![false; self.group.shape.comers];
        while !*stop.borrow() && !inside.is_empty() {
            let which = rand::rng().random_range(0..inside.len());
            let (user, joins) = (self.group.user(self.group.shape.stable + which), !inside[which]);
            journal.write(Event::Changing { user: user.clone(), joins });
            // Cut off by a crash it is asked again: whatever was done, it comes to the same.
            while !self.change(&user, joins).await {
                tokio::time::sleep(RETRY).await;
            }
            journal.write(Event::Changed { user, joins });
            inside[which] = joins;
            let pause = rand::rng().random_range(5..40);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Ok(())
    }

    /// Whether it was done.
    async fn change(&self, user: &str, joins: bool) -> bool {
        let at = self.at.borrow().clone();
        let path = format!("{}/members:{}", self.group.id, if joins { "add" } else { "remove" });
        let members = [user.to_owned()];
        let answered = tokio::time::timeout(ANSWER, call(&at, "POST", &path, &members)).await;
        answered.is_ok_and(|answer| answer.is_ok()) && self.stands(user, joins).await
    }

    /// Whether the group stands as it should: an answer that was lost says nothing.
    async fn stands(&self, user: &str, joins: bool) -> bool {
        let url = format!("{}/v1/groups/{}", self.at.borrow().logic, self.group.id);
        let Ok(answer) = http::get(&url, Some(SERVICE_KEY)).await else { return false };
        let members = answer.value()["members"].as_array().cloned().unwrap_or_default();
        answer.status == 200 && members.iter().any(|member| member == user) == joins
    }
}

/// One user sending, one message in flight.
struct Sender {
    /// Whether he is a member only now and then.
    may_be_refused: bool,
    user: String,
    group: Arc<Group>,
    journal: Arc<Journal<Event>>,
    line: Line,
}

impl Sender {
    async fn run(mut self, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        for nth in 0.. {
            if *stop.borrow() {
                break;
            }
            let id = format!("{}-{nth}", self.user);
            let sender = self.user.clone();
            self.journal.write(Event::Invoked { sender, id: id.clone(), nth });
            match self.line.until_answered(to_group(&self.group.id, &id, &id)).await? {
                Ok(_) => self.journal.acked(Event::Acked { id }),
                Err(Refused(error)) if error.code == "PERMISSION_DENIED" && self.may_be_refused => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(refused) => bail!("{id} is refused: {refused}"),
            }
        }
        Ok(())
    }
}

/// One device reading its user's inbox from a cursor that survives everything.
struct Puller {
    user: String,
    transport: Transport,
    journal: Arc<Journal<Event>>,
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
        let device = Device::connect(&at, self.transport, &self.user, "reader").await?;
        follow(device, self, stop).await
    }
}

impl Pulls for Puller {
    async fn pull(&mut self, device: &mut Device) -> anyhow::Result<u64> {
        loop {
            let page = device.pull(self.cursor, 0).await?;
            for item in page.items {
                let (user, seq) = (self.user.clone(), item.seq);
                self.cursor = seq;
                self.journal.write(Event::Row { user, seq, what: row(item) });
            }
            if !page.has_more {
                return Ok(self.cursor);
            }
        }
    }
}

fn row(item: InboxItem) -> Row {
    match item.event.and_then(|event| event.event) {
        Some(Inbox::Message(message)) => Row::Message(message.into()),
        Some(Inbox::Conversation(change)) if change.kind == "joined" => Row::Change { joins: true },
        Some(Inbox::Conversation(change)) if change.kind == "left" => Row::Change { joins: false },
        Some(Inbox::Failure(failure)) => Row::Failure(failure.client_msg_id),
        _ => Row::Other,
    }
}

/// Everything of the group that is the user's; nothing where he never was a member.
async fn history(at: &Addresses, user: &str, conversation_id: u64) -> anyhow::Result<Vec<Seen>> {
    let mut device = Device::connect(at, Transport::WsProto, user, "history").await?;
    match device.whole_timeline(conversation_id).await {
        Ok(messages) => Ok(messages.into_iter().map(Seen::from).collect()),
        Err(error) if error.to_string().starts_with("PERMISSION_DENIED") => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
