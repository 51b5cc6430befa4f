//! Where to go while no scheduler answers: the bootstrap gateways, in an order of each client's own. Pure.

use std::cmp::Reverse;

use berth_proto::{bucket, schedule::ScheduleEndpoint};

use crate::transport::{self, Transport, TransportError};

/// The endpoint at a bootstrap gateway's address, `ws://host:port/v1/ws` or `tcp://host:port`. Which gateway it is, is not known.
///
/// # Errors
/// When the address cannot be used.
pub(crate) fn endpoint(url: &str) -> Result<ScheduleEndpoint, TransportError> {
    let transport = url.split_once("://").map_or("", |(scheme, _)| scheme);
    let endpoint =
        ScheduleEndpoint { transport: transport.into(), url: url.into(), ..ScheduleEndpoint::default() };
    transport::address(&endpoint).map(|_| endpoint)
}

/// The endpoints of these transports in the order in which this device of this user tries them: highest random weight first,
/// [`bucket::weight`] of the address and `user/device`. Devices spread evenly; one that is gone moves only those who had it first,
/// evenly again; and a client goes to the same one each time.
pub(crate) fn order(
    mut endpoints: Vec<ScheduleEndpoint>,
    transports: &[Transport],
    user_id: &str,
    device_id: &str,
) -> Vec<ScheduleEndpoint> {
    let name = format!("{user_id}/{device_id}");
    endpoints.retain(|endpoint| {
        Transport::from_name(&endpoint.transport).is_some_and(|transport| transports.contains(&transport))
    });
    endpoints.sort_by_cached_key(|endpoint| Reverse(bucket::weight(&endpoint.url, &name)));
    endpoints
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gateways(count: usize) -> Vec<ScheduleEndpoint> {
        (0..count).map(|n| endpoint(&format!("tcp://gw-{n}.example:7710")).expect("an address")).collect()
    }

    fn urls(endpoints: &[ScheduleEndpoint], user: &str) -> Vec<String> {
        let ordered = order(endpoints.to_vec(), &[Transport::Tcp], user, "d");
        ordered.into_iter().map(|endpoint| endpoint.url).collect()
    }

    #[test]
    fn an_address_tells_its_transport() {
        assert_eq!(endpoint("tcp://h:1").expect("usable").transport, "tcp");
        assert_eq!(endpoint("ws://h/v1/ws").expect("usable").transport, "ws");
        for url in ["", "h:1", "http://h:1", "tcp://h"] {
            endpoint(url).expect_err(url);
        }
    }

    /// So that an implementation in another language can be held against it:
    /// `python3 -c 'import hashlib;print(hashlib.sha256(b"tcp://gw-0.example:7710:alice/d").hexdigest()[:16])'`, and so on.
    #[test]
    fn the_order_is_the_documented_one() {
        let mut expected = GOLDEN.to_vec();
        expected.sort_by_key(|(_, weight)| Reverse(*weight));
        let expected: Vec<_> = expected.iter().map(|(n, _)| format!("tcp://gw-{n}.example:7710")).collect();
        assert_eq!(urls(&gateways(3), "alice"), expected);
    }

    const GOLDEN: [(usize, u64); 3] =
        [(0, 0x9ffe_3a8a_eaf1_4cdc), (1, 0xf35f_6c17_242f_1556), (2, 0x0c34_fd54_3a1c_8cff)];

    #[test]
    fn users_spread_evenly_and_so_do_those_of_one_that_is_gone() {
        const USERS: usize = 6_000;
        let (mut first, mut second) = ([0; 4], [0; 4]);
        let all = gateways(4);
        let number = |url: &str| all.iter().position(|gateway| gateway.url == url).expect("one of them");
        for user in 0..USERS {
            let order = urls(&all, &format!("user-{user}"));
            first[number(&order[0])] += 1;
            if number(&order[0]) == 0 {
                second[number(&order[1])] += 1;
            }
        }
        assert!(first.iter().all(|count| (1_350..1_650).contains(count)), "{first:?}");
        assert!(second[1..].iter().all(|count| (400..600).contains(count)), "{second:?}");
    }

    proptest! {
        #[test]
        fn one_that_is_gone_changes_nobody_elses_order(user in "[a-z0-9]{1,20}", count in 2usize..8, gone in 0usize..8) {
            let all = gateways(count);
            let mut rest = all.clone();
            let gone = rest.remove(gone % count).url;
            rest.reverse();
            let mut expected = urls(&all, &user);
            prop_assert_eq!(expected.len(), count);
            expected.retain(|url| *url != gone);
            prop_assert_eq!(urls(&rest, &user), expected, "and the order in the configuration does not matter");
        }

        #[test]
        fn other_transports_are_left_out(user in "[a-z0-9]{1,20}") {
            let mut mixed = gateways(2);
            mixed.push(endpoint("ws://gw-9.example/v1/ws").expect("an address"));
            prop_assert_eq!(urls(&mixed, &user).len(), 2);
        }
    }
}
