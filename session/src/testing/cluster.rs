//! A cluster of make-believe.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use futures::Stream;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longhand_crds::agent_session::HarnessStatus;
use longhand_crds::annotations::{RESOURCES_FAILED, RETRY};
use longhand_crds::sandbox::{DesiredState, Loss, SessionRef};
use longhand_crds::{Agent, AgentSession, Sandbox, SandboxSpec, SandboxStatus, SandboxTemplate};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::objects::FakeObjects;
use super::vaults::Vaulted;
use crate::auth::{AUDIENCE, Access, Attributes, Identity, PROXY_AUDIENCE, ReviewError, Reviewer};
use crate::execute::sandboxes::{SandboxKey, SandboxView, Seen};
use crate::resources::named::{Named as _, set_created_at};
use crate::resources::pods::Pods;
use crate::resources::{ResourceError, Resources};

/// May do everything with sessions, agents and environments of `team-a`.
const ALICE: &str = "system:serviceaccount:team-a:alice";

type Key = (String, String);
/// Who, what as RBAC says it, and where.
type Rule = (String, String, String);

#[derive(Default)]
struct State {
    reads: Vec<String>,
    tokens: HashMap<String, Identity>,
    rules: HashSet<Rule>,
    sessions: BTreeMap<Key, AgentSession>,
    sandboxes: BTreeMap<Key, Sandbox>,
    made: Vec<String>,
    sandboxes_refused: Option<String>,
    namespaces_gone: HashSet<String>,
    namespaces_again: HashSet<String>,
    /// What the next read of a sandbox finds.
    stale: Option<Sandbox>,
    reviews: usize,
    uids: u32,
}

pub(crate) struct FakeCluster {
    pub(crate) agents: FakeObjects<Agent>,
    pub(crate) environments: FakeObjects<SandboxTemplate>,
    pub(crate) revisions: FakeObjects<ControllerRevision>,
    state: Mutex<State>,
    vaulted: Mutex<Vaulted>,
    /// Self-hosted environments, by namespace and name.
    pub(super) hosted: Mutex<HashSet<(String, String)>>,
    /// Environments that say what their sandboxes may reach, by namespace and name.
    pub(crate) networks: Mutex<HashSet<(String, String)>>,
    /// Addresses of pods, by UID.
    pub(crate) addresses: Mutex<HashMap<String, IpAddr>>,
    seen: mpsc::UnboundedSender<Seen>,
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

impl FakeCluster {
    pub(crate) fn new() -> (Self, impl Stream<Item = Seen> + Send + use<>) {
        let (seen, watch) = mpsc::unbounded_channel();
        seen.send(Seen::ListBegins).unwrap();
        seen.send(Seen::ListEnds).unwrap();
        let cluster = Self {
            agents: FakeObjects::new(),
            environments: FakeObjects::new(),
            revisions: FakeObjects::new(),
            state: Mutex::default(),
            vaulted: Mutex::default(),
            hosted: Mutex::default(),
            networks: Mutex::default(),
            addresses: Mutex::default(),
            seen,
        };
        cluster.add_agent("team-a", "helper");
        cluster.environments.apply("team-a", json!({"metadata": {"name": "tools"}, "spec": {}}));
        for name in ["alice", "bob"] {
            cluster.add_user(name, "team-a", name, &[]);
        }
        for access in [
            Access::ListSessions,
            Access::CreateSession,
            Access::GetSession,
            Access::UpdateSession,
            Access::DeleteSession,
            Access::ReadEvents,
            Access::SendEvents,
        ] {
            cluster.allow(ALICE, access, "team-a");
        }
        for kind in ["agents", "sandboxtemplates"] {
            for verb in ["list", "create", "get", "update", "delete"] {
                cluster.allow(ALICE, Access::Kind(kind, verb), "team-a");
            }
        }
        cluster.allow(ALICE, Access::UseVault("models"), "team-a");
        for verb in ["list", "create", "get", "delete"] {
            cluster.allow(ALICE, Access::Kind("files", verb), "team-a");
        }
        cluster.add_user("operator", "longhand-system", "longhand-operator", &[]);
        cluster.add_user("replica", "longhand-system", "longhand-session", &[]);
        for pod in ["pod-1", "pod-2"] {
            cluster.add_pod(pod, "team-a");
        }
        cluster.add_pod("pod-elsewhere", "team-b");
        (cluster, UnboundedReceiverStream::new(watch))
    }

