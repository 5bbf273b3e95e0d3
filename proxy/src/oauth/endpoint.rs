//! The way to a token endpoint.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Either, Full, Limited};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::grant::{Ask, GrantError};
use crate::upstream::{Reach, Upstream, Way};

/// From the request to the last byte of the answer.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// More than any answer with two tokens has.
const MAX_ANSWER: usize = 64 * 1024;

/// Why a provider gave nothing. Nothing of what it answered is repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It answered something else.
    #[error(transparent)]
    Answer(#[from] GrantError),
    /// It could not be reached.
    #[error("{0}")]
    Unreachable(String),
    /// Its answer has no end, or is not one.
    #[error("the provider's answer is larger than {MAX_ANSWER} bytes, or broke off")]
    Body,
    /// It took too long.
    #[error("the provider did not answer within {} s", .0.as_secs())]
    Late(Duration),
}

/// A token endpoint.
pub struct Endpoint {
    uri: Uri,
    upstream: Upstream,
    deadline: Duration,
}

impl Endpoint {
    /// An endpoint that is reached like any upstream.
    #[must_use]
    pub fn new(uri: Uri, way: &Way, allow_private: bool, deadline: Duration) -> Self {
        // A server of the cluster may have tokens from a provider outside of it.
        let reach = if allow_private { Reach::Any } else { Reach::Public };
        Self { uri, upstream: Upstream::new(way, reach), deadline }
    }

    /// Asks, and reads the whole answer.
    ///
    /// # Errors
    /// [`AskError`]. Whether the provider carried it out is not known then.
    pub async fn ask(&self, ask: Ask) -> Result<(StatusCode, Zeroizing<Vec<u8>>), AskError> {
        let host = self.uri.host().unwrap_or_default();
        let mut request = Request::new(Either::Right(Full::new(Bytes::from_owner(ask.body))));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(authorization) = ask.authorization {
            headers.insert(header::AUTHORIZATION, authorization);
        }
        let whole = async {
            let response =
                self.upstream.send(host, request).await.map_err(|error| AskError::Unreachable(error.to_string()))?;
            let status = response.status();
            let mut body = Limited::new(response.into_body(), MAX_ANSWER);
            // Space for the largest answer, so that no copy is left behind by growing.
            let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.map_err(|_| AskError::Body)?.into_data() {
                    bytes.extend_from_slice(&data);
                }
            }
            Ok((status, bytes))
        };
        timeout(self.deadline, whole).await.unwrap_or(Err(AskError::Late(self.deadline)))
    }
}
