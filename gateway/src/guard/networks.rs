//! Networks written as CIDRs, such as those whose addresses are not limited.

use std::{net::IpAddr, str::FromStr};

use ipnet::{IpNet, Ipv4Net};

/// A list of networks. From text: CIDRs or addresses, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// No network at all.
    #[must_use]
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Whether `address` lies in one of them. An IPv4 address mapped into IPv6 is its IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Loopback: whoever is on this machine can do worse than connect.
impl Default for Networks {
    fn default() -> Self {
        "127.0.0.0/8,::1".parse().expect("two networks")
    }
}

impl FromStr for Networks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(network).collect::<Result<_, _>>().map(Self)
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from).ok();
    text.parse()
        .ok()
        .or_else(address)
        .and_then(canonical)
        .ok_or_else(|| format!("{text:?} is no network; write 10.0.0.0/8 or 2001:db8::/32"))
}

/// Addresses are compared in their canonical form, so a network of IPv4 addresses mapped into IPv6 is the IPv4 network. None:
/// it begins with a mapped address and is larger than all of them.
fn canonical(network: IpNet) -> Option<IpNet> {
    match (network, network.addr().to_canonical()) {
        (IpNet::V6(mapped), IpAddr::V4(address)) => {
            Ipv4Net::new(address, mapped.prefix_len().checked_sub(96)?).map(IpNet::from).ok()
        }
        _ => Some(network),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_addresses_are_read_and_others_are_named() {
        let list: Networks = " 10.0.0.0/8, 192.168.1.7,2001:db8::/32,".parse().expect("networks");
        for (address, expected) in [
            ("10.200.0.1", true),
            ("192.168.1.7", true),
            ("192.168.1.8", false),
            ("::ffff:10.1.1.1", true),
            ("2001:db8:9::1", true),
            ("::1", false),
        ] {
            assert_eq!(list.contains(address.parse().expect("an address")), expected, "{address}");
        }
        assert!("10.0.0.0/33".parse::<Networks>().expect_err("no network").contains("10.0.0.0/33"));
        assert_eq!("".parse::<Networks>(), Ok(Networks::none()));
    }

    #[test]
    fn a_network_of_mapped_addresses_is_the_ipv4_network() {
        let list: Networks = "::ffff:10.0.0.0/104, ::ffff:192.168.1.7".parse().expect("networks");
        assert_eq!(Ok(list), "10.0.0.0/8, 192.168.1.7/32".parse());
        for larger in ["::ffff:0:0/90", "::ffff:10.0.0.0/95"] {
            assert!(larger.parse::<Networks>().expect_err("no network").contains(larger));
        }
        let all: Networks = "::/0".parse().expect("a network");
        assert!(!all.contains("10.0.0.1".parse().expect("an address")), "IPv4 is 0.0.0.0/0");
    }

    #[test]
    fn loopback_is_exempt_by_default() {
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(Networks::default().contains(address.parse().expect("an address")), "{address}");
        }
        assert!(!Networks::default().contains("10.0.0.1".parse().expect("an address")));
    }
}
