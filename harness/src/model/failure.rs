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

    /// A stream that is not what it should be; it may have been cut.
    #[must_use]
    pub fn unreadable(error: &dyn std::fmt::Display) -> Self {
        Self::transport(format!("The model API's stream cannot be read: {error}"))
    }

    /// An HTTP status other than 200, with its body.
    #[must_use]
    pub fn status(status: StatusCode, body: &[u8], retry_after: Option<Duration>) -> Self {
        let body_text = String::from_utf8_lossy(body);
        let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
        let said = said(&parsed).unwrap_or_else(|| body_text.trim());
        let said: String = said.chars().take(MAX_MESSAGE).collect();
        let (kind, retryable) = class_of_status(status.as_u16());
        let retryable = retryable && !is_out_of_credit(&parsed["error"]);
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
        Self::in_the_middle(kind, retryable, class, &said)
    }

    /// An error in the middle of an answer of an OpenAI-compatible server, whose `code` often is an HTTP status.
    #[must_use]
    pub fn chat(error: &Value) -> Self {
        let said: String =
            error.as_str().or_else(|| said(error)).unwrap_or_default().chars().take(MAX_MESSAGE).collect();
        let code = &error["code"];
        let status = code.as_u64().or_else(|| code.as_str()?.parse().ok()).and_then(|code| u16::try_from(code).ok());
        let class = error["type"].as_str().or_else(|| code.as_str()).unwrap_or("an error");
        let (kind, retryable) = match (status, class) {
            (Some(status @ 400..=599), _) => class_of_status(status),
            (_, "rate_limit_exceeded" | "rate_limit_error") => (SessionErrorType::ModelRateLimitedError, true),
            (_, class) => (SessionErrorType::ModelRequestFailedError, !class.to_ascii_lowercase().contains("invalid")),
        };
        Self::in_the_middle(kind, retryable && !is_out_of_credit(error), class, &said)
    }

    fn in_the_middle(kind: SessionErrorType, retryable: bool, class: &str, said: &str) -> Self {
        let class: String = class.chars().take(100).collect();
        let message = format!("The model API ended its answer with {class}: {said}");
        Self { kind, message, retryable, retry_after: None, usage: Usage::default() }
    }
}

fn class_of_status(status: u16) -> (SessionErrorType, bool) {
    match status {
        429 => (SessionErrorType::ModelRateLimitedError, true),
        503 | 529 => (SessionErrorType::ModelOverloadedError, true),
        // What a proxy says when it cannot reach the host behind it.
        502 | 504 => (SessionErrorType::CredentialHostUnreachableError, true),
        408 | 409 => (SessionErrorType::ModelRequestFailedError, true),
        code => (SessionErrorType::ModelRequestFailedError, code >= 500),
    }
}

/// The sentence in an error's body: servers have it in different places.
fn said(body: &Value) -> Option<&str> {
    let places = [&body["error"]["message"], &body["error"], &body["message"], &body["detail"]];
    places.into_iter().find_map(Value::as_str)
}

/// A limit that no waiting lifts.
fn is_out_of_credit(error: &Value) -> bool {
    [&error["code"], &error["type"]].into_iter().any(|class| class == "insufficient_quota")
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

    #[rstest]
    #[case(json!({"error": {"message": "m", "code": 429}}), Kind::ModelRateLimitedError, true)]
    #[case(json!({"error": {"message": "m", "code": "503"}}), Kind::ModelOverloadedError, true)]
    #[case(json!({"error": {"message": "m", "type": "rate_limit_exceeded"}}), Kind::ModelRateLimitedError, true)]
    #[case(json!({"error": {"message": "m", "type": "rate_limit_exceeded", "code": "insufficient_quota"}}), Kind::ModelRateLimitedError, false)]
    #[case(json!({"error": {"message": "m", "type": "invalid_request_error"}}), Kind::ModelRequestFailedError, false)]
    #[case(json!({"error": {"message": "m", "type": "BadRequestError", "code": 400}}), Kind::ModelRequestFailedError, false)]
    #[case(json!({"error": {"message": "m", "type": "server_error"}}), Kind::ModelRequestFailedError, true)]
    #[case(json!({"error": "m"}), Kind::ModelRequestFailedError, true)]
    fn an_error_of_a_chat_server_says_whether_to_try_again(
        #[case] frame: serde_json::Value,
        #[case] kind: Kind,
        #[case] retryable: bool,
    ) {
        let failure = Failure::chat(&frame["error"]);
        assert_eq!((failure.kind, failure.retryable), (kind, retryable));
        assert!(failure.message.ends_with(": m"), "{}", failure.message);
    }

    #[rstest]
    #[case(r#"{"error": "model not found"}"#, "model not found")]
    #[case(r#"{"object": "error", "message": "no such model"}"#, "no such model")]
    #[case(r#"{"detail": "Not Found"}"#, "Not Found")]
    #[case(r#"{"detail": [1]}"#, r#"{"detail": [1]}"#)]
    #[case("<html>", "<html>")]
    fn what_a_server_says_is_found(#[case] body: &str, #[case] expected: &str) {
        let failure = Failure::status(StatusCode::NOT_FOUND, body.as_bytes(), None);
        assert!(failure.message.ends_with(&format!(": {expected}")), "{}", failure.message);
    }

    #[test]
    fn a_quota_that_is_used_up_is_not_waited_for() {
        let body = json!({"error": {"message": "m", "code": "insufficient_quota"}}).to_string();
        assert!(!Failure::status(StatusCode::TOO_MANY_REQUESTS, body.as_bytes(), None).retryable);
    }

    #[test]
    fn a_page_of_html_is_cut() {
        let failure = Failure::status(StatusCode::BAD_GATEWAY, "x".repeat(100_000).as_bytes(), None);
        assert!(failure.message.len() < 2_000);
    }
}
