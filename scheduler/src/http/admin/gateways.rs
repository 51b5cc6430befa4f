//! `GET /admin/v1/gateways`: the fleet as this scheduler sees it.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    core::Core,
    fleet::{Fleet, Gateway},
};

/// A gateway as operators are told of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    gateway_id: &'a str,
    pool: &'a str,
    region: &'a str,
    zone: &'a str,
    version: &'a str,
    state: &'static str,
    connections: u64,
    capacity: u64,
    /// Assigned by this scheduler, and not seen by the gateway yet.
    pending: u64,
    /// What decides its load.
    decided_by: &'static str,
    /// Since its last report.
    silent_ms: i64,
}

pub(super) fn list(core: &Core) -> Value {
    let fleet = core.fleet.load();
    let now_ms = core.clock.monotonic_ms();
    let gateways = (0..).zip(&fleet.gateways).map(|(index, gateway)| shown(&fleet, index, gateway, now_ms));
    json!({ "gateways": gateways.collect::<Vec<_>>() })
}

fn shown<'a>(fleet: &Fleet, index: u32, gateway: &'a Gateway, now_ms: i64) -> Shown<'a> {
    let profile = &gateway.profile;
    Shown {
        gateway_id: &profile.id,
        pool: &profile.pool,
        region: &profile.region,
        zone: &profile.zone,
        version: &profile.version,
        state: gateway.state.name(),
        connections: gateway.connections,
        capacity: gateway.capacity,
        pending: gateway.pending(),
        decided_by: fleet.decides(index).name(),
        silent_ms: (now_ms - gateway.reported_at_ms).max(0),
    }
}
