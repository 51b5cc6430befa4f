//! Where a client is thought to be, as `:explain` tells it.

use serde::Serialize;

use super::{Located, Polled, RegionBy};

/// Where a client is thought to be, and from what.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientSeen {
    /// Its region; empty: not known.
    region: String,
    /// `hint`, `place`, `gateway` or `nothing`.
    region_by: &'static str,
    /// The region that gray rules ask: its hint, or where its address is.
    origin: String,
    /// The `[[proximity.place]]` of the policy that told it, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<usize>,
    /// What the address database says of its address: `AS4134 CN-SH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// Whose measurements it shares.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    /// How far regions are, nearest first.
    distances: Vec<DistanceSeen>,
}

/// How far a region is, and what told it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DistanceSeen {
    region: String,
    /// As a round trip.
    ms: u32,
    /// `measured`, `votes`, `distance` or `coordinates`.
    by: &'static str,
    /// What the network's clients measured, whether or not they are enough to count.
    #[serde(skip_serializing_if = "Option::is_none")]
    votes: Option<VotesSeen>,
}

/// The votes of a network for a region.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VotesSeen {
    count: usize,
    /// How many fresh ones they are worth.
    weight: f64,
    median_ms: u32,
}

impl ClientSeen {
    /// Writes down where a client is.
    #[must_use]
    pub fn of(located: &Located<'_>, polled: Option<Polled<'_>>) -> Self {
        let (region_by, place) = match located.by {
            RegionBy::Hint => ("hint", None),
            RegionBy::Place(index) => ("place", Some(index)),
            RegionBy::Gateway => ("gateway", None),
            RegionBy::Nothing => ("nothing", None),
        };
        let votes = |region: &str| {
            let tally = polled.as_ref().and_then(|polled| polled.tally(region))?;
            Some(VotesSeen { count: tally.votes, weight: tally.fresh(), median_ms: tally.ms })
        };
        let distances = located.near.as_slice().iter().map(|near| DistanceSeen {
            region: near.region.to_owned(),
            ms: near.ms,
            by: near.by.name(),
            votes: votes(near.region),
        });
        Self {
            region: located.region.to_owned(),
            region_by,
            origin: located.origin.to_owned(),
            place,
            address: located.locality.map(|locality| locality.to_string()),
            network: located.network.map(|network| network.to_string()),
            distances: distances.collect(),
        }
    }
}
