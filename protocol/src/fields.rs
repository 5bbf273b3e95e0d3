//! Reading JSON of clients field by field, so that a refusal names the field that is wrong.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

/// A field that is missing, unknown or wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}`: {problem}")]
pub struct InvalidField {
    /// Where it is, as in `events[0].content[1].text`.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What reading gives.
pub type Result<T, E = InvalidField> = std::result::Result<T, E>;

impl InvalidField {
    /// The field at `path` is wrong.
    #[must_use]
    pub fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { path: path.into(), problem: problem.into() }
    }
}

/// The fields of an object that are not taken yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The fields of the object at `path`; the path of a whole body is empty.
    ///
    /// # Errors
    /// When it is no object.
    pub fn of(path: impl Into<String>, value: Value) -> Result<Self> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            _ if path.is_empty() => Err(InvalidField::new("body", "must be an object")),
            _ => Err(InvalidField::new(path, "must be an object")),
        }
    }

    /// Where the field `key` is.
    #[must_use]
    pub fn path(&self, key: impl fmt::Display) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }

    /// The field `key` is wrong.
    #[must_use]
    pub fn wrong(&self, key: impl fmt::Display, problem: impl Into<String>) -> InvalidField {
        InvalidField::new(self.path(key), problem)
    }

    /// Takes a field; null is a value.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key)
    }

    /// Looks at a field.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key)
    }

    /// Takes a field that may be absent or null.
    pub fn optional(&mut self, key: &str) -> Option<Value> {
        self.take(key).filter(|value| !value.is_null())
    }

    /// Takes a field that must be there.
    ///
    /// # Errors
    /// When it is absent or null.
    pub fn required(&mut self, key: &str) -> Result<Value> {
        self.optional(key).ok_or_else(|| self.wrong(key, "is required"))
    }

    /// Takes a text that may be absent.
    ///
    /// # Errors
    /// When it is something else.
    pub fn optional_text(&mut self, key: &str) -> Result<Option<String>> {
        match self.optional(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "must be a string")),
        }
    }

    /// Takes a text.
    ///
    /// # Errors
    /// When it is absent or something else.
    pub fn text(&mut self, key: &str) -> Result<String> {
        self.optional_text(key)?.ok_or_else(|| self.wrong(key, "is required and must be a string"))
    }

    /// Takes a text that says something.
    ///
    /// # Errors
    /// When it is absent, empty or something else.
    pub fn nonempty_text(&mut self, key: &str) -> Result<String> {
        let text = self.text(key)?;
        if text.is_empty() { Err(self.wrong(key, "must be a string that is not empty")) } else { Ok(text) }
    }

    /// Takes a truth value that may be absent.
    ///
    /// # Errors
    /// When it is something else.
    pub fn optional_flag(&mut self, key: &str) -> Result<Option<bool>> {
        match self.optional(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong(key, "must be true or false")),
        }
    }

    /// Takes a whole number that may be absent.
    ///
    /// # Errors
    /// When it is something else, or out of `range`.
    pub fn optional_number(&mut self, key: &str, range: std::ops::RangeInclusive<i64>) -> Result<Option<i64>> {
        let Some(value) = self.optional(key) else { return Ok(None) };
        match value.as_i64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let problem = format!("must be a whole number from {} to {}", range.start(), range.end());
                Err(self.wrong(key, problem))
            }
        }
    }

    /// Takes a list that may be absent.
    ///
    /// # Errors
    /// When it is something else, or longer than `most`.
    pub fn optional_list(&mut self, key: &str, most: usize) -> Result<Option<Vec<Value>>> {
        match self.optional(key) {
            None => Ok(None),
            Some(Value::Array(items)) if items.len() <= most => Ok(Some(items)),
            Some(Value::Array(items)) => {
                Err(self.wrong(key, format!("holds {} items, and may hold {most}", items.len())))
            }
            Some(_) => Err(self.wrong(key, "must be a list")),
        }
    }

    /// Takes a list of objects that may be absent, each with the path that its fields have.
    ///
    /// # Errors
    /// When it is something else, or longer than `most`.
    pub fn objects(&mut self, key: &str, most: usize) -> Result<Option<Vec<Self>>> {
        let Some(items) = self.optional_list(key, most)? else { return Ok(None) };
        let object = |(index, item)| Self::of(format!("{}[{index}]", self.path(key)), item);
        items.into_iter().enumerate().map(object).collect::<Result<_>>().map(Some)
    }

    /// Takes an object that may be absent.
    ///
    /// # Errors
    /// When it is something else.
    pub fn optional_object(&mut self, key: &str) -> Result<Option<Self>> {
        let path = self.path(key);
        self.optional(key).map(|value| Self::of(path, value)).transpose()
    }

    /// Takes an object.
    ///
    /// # Errors
    /// When it is absent or something else.
    pub fn object(&mut self, key: &str) -> Result<Self> {
        self.optional_object(key)?.ok_or_else(|| self.wrong(key, "is required and must be an object"))
    }

    /// Takes a text that is read as something else, such as an identifier; it may be absent.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn optional_parsed<T: FromStr>(&mut self, key: &str) -> Result<Option<T>>
    where
        T::Err: fmt::Display,
    {
        let Some(text) = self.optional_text(key)? else { return Ok(None) };
        text.parse().map(Some).map_err(|error: T::Err| self.wrong(key, error.to_string()))
    }

    /// Takes a text that is read as something else.
    ///
    /// # Errors
    /// When it is absent or cannot be read.
    pub fn parsed<T: FromStr>(&mut self, key: &str) -> Result<T>
    where
        T::Err: fmt::Display,
    {
        self.optional_parsed(key)?.ok_or_else(|| self.wrong(key, "is required"))
    }

    /// What is left.
    #[must_use]
    pub fn rest(self) -> Map<String, Value> {
        self.map
    }

    /// Refuses what is left.
    ///
    /// # Errors
    /// Names a field that nobody took.
    pub fn end(self) -> Result<()> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.wrong(key, "is not a field that is known here")),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{Fields, Result};

    fn read(body: Value) -> Result<()> {
        let mut fields = Fields::of("events[0]", body)?;
        fields.nonempty_text("name")?;
        fields.optional_flag("flag")?;
        fields.optional_number("count", 1..=5)?;
        for mut item in fields.objects("items", 2)?.unwrap_or_default() {
            item.text("text")?;
            item.end()?;
        }
        fields.end()
    }

    #[rstest]
    #[case(json!(1), "`events[0]`: must be an object")]
    #[case(json!({}), "`events[0].name`: is required")]
    #[case(json!({"name": null}), "`events[0].name`: is required")]
    #[case(json!({"name": ""}), "`events[0].name`: must be a string that is not empty")]
    #[case(json!({"name": "a", "flag": 1}), "`events[0].flag`: must be true or false")]
    #[case(json!({"name": "a", "count": 6}), "`events[0].count`: must be a whole number from 1 to 5")]
    #[case(json!({"name": "a", "items": {}}), "`events[0].items`: must be a list")]
    #[case(json!({"name": "a", "items": [1, 2, 3]}), "`events[0].items`: holds 3 items, and may hold 2")]
    #[case(json!({"name": "a", "items": [{"text": "a"}, {"text": 1}]}), "`events[0].items[1].text`: must be a string")]
    #[case(json!({"name": "a", "items": [{"text": "a", "b": 1}]}), "`events[0].items[0].b`: is not a field")]
    #[case(json!({"name": "a", "odd": 1}), "`events[0].odd`: is not a field")]
    fn what_is_wrong_is_named(#[case] body: Value, #[case] message: &str) {
        let error = read(body).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }

    #[test]
    fn null_is_absent() {
        read(json!({"name": "a", "flag": null, "count": null, "items": null})).unwrap();
    }
}
