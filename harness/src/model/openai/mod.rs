//! Chat completions, as OpenAI and the servers that are compatible with it speak them, streamed.

pub mod answer;
pub mod request;

use longhand_protocol::client::{self, TokenSource};
use serde_json::Value;

use self::answer::Answer;
use super::stream::{self, Endpoint};
use super::{Failure, Reply, TextDelta};

/// A client of a chat completions API.
#[derive(Clone, Debug)]
pub struct ChatCompletions(Endpoint);

impl ChatCompletions {
    /// A client of the API under `base`, to which `token` is sent as the key.
    ///
    /// # Errors
    /// When `base` is not an `http` or `https` URL.
    pub fn new(base: &str, token: TokenSource) -> client::Result<Self> {
        Endpoint::new(base, &["v1", "chat", "completions"], token).map(Self)
    }

    /// Sends a request in the shape of the Messages API and gives the whole answer in that shape; `show` sees its text as it
    /// comes.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn call(&self, body: &Value, show: impl FnMut(TextDelta)) -> Result<Reply, Failure> {
        let (request, key) = self.0.request("Bearer ").await?;
        let request = request.header("authorization", key).json(&request::translate(body));
        stream::call(request, &mut Answer::default(), show).await
    }
}
