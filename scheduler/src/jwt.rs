//! User JWTs: verified with keys whose algorithm is pinned, and signed for `berth token` and dev mode.
//!
//! Only RFC 7515's compact form and three algorithms: HS256 with a shared secret, EdDSA (Ed25519) and RS256 with the
//! public keys of a JWKS file. Done with ring, which the ticket uses anyway; a JWT library would bring a second
//! provider of cryptography.

mod expected;
pub(crate) mod watch;

use std::time::Duration;

use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use berth_proto::{id, metric::Registry};
use ring::{
    hmac,
    signature::{ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Notify;

pub use self::expected::JwtExpected;
use self::watch::Loads;

/// Longest token that is looked at, in bytes: with room for the claims of common identity providers.
pub const MAX_TOKEN: usize = 8 * 1024;

/// `auth.jwt_secret` has at least this many bytes: the output length of HS256's hash (RFC 7518, 3.2).
pub const MIN_SECRET: usize = 32;

/// How far `nbf` and `iat` may lie ahead, in milliseconds: the issuer's clock may be ahead of ours. There is no leeway on
/// `exp`: a ticket never outlives the token, so accepting an expired one would only make an expired ticket.
pub const CLOCK_LEEWAY_MS: i64 = 60_000;

/// Keys one JWKS file may hold; a token without `kid` is tried against each.
const MAX_KEYS: usize = 64;

/// Why there are no keys to verify with.
#[derive(Debug, Error)]
pub enum JwtKeysError {
    /// Too short to be a secret.
    #[error(
        "a secret (auth.jwt_secret, auth.jwt_secret_previous) has {0} bytes; give at least 32 random ones"
    )]
    ShortSecret(usize),
    /// The file cannot be read.
    #[error("auth.jwks_file {path} cannot be read: {source}")]
    Unreadable {
        /// Which file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is no JWKS that we can use.
    #[error("auth.jwks_file: {0}")]
    Jwks(String),
}

/// Why a token is not accepted. Never contains the token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JwtError {
    /// Not the form of a signed JWT.
    #[error("the token is no signed JWT")]
    Malformed,
    /// Its algorithm is not that of a key here.
    #[error("the token's algorithm or key id is not one that this scheduler verifies")]
    UnknownKey,
    /// The signature does not fit.
    #[error("the token's signature is wrong")]
    Forged,
    /// Past its time.
    #[error("the token expired {late_ms} ms ago; get a new one")]
    Expired {
        /// How long ago.
        late_ms: i64,
    },
    /// Before its time.
    #[error("the token is not valid yet (nbf)")]
    TooEarly,
    /// A claim is missing or not as it must be.
    #[error("the token's claim {0}")]
    Claim(String),
}

/// What an accepted token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// `sub`: a valid user id, perhaps `system`.
    pub id: String,
    /// `exp`, in milliseconds since the Unix epoch.
    pub expires_at_ms: i64,
    /// `iat`, in milliseconds since the Unix epoch; 0: the token has none that can be believed.
    pub issued_at_ms: i64,
    /// `device`: the only device that may come with it; none: any may.
    pub device_id: Option<String>,
}

impl User {
    /// Whether that device may come with this token.
    ///
    /// # Errors
    /// Says which may.
    pub fn check_device(&self, device_id: &str) -> Result<(), String> {
        match &self.device_id {
            Some(own) if own != device_id => Err(format!(
                "deviceId is {device_id:?}, but the token is of device {own:?} (its claim device)"
            )),
            _ => Ok(()),
        }
    }
}

/// The keys that user tokens are verified with.
pub struct JwtKeys {
    keys: Vec<Key>,
}

/// The keys in force. A verification reads them without a lock.
pub(crate) struct JwtStore {
    keys: ArcSwap<JwtKeys>,
    expected: JwtExpected,
    /// Wakes the watch of the file: somebody asked to look at it now.
    pub reload: Notify,
    loads: Loads,
}

impl JwtStore {
    pub fn new(keys: JwtKeys, expected: JwtExpected, registry: Registry<'static>) -> Self {
        let (keys, loads) = (ArcSwap::from_pointee(keys), Loads::register(registry));
        Self { keys, expected, reload: Notify::new(), loads }
    }

    /// The user of a token that is genuine, in its time, for us and of whom it is expected.
    pub fn verify(&self, token: &str, now_ms: i64) -> Result<User, JwtError> {
        self.keys.load().verify_expected(token, &self.expected, now_ms)
    }
}

struct Key {
    id: Option<String>,
    material: Material,
}

enum Material {
    Hs256(hmac::Key),
    EdDsa(Vec<u8>),
    /// Big-endian, without leading zeros: ring refuses those.
    Rs256 {
        n: Vec<u8>,
        e: Vec<u8>,
    },
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: Option<f64>,
    nbf: Option<f64>,
    device: Option<serde_json::Value>,
    #[serde(default)]
    iat: serde_json::Value,
    #[serde(default)]
    aud: serde_json::Value,
    #[serde(default)]
    iss: serde_json::Value,
}

