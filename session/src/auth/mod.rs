//! Who asks, and whether they may: Kubernetes tokens of audience `longhand`, and Kubernetes RBAC.

mod identity;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use self::identity::{Identity, Pod, identity_of};
use crate::api::error::{ApiError, Result};
use crate::cache::TtlCache;
use crate::metrics;

/// The audience that a token must have.
pub const AUDIENCE: &str = "longhand";

/// No answer is believed for longer than this, so that a revoked token or binding soon has no effect.
const BELIEVED: Duration = Duration::from_secs(10);
/// A refusal is asked again sooner: a binding may just have been made.
const REFUSAL_BELIEVED: Duration = Duration::from_secs(2);
const CACHED: usize = 4_096;
const REVIEWS_AT_ONCE: usize = 64;
const WAIT_FOR_REVIEW: Duration = Duration::from_secs(5);
const MAX_TOKEN: usize = 16 * 1024;

/// What a caller wants to do with the sessions of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `list` on `agentsessions`.
    ListSessions,
    /// `create` on `agentsessions`.
    CreateSession,
    /// `get` on `agentsessions`.
    GetSession,
    /// `delete` on `agentsessions`.
    DeleteSession,
    /// `get` on `agentsessions/events`.
    ReadEvents,
    /// `create` on `agentsessions/events`.
    SendEvents,
}

impl Access {
    /// Verb and subresource, as RBAC knows them.
    #[must_use]
    pub const fn parts(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::ListSessions => ("list", None),
            Self::CreateSession => ("create", None),
            Self::GetSession => ("get", None),
            Self::DeleteSession => ("delete", None),
            Self::ReadEvents => ("get", Some("events")),
            Self::SendEvents => ("create", Some("events")),
        }
    }
}

/// A review that could not be made.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the API server could not be asked about a {what}: {reason}")]
pub struct ReviewError {
    /// `token` or `permission`.
    pub what: &'static str,
    /// Why not.
    pub reason: String,
}

/// Asks who a token is, and what an identity may do.
#[async_trait]
pub trait Reviewer: Send + Sync + 'static {
    /// The identity of a token of our audience; `None` if it is not one.
    async fn review_token(&self, token: &str) -> Result<Option<Identity>, ReviewError>;

    /// Whether RBAC allows it.
    async fn review_access(&self, identity: &Identity, access: Access, namespace: &str) -> Result<bool, ReviewError>;
}

type Digest = [u8; 32];

/// Authentication and authorization, remembered for a moment.
pub struct Auth {
    reviewer: Arc<dyn Reviewer>,
    tokens: TtlCache<Digest, Option<Arc<Identity>>>,
    access: TtlCache<Digest, bool>,
    reviews: Semaphore,
}

impl Auth {
    /// Asks `reviewer`.
    #[must_use]
    pub fn new(reviewer: Arc<dyn Reviewer>) -> Self {
        Self {
            reviewer,
            tokens: TtlCache::new(CACHED),
            access: TtlCache::new(CACHED),
            reviews: Semaphore::new(REVIEWS_AT_ONCE),
        }
    }

    /// Who sends a request with these headers.
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Arc<Identity>> {
        let token = token_of(headers)?;
        let digest: Digest = Sha256::digest(token.as_bytes()).into();
        let identity = match self.tokens.get(&digest) {
            Some(identity) => identity,
            None => {
                let identity = self.review("token", self.reviewer.review_token(token)).await?.map(Arc::new);
                self.tokens.put(digest, identity.clone(), believed(identity.is_some()));
                identity
            }
        };
        identity.ok_or_else(|| {
            ApiError::unauthenticated(format!(
                "the API server does not vouch for this token with the audience `{AUDIENCE}`; get one by `kubectl create token <service account> --audience {AUDIENCE}`"
            ))
        })
    }

    /// Whether `identity` may do this.
    pub async fn permits(&self, identity: &Identity, access: Access, namespace: &str) -> Result<bool> {
        let digest = digest_of(identity, access, namespace);
        if let Some(allowed) = self.access.get(&digest) {
            return Ok(allowed);
        }
        let allowed = self.review("permission", self.reviewer.review_access(identity, access, namespace)).await?;
        self.access.put(digest, allowed, believed(allowed));
        Ok(allowed)
    }

