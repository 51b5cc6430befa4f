//! The policy in force, and which text may replace it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use thiserror::Error;

use super::{Policy, PolicyError, Stop, Stops, parse};

/// What became of an offered text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is in force now.
    New,
    /// It was in force already.
    Same,
}

/// Why an offered text does not replace the policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refused {
    /// It is no policy.
    #[error("{0}")]
    Broken(#[from] PolicyError),
    /// Its version is lower.
    #[error("its version {offered} is older than {current}, which is in force; raise it")]
    Older {
        /// In force.
        current: u64,
        /// Refused.
        offered: u64,
    },
    /// The same version with another text.
    #[error("another text under version {0}, which is in force already; raise the version")]
    OtherText(u64),
}

/// Holds the policy in force as it is now; reading it takes no lock.
pub struct PolicyStore {
    current: ArcSwap<Policy>,
    /// What was stopped. Locked for every change: two offers at a time must not both find themselves newer.
    stops: Mutex<Stops>,
}

impl PolicyStore {
    /// Starts with `policy`.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { current: ArcSwap::from_pointee(policy), stops: Mutex::default() }
    }

    /// The policy in force.
    #[must_use]
    pub fn load(&self) -> arc_swap::Guard<Arc<Policy>> {
        self.current.load()
    }

    /// The same, to keep.
    #[must_use]
    pub fn load_full(&self) -> Arc<Policy> {
        self.current.load_full()
    }

    /// What a text would do now, with what is stopped; it is not put in force.
    ///
    /// # Errors
    /// When it is no policy.
    pub fn preview(&self, text: &str, wall_ms: i64) -> Result<Policy, PolicyError> {
        let policy = parse(text)?;
        Ok(policy.at(wall_ms, &self.stops()).unwrap_or(policy))
    }

    /// Puts the text in force, as it is at `wall_ms`, if it is a policy of a higher version.
    ///
    /// # Errors
    /// See [`Refused`]; the policy in force stays.
    pub fn offer(&self, text: &str, wall_ms: i64) -> Result<Taken, Refused> {
        let offered = parse(text)?;
        let stops = self.stops();
        let current = self.current.load();
        if offered.version < current.version {
            return Err(Refused::Older { current: current.version, offered: offered.version });
        }
        if offered.version > current.version {
            self.current.store(Arc::new(offered.at(wall_ms, &stops).unwrap_or(offered)));
            return Ok(Taken::New);
        }
        if offered.hash == current.hash { Ok(Taken::Same) } else { Err(Refused::OtherText(offered.version)) }
    }

    /// Stops a rule, or lets it go on; whether that changes what the policy in force does now.
    pub fn put_stop(&self, rule_id: &str, stop: Option<Stop>, wall_ms: i64) -> bool {
        let mut stops = self.stops();
        match stop {
            Some(stop) => stops.insert(rule_id.to_owned(), Arc::new(stop)),
            None => stops.remove(rule_id),
        };
        self.renew(&stops, wall_ms)
    }

    /// Time passed; whether a ramp is at another step by now.
    pub fn pass(&self, wall_ms: i64) -> bool {
        self.renew(&self.stops(), wall_ms)
    }

    fn renew(&self, stops: &Stops, wall_ms: i64) -> bool {
        let Some(other) = self.current.load().at(wall_ms, stops) else { return false };
        self.current.store(Arc::new(other));
        true
    }

    fn stops(&self) -> MutexGuard<'_, Stops> {
        self.stops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
