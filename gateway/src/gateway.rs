//! Starting, attaching, draining and stopping a gateway.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::Ordering::{AcqRel, Acquire, Release},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use berth_proto::{
    client::Endpoint,
    link::{LogicService, SchedulerService},
    metric::Registry,
    wire::AttachGateway,
};
use mio::{Poll, Waker, net::TcpListener};
use thiserror::Error;

use crate::{
    clock::Clock,
    config::Config,
    inlet::{Delivery, Inlet, LogicDown, SchedulerDown},
    listener,
    metrics::Metrics,
    process,
    shared::{Parts, SURPLUS, Shared, lock},
    supervisor::{self, Supervisor},
    worker::{WAKER, Worker},
};

/// Why a gateway does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A setting that cannot work.
    #[error("gateway setting {key}: {problem}")]
    Config {
        /// Which one.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The address cannot be listened on.
    #[error("the gateway cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// The kernel refuses a thread, an epoll instance or the descriptor limit.
    #[error("the gateway cannot start its workers: {0}")]
    System(#[from] io::Error),
}

/// Logics a gateway attaches to, at the most: their index is 8 bits, and a site has a handful.
const MAX_LOGICS: usize = 64;

/// A running gateway. Dropping it stops it.
pub struct Gateway {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    /// One role attaches at a time, so that each gets its own index.
    attaching: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
    supervisor: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Raises the process's soft limit of descriptors to the hard one, turns huge pages off for it, listens and starts the
    /// threads. Clients are let in once a scheduler told its keys and a logic is attached.
    ///
    /// # Errors
    /// A setting that cannot work, an address that cannot be listened on, or a kernel without room for the threads.
    pub fn start(config: Config, metrics: Registry<'_>) -> Result<Self, StartError> {
        let config = config.validated()?;
        let (listeners, local_addr) = listen(&config)?;
        let capacity = capacity(&config, process::raise_limit()?);
        if let Err(error) = process::small_pages() {
            tracing::info!(%error, "huge pages stay on: a connection takes more memory");
        }
        let mut polls = Vec::new();
        let mut inlets = Vec::new();
        for _ in &listeners {
            let poll = Poll::new()?;
            inlets.push(Arc::new(Inlet::new(Waker::new(poll.registry(), WAKER)?)));
            polls.push(poll);
        }
        let endpoints = endpoints(&config, local_addr);
        let shared = Arc::new(Shared::new(Parts {
            boot: rand::random(),
            clock: Clock::start(),
            metrics: Metrics::new(metrics),
            inlets,
            endpoints,
            capacity,
            config,
        }));
        let mut gateway = Self {
            shared: Arc::clone(&shared),
            local_addr,
            attaching: Mutex::default(),
            workers: Vec::new(),
            supervisor: None,
        };
        for (index, (poll, listener)) in (0..).zip(polls.into_iter().zip(listeners)) {
            let worker = Worker::new(index, Arc::clone(&shared), poll, listener, rand::random())?;
            gateway.workers.push(spawn(&format!("gateway-{index}"), move || worker.run())?);
        }
        let supervisor = Supervisor::new(Arc::clone(&shared));
        gateway.supervisor = Some(spawn("gateway-watch", move || supervisor.run())?);
        let workers = gateway.workers.len();
        tracing::info!(id = shared.config.id, %local_addr, workers, capacity, "gateway started");
        Ok(gateway)
    }

    /// Where it listens: the port is known also if it was configured as 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Reports to this scheduler from now on, and takes its ticket keys.
    pub fn attach_scheduler(&self, service: Arc<dyn SchedulerService>) {
        let _turn = lock(&self.attaching);
        let index = self.shared.rare().schedulers.len();
        let down = SchedulerDown { shared: Arc::downgrade(&self.shared), index };
        let link = service.attach(self.introduction(), Arc::new(down));
        let count = self.shared.change(|rare| {
            Arc::make_mut(&mut rare.schedulers).push(link);
            rare.schedulers.len()
        });
        tracing::info!(schedulers = count, "a scheduler was added");
    }

    /// Serves its share of the users with this logic from now on.
    pub fn attach_logic(&self, service: Arc<dyn LogicService>) {
        let _turn = lock(&self.attaching);
        let index = self.shared.rare().logics.len();
        let Some(packed) = u8::try_from(index).ok().filter(|_| index < MAX_LOGICS) else {
            tracing::error!(limit = MAX_LOGICS, "another logic was to be attached; it is left out");
            return;
        };
        let down = LogicDown { shared: Arc::downgrade(&self.shared), index: packed };
        let link = service.attach(self.introduction(), Arc::new(down));
        self.shared.change(|rare| Arc::make_mut(&mut rare.logics).push(link));
        tracing::info!(logic = index, "a logic was added");
    }

    /// Whether clients can be served.
    ///
    /// # Errors
    /// What is missing: a logic, a scheduler's keys; or that it drains.
    pub fn ready(&self) -> Result<(), String> {
        self.shared.ready()
    }

    /// Lets the clients go: schedulers are told first, then every connection gets 4001 with a random wait of at most
    /// `spread`, as soon as its requests in flight are answered. Returns at once; [`Gateway::stop`] waits for the end.
    pub fn drain(&self, spread: Duration) {
        if self.shared.draining.load(Acquire) {
            return;
        }
        let spread_ms = u32::try_from(spread.as_millis()).unwrap_or(u32::MAX);
        // Before the flag: whoever sees that it drains gives waits of this spread.
        self.shared.spread_ms.store(spread_ms, Release);
        if self.shared.draining.swap(true, AcqRel) {
            return;
        }
        supervisor::report(&self.shared);
        tracing::info!(spread_ms, "gateway drains");
        self.shared.inlets.iter().for_each(|inlet| inlet.send(Delivery::Evict(spread_ms)));
    }

    /// Says goodbye to whoever is left, waits for them within [`crate::Timeouts::stop`], and joins every thread.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        if self.workers.is_empty() && self.supervisor.is_none() {
            return;
        }
        self.shared.draining.store(true, Release);
        supervisor::report(&self.shared);
        self.shared.inlets.iter().for_each(|inlet| inlet.send(Delivery::Stop));
        self.workers.drain(..).for_each(join);
        self.shared.mailbox.stop();
        self.supervisor.take().into_iter().for_each(join);
        // Detaches from everybody.
        self.shared.change(|rare| {
            rare.logics = Arc::default();
            rare.schedulers = Arc::default();
        });
        tracing::info!(id = self.shared.config.id, "gateway stopped");
    }

    fn introduction(&self) -> AttachGateway {
        AttachGateway { gateway_id: self.shared.config.id.clone(), boot: self.shared.boot }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

fn join(thread: JoinHandle<()>) {
    let name = thread.thread().name().unwrap_or_default().to_owned();
    if thread.join().is_err() {
        tracing::error!(thread = name, "a thread of the gateway panicked");
    }
}

/// One listener for each worker, on the same port.
fn listen(config: &Config) -> Result<(Vec<TcpListener>, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address: config.listen, source };
    // The kernel gives a peer up only after our own deadlines had their say, goodbye included.
    let user_timeout = Duration::from_millis(config.heartbeat.timeout_ms.into())
        + config.timeouts.linger
        + Duration::from_secs(2);
    listener::check_free(config.listen).map_err(failed)?;
    let first = listener::bind(config.listen, user_timeout).map_err(failed)?;
    let address = first.local_addr().map_err(failed)?;
    let mut listeners = vec![first];
    for _ in 1..config.workers {
        listeners.push(listener::bind(address, user_timeout).map_err(failed)?);
    }
    Ok((listeners, address))
}

