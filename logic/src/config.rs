//! What a logic is told when it starts, and why it may not start.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use thiserror::Error;

use crate::{
    context::{Clock, system_clock},
    kv::KvError,
    queue::QueueError,
    routes::{DEVICES, RoutesError},
    snowflake,
    store::StoreError,
};

/// Where messages are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChoice {
    /// In this process: gone with it.
    Memory,
    /// In a log and two databases under this directory.
    Embedded(PathBuf),
}

/// What a logic is told.
#[derive(Clone)]
pub struct Config {
    /// Its id, for logs.
    pub id: String,
    /// Its part of message ids: 0 to 1,023, different for each logic that runs at the same time.
    pub node: u16,
    /// Where the back-end HTTP API listens.
    pub listen: SocketAddr,
    /// Where messages are kept.
    pub store: StoreChoice,
    /// Bearer token of the back-end API: at least 32 bytes.
    pub service_key: String,
    /// While it is changed: the one before, which is accepted as well. Empty: none.
    pub previous_service_key: String,
    /// How long inbox rows are kept; timelines keep the bodies for ever.
    pub inbox_lifetime: Duration,
    /// Ingest partitions; another count than the stored one is refused while the queue holds records.
    pub partitions: u16,
    /// What names this boot of the operating system (on Linux /proc/sys/kernel/random/boot_id): tells whether unsynced
    /// writes survived an unclean end. Empty: unknown.
    pub os_boot_id: String,
    /// How long a gateway's routes live without a renewal.
    pub lease: Duration,
    /// Accepted messages that may wait to be committed: above it sends are refused as RESOURCE_EXHAUSTED, so that the
    /// queue on disk is bounded and what is accepted arrives in seconds.
    pub most_behind: u64,
    /// Devices of one user that may be connected at a time; those above are refused with 4506.
    pub sessions_per_user: usize,
    /// The time.
    pub clock: Clock,
}

/// A service key shorter than this many bytes is refused (PROTOCOL.md).
const KEY: usize = 32;

impl Config {
    /// With the defaults: node 0, an HTTP API on 127.0.0.1:7720, inbox rows for 30 days, 16 partitions, leases of 15 s, 100,000 messages behind at most,
    /// an unknown boot and the system's clock.
    #[must_use]
    pub fn new(id: impl Into<String>, store: StoreChoice, service_key: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            node: 0,
            listen: SocketAddr::from(([127, 0, 0, 1], 7720)),
            store,
            service_key: service_key.into(),
            previous_service_key: String::new(),
            inbox_lifetime: Duration::from_secs(30 * 24 * 60 * 60),
            partitions: 16,
            os_boot_id: String::new(),
            lease: Duration::from_secs(15),
            // Some seconds of commit on two cores, and 3 GiB of bodies at the very worst.
            most_behind: 100_000,
            sessions_per_user: DEVICES,
            clock: system_clock(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        let wrong = |problem: String| Err(StartError::Config(problem));
        let previous = Some(&self.previous_service_key).filter(|key| !key.is_empty());
        for (name, key) in [("service_key", Some(&self.service_key)), ("service_key_previous", previous)] {
            if let Some(length) = key.map(String::len).filter(|length| *length < KEY) {
                return wrong(format!("auth.{name} has {length} bytes; give at least {KEY}"));
            }
        }
        if self.partitions == 0 {
            return wrong("logic.partitions is 0; give at least 1".to_owned());
        }
        if self.sessions_per_user == 0 {
            return wrong("logic.sessions_per_user is 0; nobody could connect".to_owned());
        }
        if self.node >= snowflake::NODES {
            return wrong(format!("logic.node is {}; 0 to {} are allowed", self.node, snowflake::NODES - 1));
        }
        if self.lease < Duration::from_millis(100) || self.lease > Duration::from_secs(3600) {
            return wrong(format!("logic.lease is {:?}; 100 ms to 1 h are allowed", self.lease));
        }
        Ok(())
    }
}

/// Why a logic did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A value cannot be.
    #[error("{0}")]
    Config(String),
    /// The data directory cannot be used.
    #[error("the data directory {path} cannot be used")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The HTTP API cannot listen.
    #[error("the back-end API cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("a thread cannot be started")]
    Thread(#[source] io::Error),
    /// A database cannot be opened.
    #[error(transparent)]
    Engine(#[from] KvError),
    /// The queue cannot be opened or replayed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The store cannot be opened or replayed into.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The routes cannot be opened.
    #[error(transparent)]
    Routes(#[from] RoutesError),
}
