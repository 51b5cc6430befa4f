//! The explanation of a decision: the same stages, written down, and where every gateway stands.

use std::collections::HashSet;

use rand::Rng;
use serde::Serialize;

use super::{
    Decision, Domain, Dropped, NoGateway, Observer, Request, Tier, TierVerdict, Verdict, decide_observed,
    load::Chooser,
};
use crate::{
    admission::QueueSeen,
    fleet::{Dimension, Fleet, Measure, State, Sums, pressure},
    locate::Near,
    policy::{GrayRule, Policy, Takes},
};

/// Most gateways listed one by one: those after them are only counted.
const MAX_LISTED: usize = 1_000;

/// Everything a decision did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What there was to choose from.
    pub admission: Admission,
    /// The region the user belongs to; empty: none.
    pub home: String,
    /// Gray rules looked at, until one applied.
    pub rules: Vec<RuleSeen>,
    /// Pools tried, in order.
    pub pools: Vec<PoolSeen>,
    /// Tiers looked at, in order.
    pub tiers: Vec<TierSeen>,
    /// Gateways drawn at random, in order.
    pub draws: Vec<Draw>,
    /// The list, best first, and the failure domain each gateway stands for.
    pub ranked: Vec<RankedSeen>,
    /// Where every gateway of the fleet stands for this request: first those on the list, then the pools tried.
    pub gateways: Vec<GatewaySeen>,
    /// Gateways that are not listed, since the list is at most 1,000 long.
    pub gateways_not_listed: usize,
}

/// The admission stage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Admission {
    /// Gateways known.
    pub known: usize,
    /// Of those, assignable.
    pub assignable: usize,
    /// So many gateways fell silent together that they are assigned on their last known load.
    pub distrusted: bool,
    /// The budget and the queue of the pool decided on: told by whoever keeps them, since the decision knows neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueSeen>,
}

/// A gray rule that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleSeen {
    /// Its id.
    pub rule_id: String,
    /// `named`, `all`, `in`, `out`, `nobody`, `stopped` or `mismatch`.
    pub verdict: &'static str,
    /// What it takes of those that match now, by its ramp if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// Why it takes nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// The key of `match` that does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<&'static str>,
    /// The user's bucket under the rule's salt, where it was needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<u16>,
}

/// A pool that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolSeen {
    /// Its name.
    pub pool: String,
    /// Its assignable gateways.
    pub candidates: u32,
    /// Nothing else was left: gateways that the client could not reach were allowed again.
    pub allow_failed: bool,
}

/// A tier that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TierSeen {
    /// `zone`, `home`, `region`, `near` or `rest`.
    pub kind: &'static str,
    /// Its region; empty for the rest.
    pub region: String,
    /// How far that is, as a round trip in milliseconds, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distance_ms: Option<u32>,
    /// What told it: `measured`, `votes`, `distance` or `coordinates`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distance_by: Option<&'static str>,
    /// Its assignable gateways.
    pub candidates: u32,
    /// Reported connections or CPU over capacity, the worse of each gateway: at `spill_at` it spills.
    pub utilisation: f64,
    /// The mean score, with pending assignments and slow start.
    pub mean_score: f64,
    /// `chosen`, `spills`, `empty` or `nobody_left`.
    pub verdict: &'static str,
}

/// A gateway that was drawn.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Draw {
    /// Its id.
    pub gateway_id: String,
    /// Its score, if it could be taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Why it could not: `full`, `failed`, `transport`, `taken` or `over_bound`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<&'static str>,
}

/// A gateway on the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RankedSeen {
    /// Its id.
    pub gateway_id: String,
    /// `first`, `zone`, `region` or `gateway`.
    pub domain: &'static str,
}

