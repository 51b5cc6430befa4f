//! Where a gateway's client belongs: one that strayed, one that is moved, or one that may be better off elsewhere.

use std::{collections::BTreeMap, convert::Infallible, net::IpAddr};

use berth_proto::{
    id,
    ticket::key_tag,
    wire::{MovePurpose, RedirectAnswer, RedirectAsk},
};
use tracing::debug;

use crate::{
    assign::{NotAssigned, Terms},
    core::{Ask, Core},
    decide::{Decision, NoGateway, Request, may_take},
    fleet::{Dimension, Fleet, Gateway, Profile},
    jwt::CLOCK_LEEWAY_MS,
    moving::plan::{Band, Filled},
    policy::{Client, Platform, Policy, STABLE, app_version},
    transport::Transports,
};

/// A gateway that uses so much of what handshakes take is sent nobody who has a connection elsewhere.
const BUSY: f64 = 0.9;

/// A gateway does not know what its clients measured.
static NOT_MEASURED: BTreeMap<String, u32> = BTreeMap::new();

/// Why a connection is not moved.
enum Unmoved {
    /// It is well where it is.
    Stays,
    /// Nobody should be moved now.
    Held(String),
}

/// Where the client belongs, with a fresh ticket; without endpoints when there is no such place, or it is to stay. It is
/// where its address says, or else taken to be near the gateway that it came to.
pub(crate) fn redirect(core: &Core, gateway_id: &str, ask: &RedirectAsk) -> RedirectAnswer {
    let nowhere = RedirectAnswer { handle: ask.handle, ..RedirectAnswer::default() };
    let now_ms = core.clock.wall_ms();
    if !may_be_sent_on(core, ask, now_ms) {
        // His own gateway closes one who is connected; the others there are not to wait for that.
        return RedirectAnswer { stay: connected(ask), ..nowhere };
    }
    let fleet = core.fleet.load();
    let here = fleet.find(gateway_id).map(|index| fleet.gateway(index));
    let transports: Vec<String> =
        Some(&ask.transport).filter(|name| !name.is_empty()).cloned().into_iter().collect();
    let leaves = [gateway_id.to_owned()];
    let request = request(ask, &transports, &leaves);
    let terms = Terms {
        transports: &transports,
        rtt_ms: &NOT_MEASURED,
        auth_expires_at_ms: ask.auth_expires_at_ms,
        auth_issued_at_ms: ask.auth_issued_at_ms,
        now_ms,
        ask: Ask::SentOn,
        came_to: here.map_or("", |gateway| &gateway.profile.region),
        wait_ms: ask.retry_after_ms,
        moved: connected(ask),
        runs: [&ask.platform, &ask.app_version],
    };
    let asked = request.clone();
    let judge = |fleet: &Fleet, policy: &Policy, decision: &Decision<'_>| {
        let unknown = |pool: &str| may_take(policy, &asked, pool);
        judge(core, fleet, decision, Where { here, unknown: &unknown }, ask)
    };
    match core.assign_if(request, &terms, judge) {
        Ok(Ok(assigned)) => RedirectAnswer {
            handle: ask.handle,
            endpoints: assigned.endpoints.into_iter().map(Into::into).collect(),
            ticket: assigned.ticket,
            ticket_expires_at_ms: assigned.expires_at_ms,
            ..RedirectAnswer::default()
        },
        Ok(Err(Unmoved::Stays)) => RedirectAnswer { stay: true, ..nowhere },
        Ok(Err(Unmoved::Held(hold))) => RedirectAnswer { hold, ..nowhere },
        // Who is sent on is not asked to wait.
        Err(NotAssigned::Queued(_)) => nowhere,
        Err(NotAssigned::NoGateway(error)) => {
            debug!(%error, "no redirect");
            match without_gateway(&fleet, gateway_id, ask.purpose(), &error) {
                None => nowhere,
                Some(Unmoved::Stays) => RedirectAnswer { stay: true, ..nowhere },
                Some(Unmoved::Held(hold)) => RedirectAnswer { hold, ..nowhere },
            }
        }
    }
}

/// Whether he may have a fresh ticket for what he came with.
fn may_be_sent_on(core: &Core, ask: &RedirectAsk, now_ms: i64) -> bool {
    let valid = id::check(&ask.user_id).is_ok() && id::check(&ask.device_id).is_ok();
    // A forged ticket must not become a genuine one of the key that comes after.
    let void = core.void_ticket_keys.iter().any(|key| key_tag(key) == ask.ticket_key);
    // No token says so (see `jwt`), so no scheduler signed that; and it would outlive every revocation.
    let from_the_future = ask.auth_issued_at_ms > now_ms.saturating_add(CLOCK_LEEWAY_MS);
    let revoked = || core.check_revoked(&ask.user_id, &ask.device_id, ask.auth_issued_at_ms).is_err();
    valid && !void && !from_the_future && ask.auth_expires_at_ms > now_ms && !revoked()
}

/// Whether the client has a connection at its gateway.
fn connected(ask: &RedirectAsk) -> bool {
    matches!(ask.purpose(), MovePurpose::Drain | MovePurpose::Rebalance | MovePurpose::Sweep)
}

/// The question as the decision wants it, before the client is located. `leaves`: the gateway that asks.
fn request<'a>(ask: &'a RedirectAsk, transports: &[String], leaves: &'a [String]) -> Request<'a> {
    Request {
        user_id: &ask.user_id,
        client: Client {
            platform: Platform::named(&ask.platform),
            app_version: app_version(&ask.app_version),
            ip: ask.client_ip.parse().ok().map(|ip: IpAddr| ip.to_canonical()),
            region: "",
            origin: "",
            zone: "",
            device_id: &ask.device_id,
        },
        transports: transports
            .first()
            .map_or(Transports::ALL, |name| Transports::named(name).unwrap_or_default()),
        failed: if matches!(ask.purpose(), MovePurpose::Drain | MovePurpose::Rebalance) {
            leaves
        } else {
            &[]
        },
        near: &[],
        pool: Some(ask.pool.as_str()).filter(|pool| !pool.is_empty()),
    }
}

