//! Revoking what a user identified himself with: durable first, then told to every gateway, which closes who is connected with it.
//! Whoever opens a session later is asked of the store ([`check`]).

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use berth_proto::{
    carry, client,
    code::{CloseCode, ErrorCode},
    wire::{self, Carried, OpenSession, to_gateway::Message as Down},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    gateways::Downs,
    routes::{GatewayKey, Route},
    store::{CARRIED_MS, Revocation, StoreError},
};

/// Longest list of revocations in one message, in records of some 100 bytes.
const TOLD_AT_ONCE: usize = 1_000;

/// What was read of the store for one gateway serves others for so long.
const RECENT: Duration = Duration::from_secs(10);

/// After the store could not be read it is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// What a revocation did.
pub(crate) struct Revoked {
    /// What was issued earlier is void.
    pub(crate) not_before_ms: i64,
    /// Sessions that a gateway was told to close.
    pub(crate) closed: usize,
}

/// Revokes what was issued to a user, or to one of his devices, before `not_before_ms`; without that: before now. When this
/// returns it is on disk and every gateway that is linked was told. It is done whole even if nobody waits for the answer any more.
///
/// Tokens say in whole seconds when they were issued. So without a time the moment is the next whole second, and this returns when it
/// has come: who signs in after the answer is welcome, and who signed in before the question is not.
///
/// # Errors
/// UNAVAILABLE: it may be in force and may not; the same again mends it.
pub(crate) async fn revoke(
    context: &Arc<Context>,
    (user, device): (&str, &str),
    not_before_ms: Option<i64>,
    reason: &str,
) -> Result<Revoked, client::Error> {
    let now_ms = context.now();
    let next_second_ms = now_ms.div_euclid(1_000).saturating_add(1).saturating_mul(1_000);
    let revocation = Revocation {
        user: user.to_owned(),
        device: device.to_owned(),
        not_before_ms: not_before_ms.unwrap_or(next_second_ms),
        reason: reason.to_owned(),
        changed_ms: now_ms,
    };
    let revoked = whole(context, put_in_force(Arc::clone(context), revocation)).await?;
    if not_before_ms.is_none() {
        let rest_ms = next_second_ms.saturating_sub(context.now()).clamp(0, 1_000);
        tokio::time::sleep(Duration::from_millis(rest_ms.unsigned_abs())).await;
    }
    Ok(revoked)
}

/// Runs to its end, whether or not the caller does.
async fn whole<T: Send + 'static>(
    context: &Context,
    work: impl Future<Output = Result<T, client::Error>> + Send + 'static,
) -> Result<T, client::Error> {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        context.metrics.store_failures.increment(1);
        Err(ErrorCode::Internal.error(format!("the work ended by itself: {error}")))
    })
}

async fn put_in_force(context: Arc<Context>, revocation: Revocation) -> Result<Revoked, client::Error> {
    let there = context.store.revoke(revocation).await.map_err(|error| context.store_error(&error))?;
    context.revocations.changed();
    let synced = context.sync_store().await;
    // Before anybody is told, so that those are counted who go at once.
    let routes = context.routes.lookup(std::slice::from_ref(&there.user)).await;
    // It is in the store, so it is in force: who opens a session is asked. Gateways hear of it whatever the disk says.
    let told = tell(&context, &[there.carried()]);
    synced.map_err(|error| context.store_error(&error))?;
    context.metrics.revocations.increment(1);
    let routes = routes.map_err(|error| context.routes_error(&error))?.concat();
    let voided: Vec<_> = routes.iter().filter(|route| voids(&there, route)).collect();
    // A gateway older than revocations knows what a close is.
    let mut downs = Downs::default();
    let words = words(&there);
    voided.iter().for_each(|route| downs.close(route, CloseCode::Unauthenticated, &words));
    downs.flush(&context.gateways);
    let closed = voided.iter().filter(|route| told.contains(&route.gateway)).count();
    Ok(Revoked { not_before_ms: there.not_before_ms, closed })
}

