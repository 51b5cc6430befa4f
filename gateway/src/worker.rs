//! A worker: one thread, its own listener and connections, one epoll loop.

mod accept;
mod deliver;
mod drain;
mod moving;
mod outlet;
mod pending;
mod revoke;
mod tell;

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed},
    },
    time::Duration,
};

use berth_proto::{handle::Handle, handle::MAX_SLOT, limits};
use mio::{Events, Poll, Token, net::TcpListener};
use rand::{SeedableRng, rngs::SmallRng};

use crate::{
    clock::Now,
    connection::{Connection, Readiness, Verdict},
    guard::{Network, Pending},
    inlet::{Inlet, Waiting},
    level::Levels,
    session::{Cx, Env, Frames, Session, Ups},
    shared::{ENDED, Shared},
    table::{Place, Table},
    wheel::Wheel,
    ws,
};
use accept::Acceptor;
use drain::Eviction;
use moving::Moving;
use outlet::Outlet;
use revoke::Revoking;

/// Tokens beside connections; no handle has worker 255.
const LISTENER: Token = Token(usize::MAX);
pub(crate) const WAKER: Token = Token(usize::MAX - 1);

/// Events taken from epoll at once: no more heartbeats than answers to them are merged at a wake-up. So when everybody beats at
/// once the answers do not pile up, and what one wake-up needs is small beside the connections.
const EVENTS: usize = tell::NOTIFIES_PER_TURN;

/// The read buffer all connections of the worker share: the largest client frame fits in one read.
const SCRATCH: usize = limits::CLIENT_FRAME + ws::MAX_HEADER + 1_010;

/// The output buffer gives back what it holds above this, after a large answer.
const OUTPUT_KEPT: usize = 256 * 1024;

/// A worker wakes at least so often, so that the watchdog sees it alive.
const LONGEST_SLEEP_MS: i64 = 1_000;

/// A worker's whole state. It is built on the starting thread and runs on its own.
pub(crate) struct Worker {
    index: u8,
    shared: Arc<Shared>,
    poll: Poll,
    inlet: Arc<Inlet>,
    acceptor: Acceptor,
    table: Table<Connection>,
    wheel: Wheel<Place>,
    env: Env,
    version: u64,
    rng: SmallRng,
    now: Now,
    ups: Ups,
    outlet: Outlet,
    out: Vec<u8>,
    scratch: Vec<u8>,
    waiting: Waiting,
    /// The inlet holds notifies that come when those in `waiting` are done.
    more_waits: bool,
    frames: Frames,
    /// Connections with more to read than their turn allowed.
    again: Vec<Place>,
    /// Connections without a hello that was accepted.
    pending: Pending<Place>,
    /// Connections with a notify to write.
    dirty: Vec<Place>,
    eviction: Option<Eviction>,
    /// Credentials that are void: who is connected with them goes.
    revoking: Revoking,
    /// Who is moved elsewhere now.
    moving: Option<Moving>,
    /// Until when everybody must be gone.
    stopping_ms: Option<i64>,
    /// When those who wait for an answer are sent away without it.
    last_call_ms: Option<i64>,
    last_sweep_ms: i64,
}

impl Worker {
    /// A worker ready to run.
    ///
    /// # Errors
    /// When the listener cannot be registered with epoll.
    pub(crate) fn new(
        index: u8,
        shared: Arc<Shared>,
        poll: Poll,
        listener: TcpListener,
        seed: u64,
    ) -> io::Result<Self> {
        let now = shared.clock.now();
        let share = shared.config.handshakes_per_second.div_ceil(shared.inlets.len().max(1) as u32);
        let acceptor = Acceptor::new(listener, poll.registry(), share, now)?;
        let env = Env {
            gateway_id: shared.config.id.clone(),
            boot: shared.boot,
            heartbeat: shared.config.heartbeat,
            timeouts: shared.config.timeouts,
            verifier: Arc::default(),
            draining: false,
            evacuating: false,
            to_pool: Arc::default(),
            region: shared.config.region.clone(),
            placed: false,
            placed_ms: 0,
            homes_ms: 0,
            stopping: false,
            spread_ms: shared.spread_ms.load(Relaxed),
            scheduled: false,
            grace_ms: i64::try_from(shared.config.ticket_grace.as_millis()).unwrap_or(i64::MAX),
            outage: Arc::clone(&shared.outage),
            logics: Vec::new(),
            revoked: Arc::clone(&shared.revoked),
            guard: Arc::clone(&shared.guard),
            door: Arc::clone(&shared.door),
            levels: Levels::new(&shared.metrics, Arc::clone(&shared.sessions)),
            metrics: Arc::clone(&shared.metrics),
        };
        let pending = pending::share(&shared);
        Ok(Self {
            index,
            inlet: Arc::clone(&shared.inlets[usize::from(index)]),
            shared,
            poll,
            acceptor,
            table: Table::new(MAX_SLOT),
            wheel: Wheel::new(now.steady_ms),
            env,
            version: 0,
            rng: SmallRng::seed_from_u64(seed),
            now,
            ups: Ups::default(),
            outlet: Outlet::default(),
            out: Vec::new(),
            scratch: vec![0; SCRATCH],
            waiting: Waiting::default(),
            more_waits: false,
            frames: Frames::default(),
            again: Vec::new(),
            pending,
            dirty: Vec::new(),
            eviction: None,
            revoking: Revoking::default(),
            moving: None,
            stopping_ms: None,
            last_call_ms: None,
            last_sweep_ms: now.steady_ms,
        })
    }