    pub(super) fn sessions_in(&self, namespace: &str) -> Vec<AgentSession> {
        let state = self.state();
        let found = state.sessions.iter().filter(|((space, _), _)| space == namespace);
        found.map(|(_, session)| session.clone()).collect()
    }

    pub(crate) fn state_counts(&self) -> (usize, Vec<String>) {
        let state = self.state();
        (state.reviews, state.made.clone())
    }

    /// What was asked for since this was last called, of sessions and sandboxes.
    pub(crate) fn take_reads(&self) -> Vec<String> {
        std::mem::take(&mut self.state().reads)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn vaulted(&self) -> MutexGuard<'_, Vaulted> {
        self.vaulted.lock().unwrap()
    }

    fn add_user(&self, token: &str, namespace: &str, name: &str, extra: &[(&str, &str)]) {
        let extra = extra.iter().map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()])).collect();
        let username = format!("system:serviceaccount:{namespace}:{name}");
        let identity = Identity { username, extra, ..Identity::default() };
        self.state().tokens.insert(token.to_owned(), identity);
    }

    /// A pod whose token, name and UID are the same word.
    fn add_pod(&self, pod: &str, namespace: &str) {
        let extra = [("authentication.kubernetes.io/pod-name", pod), ("authentication.kubernetes.io/pod-uid", pod)];
        self.add_user(pod, namespace, "default", &extra);
    }

    pub(crate) fn allow(&self, username: &str, access: Access<'_>, namespace: &str) {
        self.state().rules.insert((username.to_owned(), access.attributes().to_string(), namespace.to_owned()));
    }

    pub(crate) fn remove_namespace(&self, namespace: &str) {
        self.state().namespaces_gone.insert(namespace.to_owned());
    }

    /// It has the same name and another UID from now on.
    pub(crate) fn make_namespace_again(&self, namespace: &str) {
        self.state().namespaces_again.insert(namespace.to_owned());
    }

    /// No token is known any more.
    pub(crate) fn forget_users(&self) {
        self.state().tokens.clear();
    }

    pub(crate) fn forbid_everything(&self) {
        self.state().rules.clear();
    }

    pub(crate) fn add_agent(&self, namespace: &str, name: &str) {
        let agent = json!({
            "metadata": {"name": name},
            "spec": {"model": {"id": "m", "credential": {"vault": "v", "name": "c"}},
                     "tools": [{"type": "agent_toolset_20260401"}]},
        });
        self.agents.apply(namespace, agent);
    }

    pub(crate) fn add_session(&self, namespace: &str, name: &str, uid: &str) {
        let session = from(json!({
            "metadata": {"namespace": namespace, "name": name, "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"agentRef": {"name": "helper"}, "title": name,
                     "sandboxes": [{"name": "default", "templateRef": {"name": "tools"}}]},
        }));
        self.state().sessions.insert(key(namespace, name), session);
    }

    pub(crate) fn change_session(&self, namespace: &str, name: &str, change: impl FnOnce(&mut AgentSession)) {
        change(self.state().sessions.get_mut(&key(namespace, name)).unwrap());
    }

    pub(crate) fn remove_session(&self, namespace: &str, name: &str) {
        self.state().sessions.remove(&key(namespace, name));
    }

    pub(crate) fn has_session(&self, namespace: &str, name: &str) -> bool {
        self.state().sessions.contains_key(&key(namespace, name))
    }

    pub(crate) fn name_harness(&self, namespace: &str, name: &str, pod: Option<&str>) {
        self.change_session(namespace, name, |session| {
            let harness = HarnessStatus { pod_uid: pod.map(ToOwned::to_owned), ..HarnessStatus::default() };
            session.status.get_or_insert_default().harness = Some(harness);
        });
    }

    /// The one sandbox that there is.
    pub(crate) fn sandbox_name(&self) -> Option<String> {
        self.state().sandboxes.keys().next().map(|(_, name)| name.clone())
    }

    /// The operator says what has become of the sandbox.
    pub(crate) fn sandbox_status(&self, name: &str, status: SandboxStatus) {
        let mut state = self.state();
        let sandbox = state.sandboxes.get_mut(&key("team-a", name)).unwrap();
        sandbox.status = Some(status);
        let seen = Seen::Changed(Self::sandbox_key(name), SandboxView::of(sandbox));
        drop(state);
        self.seen.send(seen).unwrap();
    }

    pub(crate) fn sandbox_ready(&self, name: &str, pod: &str, address: &str) {
        let conditions = from(json!([{"type": "Ready", "status": "True", "reason": "Ready", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]));
        let status = SandboxStatus {
            pod_uid: Some(pod.to_owned()),
            address: Some(address.to_owned()),
            conditions,
            ..SandboxStatus::default()
        };
        self.sandbox_status(name, status);
    }

    pub(crate) fn sandbox_lost(&self, name: &str, pod: &str, reason: &str) {
        let last_loss = Loss { pod_uid: pod.to_owned(), reason: reason.to_owned(), ..Loss::default() };
        let status =
            SandboxStatus { last_loss: Some(last_loss), restarts: 1, incarnation: 1, ..SandboxStatus::default() };
        self.sandbox_status(name, status);
    }

    /// Which incarnation of the sandbox a call has asked for although it rests.
    pub(crate) fn retried(&self, name: &str) -> Option<String> {
        self.state().sandboxes.get(&key("team-a", name))?.metadata.annotations.as_ref()?.get(RETRY).cloned()
    }

    /// The next read of the sandbox finds it as it is now.
    pub(crate) fn read_stale(&self, name: &str) {
        let mut state = self.state();
        state.stale = state.sandboxes.get(&key("team-a", name)).cloned();
    }

    /// The API server takes no more of them, and says why.
    pub(crate) fn refuse_sandboxes(&self, reason: &str) {
        self.state().sandboxes_refused = Some(reason.to_owned());
    }

    pub(crate) fn desired_state(&self, name: &str) -> DesiredState {
        self.state().sandboxes.get(&key("team-a", name)).unwrap().spec.desired_state
    }

    /// Of this state only, which the API server knows by its version.
    fn change_sandbox(&self, seen: &Sandbox, change: impl FnOnce(&mut SandboxSpec)) -> Result<(), ResourceError> {
        let name = seen.metadata.name.clone().unwrap();
        let mut state = self.state();
        let sandbox = state.sandboxes.get_mut(&key("team-a", &name));
        let same = |now: &&mut Sandbox| {
            now.metadata.uid == seen.metadata.uid && now.spec == seen.spec && now.status == seen.status
        };
        let Some(sandbox) = sandbox.filter(same) else {
            return Err(ResourceError::Conflict { what: name, reason: "it has changed".to_owned() });
        };
        change(&mut sandbox.spec);
        let seen = Seen::Changed(Self::sandbox_key(&name), SandboxView::of(sandbox));
        drop(state);
        self.seen.send(seen).unwrap();
        Ok(())
    }

    fn set_desired_state(&self, name: &str, uid: &str, desired: DesiredState) {
        let mut state = self.state();
        let sandbox = state.sandboxes.get_mut(&key("team-a", name)).unwrap();
        assert_eq!(sandbox.metadata.uid.as_deref(), Some(uid));
        sandbox.spec.desired_state = desired;
        let seen = Seen::Changed(Self::sandbox_key(name), SandboxView::of(sandbox));
        drop(state);
        self.seen.send(seen).unwrap();
    }

    pub(crate) fn remove_sandbox(&self, name: &str) {
        self.state().sandboxes.remove(&key("team-a", name));
        self.seen.send(Seen::Gone(Self::sandbox_key(name))).unwrap();
    }

    fn sandbox_key(name: &str) -> SandboxKey {
        SandboxKey { namespace: "team-a".to_owned(), name: name.to_owned() }
    }
}

