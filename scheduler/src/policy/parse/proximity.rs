//! The policy's `[proximity]`.

use std::collections::HashSet;

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::{Place, PolicyError, label, network};
use crate::{
    locate::{Locality, MAX_MS, MIN_MS},
    policy::proximity::{PlaceRule, Point, Proximity},
};

/// Regions with a point or a distance: their distances are a square table.
const MAX_REGIONS: usize = 64;

/// Entries of each list of a place: they are looked at one by one.
const MAX_ENTRIES: usize = 1_000;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProximity {
    pub spill_at: Option<Spanned<f64>>,
    #[serde(default)]
    place: Vec<Spanned<RawPlace>>,
    #[serde(default)]
    region: Vec<Spanned<RawRegion>>,
    #[serde(default)]
    distance: Vec<Spanned<RawDistance>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlace {
    region: Spanned<String>,
    #[serde(default)]
    countries: Vec<Spanned<String>>,
    #[serde(default)]
    subdivisions: Vec<Spanned<String>>,
    #[serde(default)]
    asns: Vec<Spanned<i64>>,
    #[serde(default)]
    cidrs: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegion {
    name: Spanned<String>,
    lat: Spanned<f64>,
    lon: Spanned<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDistance {
    between: Spanned<[String; 2]>,
    ms: Spanned<i64>,
}

/// Checks the section.
pub(super) fn proximity(place: &Place<'_>, raw: RawProximity) -> Result<Proximity, PolicyError> {
    let spans = |raw: &RawProximity| -> Vec<_> {
        raw.region.iter().map(Spanned::span).chain(raw.distance.iter().map(Spanned::span)).collect()
    };
    let spans = spans(&raw);
    let places = place.rules("proximity.place", raw.place, place_rule)?;
    let points = place.rules("proximity.region", raw.region, region)?;
    let said = place.rules("proximity.distance", raw.distance, distance)?;
    // What goes wrong between the entries: twice the same, or too many regions.
    let (mut entries, mut regions) = (HashSet::new(), HashSet::new());
    let of_points = points.iter().map(|(name, _)| [name, name]);
    let of_said = said.iter().map(|([one, other], _)| if one < other { [one, other] } else { [other, one] });
    for (index, (pair, span)) in of_points.chain(of_said).zip(spans).enumerate() {
        let key = match index.checked_sub(points.len()) {
            None => format!("proximity.region[{index}]"),
            Some(index) => format!("proximity.distance[{index}]"),
        };
        let error = |reason| Err(PolicyError { line: place.line(span), key, reason });
        if !entries.insert(pair) {
            return error("says again what an earlier one said".to_owned());
        }
        regions.extend(pair);
        if regions.len() > MAX_REGIONS {
            return error(format!("is of one region more than {MAX_REGIONS}"));
        }
    }
    Ok(Proximity::new(places, &points, &said))
}

fn place_rule(place: &Place<'_>, key: &str, raw: Spanned<RawPlace>) -> Result<PlaceRule, PolicyError> {
    let listed = raw.get_ref();
    let lengths = [listed.countries.len(), listed.subdivisions.len(), listed.asns.len(), listed.cidrs.len()];
    if lengths == [0; 4] {
        let reason = "is of nobody: give countries, subdivisions, asns or cidrs".to_owned();
        return Err(place.error(&raw, key, reason));
    }
    if let Some(length) = lengths.into_iter().find(|length| *length > MAX_ENTRIES) {
        return Err(place.error(&raw, key, format!("has a list of {length}; at most {MAX_ENTRIES}")));
    }
    let raw = raw.into_inner();
    let mut asns = Vec::with_capacity(raw.asns.len());
    for (index, asn) in raw.asns.iter().enumerate() {
        asns.push(place.whole(asn, &format!("{key}.asns[{index}]"), 1..=u32::MAX)?);
    }
    asns.sort_unstable();
    let cidrs: Vec<IpNet> = place.each(&raw.cidrs, &format!("{key}.cidrs"), network)?;
    Ok(PlaceRule {
        region: place.label(raw.region, &format!("{key}.region"))?,
        countries: place.each(&raw.countries, &format!("{key}.countries"), country)?,
        subdivisions: place.each(&raw.subdivisions, &format!("{key}.subdivisions"), subdivision)?,
        asns,
        cidrs,
    })
}

fn country(value: &str) -> Result<Locality, String> {
    let found = Some(Locality::of(value, "")).filter(|found| !found.country().is_empty());
    found.ok_or_else(|| format!("{value:?} is no country code like CN (ISO 3166-1)"))
}

fn subdivision(value: &str) -> Result<Locality, String> {
    let found = value.split_once('-').map(|(country, part)| Locality::of(country, part));
    let found = found.filter(|found| !found.subdivision().is_empty());
    found.ok_or_else(|| format!("{value:?} is no code of a subdivision like CN-SH (ISO 3166-2)"))
}

fn region(place: &Place<'_>, key: &str, raw: Spanned<RawRegion>) -> Result<(String, Point), PolicyError> {
    let RawRegion { name, lat, lon } = raw.into_inner();
    let lat = place.number(Some(lat), &format!("{key}.lat"), -90.0..=90.0)?;
    let lon = place.number(Some(lon), &format!("{key}.lon"), -180.0..=180.0)?;
    let point = Point { lat: lat.unwrap_or_default(), lon: lon.unwrap_or_default() };
    Ok((place.label(name, &format!("{key}.name"))?, point))
}

fn distance(
    place: &Place<'_>,
    key: &str,
    raw: Spanned<RawDistance>,
) -> Result<([String; 2], u32), PolicyError> {
    let RawDistance { between, ms } = raw.into_inner();
    let wrong = |reason| place.error(&between, &format!("{key}.between"), reason);
    let [one, other] = between.get_ref();
    label(one).and_then(|_| label(other)).map_err(wrong)?;
    if one == other {
        return Err(wrong(format!("{one:?} is one region")));
    }
    Ok(([one.clone(), other.clone()], place.whole(&ms, &format!("{key}.ms"), MIN_MS..=MAX_MS)?))
}
