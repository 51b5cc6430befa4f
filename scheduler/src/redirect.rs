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
    decide::{Decision, MAX_FAILED, NoGateway, Request, may_take},
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

/// How often it is decided for one question: one gateway after the other may be found busy.
const TRIES: usize = 4;

/// Why a connection is not moved.
enum Unmoved {
    /// It is well where it is.
    Stays,
    /// Nobody should be moved now.
    Held(String),
    /// Nobody should be moved to that gateway now; another one like it may do.
    Spared(Spared),
}

impl Unmoved {
    fn answer(self, handle: u64) -> RedirectAnswer {
        let nowhere = RedirectAnswer { handle, ..RedirectAnswer::default() };
        match self {
            Self::Stays => RedirectAnswer { stay: true, ..nowhere },
            Self::Held(hold) | Self::Spared(Spared { reason: hold, .. }) => {
                RedirectAnswer { hold, ..nowhere }
            }
        }
    }
}

/// A gateway that a connection would be moved to, were it not for how that one is.
struct Spared {
    gateway_id: String,
    reason: String,
    pool: String,
    region: String,
    elsewhere: bool,
}

impl Spared {
    /// Whether that decision, made anew, is as good: for one gateway's sake nobody is moved to another pool or region, or out of his
    /// home. A short trouble is waited for.
    fn alike(&self, decision: &Decision<'_>, there: &Gateway) -> bool {
        *decision.pool == self.pool
            && there.profile.region == self.region
            && decision.elsewhere == self.elsewhere
    }
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
    let place = |failed: &[String], spared: Option<&Spared>| {
        let request = request(ask, &transports, failed);
        let asked = request.clone();
        core.assign_if(request, &terms, |fleet, policy, decision| {
            let unknown = |pool: &str| may_take(policy, &asked, pool);
            let anew = spared.map(|spared| Anew { spared, failed });
            judge(core, fleet, decision, Where { here, unknown: &unknown, anew }, ask)
        })
    };
    let goes_away = matches!(ask.purpose(), MovePurpose::Drain | MovePurpose::Rebalance);
    match spare(core, if goes_away { &leaves } else { &[] }, place) {
        Ok(Ok(assigned)) => RedirectAnswer {
            handle: ask.handle,
            endpoints: assigned.endpoints.into_iter().map(Into::into).collect(),
            ticket: assigned.ticket,
            ticket_expires_at_ms: assigned.expires_at_ms,
            ..RedirectAnswer::default()
        },
        Ok(Err(unmoved)) => unmoved.answer(ask.handle),
        // Who is sent on is not asked to wait.
        Err(NotAssigned::Queued(_)) => nowhere,
        Err(NotAssigned::NoGateway(error)) => {
            debug!(%error, "no redirect");
            let unmoved = without_gateway(&fleet, gateway_id, ask.purpose(), &error);
            unmoved.map_or(nowhere, |unmoved| unmoved.answer(ask.handle))
        }
    }
}

/// Places the client; as long as a gateway comes first that is to be spared, anew as if he had failed there. One sick gateway is
/// often the emptiest, and would hold everybody for whom others have room.
fn spare<T>(
    core: &Core,
    leaves: &[String],
    place: impl Fn(&[String], Option<&Spared>) -> Result<Result<T, Unmoved>, NotAssigned>,
) -> Result<Result<T, Unmoved>, NotAssigned> {
    let mut placed = place(leaves, None);
    let mut failed = leaves.to_vec();
    let mut first = None;
    for _ in 1..TRIES {
        let Ok(Err(Unmoved::Spared(spared))) = placed else { return placed };
        if first.is_none() {
            failed.extend(core.moving.some_strained(MAX_FAILED));
        }
        // Before those, of which only so many count.
        failed.insert(leaves.len(), spared.gateway_id.clone());
        placed = place(&failed, Some(first.get_or_insert(spared)));
    }
    placed
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

/// The question as the decision wants it, before the client is located. `failed`: the gateways that are the last to be chosen.
fn request<'a>(ask: &'a RedirectAsk, transports: &[String], failed: &'a [String]) -> Request<'a> {
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
        failed,
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
    /// This decision is not the first for him.
    anew: Option<Anew<'a>>,
}

/// A decision made anew, to spare a gateway.
struct Anew<'a> {
    /// The first that is spared.
    spared: &'a Spared,
    /// The gateways that are the last to be chosen.
    failed: &'a [String],
}

