//! Who asks, and whether they may: Kubernetes tokens of audience `longhand`, and Kubernetes RBAC.

mod identity;
mod signed;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, header};
use longhand_crds::GROUP;
use longhand_crds::watch_scope::WatchScope;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use self::identity::{Identity, Pod, identity_of};
pub(crate) use self::signed::Signed;
pub use self::worker::{Worker, WorkerTokens};
use crate::api::error::{ApiError, Result};
use crate::cache::TtlCache;
use crate::metrics;

/// The audience that a token must have.
pub const AUDIENCE: &str = "longhand";
/// The audience of the token that only the credential proxy beside a harness has.
pub const PROXY_AUDIENCE: &str = "longhand-proxy";

/// No answer is believed for longer than this, so that a revoked token or binding soon has no effect.
const BELIEVED: Duration = Duration::from_secs(10);
/// A token that is bound to a pod ends with it, and a harness that no longer has a session is fenced off by the log. Longer
/// than a long poll, so that what a pod does when its wait is over need not wait for a review.
const BELIEVED_OF_POD: Duration = Duration::from_secs(60);
/// A refusal is asked again sooner: a binding may just have been made.
const REFUSAL_BELIEVED: Duration = Duration::from_secs(2);
const CACHED: usize = 4_096;
const REVIEWS_AT_ONCE: usize = 64;
const WAIT_FOR_REVIEW: Duration = Duration::from_secs(5);
const SESSIONS: &str = "agentsessions";
const MAX_TOKEN: usize = 16 * 1024;

