//! Which processes a server is made of, and how each is started.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

use rand::Rng;

use super::{
    Addresses, Options,
    process::{berth, berth_with_descriptors},
};
use crate::{bail, metrics::Admin, proxy::Proxy, tokens};

/// How the roles are put into processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Composition {
    /// `berth dev`: all in one.
    One,
    /// Each on its own: two schedulers, two gateways or more, one logic. Fewer would hide what two replicas, or two gateways of one
    /// user, do to each other.
    Apart,
}

impl Composition {
    /// What `BERTH_TEST_COMPOSITION` says: `one` (or nothing) or `apart`.
    ///
    /// # Panics
    /// When it says something else.
    #[must_use]
    pub fn of_this_run() -> Self {
        match std::env::var("BERTH_TEST_COMPOSITION").as_deref() {
            Ok("apart") => Self::Apart,
            Ok("one") | Err(_) => Self::One,
            Ok(other) => panic!("BERTH_TEST_COMPOSITION={other}: one and apart are possible"),
        }
    }
}

/// Schedulers of [`Composition::Apart`], unless [`Options::schedulers`] says otherwise.
pub const SCHEDULERS: usize = 2;
/// Gateways of [`Composition::Apart`], unless [`Options::gateways`] says otherwise: gw-1 and gw-2.
pub const GATEWAYS: usize = 2;

/// One process of a server. In the order in which they are stopped; they are started in the opposite one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// All roles in one process.
    Dev,
    /// The gateway of that index, from 0: `gw-1` is 0.
    Gateway(usize),
    /// The scheduler of that index, from 0.
    Scheduler(usize),
    /// Logic.
    Logic,
}

/// Where the processes of a server listen. With roles apart the ports are chosen once, so that one role can be restarted
/// where the others look for it.
pub(super) struct Layout {
    pub(super) composition: Composition,
    schedulers: Vec<[SocketAddr; 3]>,
    gateways: Vec<[SocketAddr; 2]>,
    logic: [SocketAddr; 3],
    /// By gateway: to each scheduler, then to logic.
    proxies: Vec<Vec<Proxy>>,
}

