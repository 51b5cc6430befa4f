//! The records that outlive schedulers, at a gateway: what is news from one scheduler is told to all others.

use std::sync::Arc;

use berth_proto::{
    carry::{Record, kind},
    wire::{Carried, CarriedRecord, Drain, ToScheduler, to_scheduler},
};

use crate::{
    inlet::Delivery,
    metrics::LinkRefused,
    shared::{Shared, lock},
};

/// What a scheduler told.
pub(crate) fn heard(shared: &Shared, scheduler: usize, carried: Carried) {
    let mut carried = carried;
    let records = std::mem::take(&mut carried.records);
    let asked = carried.whole != 0;
    // Kept only where it is needed to see what is missing.
    carried.records = if asked { records.clone() } else { Vec::new() };
    let (news, missing) = {
        let mut store = lock(&shared.carried);
        let news = store.merge(records, shared.clock.now().wall_ms);
        (news, if asked { store.missing(&carried) } else { Vec::new() })
    };
    tell(shared, |index| index == scheduler, &missing);
    tell(shared, |index| index != scheduler, &news);
    news.iter().filter_map(Record::read).for_each(|record| act(shared, record));
}

/// A logic told revocations.
pub(crate) fn revoked(shared: &Shared, carried: Carried) {
    let news = lock(&shared.carried).merge(carried.records, shared.clock.now().wall_ms);
    tell(shared, |_| true, &news);
    news.iter().filter_map(Record::read).for_each(|record| act(shared, record));
}

/// The digests of what is held now.
pub(crate) fn digests(shared: &Shared) -> Vec<u64> {
    let mut store = lock(&shared.carried);
    store.expire(shared.clock.now().wall_ms);
    store.digests()
}

/// What an operator said last of emptying this gateway, and the version of that.
pub(crate) fn own_drain(shared: &Shared) -> Option<(u64, Drain)> {
    let store = lock(&shared.carried);
    let carried = store.get(kind::DRAIN, &shared.config.id)?;
    match Record::read(carried)? {
        Record::Drain(drain) => Some((carried.version, drain)),
        _ => None,
    }
}

/// A link that does not take it is told again once its scheduler sees that the digests differ.
fn tell(shared: &Shared, whom: impl Fn(usize) -> bool, records: &[CarriedRecord]) {
    if records.is_empty() {
        return;
    }
    let schedulers = shared.rare().schedulers;
    for (_, link) in schedulers.iter().enumerate().filter(|(index, _)| whom(*index)) {
        let carried = Carried { records: records.to_vec(), whole: 0 };
        let message = Some(to_scheduler::Message::Carried(carried));
        if link.send(vec![ToScheduler { message }]).is_err() {
            shared.metrics.links.refused.one(LinkRefused::Carried);
        }
    }
}

/// Something is to be done about a record.
fn act(shared: &Shared, record: Record) {
    match record {
        Record::Revocation(revoked) => {
            let revoked = Arc::new(revoked);
            shared.inlets.iter().for_each(|inlet| inlet.send(Delivery::Revoked(Arc::clone(&revoked))));
        }
        other => tracing::debug!(record = ?other, "carried"),
    }
}

#[cfg(test)]
mod tests;
