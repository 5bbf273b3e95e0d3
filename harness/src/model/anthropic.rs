//! The Anthropic Messages API, streamed.

use longhand_protocol::client::{self, TokenSource};
use serde_json::Value;

use super::accumulate::Accumulator;
use super::stream::{self, Endpoint};
use super::{Failure, Reply, Target, TextDelta, portable};

/// A client of a Messages API.
#[derive(Clone, Debug)]
pub struct Messages(Endpoint);

impl Messages {
    /// A client of the API under `base`, to which `token` is sent as the key.
    ///
    /// # Errors
    /// When `base` is not an `http` or `https` URL.
    pub fn new(base: &str, token: TokenSource) -> client::Result<Self> {
        Endpoint::new(base, &["v1", "messages"], token).map(Self)
    }

    /// Sends a request and gives the whole answer; `show` sees its text as it comes.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn call(&self, target: &Target, body: &Value, show: impl FnMut(TextDelta)) -> Result<Reply, Failure> {
        let (request, key) = self.0.request("").await?;
        let mut request = request.header("x-api-key", key).header("anthropic-version", &target.api_version);
        if !target.betas.is_empty() {
            request = request.header("anthropic-beta", target.betas.join(","));
        }
        let body = portable::identifiers(body);
        stream::call(request.json(&*body), &mut Accumulator::default(), show).await
    }
}