/// What a caller wants to do in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access<'a> {
    /// `list` on `agentsessions`.
    ListSessions,
    /// `create` on `agentsessions`.
    CreateSession,
    /// `get` on `agentsessions`.
    GetSession,
    /// `update` on `agentsessions`.
    UpdateSession,
    /// `delete` on `agentsessions`.
    DeleteSession,
    /// `get` on `agentsessions/events`.
    ReadEvents,
    /// `create` on `agentsessions/events`.
    SendEvents,
    /// A verb on every object of a kind, by its plural name, such as `list` on `vaults`.
    Kind(&'static str, &'static str),
    /// A verb on one object of a kind, by plural and name, such as `get` on `vaults/models`.
    Object(&'static str, &'static str, &'a str),
    /// `use` on the vault of this name: a session may refer to it.
    UseVault(&'a str),
    /// `get` on the Secret of this name, which the service itself never does.
    ReadSecret(&'a str),
    /// `get` on the `work` of the sandbox template of this name.
    SeeWork(&'a str),
    /// `update` on the `work` of the sandbox template of this name: to take work is to act for its sessions.
    DoWork(&'a str),
    /// A verb on a part of one sandbox: `files`, `exec` or `portforward`.
    InSandbox {
        /// The part.
        part: &'static str,
        /// What is done.
        verb: &'static str,
        /// The sandbox.
        name: &'a str,
    },
}

/// What RBAC is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes<'a> {
    /// The API group; empty for the core one.
    pub group: &'static str,
    /// The plural name of the kind.
    pub resource: &'static str,
    /// The part of the object.
    pub subresource: Option<&'static str>,
    /// What is done.
    pub verb: &'static str,
    /// The object; any of the kind if absent.
    pub name: Option<&'a str>,
}

impl<'a> Access<'a> {
    /// As RBAC knows it.
    #[must_use]
    pub const fn attributes(self) -> Attributes<'a> {
        let (resource, subresource, verb, name) = match self {
            Self::ListSessions => (SESSIONS, None, "list", None),
            Self::CreateSession => (SESSIONS, None, "create", None),
            Self::GetSession => (SESSIONS, None, "get", None),
            Self::UpdateSession => (SESSIONS, None, "update", None),
            Self::DeleteSession => (SESSIONS, None, "delete", None),
            Self::ReadEvents => (SESSIONS, Some("events"), "get", None),
            Self::SendEvents => (SESSIONS, Some("events"), "create", None),
            Self::Kind(resource, verb) => (resource, None, verb, None),
            Self::Object(resource, verb, name) => (resource, None, verb, Some(name)),
            Self::UseVault(name) => ("vaults", None, "use", Some(name)),
            Self::ReadSecret(name) => ("secrets", None, "get", Some(name)),
            Self::SeeWork(name) => ("sandboxtemplates", Some("work"), "get", Some(name)),
            Self::DoWork(name) => ("sandboxtemplates", Some("work"), "update", Some(name)),
            Self::InSandbox { part, verb, name } => ("sandboxes", Some(part), verb, Some(name)),
        };
        let group = if matches!(self, Self::ReadSecret(_)) { "" } else { GROUP };
        Attributes { group, resource, subresource, verb, name }
    }
}

impl fmt::Display for Attributes<'_> {
    /// As `kubectl auth can-i` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        self.subresource.map_or(Ok(()), |part| write!(f, "/{part}"))?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        self.name.map_or(Ok(()), |name| write!(f, " {name}"))
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
    /// The identity of a token of this audience; `None` if it is not one.
    async fn review_token(&self, token: &str, audience: &str) -> Result<Option<Identity>, ReviewError>;

    /// Whether RBAC allows it.
    async fn review_access(
        &self,
        identity: &Identity,
        access: Access<'_>,
        namespace: &str,
    ) -> Result<bool, ReviewError>;
}

type Digest = [u8; 32];

/// Authentication and authorization, remembered for a moment.
pub struct Auth {
    reviewer: Arc<dyn Reviewer>,
    scope: WatchScope,
    workers: WorkerTokens,
    tokens: TtlCache<Digest, Arc<Identity>>,
    /// Apart, so that who makes tokens up pushes nobody else out.
    refused: TtlCache<Digest, ()>,
    access: TtlCache<Digest, bool>,
    reviews: Semaphore,
}

impl Auth {
    /// Asks `reviewer` about users of the cluster; workers of self-hosted environments are known by their tokens.
    #[must_use]
    pub fn new(reviewer: Arc<dyn Reviewer>, workers: WorkerTokens) -> Self {
        Self {
            reviewer,
            scope: WatchScope::default(),
            workers,
            tokens: TtlCache::new(CACHED),
            refused: TtlCache::new(CACHED),
            access: TtlCache::new(CACHED),
            reviews: Semaphore::new(REVIEWS_AT_ONCE),
        }
    }

    /// Nobody may do anything in other namespaces.
    #[must_use]
    pub fn within(self, scope: WatchScope) -> Self {
        Self { scope, ..self }
    }

    /// Who sends a request with these headers.
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Arc<Identity>> {
        let token = token_of(headers)?;
        // Never shown to the API server: it is not one of its tokens.
        if let Some(worker) = self.workers.read(token) {
            return Ok(Arc::new(Identity::of_worker(worker)));
        }
        self.known(token, AUDIENCE).await
    }

    /// The pod whose credential proxy sends a request with these headers: no other container has such a token.
    pub async fn identify_proxy(&self, headers: &HeaderMap) -> Result<Arc<Identity>> {
        self.known(token_of(headers)?, PROXY_AUDIENCE).await
    }

    async fn known(&self, token: &str, audience: &'static str) -> Result<Arc<Identity>> {
        let digest: Digest = Sha256::new_with_prefix(audience).chain_update([0]).chain_update(token).finalize().into();
        if let Some(identity) = self.tokens.get(&digest) {
            return Ok(identity);
        }
        if self.refused.get(&digest).is_some() {
            return Err(not_ours(audience));
        }
        match self.review("token", self.reviewer.review_token(token, audience)).await? {
            Some(identity) => {
                let identity = Arc::new(identity);
                let believed = if identity.pod().is_some() { BELIEVED_OF_POD } else { BELIEVED };
                self.tokens.put(digest, Arc::clone(&identity), believed);
                Ok(identity)
            }
            None => {
                self.refused.put(digest, (), REFUSAL_BELIEVED);
                Err(not_ours(audience))
            }
        }
    }

    /// The tokens of workers.
    #[must_use]
    pub fn workers(&self) -> &WorkerTokens {
        &self.workers
    }

    /// Whether `identity` may do this. RBAC knows no workers, so that they may do nothing by it.
    pub async fn permits(&self, identity: &Identity, access: Access<'_>, namespace: &str) -> Result<bool> {
        if identity.worker.is_some() || !self.scope.includes(namespace) {
            return Ok(false);
        }
        let digest = digest_of(identity, access, namespace);
        if let Some(allowed) = self.access.get(&digest) {
            return Ok(allowed);
        }
        let allowed = self.review("permission", self.reviewer.review_access(identity, access, namespace)).await?;
        self.access.put(digest, allowed, believed(allowed));
        Ok(allowed)
    }

    /// An error unless `identity` may do this.
    pub async fn require(&self, identity: &Identity, access: Access<'_>, namespace: &str) -> Result<()> {
        if self.permits(identity, access, namespace).await? {
            return Ok(());
        }
        if !self.scope.includes(namespace) {
            let message = format!("namespace {namespace} is not one of those that this installation serves");
            return Err(ApiError::forbidden(message));
        }
        Err(ApiError::forbidden(format!(
            "{} may not {} in namespace {namespace}",
            identity.username,
            access.attributes()
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

fn not_ours(audience: &str) -> ApiError {
    ApiError::unauthenticated(format!(
        "the API server does not vouch for this token with the audience `{audience}`; get one by `kubectl create token <service account> --audience {audience}`"
    ))
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

fn digest_of(identity: &Identity, access: Access<'_>, namespace: &str) -> Digest {
    let mut hash = Sha256::new();
    let mut feed = |part: &str| {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    };
    let Attributes { group, resource, subresource, verb, name } = access.attributes();
    [group, resource, subresource.unwrap_or_default(), verb, name.unwrap_or_default()].into_iter().for_each(&mut feed);
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

    use async_trait::async_trait;
    use longhand_crds::watch_scope::WatchScope;
    use longhand_sandbox::token::Signer;

    use super::{Access, Auth, Identity, ReviewError, Reviewer, WorkerTokens, digest_of, token_of};

    /// Allows everything to everybody.
    struct Generous;

    #[async_trait]
    impl Reviewer for Generous {
        async fn review_token(&self, _: &str, _: &str) -> Result<Option<Identity>, ReviewError> {
            Ok(Some(Identity::default()))
        }

        async fn review_access(&self, _: &Identity, _: Access<'_>, _: &str) -> Result<bool, ReviewError> {
            Ok(true)
        }
    }

    #[tokio::test]
    async fn nobody_may_do_anything_in_a_namespace_that_is_not_served() {
        let signer = Signer::generate().unwrap().0;
        let auth = Auth::new(std::sync::Arc::new(Generous), WorkerTokens::new(signer).unwrap())
            .within(WatchScope::of(["team".to_owned()]));
        let identity = Identity::default();
        auth.require(&identity, Access::GetSession, "team").await.unwrap();
        assert!(!auth.permits(&identity, Access::GetSession, "another").await.unwrap());
        let refusal = auth.require(&identity, Access::GetSession, "another").await.unwrap_err();
        assert!(
            format!("{refusal:?}").contains("another is not one of those that this installation serves"),
            "{refusal:?}"
        );
    }

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

    #[rstest]
    #[case(Access::ReadEvents, "get agentsessions/events.longhand.dev")]
    #[case(Access::Kind("vaults", "list"), "list vaults.longhand.dev")]
    #[case(Access::UseVault("models"), "use vaults.longhand.dev models")]
    #[case(Access::ReadSecret("key"), "get secrets key")]
    #[case(Access::InSandbox { part: "exec", verb: "create", name: "s" }, "create sandboxes/exec.longhand.dev s")]
    #[case(Access::DoWork("hands"), "update sandboxtemplates/work.longhand.dev hands")]
    fn access_reads_as_rbac_does(#[case] access: Access<'_>, #[case] text: &str) {
        assert_eq!(access.attributes().to_string(), text);
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
            digest_of(&identity(&["a", "b"]), Access::UseVault("v"), "n"),
            digest_of(&identity(&["a", "b"]), Access::UseVault("w"), "n"),
            digest_of(&identity(&["a", "b"]), Access::Object("vaults", "get", "v"), "n"),
            digest_of(&identity(&["a", "b"]), Access::ReadSecret("v"), "n"),
        ];
        for (index, digest) in digests.iter().enumerate() {
            assert!(!digests[..index].contains(digest), "{index}");
        }
    }
}
