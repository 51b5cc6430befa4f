//! The policy in its checked form: homes, gray rules, where clients and regions are, and how load is spread.
//!
//! A policy is a versioned text (PROTOCOL.md, "Policy file"). [`parse`] makes a [`Policy`] of it or says where it is
//! wrong; [`PolicyStore`] decides which text may replace which; `watch` follows the file.

mod diff;
mod gray;
mod moves;
mod parse;
mod placement;
mod proximity;
mod store;
mod time;
pub(crate) mod watch;

#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    fmt::{self, Write},
    net::IpAddr,
    ops::Range,
};

use ipnet::IpNet;
use ring::digest::{SHA256, digest};
use semver::{Version, VersionReq};

pub use self::{
    diff::{Diff, Move, RuleChange},
    gray::{GrayRule, Guard, Step, Stop, Stops, Takes},
    moves::MoveLimits,
    parse::{MAX_TEXT, PolicyError, parse},
    proximity::{Distances, Geography, PlaceRule, Point, Proximity},
    store::{Offered, PolicyStore, Refused, Replaced, Taken, replaces},
    time::rfc3339,
};

pub(crate) use self::{
    parse::{MAX_WINDOW, with_version},
    placement::head,
};

/// The pool of everybody whom no gray rule takes.
pub const STABLE: &str = "stable";

/// The salt of home buckets.
pub const HOME_SALT: &str = "home";

/// What a client runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Platform {
    Ios,
    Android,
    Web,
    Desktop,
    Server,
}

impl Platform {
    /// Every platform of PROTOCOL.md.
    pub const ALL: [Self; 5] = [Self::Ios, Self::Android, Self::Web, Self::Desktop, Self::Server];

    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ios => "ios",
            Self::Android => "android",
            Self::Web => "web",
            Self::Desktop => "desktop",
            Self::Server => "server",
        }
    }

    /// The platform of this name. A newer SDK may name one that is not known here: no rule names that either.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|platform| platform.name() == name)
    }
}

/// What a gray rule can match on.
#[derive(Debug, Clone, Default)]
pub struct Client<'a> {
    /// What it runs on, if it said so.
    pub platform: Option<Platform>,
    /// The app's version, if it said one that reads as a version.
    pub app_version: Option<Version>,
    /// Where it is: resolved before the decision; may be empty.
    pub region: &'a str,
    /// Where it says it is, or its address does: what rules ask, since it is the same whichever gateways a replica knows. Resolved
    /// before the decision; may be empty.
    pub origin: &'a str,
    /// Its zone; empty until there is something to know it by.
    pub zone: &'a str,
    /// Its address.
    pub ip: Option<IpAddr>,
    /// Its device.
    pub device_id: &'a str,
}

/// What a user does whose home cannot take him.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum WhenDown {
    /// He is served by the next tiers, and goes home when that is possible again.
    #[default]
    Elsewhere,
    /// He waits.
    Wait,
}

impl WhenDown {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Elsewhere, Self::Wait];

    /// Its name in the policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Elsewhere => "elsewhere",
            Self::Wait => "wait",
        }
    }
}

/// Which region users belong to.
#[derive(Debug, Clone)]
pub struct Home {
    /// The region.
    pub region: String,
    /// These users belong to it, and
    pub users: HashSet<String>,
    /// those whose bucket under [`HOME_SALT`] is in here.
    pub buckets: Range<u16>,
    /// What they do when it cannot take them.
    pub when_down: WhenDown,
}

/// What must hold of a client; an empty list asks nothing.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    /// One of these platforms.
    pub platforms: Vec<Platform>,
    /// A version that fits; a pre-release may fit as the release that it leads to. A client without a version does not.
    pub app_version: Option<VersionReq>,
    /// One of these regions.
    pub regions: Vec<String>,
    /// An address in one of these networks.
    pub cidrs: Vec<IpNet>,
    /// One of these devices.
    pub devices: HashSet<String>,
}

