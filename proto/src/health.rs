//! What both sides of a [`GatewayHealth`] agree on beyond its fields.

use crate::wire::GatewayHealth;

/// Entries of [`GatewayHealth::handshake_ms`]: up to 1, 2, 4, … 16,384 ms, and above.
pub const HANDSHAKE_BUCKETS: usize = 16;

impl GatewayHealth {
    /// Sessions that ended as none should; not those of clients that broke the protocol, `ended_bad_frame`.
    #[must_use]
    pub fn abnormal(&self) -> u64 {
        let Self { ended_internal, ended_silent, ended_slow, ended_lost, .. } = self;
        [ended_internal, ended_silent, ended_slow, ended_lost]
            .into_iter()
            .copied()
            .fold(0, u64::saturating_add)
    }
}
