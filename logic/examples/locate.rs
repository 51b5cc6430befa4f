//! Measures the CPU it takes to find the connections of many users at once: what stands between a large conversation's
//! rows and its notifies. The long way (whole routes) beside the short one, over each engine.
//!
//! `cargo run --release -p berth-logic --example locate [-- USERS [DIRECTORY]]`

use std::sync::Arc;

use berth_logic::{
    kv::{Embedded, Kv, Memory, Space, Tail},
    routes::{GatewayKey, KvRoutes, Opening, Routes},
};

/// Measurements of each; the median counts.
const ROUNDS: usize = 9;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let users = arguments.next().map_or(10_000, |text| text.parse().expect("a number of users"));
    let parent = arguments.next().unwrap_or_else(|| ".".to_owned());
    let directory = tempfile::tempdir_in(parent).expect("a directory to write in");
    let embedded = Embedded::open(directory.path(), &["routes"], 64 << 20, Tail::Whole).expect("opens");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        measure("memory", Arc::new(Memory::new(1)), users).await;
        measure("embedded", Arc::new(embedded), users).await;
    });
}

async fn measure(engine: &str, kv: Arc<dyn Kv>, users: usize) {
    let routes = KvRoutes::open(kv, Space(0), 60_000, 0).expect("opens");
    // Five times as many are connected: those asked for do not lie side by side.
    let names: Vec<String> = (0..5 * users).map(|n| format!("user-{:06}", n * 7_919 % (5 * users))).collect();
    for (part, handles) in names.chunks(1_000).zip(0u64..) {
        let open = |(name, n): (&String, u64)| Opening {
            user: name.clone(),
            device: "phone".to_owned(),
            platform: "ios".to_owned(),
            gateway: GatewayKey { id: format!("gw-{}", n % 3), boot: 1 },
            handle: handles << 32 | n,
            announced: 0,
            said_ms: 0,
            auth_issued_at_ms: 0,
        };
        routes.register(part.iter().zip(0..).map(open).collect(), 0).await.expect("registers");
    }
    let mut asked: Vec<String> = names.into_iter().step_by(5).collect();
    asked.sort();
    let short: Vec<&str> = asked.iter().map(String::as_str).collect();
    let (mut long_us, mut short_us) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = cpu_us();
        let found = routes.lookup(&asked).await.expect("reads");
        assert_eq!(found.len(), users);
        drop(found);
        long_us.push((cpu_us() - began) / users as f64);
        let began = cpu_us();
        assert_eq!(routes.locate(&short).await.expect("reads").connections.len(), users);
        short_us.push((cpu_us() - began) / users as f64);
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "{engine}: {:.2} us a user the long way, {:.2} us the short one",
        median(long_us),
        median(short_us)
    );
}

/// CPU of this thread so far: unlike the clock it does not count what others do to a busy machine.
fn cpu_us() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let ns = text.split_whitespace().next().expect("three numbers");
    ns.parse::<f64>().expect("nanoseconds") / 1_000.0
}
