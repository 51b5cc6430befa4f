//! What the policy says of where clients and regions are.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::locate::{DistanceBy, Locality};

/// Kilometres that a packet and its answer come in a millisecond: 100 in a straight fibre, of which cables and routers leave three
/// fifths.
const KM_PER_MS: f64 = 60.0;

/// The earth's mean radius (IUGG), in kilometres.
const EARTH_KM: f64 = 6_371.0;

/// Says of some clients which region is theirs. Of each list that is not empty one entry must hold.
#[derive(Debug, Clone, Default)]
pub struct PlaceRule {
    /// Their region.
    pub region: String,
    /// Countries.
    pub countries: Vec<Locality>,
    /// Subdivisions, each with its country.
    pub subdivisions: Vec<Locality>,
    /// Numbers of autonomous systems, sorted.
    pub asns: Vec<u32>,
    /// Networks.
    pub cidrs: Vec<IpNet>,
}

impl PlaceRule {
    fn holds(&self, ip: IpAddr, locality: Locality) -> bool {
        let within = |list: &[Locality]| list.is_empty() || list.iter().any(|one| locality.within(one));
        within(&self.countries)
            && within(&self.subdivisions)
            && (self.asns.is_empty() || self.asns.binary_search(&locality.asn).is_ok())
            && (self.cidrs.is_empty() || self.cidrs.iter().any(|net| net.contains(&ip)))
    }
}

/// A point on the earth, in degrees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// North of the equator.
    pub lat: f64,
    /// East of Greenwich.
    pub lon: f64,
}

impl Point {
    /// Along the great circle, by the haversine formula.
    fn km(self, other: Self) -> f64 {
        let half = |a: f64, b: f64| ((b - a).to_radians() / 2.0).sin().powi(2);
        let cosines = self.lat.to_radians().cos() * other.lat.to_radians().cos();
        let chord = half(self.lat, other.lat) + cosines * half(self.lon, other.lon);
        2.0 * EARTH_KM * chord.sqrt().min(1.0).asin()
    }

    /// The round trip that is to be expected, in milliseconds; at least 1.
    #[must_use]
    pub fn ms(self, other: Self) -> u32 {
        (self.km(other) / KM_PER_MS).round().max(1.0) as u32
    }
}

/// How far one region is from another by the policy alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geography {
    /// The round trip, in milliseconds.
    pub ms: u32,
    /// What told it.
    pub by: DistanceBy,
}

/// Where clients and regions are.
#[derive(Debug, Clone, Default)]
pub struct Proximity {
    /// The first that holds wins.
    pub places: Vec<PlaceRule>,
    /// Regions with a point or a distance, sorted.
    names: Vec<String>,
    /// From each of them (rows) to each.
    distances: Vec<Option<Geography>>,
}

impl Proximity {
    /// Puts it together: distances that were said stand before those of points.
    #[must_use]
    pub fn new(places: Vec<PlaceRule>, points: &[(String, Point)], said: &[([String; 2], u32)]) -> Self {
        let of_said = said.iter().flat_map(|(pair, _)| pair);
        let mut names: Vec<_> = points.iter().map(|(name, _)| name).chain(of_said).cloned().collect();
        names.sort_unstable();
        names.dedup();
        let mut proximity = Self { places, distances: vec![None; names.len().pow(2)], names };
        for (from, here) in points {
            for (to, there) in points.iter().filter(|(to, _)| to != from) {
                proximity.set(from, to, Geography { ms: here.ms(*there), by: DistanceBy::Coordinates });
            }
        }
        for ([one, other], ms) in said {
            let distance = Geography { ms: *ms, by: DistanceBy::Distance };
            proximity.set(one, other, distance);
            proximity.set(other, one, distance);
        }
        proximity
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.names.binary_search_by(|own| own.as_str().cmp(name)).ok()
    }

    fn set(&mut self, from: &str, to: &str, distance: Geography) {
        if let (Some(from), Some(to)) = (self.index(from), self.index(to)) {
            self.distances[from * self.names.len() + to] = Some(distance);
        }
    }

    /// The first place that holds of a client, and its region.
    #[must_use]
    pub fn place(&self, ip: IpAddr, locality: Locality) -> Option<(usize, &str)> {
        let index = self.places.iter().position(|place| place.holds(ip, locality))?;
        Some((index, &self.places[index].region))
    }

    /// The distances from a region, if any is known.
    #[must_use]
    pub fn from(&self, region: &str) -> Option<Distances<'_>> {
        let row = self.index(region)? * self.names.len();
        Some(Distances { proximity: self, row: &self.distances[row..row + self.names.len()] })
    }
}

/// The distances from one region.
#[derive(Debug, Clone, Copy)]
pub struct Distances<'a> {
    proximity: &'a Proximity,
    row: &'a [Option<Geography>],
}

impl Distances<'_> {
    /// The distance to a region, if it is known.
    #[must_use]
    pub fn to(&self, region: &str) -> Option<Geography> {
        self.row[self.proximity.index(region)?]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn great_circles() {
        let at = |lat, lon| Point { lat, lon };
        let (frankfurt, new_york, sydney) = (at(50.1, 8.7), at(40.7, -74.0), at(-33.9, 151.2));
        assert!((frankfurt.km(new_york) - 6_200.0).abs() < 50.0, "{}", frankfurt.km(new_york));
        assert!((frankfurt.km(sydney) - 16_500.0).abs() < 100.0, "{}", frankfurt.km(sydney));
        assert!((at(0.0, 179.0).km(at(0.0, -179.0)) - 222.0).abs() < 1.0, "over the date line");
        assert!((at(90.0, 0.0).km(at(-90.0, 77.0)) - 20_015.0).abs() < 1.0, "from pole to pole");
        assert_eq!((frankfurt.ms(frankfurt), frankfurt.ms(new_york)), (1, 103));
    }
}
