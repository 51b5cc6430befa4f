//! `berth demo`: the whole road once, with checks.

mod back_end;
mod group;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use berth_client::{
    Client, Encoding, Event, Events, Options, StopReason, To,
    record::{
        Conversation, Hello, HistoryRequest, Message, PullRequest, Request, SendRequest, SendResponse,
        client_frame::Frame as Up, request::Method, response::Result as Answer, server_frame::Frame as Down,
    },
    schedule::{self, ScheduleAnswer, ScheduleRequest},
    token::{StaticToken, TokenProvider},
    transport::{Connection, Incoming, Transport},
};
use serde_json::json;

use self::back_end::BackEndArgs;
use super::chat::Access;
use crate::{
    exit::Failure,
    output::{note, print},
};

/// What takes longer than this has failed: every step is milliseconds on a healthy server.
const PATIENCE: Duration = Duration::from_secs(15);

/// Arguments of `berth demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    back_end: BackEndArgs,
    /// Print one JSON object at the end instead of a line per check.
    #[arg(long)]
    json: bool,
}

/// Walks the road as fresh users; exit code 3 if a check failed. What follows a failed check is not tried.
pub fn run(args: DemoArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting the runtime").map_err(Failure::Start)?;
    let begun = Instant::now();
    let mut demo = Demo::new(args);
    let ok = runtime.block_on(demo.walk()).is_ok();
    demo.summarize(ok, begun.elapsed());
    if ok { Ok(()) } else { Err(Failure::Check) }
}

/// A check has failed; it is in the report.
struct Failed;

/// A check that was made.
struct Check {
    name: &'static str,
    ok: bool,
    detail: String,
    took: Duration,
}

struct Demo {
    args: DemoArgs,
    alice: String,
    bob: String,
    checks: Vec<Check>,
    /// What cannot be tried here, and why.
    skipped: Vec<(&'static str, String)>,
}

/// One device of one user.
struct Device {
    client: Client,
    events: Events,
}

/// Bob's device that speaks the protocol by hand.
struct ByHand {
    connection: Connection,
    inbox_seq: u64,
}

impl Demo {
    fn new(args: DemoArgs) -> Self {
        let run = rand::random::<u32>();
        let (alice, bob) = (format!("demo-alice-{run:08x}"), format!("demo-bob-{run:08x}"));
        Self { args, alice, bob, checks: Vec::new(), skipped: Vec::new() }
    }

    /// Makes one check and reports it.
    async fn check<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = anyhow::Result<(T, String)>>,
    ) -> Result<T, Failed> {
        let begun = Instant::now();
        let outcome = tokio::time::timeout(PATIENCE, work)
            .await
            .unwrap_or_else(|_| Err(anyhow!("not done within {} s", PATIENCE.as_secs())));
        let took = begun.elapsed();
        let (result, ok, detail) = match outcome {
            Ok((value, detail)) => (Ok(value), true, detail),
            Err(error) => (Err(Failed), false, format!("{error:#}")),
        };
        let check = Check { name, ok, detail, took };
        if !self.args.json {
            let mark = if ok { "ok  " } else { "FAIL" };
            say(format_args!("{mark} {name:<24} {:>8.1} ms  {}", milliseconds(took), check.detail));
        }
        self.checks.push(check);
        result
    }

    fn summarize(&self, ok: bool, took: Duration) {
        if !self.args.json {
            let passed = self.checks.iter().filter(|check| check.ok).count();
            let (all, took) = (self.checks.len(), milliseconds(took));
            say(format_args!("{passed} of {all} checks passed in {took:.0} ms"));
            return;
        }
        let checks: Vec<_> = self
            .checks
            .iter()
            .map(|Check { name, ok, detail, took }| {
                json!({ "name": name, "ok": ok, "detail": detail, "ms": milliseconds(*took) })
            })
            .collect();
        let scheduler = &self.args.access.scheduler;
        let skipped: Vec<_> =
            self.skipped.iter().map(|(name, why)| json!({ "name": name, "detail": why })).collect();
        let ms = milliseconds(took);
        let summary =
            json!({ "ok": ok, "scheduler": scheduler, "ms": ms, "checks": checks, "skipped": skipped });
        say(format_args!("{summary}"));
    }

    /// Says that something cannot be tried here.
    fn skip(&mut self, name: &'static str, why: String) {
        if !self.args.json {
            say(format_args!("skip {name:<24} {:>11}  {why}", ""));
        }
        self.skipped.push((name, why));
    }

    fn tokens(&self, user: &str) -> Arc<dyn TokenProvider> {
        self.args.access.tokens(user)
    }

