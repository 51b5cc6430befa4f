//! Tickets: what a scheduler signs and a gateway verifies offline.
//!
//! The text is base64url without padding of `key id (8 bytes) | Ed25519 signature (64 bytes) | protobuf Ticket`. The key
//! id is the head of the public key's SHA-256, so keys can change while old tickets still live. The signature covers
//! [`CONTEXT`] and the protobuf bytes, so no other thing signed with the key can be taken for a ticket.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message;
use ring::{
    digest::{SHA256, digest},
    hmac,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use thiserror::Error;

use crate::{limits, wire::Ticket};

/// Signed in front of every ticket.
pub const CONTEXT: &[u8] = b"berth ticket v1\0";

/// A public key's length.
pub const PUBLIC_KEY: usize = 32;

const KEY_ID: usize = 8;
const SIGNATURE: usize = 64;

type KeyId = [u8; KEY_ID];

/// Why a ticket is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TicketError {
    /// Not the form of a ticket at all.
    #[error("the ticket is unreadable")]
    Unreadable,
    /// Signed with a key this verifier does not hold.
    #[error("the ticket is signed with an unknown key")]
    UnknownKey,
    /// The signature does not fit.
    #[error("the ticket's signature is wrong")]
    Forged,
    /// Genuine, but past its time.
    #[error("the ticket expired {late_ms} ms ago")]
    Expired {
        /// How long ago.
        late_ms: i64,
    },
}

/// Signs tickets. Only schedulers hold one.
pub struct TicketSigner {
    pair: Ed25519KeyPair,
    key_id: KeyId,
}

impl TicketSigner {
    /// Derives the key pair from `auth.ticket_key`, so that every scheduler with the same secret signs alike.
    #[must_use]
    pub fn from_secret(secret: &[u8]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let seed = hmac::sign(&key, b"berth ticket signing key");
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).expect("an HMAC-SHA256 is 32 bytes");
        let key_id = key_id(pair.public_key().as_ref());
        Self { pair, key_id }
    }

    /// The public half, for verifiers.
    #[must_use]
    pub fn public_key(&self) -> [u8; PUBLIC_KEY] {
        self.pair.public_key().as_ref().try_into().expect("an Ed25519 public key is 32 bytes")
    }

    /// The ticket's text.
    #[must_use]
    pub fn sign(&self, ticket: &Ticket) -> String {
        let mut signed = CONTEXT.to_vec();
        ticket.encode(&mut signed).expect("a Vec grows");
        let signature = self.pair.sign(&signed);
        let mut envelope = Vec::with_capacity(KEY_ID + SIGNATURE + signed.len());
        envelope.extend(self.key_id);
        envelope.extend(signature.as_ref());
        envelope.extend(&signed[CONTEXT.len()..]);
        URL_SAFE_NO_PAD.encode(envelope)
    }
}

/// Verifies tickets with the public keys a scheduler announced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TicketVerifier {
    keys: Vec<(KeyId, [u8; PUBLIC_KEY])>,
}

impl TicketVerifier {
    /// Accepts tickets signed with any of these keys.
    #[must_use]
    pub fn new(public_keys: &[[u8; PUBLIC_KEY]]) -> Self {
        Self { keys: public_keys.iter().map(|key| (key_id(key), *key)).collect() }
    }

    /// Whether there is any key: without one nobody can be let in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a key with that tag is accepted.
    #[must_use]
    pub fn knows(&self, tag: u32) -> bool {
        self.keys.iter().any(|(_, key)| key_tag(key) == tag)
    }

    /// The ticket in `text`, if it is genuine. Its time, whose device and which gateways it is for are the caller's to
    /// compare.
    ///
    /// # Errors
    /// Says in which way it is not acceptable. Never contains the ticket.
    pub fn genuine(&self, text: &str) -> Result<Ticket, TicketError> {
        self.genuine_of(text).map(|(ticket, _)| ticket)
    }

