//! JWTs that the service signs with its own key, and reads again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use longhand_sandbox::token::{KeyError, SignError, Signer};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Tokens of one audience. Their claims have `aud`, `sub` and `exp`.
pub(crate) struct Signed {
    signer: Signer,
    key: DecodingKey,
    validation: Validation,
}

impl Signed {
    /// With the service's key; clocks may differ by `leeway_seconds`.
    ///
    /// # Errors
    /// [`KeyError::Public`] if the signer has none, which its tests exclude.
    pub(crate) fn new(signer: Signer, audience: &str, leeway_seconds: u64) -> Result<Self, KeyError> {
        let public = STANDARD.decode(signer.public_key()).map_err(|_| KeyError::Public)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = leeway_seconds;
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["aud", "sub", "exp"]);
        Ok(Self { signer, key: DecodingKey::from_ed_der(&public), validation })
    }

    /// A token of these claims.
    ///
    /// # Errors
    /// [`SignError`] if it cannot be signed.
    pub(crate) fn encode(&self, claims: &impl Serialize) -> Result<String, SignError> {
        self.signer.encode(claims)
    }

    /// What a token says; `None` if it is not one of these, or over.
    pub(crate) fn decode<C: DeserializeOwned>(&self, token: &str) -> Option<C> {
        Some(jsonwebtoken::decode(token, &self.key, &self.validation).ok()?.claims)
    }
}
