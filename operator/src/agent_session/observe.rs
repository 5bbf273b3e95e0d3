//! What there is, as far as a session is concerned.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use longhand_crds::default_model::DefaultModel;
use longhand_crds::vault::CredentialSpec;
use longhand_crds::{Agent, AgentSession, Vault, labels, session_id};

use super::Sessions;
use super::egress::{self, Egress};
use super::harness_pod::{self, HARNESS};
use super::proxy_config;
use super::proxy_health::Credentials;
use super::warm::{self, Warm};
use crate::agent::fallbacks::{self, FallbackAccess};
use crate::agent::mcp::{self, McpAccess};
use crate::agent::references::{self, Missing};
use crate::context::{GuardedStore, lookup};
use crate::error::Error;
use crate::pods::{self, Pending, PodView, Stage, elapsed, is_controlled_by};

/// A proxy whose credentials are there is ready within this time.
pub(super) const PROXY_START: Duration = Duration::from_secs(3);

/// What there is.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    pub(super) session: Arc<AgentSession>,
    pub(super) references: Result<References, Unresolved>,
    /// Names of sandbox templates that do not exist.
    pub(super) missing_templates: Vec<String>,
    /// Since when work has been open, as the wake keys say.
    pub(super) wake_since: Option<Timestamp>,
    /// Every pod that the session controls.
    pub(super) pods: Vec<HarnessPod>,
    /// What the proxy of a pod that does not start says.
    pub(super) credentials: Credentials,
    /// The agent's pods that were not made for a session.
    pub(super) warm: Warm,
    /// That work was done since the status was written, as far as is known: the last time of it.
    pub(super) worked: Option<u64>,
}

/// What a harness pod is made from.
#[derive(Clone, Debug)]
pub(crate) struct References {
    pub(crate) agent: Agent,
    pub(crate) credential: CredentialSpec,
    /// The vault that holds it.
    pub(crate) vault: String,
    /// Where the model API is.
    pub(crate) base_url: String,
    /// Models that are reached otherwise.
    pub(crate) fallbacks: Vec<FallbackAccess>,
    /// The MCP servers, and how they are called.
    pub(crate) mcp: Vec<McpAccess>,
    /// What the session's sandboxes may reach, if anything.
    pub(crate) egress: Option<Egress>,
}

impl References {
    /// What an agent names, as far as it is in these vaults of its namespace.
    ///
    /// # Errors
    /// [`Missing`], which names what is not there.
    pub(crate) fn resolve(
        agent: Agent,
        default: Option<&DefaultModel>,
        vaults: &GuardedStore<Vault>,
    ) -> Result<Self, Missing> {
        Self::resolve_for(agent, default, vaults, None)
    }

    /// The same for a session, which may have other MCP servers, and credentials for them in vaults of its own.
    fn resolve_for(
        agent: Agent,
        default: Option<&DefaultModel>,
        vaults: &GuardedStore<Vault>,
        session: Option<&AgentSession>,
    ) -> Result<Self, Missing> {
        let namespace = agent.namespace().unwrap_or_default();
        let vault = references::vault_of(&agent, default);
        let vault = vault.and_then(|vault| lookup(vaults, &namespace, vault));
        let (access, credential) = references::credential(&agent, vault.as_ref(), default)?;
        let fallbacks = fallbacks::access(&agent, default, |vault| lookup(vaults, &namespace, vault))?;
        let mcp = mcp_servers(&agent, session, |vault| lookup(vaults, &namespace, vault))?;
        let (credential, vault) = (credential.clone(), access.credential.vault.clone());
        let base_url = access.base_url(&credential).to_owned();
        Ok(Self { credential, vault, base_url, fallbacks, mcp, egress: None, agent })
    }

    /// Whether an access token of a server is refreshed.
    pub(crate) fn refreshes(&self) -> bool {
        self.mcp.iter().any(|server| server.refresh().is_some())
    }

    /// The Secrets with the refresh tokens of the servers, by the volume that they are mounted as.
    pub(super) fn refresh_tokens(&self) -> BTreeMap<String, String> {
        let token = |server: &McpAccess| {
            let (_, _, refresh) = server.refresh()?;
            Some((proxy_config::refresh_volume(server), refresh.refresh_token_ref.name.clone()))
        };
        self.mcp.iter().filter_map(token).collect()
    }

    /// Every credential with its vault, once.
    pub(super) fn credentials(&self) -> Vec<(&str, &CredentialSpec)> {
        let mut all = vec![(self.vault.as_str(), &self.credential)];
        for fallback in &self.fallbacks {
            let one = (fallback.vault.as_str(), &fallback.credential);
            if !all.contains(&one) {
                all.push(one);
            }
        }
        all
    }
}

#[cfg(test)]
impl References {
    /// What the fixtures resolve to.
    pub(crate) fn fixture() -> Self {
        Self {
            agent: crate::fixtures::agent(),
            credential: crate::fixtures::vault().spec.credentials.remove(0),
            vault: "models".to_owned(),
            base_url: "http://model.test:8080".to_owned(),
            fallbacks: Vec::new(),
            mcp: Vec::new(),
            egress: None,
        }
    }
}

/// What a session names and that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unresolved {
    #[error("Agent {0} does not exist in this namespace")]
    Agent(String),
    #[error("Agent {agent}: {missing}")]
    Reference { agent: String, missing: Missing },
    #[error(
        "the vaults of the session have {found} credentials for sandboxes, more than {limit}: name fewer vaults, or split them"
    )]
    TooManyCredentials { found: usize, limit: usize },
}

