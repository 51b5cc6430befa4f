//! The records that outlive schedulers, at a gateway: what is news from one scheduler is told to all others.

use std::sync::Arc;

use berth_proto::{
    carry::{self, Record, Said, kind},
    wire::{Carried, CarriedRecord, Drain, ToScheduler, to_scheduler},
};

use crate::{
    inlet::Delivery,
    metrics::LinkRefused,
    shared::{Shared, lock},
};

/// What a scheduler told.
pub(crate) fn heard(shared: &Shared, scheduler: usize, carried: Carried) {
    let said = Said::of(&carried);
    let news = merge(shared, carried.records);
    if let Some(said) = said {
        let missing = lock(&shared.carried).missing(&said);
        tell(shared, |index| index == scheduler, &missing);
    }
    tell(shared, |index| index != scheduler, &news);
    news.iter().filter_map(Record::read).for_each(|record| act(shared, record));
}

/// A logic told revocations; of anything else it has no say.
pub(crate) fn revoked(shared: &Shared, carried: Carried) {
    let mut records = carried.records;
    records.retain(|record| record.kind == kind::REVOCATION);
    let news = merge(shared, records);
    tell(shared, |_| true, &news);
    news.iter().filter_map(Record::read).for_each(|record| act(shared, record));
}

/// Takes records in, some at a time; those that were news.
fn merge(shared: &Shared, records: Vec<CarriedRecord>) -> Vec<CarriedRecord> {
    let now_ms = shared.clock.now().wall_ms;
    let mut news = Vec::new();
    for piece in carry::pieces(records) {
        let mut store = lock(&shared.carried);
        news.extend(store.merge(piece, now_ms));
        shared.metrics.carried_evicted(store.evicted());
    }
    news
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

/// A link that is down, or does not take it, is told again once its scheduler sees that the digests differ.
fn tell(shared: &Shared, whom: impl Fn(usize) -> bool, records: &[CarriedRecord]) {
    if records.is_empty() {
        return;
    }
    let schedulers = shared.rare().schedulers;
    let messages = carry::messages(records.iter().cloned());
    let linked = schedulers.iter().enumerate().filter(|(index, link)| whom(*index) && link.connected());
    for (_, link) in linked {
        for carried in &messages {
            let message = Some(to_scheduler::Message::Carried(carried.clone()));
            if link.send(vec![ToScheduler { message }]).is_err() {
                shared.metrics.links.refused.one(LinkRefused::Carried);
            }
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
