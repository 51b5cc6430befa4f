//! What one decision costs over fleets of 10, 1,000 and 10,000 gateways: plain, for a user of a gray pool with a home, and
//! for a client with failed gateways and measured round trips; and what a snapshot costs.

use std::{collections::BTreeMap, hint::black_box, time::Duration};

use berth_proto::{client::Endpoint, wire::GatewayReport};
use berth_scheduler::{
    decide::{Request, decide},
    fleet::{Fleet, Table},
    policy::{Client, Platform, app_version, parse},
    transport::Transports,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand::{Rng, SeedableRng, rngs::SmallRng};

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

fn request<'a>(failed: &'a [String], rtt_ms: &'a BTreeMap<String, u32>) -> Request<'a> {
    Request {
        user_id: "alice",
        client: Client { region: "r2", device_id: "d1", ..Client::default() },
        transports: Transports::ALL,
        failed,
        rtt_ms,
    }
}

fn decisions(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    let default = parse("version = 1").expect("valid");
    let gray = parse(POLICY).expect("valid");
    for size in [10, 1_000, 10_000] {
        let fleet: Fleet = table(size).snapshot(0, 30_000);
        let mut rng = SmallRng::seed_from_u64(1);
        let (none, nothing) = (Vec::new(), BTreeMap::new());
        let plain = request(&none, &nothing);
        group.bench_function(BenchmarkId::new("default", size), |b| {
            b.iter(|| black_box(decide(&fleet, &default, black_box(&plain), 0, &mut rng)));
        });
        let mut ios = request(&none, &nothing);
        ios.client.platform = Some(Platform::Ios);
        ios.client.app_version = app_version("7.3.1");
        group.bench_function(BenchmarkId::new("home_and_gray", size), |b| {
            b.iter(|| black_box(decide(&fleet, &gray, black_box(&ios), 0, &mut rng)));
        });
        let failed = vec!["gw-1".to_owned(), "gw-2".to_owned(), "gw-3".to_owned()];
        let rtt_ms = (0..5).map(|n| (format!("gw-{n}"), 10 * n)).collect();
        let measured = request(&failed, &rtt_ms);
        group.bench_function(BenchmarkId::new("failed_and_measured", size), |b| {
            b.iter(|| black_box(decide(&fleet, &default, black_box(&measured), 0, &mut rng)));
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
    // Short: the figures settle within two seconds, and there are twelve of them.
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = decisions, snapshots
}
criterion_main!(benches);
