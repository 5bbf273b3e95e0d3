//! Values that a client may write and nobody may read.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
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
