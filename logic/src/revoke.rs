//! Revoking what a user identified himself with: durable first, then told to every gateway, which closes who is connected with it.
//! Whoever opens a session later is asked of the store ([`check`]).

use std::time::Duration;

use berth_proto::{
    carry, client,
    code::{CloseCode, ErrorCode},
    wire::{self, Carried, OpenSession, to_gateway::Message as Down},
};

use crate::{
    context::Context,
    gateways::Downs,
    routes::{GatewayKey, Route},
    store::{CARRIED_MS, Revocation, StoreError},
};

/// Longest list of revocations in one message, in records of some 100 bytes.
const TOLD_AT_ONCE: usize = 1_000;

/// What a revocation did.
pub(crate) struct Revoked {
    /// What was issued earlier is void.
    pub(crate) not_before_ms: i64,
    /// Sessions that a gateway was told to close.
    pub(crate) closed: usize,
}

/// Revokes what was issued to a user, or to one of his devices, before `not_before_ms`; without that: before now. When this
/// returns it is on disk and every gateway that is linked was told.
///
/// Tokens say in whole seconds when they were issued. So without a time the moment is the next whole second, and this returns when it
/// has come: who signs in after the answer is welcome, and who signed in before the question is not.
///
/// # Errors
/// UNAVAILABLE: it may be in force and may not; the same again mends it.
pub(crate) async fn revoke(
    context: &Context,
    (user, device): (&str, &str),
    not_before_ms: Option<i64>,
    reason: &str,
) -> Result<Revoked, client::Error> {
    let now_ms = context.now();
    let next_second_ms = now_ms.saturating_add(999).div_euclid(1_000).saturating_mul(1_000);
    let revocation = Revocation {
        user: user.to_owned(),
        device: device.to_owned(),
        not_before_ms: not_before_ms.unwrap_or(next_second_ms),
        reason: reason.to_owned(),
        changed_ms: now_ms,
    };
    let there = context.store.revoke(revocation).await.map_err(|error| context.store_error(&error))?;
    context.sync_store().await.map_err(|error| context.store_error(&error))?;
    context.metrics.revocations.increment(1);
    let routes = context.routes.lookup(&[user.to_owned()]).await;
    let routes = routes.map_err(|error| context.routes_error(&error))?.concat();
    let told = tell(context, &[there.carried()]);
    let closed = routes.iter().filter(|route| voids(&there, route) && told.contains(&route.gateway)).count();
    if not_before_ms.is_none() {
        let rest_ms = next_second_ms.saturating_sub(context.now()).clamp(0, 1_000);
        tokio::time::sleep(Duration::from_millis(rest_ms.unsigned_abs())).await;
    }
    Ok(Revoked { not_before_ms: there.not_before_ms, closed })
}

/// Takes back what was revoked of a user: of one device, or everything. How many there were.
///
/// # Errors
/// As [`revoke`].
pub(crate) async fn restore(
    context: &Context,
    user: &str,
    device: Option<&str>,
) -> Result<usize, client::Error> {
    let restored = context.store.restore(user, device, context.now()).await;
    let restored = restored.map_err(|error| context.store_error(&error))?;
    context.sync_store().await.map_err(|error| context.store_error(&error))?;
    let records: Vec<_> = restored.iter().map(Revocation::carried).collect();
    tell(context, &records);
    Ok(restored.len())
}

fn voids(revocation: &Revocation, route: &Route) -> bool {
    let theirs = revocation.device.is_empty() || revocation.device == route.device;
    theirs && route.auth_issued_at_ms < revocation.not_before_ms
}

/// Tells every gateway; which ones took it.
fn tell(context: &Context, records: &[wire::CarriedRecord]) -> Vec<GatewayKey> {
    let told = |gateway: &GatewayKey| {
        let mut downs = Downs::default();
        push(gateway, records, &mut downs);
        downs.flush(&context.gateways) == 0
    };
    context.gateways.attached().into_iter().filter(told).collect()
}

fn push(gateway: &GatewayKey, records: &[wire::CarriedRecord], downs: &mut Downs) {
    for records in records.chunks(TOLD_AT_ONCE) {
        downs.push(gateway, Down::Revoked(Carried { records: records.to_vec(), whole: 0 }));
    }
}

/// Tells a gateway that attached what was revoked lately: it may have missed some, or be new.
///
/// # Errors
/// When the store cannot be read: it learns of them by the schedulers, and the store is asked at each opening.
pub(crate) async fn tell_recent(
    context: &Context,
    gateway: &GatewayKey,
    downs: &mut Downs,
) -> Result<(), StoreError> {
    let since_ms = context.now().saturating_sub(CARRIED_MS);
    let recent = context.store.recent_revocations(since_ms, carry::RECORDS_EACH).await?;
    let records: Vec<_> = recent.iter().map(Revocation::carried).collect();
    push(gateway, &records, downs);
    Ok(())
}

/// A session that a gateway wants opened.
type Opening = (GatewayKey, OpenSession);

/// Those of some openings whose credentials are good; the others are answered.
pub(crate) async fn check(context: &Context, openings: Vec<Opening>, downs: &mut Downs) -> Vec<Opening> {
    let who: Vec<_> =
        openings.iter().map(|(_, open)| (open.user_id.as_str(), open.device_id.as_str())).collect();
    let found = context.store.revoked(&who).await;
    let mut good = Vec::with_capacity(openings.len());
    for ((gateway, open), found) in openings.into_iter().zip(found) {
        let (error, code) = match found {
            Ok(Some(revoked)) if open.auth_issued_at_ms < revoked.not_before_ms => {
                context.metrics.sessions_revoked.increment(1);
                (refusal(&revoked), CloseCode::Unauthenticated)
            }
            Ok(_) => {
                good.push((gateway, open));
                continue;
            }
            Err(error) => (context.store_error(&error), CloseCode::Internal),
        };
        let close_code = code.number().into();
        let answer =
            wire::SessionOpened { handle: open.handle, error: Some(error), close_code, ..Default::default() };
        downs.push(&gateway, Down::Opened(answer));
    }
    good
}

fn refusal(revoked: &Revocation) -> client::Error {
    let because = if revoked.reason.is_empty() { String::new() } else { format!(": {}", revoked.reason) };
    ErrorCode::Unauthenticated.error(format!("the sign-in was revoked{because}"))
}
