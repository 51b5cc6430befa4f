//! Clients of the SDK, who find their way back by themselves, and a note of where each is connected.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use berth_client::{Client, Event, Options, token::StaticToken};
use berth_tests::{ensure, server::Addresses, tokens, wait};
use tokio::task::JoinHandle;

/// Some users, one device each.
pub struct Crowd {
    members: Vec<Member>,
    losses: Arc<AtomicU64>,
}

struct Member {
    user: String,
    client: Client,
    /// The gateway; empty: none.
    gateway: Arc<Mutex<String>>,
    listener: JoinHandle<()>,
}

/// A client that knows every scheduler.
pub fn sdk_options(at: &Addresses, user: &str) -> Options {
    let mut options = Options::new(at.scheduler.clone(), "sdk", StaticToken::new(tokens::user(user)));
    options.schedulers.clone_from(&at.schedulers);
    options
}

impl Crowd {
    /// Connects all of them.
    pub async fn connect(at: &Addresses, size: usize, prefix: &str) -> anyhow::Result<Self> {
        Self::connect_within(at, size, prefix, wait::DEADLINE).await
    }

    /// [`Crowd::connect`] with a deadline of its own.
    pub async fn connect_within(
        at: &Addresses,
        size: usize,
        prefix: &str,
        deadline: Duration,
    ) -> anyhow::Result<Self> {
        let users = (0..size).map(|n| format!("{prefix}-{n}"));
        let crowd = Self::start(users.map(|user| (user.clone(), sdk_options(at, &user)))).await?;
        crowd.all_back_within("", deadline).await?;
        Ok(crowd)
    }

    /// Connects these users with options of their own, all at once.
    pub async fn of(users: impl IntoIterator<Item = (String, Options)>) -> anyhow::Result<Self> {
        let crowd = Self::start(users).await?;
        crowd.all_back("").await?;
        Ok(crowd)
    }

    async fn start(users: impl IntoIterator<Item = (String, Options)>) -> anyhow::Result<Self> {
        let losses = Arc::new(AtomicU64::new(0));
        let mut members = Vec::new();
        for (user, options) in users {
            let (client, mut events) = Client::start(options).await?;
            let (gateway, losses) = (Arc::new(Mutex::new(String::new())), Arc::clone(&losses));
            let place = Arc::clone(&gateway);
            let listener = tokio::spawn(async move {
                while let Some(event) = events.next().await {
                    let now = match event {
                        // Which one answers at a bootstrap address is not told.
                        Event::Connected(connected) if connected.gateway_id.is_empty() => "some".to_owned(),
                        Event::Connected(connected) => connected.gateway_id,
                        Event::Disconnected(_) => {
                            losses.fetch_add(1, Ordering::Relaxed);
                            String::new()
                        }
                        _ => continue,
                    };
                    *place.lock().expect("nobody panics with it") = now;
                }
            });
            members.push(Member { user, client, gateway, listener });
        }
        Ok(Self { members, losses })
    }

    /// Their users.
    pub fn users(&self) -> Vec<String> {
        self.members.iter().map(|member| member.user.clone()).collect()
    }

    /// How many are connected to the gateway of that id.
    pub fn at(&self, gateway: &str) -> usize {
        let there = |member: &&Member| *member.gateway.lock().expect("nobody panics with it") == gateway;
        self.members.iter().filter(there).count()
    }

    /// Connections lost so far, and attempts that failed.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Waits until everybody is connected, and not at the gateway `but`; how long that took.
    pub async fn all_back(&self, but: &str) -> anyhow::Result<Duration> {
        self.all_back_within(but, wait::DEADLINE).await
    }

    /// [`Crowd::all_back`] with a deadline of its own.
    pub async fn all_back_within(&self, but: &str, deadline: Duration) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        wait::until_within("every client is connected", deadline, || async {
            let mut places =
                self.members.iter().map(|member| member.gateway.lock().expect("nobody panics").clone());
            Ok(places.all(|place| !place.is_empty() && place != but).then_some(()))
        })
        .await?;
        Ok(begun.elapsed())
    }

    /// Ends them; an error if one had given up.
    pub async fn close(self) -> anyhow::Result<()> {
        for member in self.members {
            let state = member.client.state().borrow().clone();
            ensure!(!matches!(state, berth_client::State::Stopped(_)), "{}: {state:?}", member.user);
            member.client.close().await;
            member.listener.await?;
        }
        Ok(())
    }
}
