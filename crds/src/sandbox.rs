//! `Sandbox`: a pod that runs what a model asks for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LocalRef;

/// A pod that runs what a model asks for, replaced when it is lost.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "longhand.dev",
    version = "v1alpha1",
    kind = "Sandbox",
    plural = "sandboxes",
    namespaced,
    status = "SandboxStatus",
    category = "longhand",
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.templateRef == oldSelf.templateRef && has(self.sessionRef) == has(oldSelf.sessionRef) && (!has(self.sessionRef) || self.sessionRef == oldSelf.sessionRef) && has(self.workspaceFrom) == has(oldSelf.workspaceFrom)")
        .message("only desiredState, handoffTo and workspaceFrom.copiedTo of a Sandbox can be changed: make another"),
    validation = Rule::new("!has(self.handoffTo) || !has(oldSelf.handoffTo) || self.handoffTo == oldSelf.handoffTo")
        .message("handoffTo can be set and taken back, and not be changed"),
)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSpec {
    /// The `SandboxTemplate` that it is made from.
    pub template_ref: LocalRef,
    /// The session that it belongs to; a sandbox of a session is reclaimed when it has been idle for as long as the
    /// template says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_ref: Option<SessionRef>,
    /// Whether there shall be a pod. A suspended sandbox keeps its workspace if the template says that it is persistent. The
    /// next tool call of its session wakes it.
    #[serde(default)]
    pub desired_state: DesiredState,
    /// The session that it is being handed to: it takes no more calls, its workspace goes to a new sandbox of that session, and it
    /// is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handoff_to: Option<SessionRef>,
    /// The sandbox whose workspace it gets in place of an empty one, once that one's `handoffTo` names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_from: Option<WorkspaceFrom>,
}

/// A workspace that another sandbox hands over.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.sandbox == oldSelf.sandbox && self.uid == oldSelf.uid && has(self.claim) == has(oldSelf.claim) && (!has(self.claim) || self.claim == oldSelf.claim) && (!has(oldSelf.copiedTo) || (has(self.copiedTo) && self.copiedTo == oldSelf.copiedTo))")
        .message("of workspaceFrom only copiedTo can be set, once: make another Sandbox"),
    validation = Rule::new("!has(self.claim) || !has(self.copiedTo)")
        .message("a workspace in a PersistentVolumeClaim moves with it and is not copied"),
)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceFrom {
    /// Name of the other `Sandbox`.
    #[schemars(length(min = 1, max = 253))]
    pub sandbox: String,
    /// UID of the other `Sandbox`.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// Name of the `PersistentVolumeClaim` that holds the workspace. Without one, it is copied from the other's pod, and the sandbox
    /// takes no calls before it has all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub claim: Option<String>,
    /// UID of the pod that has been given a copy of the workspace, all of it: from then on the sandbox is like any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub copied_to: Option<String>,
}

impl WorkspaceFrom {
    /// Whether the workspace has to be copied and has not been yet, or not all of it.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.claim.is_none() && self.copied_to.is_none()
    }
}

/// The reason of `Finished` of a sandbox whose workspace had been kept and could not be used again, such as since it lies on a node
/// that is gone.
pub const WORKSPACE_LOST: &str = "WorkspaceLost";

/// The reason of `Finished` of a sandbox that was not ready in time, and of `Ready` of one whose workspace is kept all the same.
pub const DEADLINE_EXCEEDED: &str = "ProvisioningDeadlineExceeded";

/// Whether a sandbox shall have a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DesiredState {
    /// It shall.
    #[default]
    Running,
    /// It shall not.
    Suspended,
}

/// A session of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionRef {
    /// Name of the `AgentSession`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// UID of the `AgentSession`.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// The sandbox's name in the session.
    #[schemars(length(min = 1, max = 20))]
    pub sandbox: String,
}

/// What is known of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The pod that there is, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// Its UID: which incarnation of the sandbox it is.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Where `sandboxd` listens, `IP:port`, while the pod is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The `PersistentVolumeClaim` of its workspace, if that outlives its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_claim: Option<String>,
    /// How often the pod was lost.
    #[serde(default)]
    pub restarts: i64,
    /// How many pods it has had; the next one's name is made from it.
    #[serde(default)]
    pub incarnation: i64,
    /// When it is given up unless it is ready by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioning_deadline: Option<Time>,
    /// Since when the pod that there is has been ready for this sandbox: one of a pool since it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Time>,
    /// Why the pod before this one is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_loss: Option<Loss>,
    /// Why it was not ready in time although its workspace is kept, until it is ready again. Without `provisioningDeadline` it has no
    /// pod: a session's has the next one when a call asks for it, a free-standing one after a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_miss: Option<Miss>,
    /// `Ready`; `Suspended`, `Finished` and `ResourcesReady` once they have had something to say; `EgressFenced`, which says
    /// whether network policies keep the pod in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// How a sandbox's pod was lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Loss {
    /// UID of the pod.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// One word, such as `OOMKilled`, `Evicted` or `Deleted`.
    pub reason: String,
    /// More of it, for a person.
    pub message: String,
    /// When it was lost, or seen to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// How many were lost one after the other, this one included, since one had been ready for 5 minutes.
    #[serde(default)]
    pub in_a_row: i64,
}

/// How a sandbox was not ready in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Miss {
    /// When its time was over.
    pub time: Time,
    /// How often, one time after the other, this one included.
    pub in_a_row: i64,
    /// Why, for a person.
    pub message: String,
}
