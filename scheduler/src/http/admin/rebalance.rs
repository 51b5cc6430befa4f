//! `/admin/v1/rebalance` and `/admin/v1/moves`: evening gateways out, and how far everything is that is moved.

use std::collections::{BTreeMap, HashMap};

use berth_proto::wire::{MoveOrder, MoveProgress, MovePurpose};
use rand::Rng;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Asked, Refusal,
    drains::{FASTEST, LONGEST_SPREAD_MS},
};
use crate::{
    core::Core,
    fleet::{Fleet, Gateway},
    moving::plan::{Filled, plan},
};

/// Most that a gateway may be away from the mean, as a share of it.
const WIDEST: f64 = 1.0;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Start {
    within: f64,
    rate_per_second: u32,
    #[serde(default)]
    spread_ms: u32,
    /// Empty: every pool.
    #[serde(default)]
    pool: String,
    #[serde(default)]
    dry_run: bool,
}

pub(super) fn start(core: &Core, asked: &Asked) -> Result<Value, Refusal> {
    let order: Start = asked.json()?;
    let fleet = core.fleet.load();
    check(&order, &fleet)?;
    let mut sheds = Vec::new();
    for group in groups(&fleet, &order.pool) {
        let filled: Vec<Filled> = group.iter().map(|gateway| filled(gateway)).collect();
        sheds.extend(group.into_iter().zip(plan(&filled, order.within)));
    }
    let shown: Vec<Value> = sheds.iter().map(|(gateway, shed)| shown(gateway, *shed)).collect();
    let total: u64 = sheds.iter().map(|(_, shed)| shed).sum();
    if !order.dry_run {
        let id = rand::rng().random();
        let orders = sheds.iter().filter(|(_, shed)| *shed > 0).map(|(gateway, shed)| {
            let order = MoveOrder {
                id,
                count: *shed,
                per_second: order.rate_per_second,
                within_permille: (order.within * 1_000.0).round() as u32,
                spread_ms: order.spread_ms,
            };
            (gateway.profile.id.to_string(), (gateway.profile.boot, order))
        });
        core.moving.order(&fleet, orders.collect::<HashMap<_, _>>(), id, core.clock.wall_ms());
        tracing::info!(connections = total, within = order.within, "an operator evens gateways out");
    }
    Ok(json!({ "dryRun": order.dry_run, "connections": total, "gateways": shown }))
}

/// Whoever sheds ends that, whichever scheduler ordered it; those told already are on their way.
pub(super) fn stop(core: &Core) -> Value {
    let (fleet, id) = (core.fleet.load(), rand::rng().random());
    let gateways = core.moving.order(&fleet, HashMap::new(), id, core.clock.wall_ms());
    tracing::info!(?gateways, "an operator ends a rebalance");
    json!({ "gateways": gateways })
}

/// What each gateway moves, or moved last.
pub(super) fn progress(core: &Core) -> Value {
    let progress: BTreeMap<_, _> = core.moving.progress(&core.fleet.load()).into_iter().collect();
    let moves =
        progress.iter().flat_map(|(gateway_id, moves)| moves.iter().map(move |one| told(gateway_id, one)));
    json!({ "moves": moves.collect::<Vec<_>>() })
}

fn told(gateway_id: &str, progress: &MoveProgress) -> Value {
    json!({
        "gatewayId": gateway_id,
        "what": match progress.purpose() {
            MovePurpose::Drain => "drain",
            MovePurpose::Rebalance => "rebalance",
            _ => "sweep",
        },
        "phase": progress.phase,
        "reason": progress.reason,
        "left": progress.left,
        "moved": progress.moved,
        "stayed": progress.stayed,
        "failed": progress.unplaced,
        "sinceMs": progress.phase_since_ms,
    })
}

fn check(order: &Start, fleet: &Fleet) -> Result<(), Refusal> {
    let wrong = |problem: String| Err(Refusal::InvalidArgument(problem));
    if !(0.0..=WIDEST).contains(&order.within) {
        return wrong(format!("within {} is not between 0 and {WIDEST}", order.within));
    }
    if !(1..=FASTEST).contains(&order.rate_per_second) {
        return wrong(format!("ratePerSecond {} is not between 1 and {FASTEST}", order.rate_per_second));
    }
    if order.spread_ms > LONGEST_SPREAD_MS {
        return wrong(format!("spreadMs {} is above {LONGEST_SPREAD_MS}", order.spread_ms));
    }
    if !order.pool.is_empty() && fleet.pool(&order.pool).is_none() {
        let pools: Vec<&str> = fleet.pools.iter().map(|pool| fleet.labels(pool).pool.as_str()).collect();
        return Err(Refusal::NotFound(format!("pool {:?}; known are: {}", order.pool, pools.join(", "))));
    }
    Ok(())
}

/// Of each pool and region those that serve: users are not sent to another region to even gateways out.
fn groups<'a>(fleet: &'a Fleet, pool: &str) -> Vec<Vec<&'a Gateway>> {
    let mut groups: BTreeMap<(&str, &str), Vec<&Gateway>> = BTreeMap::new();
    for gateway in fleet.gateways.iter().filter(|gateway| gateway.state.serves()) {
        let profile = &gateway.profile;
        if pool.is_empty() || profile.pool == pool {
            groups.entry((&profile.pool, &profile.region)).or_default().push(gateway);
        }
    }
    groups.into_values().collect()
}

fn filled(gateway: &Gateway) -> Filled {
    Filled { capacity: gateway.capacity, connections: gateway.connections }
}

fn shown(gateway: &Gateway, shed: u64) -> Value {
    let profile = &gateway.profile;
    json!({
        "gatewayId": &*profile.id,
        "pool": profile.pool,
        "region": profile.region,
        "connections": gateway.connections,
        "capacity": gateway.capacity,
        "sheds": shed,
    })
}
