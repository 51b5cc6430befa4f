//! Taking connections in: faster than the handshake rate, so that those above it hear when to come, within the capacity, through
//! descriptor famine.

use std::{io, net::SocketAddr, sync::atomic::Ordering::Relaxed};

use mio::{
    Interest, Registry, Token,
    net::{TcpListener, TcpStream},
};

use super::{LISTENER, Worker, pack};
use crate::{
    budget::Budget,
    clock::Now,
    connection::Connection,
    guard::{Crowded, Network},
    metrics::{Closed, Handshake, Limited},
    session::Session,
    shared::SURPLUS,
};

/// Accepts of one wake-up before the connections have their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// A worker accepts so many times its share of the handshake rate: who is to be told to come later must be let in to hear it.
/// What is above that too waits in the kernel's backlog. An accept and a word cost a tenth of what a handshake does.
const ACCEPTS_PER_HANDSHAKE: u32 = 4;

/// After a failed accept (no descriptors, no memory) the listener rests so long, in milliseconds: the backlog keeps
/// what comes, and a failing call is not repeated in a circle.
const REST_MS: i64 = 100;

/// A worker's listener.
pub(super) struct Acceptor {
    /// None once the worker stops.
    listener: Option<TcpListener>,
    budget: Budget,
    /// The backlog may hold connections.
    ready: bool,
    /// Not before then.
    resume_ms: i64,
    /// The last accept failed for want of something of ours: said once, until one succeeds.
    starved: bool,
}

impl Acceptor {
    pub(super) fn new(
        mut listener: TcpListener,
        registry: &Registry,
        handshakes_per_second: u32,
        now: Now,
    ) -> io::Result<Self> {
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        let per_second = handshakes_per_second.saturating_mul(ACCEPTS_PER_HANDSHAKE);
        let budget = Budget::new(per_second, now.steady_ms);
        Ok(Self { listener: Some(listener), budget, ready: true, resume_ms: now.steady_ms, starved: false })
    }

    pub(super) fn on_ready(&mut self) {
        self.ready = true;
    }

    /// When to go on accepting, if the backlog may hold connections.
    pub(super) fn next_ms(&self) -> Option<i64> {
        (self.ready && self.listener.is_some()).then_some(self.resume_ms)
    }

    /// Refuses new connections from now on.
    pub(super) fn close(&mut self) {
        self.listener = None;
    }

    /// The next connection, if there is one and it may come in now.
    fn next(&mut self, now: Now) -> Result<Option<(TcpStream, SocketAddr)>, io::Error> {
        let Some(listener) = self.listener.as_ref().filter(|_| self.ready && now.steady_ms >= self.resume_ms)
        else {
            return Ok(None);
        };
        if !self.budget.take(now.steady_ms) {
            self.resume_ms = now.steady_ms + self.budget.wait_ms().max(1);
            return Ok(None);
        }
        match listener.accept() {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) => {
                self.budget.give_back();
                match error.kind() {
                    io::ErrorKind::WouldBlock => self.ready = false,
                    // The peer went while it waited in the backlog; the next one may be there.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => {
                        self.resume_ms = now.steady_ms + REST_MS;
                        return Err(error);
                    }
                }
                Ok(None)
            }
        }
    }
}

impl Worker {
    pub(super) fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.acceptor.next(self.now) {
                Ok(Some((stream, peer))) => {
                    self.fed();
                    self.admit(stream, peer);
                }
                Ok(None) => return,
                Err(error) => {
                    self.shared.metrics.accept_errors.increment(1);
                    self.starved(&error);
                    return;
                }
            }
        }
    }

    /// Each change of state is logged once, however many accepts fail.
    fn starved(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.acceptor.starved, true) {
            tracing::warn!(
                worker = self.index,
                %error,
                "new connections wait: accept fails; raise the limit of descriptors (ulimit -n) or lower gateway.capacity"
            );
        }
    }

    fn fed(&mut self) {
        if std::mem::take(&mut self.acceptor.starved) {
            tracing::info!(worker = self.index, "accept works again");
        }
    }

    /// Whether the peer's network may have one more connection, and what it is counted under.
    fn room_for(&mut self, peer: SocketAddr) -> Result<Option<Network>, ()> {
        self.shared.guard.addresses.admit(peer.ip(), self.now.steady_ms).map_err(|crowded| {
            // What is dropped at once costs little: it does not use up the others' accepts.
            self.acceptor.budget.give_back();
            self.shared.metrics.handshakes.one(Handshake::Refused);
            if self.shared.guard.drops.happens(self.now.steady_ms) {
                tracing::info!(
                    reason = %crowded,
                    "connections are dropped for their address; if that is a load balancer which hides its clients, put it \
                     into gateway.exempt_addresses"
                );
            }
            let (limit, code) = match crowded {
                Crowded::Connections => (Limited::AddressConnections, Closed::ConnectionLimit),
                Crowded::Rate => (Limited::AddressRate, Closed::RateLimited),
            };
            self.shared.metrics.limited.one(limit);
            self.shared.metrics.handshakes_failed.one(code);
        })
    }

    fn admit(&mut self, mut stream: TcpStream, peer: SocketAddr) {
        let metrics = &self.shared.metrics;
        let held = self.shared.connections.load(Relaxed);
        if held >= self.shared.capacity {
            metrics.limited.one(Limited::Capacity);
        }
        if held >= self.shared.capacity + SURPLUS {
            metrics.handshakes.one(Handshake::Refused);
            metrics.handshakes_failed.one(Closed::Overloaded);
            metrics.health.not_welcomed(Closed::Overloaded, false);
            return;
        }
        let Some(place) = self.table.vacant() else { return };
        let Ok(network) = self.room_for(peer) else { return };
        let metrics = &self.shared.metrics;
        let token = Token(usize::try_from(pack(self.index, place)).expect("usize has 64 bits here"));
        if let Err(error) =
            self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)
        {
            metrics.accept_errors.increment(1);
            tracing::debug!(worker = self.index, %error, "a connection could not be registered with epoll");
            network.into_iter().for_each(|network| self.shared.guard.addresses.leave(network));
            return;
        }
        self.shared.connections.fetch_add(1, Relaxed);
        self.env.levels.connections.up();
        metrics.handshakes.one(Handshake::Accepted);
        let surplus = held >= self.shared.capacity;
        let session = Session::new(self.now, &self.env.timeouts, peer, surplus);
        let mut connection = Connection::new(stream, session);
        (connection.network, connection.pending) = (network, Some(self.enter_pending(place)));
        self.table.insert(place, Box::new(connection));
        // Arms the hello deadline.
        self.with(place, |_, _| {});
    }
}
