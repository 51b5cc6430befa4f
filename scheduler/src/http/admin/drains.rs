//! `/admin/v1/drains`: emptying gateways. What is ordered here is carried: by every gateway, scheduler and data directory.

use std::collections::BTreeMap;

use berth_proto::{
    carry::Record,
    id,
    wire::{Drain, MoveProgress, MovePurpose},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Asked, Refusal, policy::kept};
use crate::{
    core::Core,
    decide::{Request, decide},
    fleet::{Fleet, Gateway},
    policy::Client,
    transport::Transports,
};

/// The fastest, in connections a second.
pub(super) const FASTEST: u32 = 10_000;

/// The longest spread, in milliseconds: clients wait no longer than that, whatever they are told.
pub(super) const LONGEST_SPREAD_MS: u32 = 5 * 60 * 1_000;

/// The longest deadline, in milliseconds: a week.
const LONGEST_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// Decisions that a dry run asks for; what they say is scaled to the gateway's connections.
const SAMPLE: u64 = 1_000;

/// Ids named to somebody who named one that is not known.
const NAMED: usize = 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Start {
    rate_per_second: u32,
    spread_ms: u32,
    deadline_ms: u64,
    wait_lb_ms: u32,
    #[serde(default)]
    to_pool: String,
    #[serde(default)]
    by: String,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stop {
    #[serde(default)]
    by: String,
}

/// A drain as operators are told of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    gateway_id: String,
    /// `told`: the gateway has not taken it up yet; `absent`: the gateway is not known; else as the gateway says.
    phase: String,
    /// Why it is paused.
    reason: String,
    /// Connections that are still there.
    left: u64,
    /// Told where a place is kept for them.
    moved: u64,
    /// Told to go without a place.
    failed: u64,
    rate_per_second: u32,
    spread_ms: u32,
    wait_lb_ms: u32,
    to_pool: String,
    by: String,
    started_at_ms: i64,
    deadline_at_ms: i64,
    /// Until the deadline; 0: it has passed.
    deadline_in_ms: i64,
    /// Until everybody was told, at that rate; none: it is paused, or the gateway is not heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_ms: Option<i64>,
}

pub(super) async fn start(core: &Core, asked: &Asked) -> Result<Value, Refusal> {
    let gateway_id = asked.parameter("gatewayId").to_owned();
    let order: Start = asked.json()?;
    let fleet = core.fleet.load();
    check(&order, &fleet)?;
    let gateway = known(&fleet, &gateway_id)?;
    let before = core.drains().into_iter().find(|(_, drain)| drain.gateway_id == gateway_id);
    if let Some((_, drain)) = before.as_ref().filter(|(_, drain)| drain.active) {
        let problem = format!(
            "gateway {gateway_id:?} is being drained already, since {} by {:?}; stop that first",
            drain.started_at_ms, drain.by
        );
        return Err(Refusal::Conflict(problem));
    }
    if order.dry_run {
        return Ok(dry_run(core, &fleet, gateway, &order));
    }
    let now_ms = core.clock.wall_ms();
    let drain = Drain {
        gateway_id,
        active: true,
        rate_per_second: order.rate_per_second,
        spread_ms: order.spread_ms,
        started_at_ms: now_ms,
        deadline_ms: now_ms.saturating_add_unsigned(order.deadline_ms),
        wait_lb_ms: order.wait_lb_ms,
        to_pool: order.to_pool,
        by: order.by,
    };
    tracing::info!(gateway = drain.gateway_id, by = drain.by, "an operator drains a gateway");
    let version = version_after(before, now_ms);
    let on_disk = kept(core, vec![Record::Drain(drain.clone()).carried(version, 0)]).await?;
    Ok(json!({ "drain": shown(core, version, drain), "onDisk": on_disk }))
}

