//! The way out of a session's sandboxes: before a call runs in one, its `sandboxd` knows the credential proxy beside the
//! session's harness, and what stands for the session's credentials.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use longhand_crds::egress::{OF_RESOURCES, of_repository, placeholders};
use longhand_crds::session_resource::SessionResource;
use longhand_protocol::egress::{self, Claims, Seed};
use longhand_sandbox::client::{SandboxClient, SandboxError, Target};
use longhand_sandbox::token::{SignError, Signer};
use longhand_sandbox::wire::EgressBinding;
use longhand_session_log::store::{Claimant, SessionMeta};
use tokio::time::timeout;

use crate::cache::TtlCache;
use crate::metrics;
use crate::resources::pods::Pods;
use crate::resources::templates::Templates;
use crate::resources::vaults::Vaults;
use crate::resources::{ResourceError, Resources};

/// A call waits no longer for its way out; without one it is told why by what it asks for.
const LIMIT: Duration = Duration::from_secs(8);
const REMEMBERED: usize = 8_192;
/// A binding is made anew after this long: by then a vault may have other credentials. Much less than a token lives.
const BOUND_FOR: Duration = Duration::from_secs(10 * 60);
/// That a session's sandbox has no way out is looked up again after this long.
const NONE_FOR: Duration = Duration::from_secs(60);
/// What the seeds of placeholders are derived with.
const PURPOSE: &str = "egress placeholders";

/// Why a sandbox has no way out now.
#[derive(Debug, thiserror::Error)]
pub(super) enum EgressError {
    #[error(transparent)]
    Resources(#[from] ResourceError),
    #[error("the harness pod {0} has no address")]
    NoAddress(String),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("the sandbox could not be bound to the proxy of harness pod {harness}: {error}")]
    Sandbox { harness: String, error: SandboxError },
    #[error("it was not there within {} s", LIMIT.as_secs())]
    Late,
}

/// Which sandbox pod is bound to which harness pod's proxy.
type Binding = (String, String);

/// Binds sandboxes to the proxies of their sessions.
pub struct Egress {
    resources: Arc<dyn Resources>,
    templates: Arc<dyn Templates>,
    vaults: Arc<dyn Vaults>,
    pods: Arc<dyn Pods>,
    signer: Signer,
    bound: TtlCache<Binding, ()>,
    /// Sandboxes that have no way out, by the session's UID and their name.
    none: TtlCache<(String, String), ()>,
}

impl Egress {
    /// Finds everything in `cluster`, and signs with `signer`.
    #[must_use]
    pub fn new<T: Resources + Templates + Vaults + Pods>(cluster: &Arc<T>, signer: Signer) -> Self {
        Self {
            resources: Arc::<T>::clone(cluster),
            templates: Arc::<T>::clone(cluster),
            vaults: Arc::<T>::clone(cluster),
            pods: Arc::<T>::clone(cluster),
            signer,
            bound: TtlCache::new(REMEMBERED),
            none: TtlCache::new(REMEMBERED),
        }
    }

    /// Sees to it that what leaves the sandbox finds the session's proxy, if the session has egress. A call that needs no
    /// network does not suffer when this fails, and one that does is told by `sandboxd`.
    pub(super) async fn prepare(
        &self,
        client: &SandboxClient,
        meta: &SessionMeta,
        harness: Option<&Claimant>,
        sandbox: &str,
        target: &Target,
    ) {
        // Nobody owns the session: there is no proxy.
        let Some(harness) = harness else { return };
        let key = (target.pod_uid.clone(), harness.pod_uid.clone());
        let of_session = (meta.uid.clone(), sandbox.to_owned());
        if self.bound.get(&key).is_some() || self.none.get(&of_session).is_some() {
            return;
        }
        let bound = timeout(LIMIT, self.bind(client, meta, harness, sandbox, target)).await;
        match bound.unwrap_or(Err(EgressError::Late)) {
            Ok(true) => {
                metrics::egress_bound(true);
                self.bound.put(key, (), BOUND_FOR);
            }
            Ok(false) => self.none.put(of_session, (), NONE_FOR),
            Err(error) => {
                metrics::egress_bound(false);
                tracing::warn!(session = %meta.id, sandbox, %error, "a sandbox has no way out");
            }
        }
    }

