//! The Kubernetes API itself. Every call has a deadline.

use std::time::Duration;

use async_trait::async_trait;
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher;
use kube::{Client, Resource as _, ResourceExt as _};
use longhand_crds::sandbox::{DesiredState, SessionRef};
use longhand_crds::watch_scope::WatchScope;
use longhand_crds::{Agent, AgentSession, Sandbox, SandboxTemplate, annotations};
use tokio::time::timeout;

use super::named::set_created_at;
use super::{ResourceError, Resources};
use crate::execute::sandboxes::{SandboxKey, SandboxView, Seen};

const DEADLINE: Duration = Duration::from_secs(10);
const PAGE: u32 = 500;
const FIELD_MANAGER: &str = "longhand-session";

/// Where the operator finds the key that sandboxes verify tokens with.
const KEYS_CONFIG_MAP: &str = "longhand-session-keys";
/// The key's name in it.
const VERIFY_KEY: &str = "sandboxd-verify-key";
/// Where clients find the authority that our certificate is from.
const AUTHORITY: &str = "ca.crt";

/// What others need to know of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The key that sandboxes verify tokens with.
    pub verify_key: String,
    /// The authority that the certificate is from, in PEM, if the service speaks TLS.
    pub authority: Option<String>,
}

/// The Kubernetes API.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    scope: WatchScope,
}

impl Cluster {
    /// Speaks through `client`, and watches what is in `scope`.
    #[must_use]
    pub fn new(client: Client, scope: WatchScope) -> Self {
        Self { client, scope }
    }

    /// Says something of a Deployment by an Event, where `kubectl describe` shows it.
    ///
    /// # Errors
    /// When the API server is away or refuses.
    pub async fn tell(
        &self,
        namespace: &str,
        deployment: &str,
        warning: bool,
        reason: &str,
        text: &str,
    ) -> Result<(), ResourceError> {
        let api = Api::<Deployment>::namespaced(self.client.clone(), namespace);
        let what = format!("Deployment {namespace}/{deployment}");
        let found = call(&what, api.get(deployment)).await?;
        let reporter = Reporter { controller: "longhand.dev/session".to_owned(), instance: None };
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(text.to_owned()),
            action: "Watch".to_owned(),
            secondary: None,
        };
        let recorder = Recorder::new(self.client.clone(), reporter);
        call(&format!("an Event of {what}"), recorder.publish(&event, &found.object_ref(&()))).await
    }

    /// Every change of every sandbox, for ever.
    pub fn watch_sandboxes(&self) -> impl Stream<Item = Seen> + Send + use<> {
        let events = self.scope.events(&self.client, &watcher::Config::default());
        // The watcher itself says what went wrong; it goes on after a wait.
        events.filter_map(|event| async move {
            match event {
                Ok(event) => Some(seen(event)),
                Err(error) => {
                    tracing::warn!(%error, "the watch of sandboxes broke and is made anew");
                    None
                }
            }
        })
    }

    /// Every change of every agent, for ever.
    pub fn watch_agents(&self) -> impl Stream<Item = watcher::Event<Agent>> + Send + use<> {
        let events = self.scope.events(&self.client, &watcher::Config::default());
        events.filter_map(|event| async move {
            event.inspect_err(|error| tracing::warn!(%error, "the watch of agents broke and is made anew")).ok()
        })
    }

    /// Publishes what others need to know of the service.
    ///
    /// # Errors
    /// See [`ResourceError`].
    pub async fn publish(&self, namespace: &str, published: &Published) -> Result<(), ResourceError> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let mut map = serde_json::json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": KEYS_CONFIG_MAP, "labels": { "app.kubernetes.io/managed-by": "longhand" } },
            "data": { VERIFY_KEY: published.verify_key },
        });
        if let Some(authority) = &published.authority {
            map["data"][AUTHORITY] = authority.as_str().into();
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let name = format!("ConfigMap {namespace}/{KEYS_CONFIG_MAP}");
        call(&name, api.patch(KEYS_CONFIG_MAP, &params, &Patch::Apply(&map))).await.map(|_| ())
    }

    fn sessions_in(&self, namespace: &str) -> Api<AgentSession> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn sandboxes_in(&self, namespace: &str) -> Api<Sandbox> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// One that is gone, or is another one by now, is left alone.
    async fn patch_sandbox(&self, namespace: &str, name: &str, patch: &serde_json::Value) -> Result<(), ResourceError> {
        let api = self.sandboxes_in(namespace);
        let patched = async {
            match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
                other => other.map(|_| ()),
            }
        };
        call(&format!("Sandbox {namespace}/{name}"), patched).await
    }

    /// Changes the spec of a sandbox if nothing at all has changed since it was read.
    async fn change_sandbox(&self, sandbox: &Sandbox, spec: serde_json::Value) -> Result<(), ResourceError> {
        let (namespace, name) = (sandbox.namespace().unwrap_or_default(), sandbox.name_any());
        let patch = serde_json::json!({
            "metadata": { "uid": sandbox.uid(), "resourceVersion": sandbox.resource_version() },
            "spec": spec,
        });
        let api = self.sandboxes_in(&namespace);
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        call(&format!("Sandbox {namespace}/{name}"), api.patch(&name, &params, &patch)).await.map(|_| ())
    }

    /// One that is gone is no error.
    async fn delete_sandbox(&self, namespace: &str, name: &str, if_it_is: Preconditions) -> Result<(), ResourceError> {
        let params = DeleteParams::background().preconditions(if_it_is);
        let api = self.sandboxes_in(namespace);
        let remove = async {
            match api.delete(name, &params).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                other => other.map(|_| ()),
            }
        };
        call(&format!("Sandbox {namespace}/{name}"), remove).await
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }
}

