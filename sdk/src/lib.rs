//! The Rust client of Berth: asks a scheduler where to connect, stays connected, sends in order, pulls without gaps.
//!
//! ```no_run
//! use berth_client::{Client, Event, Options, To, cursor::FileCursor, token::StaticToken};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut options = Options::new("http://127.0.0.1:7700", "alices-phone", StaticToken::new("a user JWT"));
//! options.cursor = std::sync::Arc::new(FileCursor::new("alices-phone.cursor"));
//!
//! let (client, mut events) = Client::connect(options).await?;
//! let sent = client.send(To::user("bob"), "text", "hi").await?;
//! println!("accepted as {}", sent.message_id);
//!
//! while let Some(event) = events.next().await {
//!     match event {
//!         Event::Message { message, .. } => println!("{}: {:?}", message.from, message.body),
//!         Event::Resync(why) => println!("read conversations and history again: {why}"),
//!         Event::Stopped(why) => println!("over: {why}"),
//!         _ => {}
//!     }
//! }
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! - **Sending**: [`Client::send`] repeats a message under one `clientMsgId`, across connections, until the server has
//!   accepted it, has refused it for good, or the caller's deadline has passed. With one send in flight (the default)
//!   messages are accepted in the order of the calls.
//! - **Receiving**: rows of the inbox come in order and without gaps, each *at least once*. The cursor is stored once the
//!   application has taken a row, which is when it asks [`Events::next`] for the following one. After a crash between the
//!   two the row comes again; after [`Event::Resync`] with a changed epoch every row comes again. Message ids are unique:
//!   an application that must not see a message twice keeps the ids it has seen.
//! - **Backpressure**: when the application does not read, pulling stops; memory stays within [`Limits`].
//! - **Reconnecting**: by the scheduler's parameters and the gateway's close codes. Close codes of 4500 and above, and a
//!   scheduler's 400, 401 and 403, end the client with [`Event::Stopped`].
//! - **Without a scheduler**: the last list and ticket are kept ([`store`]) and used until the ticket expires, by a new process
//!   too. After that, and when nobody on the list answers, the client goes through [`Options::bootstrap_gateways`] and the last
//!   list with the ticket it has, asking schedulers in between: gateways accept it for a while as long as they know no scheduler
//!   either. While connected it renews the ticket ([`Options::renew_every`]), so that a long session has one too.
//!
//! # How it is built
//!
//! Decisions are pure modules that take the time and the randomness as arguments: [`endpoints`] (where next),
//! [`reconnect`] (when next), [`heartbeat`], [`pull`] (which rows), and two private ones for requests in flight and
//! messages waiting. One task per client drives them, started by [`Client::start`] and awaited by [`Client::close`].
//! [`schedule`] and [`transport`] are the same steps without anything automatic, for tests and load generators.

pub mod cursor;
pub mod endpoints;
pub mod heartbeat;
pub mod pull;
pub mod reconnect;
pub mod schedule;
pub mod store;
pub mod token;
pub mod transport;

mod bootstrap;
mod client;
mod clock;
mod driver;
mod event;
mod file;
mod flight;
mod http;
mod keeping;
mod live;
mod mailbox;
mod options;
mod outbox;
mod plan;
mod renewal;
mod schedulers;

pub use berth_proto::{client as record, frame::Encoding};
pub use client::{Client, ConnectError, RequestError, To};
pub use event::{Connected, Disconnected, Event, Gap, Resync, State, StopReason};
pub use mailbox::Events;
pub use options::{Limits, Options, OptionsError};