/// What becomes of a client that no gateway can take; none: it is sent nowhere.
fn without_gateway(
    fleet: &Fleet,
    gateway_id: &str,
    purpose: MovePurpose,
    error: &NoGateway,
) -> Option<Unmoved> {
    match purpose {
        // He would have to wait for his home; here he is served until the deadline.
        MovePurpose::Drain if !error.home.is_empty() => Some(Unmoved::Stays),
        // It is his transport alone: the others are not to wait for him, who is asked about again.
        MovePurpose::Drain if others_can_go(fleet, gateway_id, &error.pool) => Some(Unmoved::Stays),
        MovePurpose::Drain => Some(Unmoved::Held(error.to_string())),
        MovePurpose::Rebalance | MovePurpose::Sweep => Some(Unmoved::Stays),
        MovePurpose::Stray | MovePurpose::Home => None,
    }
}

/// Whether a client of any transport could go from that gateway to another one of the pool, or of `stable`.
fn others_can_go(fleet: &Fleet, gateway_id: &str, pool: &str) -> bool {
    let mut assignable = fleet.candidates.iter().map(|index| fleet.gateway(*index));
    assignable.any(|gateway| {
        let Profile { id, pool: of, .. } = &*gateway.profile;
        **id != *gateway_id && (*of == *pool || *of == STABLE) && gateway.has_room()
    })
}

/// Where a client is now.
struct Where<'a> {
    here: Option<&'a Gateway>,
    /// Whether he may be in that pool by what is not known of him here.
    unknown: &'a dyn Fn(&str) -> bool,
}

fn judge(
    core: &Core,
    fleet: &Fleet,
    decision: &Decision<'_>,
    Where { here, unknown }: Where<'_>,
    ask: &RedirectAsk,
) -> Result<(), Unmoved> {
    let first = decision.ranked.as_slice()[0];
    let there = fleet.gateway(first);
    match ask.purpose() {
        MovePurpose::Stray => return Ok(()),
        MovePurpose::Home | MovePurpose::Sweep => {
            if here.is_some_and(|here| belongs(decision, &here.profile, unknown)) {
                return Err(Unmoved::Stays);
            }
        }
        MovePurpose::Rebalance => {
            let within = f64::from(ask.within_permille) / 1_000.0;
            if here.is_none_or(|here| !has_more_room(fleet, there, here, within)) {
                return Err(Unmoved::Stays);
            }
        }
        MovePurpose::Drain => {
            if here.is_some_and(|here| here.profile.id == there.profile.id) {
                return Err(Unmoved::Held("no other gateway can take them".to_owned()));
            }
        }
    }
    if ask.purpose() == MovePurpose::Home {
        return Ok(());
    }
    if let Some(reason) = core.moving.hold() {
        return Err(Unmoved::Held(reason));
    }
    if let Some((what, used)) = busy(fleet, first) {
        let used = used * 100.0;
        let reason = format!("{} is at {used:.0}% of {what} that it can stand", there.profile.id);
        return Err(Unmoved::Held(reason));
    }
    core.moving.strained(&there.profile.id).map_or(Ok(()), |reason| Err(Unmoved::Held(reason)))
}

/// What makes handshakes slow at a gateway, and how much of it is used, when that is near the end.
fn busy(fleet: &Fleet, gateway: u32) -> Option<(&'static str, f64)> {
    fleet.usages[gateway as usize].measures().find_map(|(dimension, measure)| {
        let what = match dimension {
            Dimension::Handshakes => "the handshakes a second",
            Dimension::LoopLag => "the loop lag",
            _ => return None,
        };
        measure.utilisation().filter(|used| *used >= BUSY).map(|used| (what, used))
    })
}

/// Whether the user is in the pool and, as far as that can be, the region that are his.
fn belongs(decision: &Decision<'_>, here: &Profile, unknown: &dyn Fn(&str) -> bool) -> bool {
    let wanted = decision.rule.map_or(STABLE, |rule| &rule.pool);
    // Where the pool has no room, whoever is in it stays, and so does whoever would only be sent back.
    let in_pool = here.pool == wanted || here.pool == decision.pool || unknown(&here.pool);
    let at_home = decision.home.is_empty() || here.region == decision.home || decision.elsewhere;
    in_pool && at_home
}

/// Whether a rebalance may send somebody from here to there.
fn has_more_room(fleet: &Fleet, there: &Gateway, here: &Gateway, within: f64) -> bool {
    let place = |gateway: &Gateway| (gateway.profile.pool.clone(), gateway.profile.region.clone());
    if there.profile.id == here.profile.id || place(there) != place(here) {
        return false;
    }
    // Whoever is on his way is there already.
    let on_the_way = |gateway: &Gateway| gateway.connections + gateway.pending();
    let filled = |gateway: &Gateway| Filled { capacity: gateway.capacity, connections: on_the_way(gateway) };
    let group =
        fleet.gateways.iter().filter(|gateway| gateway.state.serves() && place(gateway) == place(here));
    let most = Band::around(group.map(filled), within).most(there.capacity);
    on_the_way(there) < most
}

/// What decides nothing.
pub(crate) fn always(_: &Fleet, _: &Policy, _: &Decision<'_>) -> Result<(), Infallible> {
    Ok(())
}

#[cfg(test)]
mod tests;