#[async_trait]
impl Resources for FakeCluster {
    async fn agent(&self, namespace: &str, name: &str) -> Result<Option<Agent>, ResourceError> {
        self.agents.named(namespace, name).await
    }

    async fn namespace_uid(&self, namespace: &str) -> Result<Option<String>, ResourceError> {
        let state = self.state();
        if state.namespaces_gone.contains(namespace) {
            return Ok(None);
        }
        let again = if state.namespaces_again.contains(namespace) { "-again" } else { "" };
        Ok(Some(format!("uid-{namespace}{again}")))
    }

    async fn has_template(&self, namespace: &str, name: &str) -> Result<bool, ResourceError> {
        Ok(self.environments.named(namespace, name).await?.is_some())
    }

    async fn session(&self, namespace: &str, name: &str) -> Result<Option<AgentSession>, ResourceError> {
        self.state().reads.push(format!("AgentSession {namespace}/{name}"));
        Ok(self.state().sessions.get(&key(namespace, name)).cloned())
    }

    /// In pages of two.
    async fn sessions(
        &self,
        namespace: &str,
        from: Option<String>,
    ) -> Result<(Vec<AgentSession>, Option<String>), ResourceError> {
        let skip: usize = from.map_or(0, |from| from.parse().unwrap());
        let state = self.state();
        let all: Vec<&AgentSession> =
            state.sessions.iter().filter(|((space, _), _)| space == namespace).map(|(_, session)| session).collect();
        let next = (skip + 2 < all.len()).then(|| (skip + 2).to_string());
        Ok((all.into_iter().skip(skip).take(2).cloned().collect(), next))
    }

