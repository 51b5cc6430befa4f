//! For whom a user's token must be made, and by whom, where that is configured: one issuer's tokens for another service are not ours.

use serde_json::Value;

use super::JwtError;

/// What tokens must say of whom they are for and who made them; empty: whatever they say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JwtExpected {
    /// One of the values of `aud` (`auth.jwt_audience`).
    pub audience: String,
    /// `iss` (`auth.jwt_issuer`).
    pub issuer: String,
}

impl JwtExpected {
    /// Both are compared as they are, byte by byte (RFC 7519, 4.1.1 and 4.1.3).
    pub(super) fn check(&self, aud: &Value, iss: &Value) -> Result<(), JwtError> {
        let says = |wanted: &str, said: &Value| match said {
            Value::Array(all) => all.iter().any(|one| one == wanted),
            one => one == wanted,
        };
        if !self.audience.is_empty() && !says(&self.audience, aud) {
            return Err(JwtError::Claim(format!(
                "aud does not name {:?} (auth.jwt_audience)",
                self.audience
            )));
        }
        if !self.issuer.is_empty() && iss != self.issuer.as_str() {
            return Err(JwtError::Claim(format!("iss is not {:?} (auth.jwt_issuer)", self.issuer)));
        }
        Ok(())
    }
}
