//! Values that a client may write and nobody may read.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use serde::ser::{Error as _, Serialize, Serializer};
use zeroize::Zeroizing;

/// The longest value that is taken, in bytes.
const LONGEST: usize = 64 * 1024;

/// A secret value from a request. It cannot be shown, compared or serialised, and its memory is cleared when it is dropped.
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// The value itself, for the one place where it is stored.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl From<&str> for SecretValue {
    fn from(value: &str) -> Self {
        Self(Zeroizing::new(value.as_bytes().to_vec()))
    }
}

/// A secret value on its way to where it is stored: the one form in which it is serialised. It is not shown either.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SentValue<'a>(&'a [u8]);

impl<'a> SentValue<'a> {
    /// Borrows a value, which has to be text.
    #[must_use]
    pub const fn new(value: &'a [u8]) -> Self {
        Self(value)
    }

    /// How many bytes it has at the most when it is escaped.
    #[must_use]
    pub const fn escaped_length(&self) -> usize {
        self.0.len() * 6
    }
}

impl fmt::Debug for SentValue<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

impl Serialize for SentValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = std::str::from_utf8(self.0).map_err(|_| S::Error::custom("a secret value is not text"))?;
        serializer.serialize_str(text)
    }
}

impl<'de> Deserialize<'de> for SecretValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As text, a number would be named in the error before this visitor is asked.
        deserializer.deserialize_any(Text)
    }
}

impl JsonSchema for SecretValue {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "SecretValue".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "maxLength": LONGEST, "writeOnly": true })
    }
}

/// Takes text only, and never repeats what it was given.
struct Text;

impl Visitor<'_> for Text {
    type Value = SecretValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text of 1 to {LONGEST} bytes")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<SecretValue, E> {
        if (1..=LONGEST).contains(&value.len()) && !value.contains('\0') {
            return Ok(SecretValue::from(value));
        }
        Err(E::invalid_value(Unexpected::Other("a secret value of another length"), &self))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<SecretValue, E> {
        Err(E::invalid_type(Unexpected::Other("a boolean"), &self))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<SecretValue, E> {
        Err(E::invalid_type(Unexpected::Other("a number"), &self))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<SecretValue, E> {
        Err(E::invalid_type(Unexpected::Other("a number"), &self))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<SecretValue, E> {
        Err(E::invalid_type(Unexpected::Other("a number"), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::SecretValue;

    #[test]
    fn a_value_is_text() {
        let value: SecretValue = serde_json::from_str("\"sk-\\u0061\"").unwrap();
        assert_eq!(value.expose(), b"sk-a");
    }

    #[test]
    fn an_error_does_not_repeat_what_was_given() {
        for wrong in ["12345", "-12345", "1.2345", "true", "[\"12345\"]", "{\"12345\": 1}", "\"\"", "\"12345\\u0000\""]
        {
            let Err(error) = serde_json::from_str::<SecretValue>(wrong) else { panic!("{wrong} was taken") };
            assert!(!error.to_string().contains("2345"), "{error}");
        }
    }
}
