//! Whose measurements are put together: clients whose packets take about the same way.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::Locality;

/// A network: an autonomous system within its country and subdivision, as far as the address database knows them, or else the
/// addresses around one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// By its number. A carrier is as wide as a continent, so where its client is belongs to it.
    As(Locality),
    /// An IPv4 /24: the smallest that is routed.
    V4([u8; 3]),
    /// An IPv6 /48: the smallest that is routed, and what one site is given.
    V6([u8; 6]),
}

impl Network {
    /// The network of an address; none of an address that says nothing about where its client is: a load balancer's inside, a
    /// proxy's on this machine.
    #[must_use]
    pub fn of(ip: IpAddr, locality: Option<Locality>) -> Option<Self> {
        if !routed(ip) {
            return None;
        }
        if let Some(locality) = locality.filter(|locality| locality.asn > 0) {
            return Some(Self::As(locality));
        }
        Some(match ip {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f])
            }
        })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::As(locality) => locality.fmt(f),
            Self::V4([a, b, c]) => write!(f, "{a}.{b}.{c}.0/24"),
            Self::V6([a, b, c, d, e, g]) => {
                let mut octets = [0; 16];
                octets[..6].copy_from_slice(&[a, b, c, d, e, g]);
                write!(f, "{}/48", Ipv6Addr::from(octets))
            }
        }
    }
}

/// Whether the internet routes to it (IANA's special-purpose registries, as far as clients are seen from there).
fn routed(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let shared = ip & Ipv4Addr::new(255, 192, 0, 0) == Ipv4Addr::new(100, 64, 0, 0);
            !(ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.octets()[0] == 0
                || shared)
        }
        // What is given out (2000::/3); everything else is local, mapped or multicast.
        IpAddr::V6(ip) => ip.octets()[0] >> 5 == 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_names() {
        let name = |ip: &str, asn| {
            let locality = (asn > 0).then(|| Locality::of("CN", "SH").in_as(asn));
            Network::of(ip.parse().expect("an address"), locality).map(|network| network.to_string())
        };
        assert_eq!(name("203.0.113.77", 0).as_deref(), Some("203.0.113.0/24"));
        assert_eq!(name("2001:db8:1:2::3", 0).as_deref(), Some("2001:db8:1::/48"));
        assert_eq!(name("203.0.113.77", 4134).as_deref(), Some("AS4134 CN-SH"));
        let inside =
            "10.1.2.3 127.0.0.1 169.254.0.1 192.168.1.1 172.16.0.1 100.64.0.1 0.0.0.0 ::1 fe80::1 fc00::1";
        assert!(inside.split(' ').all(|ip| name(ip, 4134).is_none()));
    }
}