pub(super) async fn stop(core: &Core, asked: &Asked) -> Result<Value, Refusal> {
    let gateway_id = asked.parameter("gatewayId");
    let Stop { by } = asked.json()?;
    named(&by)?;
    let drains = core.drains();
    let active: Vec<&str> =
        drains.iter().filter(|(_, drain)| drain.active).map(|(_, drain)| drain.gateway_id.as_str()).collect();
    let before = drains.iter().find(|(_, drain)| drain.active && drain.gateway_id == gateway_id).cloned();
    let Some((version, drain)) = before else {
        let these = if active.is_empty() {
            "none is".to_owned()
        } else {
            format!("these are: {}", active.join(", "))
        };
        return Err(Refusal::NotFound(format!("drain of gateway {gateway_id:?}; {these}, drained gateways")));
    };
    let stopped = Drain { active: false, by, ..drain };
    tracing::info!(gateway = stopped.gateway_id, by = stopped.by, "an operator lets a gateway serve again");
    let version = version_after(Some((version, stopped.clone())), core.clock.wall_ms());
    let on_disk = kept(core, vec![Record::Drain(stopped).carried(version, 0)]).await?;
    Ok(json!({ "gatewayId": gateway_id, "onDisk": on_disk }))
}

pub(super) fn list(core: &Core) -> Value {
    let active = core.drains().into_iter().filter(|(_, drain)| drain.active);
    let shown: Vec<_> = active.map(|(version, drain)| shown(core, version, drain)).collect();
    json!({ "drains": shown })
}

/// Who says so, if he says who he is: it is carried, and shown to the others.
fn named(by: &str) -> Result<(), Refusal> {
    if by.is_empty() || id::check(by).is_ok() {
        return Ok(());
    }
    Err(Refusal::InvalidArgument(format!("by {by:?} is no name of the form of an id")))
}

fn check(order: &Start, fleet: &Fleet) -> Result<(), Refusal> {
    let wrong = |problem: String| Err(Refusal::InvalidArgument(problem));
    if !(1..=FASTEST).contains(&order.rate_per_second) {
        return wrong(format!("ratePerSecond {} is not between 1 and {FASTEST}", order.rate_per_second));
    }
    if order.spread_ms > LONGEST_SPREAD_MS {
        return wrong(format!("spreadMs {} is above {LONGEST_SPREAD_MS}", order.spread_ms));
    }
    if order.deadline_ms > LONGEST_MS || order.deadline_ms <= order.wait_lb_ms.into() {
        let (deadline, wait) = (order.deadline_ms, order.wait_lb_ms);
        return wrong(format!("deadlineMs {deadline} is not above waitLbMs {wait} and at most {LONGEST_MS}"));
    }
    named(&order.by)?;
    let pool = fleet.pool(&order.to_pool);
    if !order.to_pool.is_empty() && pool.is_none_or(|pool| pool.is_empty()) {
        return wrong(format!("toPool {:?} has no gateway that can take a connection", order.to_pool));
    }
    Ok(())
}

fn known<'a>(fleet: &'a Fleet, gateway_id: &str) -> Result<&'a Gateway, Refusal> {
    if let Some(index) = fleet.find(gateway_id) {
        return Ok(fleet.gateway(index));
    }
    let mut ids: Vec<&str> =
        fleet.gateways.iter().map(|gateway| &*gateway.profile.id).take(NAMED + 1).collect();
    if ids.len() > NAMED {
        ids[NAMED] = "…";
    }
    Err(Refusal::NotFound(format!("gateway {gateway_id:?}; known are: {}", ids.join(", "))))
}

/// By the clock, and above what is known whatever the clock says.
fn version_after(before: Option<(u64, Drain)>, now_ms: i64) -> u64 {
    before.map_or(0, |(version, _)| version + 1).max(now_ms.max(0).unsigned_abs())
}