fn seen(event: watcher::Event<Sandbox>) -> Seen {
    let key =
        |sandbox: &Sandbox| SandboxKey { namespace: sandbox.namespace().unwrap_or_default(), name: sandbox.name_any() };
    match event {
        watcher::Event::Apply(sandbox) => Seen::Changed(key(&sandbox), SandboxView::of(&sandbox)),
        watcher::Event::Delete(sandbox) => Seen::Gone(key(&sandbox)),
        watcher::Event::Init => Seen::ListBegins,
        watcher::Event::InitApply(sandbox) => Seen::Listed(key(&sandbox), SandboxView::of(&sandbox)),
        watcher::Event::InitDone => Seen::ListEnds,
    }
}

#[async_trait]
impl Resources for Cluster {
    async fn agent(&self, namespace: &str, name: &str) -> Result<Option<Agent>, ResourceError> {
        let api = Api::<Agent>::namespaced(self.client.clone(), namespace);
        call(&format!("Agent {namespace}/{name}"), api.get_opt(name)).await
    }

    async fn namespace_uid(&self, namespace: &str) -> Result<Option<String>, ResourceError> {
        let api = Api::<Namespace>::all(self.client.clone());
        let found = call(&format!("Namespace {namespace}"), api.get_metadata_opt(namespace)).await?;
        Ok(found.and_then(|found| found.metadata.uid))
    }

    async fn has_template(&self, namespace: &str, name: &str) -> Result<bool, ResourceError> {
        let api = Api::<SandboxTemplate>::namespaced(self.client.clone(), namespace);
        let what = format!("SandboxTemplate {namespace}/{name}");
        call(&what, api.get_metadata_opt(name)).await.map(|found| found.is_some())
    }

    async fn session(&self, namespace: &str, name: &str) -> Result<Option<AgentSession>, ResourceError> {
        call(&format!("AgentSession {namespace}/{name}"), self.sessions_in(namespace).get_opt(name)).await
    }

    async fn sessions(
        &self,
        namespace: &str,
        from: Option<String>,
    ) -> Result<(Vec<AgentSession>, Option<String>), ResourceError> {
        let mut params = ListParams::default().limit(PAGE);
        params.continue_token = from;
        let what = format!("the AgentSessions of {namespace}");
        let list = call(&what, self.sessions_in(namespace).list(&params)).await?;
        Ok((list.items, list.metadata.continue_.filter(|token| !token.is_empty())))
    }

    async fn create_session(&self, namespace: &str, mut session: AgentSession) -> Result<AgentSession, ResourceError> {
        let what = format!("a new AgentSession in {namespace}");
        set_created_at(&mut session.metadata, Timestamp::now());
        call(&what, self.sessions_in(namespace).create(&PostParams::default(), &session)).await
    }

    async fn delete_session(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError> {
        let what = format!("AgentSession {namespace}/{name}");
        let preconditions = Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api = self.sessions_in(namespace);
        let delete = async {
            match api.delete(name, &params).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                other => other.map(|_| ()),
            }
        };
        call(&what, delete).await
    }

