//! Fleets, policies and requests for tests: written down, or at random.

use berth_proto::{
    client::Endpoint,
    wire::{GatewayLoad, GatewayReport},
};
use proptest::prelude::*;

use super::super::Request;
use crate::{
    fleet::{Fleet, Pending, Place, Table},
    locate::{DistanceBy, Near},
    policy::{Client, GrayRule, Platform, Policy, Stop, app_version, parse},
    transport::Transports,
};

/// The time of every snapshot and decision.
pub(super) const NOW: i64 = 1_000_000;

/// A gateway as a test wants it.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub id: String,
    pub pool: String,
    pub region: String,
    pub zone: String,
    pub capacity: u64,
    pub connections: u64,
    /// In percent of what it has; none: not told.
    pub cpu: Option<u64>,
    pub pending: u64,
    pub ready: bool,
    pub draining: bool,
    pub age_ms: i64,
    pub uptime_ms: u64,
    pub transports: Vec<&'static str>,
}

impl Spec {
    /// A good gateway of a pool.
    pub fn of(id: &str, pool: &str) -> Self {
        Self {
            id: id.to_owned(),
            pool: pool.to_owned(),
            region: String::new(),
            zone: String::new(),
            capacity: 100,
            connections: 0,
            cpu: None,
            pending: 0,
            ready: true,
            draining: false,
            age_ms: 0,
            uptime_ms: 3_600_000,
            transports: vec!["ws", "tcp"],
        }
    }

    /// One in `stable`, somewhere.
    pub fn at(id: &str, region: &str, zone: &str) -> Self {
        Self { region: region.to_owned(), zone: zone.to_owned(), ..Self::of(id, "stable") }
    }

    fn report(&self) -> GatewayReport {
        let endpoint = |transport: &&str| Endpoint {
            transport: (*transport).to_owned(),
            url: format!("{transport}://{}", self.id),
            ..Endpoint::default()
        };
        let load = |percent| GatewayLoad {
            cpu_millis_per_second: percent * 20,
            cpu_millis_per_second_capacity: 2_000,
            ..GatewayLoad::default()
        };
        GatewayReport {
            gateway_id: self.id.clone(),
            boot: 1,
            region: self.region.clone(),
            zone: self.zone.clone(),
            pool: self.pool.clone(),
            endpoints: self.transports.iter().map(endpoint).collect(),
            ready: self.ready,
            draining: self.draining,
            capacity: self.capacity,
            connections: self.connections,
            uptime_ms: self.uptime_ms,
            load: self.cpu.map(load),
            ..GatewayReport::default()
        }
    }
}

/// A fleet and a policy.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub gateways: Vec<Spec>,
    pub policy: String,
    pub slow_start_ms: i64,
    /// When the policy is asked.
    pub wall_ms: i64,
    /// The last gray rule was stopped.
    pub stopped: bool,
    /// The scheduler has heard of everybody, all of them idle, before: what it knows now it takes up slowly.
    pub heard_before: bool,
}

impl Default for World {
    fn default() -> Self {
        Self {
            gateways: Vec::new(),
            policy: "version = 1".to_owned(),
            slow_start_ms: 30_000,
            wall_ms: 0,
            stopped: false,
            heard_before: false,
        }
    }
}

impl World {
    pub fn fleet(&self) -> Fleet {
        let mut table = Table::default();
        for spec in self.gateways.iter().filter(|_| self.heard_before) {
            let idle = Spec { cpu: Some(0), connections: 0, ..spec.clone() };
            table.take(1, &idle.report(), NOW - spec.age_ms - 500).expect("a valid report");
        }
        for spec in &self.gateways {
            table.take(1, &spec.report(), NOW - spec.age_ms).expect("a valid report");
        }
        let fleet = table.snapshot(NOW, self.slow_start_ms);
        let mut pending = Pending::default();
        let mut id = 0;
        for spec in &self.gateways {
            // A gateway silent for long is forgotten, with what was pending on it.
            let Some(index) = fleet.find(&spec.id) else { continue };
            for _ in 0..spec.pending {
                id += 1;
                pending.assign(&fleet, Place::at_once(index, &format!("u{id}"), id), NOW);
            }
        }
        fleet
    }

    pub fn policy(&self) -> Policy {
        let policy = parse(&self.policy).expect("the test's own policy");
        let stop = |rule: &GrayRule| {
            let stop = Stop { reason: "stopped".to_owned(), by: String::new(), at_ms: 0 };
            (rule.hash.clone(), stop.into())
        };
        let stops = policy.gray.last().filter(|_| self.stopped).map(stop).into_iter().collect();
        policy.at(self.wall_ms, &stops).unwrap_or(policy)
    }

    pub fn spec(&self, id: &str) -> &Spec {
        self.gateways.iter().find(|spec| spec.id == id).expect("of this world")
    }
}

/// A request that owns what it says.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub user: String,
    pub region: String,
    pub zone: String,
    pub platform: Option<Platform>,
    pub version: String,
    pub transports: Transports,
    pub failed: Vec<String>,
    /// Regions and their distances, nearest first.
    pub near: Vec<Near<'static>>,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            user: "alice".to_owned(),
            region: String::new(),
            zone: String::new(),
            platform: None,
            version: String::new(),
            transports: Transports::ALL,
            failed: Vec::new(),
            near: Vec::new(),
        }
    }
}

