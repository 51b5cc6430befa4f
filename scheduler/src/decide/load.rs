//! Least connections without herding: two random choices, bounded by the tier's mean.
//!
//! Always taking the least loaded of reports that are up to half a second old sends everybody of that half second to one
//! gateway. Two random choices (Mitzenmacher, "The power of two choices in randomized load balancing", 1996) spread them.

use rand::Rng;

use super::{Observer, Request, Tier, TierKind, TierVerdict};
use crate::{fleet::Fleet, policy::Policy, transport::Transports};

/// Gateways of `failed` that count: a client walks a list of 5 and asks again after 3 failures, so 32 are ten rounds.
pub const MAX_FAILED: usize = 32;

/// Pairs drawn before the whole tier is looked through: with half of a tier refusing, one in 256 decisions does.
const DRAWS: usize = 4;

/// Why a gateway that may be assigned is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// Own pending assignments have filled it.
    Full,
    /// The client could not reach it.
    Failed,
    /// It offers none of the transports asked for.
    Transport,
    /// It is on the list already.
    Taken,
    /// It is above (1 + bound) x the tier's mean.
    OverBound,
}

impl Dropped {
    /// Its name in explanations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Failed => "failed",
            Self::Transport => "transport",
            Self::Taken => "taken",
            Self::OverBound => "over_bound",
        }
    }
}

/// Judges and compares gateways for one request.
pub(super) struct Chooser<'a> {
    pub fleet: &'a Fleet,
    pub allow_failed: bool,
    transports: Transports,
    failed: [u32; MAX_FAILED],
    failed_len: usize,
}

impl<'a> Chooser<'a> {
    pub fn new(fleet: &'a Fleet, request: &Request<'_>) -> Self {
        let mut failed = [0; MAX_FAILED];
        let mut failed_len = 0;
        let known = request.failed.iter().filter_map(|id| fleet.find(id));
        for (slot, gateway) in failed.iter_mut().zip(known) {
            *slot = gateway;
            failed_len += 1;
        }
        Self { fleet, allow_failed: false, transports: request.transports, failed, failed_len }
    }

    pub fn any_failed(&self) -> bool {
        self.failed_len > 0
    }

    /// The gateway's score, or why it cannot be taken.
    pub fn judge(&self, index: u32, taken: &[u32]) -> Result<f64, Dropped> {
        let gateway = self.fleet.gateway(index);
        if taken.contains(&index) {
            Err(Dropped::Taken)
        } else if !gateway.has_room() {
            Err(Dropped::Full)
        } else if !self.allow_failed && self.failed[..self.failed_len].contains(&index) {
            Err(Dropped::Failed)
        } else if !gateway.profile.transports.meets(self.transports) {
            Err(Dropped::Transport)
        } else {
            Ok(gateway.score())
        }
    }

    fn bounded(&self, index: u32, score: f64, limit: f64) -> Result<f64, Dropped> {
        if self.fleet.gateway(index).tier_score() <= limit { Ok(score) } else { Err(Dropped::OverBound) }
    }

    /// A gateway of the tier that is not taken: the less loaded of two drawn at random, if its score is at most `limit`.
    /// When several pairs give none, all are looked at.
    pub fn choose(
        &self,
        tier: &Tier<'_>,
        taken: &[u32],
        limit: f64,
        rng: &mut impl Rng,
        observer: &mut impl Observer,
    ) -> Option<u32> {
        let candidates = tier.len();
        if candidates == 0 || !tier.group.transports.meets(self.transports) {
            return None;
        }
        for _ in 0..if candidates == 1 { 1 } else { DRAWS } {
            let one = rng.random_range(0..candidates);
            // A second one that differs: any of the others, equally likely.
            let other =
                if candidates == 1 { one } else { (one + rng.random_range(1..candidates)) % candidates };
            let drawn = [one, other].map(|position| tier.candidate(self.fleet, position));
            let judged = drawn.map(|gateway| {
                let judged = self.judge(gateway, taken).and_then(|score| self.bounded(gateway, score, limit));
                observer.drawn(gateway, judged);
                judged
            });
            match judged {
                [Ok(a), Ok(b)] => return Some(if b < a { drawn[1] } else { drawn[0] }),
                [Ok(_), Err(_)] => return Some(drawn[0]),
                [Err(_), Ok(_)] => return Some(drawn[1]),
                [Err(_), Err(_)] => {}
            }
        }
        self.scan(tier, taken, limit, rng, observer)
    }

    /// Looks through the tier when the draws gave nobody: still two at random among those that can be taken within the
    /// limit (Vitter's algorithm R, 1985), since the least loaded of all would herd. The least only when none is within.
    fn scan(
        &self,
        tier: &Tier<'_>,
        taken: &[u32],
        limit: f64,
        rng: &mut impl Rng,
        observer: &mut impl Observer,
    ) -> Option<u32> {
        let mut drawn: [Option<(f64, u32)>; 2] = [None; 2];
        let mut within = 0;
        let mut above: Option<(f64, u32)> = None;
        for position in 0..tier.len() {
            let gateway = tier.candidate(self.fleet, position);
            let Ok(score) = self.judge(gateway, taken) else { continue };
            if self.bounded(gateway, score, limit).is_ok() {
                let place = if within < 2 { within } else { rng.random_range(0..=within) };
                if let Some(slot) = drawn.get_mut(place) {
                    *slot = Some((score, gateway));
                }
                within += 1;
            } else if above.is_none_or(|least| score < least.0) {
                above = Some((score, gateway));
            }
        }
        let [one, other] = drawn;
        let chosen = [one.or(above), other];
        let chosen =
            chosen.into_iter().flatten().inspect(|(score, gateway)| observer.drawn(*gateway, Ok(*score)));
        chosen.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, gateway)| gateway)
    }
}

/// The first gateway of the list: of the nearest tier below `spill_at`, or, when all are above, of the nearest with room.
pub(super) fn primary<'a>(
    chooser: &mut Chooser<'a>,
    policy: &Policy,
    tiers: &[Option<Tier<'a>>],
    rng: &mut impl Rng,
    observer: &mut impl Observer,
) -> Option<(u32, TierKind)> {
    for spilling in [false, true] {
        for tier in tiers.iter().flatten() {
            let sums = tier.sums();
            let spills = sums.utilisation() >= policy.spill_at;
            if sums.capacity == 0 || spills != spilling {
                if !spilling {
                    let verdict = if sums.capacity == 0 { TierVerdict::Empty } else { TierVerdict::Spills };
                    observer.tier(chooser.fleet, tier, sums, verdict);
                }
                continue;
            }
            let limit = sums.mean_score() * (1.0 + policy.bound);
            let chosen = chooser.choose(tier, &[], limit, rng, observer);
            let verdict = if chosen.is_some() { TierVerdict::Chosen } else { TierVerdict::NobodyLeft };
            observer.tier(chooser.fleet, tier, sums, verdict);
            if let Some(gateway) = chosen {
                return Some((gateway, tier.kind));
            }
        }
    }
    None
}
