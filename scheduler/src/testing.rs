//! A scheduler on a free port, gateways made of nothing but a link, and an HTTP client, for the tests of this crate.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use berth_proto::{
    carry::{EMPTY, KINDS},
    client::Endpoint,
    link::{Link, Refused, RefusedReason},
    metric::Registry,
    wire::{
        AttachGateway, Carried, CarriedRecord, FromScheduler, GatewayReport, Introduction, ToScheduler,
        from_scheduler, to_scheduler,
    },
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::{Config, JwtKeys, Scheduler, StartError, sign_user_token};

pub(crate) const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
pub(crate) const TICKET_KEY: &[u8] = b"fedcba9876543210fedcba9876543210";
pub(crate) const ADMIN_KEY: &str = "the admin key of the tests, 32 b";

/// Events come within milliseconds; a machine under load gets ten seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Well below the silence after which a gateway is given nothing.
const KEEP_ALIVE: Duration = Duration::from_millis(200);

/// Waits until the condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn config() -> Config {
    Config {
        id: String::new(),
        listen: ([127, 0, 0, 1], 0).into(),
        policy_file: None,
        geoip_file: None,
        data_dir: None,
        jwt: JwtKeys::from_secrets(&[SECRET]).expect("32 bytes"),
        jwt_expected: Default::default(),
        jwks_file: None,
        ticket_key: TICKET_KEY.to_vec(),
        other_ticket_keys: Vec::new(),
        void_ticket_keys: Vec::new(),
        admin_key: ADMIN_KEY.to_owned(),
        previous_admin_key: String::new(),
        ticket_ttl: crate::DEFAULT_TICKET_TTL,
        heartbeat: Default::default(),
        reconnect: Default::default(),
        requests_per_second_per_user: crate::DEFAULT_REQUESTS_PER_SECOND,
        spread_max_ms: crate::LONGEST_SPREAD_MS,
        extra_routes: None,
    }
}

/// A running scheduler and its metrics.
pub(crate) struct Fixture {
    pub scheduler: Scheduler,
    metrics: PrometheusHandle,
    /// Gateways that go on reporting, until the fixture is dropped.
    alive: Mutex<JoinSet<()>>,
}

impl Fixture {
    pub async fn start(config: Config) -> Self {
        Self::try_start(config).await.expect("starts")
    }

    pub async fn try_start(config: Config) -> Result<Self, StartError> {
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        // One per test, for as long as the test process lives: as in production.
        let scheduler = Scheduler::start(config, Registry::new(Box::leak(Box::new(recorder)))).await?;
        Ok(Self { scheduler, metrics, alive: Mutex::default() })
    }

    /// With a policy file that holds `policy`; the directory lives as long as the guard.
    pub async fn with_policy(policy: &str) -> (Self, PathBuf, tempfile::TempDir) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("policy.toml");
        std::fs::write(&path, policy).expect("written");
        let fixture = Self::start(Config { policy_file: Some(path.clone()), ..config() }).await;
        (fixture, path, directory)
    }

    /// The value of a series, written as in the exposition: `name{label="value"}`.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.metrics.render();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{series} is not in\n{text}")).parse().expect("a number")
    }

    /// Attaches a gateway that repeats its newest report, and waits until it is in a snapshot and is assigned.
    pub async fn gateway(&self, report: GatewayReport) -> FakeGateway {
        let gateway = self.attach(&report);
        gateway.report(report.clone());
        let (up, kept) = (Arc::clone(&gateway.up), Arc::clone(&gateway.kept));
        self.alive.lock().expect("no panic").spawn(async move {
            loop {
                tokio::time::sleep(KEEP_ALIVE).await;
                let report = kept.lock().expect("no panic").clone();
                send(&*up, report);
            }
        });
        let core = &self.scheduler.core;
        eventually("it is known", || self.fleet_has(&report.gateway_id) && core.settled().is_ok()).await;
        gateway
    }

    pub fn attach(&self, report: &GatewayReport) -> FakeGateway {
        let heard = Arc::new(Heard::default());
        let attach = AttachGateway { gateway_id: report.gateway_id.clone(), boot: report.boot };
        let down: Arc<dyn Link<FromScheduler>> = Arc::clone(&heard) as _;
        FakeGateway { up: self.scheduler.service().attach(attach, down), heard, kept: Arc::default() }
    }

    /// Stops it with its gateways.
    pub async fn stop(self) {
        drop(self.alive);
        self.scheduler.stop().await;
    }

    pub fn fleet_has(&self, id: &str) -> bool {
        self.scheduler.core.fleet.load().find(id).is_some()
    }

    /// Posts and reads the answer.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.request("POST", path, headers, body).await
    }

    /// Asks as `alice`, with a fresh token.
    pub async fn schedule(&self, body: &str) -> Answer {
        let bearer = bearer("alice");
        self.post("/v1/schedule", &[("authorization", &bearer)], body).await
    }

    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("content-length: {}\r\n\r\n{body}", body.len());
        let mut stream = TcpStream::connect(self.scheduler.local_addr()).await.expect("listening");
        // Something that is refused by its head may not be read to its end.
        let _ = stream.write_all(text.as_bytes()).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "an answer to {method} {path}");
        Answer::read(&String::from_utf8(answer).expect("text"))
    }
}