    /// Runs until [`crate::inlet::Delivery::Stop`] and everybody's goodbye. An end that nobody asked for, a panic included, is told: see [`Shared::fail`].
    pub(crate) fn run(self) {
        let (shared, index) = (Arc::clone(&self.shared), self.index);
        // Nothing of the worker is used after a panic; what it shares is whole, whoever panics (see `shared::lock`).
        let ended = catch_unwind(AssertUnwindSafe(|| self.work()));
        shared.inlets[usize::from(index)].close();
        shared.rounds[usize::from(index)].store(ENDED, Relaxed);
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => shared.fail(index, &format!("epoll failed: {error}")),
            Err(panic) => shared.fail(index, &format!("it panicked: {}", panic_text(&*panic))),
        }
    }

    fn work(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        while !self.finished() {
            let (sleep, asleep) = (self.sleep(), self.shared.clock.precise());
            if let Err(error) = self.poll.poll(&mut events, Some(sleep))
                && error.kind() != io::ErrorKind::Interrupted
            {
                // Nothing but a bug of ours makes epoll_wait fail; going on without events would be silent death.
                return Err(error);
            }
            self.shared.late(self.index, self.shared.clock.precise().saturating_sub(asleep + sleep));
            self.turn(&events);
        }
        self.drop_everybody();
        // Logic's last chance to learn of ends that it had no room for.
        self.outlet.retry_closes();
        self.flush_ups();
        Ok(())
    }

    /// One wake-up.
    fn turn(&mut self, events: &Events) {
        let began = self.shared.clock.precise();
        self.now = self.shared.clock.now();
        self.shared.rounds[usize::from(self.index)].fetch_add(1, Relaxed);
        self.refresh_env();
        for place in std::mem::take(&mut self.again) {
            self.with_connection(place, |connection, _| connection.again = false);
            self.crowd_out();
        }
        for event in events {
            match event.token() {
                LISTENER => self.acceptor.on_ready(),
                WAKER => {}
                Token(packed) => self.on_ready(
                    packed,
                    Readiness {
                        readable: event.is_readable(),
                        writable: event.is_writable(),
                        read_closed: event.is_read_closed(),
                        hung_up: event.is_write_closed() || event.is_error(),
                    },
                ),
            }
        }
        self.accept();
        self.crowd_out();
        self.take_deliveries();
        self.merge_some();
        self.advance_wheel();
        self.evict_some();
        self.close_let_in();
        self.close_revoked();
        self.last_call();
        self.reannounce_some();
        self.tell_dirty();
        self.flush_ups();
        self.sweep();
        let took = self.shared.clock.precise().saturating_sub(began);
        self.shared.metrics.worker_turn_seconds.record(took);
        // What became ready meanwhile waited as long.
        self.shared.late(self.index, took);
    }

    /// How long to wait for events.
    fn sleep(&self) -> Duration {
        let now = self.shared.clock.now().steady_ms;
        let idle =
            self.again.is_empty() && self.eviction.is_none() && self.ups.is_empty() && !self.has_notifies();
        let until = [
            Some(now + if idle { LONGEST_SLEEP_MS } else { 0 }),
            self.wheel.next_ms(),
            self.acceptor.next_ms(),
            self.outlet.next_reannouncement_ms(),
            self.stopping_ms,
            self.last_call_ms,
            self.revoking.next_ms(),
        ];
        let wait = until.into_iter().flatten().min().unwrap_or(now) - now;
        Duration::from_millis(wait.max(0).unsigned_abs())
    }

    fn finished(&self) -> bool {
        self.stopping_ms.is_some_and(|until| self.table.len() == 0 || self.now.steady_ms >= until)
    }

    fn refresh_env(&mut self) {
        let version = self.shared.version();
        if version != self.version {
            self.version = version;
            let rare = self.shared.rare();
            self.env.verifier = Arc::clone(&rare.verifier);
            self.env.to_pool = Arc::clone(&rare.to_pool);
            self.outlet.set_links(rare);
        }
        self.env.draining = self.shared.draining.load(Acquire);
        self.env.evacuating = self.shared.evacuating.load(Acquire);
        self.env.placed = self.shared.placed.load(Relaxed);
        self.env.placed_ms = self.shared.placed_ms.load(Relaxed);
        self.env.homes_ms = self.shared.homes_ms.load(Relaxed);
        self.env.spread_ms = self.shared.spread_ms.load(Relaxed);
        self.outlet.connected(&mut self.env.logics);
        self.env.scheduled = self.outlet.scheduled();
    }

    fn on_ready(&mut self, packed: usize, ready: Readiness) {
        let handle = Handle::unpack(packed as u64);
        let place = Place { slot: handle.slot, generation: handle.generation };
        self.with_connection(place, |connection, cx| connection.on_ready(cx, ready));
        // Not once for all events of a wake-up: together they may bring four times what may be kept.
        self.crowd_out();
    }

    /// Lets `act` work on a session, then moves its bytes. False: there is no such connection.
    fn with(&mut self, place: Place, act: impl FnOnce(&mut Session, &mut Cx<'_>)) -> bool {
        self.with_connection(place, |connection, cx| act(&mut connection.session, cx))
    }

    fn with_connection(&mut self, place: Place, act: impl FnOnce(&mut Connection, &mut Cx<'_>)) -> bool {
        let Some(mut connection) = self.table.take(place) else { return false };
        let mut cx = Cx {
            now: self.now,
            handle: pack(self.index, place),
            env: &self.env,
            rng: &mut self.rng,
            out: &mut self.out,
            ups: &mut self.ups,
        };
        act(&mut connection, &mut cx);
        let verdict = connection.settle(&mut cx, &mut self.scratch);
        self.out.shrink_to(OUTPUT_KEPT);
        if let Some(kept) = connection.pending {
            self.still_pending(place, &mut connection, kept, verdict);
        }
        if verdict == Verdict::Gone {
            self.table.remove(place);
            self.forget_socket(connection.network);
            return true;
        }
        let deadline = connection.session.deadline_ms(&self.env);
        if self.wheel.second_for(deadline) < connection.armed {
            connection.armed = self.wheel.arm(deadline, place);
        }
        // Once is enough, whatever else happens to it before its turn: what it may read does not grow with its events.
        if verdict == Verdict::Again && !connection.again {
            connection.again = true;
            self.again.push(place);
        }
        self.table.put_back(place, connection);
        true
    }

    fn forget_socket(&self, network: Option<Network>) {
        if let Some(network) = network {
            self.shared.guard.addresses.leave(network);
        }
        self.shared.connections.fetch_sub(1, Relaxed);
        self.env.levels.connections.down(1);
    }

    fn advance_wheel(&mut self) {
        let mut due = Vec::new();
        self.wheel.advance(self.now.steady_ms, &mut due);
        for (second, piece) in due {
            piece.into_iter().for_each(|place| self.look_at(place, second));
        }
    }

    /// The wheel's entry of that second came out.
    fn look_at(&mut self, place: Place, second: i64) {
        let mut ask = false;
        self.with_connection(place, |connection, cx| {
            // Another second: the connection was armed again since, and this entry is an old one.
            if connection.armed == second {
                connection.armed = i64::MAX;
                ask = connection.session.due(cx);
                if ask {
                    // After a pause of this thread or machine, signs of life may still lie in the kernel: one
                    // wake-up takes only EVENTS of them.
                    connection.ask(cx);
                }
            }
        });
        if ask {
            self.with(place, |session, cx| session.expire(cx));
        }
    }

    /// Once a second: what is worth another try.
    fn sweep(&mut self) {
        if self.now.steady_ms - self.last_sweep_ms < 1_000 {
            return;
        }
        self.last_sweep_ms = self.now.steady_ms;
        self.outlet.retry_closes();
        self.give_up_questions();
        if let Some(dropped) = self.shared.guard.drops.ends(self.now.steady_ms) {
            tracing::info!(dropped, "no connection was dropped for its address for a minute");
        }
        if let Some(sessions) = self.shared.outage.ends(self.now.steady_ms) {
            tracing::info!(
                sessions,
                "no ticket was accepted past its time or at the wrong gateway for a minute"
            );
        }
    }

    /// The end: whoever is still here did not take the goodbye in time.
    fn drop_everybody(&mut self) {
        let places: Vec<Place> = self.table.iter().map(|(place, _)| place).collect();
        for place in places {
            self.with_connection(place, |connection, cx| connection.session.peer_gone(cx, true));
        }
    }
}

/// After a panic the sockets are closed with the worker, and what is counted for them goes as well; sessions that were open (none
/// after an orderly end) have ended as none should. (Who was at work in that moment stays counted for his network, which is worth
/// no more: the gateway is to be restarted.)
impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.metrics.health.died(self.env.levels.sessions.part());
        self.shared.connections.fetch_sub(self.table.len() as u64, Relaxed);
        let networks = self.table.iter().filter_map(|(_, connection)| connection.network);
        networks.for_each(|network| self.shared.guard.addresses.leave(network));
    }
}

/// What `panic!` was given.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text")
}

fn pack(worker: u8, place: Place) -> u64 {
    Handle { worker, slot: place.slot, generation: place.generation }.pack()
}

#[cfg(test)]
mod tests;