    /// The same, and the [`key_tag`] of the key that it is signed with.
    ///
    /// # Errors
    /// The same.
    pub fn genuine_of(&self, text: &str) -> Result<(Ticket, u32), TicketError> {
        if text.len() > limits::TICKET {
            return Err(TicketError::Unreadable);
        }
        let envelope = URL_SAFE_NO_PAD.decode(text).map_err(|_| TicketError::Unreadable)?;
        let (id, rest) = envelope.split_first_chunk::<KEY_ID>().ok_or(TicketError::Unreadable)?;
        let (signature, payload) = rest.split_first_chunk::<SIGNATURE>().ok_or(TicketError::Unreadable)?;
        let (_, key) = self.keys.iter().find(|(known, _)| known == id).ok_or(TicketError::UnknownKey)?;
        let mut signed = CONTEXT.to_vec();
        signed.extend(payload);
        UnparsedPublicKey::new(&ED25519, key).verify(&signed, signature).map_err(|_| TicketError::Forged)?;
        let ticket = Ticket::decode(payload).map_err(|_| TicketError::Unreadable)?;
        Ok((ticket, key_tag(key)))
    }
}

/// A few bits of a public key's id: enough to find again what was opened with a key that is void, small enough to be kept with
/// each session. Never 0.
#[must_use]
pub fn key_tag(public_key: &[u8]) -> u32 {
    let [a, b, c, d, ..] = key_id(public_key);
    u32::from_be_bytes([a, b, c, d]).max(1)
}

fn key_id(public_key: &[u8]) -> KeyId {
    let digest = digest(&SHA256, public_key);
    let mut id = [0; KEY_ID];
    id.copy_from_slice(&digest.as_ref()[..KEY_ID]);
    id
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn ticket() -> Ticket {
        Ticket {
            user_id: "alice".into(),
            device_id: "d1".into(),
            gateway_ids: vec!["gw-1".into(), "gw-2".into()],
            pool: "stable".into(),
            home: "eu".into(),
            policy_version: 3,
            expires_at_ms: 1_000,
            auth_expires_at_ms: 5_000,
            schedule_id: 42,
            issued_at_ms: 0,
            ..Ticket::default()
        }
    }

    fn verifier(signer: &TicketSigner) -> TicketVerifier {
        TicketVerifier::new(&[signer.public_key()])
    }

    #[test]
    fn there_and_back() {
        let signer = TicketSigner::from_secret(SECRET);
        let text = signer.sign(&ticket());
        assert_eq!(verifier(&signer).genuine(&text), Ok(ticket()));
        let tag = key_tag(&signer.public_key());
        assert_eq!(verifier(&signer).genuine_of(&text), Ok((ticket(), tag)));
        assert!(verifier(&signer).knows(tag) && !verifier(&signer).knows(tag ^ 1));
    }

    #[test]
    fn the_same_secret_makes_the_same_key_and_another_another() {
        let one = TicketSigner::from_secret(SECRET);
        assert_eq!(one.public_key(), TicketSigner::from_secret(SECRET).public_key());
        let other = TicketSigner::from_secret(b"another secret of 32 bytes......");
        assert_eq!(verifier(&other).genuine(&one.sign(&ticket())), Err(TicketError::UnknownKey));
    }

    #[test]
    fn rubbish_is_unreadable() {
        let all = verifier(&TicketSigner::from_secret(SECRET));
        for text in ["", "a", "!!!", "AAAA", &"A".repeat(5_000)] {
            assert_eq!(all.genuine(text), Err(TicketError::Unreadable), "{text:.20}");
        }
    }

    proptest! {
        #[test]
        fn no_changed_bit_passes(bit in 0usize..2_000) {
            let signer = TicketSigner::from_secret(SECRET);
            let mut envelope = URL_SAFE_NO_PAD.decode(signer.sign(&ticket())).expect("our own text");
            let bit = bit % (envelope.len() * 8);
            envelope[bit / 8] ^= 1 << (bit % 8);
            let changed = verifier(&signer).genuine(&URL_SAFE_NO_PAD.encode(envelope));
            prop_assert!(matches!(changed, Err(TicketError::Forged | TicketError::UnknownKey)), "{changed:?}");
        }
    }
}
