//! What the stages of a decision tell about themselves.

use super::{Domain, Dropped, Tier, Verdict};
use crate::{
    fleet::{Fleet, Sums},
    policy::GrayRule,
};

/// What became of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TierVerdict {
    /// The first gateway is of it.
    Chosen,
    /// Its utilisation is at or above `spill_at`: the next one first.
    Spills,
    /// It has no gateway that serves.
    Empty,
    /// None of its gateways can be taken for this request.
    NobodyLeft,
}

impl TierVerdict {
    /// Its name in explanations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::Spills => "spills",
            Self::Empty => "empty",
            Self::NobodyLeft => "nobody_left",
        }
    }
}

/// Is told what the stages do, in their order.
pub trait Observer {
    /// The fleet that there is to choose from.
    fn admission(&mut self, _known: usize, _assignable: usize) {}
    /// The region the user belongs to, or none.
    fn home(&mut self, _region: &str) {}
    /// A gray rule was looked at.
    fn rule(&mut self, _rule: &GrayRule, _verdict: Verdict) {}
    /// A pool is tried, with so many assignable gateways.
    fn pool(&mut self, _name: &str, _candidates: u32, _allow_failed: bool) {}
    /// A tier was looked at.
    fn tier(&mut self, _fleet: &Fleet, _tier: &Tier<'_>, _sums: Sums, _verdict: TierVerdict) {}
    /// A gateway was drawn, and this is its score or why it cannot be taken.
    fn drawn(&mut self, _gateway: u32, _judged: Result<f64, Dropped>) {}
    /// A gateway went on the list.
    fn ranked(&mut self, _gateway: u32, _domain: Domain) {}
}

/// Does not listen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}
