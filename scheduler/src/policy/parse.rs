//! From a policy's text to its checked form, or to the line, key and reason why not.

mod gray;
mod moves;
mod proximity;

use std::{collections::HashSet, ops::Range};

use berth_proto::{bucket::BUCKETS, id, limits};
use ipnet::IpNet;
use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

pub(crate) use self::gray::MAX_WINDOW;
use self::{
    gray::{RawGray, gray_rules},
    moves::{RawMove, moves},
    proximity::{RawProximity, proximity},
};
use super::{Home, Policy, WhenDown, placement::placement, sha256_hex};

/// Largest policy text, in bytes: 10,000 named users and room around them. It travels to every gateway.
pub const MAX_TEXT: usize = 1024 * 1024;

/// Highest version: above, whoever reads it as a JSON number may read another one.
const MAX_VERSION: u64 = 1 << 53;

/// Rules of one kind: each is looked at for every decision until one applies.
const MAX_RULES: usize = 256;

/// Why a text is no policy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}, {key}: {reason}")]
pub struct PolicyError {
    /// From 1.
    pub line: usize,
    /// The path of the key: `gray[0].percent`; `policy` for the whole.
    pub key: String,
    /// What is wrong with it, with its value where that is short.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    version: Spanned<i64>,
    #[serde(default)]
    home: Vec<Spanned<RawHome>>,
    #[serde(default)]
    gray: Vec<Spanned<RawGray>>,
    #[serde(default)]
    proximity: RawProximity,
    #[serde(default)]
    load: RawLoad,
    #[serde(default)]
    r#move: RawMove,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHome {
    region: Spanned<String>,
    users: Option<Vec<Spanned<String>>>,
    buckets: Option<Spanned<[i64; 2]>>,
    when_down: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLoad {
    bound: Option<Spanned<f64>>,
    slow_start_seconds: Option<Spanned<f64>>,
}

/// Reads and checks a policy.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse(text: &str) -> Result<Policy, PolicyError> {
    let place = Place { text };
    if text.len() > MAX_TEXT {
        let reason = format!("has {} bytes; at most {MAX_TEXT}", text.len());
        return Err(PolicyError { line: 1, key: "policy".to_owned(), reason });
    }
    let raw = read(text, &place)?;
    let defaults = Policy::default();
    let version = *raw.version.get_ref();
    let version = u64::try_from(version)
        .ok()
        .filter(|version| *version > 0)
        .ok_or_else(|| place.error(&raw.version, "version", format!("{version} is not above 0")))?;
    if version > MAX_VERSION {
        return Err(place.error(&raw.version, "version", format!("{version} is above {MAX_VERSION}")));
    }
    let spill_at = place.number(raw.proximity.spill_at.clone(), "proximity.spill_at", 0.0..=1.0)?;
    let bound = place.number(raw.load.bound, "load.bound", 0.0..=100.0)?;
    let slow_start = place.number(raw.load.slow_start_seconds, "load.slow_start_seconds", 0.0..=86_400.0)?;
    let (moves_per_second, move_limits) = moves(&place, raw.r#move)?;
    let (homes, gray) = (place.rules("home", raw.home, home)?, gray_rules(&place, raw.gray)?);
    Ok(Policy {
        version,
        placement: placement(&homes, &gray),
        hash: sha256_hex(text),
        text: text.to_owned(),
        homes,
        gray,
        proximity: proximity(&place, raw.proximity)?,
        spill_at: spill_at.unwrap_or(defaults.spill_at),
        bound: bound.unwrap_or(defaults.bound),
        slow_start_ms: slow_start.map_or(defaults.slow_start_ms, |seconds| (seconds * 1000.0) as i64),
        moves_per_second,
        move_limits,
    })
}

/// The text of a policy under another version.
///
/// # Errors
/// When it is no policy.
pub(crate) fn with_version(text: &str, version: u64) -> Result<String, PolicyError> {
    let raw = read(text, &Place { text })?;
    let span = raw.version.span();
    Ok(format!("{}{version}{}", &text[..span.start], &text[span.end..]))
}

fn read(text: &str, place: &Place<'_>) -> Result<RawPolicy, PolicyError> {
    let whole = |error: toml::de::Error| place.toml_error("policy".to_owned(), &error);
    let document = toml::Deserializer::parse(text).map_err(whole)?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        // toml passes spans through a field of this name.
        let path = error.path().to_string().replace(".$__serde_spanned_private_value", "");
        let key = if path == "." { "policy".to_owned() } else { path };
        place.toml_error(key, error.inner())
    })
}