fn shown(core: &Core, version: u64, drain: Drain) -> Shown {
    let fleet = core.fleet.load();
    let now_ms = core.clock.wall_ms();
    let progress = core.moving.progress(&fleet).remove(&drain.gateway_id).unwrap_or_default();
    let ours =
        |progress: &MoveProgress| (progress.purpose(), progress.order) == (MovePurpose::Drain, version);
    let found = fleet.find(&drain.gateway_id).map(|index| fleet.gateway(index));
    let left = found.map_or(0, |gateway| gateway.connections);
    let progress = progress.into_iter().find(ours).unwrap_or_else(|| MoveProgress {
        phase: if found.is_some() { "told" } else { "absent" }.to_owned(),
        left,
        ..MoveProgress::default()
    });
    Shown {
        eta_ms: eta_ms(&drain, &progress, now_ms),
        gateway_id: drain.gateway_id,
        phase: progress.phase,
        reason: progress.reason,
        left: progress.left,
        moved: progress.moved,
        failed: progress.unplaced,
        rate_per_second: drain.rate_per_second,
        spread_ms: drain.spread_ms,
        wait_lb_ms: drain.wait_lb_ms,
        to_pool: drain.to_pool,
        by: drain.by,
        started_at_ms: drain.started_at_ms,
        deadline_at_ms: drain.deadline_ms,
        deadline_in_ms: (drain.deadline_ms - now_ms).max(0),
    }
}

/// What is left to be told at the rate, after the wait for load balancers; the deadline at the latest.
fn eta_ms(drain: &Drain, progress: &MoveProgress, now_ms: i64) -> Option<i64> {
    let wait_ms = (drain.started_at_ms + i64::from(drain.wait_lb_ms) - now_ms).max(0);
    let moving_ms = i64::try_from(progress.left * 1_000 / u64::from(drain.rate_per_second.max(1))).ok()?;
    match progress.phase.as_str() {
        "wait_lb" | "moving" => Some((wait_ms + moving_ms).min((drain.deadline_ms - now_ms).max(0))),
        "overdue" | "done" => Some(0),
        _ => None,
    }
}

/// Where its connections would go, told by deciding for a sample of made-up users near it; nothing is counted or kept.
fn dry_run(core: &Core, fleet: &Fleet, gateway: &Gateway, order: &Start) -> Value {
    let profile = &gateway.profile;
    let leaves = [profile.id.to_string()];
    let (policy, now_ms) = (core.policy.load(), core.clock.monotonic_ms());
    let (connections, sample) = (gateway.connections, gateway.connections.min(SAMPLE));
    let mut to: BTreeMap<&str, u64> = BTreeMap::new();
    for number in 0..sample {
        let user_id = format!("drained-{number}");
        let own_pool = if order.to_pool.is_empty() { &profile.pool } else { &order.to_pool };
        let request = Request {
            user_id: &user_id,
            client: Client { region: &profile.region, device_id: "d", ..Client::default() },
            transports: Transports::ALL,
            failed: &leaves,
            near: &[],
            pool: Some(own_pool),
        };
        if let Ok(decision) = decide(fleet, &policy, &request, now_ms, &mut rand::rng()) {
            let first = &fleet.gateway(decision.ranked.as_slice()[0]).profile.id;
            // Nothing else could be had.
            if *first != profile.id {
                *to.entry(first).or_default() += 1;
            }
        }
    }
    let scaled = |count: u64| count * connections / sample.max(1);
    let room = |id: &str| {
        let found = fleet.find(id).map(|index| fleet.gateway(index));
        found.map_or(0, |gateway| gateway.capacity.saturating_sub(gateway.connections + gateway.pending()))
    };
    let moving_ms = connections * 1_000 / u64::from(order.rate_per_second);
    let placed: u64 = to.values().sum();
    let targets: Vec<Value> = to
        .iter()
        .map(|(id, count)| json!({ "gatewayId": id, "connections": scaled(*count), "room": room(id) }))
        .collect();
    json!({ "dryRun": {
        "gatewayId": &*profile.id,
        "connections": connections,
        "waitLbMs": order.wait_lb_ms,
        "movingMs": moving_ms,
        "withinDeadline": moving_ms + u64::from(order.wait_lb_ms) <= order.deadline_ms,
        "toldAtDeadline": connections.saturating_sub(
            (order.deadline_ms - u64::from(order.wait_lb_ms)) * u64::from(order.rate_per_second) / 1_000,
        ),
        "to": targets,
        "withoutPlace": scaled(sample - placed),
    } })
}