    fn options(&self, user: &str, device: &str, transport: Transport, encoding: Encoding) -> Options {
        let mut options = Options::new(self.args.access.scheduler.clone(), device, StaticToken::new(""));
        options.token = self.tokens(user);
        options.transports = vec![transport];
        options.encoding = encoding;
        options.connect_timeout = PATIENCE;
        options
    }

    async fn walk(&mut self) -> Result<(), Failed> {
        let (alice, bob) = (self.alice.clone(), self.bob.clone());
        let (ws, tcp, json, proto) = (Transport::WebSocket, Transport::Tcp, Encoding::Json, Encoding::Proto);

        let answer = self.schedule().await?;
        let phone = self.options(&alice, "phone", ws, json);
        let mut phone = self.check("connect_websocket_json", connect(phone)).await?;
        let laptop_options = self.options(&bob, "laptop", ws, proto);
        let mut laptop = self.check("connect_websocket_proto", connect(laptop_options.clone())).await?;
        let tablet = self.options(&alice, "tablet", tcp, proto);
        let mut tablet = self.check("connect_tcp", connect(tablet)).await?;
        let by_hand = self.check("hello_by_hand", say_hello(&answer)).await?;

        let sent = self.send(&phone).await?;
        self.notify_and_pull(by_hand, &sent).await?;
        self.two_devices(&mut phone, &mut tablet, &mut laptop).await?;
        self.repeat(&phone, &sent).await?;

        let mut laptop = self.catch_up(&phone, laptop, laptop_options.clone()).await?;
        let desk = self.options(&bob, "desk", tcp, proto);
        let mut desk = self.check("new_device_gets_all", new_device(desk)).await?;
        self.read(&laptop, &mut desk, sent.conversation_id).await?;
        self.look_back(&phone, sent.conversation_id).await?;
        self.group(&mut phone, &mut tablet, &mut desk).await?;
        let again = self.replace(&mut laptop, laptop_options).await?;

        for device in [phone, tablet, laptop, desk, again] {
            device.client.close().await;
        }
        Ok(())
    }

    async fn schedule(&mut self) -> Result<ScheduleAnswer, Failed> {
        let (scheduler, tokens) = (self.args.access.scheduler.clone(), self.tokens(&self.bob));
        let work = async {
            let token = tokens.token(None).await?;
            let request = ScheduleRequest { device_id: "by-hand".into(), ..Default::default() };
            let answer = schedule::fetch(&scheduler, &token, &request).await?;
            let best = answer.endpoints.first().context("there are no endpoints")?;
            let decision = &answer.decision;
            let ways: Vec<_> = answer.endpoints.iter().map(|endpoint| endpoint.transport.as_str()).collect();
            ensure!(ways.contains(&"ws") && ways.contains(&"tcp"), "not both transports: {ways:?}");
            let (gateway, pool, reason) = (&best.gateway_id, &decision.pool, decision.reason.as_str());
            let detail = format!(
                "gateway {gateway}, pool {pool}, reason {reason}, ticket for {} s",
                answer.ttl_seconds
            );
            Ok((answer, detail))
        };
        self.check("schedule", work).await
    }

    async fn send(&mut self, phone: &Device) -> Result<SendResponse, Failed> {
        let request = message(&self.bob, "first", "1: hello, bob");
        let work = async {
            let sent = phone.client.send_request(request, PATIENCE).await?;
            ensure!(!sent.duplicate, "a fresh message is said to be a duplicate");
            let detail = format!("message {} in conversation {}", sent.message_id, sent.conversation_id);
            Ok((sent, detail))
        };
        self.check("send", work).await
    }

    async fn notify_and_pull(&mut self, mut bob: ByHand, sent: &SendResponse) -> Result<(), Failed> {
        let seq = self.check("notify", bob.notify()).await?;
        let work = async {
            let pulled = bob.pull().await?;
            ensure!(pulled.message_id == sent.message_id, "row {seq} holds message {}", pulled.message_id);
            bob.connection.close(PATIENCE).await;
            Ok(((), format!("row {seq} holds {:?}", text(&pulled))))
        };
        self.check("pull", work).await
    }

    async fn two_devices(
        &mut self,
        phone: &mut Device,
        tablet: &mut Device,
        laptop: &mut Device,
    ) -> Result<(), Failed> {
        let reply = message(&self.alice, "second", "2: hello, alice");
        let work = async {
            laptop.expect("1: hello, bob").await?;
            laptop.client.send_request(reply, PATIENCE).await?;
            for device in [phone, tablet] {
                device.expect("1: hello, bob").await?;
                device.expect("2: hello, alice").await?;
            }
            laptop.expect("2: hello, alice").await?;
            Ok(((), "phone and tablet see what was sent and what was answered".to_owned()))
        };
        self.check("two_devices", work).await
    }

