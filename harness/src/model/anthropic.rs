//! The Anthropic Messages API, streamed.

use serde_json::Value;

use super::accumulate::Accumulator;
use super::stream::{self, Endpoint};
use super::{Failure, Reply, Target, TextDelta, portable};

/// Sends a request and gives the whole answer; `show` sees its text as it comes.
pub(super) async fn call(
    endpoint: &Endpoint,
    target: &Target,
    body: &Value,
    show: impl FnMut(TextDelta),
) -> Result<Reply, Failure> {
    let (request, key) = endpoint.request(target.route.as_deref(), &["v1", "messages"], "").await?;
    let mut request = request.header("x-api-key", key).header("anthropic-version", &target.api_version);
    if !target.betas.is_empty() {
        request = request.header("anthropic-beta", target.betas.join(","));
    }
    let body = portable::identifiers(body);
    stream::call(request.json(&*body), &mut Accumulator::default(), show).await
}
