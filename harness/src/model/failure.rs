//! Which failures of a model API are worth another try.

use std::time::Duration;

use longhand_protocol::event::{SessionErrorType, Usage};
use reqwest::StatusCode;
use serde_json::Value;

use super::Failure;

/// What of a foreign error text is kept.
const MAX_MESSAGE: usize = 1_000;

impl Failure {
    /// A failure on the way to the model API or back; another try may succeed.
    #[must_use]
    pub fn transport(message: impl Into<String>) -> Self {
        Self {
            kind: SessionErrorType::ModelRequestFailedError,
            message: message.into(),
            retryable: true,
            retry_after: None,
            usage: Usage::default(),
        }
    }

    /// An answer that makes no sense, which another try would not change.
    #[must_use]
    pub fn protocol(message: impl Into<String>) -> Self {
        Self { retryable: false, ..Self::transport(message) }
    }

    /// An HTTP status other than 200, with its body.
    #[must_use]
    pub fn status(status: StatusCode, body: &[u8], retry_after: Option<Duration>) -> Self {
        let body_text = String::from_utf8_lossy(body);
        let parsed: Option<Value> = serde_json::from_slice(body).ok();
        let said =
            parsed.as_ref().and_then(|body| body["error"]["message"].as_str()).unwrap_or_else(|| body_text.trim());
        let said: String = said.chars().take(MAX_MESSAGE).collect();
        let (kind, retryable) = match status.as_u16() {
            429 => (SessionErrorType::ModelRateLimitedError, true),
            503 | 529 => (SessionErrorType::ModelOverloadedError, true),
            // What a proxy says when it cannot reach the host behind it.
            502 | 504 => (SessionErrorType::CredentialHostUnreachableError, true),
            408 | 409 => (SessionErrorType::ModelRequestFailedError, true),
            code => (SessionErrorType::ModelRequestFailedError, code >= 500),
        };
        let separator = if said.is_empty() { "" } else { ": " };
        Self {
            kind,
            message: format!("The model API answered {status}{separator}{said}"),
            retryable,
            retry_after,
            usage: Usage::default(),
        }
    }

    /// Whether the model API says that it was sent more than the model's context window holds. There is no code for that
    /// that every API has, so that their words are known here.
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        const WORDS: [&str; 6] = [
            "prompt is too long",
            "context_length_exceeded",
            "maximum context length",
            "exceed context limit",
            "exceeds the available context size",
            "exceed_context_size_error",
        ];
        !self.retryable && WORDS.iter().any(|words| self.message.contains(words))
    }

    /// An `error` event in the middle of an answer.
    #[must_use]
    pub fn event(error: &Value) -> Self {
        let class = error["type"].as_str().unwrap_or("unknown");
        let said: String = error["message"].as_str().unwrap_or_default().chars().take(MAX_MESSAGE).collect();
        let (kind, retryable) = match class {
            "overloaded_error" => (SessionErrorType::ModelOverloadedError, true),
            "rate_limit_error" => (SessionErrorType::ModelRateLimitedError, true),
            "invalid_request_error"
            | "authentication_error"
            | "permission_error"
            | "not_found_error"
            | "request_too_large"
            | "billing_error" => (SessionErrorType::ModelRequestFailedError, false),
            _ => (SessionErrorType::ModelRequestFailedError, true),
        };
        Self {
            kind,
            message: format!("The model API ended its answer with {class}: {said}"),
            retryable,
            retry_after: None,
            usage: Usage::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::event::SessionErrorType as Kind;
    use reqwest::StatusCode;
    use rstest::rstest;
    use serde_json::json;

    use super::Failure;

    #[rstest]
    #[case(400, Kind::ModelRequestFailedError, false)]
    #[case(401, Kind::ModelRequestFailedError, false)]
    #[case(403, Kind::ModelRequestFailedError, false)]
    #[case(404, Kind::ModelRequestFailedError, false)]
    #[case(413, Kind::ModelRequestFailedError, false)]
    #[case(429, Kind::ModelRateLimitedError, true)]
    #[case(500, Kind::ModelRequestFailedError, true)]
    #[case(502, Kind::CredentialHostUnreachableError, true)]
    #[case(503, Kind::ModelOverloadedError, true)]
    #[case(529, Kind::ModelOverloadedError, true)]
    fn a_status_says_whether_to_try_again(#[case] status: u16, #[case] kind: Kind, #[case] retryable: bool) {
        let body = json!({"type": "error", "error": {"type": "x", "message": "because"}}).to_string();
        let failure = Failure::status(StatusCode::from_u16(status).unwrap(), body.as_bytes(), None);
        assert_eq!((failure.kind, failure.retryable), (kind, retryable));
        assert!(failure.message.ends_with(": because"), "{}", failure.message);
    }

    #[rstest]
    #[case("overloaded_error", Kind::ModelOverloadedError, true)]
    #[case("rate_limit_error", Kind::ModelRateLimitedError, true)]
    #[case("api_error", Kind::ModelRequestFailedError, true)]
    #[case("of_tomorrow", Kind::ModelRequestFailedError, true)]
    #[case("invalid_request_error", Kind::ModelRequestFailedError, false)]
    fn an_error_event_says_whether_to_try_again(#[case] class: &str, #[case] kind: Kind, #[case] retryable: bool) {
        let failure = Failure::event(&json!({"type": class, "message": "m"}));
        assert_eq!((failure.kind, failure.retryable), (kind, retryable));
    }

    #[rstest]
    #[case(400, "prompt is too long: 210000 tokens > 200000 maximum", true)]
    #[case(400, "This model's maximum context length is 8192 tokens.", true)]
    #[case(400, "max_tokens: must be positive", false)]
    #[case(500, "prompt is too long", false)]
    fn a_prompt_that_is_too_long_is_known(#[case] status: u16, #[case] message: &str, #[case] expected: bool) {
        let body = json!({"type": "error", "error": {"type": "invalid_request_error", "message": message}}).to_string();
        let failure = Failure::status(StatusCode::from_u16(status).unwrap(), body.as_bytes(), None);
        assert_eq!(failure.is_too_long(), expected);
    }

    #[test]
    fn a_page_of_html_is_cut() {
        let failure = Failure::status(StatusCode::BAD_GATEWAY, "x".repeat(100_000).as_bytes(), None);
        assert!(failure.message.len() < 2_000);
    }
}
