//! From a request to what a client needs: it is located, decided on, given endpoints and a signed ticket, and counted.

use std::collections::BTreeMap;

use berth_proto::{schedule, wire::Ticket};
use rand::Rng;

use crate::{
    admission::{Owner, spread_ms},
    core::{Ask, Core, Wait},
    decide::{Decision, NoGateway, Request, decide},
    fleet::{Fleet, Place, Profile},
    locate::Claim,
    policy::Policy,
    redirect::always,
};

/// Where a user is sent.
pub(crate) struct Assigned {
    pub schedule_id: u64,
    pub endpoints: Vec<schedule::ScheduleEndpoint>,
    pub ticket: String,
    pub expires_at_ms: i64,
    pub decision: schedule::Decision,
    /// Over how long the clients of the first gateway should come back if it is lost, in milliseconds.
    pub spread_ms: u32,
}

/// Why a user is sent nowhere now.
#[derive(Debug)]
pub(crate) enum NotAssigned {
    NoGateway(NoGateway),
    Queued(Wait),
}

/// For whom, until when.
pub(crate) struct Terms<'a> {
    /// Transport names in the order the client wants them; empty: all, as the gateway lists them.
    pub transports: &'a [String],
    /// Round trips the client measured, by gateway id, in milliseconds.
    pub rtt_ms: &'a BTreeMap<String, u32>,
    /// The user's JWT ends then; the ticket does not outlive it. Milliseconds since the Unix epoch.
    pub auth_expires_at_ms: i64,
    /// The user's JWT was issued then; 0: it does not say.
    pub auth_issued_at_ms: i64,
    /// Milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// Whether it waits its turn.
    pub ask: Ask<'a>,
    /// The region of the gateway that it came to, if a gateway asks; may be empty.
    pub came_to: &'a str,
    /// It is told to come only after so many milliseconds: its place is kept so much longer.
    pub wait_ms: u32,
    /// It has a connection, and is told to leave that.
    pub moved: bool,
    /// Platform and app version as the client says them; the ticket carries them for the gateway's questions.
    pub runs: [&'a str; 2],
}

impl Core {
    /// Locates, decides, lets in, signs and counts. The request's region is the client's own hint.
    pub fn assign(&self, request: Request<'_>, terms: &Terms<'_>) -> Result<Assigned, NotAssigned> {
        let assigned = self.assign_if(request, terms, always)?;
        Ok(assigned.unwrap_or_else(|never| match never {}))
    }

    /// The same, unless `judge` says no to the decision: then nothing is signed and nothing counted.
    pub fn assign_if<E>(
        &self,
        request: Request<'_>,
        terms: &Terms<'_>,
        judge: impl FnOnce(&Fleet, &Policy, &Decision<'_>) -> Result<(), E>,
    ) -> Result<Result<Assigned, E>, NotAssigned> {
        let (fleet, policy) = (self.fleet.load(), self.policy.load());
        let now_ms = self.clock.monotonic_ms();
        let claim = Claim { came_to: terms.came_to, ..Claim::of(&request, terms.rtt_ms) };
        let located = self.locator.ask(&fleet, &policy, &claim, request.user_id, now_ms);
        let request = request.located(&located);
        let mut rng = rand::rng();
        let decision = decide(&fleet, &policy, &request, now_ms, &mut rng).map_err(NotAssigned::NoGateway)?;
        if let Err(no) = judge(&fleet, &policy, &decision) {
            return Ok(Err(no));
        }
        let owner = Owner { pool: decision.pool, user: request.user_id, device: request.client.device_id };
        self.admit(owner, terms.ask, terms.now_ms).map_err(NotAssigned::Queued)?;
        let Terms { wait_ms, moved, runs: [platform, app_version], .. } = *terms;
        let ranked = decision.ranked.as_slice();
        let schedule_id = rng.random();
        let lives_ms = self.ticket_ttl_ms + i64::from(wait_ms);
        let expires_at_ms = (terms.now_ms + lives_ms).min(terms.auth_expires_at_ms);
        let ticket = self.signer.sign(&Ticket {
            user_id: request.user_id.to_owned(),
            device_id: request.client.device_id.to_owned(),
            gateway_ids: ranked.iter().map(|index| fleet.gateway(*index).profile.id.to_string()).collect(),
            pool: decision.pool.to_owned(),
            home: decision.home.to_owned(),
            policy_version: decision.policy_version,
            expires_at_ms,
            auth_expires_at_ms: terms.auth_expires_at_ms,
            schedule_id,
            issued_at_ms: terms.now_ms,
            auth_issued_at_ms: terms.auth_issued_at_ms,
            elsewhere: decision.elsewhere,
            platform: platform.to_owned(),
            app_version: app_version.to_owned(),
        });
        if terms.ask != Ask::Renew {
            let (user_id, device_id) = (request.user_id, request.client.device_id);
            // What a gateway says of one that it sends on is not what that one could not reach.
            let failed = if terms.ask == Ask::SentOn { &[] } else { request.failed };
            let place = Place { gateway: ranked[0], user_id, device_id, schedule_id, wait_ms, moved, failed };
            self.assigned(&fleet, place);
        }
        self.metrics.decision(decision.pool, decision.reason);
        tracing::debug!(
            schedule_id = %format_args!("{schedule_id:016x}"),
            user = request.user_id,
            gateway = %fleet.gateway(ranked[0]).profile.id,
            pool = decision.pool,
            reason = decision.reason.as_str(),
            "assigned"
        );
        Ok(Ok(Assigned {
            schedule_id,
            endpoints: endpoints(&fleet, ranked, terms.transports),
            ticket,
            expires_at_ms,
            decision: describe(&decision),
            spread_ms: spread_ms(&fleet, ranked[0], self.spread_max_ms),
        }))
    }
}

/// A decision as clients are told it.
pub(crate) fn describe(decision: &Decision<'_>) -> schedule::Decision {
    schedule::Decision {
        policy_version: decision.policy_version,
        rule_id: decision.rule.map_or_else(String::new, |rule| rule.id.clone()),
        reason: decision.reason,
        pool: decision.pool.to_owned(),
    }
}

/// The endpoints of the gateways, best first, each gateway once per transport asked for.
pub(crate) fn endpoints(
    fleet: &Fleet,
    ranked: &[u32],
    transports: &[String],
) -> Vec<schedule::ScheduleEndpoint> {
    let profiles = ranked.iter().map(|index| &*fleet.gateway(*index).profile);
    profiles.flat_map(|profile| endpoints_of(profile, transports)).collect()
}

/// A client may name a transport twice and a gateway may offer two endpoints of one: each counts once, by the first.
fn endpoints_of(profile: &Profile, transports: &[String]) -> Vec<schedule::ScheduleEndpoint> {
    let asked: Vec<&String> = if transports.is_empty() {
        profile.endpoints.iter().map(|endpoint| &endpoint.transport).collect()
    } else {
        transports.iter().collect()
    };
    let first_of = |name: &String| profile.endpoints.iter().find(|endpoint| endpoint.transport == *name);
    let once = asked.iter().enumerate().filter(|(place, name)| !asked[..*place].contains(name));
    once.filter_map(|(_, name)| first_of(name)).cloned().map(Into::into).collect()
}
