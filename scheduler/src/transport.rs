//! The set of transports a gateway offers or a client asks for.

/// A set of transports: a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transports(u8);

impl Transports {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// WebSocket.
    pub const WS: Self = Self(1);
    /// Length-prefixed frames over TCP.
    pub const TCP: Self = Self(2);
    /// Every transport of PROTOCOL.md.
    pub const ALL: Self = Self(3);

    /// The transport of this name, if it is one of ours.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "ws" => Some(Self::WS),
            "tcp" => Some(Self::TCP),
            _ => None,
        }
    }

    /// Both sets together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the sets share a transport.
    #[must_use]
    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        assert_eq!(Transports::WS.with(Transports::TCP), Transports::ALL);
        assert!(Transports::ALL.meets(Transports::TCP));
        assert!(!Transports::WS.meets(Transports::TCP));
        assert!(!Transports::NONE.meets(Transports::ALL));
        assert_eq!(Transports::named("quic"), None);
    }
}
