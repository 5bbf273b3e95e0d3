//! How a model is called, beside its name and its credential.

use longhand_protocol::harness as snapshot;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::agent::{CredentialRef, Effort, ModelSpec};
use crate::agent_context::PricesSpec;
use crate::patterns;

/// The API that a model server speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ModelApi {
    /// Anthropic Messages, `/v1/messages` under the base URL.
    #[default]
    Anthropic,
    /// Chat completions as OpenAI and the servers compatible with it have them, `/v1/chat/completions` under the base URL.
    OpenAI,
}

/// A model that is asked when those before it fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FallbackSpec {
    /// The name that the model API knows.
    #[schemars(length(min = 1, max = 256))]
    pub id: String,
    /// Which API is spoken to it; that of the first model if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<ModelApi>,
    /// The most tokens that one answer may have; as the first model has it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_tokens: Option<i32>,
    /// How hard it works; as the first model does if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// What its tokens cost; as those of the first model if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices: Option<PricesSpec>,
    /// Where the model API is. If absent, where `credential` says if that is given, else where the first model is.
    #[serde(default, rename = "baseURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 512), regex(pattern = patterns::BASE_URL))]
    pub base_url: Option<String>,
    /// The credential that the proxy puts into each request; that of the first model if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<CredentialRef>,
}

impl FallbackSpec {
    /// The name of the proxy's route to it; `None` if it is reached as the first model is. It follows from where the route leads
    /// alone: a session keeps it, and must not be led elsewhere by another version of its agent.
    #[must_use]
    pub fn route(&self) -> Option<String> {
        if self.base_url.is_none() && self.credential.is_none() {
            return None;
        }
        let credential = self.credential.as_ref().map(|reference| (&reference.vault, &reference.name));
        let digest = Sha256::digest(serde_json::json!([self.base_url, credential]).to_string());
        Some(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }
}

/// How long a model thinks, in the Messages API's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ThinkingSpec {
    /// `adaptive`, `enabled` or `disabled`.
    #[serde(rename = "type")]
    pub kind: ThinkingKind,
    /// How many tokens it may think, with `enabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_024, max = 1_000_000))]
    pub budget_tokens: Option<i32>,
}

/// Whether a model thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the model API's own words")]
pub enum ThinkingKind {
    Adaptive,
    Enabled,
    Disabled,
}

/// What the model API does to a context that grows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContextManagement {
    /// Edits as the Messages API has them under `context_management.edits`.
    #[schemars(length(min = 1, max = 3), schema_with = "edits")]
    pub edits: Vec<Value>,
}

/// The type of an edit is checked here, the rest by the model API.
fn edits(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": { "type": "string", "enum": ["clear_tool_uses_20250919", "clear_thinking_20251015", "compact_20260112"] },
            },
            "x-kubernetes-preserve-unknown-fields": true,
        },
    })
}

/// The schema of values of the `anthropic-beta` header.
pub(crate) fn betas(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 16,
        "items": { "type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[a-z0-9.-]+$" },
    })
}

impl ModelSpec {
    /// The model as a session keeps it.
    pub(crate) fn snapshot(&self) -> snapshot::Model {
        snapshot::Model {
            id: self.id.clone(),
            max_tokens: tokens(self.max_tokens),
            api_version: self.api_version.clone(),
            effort: self.effort.map(Into::into),
            speed: self.speed.map(Into::into),
            inference_geo: self.inference_geo.clone(),
            prices: self.prices.as_ref().map(Into::into),
            api: self.api.unwrap_or_default().into(),
            route: None,
            thinking: self.thinking.map(Into::into),
            context_edits: self.context_management.as_ref().map(|context| context.edits.clone()).unwrap_or_default(),
            betas: self.betas.clone(),
            fallbacks: self.fallbacks.iter().map(Into::into).collect(),
        }
    }
}

fn tokens(count: i32) -> u32 {
    u32::try_from(count).unwrap_or(1)
}

impl From<ModelApi> for snapshot::ModelApi {
    fn from(api: ModelApi) -> Self {
        match api {
            ModelApi::Anthropic => Self::Anthropic,
            ModelApi::OpenAI => Self::OpenAi,
        }
    }
}

impl From<&FallbackSpec> for snapshot::FallbackModel {
    fn from(fallback: &FallbackSpec) -> Self {
        Self {
            id: fallback.id.clone(),
            api: fallback.api.map(Into::into),
            max_tokens: fallback.max_tokens.map(tokens),
            effort: fallback.effort.map(Into::into),
            prices: fallback.prices.as_ref().map(Into::into),
            route: fallback.route(),
        }
    }
}

impl From<ThinkingSpec> for snapshot::Thinking {
    fn from(thinking: ThinkingSpec) -> Self {
        match thinking.kind {
            ThinkingKind::Adaptive => Self::Adaptive,
            // A rule of the kind asks for the budget.
            ThinkingKind::Enabled => Self::Enabled { budget_tokens: thinking.budget_tokens.map_or(1_024, tokens) },
            ThinkingKind::Disabled => Self::Disabled,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::FallbackSpec;
    use crate::agent::ModelSpec;

    #[test]
    fn a_session_keeps_how_its_models_are_called() {
        let edit = json!({"type": "clear_thinking_20251015", "keep": "all"});
        let spec: ModelSpec = serde_json::from_value(json!({
            "id": "m", "api": "Anthropic", "thinking": {"type": "enabled", "budgetTokens": 2048}, "betas": ["b"],
            "contextManagement": {"edits": [edit]},
            "fallbacks": [{"id": "n", "api": "OpenAI", "maxTokens": 7, "effort": "max"}, {"id": "o"}],
        }))
        .unwrap();
        let expected = json!({
            "id": "m", "max_tokens": 8192, "api_version": "2023-06-01", "effort": null, "speed": null, "inference_geo": null,
            "prices": null, "api": "anthropic", "thinking": {"type": "enabled", "budget_tokens": 2048}, "context_edits": [edit], "betas": ["b"],
            "fallbacks": [{"id": "n", "api": "openai", "max_tokens": 7, "effort": "max"}, {"id": "o"}],
        });
        assert_eq!(serde_json::to_value(spec.snapshot()).unwrap(), expected);
    }

    #[test]
    fn a_route_follows_from_where_it_leads() {
        let route = |fields: serde_json::Value| serde_json::from_value::<FallbackSpec>(fields).unwrap().route();
        let (url, credential) = ("https://a.test", json!({"vault": "v", "name": "c"}));
        assert_eq!(route(json!({"id": "m"})), None);
        let all = [
            route(json!({"id": "m", "baseURL": url})),
            route(json!({"id": "m", "credential": credential})),
            route(json!({"id": "m", "baseURL": url, "credential": credential})),
            route(json!({"id": "m", "baseURL": url, "credential": {"vault": "w", "name": "c"}})),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().flatten().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(route(json!({"id": "n", "api": "OpenAI", "baseURL": url})), all[0]);
        assert!(all.iter().flatten().all(|route| route.len() == 16));
    }

    #[test]
    fn a_spec_from_before_is_written_as_it_was() {
        let old = json!({"id": "m", "maxTokens": 8192, "apiVersion": "2023-06-01"});
        let spec: ModelSpec = serde_json::from_value(old.clone()).unwrap();
        assert_eq!(serde_json::to_value(spec).unwrap(), old, "or every agent would get a new version");
    }
}
