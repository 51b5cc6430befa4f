//! The rest of the list: gateways in other failure domains, so that the client can go on without asking again.

use berth_proto::limits::ENDPOINT_GATEWAYS;
use rand::Rng;

use super::{Observer, Ranked, Tier, TierKind, load::Chooser};
use crate::fleet::{Fleet, Group};

/// Groups looked at for one place of the list. A region with more zones than this is cut short, not the decision slow.
const LOOK_AT: usize = 16;

/// The failure domain a gateway was put on the list for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Domain {
    /// The best.
    First,
    /// Another zone of the first one's region.
    Zone,
    /// Another region.
    Region,
    /// Just another gateway.
    Gateway,
}

impl Domain {
    /// Its name in explanations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Zone => "zone",
            Self::Region => "region",
            Self::Gateway => "gateway",
        }
    }
}

/// Fills the list after `first`: other zones of its region, then other regions (nearer tiers first), then other gateways.
/// The last place is kept for another region, if there is one: a whole region may be what failed.
pub(super) fn rank<'a>(
    chooser: &mut Chooser<'a>,
    pool: &'a Group,
    tiers: &[Option<Tier<'a>>],
    first: u32,
    rng: &mut impl Rng,
    observer: &mut impl Observer,
) -> Ranked {
    let fleet = chooser.fleet;
    let mut list = List { chooser, ranked: Ranked::default() };
    list.push(first, Domain::First, observer);
    let [_, region, zone] = fleet.groups_of(fleet.gateway(first));
    let elsewhere = pool.len() > region.len();
    let zones_until = ENDPOINT_GATEWAYS - usize::from(elsewhere);
    let zones = children(&fleet.zones, region, rng.random()).filter(|other| !std::ptr::eq(*other, zone));
    list.add_each(zones, zones_until, Domain::Zone, rng, observer);
    if elsewhere {
        let near = tiers.iter().flatten().filter(|tier| tier.kind != TierKind::Rest);
        let near = near.map(|tier| fleet_region(fleet, tier));
        let far = children(&fleet.regions, pool, rng.random());
        list.add_each(near.chain(far), ENDPOINT_GATEWAYS, Domain::Region, rng, observer);
    }
    list.fill(region, rng, observer);
    list.fill(pool, rng, observer);
    list.ranked
}

/// The region that a nearer tier is, or is in.
fn fleet_region<'a>(fleet: &'a Fleet, tier: &Tier<'a>) -> &'a Group {
    fleet.groups_of(fleet.gateway(tier.group.first_gateway()))[1]
}

struct List<'c, 'a> {
    chooser: &'c mut Chooser<'a>,
    ranked: Ranked,
}

impl<'a> List<'_, 'a> {
    fn push(&mut self, gateway: u32, domain: Domain, observer: &mut impl Observer) {
        self.ranked.push(gateway);
        observer.ranked(gateway, domain);
    }

    /// One gateway of each group whose region or zone is not on the list yet, until the list has `until`.
    fn add_each(
        &mut self,
        groups: impl Iterator<Item = &'a Group>,
        until: usize,
        domain: Domain,
        rng: &mut impl Rng,
        observer: &mut impl Observer,
    ) {
        for group in groups {
            if self.ranked.as_slice().len() >= until {
                return;
            }
            if !self.holds_one_of(group) {
                self.add(group, domain, rng, observer);
            }
        }
    }

    fn holds_one_of(&self, group: &Group) -> bool {
        let fleet = self.chooser.fleet;
        let mut listed = self.ranked.as_slice().iter();
        listed.any(|index| fleet.groups_of(fleet.gateway(*index)).iter().any(|own| std::ptr::eq(*own, group)))
    }

    fn add(
        &mut self,
        group: &'a Group,
        domain: Domain,
        rng: &mut impl Rng,
        observer: &mut impl Observer,
    ) -> bool {
        let tier = Tier::whole(TierKind::Rest, group);
        let taken = self.ranked;
        let chosen = self.chooser.choose(&tier, taken.as_slice(), f64::INFINITY, rng, observer);
        if let Some(gateway) = chosen {
            self.push(gateway, domain, observer);
        }
        chosen.is_some()
    }

    fn fill(&mut self, group: &'a Group, rng: &mut impl Rng, observer: &mut impl Observer) {
        while !self.ranked.is_full() && self.add(group, Domain::Gateway, rng, observer) {}
    }
}

/// Some children of a group, from a random one on, so that no child is always the second.
fn children<'a>(all: &'a [Group], parent: &Group, random: u32) -> impl Iterator<Item = &'a Group> + use<'a> {
    let part = &all[parent.children.start as usize..parent.children.end as usize];
    let start = random as usize % part.len().max(1);
    part[start..].iter().chain(&part[..start]).take(LOOK_AT)
}
