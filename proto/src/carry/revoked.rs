//! What is revoked, for those who ask at every hello: a small index beside the store, so that nobody who asks waits for a merge.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use super::{Record, revocation_key};
use crate::wire::{CarriedRecord, Revocation};

/// A user's revocations: his own, and those of his devices.
type Theirs = Vec<Revocation>;

/// The revocations in force, by user. Only [`super::Store`] changes it, with what it holds: it is as bounded as that.
#[derive(Debug, Default)]
pub struct Revoked {
    users: RwLock<HashMap<String, Theirs>>,
}

impl Revoked {
    /// The revocation that voids what that user and device identified themselves with, if one does: `auth_issued_at_ms` as in
    /// their ticket. The user's own goes before his device's.
    #[must_use]
    pub fn find(&self, user_id: &str, device_id: &str, auth_issued_at_ms: i64) -> Option<Revocation> {
        let users = self.read();
        let voids = |one: &&Revocation| auth_issued_at_ms < one.not_before_ms;
        let theirs = users.get(user_id)?;
        let of = |device_id: &str| theirs.iter().find(|one| one.device_id == device_id).filter(voids);
        of("").or_else(|| of(device_id)).cloned()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.read().values().map(Vec::len).sum()
    }

    /// It is held now, in place of an earlier one.
    pub(super) fn put(&self, record: &CarriedRecord) {
        let Some(revoked) = revocation(record) else { return };
        if revoked.not_before_ms > 0 {
            self.write().entry(revoked.user_id.clone()).or_default().push(revoked);
        }
    }

    /// It is not held any more.
    pub(super) fn remove(&self, record: &CarriedRecord) {
        let Some(revoked) = revocation(record) else { return };
        let mut users = self.write();
        let Some(theirs) = users.get_mut(&revoked.user_id) else { return };
        theirs.retain(|one| one.device_id != revoked.device_id);
        if theirs.is_empty() {
            users.remove(&revoked.user_id);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Theirs>> {
        self.users.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<String, Theirs>> {
        self.users.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a record under its right key says.
fn revocation(record: &CarriedRecord) -> Option<Revocation> {
    match Record::read(record)? {
        Record::Revocation(revoked) => {
            let key = revocation_key(&revoked.user_id, &revoked.device_id);
            (key == record.key).then_some(revoked)
        }
        _ => None,
    }
}
