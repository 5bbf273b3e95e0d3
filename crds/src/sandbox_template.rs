//! `SandboxTemplate`: what sandboxes are made from.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::template_resource::TemplateResource;
use crate::{LocalRef, patterns};

/// What sandboxes are made from: a part of a pod's spec, and how long an idle one is kept.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "longhand.dev",
    version = "v1alpha1",
    kind = "SandboxTemplate",
    namespaced,
    status = "SandboxTemplateStatus",
    category = "longhand",
    scale(
        spec_replicas_path = ".spec.warm",
        status_replicas_path = ".status.warmReady",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Warm", type_ = "integer", json_path = ".status.warmReady"),
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
    validation = Rule::new("!has(self.provision) || self.provision.all(resource, resource.mountPath.startsWith(self.workspace.mountPath.endsWith('/') ? self.workspace.mountPath : self.workspace.mountPath + '/'))")
        .message("provision: each mountPath is below workspace.mountPath"),
    validation = Rule::new("!has(self.provision) || !has(self.selfHosted) || !self.selfHosted")
        .message("provision belongs to sandboxes that Longhand makes"),
    validation = Rule::new("self.runAsUser > 0 || self.podSecurity == 'Baseline'")
        .message("runAsUser 0 is root, which needs podSecurity Baseline"),
    validation = Rule::new("self.sandboxd == 'Injected' || has(self.image)")
        .message("sandboxd: InImage is said of an image"),
    validation = Rule::new("!has(self.command) || self.command.size() == 0 || self.command[0].size() > 0")
        .message("command begins with the name of a program"),
    validation = Rule::new("!has(self.command) || self.command.map(word, word.size()).sum() <= 8192")
        .message("command has 8,192 characters at the most"),
    validation = Rule::new("!has(self.command) || !has(self.selfHosted) || !self.selfHosted")
        .message("command belongs to sandboxes that Longhand makes"),
    validation = Rule::new("self.userNamespace != 'Auto' || !has(self.runtimeClassName)")
        .message("userNamespace Auto knows of default runtimes only; with runtimeClassName say Host or Pod"),
    validation = Rule::new("self.warm == 0 || ((!has(self.selfHosted) || !self.selfHosted) && self.workspace.persistence == 'Ephemeral')")
        .message("warm belongs to sandboxes that Longhand makes and whose workspace is Ephemeral: a pod that runs gains no volume"),
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
    /// Any image; the one that Longhand ships if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_024))]
    pub image: Option<String>,
    /// Where `sandboxd` comes from that runs in `image`.
    #[serde(default)]
    pub sandboxd: SandboxdSource,
    /// A program that runs beside the tools from the start, such as a server, as their first job in the background: the program and
    /// its arguments, without a shell. 8,192 characters in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4_096)))]
    pub command: Vec<String>,
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
    /// How pods are spread over zones or nodes, among all sandboxes of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["topologyKey".into()]))]
    pub topology_spread: Vec<TopologySpread>,
    /// The PriorityClass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Secrets that the kubelet pulls the image with. No container sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<LocalRef>,
    /// The user and group that the tools run as, and that own the workspace; 0, which is root, needs `podSecurity: Baseline`.
    #[serde(default = "default_user")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub run_as_user: i64,
    /// The Pod Security Standard that the pods meet.
    #[serde(default)]
    pub pod_security: PodSecurity,
    /// Whose user IDs the pods' are. `Pod` needs nodes that support user namespaces; `Auto` is `Pod` if all that fit `nodeSelector` do.
    #[serde(default)]
    pub user_namespace: UserNamespace,
    /// The folder that the tools work in.
    #[serde(default)]
    pub workspace: Workspace,
    /// `/tmp`, where programs keep what need not last: the home of the tools, if `env` names none, and so their caches.
    #[serde(default)]
    pub scratch: Scratch,
    /// Repositories, files and archives that a session's workspace is given before the first tool call runs in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub provision: Vec<TemplateResource>,
    /// How many pods are kept running for sandboxes to come. A sandbox that finds none starts one of its own.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000))]
    pub warm: i32,
    /// What becomes of a sandbox whose pod is lost.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// For how long a sandbox may be on its way to being ready before it is given up, in seconds; and as long again may it take
    /// to put resources into its workspace.
    #[serde(default = "default_provisioning_seconds")]
    #[schemars(range(min = 5, max = 3_600))]
    pub provisioning_seconds: i32,
    /// For how long no tool call may have run before a session's sandbox is reclaimed, in seconds: suspended if its workspace is
    /// persistent, else removed.
    #[serde(default = "default_idle_seconds")]
    #[schemars(range(min = 1, max = 604_800))]
    pub idle_seconds: i32,
    /// Whether a sandbox is idle in which nothing but what tool calls have left running in the background runs.
    #[serde(default)]
    pub background_processes: BackgroundProcesses,
    /// For how long a session's sandbox may be suspended before it is removed with its workspace, in seconds.
    #[serde(default = "default_suspended_seconds")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub suspended_seconds: i32,
    /// How long after it was made a sandbox is ended, whatever it does, in seconds.
    #[serde(default = "default_lifetime_seconds")]
    #[schemars(range(min = 10, max = 31_536_000))]
    pub lifetime_seconds: i32,
    /// For how long a sandbox that has ended is kept to be looked at, in seconds.
    #[serde(default = "default_retention_seconds")]
    #[schemars(range(min = 0, max = 604_800))]
    pub retention_seconds: i32,
}

