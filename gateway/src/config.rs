//! What a gateway is told at its start.

use std::{net::SocketAddr, time::Duration};

use berth_proto::{id, limits, schedule::HeartbeatParameters};

use crate::{Networks, Origins, StartError};

/// A gateway's settings. [`Config::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct Config {
    /// The gateway's id: what tickets name it by.
    pub id: String,
    /// Where clients connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Threads that hold connections; 0: one for each core.
    pub workers: usize,
    /// Where it stands, for the scheduler's proximity tiers; may be empty.
    pub region: String,
    /// The failure domain inside the region; may be empty.
    pub zone: String,
    /// The pool of the gray release it belongs to.
    pub pool: String,
    /// `host:port` as clients reach it; none: the listen address.
    pub advertise: Option<String>,
    /// Most connections; none: as many as the descriptors allow.
    pub capacity: Option<u64>,
    /// Clients let in per second over all workers; those above are told 4009 and when to come.
    pub handshakes_per_second: u32,
    /// Bytes a second that its network takes, for the schedulers' comparison; 0: not told.
    pub sent_bytes_per_second: u64,
    /// What clients are told, and the silence they are allowed.
    pub heartbeat: HeartbeatParameters,
    /// While no scheduler is linked, a genuine ticket is accepted for so long past its time, and whichever gateways it names;
    /// zero: never. The end of the user's login and revocations stay what they are.
    pub ticket_grace: Duration,
    /// How long the gateway waits for others.
    pub timeouts: Timeouts,
    /// What one peer may cost.
    pub limits: Limits,
}

/// What one peer may cost. A rate allows one second's worth at once; 0 is no limit, but for `pending_handshakes`, which
/// must have one.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time from one IPv4 address or one IPv6 /64; those above are dropped as they come.
    pub connections_per_address: u32,
    /// New connections a second from one IPv4 address or one IPv6 /64; those above are dropped as they come.
    pub handshakes_per_second_per_address: u32,
    /// Whose addresses have no limit: load balancers that hide the clients' addresses. Loopback by default.
    pub exempt_addresses: Networks,
    /// Connections without a hello that was accepted; above it the oldest is told 4009 and dropped.
    pub pending_handshakes: u32,
    /// Frames a second of one connection, of any kind, then 4007. A frame counts once more for each 4 KiB it has.
    pub frames_per_second: u32,
    /// Requests a second of one user over all his connections here, malformed ones too; those above are answered RESOURCE_EXHAUSTED.
    pub requests_per_second_per_user: u32,
    /// Which web pages may open a WebSocket; others get 403.
    pub origins: Origins,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A carrier's address translation puts some thousands of phones behind one IPv4 address.
            connections_per_address: 4_096,
            // All of those come back within 16 s of a break.
            handshakes_per_second_per_address: 256,
            exempt_addresses: Networks::default(),
            // Four seconds of the default handshake rate, and one of what is accepted at it: about what an honest client takes,
            // and less than half of the descriptors that one process usually gets.
            pending_handshakes: 8_192,
            // A person's client sends a few a second; twice what the user may ask for leaves room for the rest.
            frames_per_second: 2_000,
            requests_per_second_per_user: 1_000,
            origins: Origins::default(),
        }
    }
}

/// Deadlines of the steps that wait for somebody. Each may be up to a second late: the wheel's slot.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From accept to a complete hello; then 4008.
    pub hello: Duration,
    /// From hello to logic's answer; then 4009.
    pub open: Duration,
    /// From a request to logic's answer; then DEADLINE_EXCEEDED.
    pub request: Duration,
    /// For a scheduler's answer about a ticket of other gateways; then 4005.
    pub redirect: Duration,
    /// From our last byte, as the kernel took it, to the peer's end of stream; then the socket is dropped. A peer that
    /// takes nothing of what is unsent for so long is dropped as well, and one that takes it slowly after six times this.
    pub linger: Duration,
    /// For [`crate::Gateway::stop`] to say goodbye to everybody.
    pub stop: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            hello: Duration::from_millis(limits::HELLO_TIMEOUT_MS.unsigned_abs()),
            // A client gives a connect about this long before it goes on along its list.
            open: Duration::from_secs(10),
            // Far beyond logic's p99, short enough that a retry still feels like the same action to a person.
            request: Duration::from_secs(10),
            redirect: Duration::from_secs(2),
            // Several round trips of a bad mobile network.
            linger: Duration::from_secs(5),
            // Below the 10 s that container runtimes give before they kill.
            stop: Duration::from_secs(6),
        }
    }
}

impl Config {
    /// The defaults for a gateway of this id at this address.
    #[must_use]
    pub fn new(id: impl Into<String>, listen: SocketAddr) -> Self {
        Self {
            id: id.into(),
            listen,
            workers: 0,
            region: String::new(),
            zone: String::new(),
            pool: "stable".to_owned(),
            advertise: None,
            capacity: None,
            handshakes_per_second: 2_000,
            sent_bytes_per_second: 0,
            heartbeat: HeartbeatParameters::default(),
            // Long enough to notice and mend an outage of every scheduler, short enough that a placement of the past does not stay.
            ticket_grace: Duration::from_secs(3_600),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
        }
    }

    /// Fills in what defaults to the machine, and refuses what cannot work.
    pub(crate) fn validated(mut self) -> Result<Self, StartError> {
        let invalid = |key, problem: String| StartError::Config { key, problem };
        id::check(&self.id).map_err(|problem| invalid("id", format!("{:?} {problem}", self.id)))?;
        if self.workers == 0 {
            self.workers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        }
        if self.workers > MAX_WORKERS {
            return Err(invalid(
                "workers",
                format!("is {}; at most {MAX_WORKERS} are allowed", self.workers),
            ));
        }
        if self.handshakes_per_second == 0 {
            return Err(invalid("handshakes_per_second", "is 0; nobody could connect".to_owned()));
        }
        if self.limits.pending_handshakes == 0 {
            return Err(invalid("pending_handshakes", "is 0; nobody could connect".to_owned()));
        }
        if self.capacity == Some(0) {
            return Err(invalid("capacity", "is 0; nobody could connect".to_owned()));
        }
        let HeartbeatParameters { interval_ms, timeout_ms } = self.heartbeat;
        if interval_ms == 0 || timeout_ms <= interval_ms {
            let problem =
                format!("interval {interval_ms} ms, timeout {timeout_ms} ms; the timeout must be longer");
            return Err(invalid("heartbeat", problem));
        }
        Ok(self)
    }
}

/// A handle has 8 bits for the worker; more threads than this would not be one a core anyway.
pub(crate) const MAX_WORKERS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Config {
        Config::new("gw-1", "127.0.0.1:0".parse().expect("an address"))
    }

    #[test]
    fn the_defaults_are_valid_and_take_every_core() {
        assert!(base().validated().expect("valid").workers >= 1);
    }

    /// A change that makes the defaults invalid, and the setting that must be named.
    type Spoil = (fn(&mut Config), &'static str);

    #[test]
    fn each_bad_setting_is_named() {
        let cases: [Spoil; 6] = [
            (|c| c.id = "a b".into(), "id"),
            (|c| c.workers = 1_000, "workers"),
            (|c| c.handshakes_per_second = 0, "handshakes_per_second"),
            (|c| c.capacity = Some(0), "capacity"),
            (|c| c.limits.pending_handshakes = 0, "pending_handshakes"),
            (|c| c.heartbeat.timeout_ms = c.heartbeat.interval_ms, "heartbeat"),
        ];
        for (spoil, key) in cases {
            let mut config = base();
            spoil(&mut config);
            let error = config.validated().expect_err(key).to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
