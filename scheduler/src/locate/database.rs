//! The address database: an MMDB file (MaxMind DB file format 2.0), read whole and checked whole before it is used.
//!
//! Every record is read once, when the file is loaded. A lookup then walks the search tree (at most 128 steps) and finds the record
//! by its place in the file: it decodes nothing, allocates nothing, and cannot fail.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    net::IpAddr,
};

use maxminddb::{LookupResult, MaxMindDbError, PathElement, Reader, WithinOptions};
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

/// Largest file, in bytes: twice the largest city database. While a new one is read, there are two in memory.
pub const MAX_FILE: u64 = 256 * 1024 * 1024;

/// What is known of an address; what is not known is empty or 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// ISO 3166-1 alpha-2.
    country: [u8; 2],
    /// What follows the country in its ISO 3166-2 code: one to three characters.
    subdivision: [u8; 3],
    /// The number of the autonomous system.
    pub asn: u32,
}

impl Locality {
    /// A country and its subdivision, by their codes; a text that is no code counts as empty.
    #[must_use]
    pub fn of(country: &str, subdivision: &str) -> Self {
        let country = code::<2>(country, 2..=2, |byte| byte.is_ascii_uppercase());
        let subdivision = code::<3>(subdivision, 1..=3, |byte| byte.is_ascii_alphanumeric());
        // A subdivision says nothing without its country.
        Self { country, subdivision: if country == [0; 2] { [0; 3] } else { subdivision }, asn: 0 }
    }

    /// In an autonomous system; 0: not known.
    #[must_use]
    pub fn in_as(self, asn: u32) -> Self {
        Self { asn, ..self }
    }

    /// The country's code; empty: not known.
    #[must_use]
    pub fn country(&self) -> &str {
        text(&self.country)
    }

    /// The subdivision's code without the country's; empty: not known.
    #[must_use]
    pub fn subdivision(&self) -> &str {
        text(&self.subdivision)
    }

    /// Whether it is in the country and subdivision of `other`.
    #[must_use]
    pub fn within(&self, other: &Self) -> bool {
        self.country == other.country
            && (other.subdivision == [0; 3] || self.subdivision == other.subdivision)
    }
}

impl fmt::Display for Locality {
    /// `AS4134 CN-SH`, as much of it as is known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.asn > 0 {
            write!(f, "AS{}", self.asn)?;
        }
        if !self.country().is_empty() {
            write!(f, "{}{}", if self.asn > 0 { " " } else { "" }, self.country())?;
        }
        if !self.subdivision().is_empty() {
            write!(f, "-{}", self.subdivision())?;
        }
        Ok(())
    }
}

fn code<const N: usize>(
    code: &str,
    length: std::ops::RangeInclusive<usize>,
    allowed: impl Fn(&u8) -> bool,
) -> [u8; N] {
    let mut bytes = [0; N];
    if length.contains(&code.len()) && code.as_bytes().iter().all(allowed) {
        bytes[..code.len()].copy_from_slice(code.as_bytes());
    }
    bytes
}

fn text(code: &[u8]) -> &str {
    let end = code.iter().position(|byte| *byte == 0).unwrap_or(code.len());
    std::str::from_utf8(&code[..end]).unwrap_or_default()
}

/// Why a file is no address database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// Its form is broken, or it is cut short.
    #[error("is no MMDB file, or a damaged one")]
    Broken(#[from] MaxMindDbError),
    /// Its search tree has more ends than a tree of that many nodes can have.
    #[error("has a search tree that leads in circles: it is damaged")]
    Circles,
    /// Nothing in it says where an address is.
    #[error("has no country, subdivision or number of an autonomous system in any of its {records} records")]
    Useless {
        /// Records in it.
        records: usize,
    },
}