    /// An error unless `identity` may do this.
    pub async fn require(&self, identity: &Identity, access: Access, namespace: &str) -> Result<()> {
        if self.permits(identity, access, namespace).await? {
            return Ok(());
        }
        let (verb, subresource) = access.parts();
        let resource = subresource.map_or_else(String::new, |subresource| format!("/{subresource}"));
        Err(ApiError::forbidden(format!(
            "{} may not {verb} agentsessions{resource}.longhand.dev in namespace {namespace}",
            identity.username
        )))
    }

    async fn review<T>(&self, what: &'static str, review: impl Future<Output = Result<T, ReviewError>>) -> Result<T> {
        let busy = || ApiError::too_many("too many unknown tokens are being checked", Duration::from_secs(1));
        let slot = timeout(WAIT_FOR_REVIEW, self.reviews.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())?;
        let result = review.await;
        drop(slot);
        metrics::review(what, result.is_ok());
        result.map_err(|error| ApiError::unavailable(error.to_string()))
    }
}

const fn believed(positive: bool) -> Duration {
    if positive { BELIEVED } else { REFUSAL_BELIEVED }
}

/// `Authorization: Bearer`, or `x-api-key`, which older SDKs send.
fn token_of(headers: &HeaderMap) -> Result<&str> {
    let bearer = headers.get(header::AUTHORIZATION).map(|value| {
        let value = value.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let token = match bearer {
        Some(token) => token,
        None => headers.get("x-api-key").and_then(|value| value.to_str().ok()).map(str::trim),
    };
    token.filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN).ok_or_else(|| {
        ApiError::unauthenticated("send a Kubernetes token as `Authorization: Bearer <token>` or in `x-api-key`")
    })
}

fn digest_of(identity: &Identity, access: Access, namespace: &str) -> Digest {
    let mut hash = Sha256::new();
    let mut feed = |part: &str| {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    };
    let (verb, subresource) = access.parts();
    feed(verb);
    feed(subresource.unwrap_or_default());
    feed(namespace);
    feed(&identity.username);
    feed(&identity.uid);
    feed(&identity.groups.len().to_string());
    identity.groups.iter().for_each(|group| feed(group));
    for (key, values) in &identity.extra {
        feed(key);
        feed(&values.len().to_string());
        values.iter().for_each(|value| feed(value));
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use rstest::rstest;

    use super::{Access, Identity, digest_of, token_of};

    #[rstest]
    #[case(&[("authorization", "Bearer abc")], Some("abc"))]
    #[case(&[("authorization", "bearer abc")], Some("abc"))]
    #[case(&[("x-api-key", "abc")], Some("abc"))]
    #[case(&[("authorization", "Bearer abc"), ("x-api-key", "other")], Some("abc"))]
    #[case(&[("authorization", "Basic abc"), ("x-api-key", "other")], None)]
    #[case(&[("authorization", "Bearer ")], None)]
    #[case(&[("x-api-key", "")], None)]
    #[case(&[], None)]
    fn a_token_is_found(#[case] headers: &[(&'static str, &'static str)], #[case] expected: Option<&str>) {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect();
        assert_eq!(token_of(&headers).ok(), expected);
    }

    #[test]
    fn what_is_remembered_differs_by_who_and_what() {
        let identity = |groups: &[&str]| Identity {
            username: "u".to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..Identity::default()
        };
        let digests = [
            digest_of(&identity(&["a", "b"]), Access::GetSession, "n"),
            digest_of(&identity(&["ab"]), Access::GetSession, "n"),
            digest_of(&identity(&["a", "b"]), Access::ReadEvents, "n"),
            digest_of(&identity(&["a", "b"]), Access::GetSession, "m"),
        ];
        for (index, digest) in digests.iter().enumerate() {
            assert!(!digests[..index].contains(digest), "{index}");
        }
    }
}
