//! `berth chat alice bob` and `berth chat alice --group team`: a terminal chat, through the scheduler like every client.

use std::{io::BufRead, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use berth_client::{
    Client, ConnectError, Encoding, Event, Events, Options, RequestError, To,
    cursor::FileCursor,
    record::{Message, SendRequest},
    token::{DevToken, StaticToken, TokenProvider},
    transport::Transport,
};
use berth_proto::id;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    compose,
    exit::Failure,
    output::{Reader, note, print},
};

/// Lines read ahead of the sending: a pipe is not slurped into memory.
const LINES: usize = 16;

/// Life of the tokens that are signed here; the client asks for another whenever it needs one.
const TOKEN_TTL: Duration = Duration::from_secs(3600);

/// Where the scheduler is, and what proves who we are.
#[derive(Debug, Clone, clap::Args)]
pub struct Access {
    /// The scheduler to ask.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7700")]
    pub scheduler: String,
    /// Sign tokens with this secret; without it, the scheduler of a `berth dev` gives them.
    #[arg(long, env = "BERTH_AUTH__JWT_SECRET", hide_env_values = true)]
    jwt_secret: Option<String>,
}

impl Access {
    /// The secret to sign tokens with, if there is one.
    pub fn jwt_secret(&self) -> Option<&str> {
        self.jwt_secret.as_deref().filter(|secret| !secret.is_empty())
    }

    /// Tokens of `user`.
    pub fn tokens(&self, user: &str) -> Arc<dyn TokenProvider> {
        let Some(secret) = self.jwt_secret.clone().filter(|secret| !secret.is_empty()) else {
            return Arc::new(DevToken::new(self.scheduler.clone(), user));
        };
        let user = user.to_owned();
        Arc::new(move || {
            let token = compose::sign_token(&secret, &user, TOKEN_TTL);
            async { Ok(token) }
        })
    }
}

