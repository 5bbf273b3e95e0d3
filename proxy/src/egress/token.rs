//! Egress tokens: which sandbox of which session asks, and of which pod's proxy.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use longhand_protocol::{
    SessionId,
    egress::{AUDIENCE, Claims, LIFETIME_SECONDS},
};

/// How far the clocks of two nodes may be apart, in seconds.
const LEEWAY_SECONDS: u64 = 60;
/// A token is longer than this only if it is none of ours.
const MAX_LENGTH: usize = 4 * 1024;

/// A verify key that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("egress.verifyKey is not the base64 of the 32 bytes of an Ed25519 public key")]
pub struct KeyError;

/// Which check a token failed. None repeats the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a JWT with the claims of an egress token.
    #[error("the egress token is not a JWT with the claims aud, sub, sandbox, pod, harness, seed, iat and exp")]
    Malformed,
    /// Signed by another algorithm.
    #[error("the egress token is not signed with EdDSA")]
    Algorithm,
    /// Signed by another key, or changed.
    #[error("the egress token's signature is not the session service's")]
    Signature,
    /// For something else than egress.
    #[error("the egress token's audience (aud) is not {AUDIENCE}")]
    Audience,
    /// Of another session.
    #[error("the egress token is of another session")]
    Session,
    /// For the proxy of another pod.
    #[error("the egress token is for the proxy of another pod: the sandbox is bound again before its next call")]
    Pod,
    /// Too old.
    #[error("the egress token has expired: the sandbox is bound again before its next call")]
    Expired,
    /// From the future.
    #[error("the egress token was issued in the future (iat)")]
    NotYetIssued,
    /// Valid for too long.
    #[error("the egress token is valid for more than {LIFETIME_SECONDS} s (exp - iat)")]
    LivesTooLong,
}

/// Verifies the tokens of one session for one pod.
pub struct Verifier {
    session: SessionId,
    pod_uid: String,
    key: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("session", &self.session)
            .field("pod_uid", &self.pod_uid)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// A verifier of tokens that are signed by the owner of `verify_key` for the sandboxes of `session`, and for the proxy in
    /// the pod `pod_uid`.
    ///
    /// # Errors
    /// [`KeyError`] when the key is not the base64 of 32 bytes.
    pub fn new(verify_key: &str, session: SessionId, pod_uid: impl Into<String>) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(verify_key.trim()).map_err(|_| KeyError)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| KeyError)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY_SECONDS;
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["aud", "sub", "exp"]);
        Ok(Self { session, pod_uid: pod_uid.into(), key: DecodingKey::from_ed_der(&bytes), validation })
    }

    /// What a token says, if it is good for this proxy now.
    ///
    /// # Errors
    /// [`TokenError`] names the first check that it failed.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        if token.len() > MAX_LENGTH {
            return Err(TokenError::Malformed);
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| failed(error.kind()))?
            .claims;
        if claims.sub != self.session {
            return Err(TokenError::Session);
        }
        if claims.harness != self.pod_uid {
            return Err(TokenError::Pod);
        }
        if claims.iat > jsonwebtoken::get_current_timestamp().saturating_add(LEEWAY_SECONDS) {
            return Err(TokenError::NotYetIssued);
        }
        if claims.exp.saturating_sub(claims.iat) > LIFETIME_SECONDS {
            return Err(TokenError::LivesTooLong);
        }
        Ok(claims)
    }
}

fn failed(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
            TokenError::Algorithm
        }
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAudience => TokenError::Audience,
        ErrorKind::ExpiredSignature => TokenError::Expired,
        _ => TokenError::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::EncodingKey;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::egress::testing::{HARNESS, SESSION, TokenMaker};

    #[test]
    fn a_token_says_who_asks() {
        let maker = TokenMaker::new();
        let claims = maker.verifier().verify(&maker.token(|_| {})).unwrap();
        assert_eq!((claims.sub.as_str(), claims.sandbox.as_str(), claims.pod.as_str()), (SESSION, "default", "pod-1"));
    }

    #[rstest]
    #[case("aud", json!("sandboxd"), TokenError::Audience)]
    #[case("aud", json!(null), TokenError::Malformed)]
    #[case("sub", json!("sesn_another"), TokenError::Session)]
    #[case("sub", json!("nobody"), TokenError::Malformed)]
    #[case("harness", json!("another-pod"), TokenError::Pod)]
    #[case("harness", json!(null), TokenError::Malformed)]
    #[case("sandbox", json!(null), TokenError::Malformed)]
    #[case("seed", json!("BwcH"), TokenError::Malformed)]
    #[case("exp", json!(1_000), TokenError::Expired)]
    #[case("exp", json!(99_999_999_999_u64), TokenError::LivesTooLong)]
    #[case("iat", json!(99_999_999_999_u64), TokenError::NotYetIssued)]
    fn each_claim_is_checked(#[case] claim: &str, #[case] value: serde_json::Value, #[case] expected: TokenError) {
        let maker = TokenMaker::new();
        let token = maker.token(|claims| claims[claim] = value);
        assert_eq!(maker.verifier().verify(&token).unwrap_err(), expected);
    }

    #[test]
    fn only_the_service_signs() {
        let (maker, other) = (TokenMaker::new(), TokenMaker::new());
        assert_eq!(maker.verifier().verify(&other.token(|_| {})).unwrap_err(), TokenError::Signature);
        let mut changed = maker.token(|_| {});
        changed.truncate(changed.len() - 4);
        changed.push_str("AAAA");
        assert_eq!(maker.verifier().verify(&changed).unwrap_err(), TokenError::Signature);

        // The public key as the secret of an HMAC.
        let secret = EncodingKey::from_secret(maker.public_key().as_bytes());
        let hmac =
            jsonwebtoken::encode(&jsonwebtoken::Header::new(Algorithm::HS256), &maker.claims(), &secret).unwrap();
        assert_eq!(maker.verifier().verify(&hmac).unwrap_err(), TokenError::Algorithm);
        for junk in ["", "a.b.c", "....", &"a".repeat(10_000)] {
            assert_eq!(maker.verifier().verify(junk).unwrap_err(), TokenError::Malformed, "{junk}");
        }
    }

    #[rstest]
    #[case("")]
    #[case("AAAA")]
    #[case("not base64")]
    fn a_key_is_32_bytes(#[case] key: &str) {
        assert_eq!(Verifier::new(key, SESSION.parse().unwrap(), HARNESS).unwrap_err(), KeyError);
    }
}