    async fn create_session(&self, namespace: &str, mut session: AgentSession) -> Result<AgentSession, ResourceError> {
        let mut state = self.state();
        state.uids += 1;
        let generated = session.metadata.generate_name.take().map(|prefix| format!("{prefix}{}", state.uids));
        let name = session.metadata.name.clone().or(generated).unwrap();
        if state.sessions.contains_key(&key(namespace, &name)) {
            return Err(ResourceError::Conflict { what: name, reason: "it exists already".to_owned() });
        }
        session.metadata.uid = Some(format!("made-{}", state.uids));
        session.metadata.name = Some(name.clone());
        session.metadata.namespace = Some(namespace.to_owned());
        let now = Timestamp::now();
        set_created_at(&mut session.metadata, now);
        session.metadata.creation_timestamp = Timestamp::from_second(now.as_second()).ok().map(Time);
        state.made.push(format!("AgentSession {namespace}/{name}"));
        state.sessions.insert(key(namespace, &name), session.clone());
        Ok(session)
    }

    async fn delete_session(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError> {
        let removed = self.state().sessions.remove(&key(namespace, name)).unwrap();
        assert_eq!(removed.metadata.uid.as_deref(), Some(uid));
        Ok(())
    }

    async fn sandbox(&self, namespace: &str, name: &str) -> Result<Option<Sandbox>, ResourceError> {
        let mut state = self.state();
        state.reads.push(format!("Sandbox {name}"));
        let stale = state.stale.take();
        Ok(stale.or_else(|| state.sandboxes.get(&key(namespace, name)).cloned()))
    }

    async fn ensure_sandbox(&self, mut sandbox: Sandbox) -> Result<Sandbox, ResourceError> {
        let name = sandbox.metadata.name.clone().unwrap();
        let mut state = self.state();
        if let Some(known) = state.sandboxes.get(&key("team-a", &name)) {
            return Ok(known.clone());
        }
        if let Some(reason) = state.sandboxes_refused.clone() {
            return Err(ResourceError::Refused { what: name, reason });
        }
        state.uids += 1;
        sandbox.metadata.uid = Some(format!("made-{}", state.uids));
        state.made.push(format!("Sandbox {name}"));
        state.sandboxes.insert(key("team-a", &name), sandbox.clone());
        let seen = Seen::Changed(Self::sandbox_key(&name), SandboxView::of(&sandbox));
        drop(state);
        self.seen.send(seen).unwrap();
        Ok(sandbox)
    }

    async fn wake_sandbox(&self, _: &str, name: &str, uid: &str) -> Result<(), ResourceError> {
        self.set_desired_state(name, uid, DesiredState::Running);
        Ok(())
    }

    async fn retry_sandbox(&self, _: &str, name: &str, uid: &str, incarnation: i64) -> Result<(), ResourceError> {
        let mut state = self.state();
        let sandbox = state.sandboxes.get_mut(&key("team-a", name)).unwrap();
        assert_eq!(sandbox.metadata.uid.as_deref(), Some(uid));
        sandbox.metadata.annotations.get_or_insert_default().insert(RETRY.to_owned(), incarnation.to_string());
        Ok(())
    }

    async fn say_lacks(&self, _: &str, name: &str, uid: &str, lacks: Option<&str>) -> Result<(), ResourceError> {
        let mut state = self.state();
        let sandbox = state.sandboxes.get_mut(&key("team-a", name)).unwrap();
        assert_eq!(sandbox.metadata.uid.as_deref(), Some(uid));
        let annotations = sandbox.metadata.annotations.get_or_insert_default();
        match lacks {
            Some(lacks) => _ = annotations.insert(RESOURCES_FAILED.to_owned(), lacks.to_owned()),
            None => _ = annotations.remove(RESOURCES_FAILED),
        }
        let seen = Seen::Changed(Self::sandbox_key(name), SandboxView::of(sandbox));
        drop(state);
        self.seen.send(seen).unwrap();
        Ok(())
    }

    async fn suspend_sandbox(&self, sandbox: &Sandbox) -> Result<(), ResourceError> {
        self.change_sandbox(sandbox, |spec| spec.desired_state = DesiredState::Suspended)
    }

    async fn hand_off_sandbox(&self, sandbox: &Sandbox, to: &SessionRef) -> Result<(), ResourceError> {
        self.change_sandbox(sandbox, |spec| spec.handoff_to = Some(to.clone()))
    }

    async fn take_back_sandbox(&self, sandbox: &Sandbox, suspend: bool) -> Result<(), ResourceError> {
        self.change_sandbox(sandbox, |spec| {
            spec.handoff_to = None;
            if suspend {
                spec.desired_state = DesiredState::Suspended;
            }
        })
    }

    async fn copied_sandbox(&self, sandbox: &Sandbox, pod_uid: &str) -> Result<(), ResourceError> {
        self.change_sandbox(sandbox, |spec| {
            spec.workspace_from.as_mut().unwrap().copied_to = Some(pod_uid.to_owned());
        })
    }

    async fn discard_sandbox(&self, sandbox: &Sandbox) -> Result<(), ResourceError> {
        self.change_sandbox(sandbox, |_| {})?;
        FakeCluster::remove_sandbox(self, sandbox.metadata.name.as_deref().unwrap());
        Ok(())
    }

    async fn remove_sandbox(&self, _: &str, name: &str, uid: &str) -> Result<(), ResourceError> {
        let known = self.state().sandboxes.get(&key("team-a", name)).and_then(|known| known.metadata.uid.clone());
        if known.as_deref() == Some(uid) {
            FakeCluster::remove_sandbox(self, name);
        }
        Ok(())
    }
}

#[async_trait]
impl Pods for FakeCluster {
    async fn address(&self, _: &str, _: &str, uid: &str) -> Result<Option<IpAddr>, ResourceError> {
        Ok(self.addresses.lock().unwrap().get(uid).copied())
    }
}

#[async_trait]
impl Reviewer for FakeCluster {
    /// The token of the proxy in a pod is the pod's with `proxy:` before it.
    async fn review_token(&self, token: &str, audience: &str) -> Result<Option<Identity>, ReviewError> {
        if token == "unreachable" {
            return Err(ReviewError { what: "token", reason: "the API server is away".to_owned() });
        }
        let mut state = self.state();
        state.reviews += 1;
        Ok(match (token.strip_prefix("proxy:"), audience) {
            (Some(pod), PROXY_AUDIENCE) => state.tokens.get(pod).cloned(),
            (None, AUDIENCE) => state.tokens.get(token).cloned(),
            _ => None,
        })
    }

    async fn review_access(
        &self,
        identity: &Identity,
        access: Access<'_>,
        namespace: &str,
    ) -> Result<bool, ReviewError> {
        let attributes = access.attributes();
        let of_any = Attributes { name: None, ..attributes };
        let mut state = self.state();
        state.reviews += 1;
        let allowed = |what: Attributes<'_>| {
            state.rules.contains(&(identity.username.clone(), what.to_string(), namespace.to_owned()))
        };
        Ok(allowed(attributes) || allowed(of_any))
    }
}
