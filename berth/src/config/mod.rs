//! The configuration: every key, its default, and what makes it valid. Flags > environment > file > defaults.

mod layers;
mod limits;

use std::net::SocketAddr;

use berth_scheduler::JwtExpected;
use serde::{Deserialize, Serialize};

pub use layers::{Effective, Layers, syntax_error};

/// Every key of every role. A role reads its own sections; `berth config print` prints them all.
///
/// Texts that may be unset are empty then, and counts that Berth may choose itself are 0, so that each key has a type.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Who may do what.
    pub auth: Auth,
    /// The Access Schedule Service.
    pub scheduler: Scheduler,
    /// The gateway.
    pub gateway: Gateway,
    /// The logic tier.
    pub logic: Logic,
    /// Where messages are kept.
    pub store: Store,
    /// The operator's port.
    pub admin: Admin,
    /// What is logged.
    pub log: Log,
}

/// Keys are strings used as raw bytes, at least 32 of them. `berth dev` makes its own where they are empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Auth {
    /// HS256 secret of the users' tokens.
    pub jwt_secret: String,
    /// While it is changed: the one before, which is still accepted.
    pub jwt_secret_previous: String,
    /// Or a JWKS file with the public keys (EdDSA, RS256) of whoever signs them. It is followed.
    pub jwks_file: String,
    /// Whom users' tokens must be for (`aud`). Empty: anybody.
    pub jwt_audience: String,
    /// Who must have made them (`iss`). Empty: whoever has the key.
    pub jwt_issuer: String,
    /// What the schedulers' ticket signing key is derived from.
    pub ticket_key: String,
    /// While it is changed: the one to come. Gateways are told to accept it already.
    pub ticket_key_next: String,
    /// While it is changed: the one before. Gateways are told to accept it still.
    pub ticket_key_previous: String,
    /// One that leaked: its tickets are good for nothing. Gateways are told to refuse them.
    pub ticket_key_void: String,
    /// What roles show each other when they are separate processes.
    pub cluster_key: String,
    /// While it is changed: the one before, which schedulers and logic still accept of gateways.
    pub cluster_key_previous: String,
    /// What the back end calls logic with.
    pub service_key: String,
    /// While it is changed: the one before, which is still accepted.
    pub service_key_previous: String,
    /// What operators call with.
    pub admin_key: String,
    /// While it is changed: the one before, which schedulers still accept.
    pub admin_key_previous: String,
}

impl Auth {
    /// What users' tokens must say.
    pub fn expected(&self) -> JwtExpected {
        JwtExpected { audience: self.jwt_audience.clone(), issuer: self.jwt_issuer.clone() }
    }

    /// The values of [`SECRETS`], in that order.
    fn secrets(&self) -> [&str; SECRETS.len()] {
        [
            &self.jwt_secret,
            &self.jwt_secret_previous,
            &self.ticket_key,
            &self.ticket_key_next,
            &self.ticket_key_previous,
            &self.ticket_key_void,
            &self.cluster_key,
            &self.cluster_key_previous,
            &self.service_key,
            &self.service_key_previous,
            &self.admin_key,
            &self.admin_key_previous,
        ]
    }
}

/// The Access Schedule Service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// Its name among the schedulers. Empty: the machine's name and the port of `listen`.
    pub id: String,
    /// Clients' HTTP.
    pub listen: SocketAddr,
    /// Role to role: gateways dial in here. Not used by `berth dev`.
    pub rpc_listen: SocketAddr,
    /// Its operator's port. Not used by `berth dev`, which has one for all: admin.listen.
    pub admin_listen: SocketAddr,
    /// Empty: everybody into pool stable.
    pub policy_file: String,
    /// The address database (MMDB) that says where clients are. Empty: none.
    pub geoip: String,
    /// Where what must outlive it is kept (drains, revocations, the policy). Empty: its gateways carry it from one start to
    /// the next. `berth dev` keeps it in its --data-dir.
    pub data_dir: String,
    /// How long a ticket is good for, in seconds.
    pub ticket_ttl_seconds: u32,
    /// Schedules one user may ask for, a second.
    pub requests_per_second_per_user: u32,
    /// Clients of a lost gateway are told to come back within so many milliseconds at the most.
    pub spread_max_ms: u32,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            id: String::new(),
            listen: loopback(7700),
            rpc_listen: loopback(7701),
            admin_listen: loopback(7702),
            policy_file: String::new(),
            geoip: String::new(),
            data_dir: String::new(),
            ticket_ttl_seconds: 300,
            requests_per_second_per_user: 1_000,
            spread_max_ms: berth_scheduler::LONGEST_SPREAD_MS,
        }
    }
}

