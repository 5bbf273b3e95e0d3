//! The refresh grant of OAuth 2.0 (RFC 6749, section 6): what is asked and how the answer is read. Pure.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use longhand_protocol::refresh::RefreshFailure;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::{
    config::{ClientAuth, OAuthClient},
    secret::Secret,
};

/// Nobody hands out a token for longer, and a mistake is no reason to keep one for ever.
const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 3_600);

/// What is asked of a provider.
pub struct Ask {
    /// The form.
    pub body: Zeroizing<Vec<u8>>,
    /// How the client authenticates, if by a header.
    pub authorization: Option<HeaderValue>,
}

/// What a provider gave.
#[derive(Debug)]
pub struct Granted {
    /// The access token.
    pub access: Secret,
    /// The refresh token that takes the place of the one that was used.
    pub refresh: Option<Secret>,
    /// For how long the access token is good, if that is known.
    pub lifetime: Option<Duration>,
    /// Whether the access token can be sent as a bearer. The refresh token is good all the same.
    pub bearer: bool,
}

impl Granted {
    /// The same, knowing which refresh token was used: a provider that gives that one again gives no other.
    pub fn in_exchange_for(mut self, used: &Secret) -> Self {
        self.refresh = self.refresh.filter(|refresh| !refresh.matches(used.expose()));
        self
    }
}

/// Types of access tokens that go with a proof of a key. Any other is sent as a bearer, whatever a provider calls it.
const NO_BEARERS: [&str; 2] = ["dpop", "mac"];

/// Why a provider gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// It will not, however often it is asked.
    #[error("the provider refused: {}", .0.as_str())]
    Final(RefreshFailure),
    /// It could not, or answered something that is no answer.
    #[error("the provider answered with status {status}: {what}")]
    Passing {
        /// The status.
        status: u16,
        /// What is wrong.
        what: &'static str,
    },
}

/// The request for another access token.
#[must_use]
pub fn ask(client: &OAuthClient, refresh: &Secret, secret: Option<&Secret>) -> Ask {
    // Space for all of it, so that no copy is left behind by growing.
    let length = [Some(refresh), secret].into_iter().flatten().map(|value| 3 * value.expose().len()).sum::<usize>();
    let texts = [Some(&client.id), client.scope.as_ref(), client.resource.as_ref()];
    let length = length + texts.into_iter().flatten().map(|text| 3 * text.len()).sum::<usize>() + 256;
    let mut body = Zeroizing::new(Vec::with_capacity(length));
    body.extend_from_slice(b"grant_type=refresh_token&refresh_token=");
    encode(refresh.expose(), &mut body);
    let mut field = |name: &[u8], value: &[u8]| {
        body.extend_from_slice(name);
        encode(value, &mut body);
    };
    if let Some(scope) = &client.scope {
        field(b"&scope=", scope.as_bytes());
    }
    if let Some(resource) = &client.resource {
        field(b"&resource=", resource.as_bytes());
    }
    let authorization = match (client.auth, secret) {
        (ClientAuth::ClientSecretBasic, Some(secret)) => basic(&client.id, secret),
        (ClientAuth::ClientSecretPost, Some(secret)) => {
            field(b"&client_id=", client.id.as_bytes());
            field(b"&client_secret=", secret.expose());
            None
        }
        _ => {
            field(b"&client_id=", client.id.as_bytes());
            None
        }
    };
    Ask { body, authorization }
}

/// HTTP Basic as RFC 6749, 2.3.1 has it: both parts are encoded like a form before.
fn basic(id: &str, secret: &Secret) -> Option<HeaderValue> {
    let mut pair = Zeroizing::new(Vec::with_capacity(3 * (id.len() + secret.expose().len()) + 1));
    encode(id.as_bytes(), &mut pair);
    pair.push(b':');
    encode(secret.expose(), &mut pair);
    let mut value = Zeroizing::new(Vec::with_capacity(4 * pair.len() / 3 + 16));
    value.extend_from_slice(b"Basic ");
    value.extend_from_slice(Zeroizing::new(STANDARD.encode(&*pair)).as_bytes());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(value)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// As `application/x-www-form-urlencoded`.
fn encode(text: &[u8], into: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text {
        match byte {
            b' ' => into.push(b'+'),
            b'*' | b'-' | b'.' | b'_' => into.push(*byte),
            byte if byte.is_ascii_alphanumeric() => into.push(*byte),
            byte => into.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]),
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    access_token: Option<Word>,
    #[serde(default)]
    refresh_token: Option<Word>,
    #[serde(default)]
    token_type: Option<String>,
    #[serde(default)]
    expires_in: Option<Seconds>,
}

/// A value that is cleared when it is dropped.
struct Word(Zeroizing<Vec<u8>>);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text.into_bytes())))
    }
}

