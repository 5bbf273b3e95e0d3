//! The script: an ordered list of rules, each with the requests it matches and the reply it gives. See
//! `examples/` for scripts, and [`Script::parse`] for how one is read.

use std::{num::NonZeroU32, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::template::{Template, UnknownPlaceholder, ValueTemplate};

/// A whole script. The first rule that matches answers; if none does, the reply is `You said: ...`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// The rules, in the order in which they are tried.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The requests that the rule answers; without it, all.
    #[serde(default)]
    pub when: When,
    /// The reply.
    pub then: Then,
}

/// The conditions of a rule, all of which must hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// The last user message with text holds this text.
    pub user_contains: Option<String>,
    /// The number of assistant messages since the last user message with text: 0 for the first answer to it, 1 after the
    /// first tool results, and so on.
    pub turn: Option<usize>,
    /// A tool result of the last message holds this text.
    pub tool_result_contains: Option<String>,
    /// The rule answers at most so many requests.
    pub times: Option<NonZeroU32>,
}

/// The reply of a rule.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "RawThen")]
pub enum Then {
    /// An HTTP error, after a delay.
    Error {
        /// What is sent.
        error: HttpError,
        /// How long the client waits for it.
        delay: Duration,
    },
    /// An assistant message.
    Message(MessageTemplate),
}

/// An HTTP error in the shape of the Messages API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpError {
    /// The status, 400 to 599.
    pub status: u16,
    /// The error's type, such as `overloaded_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The error's message.
    pub message: String,
    /// The `retry-after` header.
    pub retry_after_seconds: Option<u32>,
}

/// An assistant message before its placeholders are filled.
#[derive(Debug, Clone)]
pub struct MessageTemplate {
    /// A thinking block, which comes first.
    pub thinking: Option<Template>,
    /// A text block.
    pub text: Option<Template>,
    /// Tool uses, which come last.
    pub tool_uses: Vec<ToolUse>,
    /// Why the message ends. With `max_tokens` the input of the last tool use is cut in the middle, as the real API does.
    pub stop_reason: StopReason,
    /// How fast it is sent.
    pub pace: Pace,
    /// How the stream ends.
    pub ending: Ending,
}

/// A tool use before its placeholders are filled.
#[derive(Debug, Clone)]
pub struct ToolUse {
    /// The tool's name.
    pub name: String,
    /// Its input, always an object.
    pub input: ValueTemplate,
}

/// How fast a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    /// From the request to the first content block.
    pub first_token: Duration,
    /// Between two tokens.
    pub per_token: Duration,
    /// What one delta holds.
    pub chunk: Chunk,
}

/// What one delta holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Chunk {
    /// One word with the white space behind it.
    #[default]
    Word,
    /// A number of characters.
    Chars(NonZeroU32),
}

/// How a stream ends. A token is one delta.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Ending {
    /// With `message_stop`.
    #[default]
    Complete,
    /// Nothing comes after so many tokens, until the client goes.
    Hang {
        /// Tokens sent before.
        after_tokens: u32,
    },
    /// The connection breaks after so many tokens.
    Disconnect {
        /// Tokens sent before.
        after_tokens: u32,
    },
    /// An `error` event comes after so many tokens.
    Error(StreamError),
}

/// An `error` event in the middle of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamError {
    /// Tokens sent before.
    #[serde(default)]
    pub after_tokens: u32,
    /// The error's type, such as `overloaded_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The error's message.
    pub message: String,
}

