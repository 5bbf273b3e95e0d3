//! The five kinds of `longhand.dev/v1alpha1` as Rust types.
//!
//! What CEL can hold is held here, so that the API server refuses a wrong object with a message that names the field.
//! `cargo run -p longhand-crds --bin crdgen` writes `crds/yaml/` from these types.

#![allow(unreachable_pub, reason = "the derive repeats each spec in a private module")]
#![allow(clippy::duplicated_attributes, reason = "each print column has the same keys")]

pub mod agent;
pub mod agent_context;
pub mod agent_overrides;
pub mod agent_session;
pub mod agent_version;
mod agent_wire;
pub mod default_model;
pub mod egress;
mod environment_wire;
pub mod model;
pub mod patterns;
pub mod refresh;
pub mod sandbox;
pub mod sandbox_template;
pub mod session_resource;
mod snapshot;
pub mod template_resource;
pub mod toolset;
pub mod vault;
pub mod watch_scope;
pub mod wire_id;

use kube::CustomResourceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use agent::{Agent, AgentSpec, AgentStatus};
pub use agent_session::{AgentSession, AgentSessionSpec, AgentSessionStatus, Retention};
pub use sandbox::{Sandbox, SandboxSpec, SandboxStatus};
pub use sandbox_template::{SandboxTemplate, SandboxTemplateSpec, SandboxTemplateStatus};
pub use vault::{Vault, VaultSpec, VaultStatus};
pub use wire_id::{derived_session_id, session_id, wire_id};

/// The API group of every kind.
pub const GROUP: &str = "longhand.dev";

/// Labels that Longhand puts on what it makes. Values are UIDs and fixed words, never names.
pub mod labels {
    /// Says that Longhand made the object.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// The value of [`MANAGED_BY`].
    pub const LONGHAND: &str = "longhand";
    /// What a pod is: [`HARNESS`] or [`SANDBOX`].
    pub const ROLE: &str = "longhand.dev/role";
    /// The role of a brain.
    pub const HARNESS: &str = "harness";
    /// The role of hands.
    pub const SANDBOX: &str = "sandbox";
    /// UID of the `AgentSession`.
    pub const SESSION_UID: &str = "longhand.dev/session-uid";
    /// UID of the `Sandbox`.
    pub const SANDBOX_UID: &str = "longhand.dev/sandbox-uid";
    /// UID of the `SandboxTemplate` whose pool a pod was started for, also after a sandbox has taken it.
    pub const POOL_UID: &str = "longhand.dev/pool-uid";
    /// What a pod of a pool was made from, as a hash.
    pub const POOL_HASH: &str = "longhand.dev/pool-hash";
    /// UID of the `Agent` that a ControllerRevision is a version of, or that a harness pod without a session belongs to.
    pub const AGENT_UID: &str = "longhand.dev/agent-uid";
    /// The identifier by which the wire API knows the object, see [`crate::wire_id`].
    pub const ID: &str = "longhand.dev/id";
    /// The identifier of a session's primary thread, where it is not derived from the session's.
    pub const THREAD_ID: &str = "longhand.dev/thread-id";
}

/// Annotations that Longhand keeps on objects.
pub mod annotations {
    /// When an `AgentSession` of the wire API was made, as RFC 3339: the API server's own time has whole seconds only, in which
    /// a client makes many.
    pub const CREATED_AT: &str = "longhand.dev/created-at";
    /// Which of its sandbox's pods a pod is. No label: what networks know a pod by does not change when a sandbox takes it.
    pub const INCARNATION: &str = "longhand.dev/incarnation";
    /// When the object was archived, as RFC 3339: it is kept and shown, and nothing new may use it.
    pub const ARCHIVED_AT: &str = "longhand.dev/archived-at";
    /// Where the log of an `AgentSession` comes from: `import`, or `fork` and what of. The wire API makes such a log; it is
    /// never made empty.
    pub const LOG_FROM: &str = "longhand.dev/log-from";
    /// Of a session's `Sandbox`: which resource could not be put into its workspace, and why. It goes when all are there.
    pub const RESOURCES_FAILED: &str = "longhand.dev/resources-failed";
    /// Of a session's `Sandbox`: the place in a trace of the tool call that it was made for, as W3C Trace Context writes it.
    pub const TRACEPARENT: &str = "longhand.dev/traceparent";
    /// Of a `Sandbox` that rests, as it was not ready in time: the incarnation that a call wants to be made all the same.
    pub const RETRY: &str = "longhand.dev/retry";
    /// Of what a harness pod without a session was made: one of another digest is not what its agent needs.
    pub const POD_DIGEST: &str = "longhand.dev/pod-digest";
}

/// An object of the same namespace, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalRef {
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Every definition, in the order in which they are installed.
#[must_use]
pub fn definitions() -> Vec<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>
{
    vec![Agent::crd(), AgentSession::crd(), Sandbox::crd(), SandboxTemplate::crd(), Vault::crd()]
}

/// The schema of pairs that clients of the wire API keep with an object.
fn metadata_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 512 },
    })
}

/// The schema of an amount, without its long description.
fn quantity_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "x-kubernetes-int-or-string": true })
}

/// That a field `size` is an amount of something. It is said of the object that has the field, since no rule of a value is asked
/// about `null`.
pub(crate) const SIZE: &str = "self.size != null && (type(self.size) == int ? self.size > 0 : isQuantity(self.size) && quantity(self.size).compareTo(quantity('0')) > 0)";
pub(crate) const SIZE_MESSAGE: &str = "size is an amount above 0, such as 4Gi";

/// The schema of a list of conditions, a map by `type`, without the long descriptions that every kind would repeat.
fn conditions_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "message": { "type": "string" },
                "observedGeneration": { "type": "integer", "format": "int64" },
                "reason": { "type": "string" },
                "status": { "type": "string" },
                "type": { "type": "string" },
            },
        },
    })
}