impl Asked {
    pub fn request(&self) -> Request<'_> {
        Request {
            user_id: &self.user,
            client: Client {
                platform: self.platform,
                app_version: app_version(&self.version),
                region: &self.region,
                origin: &self.region,
                zone: &self.zone,
                ip: Some([10, 0, 0, 1].into()),
                device_id: "d1",
            },
            transports: self.transports,
            failed: &self.failed,
            near: &self.near,
            pool: None,
        }
    }
}

/// Regions, each farther than the one before.
pub(super) fn near_in_order(regions: &[&'static str]) -> Vec<Near<'static>> {
    let near = |(ms, region): (u32, &&'static str)| Near { region, ms, by: DistanceBy::Measured };
    (1..).zip(regions).map(near).collect()
}

/// Any gateway in `stable`; its id is given later.
pub(super) fn arb_spec() -> impl Strategy<Value = Spec> {
    let labels = (0..4usize, 0..3usize);
    let cpu = prop_oneof![2 => Just(None), 1 => (0..150u64).prop_map(Some)];
    let load = (0..40u64, 0..45u64, cpu, prop_oneof![4 => Just(0), 1 => 0..20u64]);
    let flags = (prop::bool::weighted(0.9), prop::bool::weighted(0.1));
    let ages = prop_oneof![6 => 0..1_500i64, 1 => 1_501..3_000i64, 1 => 3_001..400_000i64];
    let uptime = prop_oneof![0..30_000u64, Just(3_600_000)];
    let transports = prop_oneof![3 => Just(vec!["ws", "tcp"]), 1 => Just(vec!["ws"]), 1 => Just(vec![])];
    (labels, load, flags, ages, uptime, transports, any::<u64>()).prop_map(
        |(
            (region, zone),
            (capacity, connections, cpu, pending),
            (ready, draining),
            age_ms,
            uptime_ms,
            transports,
            id,
        )| {
            Spec {
                id: format!("g{id}"),
                pool: "stable".to_owned(),
                region: ["", "eu", "us", "ap"][region].to_owned(),
                zone: ["", "a", "b"][zone].to_owned(),
                capacity,
                connections,
                cpu,
                pending,
                ready,
                draining,
                age_ms,
                uptime_ms,
                transports,
            }
        },
    )
}

/// Up to 30 gateways in two pools, and a policy with a home, a rule by platform and one by percentage.
pub(super) fn arb_world() -> impl Strategy<Value = World> {
    let gateway = (arb_spec(), prop::bool::weighted(0.3)).prop_map(|(spec, canary)| Spec {
        pool: (if canary { "canary" } else { "stable" }).to_owned(),
        ..spec
    });
    let gateways = prop::collection::vec(gateway, 0..30);
    // In one world of five nobody is heard any more, for a moment or for long.
    let deaf = prop_oneof![4 => Just(0), 1 => 0..320_000i64];
    let (ramp, stopped) = ((0.0..=100.0f64, 0..3_000i64), prop::bool::weighted(0.2));
    (gateways, 0.0..=100.0f64, 0..10_000u16, 0.0..=1.0f64, 0.0..2.0f64, deaf, ramp, stopped).prop_map(
        |(mut gateways, percent, home, spill, bound, deaf_ms, (later, wall_ms), stopped)| {
            for (n, spec) in gateways.iter_mut().enumerate() {
                spec.id = format!("g{n}");
                spec.age_ms += deaf_ms;
            }
            let policy = format!(
                "version = 1\n[[home]]\nregion = \"eu\"\nbuckets = [0, {}]\n\
                 [[gray]]\nid = \"web\"\npool = \"canary\"\npercent = 100\nmatch.platforms = [\"web\"]\n\
                 [[gray]]\nid = \"some\"\npool = \"canary\"\npercent = {percent:.2}\n\
                 ramp = [{{ at = 1970-01-01T00:00:01Z, percent = {later:.2} }}, {{ at = 1970-01-01T00:00:02Z, percent = 0 }}]\n\
                 [proximity]\nspill_at = {spill:.3}\n[load]\nbound = {bound:.3}",
                home + 1
            );
            World { gateways, policy, wall_ms, stopped, ..World::default() }
        },
    )
}

/// A client of any place that failed at some gateways and is near to some regions.
pub(super) fn arb_asked() -> impl Strategy<Value = Asked> {
    let place = (0..5usize, 0..3usize);
    let platform = prop::option::of(prop::sample::select(Platform::ALL.to_vec()));
    let transports = prop::sample::select(vec![Transports::WS, Transports::TCP, Transports::ALL]);
    let failed = prop::collection::vec("g[0-9]{1,2}", 0..6);
    let near = prop::sample::subsequence(vec!["ap", "eu", "nowhere", "us"], 0..=4).prop_shuffle();
    ("[a-z]{1,8}", place, platform, transports, failed, near).prop_map(
        |(user, (region, zone), platform, transports, failed, near)| Asked {
            user,
            region: ["", "eu", "us", "ap", "nowhere"][region].to_owned(),
            zone: ["", "a", "b"][zone].to_owned(),
            platform,
            version: "7.3.1".to_owned(),
            transports,
            failed,
            near: near_in_order(&near),
        },
    )
}
