//! The five kinds of `longhand.dev/v1alpha1` as Rust types.
//!
//! What CEL can hold is held here, so that the API server refuses a wrong object with a message that names the field.
//! `cargo run -p longhand-crds --bin crdgen` writes `crds/yaml/` from these types.

#![allow(unreachable_pub, reason = "the derive repeats each spec in a private module")]
#![allow(clippy::duplicated_attributes, reason = "each print column has the same keys")]

pub mod agent;
pub mod agent_session;
pub mod patterns;
pub mod sandbox;
pub mod sandbox_template;
mod snapshot;
pub mod vault;

use kube::CustomResourceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use agent::{Agent, AgentSpec, AgentStatus};
pub use agent_session::{AgentSession, AgentSessionSpec, AgentSessionStatus, session_id};
pub use sandbox::{Sandbox, SandboxSpec, SandboxStatus};
pub use sandbox_template::{SandboxTemplate, SandboxTemplateSpec, SandboxTemplateStatus};
pub use vault::{Vault, VaultSpec, VaultStatus};

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

/// The schema of a list of conditions: a map by `type`.
fn conditions_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = generator.subschema_for::<Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>>();
    schema.insert("x-kubernetes-list-type".into(), "map".into());
    schema.insert("x-kubernetes-list-map-keys".into(), serde_json::json!(["type"]));
    schema.insert("maxItems".into(), 16.into());
    schema
}
