//! What runs beside the road: store sync and queue trim, expiry of inbox rows and dedup rows, gateway leases.

use std::{sync::Arc, time::Duration};

use berth_proto::wire::{self, to_gateway::Message as Down};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    context::{Context, Part},
    gateways::Downs,
    queue::QueueError,
    routes::RoutesError,
    service::Control,
    store::StoreError,
};

/// Between store syncs: an operating system that ends loses at most this much of the store, which the queue then replays.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Between steps of the sweeper, and what one may do: 100,000 rows a second at most.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
const SWEEP_USERS: usize = 200;
const SWEEP_ROWS: usize = 500;

/// Steps of the sweeper that rest after it has seen all users.
const SWEEP_REST: u32 = 60;

/// Dedup rows removed a step, once a second: as many as one machine accepts in that time at its best, so that a whole
/// day's rows go within a day whatever the load was. The queue's writer does not wait for it.
const PURGE_ROWS: usize = 20_000;

/// A sync or trim that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpkeepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// Syncs the store, then forgets the queue's records behind what is synced.
pub(crate) async fn sync_and_trim(context: &Context) -> Result<(), UpkeepError> {
    // Marks first: what they cover is written, so the sync that follows makes it durable.
    let marks = context.store.marks(context.queue.partitions()).await?;
    context.sync_store().await?;
    for (partition, mark) in (0..).zip(marks) {
        context.queue.trim(partition, mark).await?;
    }
    Ok(())
}

/// [`sync_and_trim`] on a timer, until cancelled; and how old what waits is.
pub(crate) async fn sync(context: Arc<Context>, stop: CancellationToken) {
    let mut ticks = ticks(SYNC_EVERY);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let age_ms =
            context.spreads.oldest_ms().map_or(0, |at_ms| context.now().saturating_sub(at_ms).max(0));
        context.metrics.outbox_age.set(age_ms as f64 / 1000.0);
        let synced = sync_and_trim(&context).await;
        context.note(Part::Store, synced.map_err(|error| error.to_string()));
    }
}

/// Removes inbox rows past their lifetime and dedup rows past theirs, a little at a time, until cancelled.
pub(crate) async fn sweep(context: Arc<Context>, lifetime: Duration, stop: CancellationToken) {
    let lifetime_ms = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
    let mut ticks = ticks(SWEEP_EVERY);
    let mut after = None;
    let mut rest = 0;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let now = context.now();
        if let Err(error) = context.queue.purge(now, PURGE_ROWS).await {
            context.note(Part::Store, Err(error.to_string()));
        }
        if rest > 0 {
            rest -= 1;
            continue;
        }
        match context
            .store
            .sweep(after.clone(), now.saturating_sub(lifetime_ms), SWEEP_USERS, SWEEP_ROWS)
            .await
        {
            Ok(swept) => {
                context.metrics.expired_rows.increment(swept.rows);
                rest = if swept.next.is_none() { SWEEP_REST } else { 0 };
                after = swept.next;
            }
            Err(error) => context.note(Part::Store, Err(error.to_string())),
        }
    }
}

/// Ends leases that were not renewed in time, until cancelled. A pause of this process itself (it was stopped, or the
/// machine slept) gives every lease one more: nobody could renew it.
pub(crate) async fn leases(context: Arc<Context>, stop: CancellationToken) {
    let lease_ms = i64::from(context.lease_ms);
    let mut ticks = ticks(Duration::from_millis(u64::from(context.lease_ms / 10).max(1)));
    let mut last = context.steady_now();
    // Before this served, too, nobody could renew.
    let mut not_before = last + lease_ms;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let now = context.steady_now();
        if now - last > lease_ms / 2 {
            not_before = now + lease_ms;
        }
        last = now;
        if now < not_before {
            continue;
        }
        match context.routes.expire(now).await {
            Ok(ended) => {
                context.metrics.leases_expired.increment(ended.len() as u64);
                for gateway in ended {
                    tracing::warn!(
                        gateway = gateway.id,
                        boot = gateway.boot,
                        "its lease ended: its routes are gone"
                    );
                }
            }
            Err(error) => drop(context.routes_error(&error)),
        }
    }
}

/// Attachments and renewals, in order, until cancelled.
pub(crate) async fn control(
    context: Arc<Context>,
    mut controls: mpsc::Receiver<Control>,
    stop: CancellationToken,
) {
    let mut downs = Downs::default();
    while let Some(Some(control)) = stop.run_until_cancelled(controls.recv()).await {
        if let Err(error) = take_up(&context, control, &mut downs).await {
            context.routes_error(&error);
        }
        downs.flush(&context.gateways);
    }
}

async fn take_up(context: &Context, control: Control, downs: &mut Downs) -> Result<(), RoutesError> {
    match control {
        Control::Attached(gateway) => context.routes.attach(&gateway, context.steady_now()).await,
        Control::Renew(gateway, renew) => {
            let wire::RenewLease { sessions, now_ms: said_ms } = renew;
            let forgotten = context.routes.renew(&gateway, sessions, context.steady_now()).await?;
            if forgotten {
                tracing::warn!(
                    gateway = gateway.id,
                    boot = gateway.boot,
                    "its lease had ended: it announces its sessions again"
                );
            }
            context.gateways.holds(&gateway, sessions);
            let renewed = wire::LeaseRenewed { lease_ms: context.lease_ms, forgotten, said_ms };
            downs.push(&gateway, Down::Lease(renewed));
            Ok(())
        }
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
