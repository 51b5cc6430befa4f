//! Queue tokens: a place in the queue, in the hands of the client who has it.
//!
//! The text is base64url without padding of `due (8 bytes) | issued (8) | tag (32)`; the tag is an HMAC-SHA256 over
//! [`CONTEXT`], both times, user and device. Every scheduler with the same ticket key honours it. It is not a ticket, opens
//! nothing, and costs a microsecond to make: a scheduler that is asked by more than it can let in must not be busy saying so.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;

/// Signed in front of every token.
const CONTEXT: &[u8] = b"berth queue token v1\0";

const TIMES: usize = 16;

/// A token's length, in characters.
pub(crate) const TOKEN: usize = 64;

/// A place in time, in milliseconds since the Unix epoch: any replica reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// From then on its owner is let in.
    pub due_ms: i64,
    /// When it was given.
    pub issued_ms: i64,
}

/// Whose place it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub user: &'a str,
    pub device: &'a str,
}

/// A place that its owner has shown, and what tells its token from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    pub place: Place,
    pub id: u64,
}

/// Makes tokens and reads them.
pub(crate) struct QueueTokens {
    key: hmac::Key,
}

impl QueueTokens {
    /// The key is derived from `auth.ticket_key`: replicas have that in common.
    pub fn from_secret(secret: &[u8]) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = hmac::sign(&secret, b"berth queue token key");
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()) }
    }

    /// The token of this place.
    pub fn make(&self, place: Place, owner: Owner<'_>) -> String {
        let times = times(place);
        let tag = hmac::sign(&self.key, &signed(&times, owner));
        URL_SAFE_NO_PAD.encode([&times, tag.as_ref()].concat())
    }

    /// The place, if the token was made for this owner; none: it is forged, somebody else's, or made with another key.
    pub fn read(&self, text: &str, owner: Owner<'_>) -> Option<Shown> {
        if text.len() != TOKEN {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (times, tag) = bytes.split_first_chunk::<TIMES>()?;
        hmac::verify(&self.key, &signed(times, owner), tag).ok()?;
        let (due, issued) = times.split_first_chunk::<8>()?;
        let due_ms = i64::from_be_bytes(*due);
        let issued_ms = i64::from_be_bytes(issued.try_into().ok()?);
        let id = u64::from_be_bytes(*tag.first_chunk()?);
        Some(Shown { place: Place { due_ms, issued_ms }, id })
    }
}

/// An id has no zero byte: user and device cannot be cut apart at another place.
fn signed(times: &[u8; TIMES], owner: Owner<'_>) -> Vec<u8> {
    [CONTEXT, times, owner.user.as_bytes(), b"\0", owner.device.as_bytes()].concat()
}

fn times(place: Place) -> [u8; TIMES] {
    let mut times = [0; TIMES];
    times[..8].copy_from_slice(&place.due_ms.to_be_bytes());
    times[8..].copy_from_slice(&place.issued_ms.to_be_bytes());
    times
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const ALICE: Owner<'_> = Owner { user: "alice", device: "phone" };
    const PLACE: Place = Place { due_ms: 1_795_000_012_345, issued_ms: 1_795_000_000_000 };

    #[test]
    fn any_replica_reads_it_and_nobody_else_s_is_taken() {
        let token = QueueTokens::from_secret(SECRET).make(PLACE, ALICE);
        let replica = QueueTokens::from_secret(SECRET);
        assert_eq!(replica.read(&token, ALICE).map(|shown| shown.place), Some(PLACE));
        assert_eq!(token.len(), TOKEN);
        for owner in [
            Owner { user: "mallory", device: "phone" },
            Owner { user: "alice", device: "tablet" },
            Owner { user: "alicep", device: "hone" },
        ] {
            assert_eq!(replica.read(&token, owner), None, "{owner:?}");
        }
        let other = QueueTokens::from_secret(b"another secret of 32 bytes......");
        assert_eq!(other.read(&token, ALICE), None);
    }

    proptest! {
        #[test]
        fn no_changed_bit_passes(bit in 0usize..(TIMES + 32) * 8) {
            let tokens = QueueTokens::from_secret(SECRET);
            let mut bytes = URL_SAFE_NO_PAD.decode(tokens.make(PLACE, ALICE)).expect("our own text");
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(tokens.read(&URL_SAFE_NO_PAD.encode(bytes), ALICE), None);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,100}") {
            prop_assert_eq!(QueueTokens::from_secret(SECRET).read(&text, ALICE), None);
        }
    }
}
