//! The Access Schedule Service: tells a client which gateways to connect to, and signs the ticket that lets it in.
//!
//! Soft state only: gateways report to every scheduler, the policy is a text, and a decision is a pure function of both
//! ([`decide`]). Losing another replica, a queue or a store does not stop assignments.

mod admission;
mod assign;
mod carried;
mod clock;
mod core;
pub mod decide;
pub mod fleet;
mod follow;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod guard;
mod history;
mod http;
mod jwt;
mod limit;
pub mod locate;
mod metrics;
mod moving;
pub mod policy;
mod redirect;
mod release;
mod replicas;
mod service;
pub mod simulate;
pub mod transport;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_proto::{
    id,
    link::SchedulerService,
    metric::Registry,
    schedule::{HeartbeatParameters, ReconnectParameters},
    ticket::TicketSigner,
    wire::CarriedRecord,
};
use thiserror::Error;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info};

pub use crate::admission::LONGEST_SPREAD_MS;
pub use crate::jwt::{
    JwtExpected, JwtKeys, JwtKeysError, MIN_SECRET, sign_expected_token, sign_user_token, watch::JwksFile,
};
use crate::{
    admission::QueueTokens,
    carried::{
        Carrier,
        disk::{self, DataDir},
    },
    core::{Core, Parts},
    history::History,
    jwt::JwtStore,
    limit::RateLimiter,
    locate::{Database, LoadError, Locator, watch::Followed},
    metrics::Metrics,
    policy::{Policy, PolicyError, PolicyStore},
    service::{REDIRECT_QUEUE, Service},
};

/// How long a ticket is good for unless configured, in seconds: long enough for a client to walk its list through a
/// bad network, short enough that a drained gateway is not come back to for long.
pub const DEFAULT_TICKET_TTL: Duration = Duration::from_secs(300);

/// Requests one user may make in a second unless configured (PROTOCOL.md, default limits).
pub const DEFAULT_REQUESTS_PER_SECOND: u32 = 1_000;

/// Of the machine's name, in characters: with a port behind it, it is an id.
const MAX_HOST: usize = 58;

/// What a scheduler is started with.
pub struct Config {
    /// Names it among the schedulers; empty: the machine's name and the port of the HTTP API.
    pub id: String,
    /// Where the HTTP API listens; port 0 takes any free one.
    pub listen: SocketAddr,
    /// The policy; none: everybody to `stable` by load alone.
    pub policy_file: Option<PathBuf>,
    /// The address database (MMDB); none: clients' addresses are known by the policy's networks alone.
    pub geoip_file: Option<PathBuf>,
    /// Where what must outlive it is kept; none: its gateways carry it, and nothing is kept when they end too.
    pub data_dir: Option<PathBuf>,
    /// What user tokens are verified with.
    pub jwt: JwtKeys,
    /// What tokens must say of whom they are for and who made them.
    pub jwt_expected: JwtExpected,
    /// The file that these keys are from, if it is to be followed.
    pub jwks_file: Option<JwksFile>,
    /// `auth.ticket_key`: the ticket's signing key is derived from it. At least 32 bytes.
    pub ticket_key: Vec<u8>,
    /// What other schedulers sign with while the key is changed (`auth.ticket_key_next`, `auth.ticket_key_previous`): gateways
    /// are told to accept these too. At least 32 bytes each.
    pub other_ticket_keys: Vec<Vec<u8>>,
    /// `auth.ticket_key_void`: those that leaked. Gateways are told to refuse their tickets, and nobody who came with one is sent on
    /// with a ticket of another. At least 32 bytes each, and none of those above.
    pub void_ticket_keys: Vec<Vec<u8>>,
    /// `auth.admin_key`: for `:explain`. Empty: nobody has it.
    pub admin_key: String,
    /// `auth.admin_key_previous`: accepted as well. Empty: none.
    pub previous_admin_key: String,
    /// How long a ticket is good for.
    pub ticket_ttl: Duration,
    /// The heartbeats clients are told; the gateways' own.
    pub heartbeat: HeartbeatParameters,
    /// How clients are told to come back after a loss.
    pub reconnect: ReconnectParameters,
    /// Requests one user may make in a second.
    pub requests_per_second_per_user: u32,
    /// The longest [`ReconnectParameters::spread_ms`] that is made of what gateways take, in milliseconds; at most
    /// [`LONGEST_SPREAD_MS`].
    pub spread_max_ms: u32,
    /// More routes on the same port: dev's token endpoint. It must have no fallback of its own.
    pub extra_routes: Option<axum::Router>,
}