    async fn repeat(&mut self, phone: &Device, sent: &SendResponse) -> Result<(), Failed> {
        let same = message(&self.bob, "first", "1: hello, bob");
        let work = async {
            let again = phone.client.send_request(same, PATIENCE).await?;
            ensure!(again.duplicate, "a repeat under one clientMsgId is not said to be a duplicate");
            ensure!(again.message_id == sent.message_id, "it got another id, {}", again.message_id);
            Ok(((), format!("the repeat is message {} again", again.message_id)))
        };
        self.check("repeat_is_one_message", work).await
    }

    /// Bob goes offline, is written to, and comes back with his cursor, which is in the options.
    async fn catch_up(&mut self, phone: &Device, bob: Device, options: Options) -> Result<Device, Failed> {
        let name = self.bob.clone();
        let work = async {
            let Device { client, mut events } = bob;
            events.confirm();
            client.close().await;
            while online(phone, &name).await?.is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            for number in 3..=5 {
                let request =
                    message(&name, &format!("offline-{number}"), &format!("{number}: while you were away"));
                phone.client.send_request(request, PATIENCE).await?;
            }
            let (mut bob, _) = connect(options).await?;
            for number in 3..=5 {
                bob.expect(&format!("{number}: while you were away")).await?;
            }
            Ok((bob, "3 messages, in order, none twice".to_owned()))
        };
        self.check("offline_then_catch_up", work).await
    }

    async fn read(&mut self, laptop: &Device, desk: &mut Device, conversation_id: u64) -> Result<(), Failed> {
        let work = async {
            let before = conversation(laptop, conversation_id).await?;
            ensure!(before.unread == 4, "{} unread; alice wrote 4", before.unread);
            let after = laptop.client.mark_read(conversation_id, before.last_seq).await?;
            ensure!(after.unread == 0 && after.total_unread == 0, "after markRead: {after:?}");
            let read = loop {
                if let Event::Read { read, .. } = desk.next().await? {
                    break read;
                }
            };
            let right = read.conversation_id == conversation_id && read.seq == before.last_seq;
            ensure!(right, "the other device heard of {read:?}");
            Ok(((), "4 unread, then 0, and the other device knows".to_owned()))
        };
        self.check("mark_read_syncs", work).await
    }

    async fn look_back(&mut self, phone: &Device, conversation_id: u64) -> Result<(), Failed> {
        let bob = self.bob.clone();
        let history = async {
            let request = HistoryRequest { conversation_id, ..Default::default() };
            let messages = phone.client.history(request).await?.messages;
            let seqs: Vec<u64> = messages.iter().map(|message| message.conversation_seq).collect();
            ensure!(seqs == [1, 2, 3, 4, 5], "conversation seqs {seqs:?}");
            let ordered =
                messages.iter().zip(1..).all(|(m, number)| text(m).starts_with(&format!("{number}:")));
            ensure!(ordered, "not in the order in which they were sent");
            Ok(((), "5 messages, contiguous, in order".to_owned()))
        };
        self.check("history", history).await?;
        let presence = async {
            let devices = online(phone, &bob).await?.context("bob is said to be offline")?;
            ensure!(devices == ["desk", "laptop"], "bob's devices are said to be {devices:?}");
            Ok(((), "bob is online with desk and laptop".to_owned()))
        };
        self.check("presence", presence).await
    }

    async fn replace(&mut self, old: &mut Device, options: Options) -> Result<Device, Failed> {
        let work = async {
            let (new, _) = connect(options).await?;
            loop {
                match old.events.next().await {
                    Some(Event::Stopped(StopReason::Gateway { code: 4504, .. })) => break,
                    Some(Event::Stopped(reason)) => bail!("the older one was stopped otherwise: {reason}"),
                    Some(_) => {}
                    None => bail!("the older one ended without a reason"),
                }
            }
            new.client.conversations(1, "").await.context("the newer one does not work")?;
            Ok((new, "the older connection of the device was closed with 4504".to_owned()))
        };
        self.check("replacement", work).await
    }
}

async fn connect(options: Options) -> anyhow::Result<(Device, String)> {
    let (client, mut events) = Client::connect(options).await?;
    match events.next().await {
        Some(Event::Connected(connected)) => {
            let (user, gateway, transport) = (connected.user_id, connected.gateway_id, connected.transport);
            Ok((Device { client, events }, format!("{user} on {gateway} over {transport}")))
        }
        other => bail!("began with {other:?}"),
    }
}