/// Why the model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the wire API's")]
pub enum StopReason {
    EndTurn,
    MaxTokens,
    StopSequence,
    ToolUse,
    PauseTurn,
    Refusal,
    ModelContextWindowExceeded,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawThen {
    text: Option<String>,
    thinking: Option<String>,
    #[serde(default)]
    tool_uses: Vec<RawToolUse>,
    stop_reason: Option<StopReason>,
    first_token_delay_ms: Option<u64>,
    delay_per_token_ms: Option<u64>,
    chunk: Option<NonZeroU32>,
    error: Option<HttpError>,
    error_mid_stream: Option<StreamError>,
    hang_after_tokens: Option<u32>,
    disconnect_after_tokens: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToolUse {
    name: String,
    #[serde(default)]
    input: Value,
}

/// Why a reply makes no sense.
#[derive(Debug, thiserror::Error)]
enum ThenError {
    #[error("a reply with `error` may have only `first_token_delay_ms` beside it")]
    ErrorBesideContent,
    #[error("`error.status` is {0}, but must be from 400 to 599")]
    NotAnErrorStatus(u16),
    #[error(
        "the reply is empty: give `text`, `thinking`, `tool_uses` or `error` (or a `stop_reason` for an empty message)"
    )]
    Empty,
    #[error("`{0}` is empty: leave it out")]
    EmptyText(&'static str),
    #[error("`error_mid_stream`, `hang_after_tokens` and `disconnect_after_tokens` exclude each other")]
    TwoEndings,
    #[error("`stop_reason: tool_use` needs `tool_uses`")]
    NoToolUse,
    #[error("the input of tool `{0}` must be an object")]
    InputNotAnObject(String),
    #[error(transparent)]
    Placeholder(#[from] UnknownPlaceholder),
}

impl TryFrom<RawThen> for Then {
    type Error = ThenError;

    fn try_from(raw: RawThen) -> Result<Self, ThenError> {
        let RawThen {
            text,
            thinking,
            tool_uses,
            stop_reason,
            first_token_delay_ms,
            delay_per_token_ms,
            chunk,
            error,
            error_mid_stream,
            hang_after_tokens,
            disconnect_after_tokens,
        } = raw;
        let first_token = Duration::from_millis(first_token_delay_ms.unwrap_or(0));
        let no_content = text.is_none() && thinking.is_none() && tool_uses.is_empty();
        let endings = [error_mid_stream.is_some(), hang_after_tokens.is_some(), disconnect_after_tokens.is_some()];
        let endings = endings.into_iter().filter(|given| *given).count();

        if let Some(error) = error {
            let alone =
                no_content && endings == 0 && stop_reason.is_none() && delay_per_token_ms.is_none() && chunk.is_none();
            if !alone {
                return Err(ThenError::ErrorBesideContent);
            }
            if !(400..600).contains(&error.status) {
                return Err(ThenError::NotAnErrorStatus(error.status));
            }
            return Ok(Self::Error { error, delay: first_token });
        }
        if no_content && stop_reason.is_none() && endings == 0 {
            return Err(ThenError::Empty);
        }
        if endings > 1 {
            return Err(ThenError::TwoEndings);
        }
        if stop_reason == Some(StopReason::ToolUse) && tool_uses.is_empty() {
            return Err(ThenError::NoToolUse);
        }
        let default_reason = if tool_uses.is_empty() { StopReason::EndTurn } else { StopReason::ToolUse };
        Ok(Self::Message(MessageTemplate {
            thinking: template("thinking", thinking)?,
            text: template("text", text)?,
            tool_uses: tool_uses.into_iter().map(ToolUse::try_from).collect::<Result<_, _>>()?,
            stop_reason: stop_reason.unwrap_or(default_reason),
            pace: Pace {
                first_token,
                per_token: Duration::from_millis(delay_per_token_ms.unwrap_or(0)),
                chunk: chunk.map_or(Chunk::Word, Chunk::Chars),
            },
            ending: match (error_mid_stream, hang_after_tokens, disconnect_after_tokens) {
                (Some(error), _, _) => Ending::Error(error),
                (_, Some(after_tokens), _) => Ending::Hang { after_tokens },
                (_, _, Some(after_tokens)) => Ending::Disconnect { after_tokens },
                (None, None, None) => Ending::Complete,
            },
        }))
    }
}

impl TryFrom<RawToolUse> for ToolUse {
    type Error = ThenError;

    fn try_from(RawToolUse { name, input }: RawToolUse) -> Result<Self, ThenError> {
        let input = match input {
            Value::Null => Value::Object(serde_json::Map::new()),
            object @ Value::Object(_) => object,
            _ => return Err(ThenError::InputNotAnObject(name)),
        };
        Ok(Self { input: ValueTemplate::parse(input)?, name })
    }
}

fn template(field: &'static str, text: Option<String>) -> Result<Option<Template>, ThenError> {
    match text {
        None => Ok(None),
        Some(text) if text.is_empty() => Err(ThenError::EmptyText(field)),
        Some(text) => Ok(Some(Template::parse(&text)?)),
    }
}

/// A script that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the script is not valid: {0}")]
pub struct ScriptError(#[from] serde_yaml::Error);

impl Script {
    /// Reads a script from YAML. An empty document is a script without rules.
    ///
    /// # Errors
    /// [`ScriptError`] says what is wrong and where.
    pub fn parse(yaml: &str) -> Result<Self, ScriptError> {
        let script: Option<Self> = serde_yaml::from_str(yaml)?;
        Ok(script.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_full_script_is_read() {
        let script = Script::parse(
            "
rules:
- when: {user_contains: weather, turn: 0, times: 2}
  then:
    thinking: Let me look.
    text: Looking.
    tool_uses: [{name: bash, input: {command: 'echo {{last_user}}'}}]
    first_token_delay_ms: 20
    delay_per_token_ms: 1
    chunk: 4
- when: {tool_result_contains: sunny}
  then: {text: It is sunny., hang_after_tokens: 1}
- then: {error: {status: 529, type: overloaded_error, message: Overloaded, retry_after_seconds: 1}}
",
        )
        .unwrap();
        assert_eq!(script.rules.len(), 3);
        let Then::Message(first) = &script.rules[0].then else { panic!("a message") };
        assert_eq!(first.stop_reason, StopReason::ToolUse);
        assert_eq!(first.pace.first_token, Duration::from_millis(20));
        assert_eq!(first.pace.chunk, Chunk::Chars(NonZeroU32::new(4).unwrap()));
        let Then::Message(second) = &script.rules[1].then else { panic!("a message") };
        assert_eq!(second.ending, Ending::Hang { after_tokens: 1 });
        assert!(matches!(&script.rules[2].then, Then::Error { error, .. } if error.retry_after_seconds == Some(1)));
    }

    #[rstest]
    #[case("")]
    #[case("rules: []")]
    fn a_script_may_have_no_rules(#[case] yaml: &str) {
        assert!(Script::parse(yaml).unwrap().rules.is_empty());
    }

    #[rstest]
    #[case::field("rules: [{then: {txt: a}}]", "unknown field `txt`")]
    #[case::condition("rules: [{when: {user: a}, then: {text: a}}]", "unknown field `user`")]
    #[case::no_reply("rules: [{when: {turn: 0}}]", "missing field `then`")]
    #[case::empty("rules: [{then: {}}]", "the reply is empty")]
    #[case::empty_text("rules: [{then: {text: ''}}]", "`text` is empty")]
    #[case::both("rules: [{then: {text: a, error: {status: 500, type: api_error, message: m}}}]", "may have only")]
    #[case::status("rules: [{then: {error: {status: 200, type: t, message: m}}}]", "from 400 to 599")]
    #[case::endings(
        "rules: [{then: {text: a, hang_after_tokens: 1, disconnect_after_tokens: 1}}]",
        "exclude each other"
    )]
    #[case::tool_use("rules: [{then: {text: a, stop_reason: tool_use}}]", "needs `tool_uses`")]
    #[case::input("rules: [{then: {tool_uses: [{name: bash, input: [1]}]}}]", "input of tool `bash` must be an object")]
    #[case::reason("rules: [{then: {text: a, stop_reason: bored}}]", "unknown variant `bored`")]
    #[case::placeholder("rules: [{then: {text: '{{lst}}'}}]", "unknown placeholder {{lst}}")]
    #[case::times("rules: [{when: {times: 0}, then: {text: a}}]", "nonzero")]
    fn what_is_wrong_is_said(#[case] yaml: &str, #[case] expected: &str) {
        let error = Script::parse(yaml).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
