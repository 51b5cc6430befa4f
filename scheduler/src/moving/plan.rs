//! How many connections each gateway lets go of, so that all are within a share of the mean. Pure.

/// A gateway of a group whose users any of them can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filled {
    /// Connections it can hold.
    pub capacity: u64,
    /// Connections it has.
    pub connections: u64,
}

/// The mean of a group and what is allowed around it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Band {
    mean: f64,
    within: f64,
}

impl Band {
    /// Around the mean share of their capacities that these use.
    pub fn around(gateways: impl IntoIterator<Item = Filled>, within: f64) -> Self {
        let mut sums = (0, 0);
        for Filled { capacity, connections } in gateways {
            sums = (sums.0 + capacity, sums.1 + connections);
        }
        let mean = if sums.0 == 0 { 0.0 } else { sums.1 as f64 / sums.0 as f64 };
        Self { mean, within }
    }

    /// A gateway of that capacity may have so many. Where a whole connection is more than the share, the mean rounded up.
    pub fn most(self, capacity: u64) -> u64 {
        let mean = self.mean * capacity as f64;
        (mean * (1.0 + self.within)).floor().max(mean.ceil()) as u64
    }

    fn least(self, capacity: u64) -> u64 {
        let mean = self.mean * capacity as f64;
        (mean * (1.0 - self.within)).ceil().min(mean.floor()) as u64
    }

    fn mean(self, capacity: u64) -> u64 {
        (self.mean * capacity as f64).floor() as u64
    }
}

/// How many each lets go of: the fewest with which all can be within `within` of the mean. Those above it let go of what is
/// too much; if that is not enough for those below it, the fullest let go of more, down to the mean.
pub(crate) fn plan(gateways: &[Filled], within: f64) -> Vec<u64> {
    let band = Band::around(gateways.iter().copied(), within);
    let mut sheds: Vec<u64> =
        gateways.iter().map(|g| g.connections.saturating_sub(band.most(g.capacity))).collect();
    let missing: u64 = gateways.iter().map(|g| band.least(g.capacity).saturating_sub(g.connections)).sum();
    let mut more = missing.saturating_sub(sheds.iter().sum());
    let mut fullest: Vec<usize> = (0..gateways.len()).collect();
    let share = |index: usize| gateways[index].connections as f64 / gateways[index].capacity.max(1) as f64;
    fullest.sort_by(|a, b| share(*b).total_cmp(&share(*a)));
    for index in fullest {
        let Filled { capacity, connections } = gateways[index];
        let spare = connections.saturating_sub(sheds[index]).saturating_sub(band.mean(capacity)).min(more);
        sheds[index] += spare;
        more -= spare;
    }
    sheds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled((capacity, share): (u64, f64)) -> Filled {
        Filled { capacity, connections: (capacity as f64 * share) as u64 }
    }

    #[test]
    fn only_what_is_too_much_is_shed() {
        let thirds =
            |connections: [u64; 3]| connections.map(|connections| Filled { capacity: 1_000, connections });
        assert_eq!(plan(&thirds([300, 300, 300]), 0.1), [0, 0, 0]);
        assert_eq!(plan(&thirds([320, 300, 280]), 0.1), [0, 0, 0], "within the share");
        assert_eq!(plan(&thirds([600, 150, 150]), 0.1), [270, 0, 0], "down to 330");
        assert_eq!(plan(&thirds([600, 300, 0]), 0.1), [270, 0, 0], "the empty one comes to 270");
        assert_eq!(plan(&thirds([0, 0, 0]), 0.1), [0, 0, 0]);
        assert_eq!(plan(&[], 0.1), [0; 0]);
        // 450, 450, 0: the mean is 300; 120 + 120 too many are not enough for the 270 that the third lacks.
        assert_eq!(plan(&thirds([450, 450, 0]), 0.1).iter().sum::<u64>(), 270);
    }

    proptest! {
        #[test]
        fn all_come_within_by_the_fewest_moves_and_nobody_is_made_too_full(
            group in prop::collection::vec((1u64..20_000, 0.0f64..1.0).prop_map(filled), 1..12),
            within in 0.0f64..0.5,
        ) {
            let sheds = plan(&group, within);
            let band = Band::around(group.iter().copied(), within);
            let over: u64 = group.iter().map(|g| g.connections.saturating_sub(band.most(g.capacity))).sum();
            let under: u64 = group.iter().map(|g| band.least(g.capacity).saturating_sub(g.connections)).sum();
            prop_assert_eq!(sheds.iter().sum::<u64>(), over.max(under), "fewer cannot do");

            // Each of them goes to whoever is emptiest, as long as that one may have more.
            let mut after: Vec<Filled> = group.clone();
            for (gateway, shed) in after.iter_mut().zip(&sheds) {
                gateway.connections -= shed;
            }
            for _ in 0..sheds.iter().sum::<u64>() {
                let share = |g: &Filled| (g.connections + 1) as f64 / g.capacity as f64;
                let may = after.iter_mut().filter(|g| g.connections < band.most(g.capacity));
                let lacks = |g: &Filled| g.connections >= band.least(g.capacity);
                let emptiest = may.min_by(|a, b| lacks(a).cmp(&lacks(b)).then(share(a).total_cmp(&share(b))));
                let emptiest = emptiest.expect("there is room below the mean");
                emptiest.connections += 1;
            }
            for gateway in &after {
                prop_assert!(gateway.connections <= band.most(gateway.capacity), "{after:?}");
                prop_assert!(gateway.connections >= band.least(gateway.capacity), "{after:?}");
            }
        }
    }
}