/// What a sandbox is bound by whose template is gone, and what templates say that say nothing.
pub const DEFAULT_PROVISIONING_SECONDS: i32 = 120;
/// See [`DEFAULT_PROVISIONING_SECONDS`].
pub const DEFAULT_IDLE_SECONDS: i32 = 300;
/// See [`DEFAULT_PROVISIONING_SECONDS`].
pub const DEFAULT_SUSPENDED_SECONDS: i32 = 86_400;
/// See [`DEFAULT_PROVISIONING_SECONDS`].
pub const DEFAULT_LIFETIME_SECONDS: i32 = 604_800;
/// See [`DEFAULT_PROVISIONING_SECONDS`].
pub const DEFAULT_RETENTION_SECONDS: i32 = 3_600;

const fn default_user() -> i64 {
    1_000
}

const fn default_provisioning_seconds() -> i32 {
    DEFAULT_PROVISIONING_SECONDS
}

const fn default_idle_seconds() -> i32 {
    DEFAULT_IDLE_SECONDS
}

const fn default_suspended_seconds() -> i32 {
    DEFAULT_SUSPENDED_SECONDS
}

const fn default_lifetime_seconds() -> i32 {
    DEFAULT_LIFETIME_SECONDS
}

const fn default_retention_seconds() -> i32 {
    DEFAULT_RETENTION_SECONDS
}

/// Where the `sandboxd` comes from that runs in an image of one's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SandboxdSource {
    /// From Longhand, which puts it beside the image's own files when the pod starts.
    #[default]
    Injected,
    /// From the image, which holds it as `/usr/local/bin/sandboxd`: nothing else has to be fetched and mounted.
    InImage,
}

/// What becomes of a sandbox whose pod is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnFailure {
    /// It gets another pod, with the same workspace if that is persistent.
    #[default]
    Recreate,
    /// It has ended.
    Fail,
}

/// The Pod Security Standard that pods meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PodSecurity {
    /// No capabilities, no way to gain any, not root, and a root file system that is read-only.
    #[default]
    Restricted,
    /// The container runtime's default capabilities, programs that gain privileges (`sudo`), root if `runAsUser` says so, and a
    /// root file system that can be written to.
    Baseline,
}

/// Whose user IDs those of a pod are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UserNamespace {
    /// The node's.
    #[default]
    Host,
    /// Its own: whoever breaks out of the container, even as root, is nobody on the node.
    Pod,
    /// Its own if every node that it may go to supports that, else the node's.
    Auto,
}

/// What background processes mean for whether a sandbox is idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackgroundProcesses {
    /// Nothing: only calls count.
    #[default]
    Ignore,
    /// It is not idle while one runs.
    KeepAwake,
}

/// How pods are spread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopologySpread {
    /// The label of nodes that tells the places apart.
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: String,
    /// By how many pods two places may differ.
    #[serde(default = "default_max_skew")]
    #[schemars(range(min = 1, max = 1_000))]
    pub max_skew: i32,
    /// What is done with a pod that cannot be placed so.
    #[serde(default)]
    pub when_unsatisfiable: WhenUnsatisfiable,
}

const fn default_max_skew() -> i32 {
    1
}