/// Where databases in use have a country's code: MaxMind's and DB-IP's, and the ip-location-db's.
const COUNTRY: [&[PathElement<'static>]; 2] =
    [&[PathElement::Key("country"), PathElement::Key("iso_code")], &[PathElement::Key("country_code")]];

/// And that of the largest subdivision, of which there may be several.
const SUBDIVISION: &[PathElement<'static>] =
    &[PathElement::Key("subdivisions"), PathElement::Index(0), PathElement::Key("iso_code")];

/// And the number of the autonomous system.
const ASN: &[PathElement<'static>] = &[PathElement::Key("autonomous_system_number")];

type Found<'a> = LookupResult<'a, Vec<u8>>;

fn locality(found: &Found<'_>) -> Result<Locality, MaxMindDbError> {
    let mut country = None;
    for path in COUNTRY {
        country = country.or(value::<&str>(found, path)?);
    }
    let subdivision: Option<&str> = value(found, SUBDIVISION)?;
    let asn: Option<Number> = value(found, ASN)?;
    let locality = Locality::of(country.unwrap_or_default(), subdivision.unwrap_or_default());
    Ok(locality.in_as(asn.map_or(0, |number| number.0)))
}

/// A field of another type than ours is another database's field of the same name, and no damage.
fn value<'a, T: Deserialize<'a>>(
    found: &Found<'a>,
    path: &[PathElement<'_>],
) -> Result<Option<T>, MaxMindDbError> {
    match found.decode_path(path) {
        Err(MaxMindDbError::Decoding { .. }) => Ok(None),
        decoded => decoded,
    }
}

/// An unsigned integer of any width.
struct Number(u32);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unsigned;
        impl Visitor<'_> for Unsigned {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an unsigned integer of 32 bits")
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Number, E> {
                u32::try_from(value).map(Number).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Unsigned)
    }
}

/// A database that was checked.
pub struct Database {
    reader: Reader<Vec<u8>>,
    /// What each record says, by its place in the file.
    records: Box<[(usize, Locality)]>,
}

impl Database {
    /// Reads and checks the bytes of a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(bytes: Vec<u8>) -> Result<Self, DatabaseError> {
        let reader = Reader::from_source(bytes)?;
        let records = records(&reader)?;
        if records.values().all(|locality| *locality == Locality::default()) {
            return Err(DatabaseError::Useless { records: records.len() });
        }
        Ok(Self { records: records.into_iter().collect(), reader })
    }

    /// When it was built, in seconds since the Unix epoch.
    #[must_use]
    pub fn built_at_s(&self) -> u64 {
        self.reader.metadata().build_epoch
    }

    /// What it says of an address; none: nothing.
    #[must_use]
    pub fn find(&self, ip: IpAddr) -> Option<Locality> {
        let found = self.reader.lookup(ip).ok()?.offset()?;
        let index = self.records.binary_search_by_key(&found, |(offset, _)| *offset).ok()?;
        Some(self.records[index].1)
    }
}

impl fmt::Display for Database {
    /// What it is, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metadata = self.reader.metadata();
        write!(
            f,
            "{:.64}, built {}, {} records",
            metadata.database_type,
            metadata.build_epoch,
            self.records.len()
        )
    }
}

/// Times that a part of the search tree may be reached: IPv4 lies in it once, and by four or five other prefixes (mapped, 6to4,
/// Teredo).
const WAYS_TO_IPV4: usize = 8;

/// Visits every end of the search tree, so that whatever a lookup can find was read before.
fn records(reader: &Reader<Vec<u8>>) -> Result<BTreeMap<usize, Locality>, DatabaseError> {
    let mut records = BTreeMap::new();
    // A tree of n nodes has n + 1 ends; a damaged one may have 2^128. So all are counted, also those without a record.
    let most = WAYS_TO_IPV4 * (reader.metadata().node_count as usize + 1);
    let all = WithinOptions::default().include_networks_without_data().include_aliased_networks();
    for (count, network) in reader.networks(all)?.enumerate() {
        if count > most {
            return Err(DatabaseError::Circles);
        }
        let network = network?;
        let Some(offset) = network.offset() else { continue };
        if let Entry::Vacant(new) = records.entry(offset) {
            new.insert(locality(&network)?);
        }
    }
    Ok(records)
}
