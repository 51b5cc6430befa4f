//! The stable bucket of a user: what gray percentages and home ranges are cut from.

use ring::digest::{Context, SHA256};

/// Buckets are numbered `0..BUCKETS`.
pub const BUCKETS: u16 = 10_000;

/// The user's bucket under `salt`: the first 8 bytes of SHA-256(salt ":" user) as a big-endian u64, times 10,000,
/// divided by 2^64, rounded down. Every replica and every implementation agrees on it (PROTOCOL.md, golden vectors below).
#[must_use]
pub fn bucket(salt: &str, user_id: &str) -> u16 {
    let scaled = (u128::from(weight(salt, user_id)) * u128::from(BUCKETS)) >> 64;
    u16::try_from(scaled).expect("a u64 times 10,000 over 2^64 is below 10,000")
}

/// The first 8 bytes of SHA-256(salt ":" name) as a big-endian u64. With the choices as salts it is the weight of a rendezvous
/// (Thaler and Ravishankar, 1998): each name has an order of its own, and losing a choice moves only those who had it first.
#[must_use]
pub fn weight(salt: &str, name: &str) -> u64 {
    let mut context = Context::new(&SHA256);
    context.update(salt.as_bytes());
    context.update(b":");
    context.update(name.as_bytes());
    let digest = context.finish();
    let mut head = [0; 8];
    head.copy_from_slice(&digest.as_ref()[..8]);
    u64::from_be_bytes(head)
}

/// How many buckets `percent` takes, from 0 on: those below percent x 100, which is first rounded to a millionth of a
/// bucket. A binary fraction is not what the operator wrote: 1.1 x 100 is 110.00000000000001, and means 110 buckets. NaN and
/// negative percents take none.
#[must_use]
pub fn threshold(percent: f64) -> u16 {
    let below = (percent * 100.0 * 1e6).round() / 1e6;
    // A float cast saturates, and makes 0 of NaN.
    (below.ceil() as u16).min(BUCKETS)
}

/// Whether `bucket` is among the first `percent` of all buckets: see [`threshold`].
#[must_use]
pub fn within(bucket: u16, percent: f64) -> bool {
    bucket < threshold(percent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From `python3 -c 'import hashlib;print(int.from_bytes(hashlib.sha256(b"SALT:USER").digest()[:8],"big")*10000>>64)'`.
    const GOLDEN: &[(&str, &str, u16)] = &[
        ("home", "alice", 258),
        ("canary-ios", "alice", 8964),
        ("canary-ios", "bob", 8368),
        ("", "a", 7100),
        ("salt", "", 9041),
        ("salt:with:colons", "user@example.com", 9647),
        ("5%", "u-1", 4929),
        ("home", "用户", 8399),
    ];

    #[test]
    fn golden_vectors() {
        for (salt, user, expected) in GOLDEN {
            assert_eq!(bucket(salt, user), *expected, "{salt}:{user}");
        }
    }

    #[test]
    fn spreads_evenly() {
        let inside = (0..100_000).filter(|n| within(bucket("even", &format!("u{n}")), 5.0)).count();
        assert!((4_700..5_300).contains(&inside), "5% of 100,000 users were {inside}");
    }

    proptest! {
        #[test]
        fn in_range(salt in ".{0,20}", user in ".{0,64}") {
            prop_assert!(bucket(&salt, &user) < BUCKETS);
        }

        #[test]
        fn growing_percent_keeps_everybody(b in 0..BUCKETS, low in 0.0..100.0f64, more in 0.0..100.0f64) {
            prop_assert!(!within(b, low) || within(b, low + more));
        }
    }

    #[test]
    fn the_edges() {
        assert!(!within(0, 0.0));
        assert!(within(0, 0.01));
        assert!(!within(1, 0.01));
        assert!((0..BUCKETS).all(|b| within(b, 100.0)));
        assert!(!within(0, f64::NAN));
        assert_eq!([-1.0, f64::NEG_INFINITY, f64::INFINITY, 1e300].map(threshold), [0, 0, BUCKETS, BUCKETS]);
    }

    #[test]
    fn whole_buckets_are_what_was_written() {
        for hundredths in 0..=BUCKETS {
            let written = format!("{}.{:02}", hundredths / 100, hundredths % 100);
            let percent: f64 = written.parse().expect("a number");
            assert_eq!(threshold(percent), hundredths, "{written}%");
        }
        assert_eq!(threshold(1.1), 110, "in binary a little above");
        assert_eq!(threshold(1.105), 111, "bucket 110 is below 110.5");
        assert_eq!(threshold(0.000_1), 1);
    }
}
