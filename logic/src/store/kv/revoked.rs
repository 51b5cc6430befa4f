//! Revocations: a row for each user and device that ever was revoked, and an index of them by the time of their last change.

use super::{
    read::{decode_slice, each, go_on},
    row::{self, RevokedRow, STATE},
};
use crate::{
    kv::{Direction, KvError, Txn, View, decode},
    store::{RecentRevocations, Revocation},
};

fn get(view: &dyn View, user: &str, device: &str) -> Result<Option<Revocation>, KvError> {
    let row: Option<RevokedRow> =
        view.get(STATE, row::revoked(user, device).bytes())?.map(decode).transpose()?;
    Ok(row.map(RevokedRow::into))
}

/// The one of a user or of his device that voids most, if any voids something.
pub(super) fn of(view: &dyn View, user: &str, device: &str) -> Result<Option<Revocation>, KvError> {
    let found = [get(view, user, "")?, get(view, user, device)?].into_iter().flatten();
    Ok(found.filter(|one| one.not_before_ms > 0).max_by_key(|one| one.not_before_ms))
}

/// Those of a user, in order of his devices; taken back ones too.
pub(super) fn all_of(view: &dyn View, user: &str) -> Result<Vec<Revocation>, KvError> {
    let all = row::revoked_of(user);
    let mut found = Vec::new();
    each(view, (STATE, all.bytes(), &all.after_prefix()), Direction::Forward, |_, value| {
        found.push(decode_slice::<RevokedRow>(value)?.into());
        Ok(go_on(true))
    })?;
    Ok(found)
}

/// That of a user or of one of his devices, there or not. One that cannot be read is as if it were not there: whoever names it mends it.
pub(super) fn named(view: &dyn View, user: &str, device: &str) -> Result<Revocation, KvError> {
    let (user_id, device_id) = (user.to_owned(), device.to_owned());
    let none = Revocation {
        user: user_id,
        device: device_id,
        not_before_ms: 0,
        reason: String::new(),
        changed_ms: 0,
    };
    Ok(readable(get(view, user, device))?.flatten().unwrap_or(none))
}

/// None: what is there does not decode.
fn readable<T>(read: Result<T, KvError>) -> Result<Option<T>, KvError> {
    match read {
        Ok(there) => Ok(Some(there)),
        Err(error) if error.action == KvError::DECODE => Ok(None),
        Err(error) => Err(error),
    }
}

/// Those that changed last, newest first.
pub(super) fn recent(view: &dyn View, since_ms: i64, limit: usize) -> Result<RecentRevocations, KvError> {
    let (from, all) = (row::revoked_since(since_ms), row::revoked_changes());
    let mut keys = Vec::new();
    if limit > 0 {
        each(view, (STATE, from.bytes(), &all.after_prefix()), Direction::Backward, |_, value| {
            keys.push(value.to_vec());
            Ok(go_on(keys.len() < limit))
        })?;
    }
    let (mut found, mut damaged) = (Vec::new(), 0);
    for key in keys {
        match readable(view.get(STATE, &key)?.map(decode::<RevokedRow>).transpose())? {
            Some(row) => found.extend(row.map(Revocation::from)),
            None => damaged += 1,
        }
    }
    Ok(RecentRevocations { found, damaged })
}

/// Writes it; what is there and voids more goes on to void it. What is there and cannot be read is written over: it refuses everybody.
pub(super) fn put(txn: &mut Txn<'_>, mut revocation: Revocation) -> Result<Revocation, KvError> {
    let (user, device) = (revocation.user.clone(), revocation.device.clone());
    if let Some(there) = readable(get(txn.before(), &user, &device))?.flatten() {
        revocation.not_before_ms = revocation.not_before_ms.max(there.not_before_ms);
        revocation.changed_ms = revocation.changed_ms.max(there.changed_ms + 1);
        txn.remove(STATE, row::revoked_change(there.changed_ms, &user, &device));
    }
    write(txn, &revocation);
    Ok(revocation)
}

/// Takes one back. Its row stays, so that the next change of it is later than this.
pub(super) fn restore(txn: &mut Txn<'_>, mut there: Revocation, now_ms: i64) -> Revocation {
    txn.remove(STATE, row::revoked_change(there.changed_ms, &there.user, &there.device));
    (there.not_before_ms, there.changed_ms) = (0, now_ms.max(there.changed_ms + 1));
    there.reason.clear();
    write(txn, &there);
    there
}

fn write(txn: &mut Txn<'_>, revocation: &Revocation) {
    let Revocation { user, device, not_before_ms, reason, changed_ms } = revocation.clone();
    let key = row::revoked(&user, &device);
    txn.put(STATE, row::revoked_change(changed_ms, &user, &device), key.bytes().to_vec());
    txn.put_message(STATE, key, &RevokedRow { user, device, not_before_ms, reason, changed_ms });
}

impl From<RevokedRow> for Revocation {
    fn from(row: RevokedRow) -> Self {
        let RevokedRow { user, device, not_before_ms, reason, changed_ms } = row;
        Self { user, device, not_before_ms, reason, changed_ms }
    }
}
