//! Proximity: a pool cut into tiers, nearest first.
//!
//! The home's region comes before the client's own, and within a region the client's zone first. Then come the nearest of
//! the other regions, then the rest. No gateway is in two tiers. Where the client is and how far each region is from there,
//! was resolved before the decision ([`crate::locate`]) and comes with the request.

use super::Request;
use crate::fleet::{Fleet, Group, Sums};

/// Regions that are tiers by their distance. The others are the rest: who is sent there passed by six regions that spill.
const NEAR: usize = 4;

/// The client's zone, the home's region, the client's region, those near, the rest.
const MAX_TIERS: usize = 4 + NEAR;

/// Which tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TierKind {
    /// The client's zone.
    Zone,
    /// The region the user belongs to.
    Home,
    /// The client's region.
    Region,
    /// One of the nearest of the other regions.
    Near,
    /// Everything else.
    Rest,
}

impl TierKind {
    /// Its name in explanations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Zone => "zone",
            Self::Home => "home",
            Self::Region => "region",
            Self::Near => "near",
            Self::Rest => "rest",
        }
    }
}

/// Some gateways of a pool that are about equally near: a group without parts that are tiers of their own.
#[derive(Debug, Clone, Copy)]
pub struct Tier<'a> {
    /// Which.
    pub kind: TierKind,
    /// All of these
    pub group: &'a Group,
    /// but these: disjoint parts of it, in the order of their candidates.
    except: [Option<&'a Group>; MAX_TIERS],
}

impl<'a> Tier<'a> {
    /// A whole group.
    #[must_use]
    pub fn whole(kind: TierKind, group: &'a Group) -> Self {
        Self { kind, group, except: [None; MAX_TIERS] }
    }

    fn parts(&self) -> impl Iterator<Item = &'a Group> {
        self.except.iter().map_while(|part| *part)
    }

    fn without(mut self, part: &'a Group) -> Self {
        let mut inserted = Some(part);
        for slot in &mut self.except {
            match (inserted, *slot) {
                (None, _) => break,
                (Some(new), None) => {
                    *slot = Some(new);
                    inserted = None;
                }
                (Some(new), Some(old)) if new.candidates.start < old.candidates.start => {
                    *slot = Some(new);
                    inserted = Some(old);
                }
                _ => {}
            }
        }
        self
    }

    /// How many candidates it has.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.group.len() - self.parts().map(Group::len).sum::<u32>()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The candidate at `position`, below [`Tier::len`].
    #[must_use]
    pub fn candidate(&self, fleet: &Fleet, position: u32) -> u32 {
        let mut at = self.group.candidates.start + position;
        for part in self.parts() {
            if at < part.candidates.start {
                break;
            }
            at += part.len();
        }
        fleet.candidates[at as usize]
    }

    /// What its gateways hold together.
    #[must_use]
    pub fn sums(&self) -> Sums {
        self.parts().fold(self.group.sums(), |sums, part| sums.minus(part.sums()))
    }
}

/// The tiers of one decision.
pub(super) struct Tiers<'a> {
    items: [Option<Tier<'a>>; MAX_TIERS],
    len: usize,
}

impl<'a> Tiers<'a> {
    pub fn as_slice(&self) -> &[Option<Tier<'a>>] {
        &self.items[..self.len]
    }

    /// Only those of the home's region, which come first if there are any.
    pub fn of_home(&self) -> &[Option<Tier<'a>>] {
        let home =
            self.as_slice().iter().position(|tier| tier.is_some_and(|tier| tier.kind == TierKind::Home));
        &self.items[..home.map_or(0, |at| at + 1)]
    }

    fn push(&mut self, tier: Tier<'a>) {
        self.items[self.len] = Some(tier);
        self.len += 1;
    }
}

/// Cuts `pool` into tiers for a request, nearest first.
pub(super) fn tiers<'a>(fleet: &'a Fleet, pool: &'a Group, home: &str, request: &Request<'_>) -> Tiers<'a> {
    let mut tiers = Tiers { items: [None; MAX_TIERS], len: 0 };
    let mut rest = Tier::whole(TierKind::Rest, pool);
    let mut add_region = |tiers: &mut Tiers<'a>, kind: TierKind, region: &'a Group, zone: &str| {
        let mut whole = Tier::whole(kind, region);
        if !zone.is_empty()
            && let Some(zone) = fleet.zone(region, zone)
        {
            tiers.push(Tier::whole(TierKind::Zone, zone));
            whole = whole.without(zone);
        }
        tiers.push(whole);
        rest = rest.without(region);
    };
    let (region, zone) = (request.client.region, request.client.zone);
    if !home.is_empty()
        && let Some(group) = fleet.region(pool, home)
    {
        add_region(&mut tiers, TierKind::Home, group, if home == region { zone } else { "" });
    }
    if !region.is_empty()
        && region != home
        && let Some(group) = fleet.region(pool, region)
    {
        add_region(&mut tiers, TierKind::Region, group, zone);
    }
    let others = request.near.iter().filter(|near| near.region != home && near.region != region);
    for group in others.filter_map(|near| fleet.region(pool, near.region)).take(NEAR) {
        add_region(&mut tiers, TierKind::Near, group, "");
    }
    tiers.push(rest);
    tiers
}
