//! `AgentSession`: one agent at work, whose history outlives every pod.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LocalRef;
use crate::agent_overrides::AgentOverrides;
use crate::sandbox_template::NetworkSpec;
use crate::session_resource::SessionResource;

/// One agent at work. Its history is in the session log; this object says that it shall exist.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "longhand.dev",
    version = "v1alpha1",
    kind = "AgentSession",
    namespaced,
    status = "AgentSessionStatus",
    category = "longhand",
    printcolumn(name = "Session", type_ = "string", json_path = ".status.sessionID"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Events", type_ = "integer", json_path = ".status.lastSequence"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.agentRef == oldSelf.agentRef").message("agentRef cannot be changed: a session keeps its agent"),
    validation = Rule::new("has(self.sandboxes) == has(oldSelf.sandboxes) && (!has(self.sandboxes) || self.sandboxes == oldSelf.sandboxes)")
        .message("sandboxes cannot be changed"),
    validation = Rule::new("self.harnessIdleSeconds == oldSelf.harnessIdleSeconds").message("harnessIdleSeconds cannot be changed"),
    validation = Rule::new("has(self.retention) == has(oldSelf.retention) && (!has(self.retention) || self.retention == oldSelf.retention)")
        .message("retention cannot be changed: it is read when the session is made"),
    validation = Rule::new("!has(oldSelf.input) || (has(self.input) && self.input.size() >= oldSelf.input.size() && oldSelf.input.all(i, item, self.input[i] == item))")
        .message("input may only grow at its end: what was delivered cannot be changed"),
)]
#[serde(rename_all = "camelCase")]
pub struct AgentSessionSpec {
    /// The `Agent`, as it is now or in one of its versions.
    pub agent_ref: AgentRef,
    /// User messages. Each is delivered once; more may be added at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub input: Vec<Input>,
    /// Sandboxes that tool calls may use; the first is the default. None is started until a tool call needs it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub sandboxes: Vec<SessionSandbox>,
    /// Vaults whose credentials the session may use. Who refers to a vault needs the verb `use` on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub vault_refs: Vec<LocalRef>,
    /// Repositories and files that sandboxes shall find.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub resources: Vec<SessionResource>,
    /// What it may use in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
    /// What the session may spend on the model at its list prices, if the agent's `model.prices` are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// How long a harness without work waits for the next message before its pod goes, in seconds.
    #[serde(default = "default_harness_idle_seconds")]
    #[schemars(range(min = 0, max = 3_600))]
    pub harness_idle_seconds: i32,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub title: Option<String>,
    /// Pairs that clients of the wire API keep with the session.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::metadata_schema")]
    pub metadata: BTreeMap<String, String>,
    /// How long the history is kept, and where. It is read when the session is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

impl AgentSessionSpec {
    /// Whether any harness of the agent may serve the session, as far as it says itself: none of its own credentials, and no
    /// agent of its own, need a harness that was made for it. So does a sandbox whose template has a `network`.
    #[must_use]
    pub fn takes_any_harness(&self) -> bool {
        self.vault_refs.is_empty() && self.agent_ref.overrides.is_none()
    }
}

/// An `Agent` of the same namespace, and which of its versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentRef {
    /// The agent's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The version; the latest when the session begins if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub version: Option<i64>,
    /// What this session has otherwise than the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overrides: Option<AgentOverrides>,
}

/// What a session may use in all, looked at before each request to the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitsSpec {
    /// Turns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub turns: Option<i64>,
    /// Tool calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub tool_calls: Option<i64>,
    /// Tokens read and written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub tokens: Option<i64>,
    /// Seconds in which it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub active_seconds: Option<i64>,
}

impl From<&LimitsSpec> for longhand_protocol::harness::Limits {
    fn from(spec: &LimitsSpec) -> Self {
        let limit = |limit: Option<i64>| limit.and_then(|limit| u64::try_from(limit).ok());
        Self {
            turns: limit(spec.turns),
            tool_calls: limit(spec.tool_calls),
            tokens: limit(spec.tokens),
            active_seconds: limit(spec.active_seconds),
        }
    }
}

/// An amount of money.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// How much, as a decimal number in the smallest unit of the currency.
    #[schemars(length(min = 1, max = 20), regex(pattern = crate::patterns::DECIMAL))]
    pub amount: String,
    /// The code of the currency.
    #[schemars(length(min = 3, max = 3), regex(pattern = "^[A-Z]{3}$"))]
    pub currency: String,
}

const fn default_harness_idle_seconds() -> i32 {
    30
}

/// How long a session's history is kept. What is left out is as the installation has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// So many seconds after this object is deleted the history is deleted too; until then it is kept, and takes nothing
    /// new. 0: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3_153_600_000_i64))]
    pub delete_after_seconds: Option<i64>,
    /// So many seconds after the last event the history moves to the object store, from where it is read as before. An
    /// ended session's does at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 3_153_600_000_i64))]
    pub archive_after_seconds: Option<i64>,
}

/// A user message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// What is said.
    #[schemars(length(min = 1, max = 65_536))]
    pub text: String,
}

/// A sandbox that a session may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionSandbox {
    /// Its name in the session.
    #[schemars(length(min = 1, max = 20), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// The `SandboxTemplate` that it is made from.
    pub template_ref: LocalRef,
    /// What it may reach of what its template allows; all of that if absent. It never allows more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSpec>,
}

/// What is known of a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentSessionStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The session's identifier in the wire API.
    #[serde(default, rename = "sessionID", skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The status that the wire API shows: idle, running, rescheduling or terminated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The epoch of the last claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// The sequence number of the last event when the status was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sequence: Option<i64>,
    /// How many items of `spec.input` the log has taken in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_inputs: Option<i64>,
    /// The generation of the spec that the log has taken in: its input, and limits that were raised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_generation: Option<i64>,
    /// The brain's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub harness: Option<HarnessStatus>,
    /// Tokens so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
    /// `Ready` and what it is made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// The pod that may claim the session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HarnessStatus {
    /// How many pods there have been; the next one's name is made from it.
    #[serde(default)]
    pub generation: i64,
    /// The pod that there is, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// Its UID: only this pod may claim the session, or any of the agent's `warmPods` if it is one.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Whether it is one of the agent's `warmPods`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warm: bool,
    /// How many pods in a row failed before they did any work.
    #[serde(default)]
    pub failures: i64,
}

/// Tokens so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is what the wire API means by it")]
pub struct UsageStatus {
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cache_read_input_tokens: i64,
    pub cache_creation_input_tokens: i64,
}
