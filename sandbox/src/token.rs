//! The tokens that open a sandbox: short-lived JWTs, signed with Ed25519, good for one pod.
//!
//! The session service holds the [`Signer`]; a sandbox gets the public key and its own pod UID, and so the [`Verifier`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _};
use ed25519_dalek::{SigningKey, VerifyingKey};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const AUDIENCE: &str = "sandboxd";
const LIFETIME_SECONDS: u64 = 5 * 60;
const MAX_LIFETIME_SECONDS: u64 = 10 * 60;
const LEEWAY_SECONDS: u64 = 30;

/// What a token opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Tool calls, files and control.
    #[default]
    Tools,
    /// Terminals, and nothing else.
    Terminal,
    /// Servers that listen in the sandbox, and nothing else.
    Port,
}

impl Scope {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    sub: String,
    exp: u64,
    iat: u64,
    #[serde(default, skip_serializing_if = "Scope::is_default")]
    scope: Scope,
}

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The private key is not an Ed25519 key in PKCS#8.
    #[error("the signing key is not an Ed25519 private key in PKCS#8 PEM: {0}")]
    Private(#[from] ed25519_dalek::pkcs8::Error),
    /// The public key is not 32 bytes of an Ed25519 key in base64.
    #[error("the verify key is not the base64 of the 32 bytes of an Ed25519 public key")]
    Public,
}

/// A token that could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign a sandbox token: {0}")]
pub struct SignError(#[from] jsonwebtoken::errors::Error);

/// Signs tokens for sandboxes.
#[derive(Clone)]
pub struct Signer {
    key: EncodingKey,
    public: VerifyingKey,
    /// What secrets for other purposes are derived from.
    root: [u8; 32],
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("public_key", &self.public_key()).finish_non_exhaustive()
    }
}

impl Signer {
    /// Takes an Ed25519 private key in PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` writes it.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        Self::from_key(&SigningKey::from_pkcs8_pem(pem)?)
    }

    /// Makes a new key: the signer, and its private key in PKCS#8 PEM.
    pub fn generate() -> Result<(Self, String), KeyError> {
        let key = SigningKey::from_bytes(&rand::random());
        let pem = key.to_pkcs8_pem(LineEnding::LF)?;
        Ok((Self::from_key(&key)?, pem.as_str().to_owned()))
    }

    fn from_key(key: &SigningKey) -> Result<Self, KeyError> {
        let der = key.to_pkcs8_der()?;
        let root = Sha256::new_with_prefix("longhand derived secrets").chain_update(key.as_bytes()).finalize().into();
        Ok(Self { key: EncodingKey::from_ed_der(der.as_bytes()), public: key.verifying_key(), root })
    }

    /// The public key as `SANDBOXD_VERIFY_KEY` takes it: the base64 of its 32 bytes.
    #[must_use]
    pub fn public_key(&self) -> String {
        STANDARD.encode(self.public.as_bytes())
    }

    /// A secret of the signer's owner for one purpose. It is the same for the same key, and says nothing of the key.
    #[must_use]
    pub fn secret_for(&self, purpose: &str) -> [u8; 32] {
        Sha256::new_with_prefix(self.root).chain_update(purpose).finalize().into()
    }

    /// A token that opens the tools of the sandbox in the pod with this UID, for a few minutes.
    pub fn sign(&self, pod_uid: &str) -> Result<String, SignError> {
        self.sign_for(pod_uid, Scope::Tools)
    }

    /// A token that opens only `scope` of the sandbox in the pod with this UID, for a few minutes.
    pub fn sign_for(&self, pod_uid: &str, scope: Scope) -> Result<String, SignError> {
        let now = jsonwebtoken::get_current_timestamp();
        self.encode(&Claims {
            aud: AUDIENCE.to_owned(),
            sub: pod_uid.to_owned(),
            exp: now + LIFETIME_SECONDS,
            iat: now,
            scope,
        })
    }

    /// A token of other claims. Its audience has to be another one, so that it opens no sandbox.
    pub fn encode(&self, claims: &impl Serialize) -> Result<String, SignError> {
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &self.key)?)
    }
}

