//! Texts of a bounded length, which say it if they were cut.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

/// What a text that was cut ends with.
const ELLIPSIS: &str = "…";

/// A text of at most `MAX` bytes. A longer one cannot be made: it is cut, also where it comes from somebody else, and ends with
/// an ellipsis then.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// What fits of a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.len() > MAX {
            text.truncate(text.floor_char_boundary(MAX.saturating_sub(ELLIPSIS.len())));
            text.push_str(ELLIPSIS);
        }
        Self(text)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> Deref for Text<MAX> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MAX: usize> From<&str> for Text<MAX> {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl<const MAX: usize> From<Text<MAX>> for String {
    fn from(text: Text<MAX>) -> Self {
        text.0
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::Text;

    #[rstest]
    #[case("", "")]
    #[case("12345678", "12345678")]
    #[case("123456789", "12345…")]
    // A character that would be halved goes as a whole.
    #[case("1234äää", "1234…")]
    fn what_is_too_long_is_cut_and_says_so(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(Text::<8>::new(text).as_str(), expected);
        let read: Text<8> = serde_json::from_value(text.into()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), expected);
    }

    proptest! {
        #[test]
        fn nothing_longer_can_be_made(text in any::<String>()) {
            let short = Text::<16>::new(text.as_str());
            prop_assert!(short.len() <= 16);
            prop_assert_eq!(text.len() <= 16, *short == *text);
            prop_assert_eq!(Text::<16>::new(short.as_str()), short);
        }
    }
}