impl JwtKeys {
    /// Verifies HS256 tokens with shared secrets: the one in force, and while it is changed the one before.
    ///
    /// # Errors
    /// When a secret is shorter than [`MIN_SECRET`].
    pub fn from_secrets(secrets: &[&[u8]]) -> Result<Self, JwtKeysError> {
        if let Some(short) = secrets.iter().map(|secret| secret.len()).find(|length| *length < MIN_SECRET) {
            return Err(JwtKeysError::ShortSecret(short));
        }
        let key = |secret: &&[u8]| Material::Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret));
        Ok(Self { keys: secrets.iter().map(key).map(|material| Key { id: None, material }).collect() })
    }

    /// Verifies EdDSA and RS256 tokens with the public keys of a JWKS. Keys for encryption and of types not verified here are passed over.
    ///
    /// # Errors
    /// When the text is no JWKS, a usable key in it is malformed, or none is usable.
    pub fn from_jwks(text: &str) -> Result<Self, JwtKeysError> {
        #[derive(Deserialize)]
        struct Jwks {
            keys: Vec<Jwk>,
        }
        let jwks: Jwks =
            serde_json::from_str(text).map_err(|e| JwtKeysError::Jwks(format!("no JWKS: {e}")))?;
        let mut keys = Vec::new();
        for (index, jwk) in jwks.keys.into_iter().enumerate() {
            match jwk.key() {
                Ok(Some(key)) => keys.push(key),
                Ok(None) => {}
                Err(problem) => return Err(JwtKeysError::Jwks(format!("keys[{index}]: {problem}"))),
            }
        }
        match keys.len() {
            0 => Err(JwtKeysError::Jwks("no Ed25519 or RS256 signing key in it".to_owned())),
            1..=MAX_KEYS => Ok(Self { keys }),
            many => Err(JwtKeysError::Jwks(format!("{many} keys; at most {MAX_KEYS}"))),
        }
    }

    /// The user of a token that is genuine and in its time.
    ///
    /// # Errors
    /// Says what is wrong, never with the token in it.
    pub fn verify(&self, token: &str, now_ms: i64) -> Result<User, JwtError> {
        self.verify_expected(token, &JwtExpected::default(), now_ms)
    }

    /// The same of one that is for whom and by whom is expected.
    fn verify_expected(&self, token: &str, expected: &JwtExpected, now_ms: i64) -> Result<User, JwtError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtError::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(JwtError::Malformed)?;
        let header: Header = part(header)?;
        if header.crit.is_some() {
            return Err(JwtError::Malformed);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwtError::Malformed)?;
        self.check_signature(&header, message.as_bytes(), &signature)?;
        accept(part(claims)?, expected, now_ms)
    }

    /// The header picks among our keys; it never chooses how a key is used.
    fn check_signature(&self, header: &Header, message: &[u8], signature: &[u8]) -> Result<(), JwtError> {
        let named = |key: &Key| match (&header.kid, &key.id) {
            (Some(wanted), Some(id)) => wanted == id,
            _ => true,
        };
        let mut fitting =
            self.keys.iter().filter(|key| key.material.goes_by(&header.alg) && named(key)).peekable();
        if fitting.peek().is_none() {
            return Err(JwtError::UnknownKey);
        }
        if fitting.any(|key| key.material.verifies(message, signature)) {
            Ok(())
        } else {
            Err(JwtError::Forged)
        }
    }
}

impl Material {
    /// Whether `alg` names the one algorithm that the key is for. Ed25519 has two names: that of RFC 8037, and since
    /// RFC 9864 its own.
    fn goes_by(&self, alg: &str) -> bool {
        match self {
            Self::Hs256(_) => alg == "HS256",
            Self::EdDsa(_) => alg == "EdDSA" || alg == "Ed25519",
            Self::Rs256 { .. } => alg == "RS256",
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Hs256(key) => hmac::verify(key, message, signature).is_ok(),
            Self::EdDsa(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok(),
            Self::Rs256 { n, e } => RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
        }
    }
}

fn part<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, JwtError> {
    let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| JwtError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| JwtError::Malformed)
}

fn accept(claims: Claims, expected: &JwtExpected, now_ms: i64) -> Result<User, JwtError> {
    expected.check(&claims.aud, &claims.iss)?;
    let id = claims.sub.ok_or_else(|| JwtError::Claim("sub is missing; it is the user id".to_owned()))?;
    id::check(&id).map_err(|e| JwtError::Claim(format!("sub {e}")))?;
    let exp = claims.exp.ok_or_else(|| JwtError::Claim("exp is missing; tokens must expire".to_owned()))?;
    // A float cast saturates, so a far future stays far and NaN (which JSON has not) would be 1970.
    let expires_at_ms = (exp * 1000.0) as i64;
    if now_ms >= expires_at_ms {
        return Err(JwtError::Expired { late_ms: now_ms.saturating_sub(expires_at_ms) });
    }
    let not_before_ms = (claims.nbf.unwrap_or(0.0) * 1000.0) as i64;
    if not_before_ms > now_ms.saturating_add(CLOCK_LEEWAY_MS) {
        return Err(JwtError::TooEarly);
    }
    let device_id = claims.device.map(device).transpose()?;
    Ok(User { id, expires_at_ms, issued_at_ms: issued_at_ms(&claims.iat, now_ms), device_id })
}