/// Which check a token failed. None of them repeats the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a JWT with the claims aud, sub, exp and iat.
    #[error("the token is not a JWT with the claims aud, sub, exp and iat")]
    Malformed,
    /// Signed by another algorithm.
    #[error("the token is not signed with EdDSA")]
    Algorithm,
    /// Signed by another key, or changed.
    #[error("the token's signature does not match this sandbox's verify key")]
    Signature,
    /// For somebody else.
    #[error("the token's audience (aud) is not {AUDIENCE}")]
    Audience,
    /// For another sandbox.
    #[error("the token's subject (sub) is not this pod's UID")]
    Subject,
    /// Too old.
    #[error("the token has expired (exp)")]
    Expired,
    /// From the future.
    #[error("the token was issued in the future (iat)")]
    NotYetIssued,
    /// For something else.
    #[error("the token's scope does not open this path")]
    Scope,
    /// Valid for too long.
    #[error("the token is valid for more than {MAX_LIFETIME_SECONDS} s (exp - iat)")]
    LivesTooLong,
}

/// Verifies tokens for one sandbox.
pub struct Verifier {
    key: DecodingKey,
    validation: Validation,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("pod_uid", &self.validation.sub).finish_non_exhaustive()
    }
}

impl Verifier {
    /// A verifier of tokens that are signed by the owner of `public_key` (see [`Signer::public_key`]) for the pod `pod_uid`.
    pub fn new(public_key: &str, pod_uid: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(public_key.trim()).map_err(|_| KeyError::Public)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| KeyError::Public)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::Public)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY_SECONDS;
        validation.set_audience(&[AUDIENCE]);
        validation.sub = Some(pod_uid.to_owned());
        validation.set_required_spec_claims(&["aud", "sub", "exp"]);
        Ok(Self { key: DecodingKey::from_ed_der(key.as_bytes()), validation })
    }

    /// Whose tokens are taken.
    #[must_use]
    pub fn pod_uid(&self) -> &str {
        self.validation.sub.as_deref().unwrap_or_default()
    }

    /// Whether the token opens this sandbox's tools now.
    pub fn verify(&self, token: &str) -> Result<(), TokenError> {
        self.verify_for(token, Scope::Tools)
    }

    /// Whether the token opens `wanted` of this sandbox now.
    pub fn verify_for(&self, token: &str, wanted: Scope) -> Result<(), TokenError> {
        let claims =
            jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation).map_err(|error| failed(&error))?;
        let Claims { exp, iat, scope, .. } = claims.claims;
        if scope != wanted {
            return Err(TokenError::Scope);
        }
        if iat > jsonwebtoken::get_current_timestamp() + LEEWAY_SECONDS {
            return Err(TokenError::NotYetIssued);
        }
        if exp.saturating_sub(iat) > MAX_LIFETIME_SECONDS {
            return Err(TokenError::LivesTooLong);
        }
        Ok(())
    }
}