impl Layout {
    pub(super) fn new(options: &Options) -> anyhow::Result<Self> {
        let composition = options.composition();
        if composition == Composition::One {
            let nowhere = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); 3];
            return Ok(Self {
                composition,
                schedulers: vec![],
                gateways: vec![],
                logic: nowhere,
                proxies: vec![],
            });
        }
        let gateways = options.gateways.unwrap_or(GATEWAYS);
        let schedulers: Vec<_> =
            (0..options.schedulers.unwrap_or(SCHEDULERS)).map(|_| [port(), port(), port()]).collect();
        let logic = [port(), port(), port()];
        let mut proxies = Vec::new();
        for _ in (0..gateways).filter(|_| options.links_that_can_be_cut) {
            let targets = schedulers.iter().map(|[_, rpc, _]| *rpc).chain([logic[1]]);
            proxies.push(targets.map(Proxy::start).collect::<anyhow::Result<_>>()?);
        }
        let gateways = (0..gateways).map(|_| [port(), port()]).collect();
        Ok(Self { composition, schedulers, gateways, logic, proxies })
    }

    /// Every process, in the order of stopping.
    pub(super) fn roles(&self) -> Vec<Role> {
        if self.composition == Composition::One {
            return vec![Role::Dev];
        }
        let gateways = (0..self.gateways.len()).map(Role::Gateway);
        let schedulers = (0..self.schedulers.len()).map(Role::Scheduler);
        gateways.chain(schedulers).chain([Role::Logic]).collect()
    }

    /// Where everything will listen, as far as that is known before.
    pub(super) fn addresses(&self) -> Addresses {
        let url = |address: &SocketAddr| format!("http://{address}");
        let schedulers: Vec<_> = self.schedulers.iter().map(|[client, ..]| url(client)).collect();
        let gateways: Vec<_> = self.gateways.iter().map(|[client, _]| client.to_string()).collect();
        let admins: Vec<_> = self.roles().into_iter().rev().filter_map(|role| self.admin(role)).collect();
        Addresses {
            scheduler: schedulers.first().cloned().unwrap_or_default(),
            schedulers,
            gateway: gateways.first().cloned().unwrap_or_default(),
            gateways,
            logic: url(&self.logic[0]),
            // The first one is what a person looks at: a scheduler's, as in `berth dev`.
            admin: Admin::of(self.admin(Role::Scheduler(0)).into_iter().chain(admins)),
            service_key: tokens::SERVICE_KEY.to_owned(),
            admin_key: tokens::ADMIN_KEY.to_owned(),
            tokens: ["alice", "bob"].map(|user| (user.to_owned(), tokens::user(user))).into(),
        }
    }

    /// The operator's port of a role apart.
    pub(super) fn admin(&self, role: Role) -> Option<String> {
        let address = match role {
            Role::Dev => return None,
            Role::Scheduler(index) => self.schedulers.get(index)?[2],
            Role::Gateway(index) => self.gateways.get(index)?[1],
            Role::Logic => self.logic[2],
        };
        Some(format!("http://{address}"))
    }

    /// The proxy between a gateway and its peer.
    pub(super) fn proxy(&self, gateway: usize, peer: Role) -> anyhow::Result<&Proxy> {
        let Some(proxies) = self.proxies.get(gateway) else {
            bail!("there is no link to cut: Options::links_that_can_be_cut, and gateways from 0");
        };
        match peer {
            Role::Scheduler(index) if index < self.schedulers.len() => Ok(&proxies[index]),
            Role::Logic => Ok(&proxies[self.schedulers.len()]),
            other => bail!("a gateway has no link to {other:?}"),
        }
    }

    /// How a role is started; `folder` is the server's.
    pub(super) fn command(&self, role: Role, options: &Options, folder: &Path) -> anyhow::Result<Command> {
        let mut command = match options.descriptors {
            Some(limit) if matches!(role, Role::Dev | Role::Gateway(_)) => berth_with_descriptors(limit)?,
            _ => berth()?,
        };
        match role {
            Role::Dev => {
                command.arg("dev").arg("--data-dir").arg(folder.join("data"));
                for port in ["scheduler", "gateway", "logic", "admin"] {
                    command.args([&format!("--{port}-listen"), "127.0.0.1:0"]);
                }
            }
            Role::Scheduler(index) => {
                command.arg("scheduler");
                addresses(&mut command, &["--listen", "--rpc", "--admin"], &self.schedulers[index]);
            }
            Role::Gateway(index) => {
                command.args(["gateway", "--id", &format!("gw-{}", index + 1)]);
                addresses(&mut command, &["--listen", "--admin"], &self.gateways[index]);
                self.peers(&mut command, index);
            }
            Role::Logic => {
                command.args(["logic", "--store"]);
                command.arg(format!("embedded:{}", folder.join("data").display()));
                addresses(&mut command, &["--listen", "--rpc", "--admin"], &self.logic);
            }
        }
        command.arg("--json");
        if options.policy.is_some() && matches!(role, Role::Dev | Role::Scheduler(_)) {
            command.arg("--policy").arg(folder.join("policy.toml"));
        }
        if !options.makes_its_own_keys {
            command
                .env("BERTH_AUTH__JWT_SECRET", tokens::JWT_SECRET)
                .env("BERTH_AUTH__TICKET_KEY", tokens::TICKET_KEY)
                .env("BERTH_AUTH__CLUSTER_KEY", tokens::CLUSTER_KEY)
                .env("BERTH_AUTH__SERVICE_KEY", tokens::SERVICE_KEY)
                .env("BERTH_AUTH__ADMIN_KEY", tokens::ADMIN_KEY);
        }
        command.envs(&options.env);
        Ok(command)
    }

    fn peers(&self, command: &mut Command, gateway: usize) {
        let mut targets: Vec<SocketAddr> = self.schedulers.iter().map(|[_, rpc, _]| *rpc).collect();
        targets.push(self.logic[1]);
        if let Some(proxies) = self.proxies.get(gateway) {
            targets = proxies.iter().map(Proxy::address).collect();
        }
        let logic = targets.pop().into_iter().map(|address| ("--logic", address));
        for (flag, address) in targets.into_iter().map(|address| ("--scheduler", address)).chain(logic) {
            command.args([flag, &address.to_string()]);
        }
    }
}

fn addresses(command: &mut Command, flags: &[&str], addresses: &[SocketAddr]) {
    for (flag, address) in flags.iter().zip(addresses) {
        command.args([flag, &address.to_string()[..]]);
    }
}

/// A port that is free now and that nobody takes by chance: outside of what the kernel gives to outgoing connections, so
/// that it is still free when a killed role comes back to it.
pub fn port() -> SocketAddr {
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::rng().random_range(10_000..32_000)));
        if !taken.contains(&address.port()) && TcpListener::bind(address).is_ok() {
            taken.insert(address.port());
            return address;
        }
    }
}
