//! Measures `POST /v1/schedule`: CPU of a schedule (and so how many one core answers in a second) and the 99th percentile of the
//! answer's time, beside a bare axum handler that checks the same JWT, reads the same body and signs the same ticket. Both in
//! interleaved rounds of one run, so that their ratios hold on a noisy machine.
//!
//! `cargo run --release -p berth-scheduler --example schedules [-- SECONDS-PER-MEASUREMENT]`

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    routing::post,
};
use berth_proto::{
    client::Endpoint,
    link::{Link, Refused},
    metric::Registry,
    schedule::{Decision, ScheduleAnswer, ScheduleEndpoint, ScheduleRequest},
    ticket::TicketSigner,
    wire::{AttachGateway, FromScheduler, GatewayReport, Ticket, ToScheduler, to_scheduler},
};
use berth_scheduler::{Config, JwtKeys, Scheduler, sign_user_token};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const TICKET_KEY: &[u8] = b"fedcba9876543210fedcba9876543210";

/// Gateways of the fleet.
const GATEWAYS: usize = 100;

/// Connections that ask at a time, each one request after the other.
const CONNECTIONS: usize = 8;

/// Users that ask in turn on each connection.
const USERS: usize = 100;

/// Measurements of each; the median counts.
const ROUNDS: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Bare,
    Berth,
}

/// What one measurement gave.
#[derive(Debug, Clone, Copy)]
struct Measured {
    cpu_us: f64,
    p99_us: f64,
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3.0);
    let (mut bare, mut berth) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let order = if round % 2 == 0 { [Who::Bare, Who::Berth] } else { [Who::Berth, Who::Bare] };
        for who in order {
            let measured = measure(who, Duration::from_secs_f64(seconds));
            if who == Who::Bare { bare.push(measured) } else { berth.push(measured) }
        }
    }
    println!("{CONNECTIONS} connections, {GATEWAYS} gateways, medians of {ROUNDS} interleaved rounds");
    let median = |of: &dyn Fn(usize) -> f64| {
        let mut values: Vec<f64> = (0..ROUNDS).map(of).collect();
        values.sort_by(f64::total_cmp);
        values[ROUNDS / 2]
    };
    let row = |name: &str, of: &dyn Fn(&Measured) -> f64| {
        let (b, s) = (median(&|n| of(&bare[n])), median(&|n| of(&berth[n])));
        let ratio = median(&|n| of(&berth[n]) / of(&bare[n]));
        println!("{name:<28}{b:>10.1}{s:>10.1}{ratio:>8.2}");
    };
    println!("{:<28}{:>10}{:>10}{:>8}", "", "bare", "scheduler", "ratio");
    row("CPU of a schedule, us", &|one| one.cpu_us);
    row("schedules of a core, /s", &|one| 1e6 / one.cpu_us);
    row("answer p99, us", &|one| one.p99_us);
}

/// A server on a thread of its own, asked for so long.
fn measure(who: Who, span: Duration) -> Measured {
    let (ready, listening) = mpsc::sync_channel(1);
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let server = thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let thread = std::fs::read_link("/proc/thread-self").expect("Linux");
            let stat = format!("/proc/{}/schedstat", thread.display());
            match who {
                Who::Bare => serve_bare(|address| drop(ready.send((address, stat))), ended).await,
                Who::Berth => serve_berth(|address| drop(ready.send((address, stat))), ended).await,
            }
        });
    });
    let (address, stat) = listening.recv().expect("it listens");
    let client = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let requests = requests();
    // Once, so that what is made only once does not count.
    client.block_on(ask(address, &requests, Duration::from_millis(200)));
    let before = cpu_us(&stat);
    let mut took = client.block_on(ask(address, &requests, span));
    let cpu_us = (cpu_us(&stat) - before) / took.len() as f64;
    drop(end);
    server.join().expect("no panic");
    took.sort_unstable();
    Measured { cpu_us, p99_us: took[took.len() * 99 / 100].as_secs_f64() * 1e6 }
}

/// What the thread has run so far, in microseconds.
fn cpu_us(stat: &str) -> f64 {
    let text = std::fs::read_to_string(stat).expect("the thread lives");
    let ns: f64 = text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds first");
    ns / 1_000.0
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("below the year 292 million")
}