/// The gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gateway {
    /// Its name in the fleet.
    pub id: String,
    /// Clients' WebSocket and TCP.
    pub listen: SocketAddr,
    /// Its operator's port. Not used by `berth dev`, which has one for all: admin.listen.
    pub admin_listen: SocketAddr,
    /// HOST:PORT of every scheduler's rpc_listen: it reports to each. Not used by `berth dev`.
    pub schedulers: Vec<String>,
    /// HOST:PORT of logic's rpc_listen. Not used by `berth dev`.
    pub logics: Vec<String>,
    /// HOST:PORT by which clients reach it. Empty: the listen address, if that is one of the machine's and not all of them.
    pub advertise: String,
    /// Where it stands.
    pub region: String,
    /// The failure domain within the region.
    pub zone: String,
    /// Which clients it is for.
    pub pool: String,
    /// Connections it takes. 0: as many as its descriptors allow.
    pub capacity: u64,
    /// Threads that hold connections. 0: one a core.
    pub workers: u16,
    /// Handshakes it takes, a second.
    pub handshakes_per_second: u32,
    /// Bytes a second that its network takes, which schedulers compare with what it sends. 0: not told.
    pub sent_bytes_per_second: u64,
    /// Between two heartbeats of a client.
    pub heartbeat_interval_ms: u32,
    /// Silence after which a connection is closed with 4003.
    pub heartbeat_timeout_ms: u32,
    /// At a graceful stop, over how long the clients are told to come back elsewhere.
    pub drain_spread_ms: u32,
    /// While no scheduler can be reached, a genuine ticket is accepted for so long past its time. 0: never.
    pub ticket_grace_seconds: u32,
    /// Connections at a time from one IPv4 address or IPv6 /64. 0: no limit.
    pub connections_per_address: u32,
    /// New connections a second from one IPv4 address or IPv6 /64. 0: no limit.
    pub handshakes_per_second_per_address: u32,
    /// CIDRs, separated by commas, to which the two do not apply: loopback, load balancers that hide addresses.
    pub exempt_addresses: String,
    /// Connections without a hello that was accepted; above it the oldest gives way.
    pub pending_handshakes: u32,
    /// Frames a second of one connection, each counted once more for every 4 KiB it has; then 4007. 0: no limit.
    pub frames_per_second: u32,
    /// Requests a second of one user at this gateway, malformed ones too; then RESOURCE_EXHAUSTED. 0: no limit.
    pub requests_per_second_per_user: u32,
    /// Web pages that may open a WebSocket: `https://app.example.com`, `https://*.example.com`, separated by commas. Empty:
    /// any.
    pub origins: String,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            id: "gw-1".to_owned(),
            listen: loopback(7710),
            admin_listen: loopback(7712),
            schedulers: vec!["127.0.0.1:7701".to_owned()],
            logics: vec!["127.0.0.1:7721".to_owned()],
            advertise: String::new(),
            region: String::new(),
            zone: String::new(),
            pool: "stable".to_owned(),
            capacity: 0,
            workers: 0,
            handshakes_per_second: 2_000,
            sent_bytes_per_second: 0,
            heartbeat_interval_ms: 25_000,
            heartbeat_timeout_ms: 37_500,
            drain_spread_ms: 2_000,
            ticket_grace_seconds: 3_600,
            connections_per_address: 4_096,
            handshakes_per_second_per_address: 256,
            exempt_addresses: "127.0.0.0/8, ::1".to_owned(),
            pending_handshakes: 8_192,
            frames_per_second: 2_000,
            requests_per_second_per_user: 1_000,
            origins: String::new(),
        }
    }
}

impl Gateway {
    /// Why clients cannot be told `advertise`, if they cannot.
    fn advertise_problem(&self) -> Option<String> {
        let text = &self.advertise;
        let checked = if text.is_empty() { Ok(()) } else { berth_link::check_address(text) };
        checked.err().map(|problem| format!("gateway.advertise: {problem}"))
    }
}

/// The logic tier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Logic {
    /// Its name among the logic instances.
    pub id: String,
    /// Its number in message ids, 0 to 1023: no two instances may share one.
    pub node: u16,
    /// The back end's HTTP.
    pub listen: SocketAddr,
    /// Role to role: gateways dial in here. Not used by `berth dev`.
    pub rpc_listen: SocketAddr,
    /// Its operator's port. Not used by `berth dev`, which has one for all: admin.listen.
    pub admin_listen: SocketAddr,
    /// Ingest partitions. Kept with the queue; changed only when that is drained.
    pub partitions: u16,
    /// How long an inbox row is kept, in hours. The conversations' timelines are kept for ever.
    pub inbox_lifetime_hours: u32,
    /// Devices of one user that may be connected at a time; those above are refused with 4506.
    pub sessions_per_user: u32,
    /// A gateway that logic hears nothing of for so many seconds counts as dead, and its users as offline.
    pub lease_seconds: u32,
}

impl Default for Logic {
    fn default() -> Self {
        Self {
            id: "logic-1".to_owned(),
            node: 0,
            listen: loopback(7720),
            rpc_listen: loopback(7721),
            admin_listen: loopback(7722),
            partitions: 16,
            inbox_lifetime_hours: 7 * 24,
            sessions_per_user: 32,
            lease_seconds: 15,
        }
    }
}

