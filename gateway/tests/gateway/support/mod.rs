//! What the tests share: the gateway under test, the roles it meets, clients and a metrics recorder.

pub mod client;
pub mod logic;
pub mod recorder;
pub mod scheduler;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use berth_gateway::{Config, Gateway};
use berth_proto::{metric::Registry, wire::Ticket};

use client::{Client, Transport};
use logic::FakeLogic;
use recorder::TestRecorder;
use scheduler::FakeScheduler;

/// No test waits longer than this for anything; it fails instead.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway with its roles attached.
pub struct Site {
    pub gateway: Gateway,
    pub logic: Arc<FakeLogic>,
    pub scheduler: Arc<FakeScheduler>,
    pub metrics: TestRecorder,
}

impl Site {
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let site = Self::bare(change);
        site.gateway.attach_scheduler(Arc::clone(&site.scheduler) as _);
        site.gateway.attach_logic(Arc::clone(&site.logic) as _);
        site
    }

    /// Without any role attached.
    pub fn bare(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new("gw-1", "127.0.0.1:0".parse().expect("an address"));
        config.workers = 2;
        change(&mut config);
        let metrics = TestRecorder::default();
        let gateway = Gateway::start(config, Registry::new(&metrics)).expect("the gateway starts");
        Self { gateway, logic: Arc::default(), scheduler: Arc::default(), metrics }
    }

    pub fn connect(&self, transport: Transport) -> Client {
        Client::connect(self.gateway.local_addr(), transport)
    }

    /// A ticket for this gateway, good for a minute, of a login good for an hour.
    pub fn ticket(user: &str, device: &str) -> Ticket {
        let now = now_ms();
        Ticket {
            user_id: user.into(),
            device_id: device.into(),
            gateway_ids: vec!["gw-1".into()],
            pool: "stable".into(),
            expires_at_ms: now + 60_000,
            auth_expires_at_ms: now + 3_600_000,
            schedule_id: 7,
            issued_at_ms: now,
            auth_issued_at_ms: now,
            ..Ticket::default()
        }
    }

    /// A welcomed connection.
    pub fn login(&self, transport: Transport, user: &str, device: &str) -> Client {
        let mut client = self.connect(transport);
        client.hello(&self.scheduler.sign(&Self::ticket(user, device)), device);
        let welcome = client.welcome();
        assert_eq!(welcome.user_id, user);
        client
    }
}

pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("below the year 292 million")
}

/// Waits until `condition` holds, or fails with `what`.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
