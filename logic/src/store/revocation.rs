//! Revocations: which credentials of a user are void.

use berth_proto::{
    carry::Record,
    wire::{self, CarriedRecord},
};

/// So long after it was made a revocation is carried by gateways and schedulers, in milliseconds: an hour longer than a ticket can
/// live. The store keeps it for ever, and is asked whenever a session opens.
pub const CARRIED_MS: i64 = 25 * 3_600_000;

/// What was issued to a user, or to one of his devices, before a moment is void.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Whose.
    pub user: String,
    /// Which of his devices; empty: all of them.
    pub device: String,
    /// What was issued earlier is void, in milliseconds since the Unix epoch; 0: nothing is, he was restored.
    pub not_before_ms: i64,
    /// Told to who is turned away.
    pub reason: String,
    /// When it was made or changed, in milliseconds since the Unix epoch: later than any earlier change of it.
    pub changed_ms: i64,
}

impl Revocation {
    /// As gateways and schedulers carry it.
    #[must_use]
    pub fn carried(&self) -> CarriedRecord {
        let record = Record::Revocation(wire::Revocation {
            user_id: self.user.clone(),
            device_id: self.device.clone(),
            not_before_ms: self.not_before_ms,
            reason: self.reason.clone(),
        });
        let version = u64::try_from(self.changed_ms).unwrap_or(0);
        record.carried(version, self.changed_ms.saturating_add(CARRIED_MS))
    }
}