/// Why a scheduler does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The listen address cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The policy file cannot be read.
    #[error("cannot read the policy file {}", path.display())]
    PolicyFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The policy file is no policy. Later a broken one is refused and the old stays; at start there is no old one, and
    /// to go on without would send everybody to `stable` unasked.
    #[error("the policy file {} is not valid", path.display())]
    Policy {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: PolicyError,
    },
    /// The address database cannot be used. Later a broken one is refused and the old stays; at start there is no old one.
    #[error("the address database {} cannot be used", path.display())]
    Geoip {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: LoadError,
    },
    /// The data directory cannot be used.
    #[error("the data directory {} cannot be used", path.display())]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A ticket key is too short to be a secret.
    #[error(
        "a ticket key (auth.ticket_key, ticket_key_next, ticket_key_previous, ticket_key_void) has {0} bytes; give at least 32 random ones"
    )]
    TicketKey(usize),
    /// A key cannot be both good and void.
    #[error(
        "auth.ticket_key_void is auth.ticket_key, ticket_key_next or ticket_key_previous as well; give another key there"
    )]
    VoidTicketKey,
}

/// A running scheduler. Dropped without [`Scheduler::stop`], it stops without waiting.
pub struct Scheduler {
    core: Arc<Core>,
    service: Arc<Service>,
    local_addr: SocketAddr,
    tasks: JoinSet<()>,
    cancel: DropGuard,
}

impl Scheduler {
    /// Binds, and starts the tasks on the caller's tokio runtime. The metrics live as long as the process: series of pools
    /// are registered when the pool first appears.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config, metrics: Registry<'static>) -> Result<Self, StartError> {
        check_ticket_keys(&config)?;
        let ticket_keys = [&config.ticket_key].into_iter().chain(&config.other_ticket_keys);
        let public = |key: &Vec<u8>| TicketSigner::from_secret(key).public_key();
        let files = Files::open(config.policy_file.as_deref(), config.geoip_file, config.data_dir);
        let Files { policy, geoip, data_dir, records, history } = files.await?;
        let address = config.listen;
        let listening = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listening)?;
        let local_addr = listener.local_addr().map_err(listening)?;
        let offered = policy.hash.clone();
        info!(listen = %local_addr, %policy, "scheduler started");
        let (database, geoip) = geoip.map_or((None, None), |(database, file)| (Some(database), Some(file)));
        let core = Arc::new(Core::new(Parts {
            id: if config.id.is_empty() { made_up_id(local_addr) } else { config.id },
            history,
            carried: Carrier::new(),
            policy: PolicyStore::new(policy),
            locator: Locator::new(database, metrics::Proximity::register(metrics)),
            metrics: Metrics::register(metrics),
            jwt: JwtStore::new(config.jwt, config.jwt_expected, metrics),
            signer: TicketSigner::from_secret(&config.ticket_key),
            queue_tokens: QueueTokens::new(&config.ticket_key, &config.other_ticket_keys, rand::random()),
            ticket_keys: ticket_keys.map(public).collect(),
            void_ticket_keys: config.void_ticket_keys.iter().map(public).collect(),
            admin_keys: vec![config.admin_key, config.previous_admin_key],
            ticket_ttl_ms: i64::try_from(config.ticket_ttl.as_millis()).unwrap_or(i64::MAX / 2),
            heartbeat: config.heartbeat,
            reconnect: config.reconnect,
            spread_max_ms: config.spread_max_ms.min(LONGEST_SPREAD_MS),
            limiter: RateLimiter::new(config.requests_per_second_per_user),
        }));
        core.begin(records);
        let (redirects, jobs) = mpsc::channel(REDIRECT_QUEUE);
        let service = Arc::new(Service::new(Arc::clone(&core), redirects));
        let cancel = CancellationToken::new();
        let router = http::router(Arc::clone(&core), config.extra_routes);
        let mut tasks = JoinSet::new();
        tasks.spawn(http::server::serve(Arc::clone(&core), listener, router, cancel.clone()));
        tasks.spawn(until(cancel.clone(), Arc::clone(&core).publish()));
        tasks.spawn(until(cancel.clone(), disk::keep(Arc::clone(&core), data_dir)));
        tasks.spawn(until(cancel.clone(), history::keep(Arc::clone(&core))));
        tasks.spawn(until(cancel.clone(), service::answer_redirects(Arc::clone(&core), jobs)));
        if let Some(path) = config.policy_file {
            tasks.spawn(until(cancel.clone(), policy::watch::watch(Arc::clone(&core), path, offered)));
        }
        if let Some(file) = config.jwks_file {
            tasks.spawn(until(cancel.clone(), jwt::watch::watch(Arc::clone(&core), file)));
        }
        if let Some(file) = geoip {
            tasks.spawn(until(cancel.clone(), locate::watch::watch(Arc::clone(&core), file)));
        }
        Ok(Self { core, service, local_addr, tasks, cancel: cancel.drop_guard() })
    }

    /// Where the HTTP API listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What gateways attach to.
    #[must_use]
    pub fn service(&self) -> Arc<dyn SchedulerService> {
        Arc::clone(&self.service) as Arc<dyn SchedulerService>
    }

    /// The operator's operations, `/admin/v1/*`, for the admin port. Each wants the admin key.
    pub fn admin_routes(&self) -> axum::Router {
        http::admin::router(Arc::clone(&self.core))
    }

    /// Whether a client can be sent anywhere.
    ///
    /// # Errors
    /// The reason why not: `no assignable gateway`, or that it has just started.
    pub fn ready(&self) -> Result<(), String> {
        self.core.ready()
    }

    /// Looks at the policy file, the address database and the JWKS file now (SIGHUP), rather than within two seconds.
    pub fn reload(&self) {
        self.core.reload.notify_one();
        self.core.jwt.reload.notify_one();
        self.core.locator.reload.notify_one();
    }

    /// Stops listening, lets requests in flight end within 5 s, and awaits every task.
    pub async fn stop(self) {
        let Self { mut tasks, cancel, .. } = self;
        drop(cancel);
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                error!(%error, "a scheduler task panicked");
            }
        }
        info!("scheduler stopped");
    }
}

