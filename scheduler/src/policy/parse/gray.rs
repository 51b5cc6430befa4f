//! Gray rules of a policy's text: whom they match, their ramps and their guards.

use std::collections::HashSet;

use semver::VersionReq;
use serde::Deserialize;
use toml::Spanned;

use super::{Place, PolicyError, label, network};
use crate::policy::{GrayRule, Guard, Matcher, Platform, STABLE, Step, Takes, time::Time};

/// Steps of one ramp: an hour's worth of them each quarter of a minute.
const MAX_STEPS: usize = 256;

/// The longest window, in seconds: the schedulers keep what each second brought for so long.
pub(crate) const MAX_WINDOW: u32 = 600;

/// Unless given, in seconds: two minutes of a slow pool's handshakes would stop a bad rule late, ten seconds' are few.
const WINDOW: u32 = 60;

/// Unless given: with fewer, one failure is more than the usual limit of 2%.
const MIN_HANDSHAKES: u32 = 50;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGray {
    id: Spanned<String>,
    pool: Spanned<String>,
    #[serde(default)]
    users: Vec<Spanned<String>>,
    percent: Option<Spanned<f64>>,
    ramp: Option<Spanned<Vec<Spanned<RawStep>>>>,
    salt: Option<Spanned<String>>,
    r#match: Option<Spanned<RawMatch>>,
    guard: Option<Spanned<RawGuard>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMatch {
    #[serde(default)]
    platforms: Vec<Spanned<String>>,
    app_version: Option<Spanned<String>>,
    #[serde(default)]
    regions: Vec<Spanned<String>>,
    #[serde(default)]
    cidrs: Vec<Spanned<String>>,
    #[serde(default)]
    devices: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    at: Spanned<Time>,
    percent: Spanned<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGuard {
    connect_failures: Option<Spanned<f64>>,
    abnormal_closes: Option<Spanned<f64>>,
    handshake_p99: Option<Spanned<f64>>,
    window_seconds: Option<Spanned<i64>>,
    min_handshakes: Option<Spanned<i64>>,
}

pub(super) fn gray_rules(
    place: &Place<'_>,
    raw: Vec<Spanned<RawGray>>,
) -> Result<Vec<GrayRule>, PolicyError> {
    let spans: Vec<_> = raw.iter().map(|rule| rule.get_ref().id.span()).collect();
    let rules = place.rules("gray", raw, gray)?;
    let mut seen = HashSet::new();
    for (index, (rule, span)) in rules.iter().zip(spans).enumerate() {
        if !seen.insert(&rule.id) {
            let reason = format!("{:?} is the id of an earlier rule too", rule.id);
            return Err(PolicyError { line: place.line(span), key: format!("gray[{index}].id"), reason });
        }
    }
    Ok(rules)
}

fn gray(place: &Place<'_>, key: &str, raw: Spanned<RawGray>) -> Result<GrayRule, PolicyError> {
    let rule = raw.get_ref();
    let splits = rule.percent.is_some() || rule.ramp.is_some();
    if !splits && (rule.users.is_empty() || rule.r#match.is_some()) {
        let reason = "percent is missing: how many of those that match? (0 to 100, or a ramp)".to_owned();
        return Err(place.error(&raw, key, reason));
    }
    let RawGray { id, pool, users, percent, ramp, salt, r#match, guard } = raw.into_inner();
    let id = place.id(id, &format!("{key}.id"))?;
    let percent = place.number(percent, &format!("{key}.percent"), 0.0..=100.0)?.unwrap_or(0.0);
    if let Some(guard) = &guard
        && *pool.get_ref() == STABLE
    {
        let reason = "its pool is \"stable\", which guards compare with".to_owned();
        return Err(place.error(guard, &format!("{key}.guard"), reason));
    }
    let mut rule = GrayRule {
        percent,
        ramp: ramp.map_or(Ok(Vec::new()), |steps| self::ramp(place, &format!("{key}.ramp"), steps))?,
        pool: place.id(pool, &format!("{key}.pool"))?,
        users: place.ids(users, &format!("{key}.users"))?,
        salt: match salt {
            Some(salt) => place.label(salt, &format!("{key}.salt"))?,
            None => id.clone(),
        },
        matcher: match r#match {
            Some(raw) => matcher(place, &format!("{key}.match"), raw.into_inner())?,
            None => Matcher::default(),
        },
        guard: guard.map(|raw| self::guard(place, &format!("{key}.guard"), raw)).transpose()?,
        id,
        hash: String::new(),
        takes: Takes::percent(percent),
    };
    rule.hash = rule.definition_hash();
    Ok(rule)
}

fn ramp(place: &Place<'_>, key: &str, raw: Spanned<Vec<Spanned<RawStep>>>) -> Result<Vec<Step>, PolicyError> {
    let count = raw.get_ref().len();
    if !(1..=MAX_STEPS).contains(&count) {
        return Err(place.error(&raw, key, format!("has {count} steps; give 1 to {MAX_STEPS}")));
    }
    let mut steps: Vec<Step> = Vec::with_capacity(count);
    for (index, step) in raw.into_inner().into_iter().enumerate() {
        let (key, RawStep { at, percent }) = (format!("{key}[{index}]"), step.into_inner());
        let Some(at_ms) = at.get_ref().ms else {
            let reason = "is no time with an offset, like 2026-12-01T10:00:00Z".to_owned();
            return Err(place.error(&at, &format!("{key}.at"), reason));
        };
        if steps.last().is_some_and(|before| before.at_ms >= at_ms) {
            let reason = "is not after the step before it".to_owned();
            return Err(place.error(&at, &format!("{key}.at"), reason));
        }
        let percent = place.within(&percent, &format!("{key}.percent"), 0.0..=100.0)?;
        steps.push(Step { at_ms, percent });
    }
    Ok(steps)
}

fn guard(place: &Place<'_>, key: &str, raw: Spanned<RawGuard>) -> Result<Guard, PolicyError> {
    let RawGuard { connect_failures, abnormal_closes, handshake_p99, .. } = raw.get_ref();
    if connect_failures.is_none() && abnormal_closes.is_none() && handshake_p99.is_none() {
        let reason = "has no limit: give connect_failures, abnormal_closes or handshake_p99".to_owned();
        return Err(place.error(&raw, key, reason));
    }
    let RawGuard { connect_failures, abnormal_closes, handshake_p99, window_seconds, min_handshakes } =
        raw.into_inner();
    let whole = |value: Option<Spanned<i64>>, name: &str, range, unless_given| {
        value.map_or(Ok(unless_given), |value| place.whole(&value, &format!("{key}.{name}"), range))
    };
    Ok(Guard {
        connect_failures: place.number(connect_failures, &format!("{key}.connect_failures"), 0.0..=1.0)?,
        abnormal_closes: place.number(abnormal_closes, &format!("{key}.abnormal_closes"), 0.0..=1.0)?,
        handshake_p99: place.number(handshake_p99, &format!("{key}.handshake_p99"), 1.0..=1_000.0)?,
        window_seconds: whole(window_seconds, "window_seconds", 1..=MAX_WINDOW, WINDOW)?,
        min_handshakes: whole(min_handshakes, "min_handshakes", 1..=1_000_000, MIN_HANDSHAKES)?,
    })
}

fn matcher(place: &Place<'_>, key: &str, raw: RawMatch) -> Result<Matcher, PolicyError> {
    let platform = |value: &str| {
        let names = Platform::ALL.map(Platform::name).join(", ");
        Platform::named(value).ok_or(format!("{value:?} is none of {names}"))
    };
    let version = |value: &str| value.parse::<VersionReq>().map_err(|e| format!("{value:?}: {e}"));
    Ok(Matcher {
        platforms: place.each(&raw.platforms, &format!("{key}.platforms"), platform)?,
        app_version: match raw.app_version {
            Some(text) => Some(place.one(&text, &format!("{key}.app_version"), version)?),
            None => None,
        },
        regions: place.each(&raw.regions, &format!("{key}.regions"), label)?,
        cidrs: place.each(&raw.cidrs, &format!("{key}.cidrs"), network)?,
        devices: place.ids(raw.devices, &format!("{key}.devices"))?,
    })
}
