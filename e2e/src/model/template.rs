//! Placeholders in a script's texts and tool inputs, checked when the script is loaded.

use serde_json::{Map, Value};

/// What a placeholder may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    LastUser,
    LastToolResult,
    MessageCount,
}

const NAMES: [(&str, Name); 3] =
    [("last_user", Name::LastUser), ("last_tool_result", Name::LastToolResult), ("message_count", Name::MessageCount)];

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Literal(String),
    Placeholder(Name),
}

/// A text with placeholders, such as `You said: {{last_user}}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Vec<Piece>);

/// A placeholder that no request can fill.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "unknown placeholder {{{{{0}}}}}: known are {{{{last_user}}}}, {{{{last_tool_result}}}}, {{{{message_count}}}}"
)]
pub struct UnknownPlaceholder(String);

/// The values that placeholders take for one request.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    /// The last user text.
    pub last_user: &'a str,
    /// The text of the last tool result, empty if there is none.
    pub last_tool_result: &'a str,
    /// The number of messages in the request.
    pub message_count: usize,
}

impl Template {
    /// Reads a template. Only `{{name}}` with a name of lower-case letters and underscores is a placeholder, so that
    /// code with other double braces stays as it is.
    ///
    /// # Errors
    /// [`UnknownPlaceholder`] names a placeholder that does not exist.
    pub fn parse(text: &str) -> Result<Self, UnknownPlaceholder> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            literal.push_str(before);
            let name_end = after.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(after.len());
            let (name, tail) = after.split_at(name_end);
            match tail.strip_prefix("}}") {
                Some(tail) if !name.is_empty() => {
                    let (_, known) = NAMES
                        .iter()
                        .find(|(candidate, _)| *candidate == name)
                        .ok_or_else(|| UnknownPlaceholder(name.to_owned()))?;
                    if !literal.is_empty() {
                        pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                    }
                    pieces.push(Piece::Placeholder(*known));
                    rest = tail;
                }
                _ => {
                    literal.push_str("{{");
                    rest = after;
                }
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(pieces))
    }

    /// The text for one request.
    #[must_use]
    pub fn render(&self, values: Values<'_>) -> String {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Placeholder(Name::LastUser) => text.push_str(values.last_user),
                Piece::Placeholder(Name::LastToolResult) => text.push_str(values.last_tool_result),
                Piece::Placeholder(Name::MessageCount) => text.push_str(&values.message_count.to_string()),
            }
        }
        text
    }
}

/// A JSON value whose strings are templates.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueTemplate {
    /// A number, boolean or null: stays as it is.
    Plain(Value),
    /// A string.
    Text(Template),
    /// An array.
    Array(Vec<ValueTemplate>),
    /// An object; names are not templates.
    Object(Vec<(String, ValueTemplate)>),
}

impl ValueTemplate {
    /// Reads the templates in a value.
    ///
    /// # Errors
    /// [`UnknownPlaceholder`] names a placeholder that does not exist.
    pub fn parse(value: Value) -> Result<Self, UnknownPlaceholder> {
        Ok(match value {
            Value::String(text) => Self::Text(Template::parse(&text)?),
            Value::Array(items) => Self::Array(items.into_iter().map(Self::parse).collect::<Result<_, _>>()?),
            Value::Object(fields) => {
                Self::Object(fields.into_iter().map(|(name, value)| Ok((name, Self::parse(value)?))).collect::<Result<
                    _,
                    UnknownPlaceholder,
                >>(
                )?)
            }
            plain @ (Value::Null | Value::Bool(_) | Value::Number(_)) => Self::Plain(plain),
        })
    }

    /// The value for one request.
    #[must_use]
    pub fn render(&self, values: Values<'_>) -> Value {
        match self {
            Self::Plain(value) => value.clone(),
            Self::Text(template) => Value::String(template.render(values)),
            Self::Array(items) => Value::Array(items.iter().map(|item| item.render(values)).collect()),
            Self::Object(fields) => Value::Object(
                fields.iter().map(|(name, value)| (name.clone(), value.render(values))).collect::<Map<_, _>>(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    const VALUES: Values<'static> =
        Values { last_user: "hi {{message_count}}", last_tool_result: "42", message_count: 3 };

    #[rstest]
    #[case("", "")]
    #[case("plain", "plain")]
    #[case("You said: {{last_user}}", "You said: hi {{message_count}}")]
    #[case("{{last_tool_result}}{{message_count}}!", "423!")]
    #[case("awk '{{ print }}' {{", "awk '{{ print }}' {{")]
    #[case("{{}} {{Upper}} {{last_user}", "{{}} {{Upper}} {{last_user}")]
    #[case("{{{last_tool_result}}}", "{{{last_tool_result}}}")]
    fn renders(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(Template::parse(text).unwrap().render(VALUES), expected);
    }

    #[test]
    fn an_unknown_placeholder_is_named() {
        let error = Template::parse("{{last_usr}}").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown placeholder {{last_usr}}: known are {{last_user}}, {{last_tool_result}}, {{message_count}}"
        );
    }

    #[test]
    fn values_are_rendered_in_depth() {
        let input = json!({"command": "echo {{last_tool_result}}", "list": ["{{message_count}}", 1, null]});
        assert_eq!(
            ValueTemplate::parse(input).unwrap().render(VALUES),
            json!({"command": "echo 42", "list": ["3", 1, null]})
        );
    }
}
