//! What one decision costs over fleets of 10, 1,000 and 10,000 gateways: plain, for a user of a gray pool with a home, and
//! for a client with failed gateways and measured round trips; what it costs to find out where that client is; and what a
//! snapshot costs.

use std::{
    collections::BTreeMap,
    hint::black_box,
    net::IpAddr,
    time::{Duration, Instant},
};

use berth_proto::{client::Endpoint, wire::GatewayReport};
use berth_scheduler::{
    decide::{Request, decide},
    fleet::{Fleet, Table},
    locate::{self, Claim, Database, Near, Network, Votes, locate},
    policy::{Client, Platform, app_version, parse},
    transport::Transports,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand::{Rng, SeedableRng, rngs::SmallRng};

#[path = "../../tests/src/mmdb.rs"]
mod mmdb;

const POLICY: &str = r#"
version = 1
[[home]]
region = "r1"
buckets = [0, 10000]
[[gray]]
id = "by-version"
pool = "canary"
percent = 10
match = { platforms = ["web"], app_version = ">=8" }
[[gray]]
id = "by-bucket"
pool = "canary"
percent = 99.99
match = { platforms = ["ios"], app_version = ">=7.3.0, <8" }
"#;

/// A client of Shanghai, and how far the regions are.
const PLACES: &str = r#"
version = 1
[[proximity.place]]
region = "r1"
countries = ["DE", "FR", "NL"]
[[proximity.place]]
region = "r2"
subdivisions = ["CN-SH"]
[[proximity.distance]]
between = ["r2", "r3"]
ms = 30
[[proximity.distance]]
between = ["r2", "r4"]
ms = 20
"#;

/// Five regions of four zones, one gateway in ten in the canary pool, all about half full.
fn table(size: usize) -> Table {
    let mut table = Table::default();
    let mut rng = SmallRng::seed_from_u64(7);
    for n in 0..size {
        let endpoint = |transport: &str| Endpoint {
            transport: transport.to_owned(),
            url: format!("{transport}://gw-{n}.example.com:7710"),
            ..Endpoint::default()
        };
        let report = GatewayReport {
            gateway_id: format!("gw-{n}"),
            region: format!("r{}", n % 5),
            zone: format!("z{}", n % 4),
            pool: if n % 10 == 9 { "canary" } else { "stable" }.to_owned(),
            endpoints: vec![endpoint("ws"), endpoint("tcp")],
            ready: true,
            capacity: 20_000,
            connections: rng.random_range(8_000..12_000),
            uptime_ms: 3_600_000,
            ..GatewayReport::default()
        };
        table.take(1, &report, 0).expect("a valid report");
    }
    table
}

fn request<'a>(failed: &'a [String], near: &'a [Near<'a>]) -> Request<'a> {
    Request {
        user_id: "alice",
        client: Client { region: "r2", device_id: "d1", ..Client::default() },
        transports: Transports::ALL,
        failed,
        near,
        pool: None,
    }
}

fn decisions(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    let default = parse("version = 1").expect("valid");
    let gray = parse(POLICY).expect("valid");
    for size in [10, 1_000, 10_000] {
        let fleet: Fleet = table(size).snapshot(0, 30_000);
        let mut rng = SmallRng::seed_from_u64(1);
        let plain = request(&[], &[]);
        group.bench_function(BenchmarkId::new("default", size), |b| {
            b.iter(|| black_box(decide(&fleet, &default, black_box(&plain), 0, &mut rng)));
        });
        let mut ios = request(&[], &[]);
        ios.client.platform = Some(Platform::Ios);
        ios.client.app_version = app_version("7.3.1");
        group.bench_function(BenchmarkId::new("home_and_gray", size), |b| {
            b.iter(|| black_box(decide(&fleet, &gray, black_box(&ios), 0, &mut rng)));
        });
        let failed = vec!["gw-1".to_owned(), "gw-2".to_owned(), "gw-3".to_owned()];
        let rtt_ms = (0..5).map(|n| (format!("gw-{n}"), 10 * n)).collect();
        let near = locate::measured(&fleet, &rtt_ms);
        let measured = request(&failed, near.as_slice());
        group.bench_function(BenchmarkId::new("failed_and_measured", size), |b| {
            b.iter(|| black_box(decide(&fleet, &default, black_box(&measured), 0, &mut rng)));
        });
    }
    group.finish();
}

/// Where a client is: by what it measured, by its address and the policy, and by what its network measured too.
fn places(c: &mut Criterion) {
    let mut group = c.benchmark_group("locate");
    let networks = [("203.0.113.0/24", mmdb::Field::city("CN", "SH", 4134))];
    let database = Database::read(mmdb::database(&networks, 1)).expect("valid");
    let ip = "203.0.113.7".parse().expect("valid");
    group.bench_function("address", |b| b.iter(|| black_box(database.find(black_box(ip)))));
    let (empty, policy) = (parse("version = 1").expect("valid"), parse(PLACES).expect("valid"));
    let network = Network::of(ip, database.find(ip)).expect("a public address");
    let polled = Votes::default();
    for user in 0..15 {
        for region in ["r0", "r1", "r3", "r4"] {
            polled.cast(&network, region, &format!("u{user}"), 10 + user, 0);
        }
    }
    let votes = Votes::default();
    let (nothing, rtt_ms) =
        (BTreeMap::new(), (0..5).map(|n| (format!("gw-{n}"), 10 * n)).collect::<BTreeMap<_, _>>());
    for size in [10, 1_000, 10_000] {
        let fleet: Fleet = table(size).snapshot(0, 30_000);
        let claim = |rtt_ms| Claim { hint: "", came_to: "", ip: Some(ip), rtt_ms };
        for (name, policy, database, votes, rtt_ms) in [
            ("measured", &empty, None, &votes, &rtt_ms),
            ("address_and_policy", &policy, Some(&database), &votes, &nothing),
            ("votes", &policy, Some(&database), &polled, &nothing),
        ] {
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter(|| black_box(locate(&fleet, policy, database, votes, black_box(&claim(rtt_ms)), 1)));
            });
        }
    }
    group.finish();
}

/// The time of one look at a network's votes while as many threads as are named look at their own networks.
fn threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("votes");
    let votes = Votes::default();
    for count in [1u8, 2, 4] {
        group.bench_function(BenchmarkId::new("threads", count), |b| {
            b.iter_custom(|iterations| {
                let start = Instant::now();
                std::thread::scope(|scope| {
                    for thread in 0..count {
                        let votes = &votes;
                        scope.spawn(move || {
                            let ip = IpAddr::from([203, 0, thread, 7]);
                            let network = Network::of(ip, None).expect("a public address");
                            votes.cast(&network, "r1", "u1", 10, 0);
                            (0..iterations).for_each(|_| {
                                black_box(votes.polled(black_box(&network), 1));
                            });
                        });
                    }
                });
                start.elapsed()
            });
        });
    }
    group.finish();
}

fn snapshots(c: &mut Criterion) {
    let mut group = c.benchmark_group("snapshot");
    for size in [10, 1_000, 10_000] {
        let mut table = table(size);
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| black_box(table.snapshot(0, 30_000)))
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    // Short: the figures settle within two seconds, and there are two dozen of them.
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = decisions, places, threads, snapshots
}
criterion_main!(benches);
