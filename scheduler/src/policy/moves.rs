//! `[move]`: how fast connected users are moved, and when nobody is.

/// When nobody is told to go: for drains, rebalances and sweeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoveLimits {
    /// While 1% of the handshakes at the gateway that they would go to take longer, in milliseconds; 0: not looked at.
    pub handshake_p99_ms: u32,
    /// While a larger share of the attempts to connect to it fails.
    pub connect_failures: f64,
    /// With fewer of them nothing is known.
    pub min_handshakes: u32,
    /// While a larger share of those who were told to go does not arrive.
    pub lost: f64,
}

impl Default for MoveLimits {
    fn default() -> Self {
        Self { handshake_p99_ms: 5_000, connect_failures: 0.1, min_handshakes: 50, lost: 0.1 }
    }
}
