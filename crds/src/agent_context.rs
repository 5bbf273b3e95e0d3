//! How much of its conversation an `Agent`'s model is sent, and what its tokens cost.

use longhand_protocol::harness;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::patterns;

/// How much of the conversation the model is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContextSpec {
    /// The most tokens of a request; a longer one is made shorter.
    #[serde(default = "default_max_tokens")]
    #[schemars(range(min = 1_000, max = 100_000_000))]
    pub max_tokens: i32,
    /// Tool results that stay when older ones are cleared.
    #[serde(default = "default_keep_tool_results")]
    #[schemars(range(min = 0, max = 1_000))]
    pub keep_tool_results: i32,
    /// What is done where clearing results is not enough.
    #[serde(default = "default_compaction")]
    pub compaction: Compaction,
    /// When the tool `recall` is offered, which searches the log.
    #[serde(default = "default_recall")]
    pub recall: Recall,
}

/// What is done with a conversation that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Compaction {
    /// The model writes a summary.
    Summary,
    /// What the model does not take is an error.
    Off,
}

/// When the model is offered the tool `recall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Recall {
    /// Once something was left out.
    WhenTrimmed,
    /// From the beginning.
    Always,
    /// Never.
    Never,
}

const fn default_max_tokens() -> i32 {
    150_000
}

const fn default_keep_tool_results() -> i32 {
    5
}

const fn default_compaction() -> Compaction {
    Compaction::Summary
}

const fn default_recall() -> Recall {
    Recall::WhenTrimmed
}

impl From<&ContextSpec> for harness::ContextPolicy {
    fn from(spec: &ContextSpec) -> Self {
        Self {
            max_tokens: u64::try_from(spec.max_tokens).unwrap_or_default(),
            keep_tool_results: u32::try_from(spec.keep_tool_results).unwrap_or_default(),
            compaction: match spec.compaction {
                Compaction::Summary => harness::Compaction::Summary,
                Compaction::Off => harness::Compaction::Off,
            },
            recall: match spec.recall {
                Recall::WhenTrimmed => harness::Recall::WhenTrimmed,
                Recall::Always => harness::Recall::Always,
                Recall::Never => harness::Recall::Never,
            },
        }
    }
}

/// Prices of a million tokens in the smallest unit of the currency: 300 is 3 USD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PricesSpec {
    /// Read.
    #[schemars(length(min = 1, max = 20), regex(pattern = patterns::DECIMAL))]
    pub input: String,
    /// Written.
    #[schemars(length(min = 1, max = 20), regex(pattern = patterns::DECIMAL))]
    pub output: String,
    /// From a cache; as `input` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20), regex(pattern = patterns::DECIMAL))]
    pub cache_read: Option<String>,
    /// To a cache; as `input` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20), regex(pattern = patterns::DECIMAL))]
    pub cache_write: Option<String>,
    /// A budget in another currency is not enforced.
    #[serde(default = "default_currency")]
    #[schemars(length(min = 3, max = 3), regex(pattern = "^[A-Z]{3}$"))]
    pub currency: String,
}

fn default_currency() -> String {
    "USD".to_owned()
}

impl From<&PricesSpec> for harness::Prices {
    fn from(spec: &PricesSpec) -> Self {
        let or_input = |price: &Option<String>| price.as_ref().unwrap_or(&spec.input).clone();
        Self {
            input: spec.input.clone(),
            output: spec.output.clone(),
            cache_read: or_input(&spec.cache_read),
            cache_write: or_input(&spec.cache_write),
            currency: spec.currency.clone(),
        }
    }
}
