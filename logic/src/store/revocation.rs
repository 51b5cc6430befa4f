//! Revocations: which credentials of a user are void.

use berth_proto::{
    carry::Record,
    wire::{self, CarriedRecord},
};

/// So long after it was made a revocation is carried by gateways and schedulers, in milliseconds: an hour longer than a ticket can
/// live. The store keeps it for ever, and is asked whenever a session opens.
pub const CARRIED_MS: i64 = 25 * HOUR_MS;

const HOUR_MS: i64 = 3_600_000;

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

/// What was taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// So many were in force.
    pub in_force: usize,
    /// As they are now: to be told to all who carry them. The one that was named is among them even if nothing was there: they may
    /// hold what a power cut took from the store.
    pub now: Vec<Revocation>,
}

/// Revocations that changed last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentRevocations {
    /// Newest first.
    pub found: Vec<Revocation>,
    /// Others that cannot be read: who they are about is refused, until he is revoked or restored once more.
    pub damaged: usize,
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
        // Whole hours: those who carry it forget it within their clocks' difference, and not each of a thousand at its own time.
        let expires_ms =
            self.changed_ms.saturating_add(CARRIED_MS + HOUR_MS - 1).div_euclid(HOUR_MS) * HOUR_MS;
        record.carried(version, expires_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_an_hour_are_forgotten_together_and_none_too_soon() {
        let expires_ms = |changed_ms| {
            let (user, device, reason) = ("alice".to_owned(), String::new(), String::new());
            Revocation { user, device, not_before_ms: 1, reason, changed_ms }.carried().expires_at_ms
        };
        assert_eq!(expires_ms(7 * HOUR_MS), 7 * HOUR_MS + CARRIED_MS);
        assert_eq!(expires_ms(7 * HOUR_MS + 1), 8 * HOUR_MS + CARRIED_MS);
        assert_eq!(expires_ms(8 * HOUR_MS), 8 * HOUR_MS + CARRIED_MS);
    }
}
