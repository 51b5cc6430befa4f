//! Queue tokens: a place in the queue, in the hands of the client who has it.
//!
//! The text is base64url without padding of `due (8 bytes) | issued (8) | issuer (8) | tag (32)`; the tag is an HMAC-SHA256 over
//! [`CONTEXT`], what is before it, pool, user and device. Every scheduler with the same ticket key honours it, and while the key is
//! changed those that have the old or the new one besides. It is not a ticket, opens nothing, and costs a microsecond to make: a
//! scheduler that is asked by more than it can let in must not be busy saying so.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;

/// Signed in front of every token.
const CONTEXT: &[u8] = b"berth queue token v2\0";

/// What a token says in clear, in bytes.
const HEAD: usize = 24;

/// A token's length, in characters.
pub(crate) const TOKEN: usize = 75;

/// A place in time, in milliseconds since the Unix epoch: any replica reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// From then on its owner is let in.
    pub due_ms: i64,
    /// When it was given.
    pub issued_ms: i64,
}

/// Whose place it is, and in the queue of which pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub pool: &'a str,
    pub user: &'a str,
    pub device: &'a str,
}

/// A place that its owner has shown, and what tells its token from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    pub place: Place,
    /// The start of a scheduler that gave it: that one has counted it.
    pub issuer: u64,
    pub id: u64,
}

/// Makes tokens and reads them.
pub(crate) struct QueueTokens {
    key: hmac::Key,
    others: Vec<hmac::Key>,
    issuer: u64,
}

impl QueueTokens {
    /// The keys are derived from `auth.ticket_key`, which replicas have in common, and from those that it is changed from and to.
    /// `issuer`: names this start.
    pub fn new(secret: &[u8], others: &[Vec<u8>], issuer: u64) -> Self {
        Self { key: derived(secret), others: others.iter().map(|secret| derived(secret)).collect(), issuer }
    }

    /// Names this start of the scheduler.
    pub fn issuer(&self) -> u64 {
        self.issuer
    }

    /// The token of this place.
    pub fn make(&self, place: Place, owner: Owner<'_>) -> String {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&place.due_ms.to_be_bytes());
        head[8..16].copy_from_slice(&place.issued_ms.to_be_bytes());
        head[16..].copy_from_slice(&self.issuer.to_be_bytes());
        let tag = hmac::sign(&self.key, &signed(&head, owner));
        URL_SAFE_NO_PAD.encode([&head, tag.as_ref()].concat())
    }

    /// The place, if the token was made for this owner; none: it is forged, somebody else's, of another pool, or made with another key.
    pub fn read(&self, text: &str, owner: Owner<'_>) -> Option<Shown> {
        if text.len() != TOKEN {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (head, tag) = bytes.split_first_chunk::<HEAD>()?;
        let signed = signed(head, owner);
        let mut keys = [&self.key].into_iter().chain(&self.others);
        if !keys.any(|key| hmac::verify(key, &signed, tag).is_ok()) {
            return None;
        }
        let (due, rest) = head.split_first_chunk::<8>()?;
        let (issued, issuer) = rest.split_first_chunk::<8>()?;
        let place = Place { due_ms: i64::from_be_bytes(*due), issued_ms: i64::from_be_bytes(*issued) };
        let issuer = u64::from_be_bytes(issuer.try_into().ok()?);
        let id = u64::from_be_bytes(*tag.first_chunk()?);
        Some(Shown { place, issuer, id })
    }
}

fn derived(secret: &[u8]) -> hmac::Key {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let derived = hmac::sign(&secret, b"berth queue token key");
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}

/// An id has no zero byte: pool, user and device cannot be cut apart at another place.
fn signed(head: &[u8; HEAD], owner: Owner<'_>) -> Vec<u8> {
    let Owner { pool, user, device } = owner;
    [CONTEXT, head, pool.as_bytes(), b"\0", user.as_bytes(), b"\0", device.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const OTHER: &[u8] = b"another secret of 32 bytes......";
    const ALICE: Owner<'_> = Owner { pool: "stable", user: "alice", device: "phone" };
    const PLACE: Place = Place { due_ms: 1_795_000_012_345, issued_ms: 1_795_000_000_000 };

    fn tokens(secret: &[u8], issuer: u64) -> QueueTokens {
        QueueTokens::new(secret, &[], issuer)
    }

    #[test]
    fn any_replica_reads_it_and_nobody_else_s_is_taken() {
        let token = tokens(SECRET, 7).make(PLACE, ALICE);
        let replica = tokens(SECRET, 8);
        assert_eq!(
            replica.read(&token, ALICE).map(|shown| (shown.place, shown.issuer)),
            Some((PLACE, 7)),
            "and knows who has counted it"
        );
        assert_eq!(token.len(), TOKEN);
        for owner in [
            Owner { user: "mallory", ..ALICE },
            Owner { device: "tablet", ..ALICE },
            Owner { pool: "canary", ..ALICE },
            Owner { user: "alicep", device: "hone", ..ALICE },
        ] {
            assert_eq!(replica.read(&token, owner), None, "{owner:?}");
        }
        assert_eq!(tokens(OTHER, 7).read(&token, ALICE), None);
    }

    #[test]
    fn while_the_key_is_changed_tokens_of_either_are_good() {
        let before = QueueTokens::new(SECRET, &[OTHER.to_vec()], 1);
        let after = QueueTokens::new(OTHER, &[SECRET.to_vec()], 2);
        for (maker, reader) in [(&before, &after), (&after, &before)] {
            let token = maker.make(PLACE, ALICE);
            assert_eq!(reader.read(&token, ALICE).map(|shown| shown.issuer), Some(maker.issuer()));
        }
    }

    proptest! {
        #[test]
        fn no_changed_bit_passes(bit in 0usize..(HEAD + 32) * 8) {
            let tokens = tokens(SECRET, 7);
            let mut bytes = URL_SAFE_NO_PAD.decode(tokens.make(PLACE, ALICE)).expect("our own text");
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(tokens.read(&URL_SAFE_NO_PAD.encode(bytes), ALICE), None);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,100}") {
            prop_assert_eq!(tokens(SECRET, 7).read(&text, ALICE), None);
        }
    }
}