/// What the configuration says, at most what the descriptors allow with some left for everything else in the process:
/// files of an embedded store, links, logs. Those who are let in only to be told that there is no room need descriptors too.
fn capacity(config: &Config, descriptors: u64) -> u64 {
    let reserve = (descriptors / 4).min(512);
    let possible = descriptors.saturating_sub(reserve + SURPLUS).max(1);
    config.capacity.map_or(possible, |wanted| wanted.min(possible))
}

fn endpoints(config: &Config, local_addr: SocketAddr) -> Vec<Endpoint> {
    let at = config.advertise.clone().unwrap_or_else(|| local_addr.to_string());
    [("ws", format!("ws://{at}/v1/ws")), ("tcp", format!("tcp://{at}"))]
        .into_iter()
        .map(|(transport, url)| Endpoint {
            gateway_id: config.id.clone(),
            transport: transport.to_owned(),
            url,
            region: config.region.clone(),
            zone: config.zone.clone(),
            pool: config.pool.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_never_take_the_descriptors_of_others() {
        let mut config = Config::new("gw-1", "127.0.0.1:0".parse().expect("an address"));
        for (descriptors, kept) in [(256, 64), (1_024, 256), (20_000, 512), (1_048_576, 512)] {
            assert_eq!(capacity(&config, descriptors) + SURPLUS + kept, descriptors);
        }
        assert_eq!(capacity(&config, 10), 1);
        config.capacity = Some(700);
        assert_eq!(capacity(&config, 20_000), 700);
        assert_eq!(capacity(&config, 256), 128);
    }
}