fn requests() -> Vec<String> {
    let body = r#"{"deviceId":"bench","platform":"server","appVersion":"7.3.1","transports":["ws"]}"#;
    let of = |user| {
        let token = sign_user_token(SECRET, &format!("user-{user}"), Duration::from_secs(3_600), now_ms());
        let length = body.len();
        format!(
            "POST /v1/schedule HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    (0..USERS).map(of).collect()
}

/// Asks over [`CONNECTIONS`] for so long; how long each answer took.
async fn ask(address: SocketAddr, requests: &[String], span: Duration) -> Vec<Duration> {
    let until = Instant::now() + span;
    let one = |start: usize| async move {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.set_nodelay(true).expect("settable");
        let (mut took, mut answer) = (Vec::new(), Vec::new());
        for request in requests.iter().cycle().skip(start) {
            let began = Instant::now();
            if began >= until {
                break;
            }
            stream.write_all(request.as_bytes()).await.expect("sends");
            answer.clear();
            while !complete(&answer) {
                assert!(stream.read_buf(&mut answer).await.expect("answers") > 0, "it closed");
            }
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
            took.push(began.elapsed());
        }
        took
    };
    let all = (0..CONNECTIONS).map(|number| one(number * USERS / CONNECTIONS));
    futures_util::future::join_all(all).await.concat()
}

/// Whether a whole answer is there: it has a Content-Length.
fn complete(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let mut lines = head.lines();
    let length =
        lines.find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    length.is_some_and(|length: usize| body.len() >= length)
}

/// What gateways hear: nothing that matters here.
struct Deaf;

impl Link<FromScheduler> for Deaf {
    fn send(&self, _: Vec<FromScheduler>) -> Result<(), Refused<FromScheduler>> {
        Ok(())
    }
}

fn report(number: usize) -> GatewayReport {
    let gateway_id = format!("gw-{number}");
    let endpoints = vec![Endpoint {
        transport: "ws".to_owned(),
        url: format!("ws://{gateway_id}.example.com:7710/v1/ws"),
        ..Endpoint::default()
    }];
    GatewayReport {
        gateway_id,
        boot: 1,
        pool: "stable".to_owned(),
        endpoints,
        ready: true,
        capacity: 1_000_000,
        handshakes_per_second_capacity: 1_000_000,
        admit_per_second: Some(1_000_000),
        uptime_ms: 3_600_000,
        ..GatewayReport::default()
    }
}

async fn serve_berth(listening: impl FnOnce(SocketAddr), ended: tokio::sync::oneshot::Receiver<()>) {
    let config = Config {
        id: String::new(),
        listen: ([127, 0, 0, 1], 0).into(),
        policy_file: None,
        geoip_file: None,
        data_dir: None,
        jwt: keys(),
        jwt_expected: Default::default(),
        jwks_file: None,
        ticket_key: TICKET_KEY.to_vec(),
        other_ticket_keys: Vec::new(),
        void_ticket_keys: Vec::new(),
        admin_key: String::new(),
        previous_admin_key: String::new(),
        ticket_ttl: Duration::from_secs(300),
        heartbeat: Default::default(),
        reconnect: Default::default(),
        requests_per_second_per_user: 1_000_000,
        spread_max_ms: berth_scheduler::LONGEST_SPREAD_MS,
        extra_routes: None,
    };
    let metrics = Registry::new(Box::leak(Box::new(metrics::NoopRecorder)));
    let scheduler = Scheduler::start(config, metrics).await.expect("starts");
    let attach = |number| {
        let gateway_id = format!("gw-{number}");
        scheduler.service().attach(AttachGateway { gateway_id, boot: 1 }, Arc::new(Deaf))
    };
    let links: Vec<_> = (0..GATEWAYS).map(attach).collect();
    let reporting = async {
        loop {
            for (number, link) in links.iter().enumerate() {
                let message = Some(to_scheduler::Message::Report(report(number)));
                link.send(vec![ToScheduler { message }]).expect("taken");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let running = async {
        // Every gateway has reported twice, and the last of them is in a snapshot.
        tokio::time::sleep(Duration::from_secs(1)).await;
        listening(scheduler.local_addr());
        let _ = ended.await;
    };
    tokio::select! {
        () = reporting => {}
        () = running => {}
    }
    scheduler.stop().await;
}

fn keys() -> JwtKeys {
    JwtKeys::from_secrets(&[SECRET]).expect("32 bytes")
}

struct Bare {
    jwt: JwtKeys,
    signer: TicketSigner,
    endpoints: Vec<ScheduleEndpoint>,
    gateway_ids: Vec<String>,
}

async fn serve_bare(listening: impl FnOnce(SocketAddr), ended: tokio::sync::oneshot::Receiver<()>) {
    let reports = (0..5).map(report);
    let endpoint = |report: GatewayReport| {
        let endpoint = Endpoint { gateway_id: report.gateway_id, ..report.endpoints[0].clone() };
        ScheduleEndpoint::from(Endpoint { pool: report.pool, ..endpoint })
    };
    let bare = Bare {
        jwt: keys(),
        signer: TicketSigner::from_secret(TICKET_KEY),
        endpoints: reports.clone().map(endpoint).collect(),
        gateway_ids: reports.map(|report| report.gateway_id).collect(),
    };
    let router = Router::new().route("/v1/schedule", post(bare_schedule)).with_state(Arc::new(bare));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    listening(listener.local_addr().expect("is bound"));
    let accepting = async {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            let service = TowerToHyperService::new(router.clone());
            connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    };
    tokio::select! {
        result = accepting => { let _: io::Result<()> = result; }
        _ = ended => {}
    }
}

async fn bare_schedule(
    State(bare): State<Arc<Bare>>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Result<Json<ScheduleAnswer>, StatusCode> {
    let refused = || StatusCode::UNAUTHORIZED;
    let token =
        headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or_else(refused)?;
    let token = token.strip_prefix("Bearer ").ok_or_else(refused)?;
    let now_ms = now_ms();
    let user = bare.jwt.verify(token, now_ms).map_err(|_| refused())?;
    let asked: ScheduleRequest = serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    let schedule_id = rand::random();
    let expires_at_ms = now_ms + 300_000;
    let ticket = bare.signer.sign(&Ticket {
        user_id: user.id,
        device_id: asked.device_id,
        gateway_ids: bare.gateway_ids.clone(),
        pool: "stable".to_owned(),
        expires_at_ms,
        auth_expires_at_ms: user.expires_at_ms,
        schedule_id,
        issued_at_ms: now_ms,
        ..Ticket::default()
    });
    Ok(Json(ScheduleAnswer {
        schedule_id: format!("{schedule_id:016x}"),
        server_time_ms: now_ms,
        ttl_seconds: 300,
        endpoints: bare.endpoints.clone(),
        ticket,
        ticket_expires_at_ms: expires_at_ms,
        decision: Decision { pool: "stable".to_owned(), ..Decision::default() },
        ..ScheduleAnswer::default()
    }))
}