    /// Whether the sandbox has a way out, which is open then.
    async fn bind(
        &self,
        client: &SandboxClient,
        meta: &SessionMeta,
        harness: &Claimant,
        sandbox: &str,
        target: &Target,
    ) -> Result<bool, EgressError> {
        let Some(variables) = self.variables(meta, sandbox).await? else { return Ok(false) };
        let address = self.pods.address(&meta.namespace, &harness.pod_name, &harness.pod_uid).await?;
        let address = address.ok_or_else(|| EgressError::NoAddress(harness.pod_name.clone()))?;
        let proxy = SocketAddr::new(address, egress::PORT).to_string();
        let token = self.signer.encode(&self.claims(meta, harness, sandbox, target))?;
        let bound = client.bind_egress(target, &EgressBinding { proxy, token, variables }).await;
        let failed = |error| EgressError::Sandbox { harness: harness.pod_name.clone(), error };
        Ok(bound.map_err(failed)?.bound)
    }

    fn seed(&self, meta: &SessionMeta) -> Seed {
        Seed::derive(&self.signer.secret_for(PURPOSE), &meta.id)
    }

    fn claims(&self, meta: &SessionMeta, harness: &Claimant, sandbox: &str, target: &Target) -> Claims {
        let iat = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
        Claims {
            aud: egress::AUDIENCE.to_owned(),
            sub: meta.id.clone(),
            sandbox: sandbox.to_owned(),
            pod: target.pod_uid.clone(),
            harness: harness.pod_uid.clone(),
            seed: self.seed(meta),
            iat,
            exp: iat + egress::LIFETIME_SECONDS,
        }
    }

    /// What git sends in the place of the token of a session's repository, if it has one that can be bound.
    pub(super) fn authorization(&self, meta: &SessionMeta, resource: &SessionResource) -> Option<String> {
        let credential = of_repository(resource)?;
        let placeholder = self.seed(meta).placeholder(OF_RESOURCES, &credential.name);
        Some(format!("Basic {}", STANDARD.encode(format!("x-access-token:{placeholder}"))))
    }

    /// What stands for the session's credentials, if its sandbox has egress: its template says what it may reach, or the session
    /// has such credentials, also for a repository. The operator configures a proxy by the same rule.
    async fn variables(
        &self,
        meta: &SessionMeta,
        sandbox: &str,
    ) -> Result<Option<BTreeMap<String, String>>, EgressError> {
        let session = self.resources.session(&meta.namespace, &meta.name).await?;
        let Some(session) = session.filter(|session| session.metadata.uid.as_ref() == Some(&meta.uid)) else {
            return Ok(None);
        };
        let seed = self.seed(meta);
        let mut variables = BTreeMap::new();
        for reference in &session.spec.vault_refs {
            let Some(vault) = self.vaults.named(&meta.namespace, &reference.name).await? else { continue };
            for credential in placeholders(&vault.spec) {
                let placeholder = seed.placeholder(&reference.name, &credential.name);
                let names = credential.placement.variables();
                // Of two credentials for one variable the first counts; keys come together or not at all.
                if names.iter().any(|name| variables.contains_key(*name)) {
                    continue;
                }
                variables.extend(names.into_iter().map(|name| (name.to_owned(), placeholder.clone())));
            }
        }
        let template =
            session.spec.sandboxes.iter().find(|found| found.name == sandbox).map(|found| &found.template_ref);
        let template = match template {
            Some(template) => self.templates.template(&meta.namespace, &template.name).await?,
            None => None,
        };
        let has_network = template.is_some_and(|template| template.network);
        let has_token = session.spec.resources.iter().any(|resource| of_repository(resource).is_some());
        Ok((has_network || has_token || !variables.is_empty()).then_some(variables))
    }
}

#[cfg(test)]
#[path = "egress_tests.rs"]
mod tests;
