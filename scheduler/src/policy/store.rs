//! The policy in force, and which text may replace it.

use std::{
    cmp::Ordering,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use arc_swap::ArcSwap;
use thiserror::Error;

use super::{Policy, PolicyError, Stop, Stops, parse};

/// How far above the version in force one may be that an operator gives: a slip of the keyboard must not use up the numbers.
const MAX_LEAP: u64 = 1_000_000;

/// What became of an offered text.
#[derive(Debug, Clone)]
pub enum Taken {
    /// It is in force now.
    New(Replaced),
    /// It was in force already.
    Same(Arc<Policy>),
}

impl Taken {
    /// The policy of that text.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        match self {
            Self::New(Replaced { policy, .. }) | Self::Same(policy) => policy,
        }
    }
}

/// What was in force, and what is by now.
#[derive(Debug, Clone)]
pub struct Replaced {
    /// What was.
    pub before: Arc<Policy>,
    /// What is.
    pub policy: Arc<Policy>,
}

/// Who offers a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// A person: by a file, or by hand.
    Here,
    /// The schedulers agreed on it: of two texts under one version, this is the one that all of them keep.
    Agreed,
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
    /// Its version is so high that it must be a slip.
    #[error(
        "its version {offered} is more than {MAX_LEAP} above {current}, which is in force; give a lower one"
    )]
    Leap {
        /// In force.
        current: u64,
        /// Refused.
        offered: u64,
    },
}

/// Whether a policy is to replace another; false: it is the same.
///
/// # Errors
/// When it must not.
pub fn replaces(offered: &Policy, before: &Policy, from: Offered) -> Result<bool, Refused> {
    let versions = (before.version, offered.version);
    match (offered.version.cmp(&before.version), from) {
        (Ordering::Less, _) => Err(Refused::Older { current: versions.0, offered: versions.1 }),
        (Ordering::Equal, _) if offered.hash == before.hash => Ok(false),
        (Ordering::Equal, Offered::Here) => Err(Refused::OtherText(versions.1)),
        // The first policy may begin where it likes; and one that was agreed on is in force elsewhere.
        (Ordering::Greater, Offered::Here) if versions.0 > 0 && versions.1 - versions.0 > MAX_LEAP => {
            Err(Refused::Leap { current: versions.0, offered: versions.1 })
        }
        _ => Ok(true),
    }
}

/// Holds the policy in force as it is now; reading it takes no lock.
pub struct PolicyStore {
    current: ArcSwap<Policy>,
    /// What was stopped. Locked for every change: two offers at a time must not both find themselves newer.
    stops: Mutex<Stops>,
    /// False: it is of a file that a scheduler started with, and nobody has said yet what the schedulers agreed on.
    agreed: AtomicBool,
}

impl PolicyStore {
    /// Starts with `policy`, which nobody has agreed to, unless it is no policy at all.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let agreed = AtomicBool::new(policy.version == 0);
        Self { current: ArcSwap::from_pointee(policy), stops: Mutex::default(), agreed }
    }

    /// Whether what is in force is what the schedulers agreed on, as far as anybody can know.
    #[must_use]
    pub fn agreed(&self) -> bool {
        self.agreed.load(SeqCst)
    }

    /// What is in force is agreed on from now on; false: it was already.
    pub fn agree(&self) -> bool {
        !self.agreed.swap(true, SeqCst)
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

    /// Puts the text in force, as it is at `wall_ms`, if it is a policy of a higher version, or what was agreed on.
    ///
    /// # Errors
    /// See [`Refused`]; the policy in force stays.
    pub fn offer(&self, text: &str, from: Offered, wall_ms: i64) -> Result<Taken, Refused> {
        let offered = parse(text)?;
        let stops = self.stops();
        let before = self.current.load_full();
        if !replaces(&offered, &before, from)? {
            return Ok(Taken::Same(before));
        }
        let policy = Arc::new(offered.at(wall_ms, &stops).unwrap_or(offered));
        self.current.store(Arc::clone(&policy));
        Ok(Taken::New(Replaced { before, policy }))
    }

    /// Puts the text in force in place of `file`; none: that is not in force any more.
    ///
    /// # Errors
    /// When it is no policy.
    pub fn adopt(&self, text: &str, file: &Policy, wall_ms: i64) -> Result<Option<Arc<Policy>>, PolicyError> {
        let adopted = parse(text)?;
        let stops = self.stops();
        if self.current.load().hash != file.hash {
            return Ok(None);
        }
        let policy = Arc::new(adopted.at(wall_ms, &stops).unwrap_or(adopted));
        self.current.store(Arc::clone(&policy));
        Ok(Some(policy))
    }

    /// Stops the rule of that definition, or lets it go on; none: that changes nothing of what the policy in force does now.
    pub fn put_stop(&self, rule_hash: &str, stop: Option<Stop>, wall_ms: i64) -> Option<Replaced> {
        let mut stops = self.stops();
        match stop {
            Some(stop) => stops.insert(rule_hash.to_owned(), Arc::new(stop)),
            None => stops.remove(rule_hash),
        };
        self.renew(&stops, wall_ms)
    }

    /// Time passed; none: every ramp is at the step it was at.
    pub fn pass(&self, wall_ms: i64) -> Option<Replaced> {
        self.renew(&self.stops(), wall_ms)
    }

    fn renew(&self, stops: &Stops, wall_ms: i64) -> Option<Replaced> {
        let before = self.current.load_full();
        let policy = Arc::new(before.at(wall_ms, stops)?);
        self.current.store(Arc::clone(&policy));
        Some(Replaced { before, policy })
    }

    fn stops(&self) -> MutexGuard<'_, Stops> {
        self.stops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
