//! Over how long the clients of a gateway that is gone should come back: as long as the others take to take them.

use berth_proto::limits::LONGEST_WAIT_MS;

use crate::fleet::Fleet;

/// What the others take at once, in milliseconds of their rate.
const BURST_MS: u64 = 1_000;

/// The longest spread, unless a shorter one is configured, in milliseconds: half of them would be away for half as long. Beyond, the gateways
/// themselves tell those above their rate when to come.
pub const LONGEST_SPREAD_MS: u32 = LONGEST_WAIT_MS / 5;

/// The spread for the clients of the gateway at `index`, in milliseconds: its connections, or those it will have when it is as full as
/// its pool, over the handshakes a second of the rest of the pool, less what those take at once. 0: they take all of them at once. A gateway that
/// is alone takes its own back. Clients keep what they were told when they came, so what it has at that moment says too little while it fills.
pub(crate) fn spread_ms(fleet: &Fleet, index: u32, longest_ms: u32) -> u32 {
    let gateway = fleet.gateway(index);
    let [pool, ..] = fleet.groups_of(gateway);
    let own = gateway.handshakes_per_second;
    let others = match pool.handshakes_per_second.saturating_sub(own) {
        0 => own,
        others => others,
    };
    let as_full = (gateway.capacity as f64 * pool.sums().utilisation().min(1.0)) as u64;
    let takes_ms = gateway.connections.max(as_full).saturating_mul(1_000) / others.max(1);
    let spread_ms = takes_ms.saturating_sub(BURST_MS);
    u32::try_from(spread_ms).unwrap_or(u32::MAX).min(longest_ms)
}

#[cfg(test)]
mod tests {
    use berth_proto::wire::GatewayReport;

    use super::*;
    use crate::{fleet::Table, testing};

    /// The spread for the clients of the first of these gateways, by connections and handshakes a second.
    fn spread(gateways: &[(u64, u64)]) -> u32 {
        spread_up_to(LONGEST_SPREAD_MS, gateways)
    }

    fn spread_up_to(longest_ms: u32, gateways: &[(u64, u64)]) -> u32 {
        let mut table = Table::default();
        for (number, (connections, handshakes)) in gateways.iter().enumerate() {
            let report = GatewayReport {
                capacity: 1_000_000,
                connections: *connections,
                handshakes_per_second_capacity: *handshakes,
                ..testing::report(&format!("g{number}"))
            };
            table.take(1, &report, 0).expect("good");
        }
        let fleet = table.snapshot(0, 0);
        spread_ms(&fleet, fleet.find("g0").expect("known"), longest_ms)
    }

    #[test]
    fn as_long_as_the_others_take_to_take_them() {
        assert_eq!(spread(&[(10_000, 9), (0, 1_000), (0, 1_000)]), 4_000);
        assert_eq!(spread(&[(2_000, 9), (0, 1_000), (0, 1_000)]), 0, "at once");
        assert_eq!(spread(&[(10, 100)]), 0);
        assert_eq!(
            spread(&[(0, 9), (20_000, 1_000), (10_000, 1_000)]),
            4_000,
            "a new one will be as full as the others"
        );
        assert_eq!(spread(&[(300, 100)]), 2_000, "one that is alone comes back itself");
        assert_eq!(spread(&[(1_000_000, 100), (0, 100)]), 60_000, "and not for ever");
        assert_eq!(spread_up_to(9_000, &[(1_000_000, 100), (0, 100)]), 9_000);
    }
}
