//! What handlers take from a request: who asks, which session, the query and the body.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use bytes::Bytes;
use http::request::Parts;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use longhand_protocol::SessionId;
use serde::de::DeserializeOwned;
use tracing::Span;

use super::error::{ApiError, Result};
use crate::app::App;
use crate::auth::Identity;

const MAX_BODY: usize = 8 * 1024 * 1024;
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller(pub Arc<Identity>);

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        // Most routes are behind a layer that has asked already.
        match parts.extensions.get::<Self>() {
            Some(caller) => Ok(caller.clone()),
            None => app.auth.identify(&parts.headers).await.map(Self),
        }
    }
}

/// The parameters of the path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathOf {
    namespace: Option<String>,
    name: Option<String>,
    session: Option<SessionId>,
    others: Vec<(String, String)>,
}

impl PathOf {
    /// The namespace, if the path has one.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Namespace and name of a resource.
    pub fn resource(&self) -> Result<(&str, &str)> {
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => Ok((namespace, name)),
            _ => Err(ApiError::internal("the route has no resource")),
        }
    }

    /// What stands in the place `key` of the path: an identifier or the name of an object.
    pub fn of(&self, key: &str) -> Result<&str> {
        let found = self.others.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        found.ok_or_else(|| ApiError::internal(format!("the route has no {key}")))
    }

    /// Whether the path names a session.
    #[must_use]
    pub fn has_session(&self) -> bool {
        self.session.is_some()
    }

    /// The session.
    pub fn session(&self) -> Result<&SessionId> {
        self.session.as_ref().ok_or_else(|| ApiError::internal("the route has no session"))
    }
}

impl FromRequestParts<App> for PathOf {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let params = RawPathParams::from_request_parts(parts, app)
            .await
            .map_err(|error| ApiError::bad_request(format!("the path cannot be read: {error}")))?;
        let mut path = Self::default();
        for (key, value) in &params {
            match key {
                "namespace" if is_name(value, 63) => path.namespace = Some(value.to_owned()),
                "name" if is_name(value, 253) => path.name = Some(value.to_owned()),
                "session" => {
                    let session = value.parse::<SessionId>();
                    let session = session.map_err(|_| ApiError::not_found(format!("there is no session `{value}`")))?;
                    Span::current().record("session", session.as_str());
                    path.session = Some(session);
                }
                "namespace" | "name" => {
                    return Err(ApiError::bad_request(format!("`{key}` in the path is not a name")));
                }
                _ if is_reference(value) => path.others.push((key.to_owned(), value.to_owned())),
                _ => return Err(ApiError::not_found(format!("there is no {key} `{}`", shortened(value)))),
            }
        }
        Ok(path)
    }
}

/// Whether `value` can be the name of a Kubernetes object.
pub fn is_name(value: &str, longest: usize) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = value.as_bytes();
    bytes.len() <= longest
        && bytes.first().copied().is_some_and(inner)
        && bytes.last().copied().is_some_and(inner)
        && bytes.iter().all(|byte| inner(*byte) || matches!(byte, b'-' | b'.'))
}

/// Whether `value` can be an identifier or the name of a Kubernetes object.
pub fn is_reference(value: &str) -> bool {
    (1..=253).contains(&value.len())
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

/// As much of what a client sent as an error repeats.
pub fn shortened(value: &str) -> String {
    value.chars().take(80).collect()
}

/// The pairs of the query.
pub async fn pairs(parts: &mut Parts, app: &App) -> Result<Vec<(String, String)>> {
    match Query::<Vec<(String, String)>>::from_request_parts(parts, app).await {
        Ok(Query(pairs)) => Ok(pairs),
        Err(error) => Err(ApiError::bad_request(format!("the query cannot be read: {error}"))),
    }
}

/// The body.
#[derive(Clone, Debug)]
pub struct Body(pub Bytes);

impl FromRequest<App> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &App) -> Result<Self> {
        whole(request.into_body(), MAX_BODY).await.map(Self)
    }
}

/// All of a body of at most `limit` bytes.
pub async fn whole(body: axum::body::Body, limit: usize) -> Result<Bytes> {
    match tokio::time::timeout(BODY_DEADLINE, Limited::new(body, limit).collect()).await {
        Err(_) => Err(ApiError::slow_body(BODY_DEADLINE)),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::too_large(format!("the body is larger than {limit} bytes")))
        }
        Ok(Err(error)) => Err(ApiError::bad_request(format!("the body could not be read: {error}"))),
    }
}

/// The body as JSON of a type.
#[derive(Clone, Debug)]
pub struct JsonOf<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for JsonOf<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self> {
        let Body(bytes) = Body::from_request(request, app).await?;
        parse(&bytes).map(Self)
    }
}

/// Reads JSON, or says what is wrong with it.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| ApiError::bad_request(format!("the body is malformed: {error}")))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::is_name;

    #[rstest]
    #[case("team-a", true)]
    #[case("a", true)]
    #[case("", false)]
    #[case("-a", false)]
    #[case("a/b", false)]
    #[case("A", false)]
    #[case("a..", false)]
    #[case(&"a".repeat(64), false)]
    fn a_namespace_is_a_label(#[case] value: &str, #[case] valid: bool) {
        assert_eq!(is_name(value, 63), valid);
    }
}