/// Arguments of `berth chat`.
#[derive(Debug, clap::Args)]
pub struct ChatArgs {
    /// Who you are.
    user: String,
    /// Whom you write to. Messages of others are shown too.
    #[arg(required_unless_present = "group", conflicts_with = "group")]
    peer: Option<String>,
    /// Write to this group instead. You must be a member: the back end's API makes groups.
    #[arg(long)]
    group: Option<String>,
    #[command(flatten)]
    access: Access,
    /// Your token, if it is neither to be signed here nor given by `berth dev`.
    #[arg(long, env = "BERTH_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Which of your devices this is. A second chat of the same device ends the first.
    #[arg(long, default_value = "chat")]
    device: String,
    /// How to connect: ws or tcp.
    #[arg(long, default_value = "ws", value_parser = transport)]
    transport: Transport,
    /// Write JSON frames instead of protobuf (WebSocket only).
    #[arg(long)]
    json_frames: bool,
    /// Remember in this file what was shown; without it the whole inbox is shown each time.
    #[arg(long, value_name = "FILE")]
    cursor: Option<PathBuf>,
    /// Stay after the end of the input.
    #[arg(long)]
    follow: bool,
    /// End after showing that many messages, also after the end of the input.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

fn transport(name: &str) -> Result<Transport, String> {
    Transport::from_name(name).ok_or_else(|| format!("{name:?} is no transport; write ws or tcp"))
}

/// Sends the lines of stdin and prints what comes, until the input ends, a signal, or the server stops us.
///
/// Messages go to stdout, one line each as `from: text`, those of a group as `group/from: text`; everything else to stderr.
pub fn run(args: ChatArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting the runtime").map_err(Failure::Start)?;
    let ended = runtime.block_on(chat(&args));
    // The thread that reads stdin may be waiting for a line; it ends with the process.
    runtime.shutdown_background();
    ended
}

async fn chat(args: &ChatArgs) -> Result<(), Failure> {
    let ids = [("user", Some(&args.user)), ("user", args.peer.as_ref()), ("group", args.group.as_ref())];
    for (what, id) in ids.into_iter().filter_map(|(what, id)| Some((what, id?))) {
        id::check(id).map_err(|problem| Failure::Configuration(anyhow!("the {what} id {id:?} {problem}")))?;
    }
    let to = match (&args.group, &args.peer) {
        (Some(group), _) => To::group(group),
        (None, peer) => To::user(peer.as_ref().expect("clap asks for one of them")),
    };
    let token: Arc<dyn TokenProvider> = match &args.token {
        Some(token) => Arc::new(StaticToken::new(token.clone())),
        None => args.access.tokens(&args.user),
    };
    let mut options = Options::new(args.access.scheduler.clone(), args.device.clone(), StaticToken::new(""));
    options.token = token;
    options.platform = "desktop".to_owned();
    options.transports = vec![args.transport];
    options.encoding = if args.json_frames { Encoding::Json } else { Encoding::Proto };
    if let Some(path) = &args.cursor {
        options.cursor = Arc::new(FileCursor::new(path));
    }
    let (client, mut events) = Client::connect(options).await.map_err(|error| match error {
        ConnectError::Options(_) => Failure::Configuration(error.into()),
        _ => Failure::Start(error.into()),
    })?;
    // Our own lines are on the terminal already; this tells them from those of our other devices.
    let mark = format!("chat-{:016x}-", rand::random::<u64>());
    let enough = CancellationToken::new();
    let input = send_lines(&client, &to, &mark, stdin_lines(), &enough);
    let output = show_events(&mut events, &mark, args.count);
    let ended = tokio::select! {
        ended = talk(input, output, &enough, args.follow || args.count.is_some()) => ended,
        signal = tokio::signal::ctrl_c() => signal.context("listening to signals"),
    };
    client.close().await;
    ended.map_err(Failure::Start)
}

/// Runs both directions until the end of the input (with `stay`: of the output), or of what comes. A line that was read is
/// sent or counted as failed before the end, whichever direction ends first, and a failed one makes the end a failure.
async fn talk(
    input: impl Future<Output = anyhow::Result<()>>,
    output: impl Future<Output = anyhow::Result<()>>,
    enough: &CancellationToken,
    stay: bool,
) -> anyhow::Result<()> {
    tokio::pin!(input, output);
    tokio::select! {
        biased;
        sent = &mut input => {
            sent?;
            if stay { output.await } else { Ok(()) }
        }
        shown = &mut output => {
            enough.cancel();
            input.await.and(shown)
        }
    }
}

/// Sends each line; the next one when the server has accepted it. Reads no further after `enough`.
async fn send_lines(
    client: &Client,
    to: &To,
    mark: &str,
    mut lines: mpsc::Receiver<String>,
    enough: &CancellationToken,
) -> anyhow::Result<()> {
    let mut number = 0_u64;
    let mut failed = 0_u64;
    while let Some(line) = enough.run_until_cancelled(lines.recv()).await.flatten() {
        if line.is_empty() {
            continue;
        }
        number += 1;
        let request = SendRequest {
            client_msg_id: format!("{mark}{number}"),
            to: Some(to.clone().into()),
            r#type: "text".to_owned(),
            body: line.into(),
        };
        match client.send_request(request, Duration::from_secs(60)).await {
            Ok(_) => {}
            Err(error) => {
                note(format_args!("! not sent: {error}"));
                failed += 1;
                if matches!(error, RequestError::Stopped(_)) {
                    break;
                }
            }
        }
    }
    if failed > 0 { Err(anyhow!("{failed} of {number} messages were not sent")) } else { Ok(()) }
}

/// The lines of stdin, read by a thread since a terminal cannot be polled. It ends with the input or the process.
fn stdin_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(LINES);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Prints what comes, until `count` messages were shown, nobody reads them any more, or the client has stopped. What could
/// not be printed comes again.
async fn show_events(events: &mut Events, mark: &str, count: Option<u64>) -> anyhow::Result<()> {
    let mut shown = 0;
    while count.is_none_or(|count| shown < count) {
        let Some(event) = events.next().await else { return Ok(()) };
        match event {
            Event::Message { message, .. } if !message.client_msg_id.starts_with(mark) => {
                let reader = print(format_args!("{}", line_of(&message))).context("writing to stdout")?;
                if reader == Reader::Gone {
                    return Ok(());
                }
                shown += 1;
            }
            Event::Connected(connected) => {
                note(format_args!("* connected to {} as {}", connected.gateway_id, connected.user_id));
            }
            Event::Disconnected(lost) => {
                let wait_ms = lost.retry_in.as_millis();
                note(format_args!("* not connected: {}; again in {wait_ms} ms", lost.reason));
            }
            Event::Failure { failure, .. } => note(format_args!("! not delivered: {}", failure.message)),
            Event::Resync(why) => note(format_args!("* {why}; what was before may come again")),
            Event::Gap(gap) => note(format_args!("! a fault of the server: {gap}")),
            Event::Stopped(reason) => return Err(reason.into()),
            _ => {}
        }
        events.confirm();
    }
    Ok(())
}

/// A message as one line. Control characters do not reach the terminal.
fn line_of(message: &Message) -> String {
    let Message { from, r#type, body, group_id, .. } = message;
    // No id has a slash.
    let from = if group_id.is_empty() { from.clone() } else { format!("{group_id}/{from}") };
    if r#type != "text" && !r#type.is_empty() {
        return format!("{from}: [{type}, {} bytes]", body.len());
    }
    let text = String::from_utf8_lossy(body);
    let text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    format!("{from}: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_outcome_does_not_depend_on_which_side_ends_first() {
        let ok = || async { Ok(()) };
        let stopped = || async { Err(anyhow!("stopped")) };
        for _ in 0..50 {
            let enough = CancellationToken::new();
            assert!(talk(ok(), stopped(), &enough, false).await.is_ok(), "all was sent");
            assert!(talk(ok(), stopped(), &enough, true).await.is_err());
            assert!(talk(stopped(), ok(), &enough, false).await.is_err(), "a line was not sent");
            assert!(talk(stopped(), ok(), &enough, true).await.is_err());
            let in_flight = async {
                enough.cancelled().await;
                Err(anyhow!("1 of 1 messages were not sent"))
            };
            assert!(talk(in_flight, ok(), &enough, true).await.is_err(), "a line in flight is waited for");
        }
    }

    #[tokio::test]
    async fn a_line_that_a_stop_left_unsent_is_counted() {
        let options = Options::new("http://127.0.0.1:1", "d", StaticToken::new("t"));
        let (client, _events) = Client::start(options).await.expect("starts");
        client.close().await;
        let (sender, lines) = mpsc::channel(1);
        sender.send("hi".to_owned()).await.expect("has room");
        drop(sender);
        let sent = send_lines(&client, &To::user("bob"), "m-", lines, &CancellationToken::new()).await;
        assert_eq!(sent.expect_err("was not sent").to_string(), "1 of 1 messages were not sent");
    }

    #[test]
    fn a_message_cannot_command_the_terminal() {
        let message = |kind: &str, body: &'static [u8]| Message {
            from: "bob".into(),
            r#type: kind.into(),
            body: body.into(),
            ..Default::default()
        };
        assert_eq!(line_of(&message("text", b"hi")), "bob: hi");
        let in_a_group = Message { group_id: "team".into(), ..message("text", b"hi") };
        assert_eq!(line_of(&in_a_group), "team/bob: hi");
        assert_eq!(line_of(&message("", b"\x1b[2Jhi\n")), "bob: \u{fffd}[2Jhi\u{fffd}");
        assert_eq!(line_of(&message("image", b"123")), "bob: [image, 3 bytes]");
    }
}