/// Some providers write it as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(f64),
    Text(String),
}

impl Seconds {
    /// None of a number that says nothing.
    fn lifetime(&self) -> Option<Duration> {
        let seconds = match self {
            Self::Number(seconds) => *seconds,
            Self::Text(text) => text.parse().ok()?,
        };
        let lifetime = Duration::try_from_secs_f64(seconds).ok()?;
        (lifetime >= Duration::from_secs(1)).then(|| lifetime.min(MAX_LIFETIME))
    }
}

/// Reads a provider's answer.
///
/// # Errors
/// [`GrantError`], which repeats nothing of it.
pub fn read(status: StatusCode, body: &[u8]) -> Result<Granted, GrantError> {
    let passing = |what| GrantError::Passing { status: status.as_u16(), what };
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
        return Err(passing("it is not the JSON of an answer"));
    };
    // Some say so with status 200.
    if let Some(error) = answer.error {
        return Err(match error.as_str() {
            "invalid_grant" | "bad_refresh_token" => GrantError::Final(RefreshFailure::InvalidGrant),
            "invalid_client"
            | "unauthorized_client"
            | "invalid_scope"
            | "invalid_target"
            | "invalid_request"
            | "unsupported_grant_type" => GrantError::Final(RefreshFailure::Refused),
            _ => passing("an error that it may get over"),
        });
    }
    if !status.is_success() {
        return Err(passing("it gave no reason"));
    }
    let other = |kind: String| NO_BEARERS.iter().any(|other| kind.eq_ignore_ascii_case(other));
    let bearer = !answer.token_type.is_some_and(other);
    let value = |word: Word| Secret::new(&word.0).map_err(|_| passing("a token that fits in no header"));
    let access = answer.access_token.ok_or_else(|| passing("there is no access token"))?;
    let refresh = answer.refresh_token.filter(|word| !word.0.is_empty());
    Ok(Granted {
        access: value(access)?,
        refresh: refresh.map(value).transpose()?,
        lifetime: answer.expires_in.and_then(|seconds| seconds.lifetime()),
        bearer,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn client(auth: ClientAuth) -> OAuthClient {
        OAuthClient { id: "my client".to_owned(), auth, scope: None, resource: None }
    }

    fn asked(client: &OAuthClient) -> (String, Option<String>) {
        let ask = ask(client, &Secret::of("rt/1+~"), Some(&Secret::of("s:e%c")));
        let authorization = ask.authorization.map(|value| {
            assert!(value.is_sensitive());
            value.to_str().unwrap().to_owned()
        });
        (String::from_utf8(ask.body.to_vec()).unwrap(), authorization)
    }

    const GRANT: &str = "grant_type=refresh_token&refresh_token=rt%2F1%2B%7E";

    #[test]
    fn a_client_says_who_it_is() {
        let none = asked(&client(ClientAuth::None));
        assert_eq!(none, (format!("{GRANT}&client_id=my+client"), None));
        let post = asked(&client(ClientAuth::ClientSecretPost));
        assert_eq!(post, (format!("{GRANT}&client_id=my+client&client_secret=s%3Ae%25c"), None));
        // The Base64 of "my+client:s%3Ae%25c".
        let header = "Basic bXkrY2xpZW50OnMlM0FlJTI1Yw==".to_owned();
        assert_eq!(asked(&client(ClientAuth::ClientSecretBasic)), (GRANT.to_owned(), Some(header)));
    }

    #[test]
    fn what_it_wants_is_in_the_form() {
        let client = OAuthClient {
            scope: Some("a b".to_owned()),
            resource: Some("https://mcp.example/x".to_owned()),
            ..client(ClientAuth::ClientSecretBasic)
        };
        assert_eq!(asked(&client).0, format!("{GRANT}&scope=a+b&resource=https%3A%2F%2Fmcp.example%2Fx"));
    }

    #[rstest]
    #[case(
        r#"{"access_token": "at", "token_type": "Bearer", "expires_in": 3600, "refresh_token": "rt"}"#,
        Some(3_600),
        true
    )]
    #[case(r#"{"access_token": "at", "token_type": "bearer", "expires_in": "3600"}"#, Some(3_600), false)]
    #[case(r#"{"access_token": "at", "refresh_token": "", "expires_in": null, "extra": {}}"#, None, false)]
    #[case(r#"{"access_token": "at", "expires_in": 0}"#, None, false)]
    #[case(r#"{"access_token": "at", "expires_in": -1}"#, None, false)]
    #[case(r#"{"access_token": "at", "expires_in": 1e300}"#, None, false)]
    #[case(r#"{"access_token": "at", "expires_in": 1e12}"#, Some(366 * 86_400), false)]
    #[case(r#"{"access_token": "at", "expires_in": "soon"}"#, None, false)]
    fn tokens_are_read(#[case] body: &str, #[case] seconds: Option<u64>, #[case] rotated: bool) {
        let granted = read(StatusCode::OK, body.as_bytes()).unwrap();
        assert!(granted.access.matches(b"at"));
        assert_eq!((granted.lifetime, granted.refresh.is_some()), (seconds.map(Duration::from_secs), rotated));
    }

    #[test]
    fn a_provider_that_gives_the_same_refresh_token_again_gives_no_other() {
        let granted = || read(StatusCode::OK, br#"{"access_token": "at", "refresh_token": "rt"}"#).unwrap();
        let used = |value: &str| granted().refresh.filter(|refresh| refresh.matches(value.as_bytes()));
        assert!(granted().in_exchange_for(&used("rt").unwrap()).refresh.is_none());
        assert!(granted().in_exchange_for(&granted().access).refresh.is_some());
    }

    #[rstest]
    #[case("Bearer", true)]
    #[case("bot", true)]
    #[case("user", true)]
    #[case("", true)]
    #[case("DPoP", false)]
    #[case("MAC", false)]
    fn what_a_success_gives_is_kept_whatever_it_is_called(#[case] kind: &str, #[case] bearer: bool) {
        let body = format!(r#"{{"access_token": "at", "token_type": "{kind}", "refresh_token": "rt"}}"#);
        let granted = read(StatusCode::OK, body.as_bytes()).unwrap();
        assert!(granted.refresh.unwrap().matches(b"rt"));
        assert_eq!(granted.bearer, bearer);
    }

    #[rstest]
    #[case(400, r#"{"error": "invalid_grant", "error_description": "canary"}"#, Some(RefreshFailure::InvalidGrant))]
    #[case(200, r#"{"error": "bad_refresh_token"}"#, Some(RefreshFailure::InvalidGrant))]
    #[case(401, r#"{"error": "invalid_client"}"#, Some(RefreshFailure::Refused))]
    #[case(400, r#"{"error": "slow_down_canary"}"#, None)]
    #[case(500, r#"{"error": "temporarily_unavailable"}"#, None)]
    #[case(500, r#"{"access_token": "canary"}"#, None)]
    #[case(200, r#"{"refresh_token": "canary"}"#, None)]
    #[case(200, r#"{"access_token": "can\nary"}"#, None)]
    #[case(200, r#"{"access_token": 7}"#, None)]
    #[case(302, "", None)]
    #[case(200, "<html>canary</html>", None)]
    #[case(200, "[]", None)]
    fn a_refusal_is_final_or_passes(#[case] status: u16, #[case] body: &str, #[case] last: Option<RefreshFailure>) {
        let error = read(StatusCode::from_u16(status).unwrap(), body.as_bytes()).unwrap_err();
        match last {
            Some(failure) => assert_eq!(error, GrantError::Final(failure)),
            None => assert!(matches!(error, GrantError::Passing { .. }), "{error}"),
        }
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}
