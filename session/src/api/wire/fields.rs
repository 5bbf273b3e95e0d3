//! What the families of objects have in common: metadata, names for people, bodies with secret values.

use std::collections::BTreeMap;

use axum::extract::FromRequest;
use axum::extract::Request;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use zeroize::Zeroize as _;

use crate::api::error::{ApiError, Result};
use crate::api::extract::Body;
use crate::app::App;

const MOST_PAIRS: usize = 16;
const LONGEST_KEY: usize = 64;
const LONGEST_VALUE: usize = 512;
const LONGEST_NAME: usize = 255;

/// Checks pairs.
pub(super) fn check_metadata(pairs: &BTreeMap<String, String>) -> Result<()> {
    if pairs.len() > MOST_PAIRS {
        return Err(ApiError::bad_request(format!("`metadata` has more than {MOST_PAIRS} pairs")));
    }
    for (key, value) in pairs {
        if key.is_empty() || key.chars().count() > LONGEST_KEY {
            let message = format!("a key of `metadata` is not 1 to {LONGEST_KEY} characters long");
            return Err(ApiError::bad_request(message));
        }
        if value.chars().count() > LONGEST_VALUE {
            let message = format!("`metadata.{key}` is longer than {LONGEST_VALUE} characters");
            return Err(ApiError::bad_request(message));
        }
    }
    Ok(())
}

/// Changes pairs: a text sets, nothing removes.
pub(super) fn patch_metadata(
    pairs: &mut BTreeMap<String, String>,
    patch: &BTreeMap<String, Option<String>>,
) -> Result<()> {
    for (key, value) in patch {
        match value {
            Some(value) => pairs.insert(key.clone(), value.clone()),
            None => pairs.remove(key),
        };
    }
    check_metadata(pairs)
}

/// Checks a name for people.
pub(super) fn check_display_name(name: &str) -> Result<()> {
    if (1..=LONGEST_NAME).contains(&name.chars().count()) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("`display_name` is not 1 to {LONGEST_NAME} characters long")))
}

/// A body that may hold secret values: neither the body nor an error about it is kept or repeated.
pub struct SecretBody(Bytes);

impl FromRequest<App> for SecretBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self> {
        Body::from_request(request, app).await.map(|Body(bytes)| Self(bytes))
    }
}

impl SecretBody {
    /// Reads JSON, and clears it.
    pub(in crate::api) fn parse<T: DeserializeOwned>(self) -> Result<T> {
        let parsed = serde_json::from_slice(&self.0).map_err(|error| describe(&error));
        // Nobody else has a part of it, so that it can be cleared in place.
        if let Ok(mut bytes) = self.0.try_into_mut() {
            bytes.as_mut().zeroize();
        }
        parsed
    }
}

/// The place and kind of an error; what stands there may be a value that was put into the wrong field.
fn describe(error: &serde_json::Error) -> ApiError {
    let (line, column, what) = (error.line(), error.column(), kind(error));
    ApiError::bad_request(format!("the body is malformed at line {line} column {column}: {what}"))
}

/// The kind of an error, without what stands in its place.
pub(super) fn kind(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let harmless = ["missing field", "unknown field", "duplicate field"].iter().any(|start| text.starts_with(start));
    let kind = if harmless { text.split(" at line").next() } else { None };
    kind.unwrap_or("a value is of the wrong type or form").to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use longhand_protocol::wire::vaults::CreateCredential;
    use rstest::rstest;

    use super::{SecretBody, check_display_name, check_metadata, patch_metadata};

    #[rstest]
    #[case(r#"{"auth": "sk-canary"}"#)]
    #[case(r#"{"auth": {"type": "sk-canary"}}"#)]
    #[case(r#"{"auth": {"type": "static_bearer", "token": ["sk-canary"]}}"#)]
    #[case(r#"{"auth": {"type": "mcp_oauth", "expires_at": "sk-canary"}}"#)]
    #[case(r#"{"auth": {"type": "mcp_oauth", "refresh": "sk-canary"}}"#)]
    #[case(r#"{"auth": {"type": "static_bearer", "token": "sk-canary", "mcp_server_url": 1}}"#)]
    #[case(r#"{"auth": {"type": "static_bearer", "token": "sk-canary""#)]
    fn an_error_never_repeats_a_value(#[case] body: &'static str) {
        let Err(error) = SecretBody(Bytes::from_static(body.as_bytes())).parse::<CreateCredential>() else {
            panic!("{body} was taken")
        };
        assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
        assert!(error.to_string().contains("line 1"), "{error}");
    }

    #[test]
    fn an_unknown_field_is_named() {
        let body = Bytes::from_static(br#"{"auth": {"type": "static_bearer", "tokn": "sk-canary"}}"#);
        let Err(error) = SecretBody(body).parse::<CreateCredential>() else { panic!("it was taken") };
        assert!(error.to_string().contains("unknown field `tokn`"), "{error}");
        assert!(!error.to_string().contains("canary"), "{error}");
    }

    #[test]
    fn pairs_are_bounded_and_patched() {
        let mut pairs = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let patch = BTreeMap::from([("a".to_owned(), None), ("c".to_owned(), Some("3".to_owned()))]);
        patch_metadata(&mut pairs, &patch).unwrap();
        assert_eq!(pairs.keys().collect::<Vec<_>>(), ["b", "c"]);
        let many = (0..17).map(|index| (index.to_string(), String::new())).collect();
        assert!(check_metadata(&many).is_err());
        assert!(check_metadata(&BTreeMap::from([("k".repeat(65), String::new())])).is_err());
        assert!(check_metadata(&BTreeMap::from([("k".to_owned(), "v".repeat(513))])).is_err());
        assert!(check_display_name("").is_err());
        assert!(check_display_name(&"n".repeat(256)).is_err());
        assert!(check_display_name(&"ü".repeat(255)).is_ok());
    }
}
