//! Chat completions, as OpenAI and the servers that are compatible with it speak them, streamed.

pub mod answer;
pub mod request;

use serde_json::Value;

use self::answer::Answer;
use super::stream::{self, Endpoint};
use super::{Failure, Reply, Target, TextDelta};

/// Sends a request in the shape of the Messages API and gives the whole answer in that shape; `show` sees its text as it
/// comes.
pub(super) async fn call(
    endpoint: &Endpoint,
    target: &Target,
    body: &Value,
    show: impl FnMut(TextDelta),
) -> Result<Reply, Failure> {
    let path = ["v1", "chat", "completions"];
    let (request, key) = endpoint.request(target.route.as_deref(), &path, "Bearer ").await?;
    let request = request.header("authorization", key).json(&request::translate(body));
    stream::call(request, &mut Answer::default(), show).await
}
