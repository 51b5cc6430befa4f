//! Routes: which device of a user is connected through which gateway, and who is online.
//!
//! A backend implements [`Routes`] and passes `conformance::routes`. A route belongs to (gateway, boot) and dies in one
//! step with that boot's lease. Session epochs fence it: of two sessions of a device the one with the higher epoch
//! wins, whatever order opens and closes arrive in.

mod kv;

use async_trait::async_trait;
use thiserror::Error;

pub use self::kv::KvRoutes;
use crate::kv::KvError;

/// An opening that took longer than this from the client's hello to here, in milliseconds, is late: what came meanwhile of the
/// same device may be newer. Below it the order of arrival decides, since the times of two gateways are compared only as well
/// as a link's delay is known.
pub const LATE_MS: i64 = 250;

/// Devices of one user that may be connected at a time unless configured: more than anybody owns, and few enough that a
/// message to a user, which costs a notify for each, stays cheap.
pub const DEVICES: usize = 32;

/// A gateway's process: the boot id is new for each start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayKey {
    /// The gateway's id.
    pub id: String,
    /// Its start.
    pub boot: u64,
}

/// A connected device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The device.
    pub device: String,
    /// What it runs on.
    pub platform: String,
    /// Where it is connected.
    pub gateway: GatewayKey,
    /// Its connection there.
    pub handle: u64,
    /// Its session.
    pub epoch: u64,
    /// When what its user identified himself with was issued, on the wall clock; 0: not told.
    pub auth_issued_at_ms: i64,
}

/// Where users are connected: what a notify needs of their routes, and no more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connections {
    /// The gateways that any of them is connected to, each once.
    pub gateways: Vec<GatewayKey>,
    /// Each connection.
    pub connections: Vec<Connection>,
}

/// One of [`Connections`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Whose: the place among the users asked for.
    pub user: usize,
    /// Where: the place in [`Connections::gateways`].
    pub gateway: usize,
    /// Its name there.
    pub handle: u64,
}

/// A session to register.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Whose.
    pub user: String,
    /// The device.
    pub device: String,
    /// What it runs on.
    pub platform: String,
    /// Where it is connected.
    pub gateway: GatewayKey,
    /// Its connection there.
    pub handle: u64,
    /// 0: a new session; else one that the gateway holds already, under this epoch.
    pub announced: u64,
    /// When its client said hello, on the clock of the times given here; 0: not known.
    pub said_ms: i64,
    /// As in [`Route`].
    pub auth_issued_at_ms: i64,
}

/// What became of an [`Opening`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// Registered.
    Registered {
        /// Its epoch: above every earlier one of this device.
        epoch: u64,
        /// The session it took the place of, on whichever gateway.
        replaced: Option<Route>,
    },
    /// A newer session of the device is there.
    Stale,
    /// Another boot of the gateway attached since.
    Superseded,
    /// The user has as many others as he may, which is so many.
    TooManyDevices(usize),
}

/// The backend failed.
#[derive(Debug, Clone, Error)]
pub enum RoutesError {
    /// The engine below failed.
    #[error(transparent)]
    Engine(#[from] KvError),
}

/// A table of routes. Its times are of a clock that never goes back or jumps while the process runs, and is near the
/// wall clock, since the moment a lease ended outlives the process.
#[async_trait]
pub trait Routes: Send + Sync {
    /// A gateway attached: its lease begins or goes on; leases of other boots of the same gateway id end, since an id
    /// has one process. What such a boot said before and comes later begins no lease and takes nobody's place, until it
    /// renews and no other boot of the id has a lease any more.
    async fn attach(&self, gateway: &GatewayKey, now_ms: i64) -> Result<(), RoutesError>;

    /// Registers sessions, in order, in one atomic step. A new one takes the place of the device's earlier one, unless it was
    /// under way for longer than [`LATE_MS`] and the other's client said hello after its own.
    async fn register(&self, openings: Vec<Opening>, now_ms: i64) -> Result<Vec<Opened>, RoutesError>;

    /// Removes the route of a session; a newer one of the device stays. Whether one was removed.
    async fn close(&self, user: &str, device: &str, epoch: u64) -> Result<bool, RoutesError>;

    /// The live routes of each user, in order.
    async fn lookup(&self, users: &[String]) -> Result<Vec<Vec<Route>>, RoutesError>;

    /// Where these users are connected, for thousands at a time: faster with the users in order, and without an
    /// allocation for each. In no order.
    async fn locate(&self, users: &[&str]) -> Result<Connections, RoutesError>;

    /// The boot is alive and holds this many sessions. Whether its lease had ended before: its sessions are forgotten, it
    /// must announce them again. Said until one was announced, since an answer can be lost; never of no sessions.
    async fn renew(&self, gateway: &GatewayKey, sessions: u64, now_ms: i64) -> Result<bool, RoutesError>;

    /// Ends the leases that were not renewed in time, and with each all its routes; which.
    async fn expire(&self, now_ms: i64) -> Result<Vec<GatewayKey>, RoutesError>;
}