impl Matcher {
    /// The first condition that does not hold, by its key in the policy; none: the client matches.
    #[must_use]
    pub fn mismatch(&self, client: &Client<'_>) -> Option<&'static str> {
        let platform = || client.platform.is_some_and(|platform| self.platforms.contains(&platform));
        if !self.platforms.is_empty() && !platform() {
            return Some("platforms");
        }
        if let Some(required) = &self.app_version
            && !client.app_version.as_ref().is_some_and(|version| fits(required, version))
        {
            return Some("app_version");
        }
        if !self.regions.is_empty() && !self.regions.iter().any(|region| region == client.origin) {
            return Some("regions");
        }
        let address = || client.ip.is_some_and(|ip| self.cidrs.iter().any(|net| net.contains(&ip)));
        if !self.cidrs.is_empty() && !address() {
            return Some("cidrs");
        }
        if !self.devices.is_empty() && !self.devices.contains(client.device_id) {
            return Some("devices");
        }
        None
    }
}

/// Cargo's rule lets a pre-release match only a requirement that names a pre-release of the same numbers. That is meant for
/// choosing dependencies; an operator who writes `>=7.3.0` means the betas of 7.4.0 too. So a pre-release that does not
/// match by itself is taken for the release that it leads to: the betas of 8.0.0 are not below 8, those of 7.3.0 are 7.3.0.
fn fits(required: &VersionReq, version: &Version) -> bool {
    required.matches(version)
        || (!version.pre.is_empty()
            && required.matches(&Version::new(version.major, version.minor, version.patch)))
}

/// A policy that was checked, as it is at one time: see [`Policy::at`].
#[derive(Debug, Clone)]
pub struct Policy {
    /// Grows with every change; 0 is the built-in empty one.
    pub version: u64,
    /// SHA-256 of the text, in hex: with the version, its identity.
    pub hash: String,
    /// As it was written.
    pub text: String,
    /// What stands for everything that decides where a connected user belongs.
    pub placement: u64,
    /// The first that matches wins.
    pub homes: Vec<Home>,
    /// The first that applies wins.
    pub gray: Vec<GrayRule>,
    /// Where clients and regions are.
    pub proximity: Proximity,
    /// Utilisation at which a tier spills into the next.
    pub spill_at: f64,
    /// No gateway above (1 + bound) x its tier's mean while another can take it.
    pub bound: f64,
    /// How long a new gateway counts for less than its capacity, in milliseconds.
    pub slow_start_ms: i64,
    /// Connected users of each gateway who are asked about in a second when homes or rules change; 0: they stay.
    pub moves_per_second: u32,
    /// When nobody is moved.
    pub move_limits: MoveLimits,
}

impl Default for Policy {
    /// The built-in empty policy: everybody to `stable`, by load alone.
    fn default() -> Self {
        Self {
            version: 0,
            hash: sha256_hex(""),
            text: String::new(),
            placement: 0,
            homes: Vec::new(),
            gray: Vec::new(),
            proximity: Proximity::default(),
            spill_at: 0.85,
            bound: 0.25,
            slow_start_ms: 30_000,
            moves_per_second: 100,
            move_limits: MoveLimits::default(),
        }
    }
}

impl Policy {
    /// The same at a time, with what was stopped; none: nothing of it is another.
    #[must_use]
    pub fn at(&self, wall_ms: i64, stops: &Stops) -> Option<Self> {
        let takes: Vec<_> = self.gray.iter().map(|rule| rule.takes_at(wall_ms, stops)).collect();
        if self.gray.iter().map(|rule| &rule.takes).eq(&takes) {
            return None;
        }
        let mut policy = self.clone();
        policy.gray.iter_mut().zip(takes).for_each(|(rule, takes)| rule.takes = takes);
        policy.placement = placement::placement(&policy.homes, &policy.gray);
        Some(policy)
    }
}

/// Reads an app's version. `7.3` and `7` are taken for `7.3.0` and `7.0.0`, since apps write them so.
#[must_use]
pub fn app_version(text: &str) -> Option<Version> {
    if let Ok(version) = Version::parse(text) {
        return Some(version);
    }
    let numbers = text.split('.').count();
    match numbers {
        1 => Version::parse(&format!("{text}.0.0")).ok(),
        2 => Version::parse(&format!("{text}.0")).ok(),
        _ => None,
    }
}

pub(crate) fn sha256_hex(text: &str) -> String {
    let mut hex = String::with_capacity(64);
    for byte in digest(&SHA256, text.as_bytes()).as_ref() {
        write!(hex, "{byte:02x}").expect("a String grows");
    }
    hex
}

impl fmt::Display for Policy {
    /// Its identity, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {} ({:.12})", self.version, self.hash)
    }
}
