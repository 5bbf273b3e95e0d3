//! What the session service, a sandbox and the credential proxy's egress mode say to one another: who a sandbox is, what
//! stands for a credential in it, and what became of its requests.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac as _};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Sha256;
use zeroize::Zeroizing;

pub use self::report::{
    CredentialEvent, CredentialEvents, CredentialOutcome, HASH, MAX_CREDENTIAL, MAX_EVENTS, MAX_HOST, MAX_METHOD,
    MAX_REASON, MAX_SANDBOX, MalformedReport, path_sha256,
};
pub use self::text::Text;
use crate::id::SessionId;

mod report;
mod text;

/// The audience (`aud`) of an egress token.
pub const AUDIENCE: &str = "longhand-egress";
/// How long an egress token is good for, in seconds.
pub const LIFETIME_SECONDS: u64 = 24 * 60 * 60;
/// The port of a harness pod on which its proxy serves the session's sandboxes.
pub const PORT: u16 = 8084;
/// What every placeholder begins with.
pub const PLACEHOLDER_PREFIX: &str = "lhp_";
/// Characters of a placeholder behind its prefix: 256 bits in base64url.
pub const PLACEHOLDER_LENGTH: usize = 43;

/// What the placeholders of a session are made from. It is shown to nobody but the session's own proxy and `sandboxd`.
#[derive(Clone)]
pub struct Seed(Zeroizing<[u8; 32]>);

impl Seed {
    /// The seed of a session, from a key that only the session service has.
    #[must_use]
    pub fn derive(key: &[u8], session: &SessionId) -> Self {
        Self(Zeroizing::new(mac(key, &[b"placeholders", session.as_str().as_bytes()])))
    }

    /// What stands for a credential in the sandboxes of the session: [`PLACEHOLDER_PREFIX`] and [`PLACEHOLDER_LENGTH`]
    /// characters of `A-Z a-z 0-9 - _`.
    #[must_use]
    pub fn placeholder(&self, vault: &str, credential: &str) -> String {
        let mac = mac(&*self.0, &[vault.as_bytes(), b"/", credential.as_bytes()]);
        format!("{PLACEHOLDER_PREFIX}{}", URL_SAFE_NO_PAD.encode(mac))
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // A key of any length is taken: longer ones than a block are hashed.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { unreachable!("HMAC takes keys of every length") };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

impl From<[u8; 32]> for Seed {
    fn from(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

impl Serialize for Seed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(self.0.as_slice())))
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let wrong = || D::Error::custom("a seed is the base64 of 32 bytes");
        let bytes = Zeroizing::new(STANDARD.decode(text.as_bytes()).map_err(|_| wrong())?);
        let bytes: [u8; 32] = bytes.as_slice().try_into().map_err(|_| wrong())?;
        Ok(Self::from(bytes))
    }
}

/// The claims of an egress token: a JWT that the session service signs with EdDSA, and that names one sandbox of one
/// session and the one harness pod whose proxy serves it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    /// [`AUDIENCE`].
    pub aud: String,
    /// The session.
    pub sub: SessionId,
    /// The sandbox's name in the session.
    pub sandbox: String,
    /// The UID of the sandbox's pod.
    pub pod: String,
    /// The UID of the harness pod.
    pub harness: String,
    /// What the session's placeholders are made from.
    pub seed: Seed,
    /// When it was signed, in seconds of Unix time.
    pub iat: u64,
    /// When it expires, in seconds of Unix time; [`LIFETIME_SECONDS`] later.
    pub exp: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Claims, PLACEHOLDER_LENGTH, PLACEHOLDER_PREFIX, Seed};

    #[test]
    fn a_placeholder_is_that_of_one_credential_of_one_session() {
        let one = Seed::derive(b"key", &"sesn_1".parse().unwrap());
        let placeholder = one.placeholder("team", "github");
        assert_eq!(placeholder, Seed::derive(b"key", &"sesn_1".parse().unwrap()).placeholder("team", "github"));
        assert_eq!(placeholder.len(), PLACEHOLDER_PREFIX.len() + PLACEHOLDER_LENGTH);
        assert!(placeholder.starts_with(PLACEHOLDER_PREFIX));
        for other in [
            one.placeholder("team", "gitlab"),
            one.placeholder("teams", "github"),
            Seed::derive(b"key", &"sesn_2".parse().unwrap()).placeholder("team", "github"),
            Seed::derive(b"yek", &"sesn_1".parse().unwrap()).placeholder("team", "github"),
        ] {
            assert_ne!(placeholder, other);
        }
    }

    #[test]
    fn placeholders_do_not_change_with_the_build() {
        // From Python's hmac and hashlib, of the seed 07 07 ... 07.
        let seed = Seed::from([7; 32]);
        assert_eq!(seed.placeholder("v", "c"), "lhp_E85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ");
    }

    #[test]
    fn a_seed_is_not_shown_and_comes_back_from_a_token() {
        let claims = json!({
            "aud": "longhand-egress", "sub": "sesn_1", "sandbox": "default", "pod": "p", "harness": "h",
            "seed": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=", "iat": 1, "exp": 2,
        });
        let read: Claims = serde_json::from_value(claims.clone()).unwrap();
        assert_eq!(read.seed.placeholder("v", "c"), Seed::from([7; 32]).placeholder("v", "c"));
        assert!(format!("{read:?}").contains("seed: [redacted]"));
        assert_eq!(serde_json::to_value(&read).unwrap(), claims);
        for wrong in ["", "BwcH", "not base64"] {
            let mut claims = claims.clone();
            claims["seed"] = json!(wrong);
            assert!(serde_json::from_value::<Claims>(claims).is_err());
        }
    }
}