/// Takes back what was revoked: of a user himself or of one of his devices, as `device` says (empty: the user's own), or
/// everything. How many there were. One that is named is told even if there was none: see [`crate::store::Restored`].
///
/// # Errors
/// As [`revoke`].
pub(crate) async fn restore(
    context: &Arc<Context>,
    user: &str,
    device: Option<&str>,
) -> Result<usize, client::Error> {
    let (owned, user) = (Arc::clone(context), user.to_owned());
    let device = device.map(str::to_owned);
    let work = async move {
        let restored = owned.store.restore(&user, device.as_deref(), owned.now()).await;
        let restored = restored.map_err(|error| owned.store_error(&error))?;
        owned.revocations.changed();
        let synced = owned.sync_store().await;
        let records: Vec<_> = restored.now.iter().map(Revocation::carried).collect();
        tell(&owned, &records);
        synced.map_err(|error| owned.store_error(&error))?;
        Ok(restored.in_force)
    };
    whole(context, work).await
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
        downs.push(gateway, Down::Revoked(Carried { records: records.to_vec(), ..Default::default() }));
    }
}

/// The gateways that attached and were not told yet what was revoked: they may have missed some, or be new. Told one after the other,
/// beside whatever else logic does for them.
#[derive(Default)]
pub(crate) struct Untold {
    gateways: Mutex<BTreeSet<GatewayKey>>,
    came: Notify,
    /// Grows with each change of what is revoked.
    changes: AtomicU64,
}

impl Untold {
    /// A gateway attached.
    pub(crate) fn attached(&self, gateway: GatewayKey) {
        self.lock().insert(gateway);
        self.came.notify_one();
    }

    /// Whether it has not been told yet.
    #[cfg(test)]
    pub(crate) fn waits(&self, gateway: &GatewayKey) -> bool {
        self.lock().contains(gateway)
    }

    /// Something was revoked or restored: whoever attaches later is to be told of it too.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<GatewayKey>> {
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was revoked lately, read once for all gateways that attach at about the same time.
struct Recent {
    /// As of this change.
    change: u64,
    at_ms: i64,
    records: Vec<wire::CarriedRecord>,
}

/// Tells the gateways that attached what was revoked lately, until cancelled.
pub(crate) async fn tell_attached(context: Arc<Context>, stop: CancellationToken) {
    let mut recent: Option<Recent> = None;
    loop {
        let Some(gateway) = context.revocations.lock().pop_first() else {
            // Nobody attached for a while: there is nothing to keep it for.
            let came = tokio::time::timeout(RECENT, context.revocations.came.notified());
            match stop.run_until_cancelled(came).await {
                Some(came) => {
                    recent = recent.filter(|_| came.is_ok());
                    continue;
                }
                None => return,
            }
        };
        let records = match read_recent(&context, recent.take()).await {
            Ok(read) => &recent.insert(read).records,
            Err(error) => {
                // Asked again in a moment; meanwhile it learns of them by the schedulers, and the store is asked at each opening.
                drop(context.store_error(&error));
                context.revocations.lock().insert(gateway);
                if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                    return;
                }
                continue;
            }
        };
        let mut downs = Downs::default();
        push(&gateway, records, &mut downs);
        downs.flush(&context.gateways);
        tokio::task::yield_now().await;
    }
}

async fn read_recent(context: &Context, known: Option<Recent>) -> Result<Recent, StoreError> {
    let (change, now_ms) = (context.revocations.changes.load(Ordering::Acquire), context.now());
    let age_ms = |known: &Recent| now_ms.saturating_sub(known.at_ms).unsigned_abs();
    let fresh = |known: &Recent| known.change == change && u128::from(age_ms(known)) < RECENT.as_millis();
    if let Some(known) = known.filter(fresh) {
        return Ok(known);
    }
    let since_ms = now_ms.saturating_sub(CARRIED_MS);
    let recent = context.store.recent_revocations(since_ms, carry::RECORDS_EACH).await?;
    if recent.damaged > 0 {
        context.metrics.store_failures.increment(recent.damaged as u64);
        let rows = recent.damaged;
        tracing::warn!(
            rows,
            "revocations cannot be read and are not told to gateways: who cannot sign in now is to be revoked or restored by name"
        );
    }
    Ok(Recent { change, at_ms: now_ms, records: recent.found.iter().map(Revocation::carried).collect() })
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
    ErrorCode::Unauthenticated.error(words(revoked))
}

/// What who is turned away is told: the same as gateways say.
fn words(revoked: &Revocation) -> String {
    let because = if revoked.reason.is_empty() { String::new() } else { format!(": {}", revoked.reason) };
    format!("the sign-in was revoked{because}")
}