fn home(place: &Place<'_>, key: &str, raw: Spanned<RawHome>) -> Result<Home, PolicyError> {
    let missing = || place.error(&raw, key, "names nobody: give users or buckets".to_owned());
    if raw.get_ref().users.is_none() && raw.get_ref().buckets.is_none() {
        return Err(missing());
    }
    let RawHome { region, users, buckets, when_down } = raw.into_inner();
    let choice = |value: &str| {
        let found = WhenDown::ALL.into_iter().find(|choice| choice.name() == value);
        found.ok_or_else(|| format!("{value:?} is neither elsewhere nor wait"))
    };
    Ok(Home {
        region: place.label(region, &format!("{key}.region"))?,
        users: place.ids(users.unwrap_or_default(), &format!("{key}.users"))?,
        buckets: buckets.map_or(Ok(0..0), |range| bucket_range(place, &format!("{key}.buckets"), &range))?,
        when_down: match when_down {
            Some(text) => place.one(&text, &format!("{key}.when_down"), choice)?,
            None => WhenDown::default(),
        },
    })
}

fn bucket_range(place: &Place<'_>, key: &str, range: &Spanned<[i64; 2]>) -> Result<Range<u16>, PolicyError> {
    let [start, end] = *range.get_ref();
    match (u16::try_from(start), u16::try_from(end)) {
        (Ok(start), Ok(end)) if start < end && end <= BUCKETS => Ok(start..end),
        _ => {
            let reason = format!("[{start}, {end}] is no half-open range within [0, {BUCKETS}]");
            Err(place.error(range, key, reason))
        }
    }
}

/// An address alone is the network of that address.
fn network(value: &str) -> Result<IpNet, String> {
    let address = value.parse::<std::net::IpAddr>().map(IpNet::from);
    address.or_else(|_| value.parse()).map_err(|_| format!("{value:?} is no network like 10.0.0.0/8"))
}

fn label(value: &str) -> Result<String, String> {
    match value.len() {
        1..=limits::CLIENT_TEXT => Ok(value.to_owned()),
        length => Err(format!("has {length} bytes; give 1 to {}", limits::CLIENT_TEXT)),
    }
}

/// Finds the line of things, for errors.
struct Place<'a> {
    text: &'a str,
}

impl Place<'_> {
    fn line(&self, span: Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..span.start).unwrap_or(self.text.as_bytes());
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn error<T>(&self, at: &Spanned<T>, key: &str, reason: String) -> PolicyError {
        PolicyError { line: self.line(at.span()), key: key.to_owned(), reason }
    }

    fn toml_error(&self, key: String, error: &toml::de::Error) -> PolicyError {
        let line = self.line(error.span().unwrap_or(0..0));
        PolicyError { line, key, reason: error.message().trim().replace('\n', ", ") }
    }

    fn one<T>(
        &self,
        raw: &Spanned<String>,
        key: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, PolicyError> {
        read(raw.get_ref()).map_err(|reason| self.error(raw, key, reason))
    }

    fn each<T, C: FromIterator<T>>(
        &self,
        raw: &[Spanned<String>],
        key: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<C, PolicyError> {
        let indexed = raw.iter().enumerate();
        indexed.map(|(index, value)| self.one(value, &format!("{key}[{index}]"), &read)).collect()
    }

    fn id(&self, raw: Spanned<String>, key: &str) -> Result<String, PolicyError> {
        self.one(&raw, key, |value| id::check(value).map(|()| value.to_owned()).map_err(|e| e.to_string()))
    }

    fn ids(&self, raw: Vec<Spanned<String>>, key: &str) -> Result<HashSet<String>, PolicyError> {
        self.each(&raw, key, |value| id::check(value).map(|()| value.to_owned()).map_err(|e| e.to_string()))
    }

    fn label(&self, raw: Spanned<String>, key: &str) -> Result<String, PolicyError> {
        self.one(&raw, key, label)
    }

    fn number(
        &self,
        raw: Option<Spanned<f64>>,
        key: &str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>, PolicyError> {
        raw.map(|raw| self.within(&raw, key, range)).transpose()
    }

    fn within(
        &self,
        raw: &Spanned<f64>,
        key: &str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<f64, PolicyError> {
        let value = *raw.get_ref();
        if range.contains(&value) {
            return Ok(value);
        }
        Err(self.error(raw, key, format!("{value} is not between {} and {}", range.start(), range.end())))
    }

    fn whole(
        &self,
        raw: &Spanned<i64>,
        key: &str,
        range: std::ops::RangeInclusive<u32>,
    ) -> Result<u32, PolicyError> {
        let value = *raw.get_ref();
        u32::try_from(value).ok().filter(|value| range.contains(value)).ok_or_else(|| {
            self.error(raw, key, format!("{value} is not between {} and {}", range.start(), range.end()))
        })
    }

    fn rules<R, T>(
        &self,
        kind: &str,
        raw: Vec<Spanned<R>>,
        read: impl Fn(&Self, &str, Spanned<R>) -> Result<T, PolicyError>,
    ) -> Result<Vec<T>, PolicyError> {
        if let Some(extra) = raw.get(MAX_RULES) {
            return Err(self.error(extra, kind, format!("are {}; at most {MAX_RULES}", raw.len())));
        }
        let indexed = raw.into_iter().enumerate();
        indexed.map(|(index, rule)| read(self, &format!("{kind}[{index}]"), rule)).collect()
    }
}
