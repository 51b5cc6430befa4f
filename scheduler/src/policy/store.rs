//! The policy in force, and which text may replace it.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use thiserror::Error;

use super::{Policy, PolicyError, parse};

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

/// Holds the policy in force; reading it takes no lock.
pub struct PolicyStore {
    current: ArcSwap<Policy>,
    /// Two offers at a time must not both find themselves newer.
    offering: Mutex<()>,
}

impl PolicyStore {
    /// Starts with `policy`.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { current: ArcSwap::from_pointee(policy), offering: Mutex::new(()) }
    }

    /// The policy in force.
    #[must_use]
    pub fn load(&self) -> arc_swap::Guard<Arc<Policy>> {
        self.current.load()
    }

    /// Puts the text in force if it is a policy of a higher version.
    ///
    /// # Errors
    /// See [`Refused`]; the policy in force stays.
    pub fn offer(&self, text: &str) -> Result<Taken, Refused> {
        let offered = parse(text)?;
        let _one_at_a_time = self.offering.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load();
        if offered.version < current.version {
            return Err(Refused::Older { current: current.version, offered: offered.version });
        }
        if offered.version > current.version {
            self.current.store(Arc::new(offered));
            return Ok(Taken::New);
        }
        if offered.hash == current.hash { Ok(Taken::Same) } else { Err(Refused::OtherText(offered.version)) }
    }
}