impl Unresolved {
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Agent(_) => "AgentNotFound",
            Self::Reference { missing, .. } => missing.reason(),
            Self::TooManyCredentials { .. } => "TooManyCredentials",
        }
    }
}

/// A harness pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HarnessPod {
    pub(super) pod: PodView,
    /// Which of the session's pods it is.
    pub(super) generation: i64,
    /// The Secrets with refresh tokens that it mounts, by volume.
    pub(super) refresh_tokens: BTreeMap<String, String>,
}

impl HarnessPod {
    pub(super) fn of(pod: &Pod) -> Self {
        let refresh_tokens = harness_pod::refresh_tokens(pod);
        let pod = PodView::of(pod, HARNESS);
        Self { generation: harness_pod::generation(&pod.name).unwrap_or(0), pod, refresh_tokens }
    }
}

/// Looks at the stores, and at the API server or a proxy where a store cannot say.
pub(super) async fn observe(
    session: Arc<AgentSession>,
    sessions: &Sessions,
    now: Timestamp,
) -> Result<Observed, Error> {
    let namespace = session.namespace().unwrap_or_default();
    let uid = session.uid().unwrap_or_default();
    let missing_templates = missing_templates(&session, sessions, &namespace);
    let pods = pods(&session, sessions, &namespace, &uid).await?;
    let references = references(&session, sessions, &namespace);
    let warm = warm::observe(&session, references.as_ref().ok(), sessions).await?;
    let credentials = match waiting_proxy(&pods, now) {
        Some(address) => sessions.proxies.credentials(address).await,
        None => Credentials::Unknown,
    };
    let id = session_id(&session.metadata);
    let (wake_since, worked) = (sessions.wakes.open_since(&id), sessions.wakes.worked(&id));
    Ok(Observed { session, references, missing_templates, wake_since, pods, credentials, warm, worked })
}

fn references(session: &AgentSession, sessions: &Sessions, namespace: &str) -> Result<References, Unresolved> {
    let name = &session.spec.agent_ref.name;
    let agent = lookup(&sessions.agents, namespace, name).ok_or_else(|| Unresolved::Agent(name.clone()))?;
    let default = sessions.context.default_model.as_ref();
    let mut references = References::resolve_for(agent, default, &sessions.vaults, Some(session))
        .map_err(|missing| Unresolved::Reference { agent: name.clone(), missing })?;
    references.egress = egress::of(
        session,
        &references.mcp,
        |template| lookup(&sessions.templates, namespace, template),
        |vault| lookup(&sessions.vaults, namespace, vault),
    )?;
    Ok(references)
}

fn mcp_servers(
    agent: &Agent,
    session: Option<&AgentSession>,
    vault: impl Fn(&str) -> Option<Vault>,
) -> Result<Vec<McpAccess>, Missing> {
    let named = session.map(|session| session.spec.vault_refs.as_slice()).unwrap_or_default();
    let session_vaults: Vec<Vault> = named.iter().filter_map(|named| vault(&named.name)).collect();
    match session.and_then(|session| session.spec.agent_ref.overrides.as_ref()) {
        None => mcp::access(&agent.spec.mcp_servers, &session_vaults, vault),
        Some(overrides) => mcp::access(&overrides.apply(agent.spec.clone()).mcp_servers, &session_vaults, vault),
    }
}

fn missing_templates(session: &AgentSession, sessions: &Sessions, namespace: &str) -> Vec<String> {
    let names = session.spec.sandboxes.iter().map(|sandbox| &sandbox.template_ref.name);
    let mut missing: Vec<String> =
        names.filter(|name| lookup(&sessions.templates, namespace, name).is_none()).cloned().collect();
    missing.sort();
    missing.dedup();
    missing
}

async fn pods(
    session: &AgentSession,
    sessions: &Sessions,
    namespace: &str,
    uid: &str,
) -> Result<Vec<HarnessPod>, Error> {
    let ours = |pod: &Pod| {
        pod.labels().get(labels::SESSION_UID).is_some_and(|label| label == uid)
            && pod.metadata.namespace.as_deref() == Some(namespace)
            && is_controlled_by(pod, uid)
    };
    let mut pods: Vec<HarnessPod> = sessions.pods.state_filter(ours).iter().map(|pod| HarnessPod::of(pod)).collect();
    let named = session.status.as_ref().and_then(|status| status.harness.as_ref()).filter(|named| !named.warm);
    if let Some((name, pod_uid)) = named.and_then(|named| named.pod_name.as_ref().zip(named.pod_uid.as_ref()))
        && pods.iter().all(|seen| &seen.pod.uid != pod_uid)
    {
        // The watch may not have brought a pod yet that was made a moment ago: only the API server knows.
        let pod = pods::get(&sessions.context.client, namespace, name, uid).await?;
        pods.extend(pod.iter().map(HarnessPod::of));
    }
    pods.sort_by_key(|seen| seen.generation);
    Ok(pods)
}

/// The address of a proxy that has been starting for too long.
fn waiting_proxy(pods: &[HarnessPod], now: Timestamp) -> Option<&str> {
    pods.iter().rev().find_map(|seen| match seen.pod.stage {
        Stage::Pending(Pending::Sidecar(since)) if elapsed(since, now) >= PROXY_START => seen.pod.ip.as_deref(),
        _ => None,
    })
}