/// Where a gateway stands for a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySeen {
    /// Its id.
    pub gateway_id: String,
    /// Its pool.
    pub pool: String,
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// Its software.
    pub version: String,
    /// `assignable`, `full`, `not_ready`, `draining`, `stale` or `dead`.
    pub state: &'static str,
    /// Connections it can hold.
    pub capacity: u64,
    /// Connections it reported.
    pub connections: u64,
    /// The dimension that decides: `connections`, `handshakes`, `sent_bytes`, `cpu`, `memory` or `loop_lag`.
    pub worst: &'static str,
    /// How far anything but connections counts: it follows the reports slowly.
    pub strain: f64,
    /// How much its last report still says, from 1 to 0: what is missing is taken for the pool's mean.
    pub freshness: f64,
    /// Every dimension that it reports.
    pub dimensions: Vec<DimensionSeen>,
    /// What it counts for, in connections: those it has, and most of what its strain is above them.
    pub load: u64,
    /// Own assignments on their way to it.
    pub pending: u64,
    /// Its capacity as far as slow start lets it count.
    pub weight: f64,
    /// (load + pending) / weight: what two gateways are compared on.
    pub score: f64,
    /// How old its load is, in milliseconds.
    pub report_age_ms: i64,
    /// Why it could not be taken: its state, or `pool`, `full`, `failed`, `transport`, or `tier` when a nearer tier was
    /// chosen from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<&'static str>,
}

/// A dimension that a gateway reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DimensionSeen {
    /// Its name.
    pub dimension: &'static str,
    /// As reported.
    pub used: u64,
    /// As reported.
    pub capacity: u64,
    /// Used over capacity, at most 4.
    pub utilisation: f64,
    /// What of it counts: for connections all of it, for others what is above a half, as a share of what there is above it.
    pub pressure: f64,
}

/// Decides as [`super::decide`] does, and writes down why.
pub fn explain<'a>(
    fleet: &'a Fleet,
    policy: &'a Policy,
    request: &Request<'_>,
    now_ms: i64,
    rng: &mut impl Rng,
) -> (Result<Decision<'a>, NoGateway>, Explanation) {
    let mut recorder =
        Recorder { fleet, near: request.near, seen: Explanation::default(), chosen_tier: None };
    let decision = decide_observed(fleet, policy, request, now_ms, rng, &mut recorder);
    let Recorder { mut seen, chosen_tier, .. } = recorder;
    let mut chooser = Chooser::new(fleet, request);
    chooser.allow_failed = seen.pools.last().is_some_and(|pool| pool.allow_failed);
    let ranked = decision.as_ref().map(|decision| decision.ranked).unwrap_or_default();
    let standing = Standing { chooser, ranked: ranked.as_slice(), chosen_tier, pools: &seen.pools };
    let mut order: Vec<_> = (0..fleet.gateways.len() as u32).collect();
    order.sort_by_cached_key(|index| standing.place(*index));
    let gateways: Vec<_> =
        order.into_iter().take(MAX_LISTED).map(|index| standing.gateway(index, now_ms)).collect();
    seen.gateways_not_listed = fleet.gateways.len() - gateways.len();
    seen.gateways = gateways;
    (decision, seen)
}

/// What says where a gateway stands.
struct Standing<'a> {
    chooser: Chooser<'a>,
    ranked: &'a [u32],
    /// The candidates of the tier that the first gateway is of.
    chosen_tier: Option<HashSet<u32>>,
    pools: &'a [PoolSeen],
}

impl Standing<'_> {
    /// Where it is listed: those on the list, then the pools in the order they were tried, then the others.
    fn place(&self, index: u32) -> (usize, usize) {
        let pool = &self.chooser.fleet.gateway(index).profile.pool;
        let on_list = self.ranked.iter().position(|ranked| *ranked == index);
        let tried = self.pools.iter().position(|seen| seen.pool == *pool);
        (on_list.unwrap_or(usize::MAX), tried.unwrap_or(usize::MAX))
    }

    fn dropped(&self, index: u32) -> Option<&'static str> {
        if self.ranked.contains(&index) {
            return None;
        }
        let gateway = self.chooser.fleet.gateway(index);
        if gateway.state != State::Assignable {
            return Some(gateway.state.name());
        }
        if !self.pools.iter().any(|seen| seen.pool == gateway.profile.pool) {
            return Some("pool");
        }
        let other_tier = || self.chosen_tier.as_ref().is_some_and(|tier| !tier.contains(&index));
        match self.chooser.judge(index, &[]) {
            Err(dropped) => Some(dropped.name()),
            Ok(_) => other_tier().then_some("tier"),
        }
    }

    fn gateway(&self, index: u32, now_ms: i64) -> GatewaySeen {
        gateway_seen(self.chooser.fleet, index, self.dropped(index), now_ms)
    }
}