/// One that does not read binds to nothing, so it must not pass as one that is not there.
fn device(claim: serde_json::Value) -> Result<String, JwtError> {
    let serde_json::Value::String(device_id) = claim else {
        return Err(JwtError::Claim(
            "device is no text; it is the id of the only device that may come".to_owned(),
        ));
    };
    id::check(&device_id).map_err(|e| JwtError::Claim(format!("device {e}")))?;
    Ok(device_id)
}

/// Only revocations ask when a token was issued, so one that does not say is good; it counts as the oldest, and so does one
/// that says what cannot be: a date far ahead would outlive every revocation.
fn issued_at_ms(iat: &serde_json::Value, now_ms: i64) -> i64 {
    let ms = iat.as_f64().map_or(0, |seconds| (seconds * 1000.0) as i64);
    if (0..=now_ms.saturating_add(CLOCK_LEEWAY_MS)).contains(&ms) { ms } else { 0 }
}

/// One key of a JWKS (RFC 7517, 8037).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl Jwk {
    fn key(self) -> Result<Option<Key>, String> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return Ok(None);
        }
        let alg = self.alg.as_deref();
        let material = match (self.kty.as_str(), self.crv.as_deref()) {
            ("OKP", Some("Ed25519")) if alg.is_none_or(|alg| alg == "EdDSA" || alg == "Ed25519") => {
                let x = field("x", self.x)?;
                if x.len() != 32 {
                    return Err(format!("x has {} bytes; an Ed25519 public key has 32", x.len()));
                }
                Material::EdDsa(x)
            }
            ("RSA", _) if alg.is_none_or(|alg| alg == "RS256") => {
                let (n, e) = (number("n", self.n)?, number("e", self.e)?);
                check_modulus(&n)?;
                check_exponent(&e)?;
                Material::Rs256 { n, e }
            }
            _ => return Ok(None),
        };
        Ok(Some(Key { id: self.kid, material }))
    }
}

fn field(name: &str, value: Option<String>) -> Result<Vec<u8>, String> {
    let text = value.ok_or_else(|| format!("{name} is missing"))?;
    URL_SAFE_NO_PAD.decode(text).map_err(|e| format!("{name} is no base64url: {e}"))
}

/// An unsigned big-endian number. RFC 7518 wants it without leading zeros; some issuers write the sign's zero byte all the
/// same, and the number is what it is.
fn number(name: &str, value: Option<String>) -> Result<Vec<u8>, String> {
    let mut bytes = field(name, value)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    Ok(bytes)
}

/// A modulus that nothing verifies with is a mistake in the file, better told at start than at each token.
fn check_modulus(n: &[u8]) -> Result<(), String> {
    let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
    if !(2048..=8192).contains(&bits) {
        return Err(format!("n has {bits} bits; RS256 keys have 2048 to 8192"));
    }
    if n.last().is_some_and(|last| last % 2 == 0) {
        return Err("n is even, so it is no product of two primes".to_owned());
    }
    Ok(())
}

/// Odd, at least 3, and at most 5 bytes: ring takes exponents up to 2^33 - 1, everybody's is 65,537.
fn check_exponent(e: &[u8]) -> Result<(), String> {
    const MAX: u64 = (1 << 33) - 1;
    let value =
        if e.len() <= 5 { e.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)) } else { u64::MAX };
    if !(3..=MAX).contains(&value) || value % 2 == 0 {
        return Err(format!("e is no odd number from 3 to {MAX}; AQAB (65537) is usual"));
    }
    Ok(())
}

/// An HS256 token for `user`, valid for `ttl` (whole seconds, at least one) from `now_ms`: for `berth token`, dev mode
/// and tests. A real deployment's tokens come from its own user service.
#[must_use]
pub fn sign_user_token(secret: &[u8], user: &str, ttl: Duration, now_ms: i64) -> String {
    sign_expected_token(secret, &JwtExpected::default(), user, ttl, now_ms)
}

/// The same, with the claims that are expected.
#[must_use]
pub fn sign_expected_token(
    secret: &[u8],
    expected: &JwtExpected,
    user: &str,
    ttl: Duration,
    now_ms: i64,
) -> String {
    #[derive(Serialize)]
    struct Signed<'a> {
        sub: &'a str,
        iat: i64,
        exp: i64,
        #[serde(skip_serializing_if = "str::is_empty")]
        aud: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        iss: &'a str,
    }
    let iat = now_ms.div_euclid(1000);
    let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
    let JwtExpected { audience: aud, issuer: iss } = expected;
    let claims = Signed { sub: user, iat, exp: iat.saturating_add(seconds), aud, iss };
    let claims = serde_json::to_vec(&claims).expect("strings and integers have a JSON form");
    let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[cfg(test)]
mod tests;