    async fn sandbox(&self, namespace: &str, name: &str) -> Result<Option<Sandbox>, ResourceError> {
        call(&format!("Sandbox {namespace}/{name}"), self.sandboxes_in(namespace).get_opt(name)).await
    }

    async fn ensure_sandbox(&self, sandbox: Sandbox) -> Result<Sandbox, ResourceError> {
        let (namespace, name) = (sandbox.namespace().unwrap_or_default(), sandbox.name_any());
        let what = format!("Sandbox {namespace}/{name}");
        let api = self.sandboxes_in(&namespace);
        let ensure = async {
            match api.create(&PostParams::default(), &sandbox).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => api.get(&name).await,
                other => other,
            }
        };
        call(&what, ensure).await
    }

    async fn wake_sandbox(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError> {
        let patch =
            serde_json::json!({ "metadata": { "uid": uid }, "spec": { "desiredState": DesiredState::Running } });
        self.patch_sandbox(namespace, name, &patch).await
    }

    async fn retry_sandbox(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        incarnation: i64,
    ) -> Result<(), ResourceError> {
        let annotations = serde_json::json!({ (annotations::RETRY): incarnation.to_string() });
        let patch = serde_json::json!({ "metadata": { "uid": uid, "annotations": annotations } });
        self.patch_sandbox(namespace, name, &patch).await
    }

    async fn say_lacks(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        lacks: Option<&str>,
    ) -> Result<(), ResourceError> {
        let annotations = serde_json::json!({ (annotations::RESOURCES_FAILED): lacks });
        let patch = serde_json::json!({ "metadata": { "uid": uid, "annotations": annotations } });
        self.patch_sandbox(namespace, name, &patch).await
    }

    async fn suspend_sandbox(&self, sandbox: &Sandbox) -> Result<(), ResourceError> {
        self.change_sandbox(sandbox, serde_json::json!({ "desiredState": DesiredState::Suspended })).await
    }

    async fn hand_off_sandbox(&self, sandbox: &Sandbox, to: &SessionRef) -> Result<(), ResourceError> {
        self.change_sandbox(sandbox, serde_json::json!({ "handoffTo": to })).await
    }

    async fn take_back_sandbox(&self, sandbox: &Sandbox, suspend: bool) -> Result<(), ResourceError> {
        let desired = if suspend { DesiredState::Suspended } else { sandbox.spec.desired_state };
        self.change_sandbox(sandbox, serde_json::json!({ "handoffTo": null, "desiredState": desired })).await
    }

    async fn copied_sandbox(&self, sandbox: &Sandbox, pod_uid: &str) -> Result<(), ResourceError> {
        self.change_sandbox(sandbox, serde_json::json!({ "workspaceFrom": { "copiedTo": pod_uid } })).await
    }

    async fn discard_sandbox(&self, sandbox: &Sandbox) -> Result<(), ResourceError> {
        let (namespace, name) = (sandbox.namespace().unwrap_or_default(), sandbox.name_any());
        let seen = Preconditions { uid: sandbox.uid(), resource_version: sandbox.resource_version() };
        self.delete_sandbox(&namespace, &name, seen).await
    }

    async fn remove_sandbox(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError> {
        let meant = Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() };
        match self.delete_sandbox(namespace, name, meant).await {
            // Another one of the name is not the one that was meant.
            Err(ResourceError::Conflict { .. }) => Ok(()),
            other => other,
        }
    }
}

/// Waits for the answer, within the deadline, and sorts what went wrong.
pub(super) async fn call<T>(
    what: &str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ResourceError> {
    let what = what.to_owned();
    let error = match timeout(DEADLINE, request).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error,
        Err(_) => {
            return Err(ResourceError::Unavailable { what, reason: format!("no answer in {} s", DEADLINE.as_secs()) });
        }
    };
    let reason = match &error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    };
    Err(match &error {
        kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() => {
            ResourceError::Conflict { what, reason }
        }
        kube::Error::Api(status) if status.is_invalid() || status.code == 400 => {
            ResourceError::Refused { what, reason }
        }
        // A quota says 403, as what may not be done at all.
        kube::Error::Api(status) if status.is_forbidden() && status.message.contains("exceeded quota") => {
            ResourceError::Refused { what, reason }
        }
        _ => ResourceError::Unavailable { what, reason },
    })
}
