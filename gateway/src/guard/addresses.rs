//! Connections of each client network: how many at a time, how many new ones a second.
//!
//! An IPv4 address is a network of its own, also where a translator wrote it into an IPv6 address (RFC 6052); of IPv6 it is
//! the /64, which is what one subscriber is given.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU64,
    sync::Mutex,
};

use thiserror::Error;

use super::{Cells, Networks, Rate};
use crate::shared::lock;

/// What a limit counts by, in eight bytes (none as well).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Network(NonZeroU64);

impl Network {
    /// IPv4 lies where IPv6 has no addresses that are given to anybody (0:1::/32), so the two never meet.
    pub(crate) fn of(address: IpAddr) -> Self {
        let number = match address.to_canonical() {
            IpAddr::V4(address) => 1 << 32 | u64::from(address.to_bits()),
            IpAddr::V6(address) => match translated(address) {
                Some(address) => 1 << 32 | u64::from(address),
                None => u64::try_from(address.to_bits() >> 64).unwrap_or(u64::MAX),
            },
        };
        Self(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN))
    }
}

/// The IPv4 address in one of 64:ff9b::/96 (RFC 6052, 2.1): all of IPv4 lies in that one /64.
fn translated(address: Ipv6Addr) -> Option<u32> {
    let (prefix, last) = (address.to_bits() >> 32, address.to_bits() as u32);
    (prefix == 0x0064_ff9b << 64).then_some(last)
}

/// Why a connection of an address is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Crowded {
    #[error("its network holds as many as it may")]
    Connections,
    #[error("its network opened as many in the last second as it may")]
    Rate,
}

/// The limits, shared by the workers. A connection touches them when it comes and when it goes.
#[derive(Debug)]
pub(crate) struct Addresses {
    exempt: Networks,
    /// 0: no limit.
    most: u32,
    rate: Cells,
    held: Mutex<Held>,
}

impl Default for Addresses {
    fn default() -> Self {
        Self::new(Networks::none(), 0, 0)
    }
}

impl Addresses {
    pub(crate) fn new(exempt: Networks, most: u32, per_second: u32) -> Self {
        Self { exempt, most, rate: Cells::new(Rate::new(per_second)), held: Mutex::default() }
    }

    /// Lets a connection in, or says why not. What it is counted under goes with the connection, to
    /// [`Addresses::leave`]; none: it is not counted.
    pub(crate) fn admit(&self, address: IpAddr, now_ms: i64) -> Result<Option<Network>, Crowded> {
        if self.exempt.contains(address) {
            return Ok(None);
        }
        let network = Network::of(address);
        if self.rate.take(network, now_ms).is_err() {
            return Err(Crowded::Rate);
        }
        if self.most == 0 {
            return Ok(None);
        }
        if lock(&self.held).enter(network, self.most) { Ok(Some(network)) } else { Err(Crowded::Connections) }
    }

    /// A connection that was counted is gone.
    pub(crate) fn leave(&self, network: Network) {
        lock(&self.held).leave(network);
    }
}

/// Connections by network. A network that holds none is not in it, so it is never larger than the number of connections.
#[derive(Debug, Default)]
struct Held(HashMap<Network, u32>);

impl Held {
    /// Counts one more, unless there are `most` already.
    fn enter(&mut self, network: Network, most: u32) -> bool {
        let count = self.0.entry(network).or_default();
        let room = *count < most;
        *count += u32::from(room);
        room
    }

    fn leave(&mut self, network: Network) {
        if let Entry::Occupied(mut entry) = self.0.entry(network) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        // After a storm of many addresses the memory goes as they go.
        if self.0.capacity() > 4 * self.0.len().max(1_024) {
            self.0.shrink_to(2 * self.0.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> Network {
        Network::of(text.parse().expect("an address"))
    }

    #[test]
    fn an_ipv6_subscriber_is_one_and_ipv4_addresses_are_each_their_own() {
        assert_eq!(network("2001:db8:1:2::3"), network("2001:db8:1:2:ffff::9"));
        assert_ne!(network("2001:db8:1:2::3"), network("2001:db8:1:3::3"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
        assert_eq!(network("10.0.0.1"), network("::ffff:10.0.0.1"));
        assert_eq!(network("192.0.2.33"), network("64:ff9b::192.0.2.33"));
        assert_ne!(network("64:ff9b::192.0.2.33"), network("64:ff9b::192.0.2.34"));
        // A prefix for translation of somebody's own is a subscriber like any other.
        assert_eq!(network("64:ff9b:1::1"), network("64:ff9b:1::2"));
        assert_eq!(size_of::<Option<Network>>(), 8);
    }

    #[test]
    fn who_is_exempt_is_not_counted() {
        let addresses = Addresses::new("10.0.0.0/8".parse().expect("a network"), 1, 1);
        let [exempt, other] = ["10.0.0.1", "11.0.0.1"].map(|text| text.parse().expect("an address"));
        assert!((0..100).all(|_| addresses.admit(exempt, 0) == Ok(None)));
        let counted = addresses.admit(other, 0).expect("the first").expect("counted");
        assert_eq!(addresses.admit(other, 0), Err(Crowded::Rate));
        assert_eq!(addresses.admit(other, 5_000), Err(Crowded::Connections));
        addresses.leave(counted);
        assert_eq!(addresses.admit(other, 10_000), Ok(Some(counted)));
    }

    proptest! {
        #[test]
        fn the_count_is_that_of_a_model_and_the_table_is_as_small(
            steps in proptest::collection::vec((0u8..20, any::<bool>()), 0..400),
            most in 1u32..5,
        ) {
            let mut held = Held::default();
            let mut model: HashMap<u8, u32> = HashMap::new();
            for (who, comes) in steps {
                let of = Network::of(IpAddr::from([10, 0, 0, who]));
                let count = model.entry(who).or_default();
                if comes {
                    prop_assert_eq!(held.enter(of, most), *count < most);
                    *count = (*count + 1).min(most);
                } else if *count > 0 {
                    *count -= 1;
                    held.leave(of);
                }
                let there: HashMap<_, _> = model.iter().filter(|(_, count)| **count > 0).collect();
                prop_assert_eq!(held.0.len(), there.len());
            }
        }
    }

    #[test]
    fn a_storm_of_addresses_leaves_no_memory_behind() {
        let mut held = Held::default();
        let of = |n: u32| Network::of(IpAddr::from(n.to_be_bytes()));
        (0..100_000).for_each(|n| assert!(held.enter(of(n), 1)));
        (0..100_000).for_each(|n| held.leave(of(n)));
        assert!(held.0.is_empty() && held.0.capacity() <= 4_096, "{}", held.0.capacity());
    }
}
