//! Writes address databases for tests, by the MaxMind DB file format specification 2.0: a binary search tree over the bits of the
//! addresses, 16 zero bytes, the records it points to, and the metadata behind a marker.
//!
//! `berth-scheduler` includes this file for its own tests, since neither crate may depend on the other.

use std::net::IpAddr;

/// What stands before the metadata.
const MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";

/// A value of a record.
#[derive(Debug, Clone)]
pub enum Field {
    /// Text.
    Text(&'static str),
    /// An unsigned integer of so many bits.
    U16(u16),
    /// An unsigned integer of so many bits.
    U32(u32),
    /// An unsigned integer of so many bits.
    U64(u64),
    /// Fields by name.
    Map(Vec<(&'static str, Field)>),
    /// Several values.
    List(Vec<Field>),
}

impl Field {
    /// A record as city databases have it; 0 is no number.
    #[must_use]
    pub fn city(country: &'static str, subdivision: &'static str, asn: u32) -> Self {
        let coded = |code| Self::Map(vec![("iso_code", Self::Text(code))]);
        let mut fields = vec![("country", coded(country))];
        if !subdivision.is_empty() {
            fields.push(("subdivisions", Self::List(vec![coded(subdivision)])));
        }
        if asn > 0 {
            fields.push(("autonomous_system_number", Self::U32(asn)));
        }
        Self::Map(fields)
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => {
                control(out, 2, text.len());
                out.extend_from_slice(text.as_bytes());
            }
            Self::U16(number) => {
                control(out, 5, 2);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::U32(number) => {
                control(out, 6, 4);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::U64(number) => {
                control(out, 9, 8);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::Map(fields) => {
                control(out, 7, fields.len());
                for (name, field) in fields {
                    control(out, 2, name.len());
                    out.extend_from_slice(name.as_bytes());
                    field.write(out);
                }
            }
            Self::List(values) => {
                control(out, 11, values.len());
                values.iter().for_each(|value| value.write(out));
            }
        }
    }
}

/// The control byte: three bits of type and five of size. Types above 7 have a byte of their own.
fn control(out: &mut Vec<u8>, kind: u8, size: usize) {
    assert!(size < 29, "longer values have another form, which no test needs");
    let size = u8::try_from(size).unwrap_or_default();
    if kind <= 7 {
        out.push(kind << 5 | size);
    } else {
        out.extend_from_slice(&[size, kind - 7]);
    }
}

/// Where a record of the tree leads.
#[derive(Debug, Clone, Copy)]
enum To {
    Nothing,
    Node(usize),
    Record(usize),
}

/// The bytes of a database of these networks (`10.0.0.0/8`, `2001:db8::/32`), later ones within earlier ones, built at that time
/// (seconds since the Unix epoch).
///
/// # Panics
/// When a network is none.
#[must_use]
pub fn database(networks: &[(&str, Field)], built_at_s: u64) -> Vec<u8> {
    let mut tree = vec![[To::Nothing; 2]];
    for (record, (network, _)) in networks.iter().enumerate() {
        insert(&mut tree, network, To::Record(record));
    }
    let mut data = Vec::new();
    let mut places = Vec::new();
    for (_, field) in networks {
        places.push(data.len());
        field.write(&mut data);
    }
    let nodes = tree.len();
    let mut out = Vec::new();
    for to in tree.into_iter().flatten() {
        let value = match to {
            To::Nothing => nodes,
            To::Node(node) => node,
            To::Record(record) => nodes + 16 + places[record],
        };
        out.extend_from_slice(&u32::try_from(value).expect("a small database").to_be_bytes());
    }
    out.extend_from_slice(&[0; 16]);
    out.append(&mut data);
    out.extend_from_slice(MARKER);
    let nodes = u32::try_from(nodes).expect("a small database");
    let metadata = Field::Map(vec![
        ("binary_format_major_version", Field::U16(2)),
        ("binary_format_minor_version", Field::U16(0)),
        ("build_epoch", Field::U64(built_at_s)),
        ("database_type", Field::Text("Berth-Test")),
        ("description", Field::Map(vec![("en", Field::Text("made by a test"))])),
        ("ip_version", Field::U16(6)),
        ("languages", Field::List(vec![])),
        ("node_count", Field::U32(nodes)),
        ("record_size", Field::U16(32)),
    ]);
    metadata.write(&mut out);
    out
}

/// Bits of an address in the tree: IPv4 lies in `::/96`.
fn insert(tree: &mut Vec<[To; 2]>, network: &str, to: To) {
    let (ip, length) = network.split_once('/').expect("a network");
    let length: usize = length.parse().expect("a length");
    let (bits, length) = match ip.parse().expect("an address") {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)), 96 + length),
        IpAddr::V6(ip) => (u128::from(ip), length),
    };
    let mut node = 0;
    for depth in 0..length {
        let side = usize::from(bits >> (127 - depth) & 1 == 1);
        if depth + 1 == length {
            tree[node][side] = to;
            return;
        }
        node = match tree[node][side] {
            To::Node(next) => next,
            // What was there holds for both halves, until one of them is taken.
            whole => {
                tree.push([whole; 2]);
                tree[node][side] = To::Node(tree.len() - 1);
                tree.len() - 1
            }
        };
    }
}