/// What a scheduler begins with.
struct Files {
    policy: Policy,
    geoip: Option<(Database, Followed)>,
    data_dir: Option<DataDir>,
    /// What the data directory has.
    records: Vec<CarriedRecord>,
    history: History,
}

impl Files {
    async fn open(
        policy: Option<&Path>,
        geoip: Option<PathBuf>,
        data_dir: Option<PathBuf>,
    ) -> Result<Self, StartError> {
        let policy = policy.map_or_else(|| Ok(Policy::default()), read_policy)?;
        let geoip = match geoip {
            Some(path) => Some(read_geoip(path).await?),
            None => None,
        };
        let (data_dir, records) = match data_dir {
            Some(path) => open_data_dir(path).await?,
            None => (None, Vec::new()),
        };
        let history = match &data_dir {
            Some(directory) => History::open(Some(directory.path()))
                .map_err(|source| StartError::DataDir { path: directory.path().to_owned(), source })?,
            None => History::default(),
        };
        Ok(Self { policy, geoip, data_dir, records, history })
    }
}

/// Each is long enough, and none is both good and void.
fn check_ticket_keys(config: &Config) -> Result<(), StartError> {
    let good = || [&config.ticket_key].into_iter().chain(&config.other_ticket_keys);
    let mut all = good().chain(&config.void_ticket_keys);
    if let Some(short) = all.find(|key| key.len() < MIN_SECRET) {
        return Err(StartError::TicketKey(short.len()));
    }
    if good().any(|key| config.void_ticket_keys.contains(key)) {
        return Err(StartError::VoidTicketKey);
    }
    Ok(())
}

fn read_policy(path: &Path) -> Result<Policy, StartError> {
    let text = policy::watch::read(path)
        .map_err(|source| StartError::PolicyFile { path: path.to_owned(), source })?;
    policy::parse(&text).map_err(|source| StartError::Policy { path: path.to_owned(), source })
}

/// The machine's name and a port of it: another for each scheduler, and the same after a restart.
fn made_up_id(address: SocketAddr) -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().take(MAX_HOST).collect();
    let id = format!("{name}:{}", address.port());
    if id::check(&id).is_ok() { id } else { format!("scheduler:{}", address.port()) }
}

async fn open_data_dir(path: PathBuf) -> Result<(Option<DataDir>, Vec<CarriedRecord>), StartError> {
    let opened = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || DataDir::open(&path)).await
    };
    let opened = opened.unwrap_or_else(|error| Err(io::Error::other(error)));
    let (directory, records) = opened.map_err(|source| StartError::DataDir { path, source })?;
    Ok((Some(directory), records))
}

async fn read_geoip(path: PathBuf) -> Result<(Database, Followed), StartError> {
    let failed = |source| StartError::Geoip { path: path.clone(), source };
    let read = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || Followed::load(path)).await
    };
    let read = read.unwrap_or_else(|error| Err(LoadError::Unreadable(io::Error::other(error))));
    let (database, file) = read.map_err(failed)?;
    info!(path = %path.display(), %database, "address database read");
    Ok((database, file))
}

/// Runs a task that has nothing to finish when it is told to end.
async fn until(cancel: CancellationToken, task: impl Future<Output = ()>) {
    cancel.run_until_cancelled(task).await;
}