pub(crate) fn bearer(user: &str) -> String {
    let now_ms = crate::clock::Clock::start().wall_ms();
    format!("Bearer {}", sign_user_token(SECRET, user, Duration::from_secs(3_600), now_ms))
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: serde_json::Value,
}

impl Answer {
    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP answer: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
        let header =
            |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Self {
            status: status.parse().expect("a number"),
            headers: lines.filter_map(header).collect(),
            body: serde_json::from_str(body).unwrap_or(serde_json::Value::Null),
        }
    }

    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(own, _)| own == name);
        found.map_or("", |(_, value)| value)
    }
}

/// What a gateway was told.
#[derive(Default)]
pub(crate) struct Heard {
    messages: Mutex<Vec<from_scheduler::Message>>,
    /// Takes nothing while set.
    pub full: AtomicBool,
}

impl Link<FromScheduler> for Heard {
    fn send(&self, batch: Vec<FromScheduler>) -> Result<(), Refused<FromScheduler>> {
        if self.full.load(Ordering::SeqCst) {
            return Err(Refused { rest: batch, reason: RefusedReason::Full });
        }
        let messages = batch.into_iter().filter_map(|message| message.message);
        self.messages.lock().expect("no panic").extend(messages);
        Ok(())
    }
}

/// A gateway that is nothing but its link.
pub(crate) struct FakeGateway {
    pub up: Arc<dyn Link<ToScheduler>>,
    pub heard: Arc<Heard>,
    /// Its newest report.
    pub kept: Arc<Mutex<GatewayReport>>,
}

fn send(up: &dyn Link<ToScheduler>, report: GatewayReport) {
    let message = ToScheduler { message: Some(to_scheduler::Message::Report(report)) };
    up.send(vec![message]).expect("reports are always taken");
}

impl FakeGateway {
    pub fn report(&self, report: GatewayReport) {
        self.kept.lock().expect("no panic").clone_from(&report);
        send(&*self.up, report);
    }

    /// Says records that outlive schedulers.
    pub fn carry(&self, records: Vec<CarriedRecord>) {
        let carried = to_scheduler::Message::Carried(Carried { records, ..Default::default() });
        self.up.send(vec![ToScheduler { message: Some(carried) }]).expect("records are always taken");
    }

    /// How the scheduler introduced itself last.
    pub fn introduced(&self) -> Option<Introduction> {
        let introductions = self.heard().into_iter().filter_map(|message| match message {
            from_scheduler::Message::Introduction(introduction) => Some(introduction),
            _ => None,
        });
        { introductions }.next_back()
    }

    /// The records heard so far.
    pub fn carried(&self) -> Vec<Carried> {
        let carried = |message| match message {
            from_scheduler::Message::Carried(carried) => Some(carried),
            _ => None,
        };
        self.heard().into_iter().filter_map(carried).collect()
    }

    /// Everything heard so far.
    pub fn heard(&self) -> Vec<from_scheduler::Message> {
        self.heard.messages.lock().expect("no panic").clone()
    }
}

/// A good gateway of `stable` with both transports.
pub(crate) fn report(id: &str) -> GatewayReport {
    let endpoint = |transport: &str, url: &str| Endpoint {
        transport: transport.to_owned(),
        url: url.to_owned(),
        ..Endpoint::default()
    };
    GatewayReport {
        gateway_id: id.to_owned(),
        boot: 1,
        region: "eu".to_owned(),
        zone: "a".to_owned(),
        pool: "stable".to_owned(),
        endpoints: vec![endpoint("ws", "ws://127.0.0.1:7710/v1/ws"), endpoint("tcp", "tcp://127.0.0.1:7710")],
        ready: true,
        carried_digests: vec![EMPTY; KINDS],
        capacity: 1_000,
        uptime_ms: 3_600_000,
        ..GatewayReport::default()
    }
}
