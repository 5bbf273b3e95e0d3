//! JSON that a stranger wrote.

use std::borrow::Cow;

use serde_json::Value;

/// JSON that is nested deeper is not taken: what wraps it in a log or in a page of one has to be read again.
pub const MAX_DEPTH: usize = 64;

/// Reads JSON. A surrogate that stands alone, which a model writes when a token cuts a character in two, is read as U+FFFD.
///
/// # Errors
/// When it is not JSON.
pub fn parse(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(text).or_else(|error| match mended(text) {
        Cow::Owned(mended) => serde_json::from_str(&mended),
        Cow::Borrowed(_) => Err(error),
    })
}

/// Whether the value is nested deeper than [`MAX_DEPTH`].
#[must_use]
pub fn is_too_deep(value: &Value) -> bool {
    fn deeper_than(value: &Value, left: usize) -> bool {
        match value {
            Value::Array(items) => left == 0 || items.iter().any(|item| deeper_than(item, left - 1)),
            Value::Object(fields) => left == 0 || fields.values().any(|field| deeper_than(field, left - 1)),
            _ => false,
        }
    }
    deeper_than(value, MAX_DEPTH)
}

/// The text with `\ufffd` in place of each escape of half a character.
fn mended(text: &str) -> Cow<'_, str> {
    let mut mended = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        let (length, alone) = match unit(escape) {
            Some(0xd800..=0xdbff) if matches!(escape.get(6..).and_then(unit), Some(0xdc00..=0xdfff)) => (12, false),
            Some(0xd800..=0xdfff) => (6, true),
            Some(_) => (6, false),
            // A backslash and what it escapes, of any length.
            None => (1 + escape.chars().nth(1).map_or(0, char::len_utf8), false),
        };
        let (escape, after) = escape.split_at(length);
        mended.push_str(before);
        mended.push_str(if alone { "\\ufffd" } else { escape });
        rest = after;
    }
    if mended.is_empty() {
        return Cow::Borrowed(text);
    }
    mended.push_str(rest);
    if mended == text { Cow::Borrowed(text) } else { Cow::Owned(mended) }
}

/// The code unit of an escape `\uXXXX` at the beginning.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{MAX_DEPTH, is_too_deep, parse};

    #[rstest]
    #[case(r#""\ud800""#, Some("\u{fffd}"))]
    #[case(r#""a\udc00b""#, Some("a\u{fffd}b"))]
    #[case(r#""\ud83d\ude00""#, Some("😀"))]
    #[case(r#""\ud83d\ud83d\ude00""#, Some("\u{fffd}😀"))]
    #[case(r#""\ud83dé\\ud800""#, Some("\u{fffd}é\\ud800"))]
    #[case(r#""\\\ud800""#, Some("\\\u{fffd}"))]
    #[case(r#""\ud800"#, None)]
    #[case(r#""\ud80"#, None)]
    #[case("\"\\", None)]
    #[case("\"\\é\\ud800\"", None)]
    fn half_a_character_is_replaced(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(parse(text).ok(), expected.map(|text| json!(text)));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert!(!is_too_deep(&nested(MAX_DEPTH)));
        assert!(is_too_deep(&nested(MAX_DEPTH + 1)));
        assert!(is_too_deep(&json!({"a": nested(MAX_DEPTH)})));
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in r#"(\\|u|d8|dc|00|"|é|\{|\}|:|a){0,40}"#) {
            let _: Result<Value, _> = parse(&text);
        }
    }
}
