//! Frames on a raw TCP connection: a 4-byte big-endian length, then that many bytes.

use thiserror::Error;

/// Bytes of the length prefix.
pub const PREFIX: usize = 4;

/// A frame announces more than the receiver allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a frame of {length} bytes; at most {limit} are allowed")]
pub struct TooLarge {
    /// What the prefix announced.
    pub length: usize,
    /// What is allowed.
    pub limit: usize,
}

/// The first frame's payload in `bytes` and how many bytes it took with its prefix; `None` while it is incomplete.
///
/// # Errors
/// When the prefix announces more than `limit`, before any of the payload has come.
pub fn split(bytes: &[u8], limit: usize) -> Result<Option<(&[u8], usize)>, TooLarge> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else { return Ok(None) };
    let length = u32::from_be_bytes(*prefix) as usize;
    if length > limit {
        return Err(TooLarge { length, limit });
    }
    Ok(rest.get(..length).map(|payload| (payload, PREFIX + length)))
}

/// The prefix of a payload of `length` bytes; our own frames are far below 4 GiB.
#[must_use]
pub fn prefix(length: usize) -> [u8; PREFIX] {
    u32::try_from(length).expect("frames are at most 1 MiB").to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn there_and_back(payload in proptest::collection::vec(any::<u8>(), 0..300), more in proptest::collection::vec(any::<u8>(), 0..9)) {
            let mut bytes = prefix(payload.len()).to_vec();
            bytes.extend(&payload);
            let whole = bytes.len();
            bytes.extend(more);
            prop_assert_eq!(split(&bytes, 300), Ok(Some((&payload[..], whole))));
            for cut in 0..whole {
                prop_assert_eq!(split(&bytes[..cut], 300), Ok(None));
            }
        }
    }

    #[test]
    fn an_oversize_announcement_is_refused_at_once() {
        assert_eq!(split(&[0, 1, 0, 1], 65_536), Err(TooLarge { length: 65_537, limit: 65_536 }));
        assert_eq!(split(&[0, 1, 0, 0], 65_536), Ok(None));
    }
}
