//! Calling a model.
//!
//! Requests and answers have the shape of the Anthropic Messages API everywhere but in [`openai`], which translates both.

pub mod accumulate;
pub mod anthropic;
pub mod failure;
pub mod json;
pub mod openai;
mod portable;
pub mod stream;

use std::time::Duration;

use longhand_protocol::client::{self, TokenSource};
use longhand_protocol::event::{SessionErrorType, Usage};
use longhand_protocol::harness::{Model, ModelApi};
use serde_json::Value;

use self::stream::Endpoint;

/// How a request is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which API is spoken.
    pub api: ModelApi,
    /// The route of the credential proxy, if it is not the first model's.
    pub route: Option<String>,
    /// The value of the `anthropic-version` header.
    pub api_version: String,
    /// The values of the `anthropic-beta` header.
    pub betas: Vec<String>,
}

impl Target {
    /// How requests to this model are sent.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        Self {
            api: model.api,
            route: model.route.clone(),
            api_version: model.api_version.clone(),
            betas: model.betas(),
        }
    }
}

/// The model APIs under one base URL.
#[derive(Clone, Debug)]
pub struct Models(Endpoint);

impl Models {
    /// The APIs under `base`, to which `token` is sent as the key.
    ///
    /// # Errors
    /// When `base` is not an `http` or `https` URL.
    pub fn new(base: &str, token: TokenSource) -> client::Result<Self> {
        Endpoint::new(base, token).map(Self)
    }

    /// Sends a request in the shape of the Messages API and gives the whole answer in that shape; `show` sees its text as it
    /// comes.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn call(&self, target: &Target, body: &Value, show: impl FnMut(TextDelta)) -> Result<Reply, Failure> {
        match target.api {
            ModelApi::Anthropic => anthropic::call(&self.0, target, body, show).await,
            ModelApi::OpenAi => openai::call(&self.0, target, body, show).await,
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// Content blocks as they came.
    pub content: Vec<Value>,
    /// Why it ended.
    pub stop_reason: Option<String>,
    /// Its tokens.
    pub usage: Usage,
    /// The model's identifiers of tool calls whose input is not a JSON object, or was cut off.
    pub incomplete: Vec<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The class that clients are shown.
    pub kind: SessionErrorType,
    /// What happened, and what to do.
    pub message: String,
    /// Whether another try may succeed.
    pub retryable: bool,
    /// How long the model API asks to wait.
    pub retry_after: Option<Duration>,
    /// Tokens that were used all the same.
    pub usage: Usage,
}

/// A piece of the text that the model writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextDelta {
    /// Which of the answer's text blocks that have text.
    pub index: u32,
    /// What comes next in it.
    pub text: String,
}