fn failed(error: &jsonwebtoken::errors::Error) -> TokenError {
    match error.kind() {
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
            TokenError::Algorithm
        }
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAudience => TokenError::Audience,
        ErrorKind::InvalidSubject => TokenError::Subject,
        ErrorKind::ExpiredSignature => TokenError::Expired,
        _ => TokenError::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    use rstest::rstest;
    use serde_json::json;

    use super::{Claims, KeyError, Scope, Signer, TokenError, Verifier};

    const POD: &str = "0b9c0f3e-0000-4000-8000-000000000001";

    fn now() -> u64 {
        jsonwebtoken::get_current_timestamp()
    }

    fn pair() -> (Signer, Verifier) {
        let (signer, _) = Signer::generate().unwrap();
        let verifier = Verifier::new(&signer.public_key(), POD).unwrap();
        (signer, verifier)
    }

    #[test]
    fn what_is_signed_for_a_pod_opens_that_pod_only() {
        let (signer, verifier) = pair();
        let token = signer.sign(POD).unwrap();
        assert_eq!(verifier.verify(&token), Ok(()));
        assert_eq!(verifier.verify(&signer.sign("another").unwrap()), Err(TokenError::Subject));
    }

    #[rstest]
    #[case(Scope::Tools, Scope::Tools, Ok(()))]
    #[case(Scope::Terminal, Scope::Terminal, Ok(()))]
    #[case(Scope::Tools, Scope::Terminal, Err(TokenError::Scope))]
    #[case(Scope::Terminal, Scope::Tools, Err(TokenError::Scope))]
    #[case(Scope::Port, Scope::Port, Ok(()))]
    #[case(Scope::Port, Scope::Terminal, Err(TokenError::Scope))]
    #[case(Scope::Tools, Scope::Port, Err(TokenError::Scope))]
    fn a_scope_opens_nothing_else(
        #[case] signed: Scope,
        #[case] wanted: Scope,
        #[case] expected: Result<(), TokenError>,
    ) {
        let (signer, verifier) = pair();
        assert_eq!(verifier.verify_for(&signer.sign_for(POD, signed).unwrap(), wanted), expected);
    }

    #[test]
    fn a_generated_key_survives_its_pem() {
        let (signer, pem) = Signer::generate().unwrap();
        let again = Signer::from_pem(&pem).unwrap();
        assert_eq!(again.public_key(), signer.public_key());
        assert_eq!(again.secret_for("a"), signer.secret_for("a"));
        assert_ne!(signer.secret_for("a"), signer.secret_for("b"));
        let verifier = Verifier::new(&signer.public_key(), POD).unwrap();
        assert_eq!(verifier.verify(&again.sign(POD).unwrap()), Ok(()));
        assert!(!format!("{signer:?}").contains(pem.lines().nth(1).unwrap()));
    }

    #[test]
    fn a_key_from_openssl_is_taken() {
        // RFC 8410, section 10.3: the PKCS#8 v1 form, without the public key.
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let signer = Signer::from_pem(pem).unwrap();
        assert_eq!(signer.public_key(), "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=");
    }

    #[rstest]
    #[case::other_audience("longhand", POD, 0, 60, Err(TokenError::Audience))]
    #[case::other_subject("sandboxd", "p", 0, 60, Err(TokenError::Subject))]
    #[case::expired("sandboxd", POD, -600, 500, Err(TokenError::Expired))]
    #[case::expired_within_leeway("sandboxd", POD, -310, 300, Ok(()))]
    #[case::long("sandboxd", POD, 0, 601, Err(TokenError::LivesTooLong))]
    #[case::longest("sandboxd", POD, 0, 600, Ok(()))]
    #[case::future("sandboxd", POD, 300, 60, Err(TokenError::NotYetIssued))]
    fn each_claim_is_checked(
        #[case] aud: &str,
        #[case] sub: &str,
        #[case] issued: i64,
        #[case] lifetime: u64,
        #[case] expected: Result<(), TokenError>,
    ) {
        let (signer, verifier) = pair();
        let iat = now().saturating_add_signed(issued);
        let claims = Claims { aud: aud.to_owned(), sub: sub.to_owned(), exp: iat + lifetime, iat, scope: Scope::Tools };
        assert_eq!(verifier.verify(&signer.encode(&claims).unwrap()), expected);
    }

    #[rstest]
    #[case("aud")]
    #[case("sub")]
    #[case("exp")]
    #[case("iat")]
    fn no_claim_may_be_missing(#[case] missing: &str) {
        let (signer, verifier) = pair();
        let mut claims = json!({"aud": "sandboxd", "sub": POD, "exp": now() + 60, "iat": now()});
        claims.as_object_mut().unwrap().shift_remove(missing);
        let token = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &signer.key).unwrap();
        assert_eq!(verifier.verify(&token), Err(TokenError::Malformed));
    }

    #[test]
    fn another_key_or_algorithm_opens_nothing() {
        let (signer, verifier) = pair();
        let (other, _) = Signer::generate().unwrap();
        assert_eq!(verifier.verify(&other.sign(POD).unwrap()), Err(TokenError::Signature));

        let claims = json!({"aud": "sandboxd", "sub": POD, "exp": now() + 60, "iat": now()});
        let hmac = EncodingKey::from_secret(signer.public_key().as_bytes());
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &hmac).unwrap();
        assert_eq!(verifier.verify(&token), Err(TokenError::Algorithm));

        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        for none in ["none", "None"] {
            let token = format!("{}.{}.", part(&json!({"alg": none, "typ": "JWT"})), part(&claims));
            assert!(verifier.verify(&token).is_err());
        }
        for junk in ["", "a", "a.b", "a.b.c", "....", "\u{0}"] {
            assert!(verifier.verify(junk).is_err(), "{junk:?}");
        }
    }

    #[rstest]
    #[case("")]
    #[case("not base64!")]
    #[case("AAAA")]
    fn a_bad_verify_key_is_an_error(#[case] key: &str) {
        assert!(matches!(Verifier::new(key, POD), Err(KeyError::Public)));
    }

    #[test]
    fn a_bad_signing_key_is_an_error() {
        assert!(matches!(Signer::from_pem("-----BEGIN NOTHING-----"), Err(KeyError::Private(_))));
    }
}