/// A device without a cursor gets the whole inbox.
async fn new_device(options: Options) -> anyhow::Result<(Device, String)> {
    let (mut device, _) = connect(options).await?;
    for number in 1..=5 {
        let message = device.message().await?;
        let expected = format!("{number}:");
        ensure!(text(&message).starts_with(&expected), "{:?} came instead of {expected}", text(&message));
    }
    Ok((device, "5 messages, in order".to_owned()))
}

/// Hello and welcome over raw TCP, without the client's help.
async fn say_hello(answer: &ScheduleAnswer) -> anyhow::Result<(ByHand, String)> {
    let endpoint = answer.endpoints.iter().find(|endpoint| endpoint.transport == "tcp");
    let mut connection = Connection::open(endpoint.context("no TCP endpoint")?, Encoding::Proto).await?;
    let hello = Hello { ticket: answer.ticket.clone(), device_id: "by-hand".into(), ..Default::default() };
    connection.send(Up::Hello(hello)).await?;
    match connection.next().await? {
        Incoming::Frame(Down::Welcome(welcome)) => {
            let detail = format!("welcome, session {}, inbox at {}", welcome.session_id, welcome.inbox_seq);
            Ok((ByHand { connection, inbox_seq: welcome.inbox_seq }, detail))
        }
        other => bail!("{other:?} instead of a welcome"),
    }
}

impl ByHand {
    async fn notify(&mut self) -> anyhow::Result<(u64, String)> {
        match self.connection.next().await? {
            Incoming::Frame(Down::Notify(notify)) if notify.inbox_seq == self.inbox_seq + 1 => {
                Ok((notify.inbox_seq, format!("the inbox is at {}", notify.inbox_seq)))
            }
            other => bail!("{other:?} instead of a notify"),
        }
    }

    async fn pull(&mut self) -> anyhow::Result<Message> {
        let pull = Method::Pull(PullRequest { after_seq: self.inbox_seq, limit: 0 });
        self.connection.send(Up::Request(Request { id: 1, method: Some(pull) })).await?;
        let mut rows = loop {
            match self.connection.next().await? {
                Incoming::Frame(Down::Response(response)) => match response.result {
                    Some(Answer::Pull(pull)) => break pull.items,
                    other => bail!("{other:?} instead of rows"),
                },
                Incoming::Frame(Down::Notify(_)) => {}
                other => bail!("{other:?} instead of an answer"),
            }
        };
        let row = rows.drain(..).next().context("no row came")?;
        match Event::of_row(row) {
            Event::Message { message, .. } => Ok(message),
            other => bail!("{other:?} instead of a message"),
        }
    }
}

impl Device {
    async fn next(&mut self) -> anyhow::Result<Event> {
        match self.events.next().await {
            Some(Event::Gap(gap)) => bail!("{gap}"),
            Some(Event::Stopped(reason)) => Err(reason.into()),
            Some(event) => Ok(event),
            None => bail!("the client has ended"),
        }
    }

    /// The next message; other events are passed over.
    async fn message(&mut self) -> anyhow::Result<Message> {
        loop {
            if let Event::Message { message, .. } = self.next().await? {
                return Ok(message);
            }
        }
    }

    async fn expect(&mut self, expected: &str) -> anyhow::Result<()> {
        let message = self.message().await.with_context(|| format!("waiting for {expected:?}"))?;
        ensure!(text(&message) == expected, "{:?} came instead of {expected:?}", text(&message));
        Ok(())
    }
}

/// The names of the user's devices, sorted; `None` when offline.
async fn online(asker: &Device, user: &str) -> anyhow::Result<Option<Vec<String>>> {
    let answer = asker.client.presence(vec![user.to_owned()]).await?;
    let presence =
        answer.users.into_iter().find(|presence| presence.user_id == user).context("the user is left out")?;
    let mut devices: Vec<String> = presence.devices.into_iter().map(|device| device.device_id).collect();
    devices.sort_unstable();
    Ok(presence.online.then_some(devices))
}

async fn conversation(device: &Device, id: u64) -> anyhow::Result<Conversation> {
    let conversations = device.client.conversations(0, "").await?.conversations;
    conversations.into_iter().find(|c| c.conversation_id == id).context("the conversation is not listed")
}

fn message(to: &str, id: &str, body: &str) -> SendRequest {
    SendRequest {
        client_msg_id: id.to_owned(),
        to: Some(To::user(to).into()),
        r#type: "text".to_owned(),
        body: body.to_owned().into(),
    }
}

fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.body).into_owned()
}

/// Prints a line. The checks go on without a reader: the exit code tells.
fn say(line: fmt::Arguments<'_>) {
    if let Err(error) = print(line) {
        note(format_args!("! not printed: {error}"));
    }
}

/// Milliseconds with one decimal: below that it is noise.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