impl Anew<'_> {
    /// Whether that gateway is one that nobody should be moved to.
    fn avoids(&self, gateway: &Gateway) -> bool {
        self.failed.iter().any(|id| **id == *gateway.profile.id)
    }

    /// Nobody should be moved: the first one says why.
    fn held(&self) -> Unmoved {
        Unmoved::Held(self.spared.reason.clone())
    }
}

fn judge(
    core: &Core,
    fleet: &Fleet,
    decision: &Decision<'_>,
    Where { here, unknown, anew }: Where<'_>,
    ask: &RedirectAsk,
) -> Result<(), Unmoved> {
    let first = decision.ranked.as_slice()[0];
    let there = fleet.gateway(first);
    if let Some(anew) = &anew
        && (!anew.spared.alike(decision, there) || anew.avoids(there))
    {
        return Err(anew.held());
    }
    match ask.purpose() {
        MovePurpose::Stray => return Ok(()),
        MovePurpose::Home | MovePurpose::Sweep => {
            if here.is_some_and(|here| belongs(decision, &here.profile, unknown)) {
                return Err(Unmoved::Stays);
            }
            // Its questions come before its first report is in a snapshot: who is where nobody knows belongs nowhere else yet.
            match ask.purpose() {
                MovePurpose::Home if here.is_none() => return Err(Unmoved::Stays),
                _ if here.is_none() => {
                    return Err(Unmoved::Held("the scheduler does not know this gateway yet".to_owned()));
                }
                _ => {}
            }
        }
        MovePurpose::Rebalance => {
            let Some(here) = here else { return Err(Unmoved::Stays) };
            evens_out(core, fleet, [there, here], anew.as_ref(), ask)?;
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
    let bad = busy(fleet, first).map(|(what, used)| {
        let used = used * 100.0;
        format!("{} is at {used:.0}% of {what} that it can stand", there.profile.id)
    });
    bad.or_else(|| core.moving.strained(&there.profile.id)).map_or(Ok(()), |reason| {
        Err(Unmoved::Spared(Spared {
            gateway_id: there.profile.id.to_string(),
            reason,
            pool: decision.pool.to_owned(),
            region: there.profile.region.to_string(),
            elsewhere: decision.elsewhere,
        }))
    })
}

/// Whether a rebalance sends him there.
fn evens_out(
    core: &Core,
    fleet: &Fleet,
    [there, here]: [&Gateway; 2],
    anew: Option<&Anew<'_>>,
    ask: &RedirectAsk,
) -> Result<(), Unmoved> {
    let may_have_more = may_have_more(fleet, here, f64::from(ask.within_permille) / 1_000.0);
    if may_have_more(there) {
        return Ok(());
    }
    let others = || {
        fleet.candidates.iter().any(|index| {
            let gateway = fleet.gateway(*index);
            let well =
                || busy(fleet, *index).is_none() && core.moving.strained(&gateway.profile.id).is_none();
            may_have_more(gateway) && well()
        })
    };
    match anew {
        // Only the spared ones lack connections: that is to be seen, and not an end of it.
        Some(anew) if !others() => Err(anew.held()),
        _ => Err(Unmoved::Stays),
    }
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

/// To which gateways a rebalance may send somebody from here.
fn may_have_more<'a>(fleet: &'a Fleet, here: &'a Gateway, within: f64) -> impl Fn(&Gateway) -> bool + 'a {
    let place = |gateway: &Gateway| (gateway.profile.pool.clone(), gateway.profile.region.clone());
    // Whoever is on his way is there already.
    let on_the_way = |gateway: &Gateway| gateway.connections + gateway.pending();
    let filled = |gateway: &Gateway| Filled { capacity: gateway.capacity, connections: on_the_way(gateway) };
    let group =
        fleet.gateways.iter().filter(|gateway| gateway.state.serves() && place(gateway) == place(here));
    let band = Band::around(group.map(filled), within);
    move |there| {
        let other = there.profile.id != here.profile.id && place(there) == place(here);
        other && on_the_way(there) < band.most(there.capacity)
    }
}

/// What decides nothing.
pub(crate) fn always(_: &Fleet, _: &Policy, _: &Decision<'_>) -> Result<(), Infallible> {
    Ok(())
}

#[cfg(test)]
mod tests;
