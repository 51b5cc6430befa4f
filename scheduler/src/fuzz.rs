//! What a fuzzer feeds this crate's parsers: any bytes, and what must hold of the answer. The property tests below and the
//! targets of `tests/fuzz` call the same functions.

use std::sync::OnceLock;

use crate::{
    jwt::JwtKeys,
    locate::{Database, MAX_FILE},
    policy,
};

/// A policy file: read, or refused with a reason of one's own.
///
/// # Panics
/// When something does not hold.
pub fn policy(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match policy::parse(&text) {
        Ok(read) => assert_eq!(policy::parse(&text).map(|again| again.version), Ok(read.version)),
        Err(problem) => assert!(!problem.to_string().is_empty()),
    }
}

/// A user's token: nothing passes that was not signed, and a JWKS of any content is no panic.
///
/// # Panics
/// When something does not hold.
pub fn token(bytes: &[u8]) {
    static KEYS: OnceLock<JwtKeys> = OnceLock::new();
    let keys = KEYS.get_or_init(|| {
        JwtKeys::from_secrets(&[b"a fuzzer's secret, which nobody knows"]).expect("32 bytes and more")
    });
    let text = String::from_utf8_lossy(bytes);
    assert!(keys.verify(&text, 0).is_err(), "nobody signed {text:?}");
    let _ = JwtKeys::from_jwks(&text);
}

/// An address database: read, or refused with a reason of one's own; what was read answers for any address.
///
/// # Panics
/// When something does not hold.
pub fn geoip(bytes: &[u8]) {
    assert!(bytes.len() as u64 <= MAX_FILE, "what is longer is not read at all");
    match Database::read(bytes.to_vec()) {
        Ok(database) => {
            let _ = database.to_string();
            for ip in ["0.0.0.0", "203.0.113.7", "255.255.255.255", "::", "2001:db8::1", "ffff::"] {
                let found = database.find(ip.parse().expect("an address")).unwrap_or_default();
                assert!(found.country().is_empty() || found.country().len() == 2);
                assert!(found.subdivision().is_empty() || !found.country().is_empty());
            }
        }
        Err(problem) => assert!(!problem.to_string().is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::locate::mmdb;

    /// TOML that is nearly a policy finds more than random text does.
    fn nearly() -> impl Strategy<Value = String> {
        let line = prop_oneof![
            Just("version = 1"),
            Just("version = -1"),
            Just("[[gray]]"),
            Just("[[home]]"),
            Just("[load]"),
            Just("id = \"a\""),
            Just("pool = \"canary\""),
            Just("percent = 5.0"),
            Just("percent = nan"),
            Just("percent = 101"),
            Just("match = { cidrs = [\"10.0.0.0/8\"] }"),
            Just("match = { app_version = \">=7\" }"),
            Just("users = [\"alice\"]"),
            Just("buckets = [0, 5000]"),
            Just("buckets = [9, 1]"),
            Just("bound = 0.25"),
            Just("slow_start_seconds = 30"),
            Just("region = \"eu\""),
            Just("salt = \"\""),
            Just("[[proximity.place]]"),
            Just("countries = [\"CN\"]"),
            Just("[[proximity.distance]]"),
            Just("between = [\"a\", \"b\"]"),
            Just("ms = 5"),
            Just("x = 1"),
        ];
        proptest::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        #[test]
        fn policies(text in nearly(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            super::policy(text.as_bytes());
            super::policy(&bytes);
        }

        #[test]
        fn databases(changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..8), end: proptest::sample::Index) {
            let networks = [
                ("203.0.113.0/24", mmdb::Field::city("CN", "SH", 4134)),
                ("0.0.0.0/1", mmdb::Field::city("US", "", 0)),
                ("2001:db8::/32", mmdb::Field::city("DE", "HE", 3320)),
            ];
            let mut bytes = mmdb::database(&networks, 1_700_000_000);
            super::geoip(&bytes[..end.index(bytes.len())]);
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            super::geoip(&bytes);
        }

        #[test]
        fn tokens(text in "[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            super::token(text.as_bytes());
            super::token(format!("eyJhbGciOiJIUzI1NiJ9.{text}").as_bytes());
            super::token(&bytes);
        }
    }
}