/// What is done with a pod that cannot be placed evenly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenUnsatisfiable {
    /// It is placed all the same.
    #[default]
    ScheduleAnyway,
    /// It waits.
    DoNotSchedule,
}

fn node_selector_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 63 },
    })
}

/// Amounts by resource. The API server's own words on quantities take 2 KB each. It expects the worst of a rule on text without a
/// bound, and allows ten million units for all amounts of a map: that is ten of them.
fn quantities_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 8,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "x-kubernetes-validations": [{
                "rule": "type(self) == int ? self >= 0 : isQuantity(self) && quantity(self).compareTo(quantity('0')) >= 0",
                "message": "an amount is a number with or without a unit, such as 500m or 2Gi, and not below 0",
            }],
        },
    })
}

/// Of the resources that may be requested in part, a request is not above its limit. Text is compared to the last digit; an integer
/// has no text to be compared with.
const REQUESTS_WITHIN_LIMITS: &str = concat!(
    "!has(self.requests) || !has(self.limits) || ['cpu', 'memory', 'ephemeral-storage'].all(name, ",
    "!(name in self.requests) || !(name in self.limits) || ",
    "(type(self.requests[name]) == string && type(self.limits[name]) == string ",
    "? quantity(self.requests[name]).compareTo(quantity(self.limits[name])) <= 0 ",
    ": (type(self.requests[name]) == int ? double(self.requests[name]) : quantity(self.requests[name]).asApproximateFloat()) ",
    "<= (type(self.limits[name]) == int ? double(self.limits[name]) : quantity(self.limits[name]).asApproximateFloat())))",
);

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
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new(REQUESTS_WITHIN_LIMITS).message("a request is above its limit"))]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities_schema")]
    pub requests: BTreeMap<String, Quantity>,
    /// What the container may use at the most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities_schema")]
    pub limits: BTreeMap<String, Quantity>,
}

/// The folder that the tools work in.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new(patterns::NO_RESERVED_FOLDER)
        .message("mountPath is inside a folder that sandboxes need for themselves: /tmp, /proc, /sys, /dev, /etc or /run/longhand"),
    validation = Rule::new("!has(self.storageClassName) || self.persistence == 'Persistent'")
        .message("storageClassName belongs to a workspace that is Persistent"),
    validation = Rule::new(crate::SIZE).message(crate::SIZE_MESSAGE).field_path(".size"),
)]
#[serde(rename_all = "camelCase")]
pub struct Workspace {
    /// How much it may hold. A sandbox that holds more in an ephemeral one is evicted.
    #[serde(default = "default_workspace_size")]
    #[schemars(schema_with = "crate::quantity_schema")]
    pub size: Quantity,
    /// Whether it outlives the pod.
    #[serde(default)]
    pub persistence: Persistence,
    /// The StorageClass of a persistent one; the cluster's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// Where it is mounted.
    #[serde(default = "default_mount_path")]
    #[schemars(length(min = 2, max = 255), regex(pattern = patterns::FOLDER))]
    pub mount_path: String,
}

impl Default for Workspace {
    fn default() -> Self {
        Self {
            size: default_workspace_size(),
            persistence: Persistence::default(),
            storage_class_name: None,
            mount_path: default_mount_path(),
        }
    }
}

/// The folder for what need not last.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new(crate::SIZE).message(crate::SIZE_MESSAGE).field_path(".size"))]
#[serde(rename_all = "camelCase")]
pub struct Scratch {
    /// How much it may hold. A sandbox that holds more is evicted.
    #[serde(default = "default_scratch_size")]
    #[schemars(schema_with = "crate::quantity_schema")]
    pub size: Quantity,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { size: default_scratch_size() }
    }
}

fn default_scratch_size() -> Quantity {
    Quantity("1Gi".to_owned())
}

/// Whether a workspace outlives the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Persistence {
    /// It goes with the pod: nothing has to be provisioned, so that a sandbox is there as fast as a pod.
    #[default]
    Ephemeral,
    /// It is a volume of the sandbox, which its next pod finds again.
    Persistent,
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
    /// How many pods wait for a sandbox and are ready.
    #[serde(default)]
    pub warm_ready: i32,
    /// Selects the pods that were started to wait for a sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// `Ready`; `WarmReady` of a template with `warm`; `UserNamespaces` of one with `userNamespace: Auto`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions_schema")]
    pub conditions: Vec<Condition>,
}
