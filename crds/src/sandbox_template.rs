//! `SandboxTemplate`: what sandboxes are made from.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::patterns;

/// What sandboxes are made from: a part of a pod's spec, and how long an idle one is kept.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "longhand.dev",
    version = "v1alpha1",
    kind = "SandboxTemplate",
    namespaced,
    status = "SandboxTemplateStatus",
    category = "longhand",
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(self.selfHosted) || !self.selfHosted || (!has(self.network) && !has(self.packages))")
        .message("network and packages belong to sandboxes that Longhand makes"),
    validation = Rule::new("!has(self.packages) || (has(self.network) && (self.network.egress == 'Unrestricted' || (has(self.network.allowPackageManagers) && self.network.allowPackageManagers)))")
        .message("packages need network.egress Unrestricted, or network.allowPackageManagers"),
)]
#[serde(rename_all = "camelCase")]
pub struct SandboxTemplateSpec {
    /// A name for people; the object's name if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub display_name: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4_096))]
    pub description: Option<String>,
    /// Pairs that clients of the wire API keep with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::metadata_schema")]
    pub metadata: BTreeMap<String, String>,
    /// Whether a worker of the customer runs the tools: then no pods are made, and the calls go to a queue.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub self_hosted: bool,
    /// What sandboxes may reach; nothing if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSpec>,
    /// What is installed in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packages: Option<Packages>,
    /// An image that holds `/usr/local/bin/sandboxd`; the one that Longhand ships if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_024))]
    pub image: Option<String>,
    /// Environment of the tools. Not for secrets: the model can read it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,
    /// What the sandbox needs and may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// The RuntimeClass, such as gVisor's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// Labels that the node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "node_selector_schema")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that are tolerated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<Toleration>,
    /// The folder that the tools work in.
    #[serde(default)]
    pub workspace: Workspace,
    /// For how long no tool call may have run before a session's sandbox is removed, in seconds.
    #[serde(default = "default_idle_seconds")]
    #[schemars(range(min = 1, max = 604_800))]
    pub idle_seconds: i32,
}

const fn default_idle_seconds() -> i32 {
    300
}

fn node_selector_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 63 },
    })
}

/// What sandboxes may reach.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.egress == 'Limited' || (!has(self.allowedHosts) && !has(self.allowMCPServers) && !has(self.allowPackageManagers))")
        .message("allowedHosts, allowMCPServers and allowPackageManagers belong to egress Limited"),
)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSpec {
    /// Only what is named, or every public host.
    #[serde(default)]
    pub egress: Egress,
    /// Host names; one that begins with `*.` stands for all names below it, and `*` for every host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253), regex(pattern = patterns::HOSTS)))]
    pub allowed_hosts: Vec<String>,
    /// Also the MCP servers of the session's agent.
    #[serde(default, rename = "allowMCPServers", skip_serializing_if = "std::ops::Not::not")]
    pub allow_mcp_servers: bool,
    /// Also public package registries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_package_managers: bool,
}

/// How much of the network sandboxes may reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Egress {
    /// Only what is named.
    #[default]
    Limited,
    /// Every public host.
    Unrestricted,
}

/// What is installed, by package manager. Each entry is a name, maybe with a version in the manager's own syntax.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the package manager of that name")]
pub struct Packages {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    pub apt: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    pub cargo: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    pub gem: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    pub go: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    pub npm: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    pub pip: Vec<String>,
}

/// A variable of the environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Its value.
    #[serde(default)]
    #[schemars(length(max = 32_768))]
    pub value: String,
}

/// Requests and limits of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Quantity>,
    /// What the container may use at the most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,
}

/// The folder that the tools work in.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new(patterns::NO_RESERVED_FOLDER)
        .message("mountPath is inside a folder that sandboxes need for themselves: /tmp, /proc, /sys, /dev or /etc"),
)]
#[serde(rename_all = "camelCase")]
pub struct Workspace {
    /// How much it may hold before the sandbox is evicted.
    #[serde(default = "default_workspace_size")]
    pub size: Quantity,
    /// Where it is mounted.
    #[serde(default = "default_mount_path")]
    #[schemars(length(min = 2, max = 255), regex(pattern = patterns::FOLDER))]
    pub mount_path: String,
}

impl Default for Workspace {
    fn default() -> Self {
        Self { size: default_workspace_size(), mount_path: default_mount_path() }
    }
}

fn default_workspace_size() -> Quantity {
    Quantity("4Gi".to_owned())
}

fn default_mount_path() -> String {
    "/workspace".to_owned()
}

/// What is known of a template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxTemplateStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions_schema")]
    pub conditions: Vec<Condition>,
}