fn gateway_seen(fleet: &Fleet, index: u32, dropped: Option<&'static str>, now_ms: i64) -> GatewaySeen {
    let (gateway, usage) = (fleet.gateway(index), &fleet.usages[index as usize]);
    let profile = &gateway.profile;
    let dimension = |(dimension, measure): (Dimension, Measure)| {
        let utilisation = measure.utilisation()?;
        let Measure { used, capacity } = measure;
        let pressure = pressure(dimension, measure);
        Some(DimensionSeen { dimension: dimension.name(), used, capacity, utilisation, pressure })
    };
    GatewaySeen {
        gateway_id: profile.id.to_string(),
        pool: profile.pool.clone(),
        region: profile.region.clone(),
        zone: profile.zone.clone(),
        version: profile.version.clone(),
        state: gateway.state.name(),
        capacity: gateway.capacity,
        connections: gateway.connections,
        worst: fleet.decides(index).name(),
        strain: fleet.strains[index as usize].pressure,
        freshness: fleet.freshness(gateway),
        dimensions: usage.measures().filter_map(dimension).collect(),
        load: gateway.load,
        pending: gateway.pending(),
        weight: gateway.weight,
        score: gateway.score(),
        report_age_ms: now_ms - gateway.reported_at_ms,
        dropped,
    }
}

/// Writes down what the stages do.
struct Recorder<'a> {
    fleet: &'a Fleet,
    near: &'a [Near<'a>],
    seen: Explanation,
    chosen_tier: Option<HashSet<u32>>,
}

impl Recorder<'_> {
    fn id(&self, gateway: u32) -> String {
        self.fleet.gateway(gateway).profile.id.to_string()
    }
}

impl Observer for Recorder<'_> {
    fn admission(&mut self, known: usize, assignable: usize) {
        self.seen.admission = Admission { known, assignable, distrusted: self.fleet.distrusted, queue: None };
    }

    fn home(&mut self, region: &str) {
        region.clone_into(&mut self.seen.home);
    }

    fn rule(&mut self, rule: &GrayRule, verdict: Verdict) {
        let (verdict, mismatch, bucket) = match verdict {
            Verdict::Named => ("named", None, None),
            Verdict::All => ("all", None, None),
            Verdict::Nobody => ("nobody", None, None),
            Verdict::Stopped => ("stopped", None, None),
            Verdict::In { bucket } => ("in", None, Some(bucket)),
            Verdict::Out { bucket } => ("out", None, Some(bucket)),
            Verdict::Mismatch { key } => ("mismatch", Some(key), None),
        };
        let (percent, stopped) = match &rule.takes {
            Takes::Percent { percent, .. } => (Some(*percent), None),
            Takes::Nobody(stop) => (None, Some(stop.reason.clone())),
        };
        let rule_id = rule.id.clone();
        self.seen.rules.push(RuleSeen { rule_id, verdict, percent, stopped, mismatch, bucket });
    }

    fn pool(&mut self, name: &str, candidates: u32, allow_failed: bool) {
        self.seen.pools.push(PoolSeen { pool: name.to_owned(), candidates, allow_failed });
    }

    fn tier(&mut self, fleet: &Fleet, tier: &Tier<'_>, sums: Sums, verdict: TierVerdict) {
        if verdict == TierVerdict::Chosen {
            self.chosen_tier =
                Some((0..tier.len()).map(|position| tier.candidate(fleet, position)).collect());
        }
        let region = match tier.kind {
            super::TierKind::Rest => String::new(),
            _ => fleet.labels(tier.group).region.clone(),
        };
        let near = self.near.iter().find(|near| near.region == region);
        self.seen.tiers.push(TierSeen {
            kind: tier.kind.name(),
            distance_ms: near.map(|near| near.ms),
            distance_by: near.map(|near| near.by.name()),
            region,
            candidates: tier.len(),
            utilisation: sums.utilisation(),
            mean_score: sums.mean_score(),
            verdict: verdict.name(),
        });
    }

    fn drawn(&mut self, gateway: u32, judged: Result<f64, Dropped>) {
        let gateway_id = self.id(gateway);
        let (score, dropped) = (judged.ok(), judged.err().map(Dropped::name));
        self.seen.draws.push(Draw { gateway_id, score, dropped });
    }

    fn ranked(&mut self, gateway: u32, domain: Domain) {
        self.seen.ranked.push(RankedSeen { gateway_id: self.id(gateway), domain: domain.name() });
    }
}
