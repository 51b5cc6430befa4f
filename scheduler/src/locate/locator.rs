//! What every request asks where its client is: the address database in force and the votes.

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use super::{Claim, ClientSeen, Database, DistanceBy, Located, Votes, locate, votes};
use crate::{
    fleet::Fleet,
    metrics::{Proximity, Vote},
    policy::Policy,
};

/// Locates clients, and lets them vote.
pub(crate) struct Locator {
    /// Wakes the watch of the file: somebody asked to look at it now.
    pub reload: Notify,
    database: ArcSwapOption<Database>,
    votes: Votes,
    metrics: Proximity,
}

impl Locator {
    /// Without votes yet.
    pub fn new(database: Option<Database>, metrics: Proximity) -> Self {
        let locator = Self {
            reload: Notify::new(),
            database: ArcSwapOption::empty(),
            votes: Votes::default(),
            metrics,
        };
        if let Some(database) = database {
            locator.put(database);
        }
        locator
    }

    /// For the watch of the file.
    pub fn metrics(&self) -> &Proximity {
        &self.metrics
    }

    /// Puts a database in force.
    pub fn put(&self, database: Database) {
        self.metrics.built_at.set(database.built_at_s() as f64);
        self.database.store(Some(database.into()));
    }

    /// Locates a client that asks, counts it, and takes what it measured as its user's votes.
    pub fn ask<'a>(
        &self,
        fleet: &'a Fleet,
        policy: &'a Policy,
        claim: &Claim<'a>,
        user_id: &str,
        now_ms: i64,
    ) -> Located<'a> {
        let database = self.database.load();
        let votes = &self.votes;
        let located = locate(fleet, policy, database.as_deref(), votes, claim, seconds(now_ms));
        self.metrics.located(located.by);
        if database.is_some() && claim.ip.is_some() {
            self.metrics.lookup(located.locality.is_some());
        }
        let measured = located.near.as_slice().iter().filter(|near| near.by == DistanceBy::Measured);
        for near in measured.take(votes::REGIONS) {
            let vote = match &located.network {
                Some(network) => votes.cast(network, near.region, user_id, near.ms, seconds(now_ms)).into(),
                None => Vote::Unplaced,
            };
            self.metrics.vote(vote);
        }
        self.metrics.networks.set(votes.networks() as f64);
        located
    }

    /// Locates a client without counting anything, and tells what is known.
    pub fn explain<'a>(
        &self,
        fleet: &'a Fleet,
        policy: &'a Policy,
        claim: &Claim<'a>,
        now_ms: i64,
    ) -> (Located<'a>, ClientSeen) {
        let (votes, now_s) = (&self.votes, seconds(now_ms));
        let located = locate(fleet, policy, self.database.load().as_deref(), votes, claim, now_s);
        let polled = located.network.as_ref().and_then(|network| votes.polled(network, now_s));
        let seen = ClientSeen::of(&located, polled);
        (located, seen)
    }
}

/// Of the monotonic clock, which begins with the process.
fn seconds(now_ms: i64) -> u32 {
    u32::try_from(now_ms / 1000).unwrap_or(0)
}