/// Where messages are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Store {
    /// `memory` (gone with the process) or `embedded:DIR`. `berth dev` keeps them in its --data-dir instead.
    pub backend: String,
    /// What names this start of the operating system: after another one, writes that were never synced may be gone.
    /// Empty: read from /proc/sys/kernel/random/boot_id.
    pub os_boot_id: String,
}

impl Default for Store {
    fn default() -> Self {
        Self { backend: "embedded:berth-data".to_owned(), os_boot_id: String::new() }
    }
}

/// The operator's port of `berth dev`: /livez, /readyz, /metrics, /version. Roles on their own have theirs in their section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Admin {
    /// Operators' HTTP.
    pub listen: SocketAddr,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: loopback(7702) }
    }
}

/// What is logged, to stderr.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// As in RUST_LOG: `info`, `info,berth_gateway=debug`.
    pub filter: String,
    /// `text`, `json`, or `auto`: text on a terminal.
    pub format: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: "auto".to_owned() }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Keys shorter than this are guessable.
pub const KEY_BYTES: usize = 32;

/// The keys whose values are never printed.
pub const SECRETS: [&str; 12] = [
    "auth.jwt_secret",
    "auth.jwt_secret_previous",
    "auth.ticket_key",
    "auth.ticket_key_next",
    "auth.ticket_key_previous",
    "auth.ticket_key_void",
    "auth.cluster_key",
    "auth.cluster_key_previous",
    "auth.service_key",
    "auth.service_key_previous",
    "auth.admin_key",
    "auth.admin_key_previous",
];

impl Config {
    /// What cannot be, though every key has the right type. Each names its key and value.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, key) in SECRETS.iter().zip(self.auth.secrets()) {
            if !key.is_empty() && key.len() < KEY_BYTES {
                problems.push(format!("{name} has {} bytes; at least {KEY_BYTES} are needed", key.len()));
            }
        }
        for (name, id) in [
            ("gateway.id", &self.gateway.id),
            ("gateway.pool", &self.gateway.pool),
            ("logic.id", &self.logic.id),
        ] {
            if let Err(problem) = berth_proto::id::check(id) {
                problems.push(format!("{name} = {id:?} {problem}"));
            }
        }
        let mut range = |name: &str, value: u64, least: u64, most: u64| {
            if !(least..=most).contains(&value) {
                problems.push(format!("{name} = {value}; {least} to {most} are possible"));
            }
        };
        range("scheduler.ticket_ttl_seconds", self.scheduler.ticket_ttl_seconds.into(), 10, 86_400);
        range(
            "scheduler.requests_per_second_per_user",
            self.scheduler.requests_per_second_per_user.into(),
            1,
            1_000_000,
        );
        let longest = berth_scheduler::LONGEST_SPREAD_MS.into();
        range("scheduler.spread_max_ms", self.scheduler.spread_max_ms.into(), 0, longest);
        range("gateway.workers", self.gateway.workers.into(), 0, 128);
        range("gateway.handshakes_per_second", self.gateway.handshakes_per_second.into(), 1, 1_000_000);
        range("gateway.heartbeat_interval_ms", self.gateway.heartbeat_interval_ms.into(), 100, 3_600_000);
        let interval = u64::from(self.gateway.heartbeat_interval_ms);
        range(
            "gateway.heartbeat_timeout_ms",
            self.gateway.heartbeat_timeout_ms.into(),
            interval + 1,
            7_200_000,
        );
        range("gateway.drain_spread_ms", self.gateway.drain_spread_ms.into(), 0, 600_000);
        range("gateway.ticket_grace_seconds", self.gateway.ticket_grace_seconds.into(), 0, 7 * 86_400);
        range("logic.node", self.logic.node.into(), 0, 1_023);
        range("logic.partitions", self.logic.partitions.into(), 1, 1_024);
        range("gateway.pending_handshakes", self.gateway.pending_handshakes.into(), 1, 10_000_000);
        // A gateway whose link breaks without a word notices after 4 s and dials again within 1 s: nobody is to go offline for
        // that. It renews at a third of the lease, so what is left of it then may be two thirds.
        range("logic.lease_seconds", self.logic.lease_seconds.into(), 8, 3_600);
        range("logic.sessions_per_user", self.logic.sessions_per_user.into(), 1, 10_000);
        range("logic.inbox_lifetime_hours", self.logic.inbox_lifetime_hours.into(), 1, 24 * 3_650);
        problems.extend(self.gateway.limit_problems());
        problems.extend(self.gateway.advertise_problem());
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            problems.push(format!("log.filter = {:?} is no filter: {error}", self.log.filter));
        }
        if !["auto", "text", "json"].contains(&self.log.format.as_str()) {
            problems.push(format!("log.format = {:?}; auto, text or json are possible", self.log.format));
        }
        problems
    }
}
