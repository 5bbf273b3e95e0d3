//! How models are called, as far as a session's snapshot of its agent says it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::harness::{Effort, Model, Prices};

/// The API that a model server speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelApi {
    /// Anthropic Messages, `POST /v1/messages`.
    #[default]
    Anthropic,
    /// Chat completions as OpenAI has them, `POST /v1/chat/completions`.
    OpenAi,
}

/// A model that is asked when those before it fail. What it leaves open is as the first model has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallbackModel {
    /// The name that the model API knows.
    pub id: String,
    /// Which API is spoken to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<ModelApi>,
    /// The most tokens that one answer may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// How hard it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// What its tokens cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices: Option<Prices>,
    /// Its route of the credential proxy; that of the first model if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
}

/// What follows the first model's base URL in that of a model with a route of its own; the route is the next segment.
pub const FALLBACK_ROUTES: &str = "-fallbacks";

/// How long a model thinks, in the Messages API's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Thinking {
    /// As long as it finds right.
    Adaptive,
    /// Up to so many tokens.
    Enabled {
        /// At least 1,024.
        budget_tokens: u32,
    },
    /// Not at all.
    Disabled,
}

impl Model {
    /// The model that is asked at a position: 0 is this one, and each fallback has the next. A position behind the last is the
    /// last's: an agent may have lost fallbacks since.
    #[must_use]
    pub fn at(&self, position: usize) -> Self {
        let last = position.min(self.fallbacks.len());
        let own = Self { fallbacks: Vec::new(), ..self.clone() };
        let Some(fallback) = last.checked_sub(1).and_then(|index| self.fallbacks.get(index)) else { return own };
        let api = fallback.api.unwrap_or(self.api);
        let same = api == self.api;
        Self {
            id: fallback.id.clone(),
            route: fallback.route.clone(),
            api,
            max_tokens: fallback.max_tokens.unwrap_or(self.max_tokens),
            effort: fallback.effort.or(self.effort),
            prices: fallback.prices.clone().or(own.prices),
            // A mode that few models have.
            speed: None,
            inference_geo: own.inference_geo.filter(|_| same),
            thinking: own.thinking.filter(|_| same),
            context_edits: if same { own.context_edits } else { Vec::new() },
            betas: if same { own.betas } else { Vec::new() },
            ..own
        }
    }

    /// The values of the `anthropic-beta` header: those that the agent names, and those without which the API does not take
    /// what the agent asks for.
    #[must_use]
    pub fn betas(&self) -> Vec<String> {
        let mut betas = self.betas.clone();
        let needed = self
            .context_edits
            .iter()
            .filter_map(|edit| match edit["type"].as_str()? {
                "compact_20260112" => Some("compact-2026-01-12"),
                _ => Some("context-management-2025-06-27"),
            })
            .chain(self.speed.map(|_| "fast-mode-2026-02-01"));
        for beta in needed {
            if betas.iter().all(|named| named != beta) {
                betas.push(beta.to_owned());
            }
        }
        betas
    }

    /// What a request of the Messages API says of all this beside `model` and `max_tokens`, by field.
    #[must_use]
    pub fn parameters(&self) -> Vec<(&'static str, Value)> {
        let mut parameters = Vec::new();
        if let Some(effort) = self.effort {
            parameters.push(("output_config", json!({ "effort": effort })));
        }
        if let Some(speed) = self.speed {
            parameters.push(("speed", json!(speed)));
        }
        if let Some(geo) = &self.inference_geo {
            parameters.push(("inference_geo", json!(geo)));
        }
        if let Some(thinking) = self.thinking {
            parameters.push(("thinking", json!(thinking)));
        }
        if !self.context_edits.is_empty() {
            parameters.push(("context_management", json!({ "edits": self.context_edits })));
        }
        parameters
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::ModelApi;
    use crate::harness::Model;

    fn model(fields: &Value) -> Model {
        let mut whole = json!({"id": "first", "max_tokens": 9, "api_version": "v"});
        whole.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    fn prices(input: &str) -> Value {
        json!({"input": input, "output": "0", "cache_read": "0", "cache_write": "0", "currency": "USD"})
    }

    #[test]
    fn a_snapshot_from_before_is_read() {
        let model = model(&json!({}));
        assert_eq!((model.api, model.fallbacks.len(), model.parameters().len()), (ModelApi::Anthropic, 0, 0));
        assert_eq!(model.betas(), [""; 0]);
    }

    #[rstest]
    #[case(0, json!({"id": "first", "api": "anthropic", "max_tokens": 9, "effort": "low", "speed": "fast", "thinking": true}))]
    #[case(1, json!({"id": "second", "api": "anthropic", "max_tokens": 9, "effort": "high", "speed": null, "thinking": true}))]
    #[case(2, json!({"id": "third", "api": "openai", "max_tokens": 5, "effort": "low", "speed": null, "thinking": false}))]
    #[case(7, json!({"id": "third", "api": "openai", "max_tokens": 5, "effort": "low", "speed": null, "thinking": false}))]
    fn a_fallback_is_asked_as_the_first_model_is(#[case] position: usize, #[case] expected: Value) {
        let model = model(&json!({
            "effort": "low", "speed": "fast", "thinking": {"type": "adaptive"}, "betas": ["b"], "context_edits": [{"type": "x"}],
            "prices": prices("1"),
            "fallbacks": [{"id": "second", "effort": "high"},
                {"id": "third", "api": "openai", "max_tokens": 5, "route": "r", "prices": prices("2")}],
        }));
        let asked = model.at(position);
        assert_eq!(asked.prices.as_ref().unwrap().input, if asked.id == "third" { "2" } else { "1" });
        assert!(asked.fallbacks.is_empty());
        let thinking = asked.thinking.is_some();
        assert_eq!(asked.route.as_deref(), (!thinking).then_some("r"));
        assert_eq!((asked.betas.is_empty(), asked.context_edits.is_empty()), (!thinking, !thinking));
        let found = json!({
            "id": asked.id, "api": asked.api, "max_tokens": asked.max_tokens, "effort": asked.effort, "speed": asked.speed,
            "thinking": thinking,
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn what_the_api_takes_only_with_a_beta_is_sent_with_it() {
        let model = model(&json!({
            "speed": "standard", "betas": ["interleaved-thinking-2025-05-14", "compact-2026-01-12"],
            "context_edits": [{"type": "clear_tool_uses_20250919"}, {"type": "clear_thinking_20251015"}, {"type": "compact_20260112"}],
        }));
        assert_eq!(
            model.betas(),
            [
                "interleaved-thinking-2025-05-14",
                "compact-2026-01-12",
                "context-management-2025-06-27",
                "fast-mode-2026-02-01"
            ]
        );
    }

    #[test]
    fn parameters_are_in_the_api_s_own_words() {
        let model = model(&json!({
            "effort": "xhigh", "speed": "fast", "inference_geo": "eu", "thinking": {"type": "enabled", "budget_tokens": 2048},
            "context_edits": [{"type": "compact_20260112", "pause_after_compaction": false}],
        }));
        let parameters: serde_json::Map<String, Value> =
            model.parameters().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(
            Value::Object(parameters),
            json!({
                "output_config": {"effort": "xhigh"}, "speed": "fast", "inference_geo": "eu",
                "thinking": {"type": "enabled", "budget_tokens": 2048},
                "context_management": {"edits": [{"type": "compact_20260112", "pause_after_compaction": false}]},
            })
        );
    }
}
